"""Make pretraining examples from raw text: the flags of albert_zh's and Google's script of this name, and ours.

create_pretrain_data.sh is an example of its use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from absl.app import UsageError

from commands.flags import Group, flag, run
from commands.needs import Need, check_needs
from commands.options import SEGMENTATIONS
from commands.sizes import check_records
from data.objectives import OBJECTIVES

if TYPE_CHECKING:
    from data.continuation import Continuation
    from data.recipe import Recipe
    from data.tokenizers import Tokenizer
    from data.word_order import WordOrder
    from data.writing.output import Output

# Counts that every text has; any other count of reading is a repair.
_READ = ("read_bytes", "read_documents", "read_sentences", "read_characters")

_SHOWN_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make shards of masked, paired pretraining examples from raw text."""

    _data: ClassVar = Group.DATA
    input_file: tuple[str, ...] = flag(
        help="text: paths, patterns or tfds:NAME, separated by commas; a sentence a line and a blank line between "
        "documents, or JSON lines; .gz, .xz, .zst and .bz2 are decompressed. Text of several languages: "
        "en=PATH,zh=PATH. Sentences and their translations: FIRST:SECOND, files whose lines belong together, or "
        "en-zh=PATH, a file of two columns with a TAB between; also en-zh=FIRST:SECOND"
    )
    output_file: tuple[str, ...] = flag(
        help="TFRecord files to write, separated by commas; examples are dealt over them. Of several languages each "
        "has files of its own: NAME.en.tfrecord"
    )
    vocab_file: str | None = flag(None, help="WordPiece vocabulary, a token a line", essential=True)
    spm_model_file: str | None = flag(
        None,
        help="SentencePiece model, which wins over --vocab_file, unless that lists its pieces, as ERNIE-M's does",
        essential=True,
    )
    segmentation: str | None = flag(
        None,
        help="how ERNIE-M's tokenizer cuts text, of --spm_model_file and --vocab_file together; by default paddlenlp",
        choices=SEGMENTATIONS,
    )
    do_lower_case: bool = flag(True, help="lower-case the text and strip accents")

    _objective: ClassVar = Group.OBJECTIVE
    objective: str = flag(
        "albert",
        help="what is learnt; " + "; ".join(f"{name}: {row.summary}" for name, row in OBJECTIVES.items()),
        choices=tuple(OBJECTIVES),
        essential=True,
    )
    trigram_rate: float | None = flag(
        None,
        help="share of the windows of --trigram_tokens tokens whose order is shuffled and predicted, with any "
        "objective; by default as --preset has it with structbert and 0, none, with the others",
        minimum=0.0,
        maximum=1.0,
    )
    trigram_tokens: int = flag(3, help="size of a window, StructBERT's K", unit="tokens", minimum=2, maximum=6)
    trigram_windows: str | None = flag(
        None,
        help="unmasked: windows without masked or special tokens, each inside one segment; any: all others too; "
        "by default as --preset has it",
        choices=("unmasked", "any"),
    )
    trigram_overlap: bool | None = flag(None, help="windows may overlap; by default as --preset has it")
    trigram_identity: bool = flag(True, help="the order drawn for a window may be the one it has")
    trigram_labels: str | None = flag(
        None,
        help="predict all tokens of a window, or those that changed; by default as --preset has it",
        choices=("all", "changed"),
    )
    preset: str = flag(
        "paper",
        help="of the --trigram flags not given; paper: rate 0.05, unmasked, no overlap, all; released, as AliceMind's "
        "sampler: rate 0.1, any, overlap, changed (and run_pretraining.py --pooled_loss)",
        choices=("paper", "released"),
    )
    fragment_length: int | None = flag(
        None,
        help="most tokens of a fragment of consecutive sentences, of which --source_fraction is the source and "
        "the rest the target; by default 500, or what the rows hold",
        unit="tokens",
        minimum=2,
    )
    source_fraction: float | None = flag(
        None, help="share of a fragment that the encoder reads; by default 0.8", minimum=0.0, maximum=1.0
    )
    fragment_stride: int | None = flag(
        None,
        help="sentences from the beginning of one fragment to that of the next; 0: a whole fragment. By default 1 with "
        "palm, which makes the text as many times longer as a fragment has sentences (then give --dupe_factor=1), and "
        "0 with plug",
        unit="sentences",
        minimum=0,
    )
    source_length_range: tuple[int, ...] = flag(
        (),
        help="MIN,MAX or one number: draw the length of every source, specials counted, instead of taking a share; by "
        "default 32,512 with plug, at most --max_seq_length",
        unit="tokens",
    )
    target_length_range: tuple[int, ...] = flag(
        (),
        help="MIN,MAX: likewise of every target, in positions of the decoder; at most --max_target_length",
        unit="tokens",
    )
    max_target_length: int | None = flag(
        None,
        help="positions of the decoder: tokens of a target and one for its end; by default what the longest target "
        "needs. --max_seq_length is the length of a source",
        unit="tokens",
        minimum=2,
    )
    random_next_sentence: bool = flag(False, help="Google's name for --objective=bert")
    _masking: ClassVar = Group.MASKING
    do_whole_word_mask: bool = flag(
        False, help="hide whole words, Chinese ones by --segmenter, rather than tokens", essential=True
    )
    segmenter: str = flag("rjieba", help="what finds Chinese words", choices=("rjieba", "jieba", "none"))
    non_chinese: bool = flag(False, help="albert_zh's name for --segmenter=none")
    ngram: int = flag(
        1, help="hide up to this many words in a row, n with probability ~ 1/n; ALBERT used 3", unit="words", minimum=1
    )
    favor_shorter_ngram: bool = flag(
        True, help="false reverses the probabilities of n; albert_zh's False was Google's True by mistake"
    )
    do_permutation: bool = flag(
        False,
        help="besides, let as many tokens again change places and predict them; doubles the width of the label arrays",
    )
    masking: str = flag(
        "static",
        help="dynamic writes compact examples that run_pretraining.py masks anew in every epoch",
        choices=("static", "dynamic"),
    )
    _examples: ClassVar = Group.EXAMPLES
    max_seq_length: int = flag(
        128, help="length of an example, specials counted", unit="tokens", minimum=5, essential=True
    )
    max_predictions_per_seq: int = flag(
        20, help="most predictions of an example", unit="tokens", minimum=1, essential=True
    )
    masked_lm_prob: float = flag(
        0.15,
        help="share of tokens that is predicted; 0 hides nothing",
        minimum=0.0,
        maximum=1.0,
        essential=True,
        group=Group.MASKING,
    )
    short_seq_prob: float = flag(
        0.1,
        help="share of examples with a shorter target length, drawn for each example (albert_zh: for each document)",
        minimum=0.0,
        maximum=1.0,
    )
    dupe_factor: int = flag(
        10, help="passes over the text, each with its own pairs and masks", minimum=1, essential=True
    )
    random_seed: int = flag(12345, help="of all draws; the same seed and text give the same bytes", minimum=0)
    pack_sequences: bool = flag(
        False,
        help="fill examples with several sequences that do not see one another; for --objective=masked_lm, since the "
        "others have one pair label an example",
    )
    albert_zh_labels: bool = flag(
        False,
        help="label a character inside a word ##X where the vocabulary has it: for going on from albert_zh's published "
        "weights, which learnt that",
        group=Group.MASKING,
    )
    input_file_mode: str = flag(
        "r",
        help="taken from Google's command lines; text is read by --encoding either way",
        choices=("r", "rb"),
        group=Group.DATA,
    )
    text_field: str = flag("text", help="field of JSON lines and tfds examples that holds the text", group=Group.DATA)
    encoding: str = flag(
        "utf-8",
        help="of the files, as Python names it: gb18030, big5, utf-16, cp1252 ...; the examples are the same",
        group=Group.DATA,
    )
    accept_bad_text: bool = flag(
        False,
        help="go on where files look like no text or another encoding, or too many tokens are unknown",
        group=Group.DATA,
    )

    long_pairs: str = flag(
        "cut",
        help="what becomes of a sentence and its translation that are too long for their rows; cut takes their ends",
        choices=("cut", "drop"),
        group=Group.EXAMPLES,
    )

    _evaluation: ClassVar = Group.EVALUATION
    eval_fraction: float = flag(
        0.0,
        help="share of the documents that is held out of the shards and written, in one pass, to "
        "NAME.held_out.tfrecord for run_pretraining.py --do_eval",
        minimum=0.0,
        maximum=0.5,
        essential=True,
    )
    _shards: ClassVar = Group.SHARDS
    num_workers: int = flag(0, help="processes; 0: one a core; the shards do not depend on it", minimum=0)
    num_shards: int | None = flag(
        None, help="write this many files NAME-00000-of-000NN.tfrecord of the one --output_file", minimum=1
    )
    shard_size: int | None = flag(
        None, help="write as many such files as hold this many examples each", unit="examples", minimum=1
    )
    runner: str | None = flag(
        None, help="run under Apache Beam: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner; same examples"
    )
    beam_options: tuple[str, ...] = flag((), help="options of the Beam runner, separated by commas: --project=NAME,...")


