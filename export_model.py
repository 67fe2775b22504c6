"""Write a trained model for other programs, a SavedModel or ONNX, once its answers are the model's."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from absl.app import UsageError

from commands.asked_lines import FORMATS as LINE_FORMATS
from commands.asked_lines import FORMATS_HELP, asked_lines, at
from commands.flags import Group, flag, run
from commands.needs import Need, check_needs

FORMATS = ("saved_model", "saved_model_text", "onnx")
_READ = ("--model", "--input_file", "--dev_file", "--vocab_file")
MOST_INPUTS = 64
"""Of a file so many are asked; more would say nothing new."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a trained model for other programs, a SavedModel or ONNX, once its answers are the model's."""

    _data: ClassVar = Group.DATA
    model: str = flag(
        help="a run's output folder, its best/, a conversion, a transformers folder, a TF 1 prefix, a file of weights; "
        "an archive of one, or its http(s) address, works too"
    )
    output: str = flag(help="folder to write, which may hold nothing but a former export")
    format: str = flag(
        "saved_model",
        help="what to write: a SavedModel on ids, one on strings with the tokenizer inside, or ONNX on ids",
        choices=FORMATS,
        essential=True,
    )
    int8: bool = flag(
        False, help="with ONNX, also write the weights in 8 bits, by dynamic quantisation", essential=True
    )
    input_file: str | None = flag(
        None, help="inputs that it is asked for the comparison, a line each; by default texts of our own"
    )
    input_format: str = flag("auto", help=FORMATS_HELP, choices=LINE_FORMATS)
    dev_file: str | None = flag(
        None, help="labelled rows, as the task's files have them, that ONNX models are scored with", essential=True
    )
    max_drop: float = flag(
        0.5, help="by how much the score of 8 bits may fall there; beyond it nothing is kept", unit="points of 100"
    )
    vocab_file: str | None = flag(
        None, help="WordPiece vocabulary or SentencePiece .model, where none lies beside the weights"
    )


NEEDS = (
    Need(("int8",), "--format=onnx", lambda o: o.format == "onnx"),
    Need(("input_format",), "--input_file", lambda o: o.input_file),
    Need(("dev_file",), "--format=onnx", lambda o: o.format == "onnx"),
    Need(("max_drop",), "--dev_file", lambda o: o.dev_file),
)


def main(options: Options) -> None:
    """Load, write, ask in a bare process, compare; print a table of sizes and times."""
    check_needs(options, NEEDS)
    from commands.session import check_files
    from ground.outputs import Target, check_outputs

    check_files(options, ["vocab_file", "input_file", "dev_file"])
    if os.environ.get("KERAS_BACKEND") != "tensorflow":
        raise UsageError(f"KERAS_BACKEND={os.environ.get('KERAS_BACKEND')}: exports are made on tensorflow; unset it")
    from commands.startup import import_tensorflow

    import_tensorflow()
    from serving import formats
    from serving.exporting import NAME, is_export
    from serving.loading import load

    proof = f"its {NAME} does not list what it holds"
    reads = {name: [getattr(options, name.strip("-"))] for name in _READ}
    check_outputs(reads, [Target(Path(options.output), "--output", is_export, proof, folder=True)])
    given = asked_lines(options.input_file, options.input_format) if options.input_file else ()
    asked = list(itertools.islice(given, MOST_INPUTS))
    loaded = load(options.model, vocab_file=options.vocab_file, dtype="float32")
    for _, place, each in asked:
        at(place, loaded.example, each)
    inputs = [each for _, _, each in asked]
    further: dict[str, Any] = {"int8": options.int8}
    if options.dev_file:
        further["development"] = formats.development_of(loaded, Path(options.dev_file), options.max_drop)
    show(options.output, formats.export(loaded, Path(options.output), options.format, inputs, **further))


def show(output: str, written: list) -> None:
    """Print what was written: how large it is, how long it takes for its inputs, and how near its answers are."""
    from ground.tables import print_table

    rows = []
    for each in written:
        for (count, length), seconds in zip(each.rows, each.seconds, strict=True):
            shape = f"{count} x {length}" if length else f"{count}"
            agreeing = "-" if each.agreeing is None else f"{each.agreeing:.1%}"
            size = f"{each.num_bytes / 2**20:,.1f}"
            scores = [] if each.score is None else [f"{each.score:.4f}"]
            rows.append([each.name, size, shape, f"{1000 * seconds:,.1f}", f"{each.difference:.0e}", agreeing, *scores])
    title = f"written to {output}, loaded and asked by a bare process; its answers beside the model's:"
    scored = ["score"] if any(each.score is not None for each in written) else []
    columns = ["file", "MiB", "texts (x tokens)", "ms", "largest difference", "same answer", *scored]
    print_table(title, columns, rows)


if __name__ == "__main__":
    run(main, Options)
