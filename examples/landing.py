"""EasyNLP's landing table at equal updates: what a small model gains by a teacher, by more rows, and by both.

    python3 -m examples.landing --teacher_model=large --student_model=small --vocab_file=vocab.txt \
      --task_name=chnsenticorp --data_dir=chnsenticorp --output_dir=out

fine-tunes the teacher, writes more rows with it, trains the small model alone, on more rows, with the teacher and with
both, with every seed and the same number of steps, measures how long teacher and student take for a text, and writes
table.md and table.json. Every run is scored once, after its last step. In EasyNLP's own table the student with a
teacher also sees ten times the rows, so that nobody knows which of them helps.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl.app import UsageError

from commands.flags import flag, run, write_config
from examples.steps import Step, check_same, command, results_in, run_steps
from ground.files import write_atomically
from ground.outputs import RECORD

STUDENTS: Mapping[str, str] = {
    "alone": "small model alone",
    "more_rows": "+ more rows",
    "taught": "+ teacher",
    "both": "+ both",
}
# On two cores; the pace of steps that are done corrects them.
_STARTUP_SECONDS, _TEACHER_STEPS_PER_SECOND, _STEPS_PER_SECOND = 20.0, 0.5, 5.0
_MEASURED_TEXTS, _ROUNDS = 50, 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare a small model alone, with more rows, with a teacher and with both: one command, one table."""

    teacher_model: str = flag(help="folder of the large pretrained model, with the head of masked words")
    student_model: str = flag(help="folder of the small pretrained model, of the same vocabulary")
    task_name: str = flag(help="a row of tasks/datasets.toml, of classes of texts")
    data_dir: str = flag(help="folder of the task's files")
    output_dir: str = flag(help="folder for all that is made; a run that finds its own goes on")
    vocab_file: str | None = flag(None, help="WordPiece vocabulary, where none lies in the folders of the models")
    students: tuple[str, ...] = flag(tuple(STUDENTS), help="rows of the table", choices=tuple(STUDENTS))
    seeds: tuple[int, ...] = flag((1, 2, 3), help="of the students, each once for every row")
    dry_run: bool = flag(False, help="only list the commands that are left to run, and about how long they take")
    metric: str = flag("accuracy", help="score of the development file that the table shows")
    max_seq_length: int = flag(128, help="longer inputs are cut", unit="tokens", minimum=4)
    teacher_steps: int = flag(1000, help="of the teacher", unit="steps", minimum=1)
    teacher_learning_rate: float = flag(5e-5, help="peak learning rate of the teacher", minimum=0)
    num_train_steps: int = flag(3000, help="of every student", unit="steps", minimum=1)
    learning_rate: float = flag(1e-4, help="peak learning rate of every student", minimum=0)
    train_batch_size: int = flag(32, help="of every run", unit="examples", minimum=4)
    num_copies: int = flag(10, help="of each row that are written, where rows are more", minimum=1)
    mask_share: float = flag(0.25, help="share of the words that are written anew", minimum=0, maximum=1)
    distillation_weight: float = flag(0.5, help="share of the teacher's decisions", minimum=0, maximum=1)
    distillation_temperature: float = flag(2.0, help="by which logits are divided", minimum=1)
    precision: str = flag("float32", help="compute precision", choices=("float32", "bfloat16"))


_GROWING = ("output_dir", "students", "seeds", "dry_run")


def main(options: Options) -> int:
    """Run all steps that are left; return the exit status of the first that fails."""
    for name in ("teacher_model", "student_model"):
        if not Path(getattr(options, name)).is_dir():
            raise UsageError(f"--{name}={getattr(options, name)} is no folder; give that of a pretrained model")
    check_same(options, _GROWING)
    folder = Path(options.output_dir)
    if not options.dry_run:
        write_config(options, folder / "config.json")
    status = run_steps("landing", plan(options), folder, lambda: write_tables(options), dry_run=options.dry_run)
    if not status and not options.dry_run:
        measure(options)
        print("\n" + write_tables(options), end="")
    return status


def plan(options: Options) -> list[Step]:
    """Return all steps in order, those that are done too."""
    return [
        teacher_step(options),
        augmenting_step(options),
        *(student_step(options, name) for name in options.students),
    ]


def shared_flags(options: Options) -> dict[str, object]:
    """Return the flags of every command."""
    given: dict[str, object] = {
        "task_name": options.task_name,
        "max_seq_length": options.max_seq_length,
        "precision": options.precision,
    }
    return given | ({"vocab_file": options.vocab_file} if options.vocab_file else {})


def training_flags(options: Options, steps: int, rate: float) -> dict[str, object]:
    """Return the flags of a training run that is scored once, after its last step."""
    return {
        **shared_flags(options),
        "do_train": True,
        "do_eval": True,
        "train_batch_size": options.train_batch_size,
        "num_train_steps": steps,
        "learning_rate": rate,
        "adam_bias_correction": True,
        "save_checkpoints_steps": 1_000_000,
        "keep_checkpoint_max": 1,
    }


def teacher_step(options: Options) -> Step:
    """Return the step that fine-tunes the teacher."""
    folder = Path(options.output_dir) / "teacher"
    flags = {
        **training_flags(options, options.teacher_steps, options.teacher_learning_rate),
        "data_dir": options.data_dir,
        "init_checkpoint": options.teacher_model,
        "output_dir": folder,
    }
    seconds = _STARTUP_SECONDS + options.teacher_steps / _TEACHER_STEPS_PER_SECOND
    return Step("teacher", command("run_classifier", flags), [folder / "eval_results.json"], seconds)


