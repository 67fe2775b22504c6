"""Generation of a text from a text or two, the host half: questions, summaries, titles, replies (PALM section 3).

A line of a file is a source and its target; `NAME.source` beside `NAME.target` has them in two files, line by line.
With a `separator` a source is cut in two there, as AliceMind's `answer[SEP]context` is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from data.source_target import SourceTargetDataset, encode_sources_targets
from generation.settings import SETTINGS, chosen_preset
from tasks.datasets import DatasetRow
from tasks.given import columns_of
from tasks.inspection import Inspection, MostWrong, Text, all_alike, cut, shown
from tasks.kinds import HeadOptions, Prediction, Scores
from tasks.readers import find_reader
from tasks.readers.lines import read_lines
from tasks.text_scores import TEXT_METRICS, text_scores

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from modeling.computation import Computation
    from modeling.config import Config
    from tasks.generation import GenerationTask
    from tasks.text_generator import TextGenerator

verb = "run_generation"
needs = ()
header_names: Mapping[str, tuple[str, ...]] = {
    "text_a": (
        "text_a",
        "source",
        "src",
        "document",
        "content",
        "body",
        "article",
        "sentence",
        "post",
        "query",
        "text",
    ),
    "text_b": ("text_b", "paragraph", "context", "passage"),
    "target": ("target", "tgt", "summary", "question", "headline", "title", "response", "reply"),
}
columns = tuple(header_names)
metrics = TEXT_METRICS
smaller_is_better = ("loss", "perplexity")
new_heads = ("copy/.*",)
flags = ("max_target_length",)
settings = SETTINGS
head = "backbone/decoder"
graphs = "encoder_decoder"
unused_heads = ("masked_lm/.*", "sentence_pair/.*", "classifier/.*", "copy/.*")
SOURCE, TARGET = ".source", ".target"


@dataclass(frozen=True, slots=True)
class SourceTarget:
    """A source of one or two texts, and its target; None where the file does not tell (a test file)."""

    text_a: str
    text_b: str | None
    target: str | None

    @property
    def source(self) -> str:
        """All that the model reads."""
        return self.text_a if self.text_b is None else f"{self.text_a}\t{self.text_b}"

    @property
    def label(self) -> str | None:
        """What is to be generated."""
        return self.target


def read(row: DatasetRow, path: Path, *, need_labels: bool) -> list[SourceTarget]:
    """Return all examples of a file in order.

    Raises:
        UsageError: a malformed line, an empty source, a target that is missing where it is needed, two files of
            unequal length, or no example at all; file and line are named.
    """
    examples = []
    one_file = find_reader(row.format).records
    for where, record in _two_files(row, path, need_labels) if path.suffix == SOURCE else one_file(row, path):
        text_a, text_b, target = (record.get(column) for column in ("text_a", "text_b", "target"))
        if row.separator and text_a is not None:
            text_a, found, text_b = text_a.partition(row.separator)
            if not found:
                raise UsageError(f"{where}: no {row.separator} in the source; expected two texts with it between")
        for name, text in (("text_a", text_a), ("text_b", text_b if row.is_pair else "-")):
            if not (text or "").strip():
                raise UsageError(f"{where}: {name} is missing or empty; expected {', '.join(row.columns)}")
        if need_labels and not (target or "").strip():
            raise UsageError(f"{where}: no target; training and evaluation need {', '.join(row.columns)}")
        examples.append(SourceTarget(text_a or "", text_b if row.is_pair else None, target))
    if not examples:
        raise UsageError(f"{path} holds no example")
    return examples


def _two_files(row: DatasetRow, path: Path, need_labels: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the lines of NAME.source with those of NAME.target beside it."""
    other = path.with_suffix(TARGET)
    sources = list(read_lines(row, path))
    if not other.is_file():
        if need_labels:
            raise UsageError(f"{path} has no {other.name} beside it; training and evaluation need the targets")
        yield from ((f"{path}:{number}", {"text_a": line}) for number, line in sources)
        return
    targets = list(read_lines(row, other))
    if [number for number, _ in sources] != [number for number, _ in targets]:
        raise UsageError(
            f"{path} has {len(sources):,} lines of text and {other.name} {len(targets):,}, which have to pair line by "
            "line; give one target a source"
        )
    for (number, line), (_, target) in zip(sources, targets, strict=True):
        yield f"{path}:{number}", {"text_a": line, "target": target}


def dataset(
    row: DatasetRow,
    examples: Sequence[SourceTarget],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int,
    batch_size: int,
    seed: int = 0,
    max_target_length: int = 128,
) -> SourceTargetDataset:
    """Tokenise sources and targets; longer ones are cut, and counted."""
    encoded = encode_sources_targets(
        [example.text_a for example in examples],
        [example.text_b or "" for example in examples] if row.is_pair else None,
        [example.target or "" for example in examples],
        tokenizer,
        max_seq_length,
        max_target_length,
    )
    return SourceTargetDataset(encoded, batch_size, max_seq_length, seed=seed)


def task(row: DatasetRow, config: Config, computation: Computation, head: HeadOptions) -> GenerationTask:
    """Return the cross-entropy of the targets' tokens."""
    from tasks.generation import GenerationTask

    return GenerationTask(config, computation=computation, label_smoothing=head.label_smoothing)


