"""The flags of augment_examples.py; what stands in for the model answers every place with words that follow from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from observing import recorders
from observing.rows import ABSENT, DIFFERENT, Notes, Row, Verb

import augment_examples
import commands.devices
from modeling import declared
from tasks.filling import CLASSES, FORMER

MADE = {"predicted": DIFFERENT, "files": DIFFERENT}
EVERYTHING = dict.fromkeys(("engine", "task", "loaded", "predicted", "files"), DIFFERENT)
PIECES = {"vocab_file": "{world}/pieces.txt", "spm_model_file": "{world}/pieces.model"}

ROWS = (
    Row("task_name", "mirrored", MADE, {"task_file": "{world}/tasks.toml", "task_name": "lcqmc"}),
    Row("task_file", "{world}/tasks.toml", MADE),
    Row("data_dir", "{world}/other_pairs", MADE),
    Row("output_dir", "elsewhere", {"files": DIFFERENT}),
    Row("encoding", "gb18030", {"error": ABSENT, **EVERYTHING}, {"data_dir": "{world}/gb18030_pairs"}),
    Row("init_checkpoint", "{world}/shared", {"loaded": DIFFERENT, "task/config/sharing": "all"}),
    Row(
        "bert_config_file",
        "{world}/relu.json",
        {"task/config/hidden_act": "relu"},
        {"init_checkpoint": "{world}/shared"},
    ),
    Row("vocab_file", "{world}/reversed.txt", MADE),
    Row("spm_model_file", "{world}/spiece.model", MADE),
    Row("segmentation", "ernie_repo", MADE, PIECES),
    Row("do_lower_case", "false", MADE),
    Row("num_copies", "2", MADE),
    Row("mask_share", "0.5", MADE),
    Row("pick", "best", {"task/most": 1, "files": DIFFERENT}),
    Row("top_k", "3", {"task/most": 3, "files": DIFFERENT}),
    Row("seed", "7", {"engine/seed": 7, **MADE}),
    Row("max_seq_length", "16", MADE),
    Row("predict_batch_size", "4", {"engine/batch_size": 4, "predicted": DIFFERENT}),
    Row("backend", "jax", {"engine/backend": "jax"}),
    Row("precision", "bfloat16", {"engine/precision": "bfloat16", "task/dtype": "mixed_bfloat16"}),
)
BASE = {
    "task_name": "lcqmc_pair",
    "data_dir": "{world}/pairs",
    "output_dir": "out",
    "init_checkpoint": "{world}/pretrained",
    "max_seq_length": "40",
}


def replaced(patch: pytest.MonkeyPatch, notes: Notes, machine: str) -> None:
    """Let the verb run to its end without a model's weights."""
    recorders.replaced(patch, notes, machine)

    class Engine:
        def __init__(self, task: Any, options: Any, batch_size: int):
            self.model, self.allowed, self.most = declared(task.build_model), task._allowed_2V, task.most
            told = {"backend": os.environ["KERAS_BACKEND"], "precision": options.precision, "seed": options.seed}
            notes.add("engine", {**told, "batch_size": batch_size})
            notes.add("task", {"most": task.most, "config": task.config, "dtype": task.computation.dtype})

        def predict(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
            seen = list(batches)
            if "predicted" not in notes.seen:
                notes.add("predicted", seen)
            ids = [np.flatnonzero(allowed) for allowed in self.allowed]
            for batch in seen:
                further = batch[FORMER][..., None] * 7 + np.arange(1, self.most + 1) * 3
                found = [each[further % len(each)] if len(each) else further for each in ids]
                candidates = np.where(batch[CLASSES][..., None] == 1, found[1], found[0]).astype(np.int32)
                scores = np.broadcast_to(-0.1 * np.arange(self.most, dtype=np.float32), candidates.shape)
                yield {"candidates": candidates, "scores": scores}

    def predictor(devices: Any, task: Any, options: Any, batch_size: int) -> Any:
        return Engine(task, options, batch_size)

    patch.setattr(commands.devices.Devices, "predictor", predictor)


VERB = Verb(augment_examples, BASE, ROWS, replaced, recorders.content)
