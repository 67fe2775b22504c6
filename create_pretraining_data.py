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
        "documents, or JSON lines; .gz, .xz, .zst and .bz2 are decompressed"
    )
    output_file: tuple[str, ...] = flag(
        help="TFRecord files to write, separated by commas; examples are dealt over them"
    )
    vocab_file: str | None = flag(None, help="WordPiece vocabulary, a token a line", essential=True)
    spm_model_file: str | None = flag(None, help="SentencePiece model, which wins over --vocab_file", essential=True)
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


def main(options: Options) -> int:
    """Make the shards; print what was read and written. Raises `UsageError` for flags that do not go together."""
    check(options)
    # Tokenizers start threads of their own otherwise; the processes are ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from data.corpus import check_inputs, expand_inputs, find_encoding
    from data.tokenizers import load_tokenizer
    from data.writing import claims
    from data.writing.output import Output

    output = Output(tuple(map(Path, options.output_file)), options.num_shards, options.shard_size)
    recipe = recipe_of(options)
    inputs = expand_inputs(options.input_file)
    options = dataclasses.replace(options, encoding=find_encoding(options.encoding))
    check_inputs(inputs, options.encoding, accept=options.accept_bad_text)
    check_records(options, recipe, inputs, output.files[0], num_cores())
    tokenizer = load_tokenizer(**tokenizer_files(options))
    parts = [(recipe, output)]
    held_out = held_out_name(str(options.output_file[0]))
    if options.eval_fraction:
        # Write the small held-out part first: if the large part is interrupted, the rerun does not repeat it.
        apart = dataclasses.replace(recipe, held_out=True, dupe_factor=1)
        parts.insert(0, (apart, Output((Path(held_out),))))
    with claims.locked([*options.output_file, held_out]):
        check_outputs(options, inputs, [target for _, target in parts], Output((Path(held_out),)))
        if not options.eval_fraction:
            remove_former_held_out(Output((Path(held_out),)))
        for part, target in parts:
            if options.runner:
                names = (held_out,) if part.held_out else options.output_file
                make_with_beam(options, inputs, part, names, target)
            else:
                with nothing_held_out(None if part.held_out else Output((Path(held_out),))):
                    make_here(options, inputs, part, target, tokenizer)
    return 0


@contextlib.contextmanager
def nothing_held_out(made: Output | None) -> Iterator[None]:
    """Remove what was held out of a text that is then refused inside, so that nothing of it is left."""
    try:
        yield
    except UsageError:
        if made is not None:
            remove_former_held_out(made)
        raise


def check_outputs(options: Options, inputs: Sequence[Path], outputs: Sequence[Output], held_out: Output) -> None:
    """Raise `UsageError` where a part would be written over what is read, or over what is of somebody else."""
    from data.writing import claims

    reads = {"--input_file": inputs, "--vocab_file": [options.vocab_file], "--spm_model_file": [options.spm_model_file]}
    for output in outputs:
        claims.check(output, reads)
    if held_out not in outputs and held_out.manifest_path.exists():
        claims.check(held_out, reads)


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
    return {name: getattr(options, name) for name in ("vocab_file", "spm_model_file", "do_lower_case")}


def make_here(options: Options, inputs: Sequence[Path], recipe: Recipe, output: Output, tokenizer: Tokenizer) -> None:
    """Make the shards by processes of this machine, with progress and a summary."""
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
        )
    print(summary(result.manifest))


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
    stem, suffix = os.path.splitext(output_file)  # noqa: PTH122  (may be a URL)
    return f"{stem}.held_out{suffix}"


def remove_former_held_out(former: Output) -> None:
    """Remove what an earlier run held out of the same output: its documents are in the new shards."""
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
    short = "too short for a fragment" if manifest["recipe"].get("continuation") else "of one word"
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
        f"{counts.get('documents_too_short_to_pair', 0):,} documents {short} were left out",
    ]
    oddities = {name: n for name, n in counts.items() if name.startswith("read_") and name not in _READ}
    if oddities:
        mended = (f"{n:,} {name.removeprefix('read_').replace('_', ' ')}" for name, n in oddities.items())
        lines.insert(1, f"mended   {', '.join(mended)}")
    lone = counts.get("pairs_without_another_document", 0)
    if lone:
        lines.insert(2, f"lacking  another document nearby: {lone:,} pairs, none of them with a random sentence")
    if "predictions" in counts:
        lines[-3] += f", {counts['predictions'] / manifest['num_examples']:.1f} predictions each"
    if "word_order_predictions" in counts:
        lines[-3] += f" and {counts['word_order_predictions'] / manifest['num_examples']:.1f} of shuffled tokens"
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.platform == "win32":
        raise SystemExit("create_pretraining_data.py needs a POSIX system")
    run(main, Options)
