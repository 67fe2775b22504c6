"""A trained model as a SavedModel on ids, which TensorFlow alone loads: written, loaded in a bare process, compared.

    EXPORT/saved_model.pb, variables/   input_ids, attention_mask (token_type_ids) -> what the task predicts, float32
    EXPORT/vocab.txt, ...               the tokenizer's files
    EXPORT/labels.json                  names of the classes, in the order of the outputs
    EXPORT/export.json                  inputs, outputs, tokenizer, template, sizes of all files

Batch and length of the inputs are free. Needs Keras on TensorFlow; `python -m serving.exporting JOB.json` is the whole
of it in a process of its own, for runs on another backend or device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from absl.app import UsageError

from ground.documents import read_json
from ground.outputs import plain_file
from tasks.inputs import IDS, INPUTS, MASK, POSITIONS, TYPES
from tasks.kinds import find_kind, settings_of

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer
    from tasks.run_file import RunFile

Arrays = Mapping[str, np.ndarray]
Samples = Sequence[tuple[Arrays, Arrays]]
"""Batches as a run has them, each with what its weights predicted."""

NAME, LABELS, FORMAT = "export.json", "labels.json", "divan export"
_VERSION = 1
TOLERANCE = {"float32": 1e-4, "mixed_bfloat16": 0.1, "mixed_float16": 0.05}
"""By the precision that a run computed in; the export computes in float32."""
SAVED_MODEL = """
import tensorflow as tf

signature = tf.saved_model.load(path).signatures["serving_default"]


def ask(inputs):
    found = signature(**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in found.items() if value.dtype != tf.string}
"""
"""The beginning of a bare process: how a SavedModel at `path` is asked."""
_ASK = """
import sys
import time

import numpy as np

path, given_file, answered_file, repeats, *further = sys.argv[1:]
sys.path += further
%s

given, found = np.load(given_file), {}
for key in given.files:
    number, name = key.split("/")
    found.setdefault(number, {})[name] = given[key]
answers = {}
for number, inputs in found.items():
    answers |= {f"{number}/{name}": value for name, value in ask(inputs).items()}
    times = [time.perf_counter()]
    for _ in range(int(repeats)):
        ask(inputs)
        times.append(time.perf_counter())
    if len(times) > 1:
        answers[f"{number}/seconds"] = np.median(np.diff(times))
np.savez(answered_file, **answers)
"""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: of the export.
        num_bytes: of all files.
        examples: whose answers were compared; of several rows each counts.
        difference: the largest, relative to 1 + the answer.
    """

    folder: Path
    num_bytes: int
    examples: int
    difference: float


class _ExportShape(TypedDict):
    format: str
    files: dict[str, int]
    inputs: dict[str, list[int | None]]


class _JobShape(TypedDict):
    run_folder: str
    weights: str
    samples: str
    target: str


def is_export(folder: Path) -> bool:
    """Return whether a folder is an export of ours, and holds nothing else: `export.json` has each file by its size."""
    try:
        content = read_json(folder / NAME, _ExportShape, what="an export.json")
    except (OSError, UsageError):
        return False
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    sizes = content["files"]
    listed = {*files} - {NAME} == {*sizes} and all(plain_file(files[name], size) for name, size in sizes.items())
    return content["format"] == FORMAT and listed


def inputs_of(content: RunFile) -> dict[str, list[int | None]]:
    """Return the inputs of the SavedModel of a run with their shapes; None for an axis that is free.

    Raises `UsageError` for a run whose answers are not of one pass over ids.
    """
    if content.kind == "generation":
        raise UsageError("only runs of run_classifier.py are written as a SavedModel on ids")
    pairs = content.kind in ("matching", "mining") or (content.row is not None and content.row.plug_in)
    rows: list[int | None] = [2] if pairs else [None] if content.kind == "choice" else []
    has_types = content.config.type_vocab_size > 1
    return {
        name: [None, *rows, None] for name, ours in INPUTS.items() if ours != POSITIONS and (has_types or ours != TYPES)
    }


