"""Read a checkpoint of ours, of TF 1 or of transformers under our names (specs: BERT, ALBERT, albert_zh, StructBERT).

Differs from the originals, which skip what does not match: optimizer slots and counters are left out and listed, a
backbone tensor that no rule names is an error, and the graph is detected from names and shapes.
"""

import dataclasses
import glob
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
from absl.app import UsageError

from conversion import namings
from conversion.rules import Naming, Translation
from conversion.sources import obtain
from ground.documents import read_json
from ground.files import check_plain
from modeling.config import Config, load_config
from training import checkpoints

_SHOWN_NAMES = 4
# A view may show a number many times: a table of zeros, and not a hundred thousand times what is stored.
_SMALL_BYTES = 1 << 26
_OUR_TENSORS, _OUR_STATE, _OUR_RUN = "model*.safetensors", "state.json", "run.json"
_TRANSFORMERS_TENSORS = ("model.safetensors", "pytorch_model.bin")
_STEP_FOLDER = re.compile(r"step_(\d+)")
_ACCEPTED = (
    "a run's output folder, a step_* folder, a TF 1 checkpoint (prefix, .index or folder), a transformers folder, "
    "a .safetensors or a .bin file"
)


class _RowShape(TypedDict):
    labels: list[str]


class _RunShape(TypedDict):
    row: _RowShape | None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors under our names, the config as far as it is known, and where both came from."""

    tensors: dict[str, np.ndarray]
    config: Config | None
    source_format: str
    unused: list[str]
    path: Path

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
    if kind == "ours":
        checkpoint = _read_ours(where, config)
    elif kind == "tf1":
        for file in where.parent.glob(f"{glob.escape(where.name)}.*"):
            check_plain(file)
        checkpoint = _read_tf1(where, config)
    else:
        file, configuration = check_plain(where), where.parent / "config.json"
        named = _safetensors(file) if file.suffix == ".safetensors" else _torch_file(file)
        if any(name.startswith("backbone/") for name in named):
            tensors = _as_float32(named, where)
            _check_tensors(tensors, where)
            return Checkpoint(tensors, config, "ours", [], where)
        if config is None and configuration.exists():
            config = load_config(configuration)
        checkpoint = _renamed(named, config, where)
    if checkpoint.config is not None:
        check_graph(checkpoint.tensors, checkpoint.config, str(where))
    return checkpoint


def locate(path: str | Path, *, prefer_best: bool = False) -> tuple[str, Path]:
    """Resolve what a person may pass to ("ours", folder), ("tf1", prefix) or ("torch", file); raises `UsageError`."""
    path = obtain(path)
    if path.is_dir():
        return _locate_in_folder(path, prefer_best)
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(path))
    if Path(f"{prefix}.index").exists():
        return "tf1", Path(prefix)
    if path.is_file():
        if path.suffix in (".safetensors", ".bin", ".pt"):
            return "torch", path
        if path.name == "checkpoint":
            return _locate_in_folder(path.parent, prefer_best)
    hint = f"; the folder has {_few(sorted(p.name for p in path.parent.iterdir()))}" if path.parent.is_dir() else ""
    reason = "is not a checkpoint" if path.exists() else "does not exist"
    raise UsageError(f"checkpoint {path} {reason}{hint}; expected {_ACCEPTED}")


def _locate_in_folder(folder: Path, prefer_best: bool) -> tuple[str, Path]:
    if (folder / _OUR_STATE).exists() and any(folder.glob(_OUR_TENSORS)):
        return "ours", folder
    runs = [folder / "checkpoints", folder]
    steps = [p for run in runs if run.is_dir() for p in run.iterdir() if _STEP_FOLDER.fullmatch(p.name)]
    steps.sort(key=lambda p: int(p.name.removeprefix("step_")))
    best = folder / "best"
    if (best / _OUR_STATE).exists() and (prefer_best or not steps):
        return "ours", best
    if steps:
        return "ours", steps[-1]
    for name in _TRANSFORMERS_TENSORS:
        if (folder / name).exists():
            return "torch", folder / name
    indices = sorted(folder.glob("*.index"))
    if (folder / "checkpoint").exists() and indices:
        # State files in published archives name paths of their author's machine, so only the last part is looked at.
        named = re.search(r'^model_checkpoint_path: *"(.*)"', _state_text(folder / "checkpoint"), re.MULTILINE)
        prefix = folder / Path(named[1]).name if named else folder
        if Path(f"{prefix}.index").exists():
            return "tf1", prefix
    if len(indices) == 1:
        return "tf1", indices[0].with_suffix("")
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt"))
    if not indices and len(files) == 1:
        return "torch", files[0]
    candidates = [p.name for p in (indices or files)]
    if candidates:
        raise UsageError(f"{folder} holds several checkpoints and nothing says which: {_few(candidates)}; name one")
    raise UsageError(
        f"no checkpoint in {folder}, which holds {_few(sorted(p.name for p in folder.iterdir()))}; expected {_ACCEPTED}"
    )


def _state_text(path: Path) -> str:
    """Return TF 1's list of checkpoints; of a binary file what looks like text, which names none."""
    with check_plain(path).open("rb") as stream:
        return stream.read(2**20).decode(errors="replace")


