"""--do_export: the weights that a run is scored with as a SavedModel, made by a process of its own on TensorFlow.

So a run on JAX, or on a GPU whose memory is taken, is exported like any other; see `serving.exporting`.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from ground.documents import parse_json

if TYPE_CHECKING:
    from commands.session import Session
    from tasks.splits import Splits

FOLDER = "export"
_BATCHES = 4
_ROOT = Path(__file__).resolve().parent.parent


def target_of(options: Any) -> Path:
    """Return the folder that the export becomes."""
    return Path(options.export_model_dir or options.output_dir) / FOLDER


def check(session: Session, options: Any) -> None:
    """Raise `UsageError` where --do_export could not be done at the end, before anything is trained."""
    if not options.do_export:
        return
    from ground.outputs import Target, check_outputs
    from serving.exporting import NAME, is_export

    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError("--do_export writes a SavedModel, which needs TensorFlow: install it, or leave the flag out")
    if session.devices.processes.count > 1:
        raise UsageError(
            f"--do_export in {session.devices.processes.count} processes: leave it out, and give it alone, without "
            "--do_train, to one process afterwards"
        )
    proof = f"its {NAME} does not list what it holds"
    reads = {"--init_checkpoint": [options.init_checkpoint], "--data_dir": [options.data_dir or None]}
    check_outputs(reads, [Target(target_of(options), "--export_model_dir", is_export, proof, folder=True)])


def export(session: Session, options: Any, splits: Splits) -> None:
    """Write the present weights; print where, how large, and how near its answers are to the run's.

    Raises:
        UsageError: the answers of the SavedModel are not those of the run; nothing is written then.
    """
    import numpy as np

    from conversion.writers import write_ours
    from ground.tensors import named_variables
    from serving.exporting import save_samples

    split, batches = chosen_batches(splits, options.eval_batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        predicted = [
            {name: np.asarray(value) for name, value in each.items()} for each in session.engine.predict(iter(batches))
        ]
        save_samples(folder / "samples.npz", list(zip(batches, predicted, strict=True)))
        with session.engine.evaluated_weights():
            tensors = {name: np.asarray(value) for name, value in named_variables(session.engine.model).items()}
        write_ours(folder / "weights", session.config, tensors)
        job = {
            "run_folder": options.output_dir,
            "weights": str(folder / "weights"),
            "samples": str(folder / "samples.npz"),
            "target": str(target_of(options)),
        }
        made = done_by_itself({name: os.path.abspath(path) for name, path in job.items()}, folder)  # noqa: PTH100
    session.say(
        f"exported to {target_of(options)}: {made['num_bytes'] / 2**20:,.1f} MiB; loaded by TensorFlow alone, its "
        f"answers to {made['examples']:,} rows of {split} are at most {made['difference']:.0e} from the run's"
    )


def chosen_batches(splits: Splits, batch_size: int) -> tuple[str, Sequence[Any]]:
    """Return a split, development if there is one, and a few of its batches from the shortest to the longest."""
    split = next((name for kind in ("dev", "test", "train") for name in splits.datasets if name.startswith(kind)), None)
    if split is None:
        raise UsageError("--do_export: no file to compare its answers on; give --data_dir with development examples")
    dataset = splits.datasets[split]
    count = sum(1 for _ in dataset.evaluation_batches(batch_size))
    wanted = {round(n * (count - 1) / max(_BATCHES - 1, 1)) for n in range(_BATCHES)}
    batches = itertools.islice(dataset.evaluation_batches(batch_size), count)
    return split, [batch for number, batch in enumerate(batches) if number in wanted]


def done_by_itself(job: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run `serving.exporting` on TensorFlow and a CPU; return what it says, or raise `UsageError` with its one line."""
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TF_CONFIG", None)
    done = subprocess.run(
        [sys.executable, "-m", "serving.exporting", str(path)],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UsageError(f"--do_export: {(done.stderr.strip().splitlines() or ['the process ended'])[-1]}")
    answer = (done.stdout.strip().splitlines() or [""])[-1]
    return parse_json(answer, dict[str, Any], where="serving.exporting", what="its answer")
