"""Look into pretraining shards, ours, BERT's or albert_zh's: `inspect_records.py show|stats|verify|repair FILES`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from commands.flags import Group, flag, run
from commands.needs import Need, check_needs

if TYPE_CHECKING:
    import numpy as np

    from data.display import Mark
    from data.forms import Form, Side
    from data.reading import PretrainingDataset
    from data.tokenizers import Tokenizer

ACTIONS = ("show", "stats", "verify", "repair")
_BAR_CHARACTERS = 40
# Hidden, left as it was, replaced by another token; shuffled, and the original of shuffled words.
_COLOURS = {
    "masked": "\033[7;32m",
    "kept": "\033[4;36m",
    "replaced": "\033[7;33m",
    "shuffled": "\033[7;35m",
    "before": "\033[2;35m",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show examples of record shards, their statistics, what is wrong with them, and mend them.

    show prints examples as text with what is to be predicted marked; stats lengths, rates and balance; verify reads
    every byte and exits with 1 if anything is wrong; repair keeps the intact records of a damaged file in its place.
    Compact examples, of --masking=dynamic, are shown and counted with the masks of evaluation.
    """

    _data: ClassVar = Group.DATA
    action: str = flag(help="also as the first word: inspect_records.py show FILES", choices=ACTIONS)
    input_file: tuple[str, ...] = flag(help="record files or patterns, separated by commas; also as further words")
    vocab_file: str | None = flag(None, help="WordPiece vocabulary; by default the one that the manifest names")
    spm_model_file: str | None = flag(None, help="SentencePiece model; likewise")
    limit: int = flag(3, help="how many examples show prints", unit="examples", minimum=1)
    skip: int = flag(0, help="how many it leaves out before", unit="examples", minimum=0)


def as_flags(arguments: Sequence[str]) -> list[str]:
    """Return flags for words without dashes: the action, then files."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    flags = [argument for argument in arguments if argument.startswith("-")]
    if words:
        flags.append(f"--action={words[0]}")
    if len(words) > 1:
        flags.append(f"--input_file={','.join(words[1:])}")
    return flags


NEEDS = (
    Need(("limit", "skip"), "--action=show", lambda o: o.action == "show"),
    Need(("vocab_file", "spm_model_file"), "--action=show, stats or verify", lambda o: o.action != "repair"),
)


def main(options: Options) -> int:
    """Do what is asked; return 1 where verify or repair found damage. Raises `UsageError` where nothing can be read."""
    check_needs(options, NEEDS)
    from commands.session import check_files

    check_files(options, ["vocab_file", "spm_model_file"])
    from data.reading import PretrainingDataset, expand_shards

    if options.action in ("verify", "repair"):
        paths = expand_shards(options.input_file)
        return verify(paths, given_tokenizer(options)) if options.action == "verify" else repair(paths)
    dataset = PretrainingDataset(options.input_file, 1, check_all=True)
    tokenizer = find_tokenizer(options, dataset)
    if options.action == "show":
        show(dataset, tokenizer, options.skip, options.limit, colour=sys.stdout.isatty())
    else:
        stats(dataset, tokenizer)
    return 0


def given_tokenizer(options: Options) -> Tokenizer | None:
    """Return the tokenizer that is asked for, if any is."""
    from data.tokenizers import load_tokenizer

    if not (options.vocab_file or options.spm_model_file):
        return None
    return load_tokenizer(vocab_file=options.vocab_file, spm_model_file=options.spm_model_file)


def find_tokenizer(options: Options, dataset: PretrainingDataset) -> Tokenizer | None:
    """Return the tokenizer that is asked for, else the manifest's if its file is still there."""
    from data.tokenizers import load_tokenizer

    if given := given_tokenizer(options):
        return given
    flags: dict[str, Any] = dataset.manifest["flags"] if dataset.manifest else {}
    files = {name: flags.get(name) for name in ("vocab_file", "spm_model_file")}
    if not any(name and Path(name).is_file() for name in files.values()):
        return None
    settings = {"do_lower_case": flags["do_lower_case"], "segmentation": flags.get("segmentation")}
    return load_tokenizer(**files, **settings)