def augmenting_step(options: Options) -> Step:
    """Return the step that writes more rows with the pretrained teacher."""
    folder = Path(options.output_dir) / "rows"
    flags = {
        **shared_flags(options),
        "data_dir": options.data_dir,
        "init_checkpoint": options.teacher_model,
        "output_dir": folder,
        "num_copies": options.num_copies,
        "mask_share": options.mask_share,
    }
    return Step("rows", command("augment_examples", flags), [folder / RECORD], 60.0 * options.num_copies)


def products(options: Options, student: str) -> dict[int, Path]:
    """Return the scores of every seed."""
    return {seed: Path(options.output_dir) / student / f"seed_{seed}" / "eval_results.json" for seed in options.seeds}


def student_step(options: Options, student: str) -> Step:
    """Return the step that trains a student with every seed that is left."""
    paths, folder = products(options, student), Path(options.output_dir)
    left = [seed for seed, path in paths.items() if not path.is_file()] or list(paths)
    taught = {
        "teacher": folder / "teacher",
        "cached_teacher": True,
        "distillation_weight": options.distillation_weight,
        "distillation_temperature": options.distillation_temperature,
    }
    flags = {
        **training_flags(options, options.num_train_steps, options.learning_rate),
        "data_dir": folder / "rows" if student in ("more_rows", "both") else options.data_dir,
        "init_checkpoint": options.student_model,
        "output_dir": folder / student,
        "seeds": ",".join(map(str, left)),
        **(taught if student in ("taught", "both") else {}),
    }
    seconds = len(left) * (_STARTUP_SECONDS + options.num_train_steps / _STEPS_PER_SECOND)
    return Step(f"student {student}", command("run_classifier", flags), list(paths.values()), seconds)


# -- parameters and latency --------------------------------------------------------------------------------------------


def measure(options: Options) -> None:
    """Write latency.json: parameters of teacher and student, and the milliseconds that each takes for a text."""
    import serving
    from modeling.variables import count_declared
    from tasks.datasets import find_row, find_split
    from tasks.kinds import find_kind

    folder = Path(options.output_dir)
    path = folder / "latency.json"
    if path.is_file():
        return
    row = find_row(options.task_name)
    loaded = {"teacher": serving.load(str(folder / "teacher"))}
    loaded["student"] = serving.load(str(folder / options.students[0] / f"seed_{options.seeds[0]}"))
    row = loaded["student"].row or row
    examples = find_kind(row.kind).read(row, find_split(row, Path(options.data_dir), "dev")[0], need_labels=True)
    texts = [
        (each.text_a, each.text_b) if each.text_b is not None else each.text_a for each in examples[:_MEASURED_TEXTS]
    ]
    taken = milliseconds({name: model.predict for name, model in loaded.items()}, texts)
    found = {
        name: {"parameters": count_declared(model.model), "milliseconds": taken[name]} for name, model in loaded.items()
    }
    write_atomically(path, json.dumps(found, indent=2) + "\n")


def milliseconds(predict: Mapping[str, Callable[[Any], Any]], texts: list[Any]) -> dict[str, float]:
    """Return the median over texts and rounds by model, each text answered alone; a first round compiles.

    The models take turns, so that what else the machine does slows all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in predict}
    for measured in (False,) + (True,) * _ROUNDS:
        for name, answer in predict.items():
            for text in texts:
                begin = time.perf_counter()
                answer(text)
                if measured:
                    seconds[name].append(time.perf_counter() - begin)
    return {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}


# -- the table ---------------------------------------------------------------------------------------------------------


def write_tables(options: Options) -> str:
    """Write table.json and table.md from what is done so far; return the latter."""
    from tasks.metrics import mean_and_deviation

    folder = Path(options.output_dir)
    content: dict[str, dict[str, Any]] = {}
    if found := results_in(folder / "teacher/eval_results.json"):
        content["teacher"] = {"mean": found[options.metric], "deviation": 0.0, "runs": {"": found[options.metric]}}
    for student in options.students:
        runs = {
            str(seed): found[options.metric]
            for seed, path in products(options, student).items()
            if (found := results_in(path))
        }
        if runs:
            mean, deviation = mean_and_deviation([{"score": score} for score in runs.values()])["score"]
            content[student] = {"mean": mean, "deviation": deviation, "runs": runs}
    for name, own in content.items():
        own |= results_in(folder / "latency.json").get("teacher" if name == "teacher" else "student", {})
    text = markdown(options, content)
    write_atomically(folder / "table.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "table.md", text)
    return text


def markdown(options: Options, content: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [f"| {options.task_name} | parameters | ms a text | updates | {options.metric} |", "|---|---|---|---|---|"]
    for name, own in content.items():
        title = "teacher" if name == "teacher" else STUDENTS[name]
        steps = options.teacher_steps if name == "teacher" else options.num_train_steps
        size = f"{own['parameters']:,}" if "parameters" in own else ""
        took = f"{own['milliseconds']:.1f}" if "milliseconds" in own else ""
        several = len(own["runs"]) > 1
        score = f"{own['mean']:.3f}" + (f" ± {own['deviation']:.3f}" if several else "")
        lines.append(f"| {title} | {size} | {took} | {steps:,} | {score} |")
    seeds = ", ".join(map(str, options.seeds))
    return "\n".join(lines) + f"\n\nStudents: mean and deviation over seeds {seeds}. Texts are answered one by one.\n"


if __name__ == "__main__":
    run(main, Options)