def _shuffles(options: Options) -> bool:
    rate = options.trigram_rate
    return OBJECTIVES[options.objective].shuffles_words if rate is None else rate > 0


def _draws(options: Options) -> bool:
    continuing = OBJECTIVES[options.objective].continuing
    ranges = options.source_length_range or options.target_length_range
    return continuing is not None and bool(continuing.drawn or ranges)


NEEDS = (
    Need(
        ("preset", "trigram_tokens", "trigram_windows", "trigram_overlap", "trigram_identity", "trigram_labels"),
        "--trigram_rate or --objective=structbert",
        _shuffles,
    ),
    Need(
        (
            "fragment_length",
            "source_fraction",
            "fragment_stride",
            "source_length_range",
            "target_length_range",
            "max_target_length",
        ),
        f"an --objective with targets ({', '.join(name for name, row in OBJECTIVES.items() if row.continuing)})",
        lambda o: OBJECTIVES[o.objective].continuing,
    ),
    Need(("fragment_length", "source_fraction"), "--objective=palm without ranges of lengths", lambda o: not _draws(o)),
    Need(("short_seq_prob",), "lengths that are not drawn from ranges", lambda o: not _draws(o)),
    Need(("segmenter",), "--do_whole_word_mask", lambda o: o.do_whole_word_mask),
    Need(("favor_shorter_ngram",), "--ngram of 2 or more", lambda o: o.ngram > 1),
    Need(("beam_options",), "--runner", lambda o: o.runner),
)