def show(dataset: PretrainingDataset, tokenizer: Tokenizer | None, skip: int, limit: int, *, colour: bool) -> None:
    """Print examples; predicted tokens are marked by colour, or as [token] or [token|what is seen].

    Shuffled words come with the original ones: {before|now}.
    """
    if tokenizer is None:
        print("ids, because no vocabulary is known: give --vocab_file or --spm_model_file for text", end="\n\n")
    if colour:
        print("predicted:", *(f"{_COLOURS[kind]}{kind}\033[0m" for kind in _COLOURS), end="\n\n")
    else:
        print("predicted: [masked] [kept|kept] [replaced|seen] {before|shuffled}", end="\n\n")
    sides = dataset.form.sides
    examples = (
        {name: value[row] for name, value in batch.items()}
        for batch in dataset.evaluation_batches(64)
        for row in range(len(batch[sides[0].ids]))
    )
    for number, example in enumerate(itertools.islice(examples, min(skip + limit, dataset.num_examples))):
        if number >= skip:
            print(f"# {number}: {heading(example, dataset.form)}")
            texts = [as_text(example, side, tokenizer, colour=colour) for side in sides]
            print("\n".join(texts), end="\n\n")


def heading(example: Mapping[str, np.ndarray], form: Form) -> str:
    """Return the numbers of one example in words."""

    def total(names: Sequence[str]) -> int:
        return int(sum(example[name].sum() for name in names if name in example))

    sides = form.sides
    facts = [f"label {example[form.label]}"] if form.label else []
    facts.append(f"{total([side.mask for side in sides])} tokens")
    facts.append(f"{total([f'{side.hidden}_weights' for side in sides])} predictions")
    shuffled = [f"{side.shuffled}_weights" for side in sides]
    if any(name in example for name in shuffled):
        facts.append(f"{total(shuffled)} shuffled")
    if form.sequences:
        facts.append(f"{example[form.sequences].max()} sequence(s)")
    return ", ".join(facts)


def as_text(example: Mapping[str, np.ndarray], side: Side, tokenizer: Tokenizer | None, *, colour: bool) -> str:
    """Return one text of an example, a line for each segment, or for each sequence where it is packed."""
    from data.display import marked_lines

    def name(token: int) -> str:
        if tokenizer is None:
            return str(token)
        # The vocabulary may be another than the records were made with.
        try:
            return tokenizer.tokens([token])[0] if token >= 0 else f"<{token}>"
        except IndexError:
            return f"<{token}>"

    def run(tokens: Sequence[int]) -> str:
        return "".join(spaced(name(token), first=i == 0) for i, token in enumerate(tokens))

    def text(mark: Mark) -> str:
        shown, original = run(mark.shown), run(mark.original)
        if mark.kind == "plain":
            return shown
        if colour:
            now = shown if mark.kind == "shuffled" else original
            before = f"{_COLOURS['before']}{original}\033[0m" if mark.kind == "shuffled" else ""
            return f"{_COLOURS[mark.kind]}{now}\033[0m{before}"
        if mark.kind == "shuffled":
            return f"{{{original}|{shown}}}"
        return f"[{original}]" if mark.kind == "masked" else f"[{original}|{shown}]"

    lines = marked_lines(example, side, tokenizer.mask_id if tokenizer else None)
    return "\n".join(
        "".join(spaced(name(mark.original[0]), first=i == 0, text=text(mark)) for i, mark in enumerate(line))
        for line in lines
    )


def spaced(token: str, *, first: bool, text: str | None = None) -> str:
    """Return `text` for a token, with a space before it where a word begins that is not of ideographs."""
    joined = first or token.startswith("##") or token.removeprefix("##")[:1] >= "\u2e80"
    return ("" if joined else " ") + (token if text is None else text)


