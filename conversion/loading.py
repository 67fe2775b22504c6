"""Put a checkpoint into a model strictly: every tensor is loaded, or named with the reason why not.

Differs from TF 1's assignment maps, which skip in silence the names that do not match and so train from random weights.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from absl.app import UsageError

from conversion.lazy import Array, Tensors, derived
from conversion.namings import graph_of
from conversion.readers import Checkpoint
from modeling.beginnings import Beginning, Computed
from modeling.computation import LANGUAGES, SCAFFOLD
from modeling.config import Config
from modeling.families import FAMILIES

ANY_HEAD = (".*",)  # The backbone has to match in full whatever is allowed.
_SHOWN_TENSORS = 6
_BRICK = re.compile(r"(backbone/encoder/(?:attention|feed_forward)_)(\d+)/(.*)")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """The fate of every tensor of the model and of the checkpoint, by our names."""

    loaded: list[str]
    untied: list[str]  # of the model, copied from the one shared brick of the checkpoint
    missing: list[str]  # of the model, left as it was initialised
    unexpected: list[str]  # of the checkpoint, not used
    wrong_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # checkpoint's and model's
    begun: list[str] = dataclasses.field(default_factory=list)  # of the model, copied from tensors of other names

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        if self.untied:
            parts.append(f"{len(self.untied)} copied from shared ones")
        if self.begun:
            parts.append(f"{len(self.begun)} begun as copies of others")
        if self.missing:
            parts.append(f"new: {', '.join(_grouped(self.missing))}")
        if self.unexpected:
            parts.append(f"not used: {', '.join(_grouped(self.unexpected))}")
        return "; ".join(parts)

    def lines(self, checkpoint: Checkpoint) -> list[str]:
        """Return a line for every fate of a tensor of the file and of the model, those of no tensor too."""
        fates = {
            "skipped by rule": checkpoint.skipped,
            "missing": self.missing,
            "unexpected": [*self.unexpected, *checkpoint.unplaced],
            "of another shape": list(self.wrong_shape),
        }
        named = [f"{what}: {', '.join(_grouped(names)) or 'none'}" for what, names in fates.items()]
        return [f"loaded: {len(self.loaded)} tensors", *named]


def _grouped(names: Sequence[str]) -> list[str]:
    """Return the names, or where a group of them is larger than a head the name of the group and how many it has."""
    groups = Counter("/".join(name.split("/")[:2]) for name in names)
    large = {group: count for group, count in groups.items() if count > _SHOWN_TENSORS}
    shown = (next((group for group in large if name.startswith(group + "/")), name) for name in names)
    return [f"{name}/* ({large[name]})" if name in large else name for name in dict.fromkeys(shown)]


def load_into(
    model: Any,
    checkpoint: Checkpoint,
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    untie: bool = False,
) -> LoadReport:
    """Assign `checkpoint` to the variables of the built `model` and report; nothing is assigned unless all fits.

    `allow_missing` and `allow_unexpected` are patterns that whole names of *heads* may match (a new `classifier/.*`,
    pretraining heads that fine-tuning drops); the backbone has to match in full, but for patterns that begin with
    "backbone/" (a new decoder). `untie=True` lets a model with
    own bricks in every layer start from a checkpoint that shares one. A model may begin from a checkpoint of another
    shape of its family, where the family says how (`modeling.families.Family.begins`). Raises `UsageError` with a
    listing, + for what only the checkpoint has, - for what only the model has.
    """
    from modeling import named_variables

    checkpoint = with_computed(checkpoint, getattr(model, "computed", lambda names: ())(checkpoint.tensors))
    variables = named_variables(model)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    values, report = assignment(
        shapes,
        checkpoint,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
        untie=untie,
        beginning=FAMILIES[model.config.family].begins(shapes, checkpoint.tensors),
    )
    for name, value in values.items():
        variables[name].assign(np.asarray(value))
    return report


def with_computed(checkpoint: Checkpoint, computed: Iterable[Computed]) -> Checkpoint:
    """Return the checkpoint with variables that follow from its tensors, and without those that made them."""
    tensors = dict(checkpoint.tensors)
    for each in computed:
        sources = [checkpoint.tensors[name] for name in each.sources]
        tensors = {name: value for name, value in tensors.items() if name not in each.unused}
        tensors[each.variable] = derived(each.shape, each.function, *sources)
    return dataclasses.replace(checkpoint, tensors=tensors)


def model_for(config: Config, tensors: Tensors) -> Any:
    """Return a built model with the heads that tensors under our names have."""
    from modeling.heads import ClassifierHead, MaskedLMHead, NextTokenHead, PairHead, TokenHead
    from modeling.model import HeadOfModel, LanguageModel

    heads: list[HeadOfModel] = []
    if "masked_lm/output_bias" in tensors:
        heads.append(MaskedLMHead)
    if "sentence_pair/kernel" in tensors:
        heads.append(partial(PairHead, num_labels=tensors["sentence_pair/kernel"].shape[-1]))
    if "classifier/kernel" in tensors:
        heads.append(partial(ClassifierHead, num_labels=tensors["classifier/kernel"].shape[-1], dropout=0.0))
    for name in ("tagger", "span"):
        if f"{name}/kernel" in tensors:
            count = tensors[f"{name}/kernel"].shape[-1]
            heads.append(partial(TokenHead, name=name, num_labels=count, dropout=0.0))
    if any(name.startswith("backbone/decoder/") for name in tensors):
        heads.append(NextTokenHead)
    return LanguageModel(config, heads)


def check_fits(
    checkpoint: Checkpoint, allow_missing: Sequence[str] = (), allow_unexpected: Sequence[str] = ()
) -> LoadReport:
    """Return the fate of every tensor in a model of the checkpoint's own config; allocates no model.

    Raises `UsageError` where a tensor has another shape, is missing, or has no place, and no pattern allows it.
    """
    from modeling import variable_shapes

    config = checkpoint.config
    if config is None:
        raise UsageError(
            f"no config beside {checkpoint.path} fits it, and the number of heads and layers, the activation and the "
            "kind of LayerNorm cannot be seen in the weights: pass --config_file"
        )
    shapes = variable_shapes(lambda: model_for(config, checkpoint.tensors))
    _, report = assignment(shapes, checkpoint, allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    lost = [name for name in checkpoint.unplaced if not _allowed(name, allow_unexpected)]
    if lost:
        raise UsageError(
            f"{checkpoint.path} has {len(lost)} tensors without a place here: {', '.join(_first(lost))}; to leave them "
            f"out, say so: --allow_unexpected={re.escape(lost[0])}"
        )
    return report


def assignment(
    shapes: Mapping[str, tuple[int, ...]],
    checkpoint: Checkpoint,
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    untie: bool = False,
    beginning: Beginning = Beginning(),  # noqa: B008
) -> tuple[dict[str, Array], LoadReport]:
    """Decide which tensor goes to which of the named `shapes` of a model; raises what `load_into` raises."""
    tensors = checkpoint.tensors
    sources = {name: beginning.origins.get(name) or _source(name, tensors, untie) for name in shapes}
    wrong_shape = {
        name: (tensors[source].shape, shapes[name])
        for name, source in sources.items()
        if source is not None and tensors[source].shape != shapes[name]
    }
    used = {source for source in sources.values() if source is not None}
    report = LoadReport(
        loaded=sorted(name for name, source in sources.items() if source == name and name not in wrong_shape),
        untied=sorted(
            name for name, source in sources.items() if source not in (name, None, beginning.origins.get(name))
        ),
        begun=sorted(name for name, source in sources.items() if source == beginning.origins.get(name, "")),
        missing=sorted(name for name, source in sources.items() if source is None),
        unexpected=sorted(set(tensors) - used),
        wrong_shape=wrong_shape,
    )
    missing = [
        name
        for name in report.missing
        if not (_allowed(name, (*allow_missing, f"{SCAFFOLD}/.*")) or _unread(name, tensors) or name in beginning.new)
    ]
    # Nothing reads the vectors of languages but a run that learns with them, and no other output depends on them.
    spare = (*allow_unexpected, f"{LANGUAGES}/.*")
    unexpected = [name for name in report.unexpected if not (_allowed(name, spare) or name in beginning.unused)]
    if missing or unexpected or wrong_shape:
        raise UsageError(_complaint(shapes, checkpoint, missing, unexpected, wrong_shape))
    values = {name: tensors[source] for name, source in sources.items() if source is not None}
    for name, other in beginning.added.items():
        values[name] = derived(values[name].shape, lambda table, row: table + row[:1], values[name], tensors[other])
    return values, report


def _source(name: str, tensors: Tensors, untie: bool) -> str | None:
    if name in tensors:
        return name
    brick = _BRICK.fullmatch(name) if untie else None
    if brick is None or any(name.startswith(f"{brick[1]}1/") for name in tensors):
        return None
    shared = f"{brick[1]}0/{brick[3]}"
    return shared if shared in tensors else None


def _allowed(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern covers the name; one of the backbone only where the pattern says so."""
    own = (pattern for pattern in patterns if pattern.startswith("backbone/") == name.startswith("backbone/"))
    return any(re.fullmatch(pattern, name) for pattern in own)


