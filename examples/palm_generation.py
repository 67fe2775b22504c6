"""What pretraining and copying are worth for PALM (Bi et al. 2020, section 4): generation beside the copy floor.

    python3 -m examples.palm_generation --input_file=news.txt --data_dir=tasks --output_dir=palm --dry_run

makes records, pretrains a model without and one with copying on the same fragments for the same steps, fine-tunes both
and random weights of both on each task with each seed, and writes table.md and table.json. A task is a folder of files
of a row of tasks/datasets.toml; a single file is split. The floor copies: the first characters of the source as they
are, as many as the targets of training have on average.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.flags import flag, run, write_config
from examples.steps import Step, check_same, command, results_in, run_steps, write_model_config
from ground.files import write_atomically

if TYPE_CHECKING:
    from tasks.kinds.generation import SourceTarget

    Split = tuple[list[SourceTarget], list[SourceTarget]]


@dataclass(frozen=True)
class Arm:
    """One way to a model: whether it is pretrained, and how it copies (`Config.copy`)."""

    title: str
    pretrained: bool
    copy: str


ARMS: Mapping[str, Arm] = {
    "random": Arm("random weights", False, "none"),
    "random_copy": Arm("random weights, copying", False, "additive"),
    "palm": Arm("pretrained", True, "none"),
    "palm_copy": Arm("pretrained, copying: PALM", True, "additive"),
}
SCORES = ("rouge_l", "rouge_1", "rouge_2", "bleu_4", "copy_rate", "perplexity")
# About a model of width 128 on two cores; the pace of steps that are done corrects them.
_STARTUP_SECONDS, _TOKENS_PER_SECOND, _GENERATED_PER_SECOND = 8.0, 9_000, 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare pretraining and copying for generation: pretrain, fine-tune with several seeds, write one table."""

    input_file: tuple[str, ...] = flag(help="text to pretrain on: a sentence a line, a blank line between documents")
    data_dir: str = flag(help="folder that has a folder of files for every task, called as the task is")
    output_dir: str = flag(help="folder for all that is made; a run that finds its own goes on")
    arms: tuple[str, ...] = flag(tuple(ARMS), help="models to compare", choices=tuple(ARMS))
    tasks: tuple[str, ...] = flag(("news_headline", "dureader_qg"), help="rows of tasks/datasets.toml")
    seeds: tuple[int, ...] = flag((1, 2, 3), help="of fine-tuning, each once for every arm and task")
    dry_run: bool = flag(False, help="only list the commands that are left to run, and about how long they take")
    bert_config_file: str = flag(
        "examples/palm_zh/config.json", help="the model's shape; the vocabulary decides its vocab_size"
    )
    vocab_file: str | None = flag(None, help="WordPiece vocabulary; by default one is learnt from --input_file")
    vocab_size: int = flag(6000, help="of the vocabulary that is learnt", unit="tokens", minimum=8)
    max_seq_length: int = flag(96, help="of sources", unit="tokens", minimum=16)
    max_target_length: int = flag(32, help="of targets", unit="tokens", minimum=8)
    fragment_stride: int = flag(4, help="sentences from one fragment of pretraining to the next", minimum=0)
    num_train_steps: int = flag(3000, help="length of pretraining", unit="steps", minimum=1)
    pretraining_batch_size: int = flag(32, help="of pretraining", unit="examples", minimum=1)
    pretraining_learning_rate: float = flag(2e-3, help="peak learning rate of pretraining", minimum=0)
    train_batch_size: int = flag(16, help="of fine-tuning", unit="examples", minimum=1)
    learning_rate: float = flag(1e-3, help="peak learning rate of fine-tuning", minimum=0)
    num_train_epochs: float = flag(4.0, help="passes over a task's training examples", unit="epochs", minimum=0)
    max_train_examples: int = flag(5000, help="training examples of a task", unit="examples", minimum=1)
    max_dev_examples: int = flag(300, help="examples of a task that are scored", unit="examples", minimum=1)
    num_beams: int = flag(4, help="of the search", minimum=1)


_GROWING = ("output_dir", "arms", "tasks", "seeds", "dry_run")


