"""--overwrite_output_dir removes what a run has written, and nothing else; no backend is imported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from kind_files import CONFIG as VALUES

from commands.overwriting import remove_former_run
from conversion.writers import write_ours
from modeling.config import Config
from tasks.datasets import find_row
from tasks.run_file import RunFile, TokenizerFile

CONFIG = Config(**VALUES)
OURS = [
    *("run.json", "config.json", "vocab.txt", "metrics.jsonl", "eval_results.json", "eval_results_mismatched.json"),
    *("test_predictions.tsv", "tensorboard/events.out.tfevents.1.host", "submission/MNLI-m.tsv"),
]
FOREIGN = ["notes.txt", "best.txt", "checkpoints/step_7/mine.txt", "tensorboard/mine.txt", "submission/mine.tsv"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    for name in ("best", "checkpoints/step_00000002", "checkpoints/step_00000004"):
        write_ours(folder / name, CONFIG, {"backbone/embeddings/word_embeddings": np.zeros((15, 8), np.float32)})
        (folder / name / ".divan.json").unlink()
    for name in (*OURS, *FOREIGN):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    row = find_row("mnli")
    RunFile(kind="classification", config=CONFIG, computation={}, tokenizer=TokenizerFile(), row=row).write(folder)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_former_run_goes_and_what_is_not_of_it_stays(folder: Path):
    said = remove_former_run(folder, {"--vocab_file": [folder / "vocab.txt"], "--init_checkpoint": [None]})
    # What this run reads stays, under any of its names.
    assert files(folder) == sorted([*FOREIGN, "vocab.txt"])
    assert "the run in" in said
    assert "2 checkpoints among them" in said
    assert remove_former_run(folder, {}) == ""


def test_nothing_goes_where_the_run_reads_the_folder_or_a_checkpoint_holds_something_else(folder: Path):
    before = files(folder)
    with pytest.raises(UsageError, match=r"--overwrite_output_dir would remove what --init_checkpoint=.*/out reads"):
        remove_former_run(folder, {"--init_checkpoint": [folder / "../out"]})
    (folder / "checkpoints/step_00000004/mine.txt").touch()
    with pytest.raises(UsageError, match=r"step_00000004 holds mine\.txt, which no run wrote: move it away"):
        remove_former_run(folder, {})
    assert files(folder) == sorted([*before, "checkpoints/step_00000004/mine.txt"])


def test_a_folder_without_a_run_is_left_alone(tmp_path: Path):
    (tmp_path / "config.json").touch()
    assert remove_former_run(tmp_path, {}) == ""
    assert files(tmp_path) == ["config.json"]


def test_what_proves_the_folder_to_be_a_runs_goes_last(folder: Path, monkeypatch: pytest.MonkeyPatch):
    removed: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, *rest, **more: (removed.append(self.name), unlink(self))[1])
    remove_former_run(folder, {})
    assert removed[-1] == "run.json"