@dataclass(frozen=True)
class Job:
    """The records of one language, or of all text where no language is named.

    Attributes:
        inputs: of the text.
        recipe: of the records.
        names: of the files to write, maybe as URLs.
        output: the same as paths.
    """

    inputs: Sequence[Path]
    recipe: Recipe
    names: tuple[str, ...]
    output: Output

    @property
    def held_out(self) -> Output:
        """The file of the documents that are held out."""
        from data.writing.output import Output

        return Output((Path(held_out_name(self.names[0])),))


def main(options: Options) -> int:
    """Make the shards; print what was read and written. Raises `UsageError` for flags that do not go together."""
    check(options)
    # Tokenizers start threads of their own otherwise; the processes are ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from data.corpus import check_inputs, find_encoding
    from data.tokenizers import load_tokenizer
    from data.writing import claims

    jobs = jobs_of(options)
    options = dataclasses.replace(options, encoding=find_encoding(options.encoding))
    for job in jobs:
        check_inputs(job.inputs, options.encoding, accept=options.accept_bad_text)
        check_records(options, job.recipe, job.inputs, job.output.files[0], num_cores())
    tokenizer = load_tokenizer(**tokenizer_files(options))
    # The manifest has what was done, not what was left to the default.
    options = dataclasses.replace(options, segmentation=getattr(tokenizer, "segmentation", None))
    with claims.locked([name for job in jobs for name in (*job.names, held_out_name(job.names[0]))]):
        for job in jobs:
            check_outputs(options, job)
        made = make_all(options, jobs, tokenizer)
        told = balance([manifest for manifest in made if manifest], jobs) if len(made) > 1 else ""
        forget(jobs)
    if told:
        print(told)
    return 0


