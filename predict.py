"""Ask a trained model: texts, pairs or JSON lines in, a JSON line with the answer to each out."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from absl.app import UsageError

from commands.asked_lines import FORMATS, FORMATS_HELP, Given, asked_lines, at
from commands.flags import Group, flag, run
from commands.needs import Need, check_needs

if TYPE_CHECKING:
    from serving.loading import Loaded

VERB = "predict.py"
_BATCHES_AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class Options:
    """Ask a trained model: texts, pairs or JSON lines in, a JSON line with the answer to each out."""

    _data: ClassVar = Group.DATA
    model: str = flag(
        help="a run's output folder, its best/, a conversion, a transformers folder, a TF 1 prefix, a file of weights; "
        "an archive of one, or its http(s) address, works too"
    )
    text: str | None = flag(None, help="a text to answer at once", essential=True)
    text_pair: str | None = flag(
        None, help="the second text of a pair; for answers in texts --text is the question, this the text"
    )
    input_file: str | None = flag(
        None, help="a file with an input a line; by default, and for -, standard input", essential=True
    )
    input_format: str = flag(
        "auto",
        help=FORMATS_HELP,
        choices=FORMATS,
    )
    output_file: str | None = flag(None, help="file of the answers; by default standard output", essential=True)
    vocab_file: str | None = flag(
        None, help="WordPiece vocabulary or SentencePiece .model, where none lies beside the weights"
    )
    _answers: ClassVar = Group.EVALUATION
    predict_batch_size: int = flag(32, help="texts of full length side by side", unit="examples", minimum=1)
    mask_tokens: int | None = flag(
        None, help="tokens that a pretrained model tells for each [MASK]; by default 5", unit="tokens", minimum=1
    )


NEEDS = (
    Need(("text_pair",), "--text", lambda o: o.text),
    Need(("input_format",), "a file or standard input", lambda o: not o.text),
)


def main(options: Options) -> None:
    """Answer the text, the file or standard input."""
    check_needs(options, NEEDS)
    if options.text and options.input_file:
        raise UsageError("--text and --input_file are both given: leave one of them out")
    from commands.session import check_files
    from ground.outputs import Target, check_outputs, was_written

    is_stream = options.input_file in (None, "-")
    check_files(options, ["vocab_file", *(() if is_stream else ["input_file"])])
    if options.output_file:
        target = Target(Path(options.output_file), "--output_file", lambda path: was_written(path, VERB))
        file = None if is_stream else options.input_file
        check_outputs(
            {"--model": [options.model], "--input_file": [file], "--vocab_file": [options.vocab_file]}, [target]
        )
    given = (options.text, options.text_pair) if options.text_pair else options.text
    inputs = iter([(0, "--text", given)]) if options.text else asked_lines(options.input_file, options.input_format)
    if os.environ.get("KERAS_BACKEND") == "tensorflow":
        from commands.startup import import_tensorflow

        import_tensorflow()
    import serving

    asked: dict[str, Any] = {} if options.mask_tokens is None else {"mask_tokens": options.mask_tokens}
    loaded = serving.load(options.model, vocab_file=options.vocab_file, **asked)
    with _output(options.output_file) as write:
        if options.text:
            print(_line(loaded.predict(next(inputs)[2])), file=write)
        else:
            answer(loaded, inputs, options.predict_batch_size, write, at_once=is_stream and sys.stdin.isatty())


def answer(loaded: Loaded, inputs: Iterable[Given], batch_size: int, write: TextIO, *, at_once: bool) -> None:
    """Write the answer to each input in their order, some batches at a time, so that any number fits into memory.

    Raises:
        UsageError: an input is none of the model's; its place is named.
    """
    from ground.progress import Progress

    done, inputs = 0, iter(inputs)
    with Progress(None, "examples", "answering") if sys.stderr.isatty() and not at_once else _Silent() as progress:
        while some := list(itertools.islice(inputs, 1 if at_once else _BATCHES_AT_A_TIME * batch_size)):
            examples = [at(place, loaded.example, given) for _, place, given in some]
            answers = at(some[0][1] + " ...", lambda each: loaded.answers(each, batch_size), examples)
            for (number, _, _), found in zip(some, answers, strict=True):
                print(_line({"index": number, **found}), file=write)
            write.flush()
            done += len(some)
            progress.update(done)


class _Silent:
    """Stands for the progress that nobody sees."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, done: float) -> None:
        pass


def _line(answer: dict[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False)


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Yield where answers are written: standard output, or a file that takes its name when all of them are there."""
    if path is None:
        yield sys.stdout
        return
    from ground.files import naming, open_new
    from ground.outputs import announce

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with naming(target), open_new(temporary) as raw:
            with open(os.dup(raw.fileno()), "w", encoding="utf-8") as stream:  # noqa: PTH123
                yield stream
            os.fsync(raw.fileno())
        announce(target.parent, VERB, {target.name: temporary.stat().st_size})
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main, Options)