def _unread(name: str, tensors: Tensors) -> bool:
    """Return whether nothing in a checkpoint reads the variable: a masked-LM model of transformers has no pooler."""
    readers = ("backbone/pooler/", "sentence_pair/", "classifier/")
    return name.startswith("backbone/pooler/") and not any(other.startswith(readers) for other in tensors)


def _complaint(
    shapes: Mapping[str, tuple[int, ...]],
    checkpoint: Checkpoint,
    missing: list[str],
    unexpected: list[str],
    wrong_shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> str:
    where = f"checkpoint {checkpoint.path}"
    theirs, ours = graph_of(checkpoint.tensors), graph_of(shapes)
    if theirs != ours:
        return (
            f"{where} is of the {theirs.title}, the model is the {ours.title}; "
            "use the config that was published with the checkpoint"
        )
    table = "backbone/embeddings/word_embeddings"
    if table in wrong_shape and wrong_shape[table][0][1:] == wrong_shape[table][1][1:]:
        (rows, _), (expected, _) = wrong_shape[table]
        return (
            f"{where} has a vocabulary of {rows} tokens, the model's config says vocab_size {expected}; "
            "use the vocabulary and the config that belong to the checkpoint"
        )
    tensors = checkpoint.tensors
    changed = [f"- {name} {list(e)} + {name} {list(g)}" for name, (g, e) in sorted(wrong_shape.items())]
    absent = [f"- {name} {list(shapes[name])}" for name in missing]
    surplus = [f"+ {name} {list(tensors[name].shape)}" for name in unexpected]
    lines = [line for part in (changed, absent, surplus) for line in _first(part)]
    hint = ""
    if not wrong_shape and not unexpected and all(_source(name, tensors, untie=True) for name in missing):
        hint = "; its layers are shared, the model's are not"
    return (
        f"{where} does not fit the model (- model, + checkpoint): {len(wrong_shape)} of another shape, "
        f"{len(missing)} missing, {len(unexpected)} unexpected{hint}:\n" + "\n".join(lines)
    )


def _first(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    rest = len(lines) - _SHOWN_TENSORS
    return lines[:_SHOWN_TENSORS] + ([f"{lines[0][0]} ... {rest} more"] if rest > 0 else [])
