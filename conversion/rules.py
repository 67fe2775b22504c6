"""Rules that relate tensors here to tensors in the checkpoints of others, and namings, which are sets of rules.

A rule is read forwards to import and backwards to export, so the two directions cannot disagree. Splits, joins,
transposes and ties are entries of a table. Differs from the usual converters in that no name is guessed: a name
without a rule is handed back to the caller.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from conversion.lazy import Array, LazyTensor, Tensors, derived
from conversion.remote import RemoteCode
from conversion.tokenizer_files import ALBERT_PIECES, WORDPIECE, VocabularyForm
from modeling.config import Config

_INDEX = "(?P<{letter}>0|[1-9][0-9]*)"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor in a foreign checkpoint (theirs), and the tensors here (ours) that hold its values.

    In names `{k}` is the index of a brick, `{g}` and `{j}` are ALBERT's group and the block inside of it.

    Args:
        ours: names here; several for a tensor that joins several of equal shape (a fused query, key and value).
        theirs: name there, in its canonical spelling.
        transposed: the matrix here, joined if there are several, is the transpose of theirs.
        joined_axis: axis of our tensors along which they are joined, before the transposition; None for one tensor.
        cut_axis: axis of their tensor along which model parallelism cuts each of the joined parts over its processes;
            None where every process holds the whole.
    """

    ours: tuple[str, ...]
    theirs: str
    transposed: bool = False
    joined_axis: int | None = None
    cut_axis: int | None = None

    def __post_init__(self) -> None:
        if (self.joined_axis is None) != (len(self.ours) == 1):
            raise ValueError(f"the rule of {self.theirs} joins {len(self.ours)} tensors along axis {self.joined_axis}")

    def join(self, values: Iterable[np.ndarray]) -> np.ndarray:
        """Return the foreign tensor, joined from values in the order of `ours`."""
        values = list(values)
        value = values[0] if self.joined_axis is None else np.concatenate(values, axis=self.joined_axis)
        return value.T if self.transposed else value

    def split(self, value: np.ndarray) -> list[np.ndarray]:
        """Return the values of `ours`, cut from the foreign tensor; raise `ValueError` if it has no equal parts."""
        value = value.T if self.transposed else value
        return [value] if self.joined_axis is None else np.split(value, len(self.ours), axis=self.joined_axis)

    def lazily_joined(self, values: Iterable[Array]) -> LazyTensor:
        """Return what `join` returns, read when it is asked for."""
        values = list(values)
        shape = list(values[0].shape)
        if self.joined_axis is not None:
            shape[self.joined_axis] = sum(value.shape[self.joined_axis] for value in values)
        order = slice(None, None, -1) if self.transposed else slice(None)
        return derived(tuple(shape[order]), lambda *arrays: np.ascontiguousarray(self.join(arrays)), *values)

    def lazily_split(self, value: Array) -> list[LazyTensor]:
        """Return what `split` returns, each part read when it is asked for; raise what `split` raises at once."""
        # A view of one number has the shape without the memory.
        shapes = [part.shape for part in self.split(np.broadcast_to(np.zeros((), value.dtype), value.shape))]
        return [
            derived(shape, lambda array, part=part: self.split(array)[part], value) for part, shape in enumerate(shapes)
        ]


