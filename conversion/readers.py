"""Read a checkpoint of ours, of TF 1 or of transformers under our names (specs: BERT, ALBERT, albert_zh, StructBERT).

Differs from the originals, which skip what does not match: optimizer slots and counters are left out and listed, a
backbone tensor that no rule names is an error, and the graph is detected from names and shapes.
"""

import dataclasses
import glob
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from absl.app import UsageError
from safetensors import SafetensorError

from conversion import namings
from conversion.containers import ranks
from conversion.containers.shards import open_file, open_index
from conversion.containers.tf1_files import open_tf1
from conversion.lazy import Array, LazyTensor, Tensors, as_float32, is_floating
from conversion.locating import locate
from conversion.rules import Naming, Translation
from ground.files import check_plain
from ground.words import few_names
from modeling.computation import SCAFFOLD
from modeling.config import Config, load_config
from training import checkpoints


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors under our names, the config as far as it is known, and where both came from."""

    tensors: Tensors
    config: Config | None
    source_format: str
    path: Path
    skipped: list[str] = dataclasses.field(default_factory=list)
    """Names in the file of what is no weight: optimizer slots, counters, buffers, copies of tied tensors."""
    unplaced: list[str] = dataclasses.field(default_factory=list)
    """Names in the file of heads that have no place here."""

    @property
    def folder(self) -> Path:
        """The folder that holds the files, where a vocabulary may lie too."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def folders(self) -> list[Path]:
        """The folder and, above OUTPUT/best and OUTPUT/checkpoints/step_*, the run's."""
        if self.source_format != "ours":
            return [self.folder]
        above = self.folder.resolve().parent
        return [self.folder, above, *([above.parent] if above.name == "checkpoints" else [])]


def read_checkpoint(path: str | Path, *, config: Config | None = None, prefer_best: bool = False) -> Checkpoint:
    """Read `path` in any accepted format; matrices come as [in, out], tables as [rows, width], all float32.

    `config` replaces the one found beside the weights. In a run's output folder the newest step is read, or `best/`
    where it exists and `prefer_best`. The kind of LayerNorm (pre or post) of albert_zh is not in the tensors: it comes
    from the config alone. Raises `UsageError` when nothing is there, when the layout is unknown, when tensors of the
    backbone have no place in it, or when the config describes another graph.
    """
    kind, where = locate(path, prefer_best=prefer_best)
    checkpoint = _read_ours(where, config) if kind == "ours" else _read_foreign(kind, where, config)
    if checkpoint.config is not None:
        check_graph(checkpoint.tensors, checkpoint.config, str(where))
    return checkpoint


def _read_foreign(kind: str, where: Path, config: Config | None) -> Checkpoint:
    if kind == "ranks":
        return _renamed(_merged_ranks(where), config or _config_of_folders(where, where.parent), where)
    if kind == "index":
        named = open_index(check_plain(where))
    elif kind == "file":
        named = open_file(check_plain(where))
        if any(name.startswith("backbone/") for name in named):
            tensors = _weights(named, where)
            _check_tensors(tensors, where)
            return Checkpoint(tensors, config, "ours", where)
    else:
        return _read_tf1(where, config)
    return _renamed(named, config or _config_of_folders(where.parent), where)


def _config_of_folders(*folders: Path) -> Config | None:
    path = next((folder / "config.json" for folder in folders if (folder / "config.json").exists()), None)
    return None if path is None else load_config(path)


def _read_tf1(prefix: Path, config: Config | None) -> Checkpoint:
    for file in prefix.parent.glob(f"{glob.escape(prefix.name)}.*"):
        check_plain(file)
    named = open_tf1(prefix)
    checkpoint = _renamed(named, config, prefix)
    if config is not None:
        return checkpoint
    found = _config_beside(prefix.parent, checkpoint.tensors)
    naming = _require_naming(sorted(named), prefix)
    return dataclasses.replace(checkpoint, config=_corrected(found, naming, checkpoint.tensors))


