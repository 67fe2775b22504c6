"""A run folder opened without flags: its task, its tokenizer and a model that has its best weights.

run = open_run("my_lcqmc_model")
logits = run.model(features)["logits"]
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conversion.loading import load_into
from conversion.readers import read_checkpoint
from tasks.run_file import RunFile

if TYPE_CHECKING:
    import keras

    from data.tokenizers import Tokenizer


@dataclass(frozen=True)
class OpenRun:
    """What a run has made.

    Attributes:
        folder: of the run.
        content: what `run.json` says.
        task: that was trained, a `training.engine.Task`.
        model: with the best weights, else the newest.
    """

    folder: Path
    content: RunFile
    task: Any
    model: keras.Model

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the run was made with; raises `UsageError` where the folder lacks its file."""
        return self.content.tokenizer.load(self.folder)


def open_run(folder: str | Path, *, dtype: str | None = None) -> OpenRun:
    """Open the output folder of a training verb; the backend is the one that Keras has.

    Args:
        folder: the --output_dir of a run.
        dtype: Keras policy of the model; by default the run's own.

    Raises:
        UsageError: the folder is none of a run, holds no weights, or weights that do not fit.
    """
    folder = Path(folder)
    content = RunFile.read(folder)
    if dtype is not None:
        content = dataclasses.replace(content, computation={**content.computation, "dtype": dtype})
    task = content.task()
    model = task.build_model()
    load_into(model, read_checkpoint(folder, config=content.config, prefer_best=True))
    return OpenRun(folder, content, task, model)