def write_export(
    folder: Path,
    task: Any,
    model: Any,
    tokenizer: Tokenizer,
    content: RunFile,
    inputs: Mapping[str, list[int | None]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the SavedModel and what belongs to it into the empty `folder`; the model computes in float32.

    `inputs` are by default those of `inputs_of`.
    """
    import tensorflow

    from modeling.fusion import plain

    tf: Any = tensorflow
    shapes = inputs or inputs_of(content)

    class Served(tf.Module):
        """The model and the function that answers."""

        def __init__(self):
            super().__init__()
            self.model = model
            self.whole = whole(model)

        @tf.function(autograph=False, input_signature=[tf.TensorSpec(shapes[name], tf.int32, name) for name in shapes])
        def answers(self, *inputs: Any) -> dict[str, Any]:
            features = {INPUTS[name]: value for name, value in zip(shapes, inputs, strict=True)}
            features.setdefault(TYPES, tf.zeros_like(features[IDS]))
            return dict(task.predictions(self.whole, features))

    served = Served()
    with plain():
        tf.saved_model.save(served, str(folder), signatures=served.answers)
        outputs = served.answers.get_concrete_function().structured_outputs
    shown = {name: value.shape.as_list() for name, value in sorted(outputs.items())}
    describe_export(folder, content, tokenizer, shapes, shown, settings or {})


def whole(model: Any) -> Any:
    """Return the model as a function that computes all of it, whatever is asked for.

    Heads that read the first position alone have a shorter way, whose last layer needs a known length.
    """
    return lambda features, training=False, scores_only=False: model(features, training=training)


def describe_export(
    folder: Path,
    content: RunFile,
    tokenizer: Tokenizer,
    inputs: Mapping[str, Sequence[int | None]],
    outputs: Mapping[str, Sequence[int | None]],
    settings: Mapping[str, Any],
    **further: Any,
) -> None:
    """Write the tokenizer's files, the names of the classes, and `export.json`, which lists what lies in `folder`.

    `settings` decide answers beside the weights; with row and config they let `serving.load` open the export.
    """
    names = [path.name for path in tokenizer.save(folder)]
    described = describe(content, tokenizer, names) | {"inputs": inputs, "outputs": outputs, "settings": settings}
    described |= further
    if described["labels"]:
        _write_json(folder / LABELS, described["labels"])
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    _write_json(folder / NAME, described | {"files": dict(sorted(files.items()))})


def add_measured(folder: Path, measured: Sequence[Mapping[str, Any]]) -> None:
    """Write into `export.json` what was measured of each model: bytes, seconds, differences and scores."""
    content = read_json(folder / NAME, dict[str, Any], what="an export.json")
    _write_json(folder / NAME, content | {"measured": measured})


def describe(content: RunFile, tokenizer: Tokenizer, files: Sequence[str]) -> dict[str, Any]:
    """Return what whoever makes inputs and reads outputs has to know; `files` are the tokenizer's."""
    row, template = content.row, tokenizer.template
    known = dataclasses.asdict(content.tokenizer)
    parts_of = None if row is None else getattr(find_kind(row.kind), "parts_of_row", None)
    return {
        "format": FORMAT,
        "version": _VERSION,
        "task": row.name if row is not None else "",
        "row": None if row is None else dataclasses.asdict(row),
        "kind": content.kind,
        "labels": list(class_names(content)),
        "threshold": row.threshold if row is not None else None,
        "config": dataclasses.asdict(content.config),
        "max_seq_length": content.tokenizer.max_seq_length,
        "tokenizer": {name: known[name] for name in ("fingerprint", "do_lower_case", "segmentation")}
        | {"files": files},
        "template": {**dataclasses.asdict(template), "pad": tokenizer.pad_id},
    } | ({} if parts_of is None else {"parts": parts_of(row, tokenizer)})


def class_names(content: RunFile) -> tuple[str, ...]:
    """Return what the numbers of a run's classes mean: labels, of a tagger the tags of its types of entities."""
    if content.row is None:
        return ()
    if content.row.kind != "tagging":
        return content.row.labels
    from tasks.kinds.tagging import tag_names

    return tuple(tag_names(content.row.labels))


def answers_of(folder: Path, samples: Samples) -> dict[str, np.ndarray]:
    """Return the answers of an export, as NUMBER/NAME, in a process with TensorFlow alone; raises `UsageError`."""
    names = read_json(folder / NAME, _ExportShape, what="an export.json")["inputs"]
    return asked(SAVED_MODEL, folder, [{name: each[INPUTS[name]] for name in names} for each, _ in samples])


def asked(
    ask: str,
    path: Path,
    given: Sequence[Arrays],
    *,
    what: str = "the SavedModel cannot be used by TensorFlow alone",
    repeats: int = 0,
    packages: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Return the answers of what was written, as NUMBER/NAME, in a bare process that knows nothing of this project.

    Args:
        ask: Python that defines `ask(inputs)` for what lies at `path`.
        path: of it.
        given: the inputs of each sample.
        what: the beginning of the message where it fails.
        repeats: how often more each sample is asked; their median is NUMBER/seconds.
        packages: that the process needs; it finds them where this one does.

    Raises:
        UsageError: the process failed.
    """
    found = (importlib.util.find_spec(name) for name in packages)
    places = [str(Path(spec.origin).parent.parent) for spec in found if spec is not None and spec.origin]
    with tempfile.TemporaryDirectory() as scratch:
        given_file, answered = Path(scratch) / "given.npz", Path(scratch) / "answered.npz"
        _save_arrays(given_file, {f"{n}/{name}": value for n, each in enumerate(given) for name, value in each.items()})
        arguments = [str(path.resolve()), str(given_file), str(answered), str(repeats), *places]
        done = subprocess.run(
            [sys.executable, "-I", "-c", _ASK % ask, *arguments],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["it ended"])[-1]
            raise UsageError(f"{what}, so none of it is kept: {why[:500]}")
        return dict(np.load(answered))


def compare(found: Arrays, samples: Samples, tolerance: float, *, what: str = "the SavedModel") -> float:
    """Return how far answers, as NUMBER/NAME, are from the run's, at most; raises `UsageError` where it is too far."""
    worst = 0.0
    for number, (_, wanted) in enumerate(samples):
        for name, value in wanted.items():
            apart = np.abs(found[f"{number}/{name}"].astype(np.float64) - value) / (1 + np.abs(value))
            worst = max(worst, float(np.max(np.where(np.isfinite(apart), apart, np.inf), initial=0.0)))
    if worst > tolerance:
        raise UsageError(
            f"{what}'s answers are {worst:.1e} from the run's, {tolerance:.0e} is allowed: none of it is kept"
        )
    return worst


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that takes its place at the end; on an error nothing changes.

    Raises `UsageError` where something lies there that is no export.
    """
    if target.exists() and not is_export(target):
        raise UsageError(
            f"{target} exists and is no export of ours: its {NAME} does not list what it holds; move it away"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if target.exists():
            former = folder.with_suffix(".old")
            target.replace(former)
            folder.replace(target)
            shutil.rmtree(former)
        else:
            folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def export_run(run_folder: Path, weights: Path, target: Path, samples: Samples) -> Exported:
    """Write the run of a folder with the weights of a checkpoint to `target`, once its answers are those of the run.

    Raises `UsageError` where they are not; what lay at `target` then stays.
    """
    from conversion.loading import load_into
    from conversion.readers import read_checkpoint
    from tasks.run_file import RunFile

    content = RunFile.read(run_folder)
    inputs_of(content)
    tolerance = TOLERANCE[content.computation.get("dtype", "float32")]
    plain = {"dtype": "float32", "seed": 0, "remat": False, "scan": False}
    task = dataclasses.replace(content, computation=plain).task()
    model = task.build_model()
    load_into(model, read_checkpoint(weights, config=content.config))
    with replacing(target) as folder:
        settings = settings_in(run_folder, find_kind(content.kind))
        write_export(folder, task, model, content.tokenizer.load(run_folder), content, settings=settings)
        difference = compare(answers_of(folder, samples), samples, tolerance)
        # Of the rows that fill up a batch none has a token.
        examples = sum(int(np.any(features[MASK], axis=-1).sum()) for features, _ in samples)
        size = sum(path.stat().st_size for path in _files(folder))
    return Exported(target, size, examples, difference)


def save_samples(path: Path, samples: Samples) -> None:
    """Write samples as a file that `load_samples` reads."""
    flat = {
        f"{n}/{part}/{name}": value
        for n, pair in enumerate(samples)
        for part, arrays in enumerate(pair)
        for name, value in arrays.items()
    }
    _save_arrays(path, flat)


def load_samples(path: Path) -> Samples:
    """Return what `save_samples` wrote."""
    pairs: dict[int, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    for key, value in np.load(path).items():
        number, part, name = key.split("/")
        pairs.setdefault(int(number), ({}, {}))[int(part)][name] = value
    return [pairs[number] for number in sorted(pairs)]


def settings_in(folder: Path, kind: Any) -> dict[str, Any]:
    """Return the values of a run's flags that decide how a kind answers; none where its config.json is not there."""
    if not (folder / "config.json").is_file():
        return {}
    flags = read_json(folder / "config.json", dict[str, Any], what="a config.json", fix="restore it, or delete it")
    return {name: flags[name] for name in settings_of(kind) if name in flags}


def _save_arrays(path: Path, arrays: Arrays) -> None:
    save: Any = np.savez  # whose keywords are the names of the arrays, but for one
    save(path, **arrays)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(job_file: str) -> int:
    """Do the job that a JSON file describes; print what was made as JSON, or one line on stderr and return 2."""
    try:
        job = read_json(job_file, _JobShape, what="a job of exporting")
        samples = load_samples(Path(job["samples"]))
        made = export_run(Path(job["run_folder"]), Path(job["weights"]), Path(job["target"]), samples)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({**dataclasses.asdict(made), "folder": str(made.folder)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