def answers(
    row: DatasetRow, predictions: Sequence[Prediction], examples: Sequence[SourceTarget], **encoding: Any
) -> list[Any]:
    """Return what was generated, hypotheses with their scores, beside the loss of the given target."""
    return [dict(prediction) for prediction in predictions]


def scores(row: DatasetRow, answers: Sequence[Mapping[str, Any]], examples: Sequence[SourceTarget]) -> Scores:
    """Return the scores of the first hypotheses, mean loss of a target's token in nats, and perplexity."""
    found = text_scores(
        [answer["hypotheses"][0]["text"] for answer in answers],
        [[example.target or ""] for example in examples],
        [example.source for example in examples],
        row.units,
    )
    tokens = sum(float(answer["target_tokens"]) for answer in answers)
    loss = sum(float(answer["target_loss"]) for answer in answers) / max(tokens, 1.0)
    return {**found, "perplexity": math.exp(min(loss, 700.0)), "loss": loss}


def lines(row: DatasetRow, answers: Sequence[Mapping[str, Any]], examples: Sequence[SourceTarget]) -> Iterator[str]:
    """Yield a JSON object a line: the source, what was generated with its score, all hypotheses, and the target."""
    for index, (answer, example) in enumerate(zip(answers, examples, strict=True)):
        found = told(row, answer, example)
        content = {"index": index, "generated": found["generated"], "score": found["score"]}
        if example.target is not None:
            content["target"] = example.target
        content["source"] = example.text_a
        if example.text_b is not None:
            content["source_b"] = example.text_b
        if "hypotheses" in found:
            content["hypotheses"] = found["hypotheses"]
        yield json.dumps(content, ensure_ascii=False)


def example_of(row: DatasetRow, given: Any) -> SourceTarget:
    """Return a source of one or two texts as an example; one that holds the row's separator is cut there."""
    if row.separator and isinstance(given, str) and row.separator in given:
        given = given.split(row.separator, 1)
    found = columns_of(row, given, ["text_a", *(["text_b"] if row.is_pair else [])])
    return SourceTarget(found["text_a"], found.get("text_b"), None)


def told(row: DatasetRow, answer: Mapping[str, Any], example: SourceTarget) -> dict[str, Any]:
    """Return what was generated with its score and, where there are several, all hypotheses, best first."""
    hypotheses = answer["hypotheses"]
    found = {"generated": hypotheses[0]["text"], "score": hypotheses[0]["score"]}
    return found | ({"hypotheses": hypotheses} if len(hypotheses) > 1 else {})


class Predictor:
    """Generates for the sources of a data set.

    Args:
        generate: features, listener, limits -> hypotheses; a `tasks.text_generator.TextGenerator`.
    """

    def __init__(self, generate: TextGenerator):
        self._generate, self.new_tokens, self.settings = generate, generate.new_tokens, generate.settings

    def __call__(self, dataset: Any, listener: Callable[[int, str], None] | None = None) -> list[Prediction]:
        """Return the hypotheses of each source.

        `listener` is called with the number of a source and its text so far. A data set may have `limits`, the most
        tokens of each text.
        """
        found = self._generate(dataset.sources(), listener, getattr(dataset, "limits", None))
        return [{"hypotheses": each} for each in found]


def predictor(model: Any, tokenizer: Tokenizer, *, max_seq_length: int, batch_size: int, **settings: Any) -> Predictor:
    """Return what generates for the sources of a data set; `settings` are `SETTINGS` and the longest target."""
    from tasks.text_generator import TextGenerator

    longest = settings.pop("max_target_length", None) or min(128, model.config.max_target_length)
    preset = chosen_preset({**settings, "max_target_length": longest})
    return Predictor(TextGenerator(model, tokenizer, preset, batch_size=batch_size, max_seq_length=max_seq_length))


def foreign_row(labels: Sequence[str], count: int) -> DatasetRow:
    """Return the row of a model that another program made."""
    return DatasetRow(
        name="generation",
        columns=("text_a", "target"),
        metric="rouge_l",
        files={},
        kind="generation",
    )


def degenerate(row: DatasetRow, answers: Sequence[Mapping[str, Any]], examples: Sequence[SourceTarget]) -> str:
    """Return that the same text was generated for every source."""
    texts = [answer["hypotheses"][0]["text"] for answer in answers]
    if all_alike(texts) and not all_alike([example.target for example in examples]):
        return f"every answer is {cut(texts[0])[:40]!r}"
    return ""


def inspected(row: DatasetRow, answers: Sequence[Mapping[str, Any]], examples: Sequence[SourceTarget]) -> Inspection:
    """Return the examples whose target has the highest loss a token, with what was generated instead."""
    losses = [float(each["target_loss"]) / max(float(each["target_tokens"]), 1.0) for each in answers]
    texts = [answer["hypotheses"][0]["text"] for answer in answers]
    right = [text == example.target for text, example in zip(texts, examples, strict=True)]

    def look(number: int):
        example = examples[number]
        named = [("generated", texts[number]), ("target", example.target or "")]
        named += [("source", example.text_a), ("source_b", example.text_b or "")]
        facts = {"index": f"{number:,}", "loss of a token": shown(losses[number])}
        return facts, [Text(name, cut(text)) for name, text in named if text or name == "generated"]

    return Inspection((), MostWrong(losses, right).seen(look), "by the loss of the target, a token")
