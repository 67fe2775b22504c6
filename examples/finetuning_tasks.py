"""What pretraining is worth on seven Chinese tasks: a small model, tuned with several seeds, beside random weights.

    python3 -m examples.finetuning_tasks --input_file=news.txt,novels.txt --data_dir=tasks --output_dir=out --dry_run

learns a vocabulary, pretrains on masked tokens, goes on with the texts of the tasks' training examples (Gururangan et
al. 2020, "Don't Stop Pretraining", section 4), fine-tunes the result and random weights of the same shape on every task
with every seed, and writes table.md and table.json. A task without a development file has a share of its training
examples held out, the same for all; no pretraining sees it. Pretraining has one length: a second stage of 256 tokens,
as BERT has it, unlearnt in 3,000 steps what 12,000 had taught, because all positions behind the 48th were new.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.flags import flag, run, write_config
from examples.floors import FLOORS
from examples.steps import Step, check_same, command, results_in, run_steps, write_model_config
from ground.files import write_atomically

if TYPE_CHECKING:
    from tasks.splits import Splits


@dataclass(frozen=True)
class Task:
    """How a task is fine-tuned.

    Attributes:
        metric: that the table shows.
        max_seq_length: tokens.
        dev_share: of the training examples that is held out, where there is no development file; 0 where there is one.
        flags: further ones of run_classifier.py.
        floor: a trivial method, a key of `examples.floors.FLOORS`, that is scored on the same examples; empty for none.
        after: the task with whose fine-tuned weights this one begins, in every arm (Phang et al. 2018, "Sentence
            Encoders on STILTs"): for few examples of what another task has many of; empty for none.
    """

    metric: str
    max_seq_length: int
    dev_share: float = 0.0
    flags: Mapping[str, object] = field(default_factory=dict)
    floor: str = ""
    after: str = ""


TASKS: Mapping[str, Task] = {
    "chnsenticorp": Task("accuracy", 128, flags={"num_train_epochs": 2.0}, floor="naive_bayes"),
    "thucnews_title": Task("accuracy", 32, 0.2, {"num_train_epochs": 6.0, "r_drop_weight": 1.0}, floor="naive_bayes"),
    "lcqmc": Task("accuracy", 48, 0.2, floor="shared_pairs"),
    "ocnli": Task("accuracy", 64, 0.2, floor="second_text"),
    "xnli_zh": Task("accuracy", 80, 0.2, {"learning_rate": 1e-4}, floor="second_text", after="ocnli"),
    "cluener": Task("macro_f1", 64, 0.2),
    "cmrc2018": Task("f1", 256, 0.2, {"max_answer_length": 100, "doc_stride": 128, "num_train_epochs": 2.0}),
}
ARMS: Mapping[str, str] = {"random": "random weights", "pretrained": "pretrained"}
# About a model of width 256 on two cores; the pace of steps that are done corrects them.
_STARTUP_SECONDS, _TOKENS_PER_SECOND, _FINE_TUNING_SECONDS = 10.0, 5_000, 120.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare a pretrained model with random weights on Chinese tasks: pretrain, fine-tune, write one table."""

    input_file: tuple[str, ...] = flag(help="text to pretrain on: a sentence a line, a blank line between documents")
    data_dir: str = flag(help="folder that has a folder of labelled files for every task, called as the task is")
    output_dir: str = flag(help="folder for all that is made; a run that finds its own goes on")
    arms: tuple[str, ...] = flag(tuple(ARMS), help="weights to start from", choices=tuple(ARMS))
    tasks: tuple[str, ...] = flag(tuple(TASKS), help="rows of tasks/datasets.toml", choices=tuple(TASKS))
    seeds: tuple[int, ...] = flag((1, 2, 3), help="of fine-tuning, each once for every arm and task")
    dry_run: bool = flag(False, help="only list the commands that are left to run, and about how long they take")
    bert_config_file: str = flag(
        "examples/zh_tasks/config.json", help="the model's shape; the vocabulary decides its vocab_size"
    )
    vocab_size: int = flag(8000, help="of the vocabulary that is learnt from --input_file", unit="tokens", minimum=8)
    num_train_steps: int = flag(12_000, help="of pretraining", unit="steps", minimum=1)
    pretraining_length: int = flag(48, help="of an example in pretraining", unit="tokens", minimum=8)
    num_adaptation_steps: int = flag(
        2500, help="of pretraining on the tasks' own texts; 0 leaves it out", unit="steps", minimum=0
    )
    adaptation_learning_rate: float = flag(5e-4, help="peak learning rate on the tasks' own texts", minimum=0)
    tokens_per_step: int = flag(2048, help="of pretraining", unit="tokens", minimum=256)
    pretraining_learning_rate: float = flag(1e-3, help="peak learning rate of pretraining", minimum=0)
    precision: str = flag("float32", help="compute precision of all training", choices=("float32", "bfloat16"))
    train_batch_size: int = flag(32, help="of fine-tuning", unit="examples", minimum=1)
    learning_rate: float = flag(3e-4, help="peak learning rate of fine-tuning", minimum=0)
    num_train_epochs: float = flag(4.0, help="passes over a task's training examples", unit="epochs", minimum=0)


_GROWING = ("output_dir", "arms", "tasks", "seeds", "dry_run")


def main(options: Options) -> int:
    """Run all steps that are left; return the exit status of the first that fails."""
    if not Path(options.bert_config_file).is_file():
        raise UsageError(f"--bert_config_file={options.bert_config_file}: no such file")
    check_same(options, _GROWING)
    check_order(options)
    folder = Path(options.output_dir)
    if not options.dry_run:
        write_config(options, folder / "config.json")
        write_model_config(options.bert_config_file, None, options.vocab_size, folder)
        write_floors(options)
        if options.num_adaptation_steps:
            write_task_texts(options)
    steps = plan(options)
    status = run_steps("finetuning_tasks", steps, folder, lambda: write_tables(options), dry_run=options.dry_run)
    if not status and not options.dry_run:
        print("\n" + write_tables(options), end="")
    return status


def plan(options: Options) -> list[Step]:
    """Return all steps in order, those that are done too."""
    folder = Path(options.output_dir)
    vocabulary = folder / "vocab.txt"
    text = ",".join(options.input_file)
    flags: dict[str, object] = {"input_file": text, "output_file": vocabulary, "vocab_size": options.vocab_size}
    flags |= {"common_characters": False, "character_coverage": 1}
    steps = [Step("vocabulary", command("train_tokenizer", flags), [vocabulary], 5.0)]
    if "pretrained" in options.arms:
        rate, num_steps = options.pretraining_learning_rate, options.num_train_steps
        steps += pretraining(options, "pretraining", text, num_steps, rate, {})
    if "pretrained" in options.arms and options.num_adaptation_steps:
        rate, num_steps = options.adaptation_learning_rate, options.num_adaptation_steps
        texts, start = ",".join(map(str, task_texts(options).values())), {"init_checkpoint": folder / "pretraining"}
        steps += pretraining(options, "adaptation", texts, num_steps, rate, start)
    steps += [fine_tuning(options, task, arm, vocabulary) for task in options.tasks for arm in options.arms]
    return steps


def check_order(options: Options) -> None:
    """Raise `UsageError` for a task that begins with the weights of another one, which is not fine-tuned before it."""
    for place, name in enumerate(options.tasks):
        after = TASKS[name].after
        starts = [start_of(options, TASKS[name], arm) for arm in options.arms]
        found = all(start is not None and (start / "eval_results.json").is_file() for start in starts)
        if after and after not in options.tasks[:place] and not found:
            raise UsageError(
                f"--tasks={','.join(options.tasks)}: {name} begins with the weights of {after}; put {after} before it"
            )


def splits_of(options: Options, name: str) -> Splits:
    """Return the examples of a task as run_classifier.py splits them."""
    from tasks.datasets import find_row
    from tasks.sources import find_files
    from tasks.splits import Splits

    share, wanted = TASKS[name].dev_share, ["train"] if TASKS[name].dev_share else ["train", "dev"]
    row, files = find_files(find_row(name), str(Path(options.data_dir) / name), wanted)
    return Splits(row, files, dev_share=share)


def write_floors(options: Options) -> None:
    """Write what trivial methods score, by task, where that is not there yet."""
    path = Path(options.output_dir) / "floors.json"
    found = results_in(path)
    for name in options.tasks:
        if TASKS[name].floor and name not in found:
            examples = splits_of(options, name).examples
            found[name] = FLOORS[TASKS[name].floor][1](examples["train"], examples["dev"])
            write_atomically(path, json.dumps(found, indent=2) + "\n")


def task_texts(options: Options) -> dict[str, Path]:
    """Return the files of the tasks' own texts; all tasks have theirs, whichever are fine-tuned."""
    return {name: Path(options.output_dir) / f"texts/{name}.txt" for name in TASKS}


def write_task_texts(options: Options) -> None:
    """Write the texts of the tasks' training examples without labels, a document each, and none that is held out."""
    for name, path in task_texts(options).items():
        examples = splits_of(options, name).examples["train"]
        documents = dict.fromkeys("".join(f"{line}\n" for line in sentences_of(example)) for example in examples)
        write_atomically(path, "\n".join(documents))


def sentences_of(example: Any) -> Iterator[str]:
    """Yield the sentences of the texts of an example, of whatever kind."""
    for field_name in ("text_a", "text_b", "text", "question", "context"):
        for sentence in re.split(r"(?<=[。！？])|\s*\n\s*", getattr(example, field_name, None) or ""):
            if sentence.strip():
                yield sentence.strip()


def pretraining(
    options: Options, name: str, text: str, num_steps: int, rate: float, start: Mapping[str, object]
) -> list[Step]:
    """Return the steps that make records of a text and pretrain on them.

    Args:
        options: of the recipe.
        name: of the run.
        text: its files.
        num_steps: its length.
        rate: its peak learning rate.
        start: the flag of the weights that it begins with, if any.
    """
    folder, length = Path(options.output_dir), options.pretraining_length
    flags: dict[str, object] = {
        "input_file": text,
        "output_file": folder / f"records/{name}.tfrecord",
        "vocab_file": folder / "vocab.txt",
        "objective": "masked_lm",
        "masking": "dynamic",
        "max_seq_length": length,
        "max_predictions_per_seq": round(0.15 * length) + 1,
        "dupe_factor": 1,
        "eval_fraction": 0.02,
        "num_shards": 4,
    }
    product = folder / f"records/{name}.manifest.json"
    records = Step(f"records of {name}", command("create_pretraining_data", flags), [product], 20.0)
    flags = {
        "input_file": folder / f"records/{name}*.tfrecord",
        "objective": "masked_lm",
        "bert_config_file": folder / "model_config.json",
        **start,
        "output_dir": folder / name,
        "do_train": True,
        "do_eval": True,
        "eval_batch_size": 64,
        "max_eval_steps": 20,
        "train_batch_size": max(1, options.tokens_per_step // length),
        "num_train_steps": num_steps,
        "num_warmup_steps": num_steps // 20,
        "learning_rate": rate,
        "precision": options.precision,
        "optimizer": "adamw",
        "adam_bias_correction": True,
        "adam_beta2": 0.98,
        "save_checkpoints_steps": max(1, num_steps // 6),
        "keep_checkpoint_max": 1,
    }
    seconds = num_steps * options.tokens_per_step / _TOKENS_PER_SECOND
    return [records, Step(name, command("run_pretraining", flags), [folder / name / "eval_results.json"], seconds)]


def fine_tuning(options: Options, name: str, arm: str, vocabulary: Path) -> Step:
    """Return the step that fine-tunes an arm on a task with every seed that is left, and scores it."""
    folder, task = Path(options.output_dir), TASKS[name]
    output = folder / "fine_tuning" / arm / name
    products = {seed: output / f"seed_{seed}" / "eval_results.json" for seed in options.seeds}
    seeds = [seed for seed in options.seeds if not products[seed].is_file()] or list(options.seeds)
    flags: dict[str, object] = {
        "task_name": name,
        "data_dir": Path(options.data_dir) / name,
        "vocab_file": vocabulary,
        "bert_config_file": folder / "model_config.json",
        **({"init_checkpoint": start} if (start := start_of(options, task, arm)) else {}),
        "output_dir": output,
        "do_train": True,
        "do_eval": True,
        **({"dev_share": task.dev_share} if task.dev_share else {}),
        "max_seq_length": task.max_seq_length,
        "precision": options.precision,
        "train_batch_size": options.train_batch_size,
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.num_train_epochs,
        "adam_bias_correction": True,
        # Scored once, after the last step: no weights are chosen by the examples that are scored.
        "save_checkpoints_steps": 1_000_000,
        "keep_checkpoint_max": 1,
        "seeds": ",".join(map(str, seeds)),
        **task.flags,
    }
    words, seconds = command("run_classifier", flags), len(seeds) * (_STARTUP_SECONDS + _FINE_TUNING_SECONDS)
    return Step(f"fine-tuning {arm} {name}", words, list(products.values()), seconds)


def start_of(options: Options, task: Task, arm: str) -> Path | None:
    """Return the weights that an arm begins a task with; None for new ones."""
    folder = Path(options.output_dir)
    if task.after:
        return folder / "fine_tuning" / arm / task.after / f"seed_{options.seeds[0]}"
    if arm == "pretrained":
        return folder / ("adaptation" if options.num_adaptation_steps else "pretraining")
    return None


# -- the table ---------------------------------------------------------------------------------------------------------


def write_tables(options: Options) -> str:
    """Write table.json and table.md from what is done so far; return the latter."""
    from tasks.metrics import mean_and_deviation

    folder = Path(options.output_dir)
    content: dict[str, dict[str, Any]] = {}
    for name in options.tasks:
        content[name] = {"metric": TASKS[name].metric, "floor": floor_of(options, name)}
        for arm in options.arms:
            paths = {
                seed: folder / "fine_tuning" / arm / name / f"seed_{seed}/eval_results.json" for seed in options.seeds
            }
            runs = {seed: found[TASKS[name].metric] for seed, path in paths.items() if (found := results_in(path))}
            if runs:
                mean, deviation = mean_and_deviation([{"score": score} for score in runs.values()])["score"]
                content[name][arm] = {"mean": mean, "deviation": deviation, "seeds": runs}
    text = markdown(options, content)
    write_atomically(folder / "table.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "table.md", text)
    return text


def floor_of(options: Options, name: str) -> str:
    """Return what the trivial method of a task scores and what it is called; empty where there is none."""
    scored = results_in(Path(options.output_dir) / "floors.json").get(name)
    return "" if scored is None else f"{scored:.3f}, {FLOORS[TASKS[name].floor][0]}"


def markdown(options: Options, content: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = ["| task | score | floor | " + " | ".join(ARMS[arm] for arm in options.arms) + " |"]
    lines.append("|---" * (3 + len(options.arms)) + "|")
    for name, row in content.items():
        cells = [f"{row[arm]['mean']:.3f} ± {row[arm]['deviation']:.3f}" if arm in row else "" for arm in options.arms]
        lines.append(f"| {name} | {row['metric']} | {row['floor']} | " + " | ".join(cells) + " |")
    seeds = ", ".join(map(str, options.seeds))
    return "\n".join(lines) + f"\n\nMean and deviation over seeds {seeds}.\n"


if __name__ == "__main__":
    run(main, Options)