def jobs_of(options: Options) -> list[Job]:
    """Return a job for each language; raises `UsageError` where flags and inputs do not go together."""
    from data.corpus import find_corpora
    from data.writing.output import Output

    corpora = find_corpora(options.input_file)
    if options.runner and len(corpora) > 1:
        raise UsageError(
            f"--runner={options.runner} makes the records of one language, but --input_file has {len(corpora)}: give "
            "each a command"
        )
    recipe = recipe_of(options)
    jobs = []
    for corpus in corpora:
        names = options.output_file
        if len(corpora) > 1:
            names = tuple(beside(name, corpus.language) for name in names)
        output = Output(tuple(map(Path, names)), options.num_shards, options.shard_size)
        own = dataclasses.replace(recipe, text=corpus.text or None, language=corpus.language)
        jobs.append(Job(corpus.inputs, own, names, output))
    has_pairs = any(job.recipe.reads == "pairs" for job in jobs)
    check_needs(options, (Need(("long_pairs",), "pairs, as --input_file=FIRST:SECOND", lambda _: has_pairs),))
    return jobs


def make_all(options: Options, jobs: Sequence[Job], tokenizer: Tokenizer) -> list[dict[str, Any] | None]:
    """Make the records of every job; return their manifests, None under Beam.

    Raises `UsageError` where the text of one is refused; of the others nothing is left then.
    """
    made = []
    for number, job in enumerate(jobs):
        try:
            made.append(make(options, job, tokenizer))
        except UsageError as error:
            for former in jobs[:number]:
                for output in (former.output, former.held_out):
                    remove_former(output)
            forget(jobs[: number + 1])
            raise UsageError(f"{job.recipe.language}: {error}" if len(jobs) > 1 else str(error)) from None
    return made


def forget(jobs: Sequence[Job]) -> None:
    """Remove the notes of what is done of the jobs: the same command begins anew from now on."""
    from data.writing import claims

    for job in jobs:
        for output in (job.output, job.held_out):
            claims.forget(output.work_path)