def labels_of_run(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of a classifier's classes, in order, from the `run.json` of its run; empty where it has none.

    Runs of old have no such file, and a pretraining run has no row. Raises `UsageError` for a file that a run cannot
    have written.
    """
    path = next((folder / _OUR_RUN for folder in checkpoint.folders if (folder / _OUR_RUN).is_file()), None)
    if path is None:
        return ()
    row = read_json(path, _RunShape, what="a run.json", fix="restore it, or name the classes with --labels")["row"]
    return () if row is None else tuple(row["labels"])


def check_graph(tensors: Iterable[str], config: Config, where: str) -> None:
    """Raise `UsageError` naming both sides when tensors under our names are not those of the config's graph.

    An encoder alone may become the encoder of a model with a decoder; whether the decoder may be new is for loading.
    """
    got, expected = namings.graph_of(tensors), namings.graph_of_config(config)
    if got not in (expected, namings.graph_of_config(config.encoder)):
        raise UsageError(
            f"checkpoint {where} is of the {got.title}, the config describes the {expected.title}; "
            "use the config that was published with the checkpoint"
        )


def few_names(names: Iterable[str]) -> str:
    """Name at most four, and how many more there are."""
    return _few(list(names))


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES]) or "nothing"
    return shown + (f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else "")


def _as_float32(tensors: Mapping[str, np.ndarray], where: Path) -> dict[str, np.ndarray]:
    for name, value in tensors.items():
        if not (np.issubdtype(value.dtype, np.floating) or value.dtype.name == "bfloat16"):
            raise UsageError(f"{name} of {where} has numbers of type {value.dtype}; expected floating-point weights")
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors then returns
    import safetensors
    import safetensors.numpy

    # Of a folder safetensors says "No such device".
    path.open("rb").close()
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UsageError(f"{path} is not a whole safetensors file ({reason}); copy it again") from None


def _torch_file(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UsageError(f"reading {path} needs PyTorch: pip install torch, or pass a .safetensors file") from None
    import pickle
    import warnings
    import zipfile

    # torch raises OSError for a damaged file too; opening it first keeps a missing permission from reading as damage.
    path.open("rb").close()
    expected = "expected names and tensors, as torch.save(model.state_dict(), FILE) writes them"
    damages = (pickle.UnpicklingError, RuntimeError, zipfile.BadZipFile, EOFError, OSError, LookupError)
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (*damages, ValueError, TypeError, AttributeError) as error:
        reason = f"is not a PyTorch state dict: {str(error).partition(chr(10))[0][:200]}"
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            # PyTorch's own message advises to load the file anyway, which would run its code.
            reason = "holds objects besides tensors, which could run code, or is damaged"
        raise UsageError(f"{path} {reason}; {expected}") from None
    if not isinstance(state, dict):
        raise UsageError(f"{path} holds a {type(state).__name__}; {expected}")
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise UsageError(f"{path} has the key {str(name)[:40]}, which is no name; {expected}")
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
                kind = f"{value.dtype} tensor of layout {value.layout}"
                raise UsageError(f"{path}: {name} is a {kind}; expected a dense one of real numbers")
            if value.nbytes > max(_SMALL_BYTES, value.untyped_storage().nbytes()):
                shape = " x ".join(map(str, value.shape))
                raise UsageError(
                    f"{path}: {name} has the shape {shape}, of far more numbers than are stored; {expected}"
                )
            tensors[name] = (value.float() if value.is_floating_point() else value).detach().numpy()
    return tensors


def _read_ours(folder: Path, config: Config | None) -> Checkpoint:
    """Read a folder that `training/checkpoints.py` wrote; raise `UsageError` where its files were changed since."""
    try:
        found = checkpoints.read_state(folder, groups=("model",))
    except checkpoints.CorruptCheckpointError as error:
        raise UsageError(f"{error}; take another step") from None
    values = found.config
    if not found.tensors:
        raise UsageError(f"{folder} holds no {_OUR_TENSORS} that its {_OUR_STATE} names; take another step")
    tensors = {name.removeprefix("model/"): value for name, value in found.tensors.items()}
    if config is None and values:
        unknown = values.keys() - {field.name for field in dataclasses.fields(Config)}
        if unknown:
            raise UsageError(f"{folder / _OUR_STATE}: config has the unknown key {min(unknown)!r}; give --config_file")
        try:
            config = Config.from_json(values)
        except UsageError as error:
            raise UsageError(f"the config in {folder / _OUR_STATE}: {error}") from None
    return Checkpoint(_as_float32(tensors, folder), config, "ours", [], folder)


def _read_tf1(prefix: Path, config: Config | None) -> Checkpoint:
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(prefix))
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{prefix} is not a whole TF 1 checkpoint: {reason}") from None
    names = sorted(reader.get_variable_to_shape_map())
    naming = _require_naming(names, prefix)
    named = {}
    for name in names:
        if naming.canonical(name) is not None:
            try:
                named[name] = reader.get_tensor(name)
            except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
                reason = str(error).partition("\n")[0]
                raise UsageError(f"cannot read {name} of {prefix}: {reason}; is {prefix}.data-* whole?") from None
    skipped = [name for name in names if name not in named]
    checkpoint = _renamed(named, config, prefix)
    found = config or _config_beside(prefix.parent, checkpoint.tensors)
    if found is not None and found.family == naming.family:
        found = dataclasses.replace(found, **naming.implies(checkpoint.tensors))
    return dataclasses.replace(checkpoint, config=found, unused=sorted([*checkpoint.unused, *skipped]))


def _require_naming(names: list[str], where: Path) -> Naming:
    naming = namings.naming_of(names)
    if naming is None:
        raise UsageError(
            f"no known layout in {where}: it has {_few(names)}; expected BERT, ALBERT or albert_zh of TF 1, or "
            "BERT, ALBERT or RoBERTa of transformers"
        )
    return naming


def _renamed(named: Mapping[str, np.ndarray], config: Config | None, where: Path) -> Checkpoint:
    """Return foreign tensors under our names; raise `UsageError` for a backbone tensor without a place, or untied."""
    naming = _require_naming(sorted(named), where)
    canonical = {name: naming.canonical(name) for name in named}
    by_canonical = {spelt: named[name] for name, spelt in canonical.items() if spelt is not None}
    translation = Translation(naming, _inner_group_num(naming, by_canonical))
    tensors, unused, lost = {}, [name for name, spelt in canonical.items() if spelt is None], []
    for name, spelt in canonical.items():
        if spelt is None:
            continue
        repeated = naming.ties.get(spelt)
        if repeated is not None:
            if repeated in by_canonical and not np.array_equal(by_canonical[repeated], named[name]):
                raise UsageError(f"{name} of {where} differs from {repeated}: an output table of its own has no place")
            unused.append(name)
        elif translation.to_ours(spelt) is not None:
            try:
                tensors |= _as_float32(translation.imported(spelt, named[name]), where)
            except (ValueError, IndexError, TypeError):
                shape = list(named[name].shape)
                raise UsageError(f"{name} of {where} has shape {shape}, which cannot be cut in equal parts") from None
        else:
            (lost if naming.is_backbone(spelt) else unused).append(name)
    if lost:
        raise UsageError(f"{where} looks like {naming.name}, but has no place for {_few(sorted(lost))}")
    _check_tensors(tensors, where)
    # Their graph has these tensors even where they change nothing; the graph here has no variables for that.
    if naming.neutral.keys() <= tensors.keys() and all(
        np.array_equal(tensors[name], neutral(len(tensors[name]))) for name, neutral in naming.neutral.items()
    ):
        tensors = {name: value for name, value in tensors.items() if name not in naming.neutral}
    return Checkpoint(tensors, config, naming.name, sorted(unused), where)


def _check_tensors(tensors: Mapping[str, np.ndarray], where: Path) -> None:
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


def _config_beside(folder: Path, tensors: Mapping[str, np.ndarray]) -> Config | None:
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