def stats(dataset: PretrainingDataset, tokenizer: Tokenizer | None) -> None:
    """Print lengths, rates and balance of all examples."""
    from data.inspection import statistics
    from ground.progress import Progress

    with Progress(dataset.num_examples, "examples", "reading") as progress:
        found = statistics(
            dataset,
            mask_id=tokenizer.mask_id if tokenizer else None,
            unk_id=tokenizer.unk_id if tokenizer else None,
            report=progress.update,
        )
    predictions = max(found.predictions, 1)
    replaced = found.predictions - found.masked - found.kept
    rows = [
        ("examples", f"{found.examples:,} in {len(dataset.paths)} file(s)"),
        ("tokens", f"{found.tokens:,}, {found.tokens / found.examples:.1f} an example"),
        ("positions filled", f"{found.fill:.1%} of {found.max_seq_length}"),
        (
            "predictions",
            f"{found.predictions / found.examples:.2f} an example, {found.predictions / found.tokens:.2%} of tokens",
        ),
        ("  [MASK]", f"{found.masked / predictions:.2%}"),
        ("  unchanged", f"{found.kept / predictions:.2%}"),
        ("  replaced", f"{replaced / predictions:.2%}"),
    ]
    if found.shuffled:
        share = f"{found.shuffled / found.examples:.2f} an example, {found.shuffled / found.tokens:.2%} of tokens"
        rows += [("shuffled", share), ("  moved", f"{found.moved / found.shuffled:.2%}")]
    if found.sequences:
        rows.append(("packing", f"{found.sequences / found.examples:.2f} sequences an example"))
    if found.labels:
        shares = (f"{label}: {n / found.examples:.2%}" for label, n in sorted(found.labels.items()))
        rows.append(("labels", ", ".join(shares)))
    rows.append(("duplicate texts", f"{found.duplicates:.2%}"))
    if tokenizer:
        rows.append(("unknown tokens", f"{found.unknown_tokens / found.tokens:.2%}"))
    for name, value in rows:
        print(f"{name:18}{value}")
    print("lengths in tokens")
    bins = found.length_bins()
    most = max(n for *_, n in bins)
    for first, last, n in bins:
        print(f"  {first:>5}-{last:<5} {n / found.examples:6.1%} {'█' * round(_BAR_CHARACTERS * n / most)}")


def verify(paths: Sequence[Path], tokenizer: Tokenizer | None) -> int:
    """Print a line a file and one for each problem; return 1 if there is any."""
    from data import inspection

    wrong = 0
    for found in inspection.verify(paths, tokenizer.vocab_size if tokenizer else None):
        wrong += bool(found.problems)
        print(f"{found.path}: {found.records:,} intact records, {'DAMAGED' if found.problems else 'ok'}")
        for problem in found.problems:
            print(f"  {problem}")
    print(f"{len(paths)} file(s), {wrong} with problems")
    return int(wrong > 0)


def repair(paths: Sequence[Path]) -> int:
    """Repair each file that needs it and print what was lost; return 1 if any record was, or a file is past repair.

    Raises `UsageError` where the only file is past repair.
    """
    from absl.app import UsageError

    from data import inspection

    wrong = 0
    for path in paths:
        try:
            done, lost_examples = inspection.repair(path)
        except UsageError as error:
            if len(paths) == 1:
                raise
            print(error)
            wrong += 1
            continue
        wrong += bool(done.damaged or lost_examples)
        if done.kept_as is None:
            lost = f"{lost_examples:,} lost, its manifest is corrected" if lost_examples else "nothing to mend"
            print(f"{path}: {done.records:,} records, {lost}")
            continue
        missing = "" if lost_examples is None else f", {lost_examples:,} lost"
        print(f"{path}: {done.records:,} records recovered{missing}; the damaged file is kept as {done.kept_as}")
        for begin, end in done.damaged:
            print(f"  lost: bytes {begin:,} to {end:,}")
    return int(wrong > 0)


if __name__ == "__main__":
    run(main, Options, as_flags(sys.argv[1:]))