def _nothing(tensors: Tensors) -> Mapping[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming:
    """The names that one code gives to the tensors of one family, and its JSON of a model: a row of `namings.NAMINGS`.

    Args:
        name: shown to people and kept as a checkpoint's `source_format`.
        family: `Config.family` of the models that the names belong to; empty for names of several families.
        container: "tf1" or "transformers".
        detect: expressions; names are of this naming where each expression matches at least one of them.
        absent: expressions of which none may match a name.
        rules: one for every tensor.
        canonical: the spelling that rules use, for a name as files have it; None for a name that is no weight.
        backbone: beginnings of canonical names of the encoder, each of which needs a rule; others are heads.
        ties: a tensor of theirs that only repeats another -> that other tensor.
        neutral: our name -> its value, by width, which changes nothing: always there in their graph, and in ours only
            where it does something.
        implies: fields of `Config` that names and shapes tell, and the JSON beside them may not.
        rewrite: a model here as a model of this naming that computes the same; raises `UsageError` with the reason
            where there is none.
        config_keys: fields of `Config` that their JSON has.
        config_constants: further keys of their JSON.
        config_file: file name of their JSON.
        describe: their JSON of a model, where its keys are no fields of `Config`; transformers' has it where there are
            no `config_keys`.
        model_type: transformers' word for the graph; empty in TF 1.
        class_prefix: what the names of transformers' classes begin with; empty in TF 1.
        head_classes: number of classes that a head must have there to be kept.
        vocabularies: kinds of vocabulary files that their tokenizers read.
        code: what an export carries because transformers has no class for the graph; None where it has one.
        generates: whether models that are written under the names write text in transformers.
        zeros: a tensor of theirs that is 0 for every model here, by canonical name -> its shape.
    """

    name: str
    family: str
    container: str
    detect: tuple[str, ...]
    rules: tuple[Rule, ...]
    canonical: Callable[[str], str | None]
    backbone: tuple[str, ...]
    rewrite: Callable[[Config, Tensors], tuple[Config, dict[str, Array]]]
    config_keys: tuple[str, ...]
    ties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    neutral: Mapping[str, Callable[[int], np.ndarray]] = dataclasses.field(default_factory=dict)
    implies: Callable[[Tensors], Mapping[str, Any]] = _nothing
    config_constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config_file: Callable[[Config], str] = lambda config: "config.json"
    describe: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    model_type: str = ""
    class_prefix: str = ""
    head_classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    vocabularies: tuple[VocabularyForm, ...] = (WORDPIECE, ALBERT_PIECES)
    code: RemoteCode | None = None
    generates: bool = False
    zeros: Mapping[str, Callable[[Config], tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    absent: tuple[str, ...] = ()

    def names(self, names: Iterable[str]) -> bool:
        """Return whether the raw names of a checkpoint are of this naming."""
        names = list(names)
        found = all(any(re.search(expression, name) for name in names) for expression in self.detect)
        return found and not any(re.search(expression, name) for expression in self.absent for name in names)

    def is_backbone(self, canonical: str) -> bool:
        """Return whether a canonical name belongs to the encoder rather than to a head or to the optimizer."""
        return canonical.startswith(self.backbone)

    @functools.cached_property
    def is_cut(self) -> bool:
        """Whether the rules say how model parallelism cuts the tensors."""
        return any(rule.cut_axis is not None for rule in self.rules)

    def serves(self, config: Config) -> bool:
        """Return whether the names belong to models of the config's family."""
        return not self.family or self.family == config.family

    def writes(self, config: Config) -> bool:
        """Return whether these names say of a model of the family what `config` says."""
        return all(getattr(config, name) == value for name, value in self.implies({}).items())

    @functools.cached_property
    def heads(self) -> frozenset[str]:
        """The heads that have rules: first parts of our names."""
        return frozenset(name.split("/")[0] for rule in self.rules for name in rule.ours) - {"backbone"}

    @functools.cached_property
    def by_ours(self) -> list[tuple[re.Pattern[str], Rule]]:
        """Every name of ours as a pattern, with its rule."""
        return [(_pattern(name), rule) for rule in self.rules for name in rule.ours]

    @functools.cached_property
    def by_theirs(self) -> list[tuple[re.Pattern[str], Rule]]:
        """Every name of theirs as a pattern, with its rule."""
        return [(_pattern(rule.theirs), rule) for rule in self.rules]


@dataclasses.dataclass(frozen=True)
class Translation:
    """A naming at a number of blocks in a group, by which group and block become the number of a brick."""

    naming: Naming
    inner_group_num: int = 1

    def to_ours(self, name: str) -> tuple[Rule, tuple[str, ...]] | None:
        """Return the rule of a canonical name of theirs and our names; None without a rule."""
        for pattern, rule in self.naming.by_theirs:
            match = pattern.fullmatch(name)
            if match is not None:
                indices = self._indices(match)
                return None if indices is None else (rule, tuple(ours.format(**indices) for ours in rule.ours))
        return None

    def to_theirs(self, name: str) -> tuple[Rule, str] | None:
        """Return the rule of our name and the canonical name of theirs; None without a rule."""
        for pattern, rule in self.naming.by_ours:
            match = pattern.fullmatch(name)
            if match is not None:
                indices = self._indices(match)
                return None if indices is None else (rule, rule.theirs.format(**indices))
        return None

    def imported(self, name: str, value: Array) -> dict[str, Array]:
        """Return our tensors of one tensor of theirs, by name; none where it has no rule."""
        place = self.to_ours(name)
        return {} if place is None else dict(zip(place[1], place[0].lazily_split(value), strict=True))

    def exported(self, tensors: Tensors) -> tuple[dict[str, Array], list[str]]:
        """Return their tensors by name, and our names that have no place there."""
        named: dict[str, Array] = {}
        lost = []
        for name in tensors:
            place = self.to_theirs(name)
            parts = None if place is None else self.to_ours(place[1])
            if place is None or parts is None or not all(part in tensors for part in parts[1]):
                lost.append(name)
            elif place[1] not in named:
                named[place[1]] = place[0].lazily_joined(tensors[part] for part in parts[1])
        return named, lost

    def _indices(self, match: re.Match[str]) -> dict[str, int] | None:
        indices = {letter: int(number) for letter, number in match.groupdict().items()}
        if "g" in indices:
            if indices["j"] >= self.inner_group_num:
                return None
            return {**indices, "k": indices["g"] * self.inner_group_num + indices["j"]}
        if "k" in indices:
            indices["g"], indices["j"] = divmod(indices["k"], self.inner_group_num)
        return indices


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    for letter in "kgj":
        escaped = escaped.replace(rf"\{{{letter}\}}", _INDEX.format(letter=letter), 1)
    return re.compile(escaped)