def _corrected(config: Config | None, naming: Naming, tensors: Tensors) -> Config | None:
    """Return the config with what names and shapes tell better than the JSON beside them."""
    if config is None or config.family != naming.family:
        return config
    return dataclasses.replace(config, **naming.implies(tensors))


def _merged_ranks(folder: Path) -> dict[str, Array]:
    """Return the whole tensors of a model-parallel checkpoint, under the names of its files."""
    held = ranks.open_ranks(folder)
    translation = Translation(_require_naming(sorted(held[0]), folder))
    cuts = {}
    for name in held[0]:
        spelt = translation.naming.canonical(name)
        # A tied copy is cut as what it repeats.
        place = None if spelt is None else translation.to_ours(translation.naming.ties.get(spelt, spelt))
        if place is not None:
            cuts[name] = (place[0].cut_axis, len(place[0].ours))
    return ranks.merged(held, cuts, folder)


def check_graph(tensors: Iterable[str], config: Config, where: str) -> None:
    """Raise `UsageError` naming both sides when tensors under our names are not those of the config's graph.

    An encoder alone may become the encoder of a model with a decoder, and a family may have several graphs; what may be
    new, and what begins as a copy of what, is for loading.
    """
    got, expected = namings.graph_of(tensors), namings.graph_of_config(config)
    if got not in (expected, namings.graph_of_config(config.encoder)) and got.family != config.family:
        raise UsageError(
            f"checkpoint {where} is of the {got.title}, the config describes the {expected.title}; "
            "use the config that was published with the checkpoint"
        )


def _weights(tensors: Tensors, where: Path) -> dict[str, Array]:
    """Return the tensors in float32; raise `UsageError` for whole numbers."""
    for name, value in tensors.items():
        if not is_floating(value.dtype):
            raise UsageError(f"{name} of {where} has numbers of type {value.dtype}; expected floating-point weights")
    return {name: as_float32(value) for name, value in tensors.items()}


def _read_ours(folder: Path, config: Config | None) -> Checkpoint:
    """Read a folder that `training/checkpoints.py` wrote; raise `UsageError` where its files were changed since."""
    try:
        found = checkpoints.read_state(folder, groups=("model",), stored=True)
    except checkpoints.CorruptCheckpointError as error:
        raise UsageError(f"{error}; take another step") from None
    values, state = found.config, folder / "state.json"
    if not found.tensors:
        raise UsageError(f"{folder} holds no model*.safetensors that its state.json names; take another step")
    held = {name.removeprefix("model/"): _stored(value, folder) for name, value in found.tensors.items()}
    tensors = {name: value for name, value in held.items() if not name.startswith(f"{SCAFFOLD}/")}
    if config is None and values:
        unknown = values.keys() - {field.name for field in dataclasses.fields(Config)}
        if unknown:
            raise UsageError(f"{state}: config has the unknown key {min(unknown)!r}; give --config_file")
        try:
            config = Config.from_json(values)
        except UsageError as error:
            raise UsageError(f"the config in {state}: {error}") from None
    return Checkpoint(_weights(tensors, folder), config, "ours", folder, sorted(held.keys() - tensors.keys()))


def _stored(value: checkpoints.StoredTensor, folder: Path) -> LazyTensor:
    def read() -> np.ndarray:
        try:
            return np.asarray(value)
        except (ValueError, SafetensorError) as error:
            raise UsageError(f"{folder} cannot be read ({error}); take another step") from None

    return LazyTensor(value.shape, value.dtype, read)


def _require_naming(names: list[str], where: Path) -> Naming:
    naming = namings.naming_of(names)
    if naming is None:
        raise UsageError(
            f"no known layout in {where}: it has {few_names(names)}; expected BERT, ALBERT or albert_zh of TF 1, or "
            "BERT, ALBERT or RoBERTa of transformers"
        )
    return naming


