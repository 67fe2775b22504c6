"""Looks into pretraining shards, ours, BERT's or albert_zh's: `inspect_records.py show|stats|verify|repair FILES`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.flags import flag, run

if TYPE_CHECKING:
    import numpy as np

    from data.reading import PretrainingDataset
    from data.tokenizers import Tokenizer

ACTIONS = ("show", "stats", "verify", "repair")
_BAR_CHARACTERS = 40
# Hidden, left as it was, replaced by another token; shuffled, and what stood there.
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

    action: str = flag(help="also as the first word: inspect_records.py show FILES", choices=ACTIONS)
    input_file: tuple[str, ...] = flag(help="record files or patterns, separated by commas; also as further words")
    vocab_file: str | None = flag(None, help="WordPiece vocabulary; by default the one that the manifest names")
    spm_model_file: str | None = flag(None, help="SentencePiece model; likewise")
    limit: int = flag(3, help="how many examples show prints", unit="examples", minimum=1)
    skip: int = flag(0, help="how many it leaves out before", unit="examples", minimum=0)


def as_flags(arguments: Sequence[str]) -> list[str]:
    """Turns words without dashes into flags: the action, then files."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    flags = [argument for argument in arguments if argument.startswith("-")]
    if words:
        flags.append(f"--action={words[0]}")
    if len(words) > 1:
        flags.append(f"--input_file={','.join(words[1:])}")
    return flags


def main(options: Options) -> int:
    """Does what is asked; 1 when verify or repair found damage. Raises `UsageError` where nothing can be read."""
    from data.reading import PretrainingDataset, expand_shards

    if options.action in ("verify", "repair"):
        paths = expand_shards(options.input_file)
        return verify(paths) if options.action == "verify" else repair(paths)
    dataset = PretrainingDataset(options.input_file, 1)
    tokenizer = find_tokenizer(options, dataset)
    if options.action == "show":
        show(dataset, tokenizer, options.skip, options.limit, colour=sys.stdout.isatty())
    else:
        stats(dataset, tokenizer)
    return 0


def find_tokenizer(options: Options, dataset: PretrainingDataset) -> Tokenizer | None:
    """The tokenizer that is asked for, else the manifest's if its file is still there."""
    from data.tokenizers import load_tokenizer

    if options.vocab_file or options.spm_model_file:
        return load_tokenizer(vocab_file=options.vocab_file, spm_model_file=options.spm_model_file)
    flags: dict[str, Any] = dataset.manifest["flags"] if dataset.manifest else {}
    files = {name: flags.get(name) for name in ("vocab_file", "spm_model_file")}
    if not any(name and Path(name).is_file() for name in files.values()):
        return None
    return load_tokenizer(**files, do_lower_case=flags["do_lower_case"])


def show(dataset: PretrainingDataset, tokenizer: Tokenizer | None, skip: int, limit: int, *, colour: bool) -> None:
    """Prints examples; what is to be predicted is marked by colour, or as [token] or [token|what is seen].

    Shuffled words come with what stood there: {before|now}.
    """
    number = 0
    if tokenizer is None:
        print("ids, because no vocabulary is known: give --vocab_file or --spm_model_file for text", end="\n\n")
    if colour:
        print("predicted:", *(f"{_COLOURS[kind]}{kind}\033[0m" for kind in _COLOURS), end="\n\n")
    else:
        print("predicted: [masked] [kept|kept] [replaced|seen] {before|shuffled}", end="\n\n")
    for batch in dataset.evaluation_batches(64):
        shuffled, sequences = batch.get("word_order_weights"), batch.get("sequence_ids")
        for row in range(len(batch["input_ids"])):
            if not batch["input_mask"][row].any():
                return
            if number >= skip + limit:
                return
            if number >= skip:
                print(
                    f"# {number}: label {batch['next_sentence_labels'][row]}, {batch['input_mask'][row].sum()} tokens, "
                    f"{int(batch['masked_lm_weights'][row].sum())} predictions"
                    + (f", {int(shuffled[row].sum())} shuffled" if shuffled is not None else "")
                    + (f", {sequences[row].max()} sequence(s)" if sequences is not None else "")
                )
                print(
                    as_text({name: value[row] for name, value in batch.items()}, tokenizer, colour=colour), end="\n\n"
                )
            number += 1


