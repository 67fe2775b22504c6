"""What asking a pretrained model is worth where labels are few: FewCLUE's tasks, each method with as many steps.

    python3 -m examples.few_labels --model=pretraining --vocab_file=vocab.txt --data_dir=fewclue --output_dir=out

trains a new layer, PET, P-Tuning and CP-Tuning on every task with every seed, lets the model answer untrained, and
writes table.md and table.json. Every run is scored once, after its last step: no weights are chosen by the examples
that are scored. Where FewCLUE's five splits are there, give them as --splits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl.app import UsageError

from commands.flags import flag, run, write_config
from examples.steps import Step, check_same, command, results_in, run_steps
from ground.files import write_atomically

TASKS: Mapping[str, int] = {"eprstmt": 2, "tnews": 15, "csl": 2, "bustm": 2, "cluewsc": 2}
"""Task of FewCLUE -> its labels, one of which is right by chance."""
METHODS: Mapping[str, str] = {
    "untrained": "untrained",
    "fine_tuning": "fine-tuning",
    "pet": "PET",
    "p_tuning": "P-Tuning",
    "cp_tuning": "CP-Tuning",
}
SPLITS = ("0", "1", "2", "3", "4", "all")
# A small model on two cores; the pace of steps that are done corrects them.
_STARTUP_SECONDS, _STEPS_PER_SECOND = 15.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare methods for few labels on FewCLUE: train each with several seeds, write one table."""

    model: str = flag(help="folder of a pretrained model with the head of masked words")
    data_dir: str = flag(help="folder that has a folder of files for every task, called as the task is: tnews ...")
    output_dir: str = flag(help="folder for all that is made; a run that finds its own goes on")
    vocab_file: str | None = flag(None, help="WordPiece vocabulary, where none lies in the folder of the model")
    tasks: tuple[str, ...] = flag(("tnews", "csl", "bustm", "cluewsc"), help="of FewCLUE", choices=tuple(TASKS))
    methods: tuple[str, ...] = flag(tuple(METHODS), help="columns of the table", choices=tuple(METHODS))
    splits: tuple[str, ...] = flag(("all",), help="of the training examples, as FewCLUE calls them", choices=SPLITS)
    seeds: tuple[int, ...] = flag((1, 2, 3, 4, 5), help="of training, each once for every task, method and split")
    dry_run: bool = flag(False, help="only list the commands that are left to run, and about how long they take")
    max_seq_length: int = flag(128, help="longer inputs are cut", unit="tokens", minimum=4)
    num_train_steps: int = flag(200, help="of every run, whatever the method", unit="steps", minimum=1)
    train_batch_size: int = flag(16, help="of every run", unit="examples", minimum=4)
    learning_rate: float = flag(2e-4, help="peak learning rate of every run", minimum=0)
    precision: str = flag("float32", help="compute precision", choices=("float32", "bfloat16"))


_GROWING = ("output_dir", "tasks", "methods", "splits", "seeds", "dry_run")


def main(options: Options) -> int:
    """Run all steps that are left; return the exit status of the first that fails."""
    if not Path(options.model).is_dir():
        raise UsageError(f"--model={options.model} is no folder; give that of a pretrained model")
    check_same(options, _GROWING)
    folder = Path(options.output_dir)
    if not options.dry_run:
        write_config(options, folder / "config.json")
    status = run_steps("few_labels", plan(options), folder, lambda: write_tables(options), dry_run=options.dry_run)
    if not status and not options.dry_run:
        print("\n" + write_tables(options), end="")
    return status


def plan(options: Options) -> list[Step]:
    """Return all steps in order, those that are done too."""
    return [
        step(options, task, split, method)
        for task in options.tasks
        for split in options.splits
        for method in options.methods
    ]


def products(options: Options, task: str, split: str, method: str) -> dict[int, Path]:
    """Return the scores of every seed; what is not trained has one run, of seed 0."""
    folder = Path(options.output_dir) / method / f"{task}_{split}"
    if method == "untrained":
        return {0: folder / "eval_results.json"}
    return {seed: folder / f"seed_{seed}" / "eval_results.json" for seed in options.seeds}


def step(options: Options, task: str, split: str, method: str) -> Step:
    """Return the step that trains a method on a task with every seed that is left, and scores it."""
    paths = products(options, task, split, method)
    left = [seed for seed, path in paths.items() if not path.is_file()] or list(paths)
    trains = method != "untrained"
    flags: dict[str, object] = {
        "task_name": f"fewclue_{task}_{split}",
        "data_dir": Path(options.data_dir) / task,
        "init_checkpoint": options.model,
        **({"vocab_file": options.vocab_file} if options.vocab_file else {}),
        "output_dir": Path(options.output_dir) / method / f"{task}_{split}",
        **({} if method == "fine_tuning" else {"method": method if trains else "pet"}),
        "do_train": trains,
        "do_eval": True,
        "max_seq_length": options.max_seq_length,
        "precision": options.precision,
    }
    if trains:
        flags |= {
            "train_batch_size": options.train_batch_size,
            "num_train_steps": options.num_train_steps,
            "learning_rate": options.learning_rate,
            "adam_bias_correction": True,
            "save_checkpoints_steps": 1_000_000,
            "keep_checkpoint_max": 1,
            "seeds": ",".join(map(str, left)),
        }
    seconds = len(left) * (_STARTUP_SECONDS + trains * options.num_train_steps / _STEPS_PER_SECOND)
    return Step(f"{method} {task} {split}", command("run_classifier", flags), list(paths.values()), seconds)


# -- the table ---------------------------------------------------------------------------------------------------------


def write_tables(options: Options) -> str:
    """Write table.json and table.md from what is done so far; return the latter."""
    from tasks.metrics import mean_and_deviation

    folder = Path(options.output_dir)
    content: dict[str, dict[str, Any]] = {}
    for task in options.tasks:
        content[task] = {"chance": 1 / TASKS[task]}
        for method in options.methods:
            runs = {
                f"{split}/{seed}": found["accuracy"]
                for split in options.splits
                for seed, path in products(options, task, split, method).items()
                if (found := results_in(path))
            }
            if runs:
                mean, deviation = mean_and_deviation([{"score": score} for score in runs.values()])["score"]
                content[task][method] = {"mean": mean, "deviation": deviation, "runs": runs}
    text = markdown(options, content)
    write_atomically(folder / "table.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "table.md", text)
    return text


def markdown(options: Options, content: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = ["| accuracy | by chance | " + " | ".join(METHODS[method] for method in options.methods) + " |"]
    lines.append("|---" * (2 + len(options.methods)) + "|")
    for task, row in content.items():
        cells = [_cell(row[method]) if method in row else "" for method in options.methods]
        lines.append(f"| {task} | {row['chance']:.3f} | " + " | ".join(cells) + " |")
    of = f"splits {', '.join(options.splits)} and seeds {', '.join(map(str, options.seeds))}"
    return "\n".join(lines) + f"\n\nMean and deviation over {of}, {options.num_train_steps:,} steps each.\n"


def _cell(scores: Mapping[str, Any]) -> str:
    several = len(scores["runs"]) > 1
    return f"{scores['mean']:.3f}" + (f" ± {scores['deviation']:.3f}" if several else "")


if __name__ == "__main__":
    run(main, Options)