def _renamed(named: Tensors, config: Config | None, where: Path) -> Checkpoint:
    """Return foreign tensors under our names; raise `UsageError` for a backbone tensor without a place, or untied."""
    naming = _require_naming(sorted(named), where)
    canonical = {name: naming.canonical(name) for name in named}
    by_canonical = {spelt: named[name] for name, spelt in canonical.items() if spelt is not None}
    translation = Translation(naming, _inner_group_num(naming, by_canonical))
    tensors: dict[str, Array] = {}
    skipped, unplaced, lost = [name for name, spelt in canonical.items() if spelt is None], [], []
    for name, spelt in canonical.items():
        if spelt is None:
            continue
        repeated = naming.ties.get(spelt)
        if repeated is not None:
            if repeated in by_canonical and not same_numbers(by_canonical[repeated], named[name]):
                raise UsageError(f"{name} of {where} differs from {repeated}: an output table of its own has no place")
            skipped.append(name)
        elif spelt in naming.zeros:
            if np.any(np.asarray(named[name])):
                raise UsageError(f"{name} of {where} is not 0 everywhere: it has no place here, where nothing adds it")
            skipped.append(name)
        elif translation.to_ours(spelt) is not None:
            try:
                tensors |= _weights(translation.imported(spelt, named[name]), where)
            except (ValueError, IndexError, TypeError):
                shape = list(named[name].shape)
                raise UsageError(f"{name} of {where} has shape {shape}, which cannot be cut in equal parts") from None
        else:
            (lost if naming.is_backbone(spelt) else unplaced).append(name)
    if lost:
        raise UsageError(f"{where} looks like {naming.name}, but has no place for {few_names(sorted(lost))}")
    _check_tensors(tensors, where)
    # Their graph has these tensors even where they change nothing; the graph here has no variables for that.
    if naming.neutral.keys() <= tensors.keys() and all(
        np.array_equal(np.asarray(tensors[name]), neutral(tensors[name].shape[0]))
        for name, neutral in naming.neutral.items()
    ):
        tensors = {name: value for name, value in tensors.items() if name not in naming.neutral}
    corrected = _corrected(config, naming, tensors)
    return Checkpoint(tensors, corrected, naming.name, where, sorted(skipped), sorted(unplaced))


def same_numbers(first: Array, second: Array) -> bool:
    """Return whether two tensors are the same bit for bit; at no time are both in memory, since tables are large."""
    if first.shape != second.shape:
        return False
    digests = (hashlib.sha256(np.ascontiguousarray(as_float32(value)).data).digest() for value in (first, second))
    return len(set(digests)) == 1


def _check_tensors(tensors: Tensors, where: Path) -> None:
    """Raise `UsageError` where a tensor has not the axes that its name tells, or the word table is missing."""
    for name, value in tensors.items():
        axes = (2, 3) if name.endswith("/kernel") else (2,) if name.endswith("_embeddings") else (1,)
        if value.ndim not in axes or 0 in value.shape:
            raise UsageError(
                f"{name} of {where} has shape {list(value.shape)}, expected {axes[0]} axes, none of them empty; "
                "the file is damaged, or of another model"
            )
    if (table := "backbone/embeddings/word_embeddings") not in tensors:
        raise UsageError(f"{where} has no {table}: it is a part of a checkpoint; give the whole")


def _inner_group_num(naming: Naming, names: Iterable[str]) -> int:
    """Return how many blocks the groups of a checkpoint have: one more than the highest number in its names."""
    matches = (pattern.fullmatch(name) for pattern, rule in naming.by_theirs if "{j}" in rule.theirs for name in names)
    return 1 + max((int(match["j"]) for match in matches if match), default=0)


def _config_beside(folder: Path, tensors: Tensors) -> Config | None:
    """Return the one config in the folder of a TF 1 checkpoint that fits its word table; None for none or several."""
    fitting = []
    for path in sorted(folder.glob("*config*.json")):
        try:
            config = load_config(path)
        except UsageError:
            continue
        if tensors["backbone/embeddings/word_embeddings"].shape[0] == config.vocab_size:
            fitting.append(config)
    return fitting[0] if len(fitting) == 1 else None
