"""Find the checkpoint that a person means: a run's folder, a step, a TF 1 prefix, a folder or a file of PyTorch.

Differs from the originals in that every way to name a checkpoint is taken: TF 1's prefix, its `.index`, `.meta` or data
file, its `checkpoint` file, or the folder.
"""

import re
from pathlib import Path

from absl.app import UsageError

from conversion.sources import obtain
from ground.files import check_plain
from ground.words import few_names

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pdparams")
_OUR_TENSORS, _OUR_STATE = "model*.safetensors", "state.json"
_TRANSFORMERS_TENSORS = ("model.safetensors", "pytorch_model.bin")
_STEP_FOLDER = re.compile(r"step_(\d+)")
_RANKS = re.compile(r"mp_rank_\d+_model_states\.(pt|safetensors)")
_ACCEPTED = (
    "a run's output folder, a step_* folder, a TF 1 checkpoint (prefix, .index or folder), a transformers folder, "
    "a .safetensors or a .bin file, an .index.json of several, a folder of mp_rank_*_model_states files, an archive of "
    "one of them, or its http(s) address"
)


def locate(path: str | Path, *, prefer_best: bool = False) -> tuple[str, Path]:
    """Resolve what a person may pass to a kind and the path of what holds the tensors; raises `UsageError`.

    Kinds: "ours" (a folder), "tf1" (a prefix), "file" (safetensors or PyTorch), "index" (of several files), "ranks" (a
    folder with a file for each process of a model-parallel run).
    """
    path = obtain(path)
    if path.is_dir():
        return _locate_in_folder(path, prefer_best)
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(path))
    if Path(f"{prefix}.index").exists():
        return "tf1", Path(prefix)
    if path.is_file():
        if _RANKS.fullmatch(path.name):
            return "ranks", path.parent
        if path.suffix in SUFFIXES:
            return "file", path
        if path.name.endswith(".index.json"):
            return "index", path
        if path.name == "checkpoint":
            return _locate_in_folder(path.parent, prefer_best)
    hint = f"; the folder has {_content(path.parent)}" if path.parent.is_dir() else ""
    reason = "is not a checkpoint" if path.exists() else "does not exist"
    raise UsageError(f"checkpoint {path} {reason}{hint}; expected {_ACCEPTED}")


def _locate_in_folder(folder: Path, prefer_best: bool) -> tuple[str, Path]:
    found = _our_folder(folder, prefer_best)
    if found is not None:
        return "ours", found
    for name in _TRANSFORMERS_TENSORS:
        for kind, path in (("file", folder / name), ("index", folder / f"{name}.index.json")):
            if path.exists():
                return kind, path
    if any(_RANKS.fullmatch(entry.name) for entry in folder.iterdir()):
        return "ranks", folder
    below = [entry for entry in folder.iterdir() if entry.is_dir() and any(entry.glob("mp_rank_*_model_states.*"))]
    if len(below) == 1:
        return "ranks", below[0]
    return _locate_by_suffix(folder)


def _our_folder(folder: Path, prefer_best: bool) -> Path | None:
    """Return the folder of ours itself, its best or its newest step; None for a folder of another kind."""
    if (folder / _OUR_STATE).exists() and any(folder.glob(_OUR_TENSORS)):
        return folder
    runs = [folder / "checkpoints", folder]
    steps = [p for run in runs if run.is_dir() for p in run.iterdir() if _STEP_FOLDER.fullmatch(p.name)]
    best = folder / "best"
    if (best / _OUR_STATE).exists() and (prefer_best or not steps):
        return best
    return max(steps, key=lambda p: int(p.name.removeprefix("step_")), default=None)


def _locate_by_suffix(folder: Path) -> tuple[str, Path]:
    indices = sorted(folder.glob("*.index"))
    if (folder / "checkpoint").exists() and indices:
        # State files in published archives name paths of their author's machine, so only the last part is looked at.
        named = re.search(r'^model_checkpoint_path: *"(.*)"', _state_text(folder / "checkpoint"), re.MULTILINE)
        prefix = folder / Path(named[1]).name if named else folder
        if Path(f"{prefix}.index").exists():
            return "tf1", prefix
    if len(indices) == 1:
        return "tf1", indices[0].with_suffix("")
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES)
    if not indices and len(files) == 1:
        return "file", files[0]
    candidates = [p.name for p in (indices or files)]
    if candidates:
        raise UsageError(
            f"{folder} holds several checkpoints and nothing says which: {few_names(candidates)}; name one"
        )
    raise UsageError(f"no checkpoint in {folder}, which holds {_content(folder)}; expected {_ACCEPTED}")


def _content(folder: Path) -> str:
    return few_names(sorted(entry.name for entry in folder.iterdir()))


def _state_text(path: Path) -> str:
    """Return TF 1's list of checkpoints; of a binary file what looks like text, which names none."""
    with check_plain(path).open("rb") as stream:
        return stream.read(2**20).decode(errors="replace")