def make(options: Options, job: Job, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Make the records of one job, first those held out; return the manifest of the others, None under Beam."""
    if not options.eval_fraction:
        remove_former(job.held_out)
    parts = [(job.recipe, job.names, job.output)]
    if options.eval_fraction:
        apart = dataclasses.replace(job.recipe, held_out=True, dupe_factor=1)
        parts.insert(0, (apart, (held_out_name(job.names[0]),), job.held_out))
    manifest = None
    for recipe, names, output in parts:
        if options.runner:
            make_with_beam(options, job.inputs, recipe, names, output)
        else:
            with nothing_held_out(None if recipe.held_out else job.held_out):
                manifest = make_here(options, job.inputs, recipe, output, tokenizer)
    return manifest


def balance(made: Sequence[dict[str, Any]], jobs: Sequence[Job]) -> str:
    """Write into the manifests how much there is of every language, and return it as lines for a person."""
    from data.languages import ALPHA, drawn_shares
    from data.manifest import text_size, to_bytes
    from ground.files import write_atomically

    sizes = {job.recipe.language: text_size(manifest) for job, manifest in zip(jobs, made, strict=True)}
    share, drawn = drawn_shares(sizes, 1.0), drawn_shares(sizes, ALPHA)
    languages = {
        name: {"examples": manifest["num_examples"], "share": share[name], "drawn": drawn[name]}
        for name, manifest in zip(sizes, made, strict=True)
    }
    for job, manifest in zip(jobs, made, strict=True):
        write_atomically(job.output.manifest_path, to_bytes({**manifest, "languages": languages}))
    width = max(map(len, languages))
    lines = [
        f"balance  {name:{width}}  {row['examples']:,} examples, {row['share']:.1%} of the text; drawn "
        f"{row['drawn']:.1%} of the time by run_pretraining.py --language_alpha={ALPHA:g}"
        for name, row in languages.items()
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def nothing_held_out(made: Output | None) -> Iterator[None]:
    """Remove what was held out of a text that is then refused inside, so that nothing of it is left."""
    try:
        yield
    except UsageError:
        if made is not None:
            remove_former(made)
        raise


def check_outputs(options: Options, job: Job) -> None:
    """Raise `UsageError` where a job would write over what is read, or over what is of somebody else."""
    from data.corpus import files_of
    from data.writing import claims

    reads = {
        "--input_file": [file for path in job.inputs for file in files_of(path)],
        "--vocab_file": [options.vocab_file],
        "--spm_model_file": [options.spm_model_file],
    }
    claims.check(job.output, reads)
    if options.eval_fraction or job.held_out.manifest_path.exists():
        claims.check(job.held_out, reads)


def check(options: Options) -> None:
    """Raise `UsageError` for what flags alone tell; a recipe and an output check themselves."""
    if not (options.vocab_file or options.spm_model_file):
        raise UsageError("no tokenizer: give --vocab_file (WordPiece) or --spm_model_file (SentencePiece)")
    check_needs(options, NEEDS)
    row = OBJECTIVES[options.objective]
    if options.random_next_sentence and not row.labels:
        raise UsageError(
            f"--random_next_sentence=True asks for pairs, --objective={options.objective} for none: drop one of them"
        )
    if options.random_next_sentence and row.shuffles_words:
        raise UsageError(
            f"--random_next_sentence=True is --objective=bert, but --objective={options.objective}: drop one of them"
        )
    if options.runner and options.shard_size:
        raise UsageError(
            "--shard_size cannot be had with --runner, which must know the files at once: give --num_shards"
        )


def recipe_of(options: Options) -> Recipe:
    """Return the recipe that the flags ask for; raises `UsageError` where they do not go together."""
    from data.masking import Masking
    from data.recipe import Recipe

    return Recipe(
        objective="bert" if options.random_next_sentence else options.objective,
        masking=Masking(
            rate=options.masked_lm_prob,
            max_predictions=options.max_predictions_per_seq,
            ngram=options.ngram,
            favor_shorter_ngram=options.favor_shorter_ngram,
            permute=options.do_permutation,
        ),
        dynamic=options.masking == "dynamic",
        whole_word=options.do_whole_word_mask,
        segmenter="none" if options.non_chinese else options.segmenter,
        max_seq_length=options.max_seq_length,
        dupe_factor=options.dupe_factor,
        short_seq_prob=options.short_seq_prob,
        seed=options.random_seed,
        albert_zh_labels=options.albert_zh_labels,
        text_field=options.text_field,
        held_out_fraction=options.eval_fraction,
        form="packed" if options.pack_sequences else None,
        word_order=word_order(options),
        continuation=continuation(options),
        long_pairs=options.long_pairs,
    )


def word_order(options: Options) -> WordOrder | None:
    """Return what the --trigram flags and --preset ask for; None where nothing is shuffled."""
    from data.word_order import PRESETS, WordOrder

    preset = PRESETS[options.preset]
    rate = options.trigram_rate
    if rate is None:
        rate = preset.rate if OBJECTIVES[options.objective].shuffles_words else 0.0
    if not rate:
        return None
    return WordOrder(
        rate=rate,
        tokens=options.trigram_tokens,
        windows=options.trigram_windows or preset.windows,
        overlap=preset.overlap if options.trigram_overlap is None else options.trigram_overlap,
        identity=options.trigram_identity,
        labels=options.trigram_labels or preset.labels,
    )


def continuation(options: Options) -> Continuation | None:
    """Return how the flags cut fragments; None with an objective without targets."""
    from data.continuation import Continuation

    continuing = OBJECTIVES[options.objective].continuing
    if continuing is None:
        return None
    return Continuation.of(
        continuing,
        options.max_seq_length,
        fragment_length=options.fragment_length,
        source_fraction=options.source_fraction,
        stride=options.fragment_stride,
        max_target_length=options.max_target_length,
        source_lengths=_range(options, "source_length_range"),
        target_lengths=_range(options, "target_length_range"),
    )


def _range(options: Options, name: str) -> tuple[int, int] | None:
    values: tuple[int, ...] = getattr(options, name)
    if len(values) > 2:
        raise UsageError(f"--{name}={','.join(map(str, values))}: expected the least and the greatest length: 32,512")
    return (values[0], values[-1]) if values else None


def tokenizer_files(options: Options) -> dict[str, Any]:
    """Return the arguments of `load_tokenizer`."""
    return {name: getattr(options, name) for name in ("vocab_file", "spm_model_file", "do_lower_case", "segmentation")}


def make_here(
    options: Options, inputs: Sequence[Path], recipe: Recipe, output: Output, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Make the shards by processes of this machine, with progress and a summary; return the manifest."""
    from data.writing.local import create_examples
    from data.writing.workers import stopping_on_signals

    with stopping_on_signals(), Bars("held out, " if recipe.held_out else "") as bars:
        result = create_examples(
            inputs,
            output,
            recipe,
            tokenizer,
            num_workers=options.num_workers or num_cores(),
            vocabulary_file=Path(options.spm_model_file or options.vocab_file or ""),
            flags=dataclasses.asdict(options),
            report=bars.report,
            encoding=options.encoding,
            accept_bad_text=options.accept_bad_text,
            one_of_several=True,
        )
    if result.found:
        print(f"kept     {output.manifest_path}, which an interrupted run of this command had finished")
    print(summary(result.manifest))
    return result.manifest


def make_with_beam(
    options: Options, inputs: Sequence[Path], recipe: Recipe, names: Sequence[str], output: Output
) -> None:
    """Make the shards under Apache Beam; `names` are the output's files as they were given, maybe as URLs."""
    from data.writing.beam import create_examples_with_beam

    create_examples_with_beam(
        inputs,
        names,
        recipe,
        tokenizer_files(options),
        num_shards=output.num_shards,
        runner=options.runner or "",
        beam_options=options.beam_options,
        flags=dataclasses.asdict(options),
        encoding=options.encoding,
        accept_bad_text=options.accept_bad_text,
    )


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def held_out_name(output_file: str) -> str:
    """Return the file of the documents that are held out of `output_file`."""
    return beside(output_file, "held_out")


def beside(output_file: str, word: str) -> str:
    """Return the name of a file beside another: NAME.word.tfrecord of NAME.tfrecord."""
    stem, suffix = os.path.splitext(output_file)  # noqa: PTH122  (may be a URL)
    return f"{stem}.{word}{suffix}"


def remove_former(former: Output) -> None:
    """Remove the records of an earlier run, such as those held out, whose documents are in the new shards."""
    from data.writing import claims

    if former.manifest_path.is_file():
        claims.remove_former(former.manifest_path)
        former.manifest_path.unlink()


class Bars:
    """A progress line for each stage of the work, one after the other."""

    def __init__(self, what: str):
        self._what = what
        self._stage, self._bar = "", None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.close()

    def report(self, stage: str, done: float, total: float) -> None:
        """Move the line of `stage`, in MB while reading and in examples later."""
        from ground.progress import Progress

        scale, unit = (1e6, "MB") if total > 1e7 else (1e3, "kB")
        if stage not in ("decoding", "reading"):
            scale, unit = 1, "examples"
        if stage != self._stage:
            if self._bar:
                self._bar.close()
            self._stage = stage
            self._bar = Progress(
                total / scale, unit, self._what + stage, done=done / scale, interval_seconds=_SHOWN_SECONDS
            )
        if self._bar:
            self._bar.update(done / scale)


def summary(manifest: dict) -> str:
    """Return a few lines on what was read and written, for a person."""
    from data.manifest import positions

    counts = manifest["counts"]
    tokens_each = counts["example_tokens"] / manifest["num_examples"]
    labels = ", ".join(f"{label}: {n / manifest['num_examples']:.1%}" for label, n in counts["labels"].items())
    packed = ""
    if "sequences" in counts:
        packed = f" with {counts['sequences'] / manifest['num_examples']:.1f} sequences an example"
    lines = [
        f"read     {counts['documents']:,} documents, {counts['sentences']:,} sentences, "
        f"{counts['tokens']:,} tokens, {counts.get('unknown_tokens', 0) / max(counts['tokens'], 1):.2%} unknown",
        f"wrote    {manifest['num_examples']:,} examples of {tokens_each:.1f} "
        f"tokens on average in {len(manifest['shards'])} file(s), labels {labels}",
        f"filled   {tokens_each / positions(manifest):.1%} of all positions{packed}",
        f"cut      {counts.get('truncated_tokens', 0):,} tokens from {counts.get('truncated_examples', 0):,} examples; "
        + left_out(manifest),
    ]
    if language := manifest["recipe"]["language"]:
        lines.insert(0, f"language {language}")
    told = (*_READ, "read_empty_documents") if of_pairs(manifest) else _READ
    oddities = {name: n for name, n in counts.items() if name.startswith("read_") and name not in told}
    if oddities:
        mended = (f"{n:,} {name.removeprefix('read_').replace('_', ' ')}" for name, n in oddities.items())
        lines.insert(-3, f"mended   {', '.join(mended)}")
    lone = counts.get("pairs_without_another_document", 0)
    if lone:
        lines.insert(-3, f"lacking  another document nearby: {lone:,} pairs, none of them with a random sentence")
    if "predictions" in counts:
        predictions = counts["predictions"] + counts.get("other_masked_lm_predictions", 0)
        lines[-3] += f", {predictions / manifest['num_examples']:.1f} predictions each"
    if "word_order_predictions" in counts:
        lines[-3] += f" and {counts['word_order_predictions'] / manifest['num_examples']:.1f} of shuffled tokens"
    return "\n".join(lines)


def of_pairs(manifest: dict) -> bool:
    """Whether records were made of pairs of sentences."""
    return "pairs" in (manifest["recipe"]["text"], OBJECTIVES[manifest["objective"]].text)


def left_out(manifest: dict) -> str:
    """Return what no example was made of, for a person."""
    counts, recipe = manifest["counts"], manifest["recipe"]
    if of_pairs(manifest):
        lacking = counts.get("pairs_without_tokens", 0) + counts.get("read_empty_documents", 0)
        long = counts.get("pairs_too_long", 0) if recipe["long_pairs"] == "drop" else 0
        return f"{lacking:,} pairs that lack a side and {long:,} that are too long were left out"
    short = "too short for a fragment" if recipe.get("continuation") else "of one word"
    return f"{counts.get('documents_too_short_to_pair', 0):,} documents {short} were left out"


if __name__ == "__main__":
    if sys.platform == "win32":
        raise SystemExit("create_pretraining_data.py needs a POSIX system")
    run(main, Options)