def main(options: Options) -> int:
    """Run all steps that are left; return the exit status of the first that fails."""
    for name in ("bert_config_file", "vocab_file"):
        path = getattr(options, name)
        if path and not Path(path).is_file():
            raise UsageError(f"--{name}={path}: no such file")
    check_same(options, _GROWING)
    splits = {task: split_task(options, task) for task in options.tasks}
    steps, folder = plan(options, splits), Path(options.output_dir)
    for task, (train, scored) in splits.items():
        print(f"{task}: {len(train):,} training examples, {len(scored):,} scored")
    if not options.dry_run:
        write_config(options, folder / "config.json")
        for copy in {ARMS[name].copy for name in options.arms}:
            given = options.bert_config_file, options.vocab_file, options.vocab_size
            write_model_config(*given, folder / "models" / copy, copy=copy)
        for task, split in splits.items():
            write_task(options, task, split)
    done = lambda: write_tables(options, splits)  # noqa: E731
    status = run_steps("palm_generation", steps, folder, done, dry_run=options.dry_run)
    if not status and not options.dry_run:
        print("\n" + write_tables(options, splits), end="")
    return status


def split_task(options: Options, task: str) -> Split:
    """Return the examples to train on and to score, the same for every arm and seed.

    No source that is scored is trained on. A single file, whichever it is, is split.
    """
    from tasks.datasets import find_file, find_row
    from tasks.kinds import find_kind

    row, folder = find_row(task), Path(options.data_dir) / task
    kind = find_kind(row.kind)
    files: dict[str, Path] = {}
    for split in ("train", "dev"):
        try:
            files[split] = find_file(row, folder, split)
        except UsageError:
            if split == "dev" and not files:
                raise
    train, *dev = (kind.read(row, path, need_labels=True) for path in files.values())
    draw = random.Random(0)
    draw.shuffle(train)
    scored = dev[0] if dev else train[: len(train) // 5]
    draw.shuffle(scored)
    scored = scored[: options.max_dev_examples]
    seen = {example.text_a for example in scored} | {example.text_b for example in scored if example.text_b}
    train = [example for example in train if not seen & {example.text_a, example.text_b}]
    return train[: options.max_train_examples], scored


def write_task(options: Options, task: str, split: Split) -> None:
    """Write the examples as JSON lines, which run_generation.py reads."""
    for examples, name in zip(split, ("train", "dev"), strict=True):
        lines = (json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n" for example in examples)
        write_atomically(Path(options.output_dir) / "tasks" / task / f"{name}.jsonl", "".join(lines))


def plan(options: Options, splits: Mapping[str, Split]) -> list[Step]:
    """Return all steps in order, those that are done too."""
    folder = Path(options.output_dir)
    vocabulary = options.vocab_file or str(folder / "vocab.txt")
    copies = list(dict.fromkeys(ARMS[name].copy for name in options.arms if ARMS[name].pretrained))
    steps = []
    if not options.vocab_file:
        flags: dict[str, object] = {"input_file": ",".join(options.input_file), "output_file": vocabulary}
        flags |= {"vocab_size": options.vocab_size, "common_characters": False, "character_coverage": 1}
        steps.append(Step("vocabulary", command("train_tokenizer", flags), [Path(vocabulary)], 3.0))
    if copies:
        flags = {
            "input_file": ",".join(options.input_file),
            "output_file": folder / "records/text.tfrecord",
            "vocab_file": vocabulary,
            "objective": "palm",
            "max_seq_length": options.max_seq_length,
            "max_target_length": options.max_target_length,
            "fragment_stride": options.fragment_stride,
            "do_whole_word_mask": False,
            "dupe_factor": 1,
            "eval_fraction": 0.02,
        }
        product = folder / "records/text.manifest.json"
        steps.append(Step("records", command("create_pretraining_data", flags), [product], 30.0))
    tokens = options.num_train_steps * options.pretraining_batch_size
    tokens *= options.max_seq_length + options.max_target_length
    for copy in copies:
        flags = {
            "input_file": folder / "records/text*.tfrecord",
            "objective": "palm",
            "bert_config_file": folder / "models" / copy / "model_config.json",
            "output_dir": folder / "pretraining" / copy,
            "do_train": True,
            "do_eval": True,
            "train_batch_size": options.pretraining_batch_size,
            "num_train_steps": options.num_train_steps,
            "num_warmup_steps": options.num_train_steps // 10,
            "learning_rate": options.pretraining_learning_rate,
            "adam_bias_correction": True,
            "adam_beta2": 0.98,
            "save_checkpoints_steps": max(1, options.num_train_steps // 3),
            "max_eval_steps": 20,
            "keep_checkpoint_max": 1,
        }
        product = folder / "pretraining" / copy / "eval_results.json"
        seconds = 2 * _STARTUP_SECONDS + tokens / _TOKENS_PER_SECOND
        steps.append(Step(f"pretraining {copy}", command("run_pretraining", flags), [product], seconds))
    for task in options.tasks:
        steps += [fine_tuning(options, task, name, vocabulary, *splits[task]) for name in options.arms]
    return steps


def fine_tuning(
    options: Options, task: str, name: str, vocabulary: str, train: Sequence[Any], scored: Sequence[Any]
) -> Step:
    """Return the step that fine-tunes an arm on a task with every seed that is left, and scores it."""
    folder, arm = Path(options.output_dir), ARMS[name]
    output = folder / "fine_tuning" / name / task
    products = {seed: output / f"seed_{seed}" / "eval_results.json" for seed in options.seeds}
    seeds = [seed for seed in options.seeds if not products[seed].is_file()] or list(options.seeds)
    flags: dict[str, object] = {
        "task_name": task,
        "data_dir": folder / "tasks" / task,
        "vocab_file": vocabulary,
        "bert_config_file": folder / "models" / arm.copy / "model_config.json",
        **({"init_checkpoint": folder / "pretraining" / arm.copy} if arm.pretrained else {}),
        "output_dir": output,
        "do_train": True,
        "do_eval": True,
        "max_seq_length": options.max_seq_length,
        "max_target_length": options.max_target_length,
        "train_batch_size": options.train_batch_size,
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.num_train_epochs,
        "adam_bias_correction": True,
        "num_beams": options.num_beams,
        "min_new_tokens": 2,
        # Scored once, after the last step: no weights are chosen by the examples that are scored.
        "save_checkpoints_steps": 1_000_000,
        "keep_checkpoint_max": 1,
        "seeds": ",".join(map(str, seeds)),
    }
    tokens = sum(min(len(e.source) + len(e.target or ""), options.max_seq_length) for e in train)
    seconds = tokens * options.num_train_epochs / _TOKENS_PER_SECOND + len(scored) / _GENERATED_PER_SECOND
    words = command("run_generation", flags)
    return Step(f"fine-tuning {name} {task}", words, list(products.values()), len(seeds) * (_STARTUP_SECONDS + seconds))


# -- the table ---------------------------------------------------------------------------------------------------------


def floor(split: Split, units: str) -> dict[str, float]:
    """Return the scores of copying the beginning of the source, as long as the targets of training are on average."""
    from tasks.text_scores import text_scores

    train, scored = split
    length = round(sum(len(example.target or "") for example in train) / max(len(train), 1))
    texts = [(example.text_b or example.text_a)[:length] for example in scored]
    return text_scores(texts, [[e.target or ""] for e in scored], [e.source for e in scored], units)


def write_tables(options: Options, splits: Mapping[str, Split]) -> str:
    """Write table.json and table.md from what is done so far; return the latter."""
    from tasks.datasets import find_row
    from tasks.metrics import mean_and_deviation

    folder = Path(options.output_dir)
    content: dict[str, Any] = {}
    for task in options.tasks:
        content[task] = {"copy floor": {"scores": floor(splits[task], find_row(task).units), "deviations": {}}}
        for name in options.arms:
            output = folder / "fine_tuning" / name / task
            runs = [results_in(output / f"seed_{seed}" / "eval_results.json") for seed in options.seeds]
            runs = [{score: run[score] for score in SCORES} for run in runs if run]
            if runs:
                summary = mean_and_deviation(runs)
                content[task][ARMS[name].title] = {
                    "scores": {score: mean for score, (mean, _) in summary.items()},
                    "deviations": {score: deviation for score, (_, deviation) in summary.items()},
                    "seeds": {str(seed): run for seed, run in zip(options.seeds, runs, strict=False)},
                }
    text = markdown(options, content)
    write_atomically(folder / "table.json", json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "table.md", text)
    return text


def markdown(options: Options, content: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = []
    for task, rows in content.items():
        lines += [f"| {task} | " + " | ".join(SCORES) + " |", "|---" * (1 + len(SCORES)) + "|"]
        for title, row in rows.items():
            cells = []
            for score in SCORES:
                value, deviation = row["scores"].get(score), row["deviations"].get(score)
                shown = "" if value is None else f"{value:.3f}" if value < 100 else f"{value:,.0f}"
                cells.append(shown + (f" ± {deviation:.3f}" if deviation is not None and value and value < 100 else ""))
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        lines.append("")
    seeds = ", ".join(map(str, options.seeds))
    return "\n".join(lines) + f"\nMean and deviation over seeds {seeds}.\n"


if __name__ == "__main__":
    run(main, Options)