def as_text(example: dict[str, np.ndarray], tokenizer: Tokenizer | None, *, colour: bool) -> str:
    """One example as a line per segment, or per sequence where it is packed."""

    def name(token: int) -> str:
        return tokenizer.tokens([token])[0] if tokenizer else str(token)

    def labelled(what: str) -> dict[int, int]:
        used = example[f"{what}_weights"] > 0
        positions, before = example[f"{what}_positions"][used], example[f"{what}_ids"][used]
        return dict(zip(positions.tolist(), before.tolist(), strict=True))

    length = int(example["input_mask"].sum())
    labels = labelled("masked_lm")
    shuffled = labelled("word_order") if "word_order_weights" in example else {}
    ids: list[int] = example["input_ids"][:length].tolist()
    segments = example.get("sequence_ids", example["segment_ids"])[:length].tolist()
    seen_at_labels = [ids[position] for position in labels]
    mask_id = tokenizer.mask_id if tokenizer else max(set(seen_at_labels), key=seen_at_labels.count, default=-1)

    def run_of_shuffled(first: int) -> str:
        """A stretch of shuffled words as one."""
        last = next(i for i in range(first, length + 1) if i not in shuffled or segments[i] != segments[first])
        now, before = (
            "".join(spaced(name(token), i == 0) for i, token in enumerate(tokens))
            for tokens in (ids[first:last], [shuffled[i] for i in range(first, last)])
        )
        if colour:
            return f"{_COLOURS['shuffled']}{now}\033[0m{_COLOURS['before']}{before}\033[0m"
        return f"{{{before}|{now}}}"

    parts: list[str] = []
    for position, (token, segment) in enumerate(zip(ids, segments, strict=True)):
        if position and segment != segments[position - 1]:
            parts.append("\n")
        elif position - 1 in shuffled and position in shuffled:
            continue
        if position in shuffled:
            text = run_of_shuffled(position)
        elif position not in labels:
            text = name(token)
        else:
            kind = "masked" if token == mask_id else "kept" if token == labels[position] else "replaced"
            label = name(labels[position])
            plain = f"[{label}]" if kind == "masked" else f"[{label}|{name(token)}]"
            text = f"{_COLOURS[kind]}{label}\033[0m" if colour else plain
        before = shuffled if position in shuffled else labels
        bare = name(before.get(position, token))
        parts.append(spaced(bare, not parts or parts[-1] == "\n", text))
    return "".join(parts)


def spaced(token: str, first: bool, text: str | None = None) -> str:
    """What is printed for a token, with a space before it where a word begins that is not of ideographs."""
    joined = first or token.startswith("##") or token.removeprefix("##")[:1] >= "\u2e80"
    return ("" if joined else " ") + (token if text is None else text)


def stats(dataset: PretrainingDataset, tokenizer: Tokenizer | None) -> None:
    """Prints lengths, rates and balance of all examples."""
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
        ("positions filled", f"{found.fill:.1%} of {dataset.max_seq_length}"),
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
    rows += [
        ("labels", ", ".join(f"{label}: {n / found.examples:.2%}" for label, n in sorted(found.labels.items()))),
        ("duplicate texts", f"{found.duplicates:.2%}"),
    ]
    if tokenizer:
        rows.append(("unknown tokens", f"{found.unknown_tokens / found.tokens:.2%}"))
    for name, value in rows:
        print(f"{name:18}{value}")
    print("lengths in tokens")
    bins = found.length_bins()
    most = max(n for *_, n in bins)
    for first, last, n in bins:
        print(f"  {first:>5}-{last:<5} {n / found.examples:6.1%} {'█' * round(_BAR_CHARACTERS * n / most)}")


def verify(paths: Sequence[Path]) -> int:
    """Prints a line a file and one for each problem; returns 1 if there is any."""
    from data import inspection

    wrong = 0
    for found in inspection.verify(paths):
        wrong += bool(found.problems)
        print(f"{found.path}: {found.records:,} intact records, {'DAMAGED' if found.problems else 'ok'}")
        for problem in found.problems:
            print(f"  {problem}")
    print(f"{len(paths)} file(s), {wrong} with problems")
    return int(wrong > 0)


def repair(paths: Sequence[Path]) -> int:
    """Mends each file that needs it and prints what was lost; returns 1 if any record was."""
    from data import inspection

    lost = 0
    for path in paths:
        done = inspection.repair(path)
        if done.kept_as is None:
            print(f"{path}: {done.recovered:,} records, nothing to mend")
            continue
        lost += len(done.damaged)
        missing = "" if done.lost_examples is None else f", {done.lost_examples:,} lost"
        print(f"{path}: {done.recovered:,} records recovered{missing}; the damaged file is kept as {done.kept_as}")
        for begin, end in done.damaged:
            print(f"  lost: bytes {begin:,} to {end:,}")
    return int(lost > 0)


if __name__ == "__main__":
    run(main, Options, as_flags(sys.argv[1:]))
