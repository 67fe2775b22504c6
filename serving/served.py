"""A loaded model as a server asks it: its name and version, what its inputs are called, and examples of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from serving import rows
from serving.loading import PRETRAINED
from serving.rows import Search
from serving.searching import parameters_of, search_of
from tasks.given import LackingError
from tasks.pretrained import MASK

if TYPE_CHECKING:
    from serving.loading import Loaded

GENERATING_ROWS = 4
"""Sources side by side: a search holds the compute thread as long as the longest of them takes."""
EXAMPLES: tuple[dict[str, Any], ...] = (
    {
        "context": "北京春天风大，上海常常下雨，广州已经热起来了。",
        "question": "哪个城市常常下雨？",
        "choices": ["北京", "上海", "广州"],
    },
    {
        "context": "Tom was hungry, so he went to the kitchen.",
        "question": "Why did Tom go to the kitchen?",
        "choices": ["He was hungry.", "He was tired."],
    },
    {"question": "鲁迅出生在哪里？", "context": "鲁迅，原名周樟寿，1881年9月25日出生于浙江绍兴。"},
    {"question": "Where was Ada born?", "context": "Ada Lovelace was born in London in 1815."},
    {"text_a": "今天天气怎么样", "text_b": "今天的天气好不好"},
    {"text_a": "How old are you?", "text_b": "What is your age?"},
    {"text_a": "今天天气很[MASK]，我们去公园。"},
    {"text_a": "The weather is [MASK] today."},
    {"text_a": "这家店的菜很好吃，服务也周到，下次还来。"},
    {"text_a": "Ada Lovelace worked in London with Charles Babbage."},
)
"""Inputs of our own; a model shows those that it can answer."""


@dataclass(eq=False)
class Served:
    """A model that answers requests.

    Attributes:
        name: in addresses.
        version: a number, or how often it was loaded.
        loaded: the model.
        fields: names of the columns of an input; of each whether it is required and whether it is a list of texts.
        examples: inputs that it answers.
        embeds: whether a text alone is answered by its vector.
    """

    name: str
    version: str
    loaded: Loaded
    fields: list[dict[str, Any]] = field(init=False)
    examples: list[dict[str, Any]] = field(init=False)
    embeds: bool = False

    def __post_init__(self) -> None:
        self.fields = fields_of(self.loaded)
        self.examples = [example for example in EXAMPLES if self._is_asked(example)]

    @property
    def streams(self) -> bool:
        """Whether it generates, and is heard while it does."""
        return self.loaded.generates() is not None

    @property
    def parameters(self) -> dict[str, dict[str, float | None]]:
        """The numbers of generation that a request may give, by name, with their bounds."""
        return parameters_of(self.loaded)

    def search_of(self, wanted: Mapping[str, float]) -> Search:
        """Return the settings of the search that a request wants; raises `RefusalError`."""
        return search_of(self.loaded, wanted) if wanted else ()

    def warm(self, sizes: Sequence[int], budget_tokens: int) -> int:
        """Compute every shape once, and drop the examples that have no answer; return how many shapes there were."""
        answered = []
        for example in self.examples:
            try:
                answer = self.loaded.answers([self.loaded.example(example)], 1)[0]
            except UsageError:
                continue
            answered.append(example)
            self.embeds |= "embedding" in answer
        self.examples = [*answered[:4]]
        if self.streams:
            sizes = [size for size in sizes if size <= GENERATING_ROWS]
        return rows.warm(self.loaded, answered, sizes, budget_tokens)

    def as_json(self) -> dict[str, Any]:
        """Return what GET /info says of it."""
        return {
            "kind": self.loaded.kind,
            "labels": list(self.loaded.labels),
            "max_seq_length": self.loaded.max_seq_length,
            "precision": self.loaded.precision,
            "format": self.loaded.form,
            "version": self.version,
            "state": "ready",
            "streams": self.streams,
            "embeds": self.embeds,
            "fields": self.fields,
            "examples": self.examples,
            **self._particulars(),
        }

    def _particulars(self) -> dict[str, Any]:
        """Return what only some models have: a threshold, numbers that a request may give."""
        if self.loaded.kind == "multilabel" and self.loaded.row:
            return {"threshold": self.loaded.row.threshold}
        return {"parameters": self.parameters} if self.parameters else {}

    def _is_asked(self, example: dict[str, Any]) -> bool:
        if any(MASK in text for text in example.values()) and self.loaded.kind != PRETRAINED:
            return False
        if {each["name"] for each in self.fields} != example.keys():
            required = {each["name"] for each in self.fields if each["required"]}
            if not required <= example.keys() <= {each["name"] for each in self.fields}:
                return False
        try:
            self.loaded.example(example)
        except UsageError:
            return False
        return True


@dataclass(frozen=True)
class Batched:
    """Rows of one model and one shape, which may be in one batch; see `serving.batching.Group`."""

    served: Served
    shape: tuple[Any, ...]

    def compute(self, given: Sequence[rows.Row]) -> Sequence[Any]:
        """Return the prediction of each row."""
        return rows.predicted(self.served.loaded, given)

    def size_of(self, count: int) -> int:
        """Return the rows that a batch of `count` is filled up to."""
        return rows.size_of(self.served.loaded, count)


@dataclass(frozen=True, eq=False)
class Streamed:
    """One source of a generating model, which somebody hears while it is generated."""

    served: Served
    listener: Callable[[str], None]

    def compute(self, given: Sequence[rows.Row]) -> Sequence[Any]:
        """Return the prediction of the one row."""
        return rows.predicted(self.served.loaded, given, lambda place, text: self.listener(text))

    def size_of(self, count: int) -> int:
        """Return the rows that a batch of `count` is filled up to."""
        return count


def fields_of(loaded: Loaded) -> list[dict[str, Any]]:
    """Return the columns of an input of a model, those that it needs first."""
    try:
        loaded.example({})
    except LackingError as error:
        required = dict.fromkeys(error.wanted, True) | dict.fromkeys(error.optional, False)
        return [{"name": name, "required": needed, "list": name in error.lists} for name, needed in required.items()]
    except UsageError:
        pass
    return [{"name": "text_a", "required": True, "list": False}]
