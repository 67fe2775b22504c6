"""What each objective of StructBERT (Wang et al. 2020, section 3.3) is worth: five models of equal compute, one table.

    python3 -m examples.structbert_ablation --input_file=news.txt --data_dir=tasks --output_dir=ablation --dry_run

makes records, pretrains every arm on the same documents for the same steps with the same seed, fine-tunes it and random
weights on each task with each seed, and writes table.md and table.json. Each step is a command of this project, shown
before it runs; the same command again goes on where the last one was stopped. Unlike the paper, which leaves one
objective out at a time, the arms add them to masked tokens, and ALBERT is among them.
"""

from __future__ import annotations

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
from ground.progress import format_duration

if TYPE_CHECKING:
    from tasks.datasets import Example

    Split = tuple[list[Example], list[Example]]

Scores = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """What one model is pretrained on; `pair_labels` are the classes of its sentence-pair objective."""

    title: str
    objective: str | None
    trigram_rate: float = 0.0
    pair_labels: int = 0
    pair_accuracy: str = ""


ARMS: Mapping[str, Arm] = {
    "random": Arm("random weights", None),
    "masked_lm": Arm("masked tokens", "masked_lm"),
    "word_order": Arm("+ word order", "masked_lm", trigram_rate=0.05),
    "sentence_structure": Arm("+ sentences", "structbert", 0.0, 3, "sentence_structure_accuracy"),
    "structbert": Arm("+ both: StructBERT", "structbert", 0.05, 3, "sentence_structure_accuracy"),
    "albert": Arm("ALBERT", "albert", 0.0, 2, "sentence_order_accuracy"),
}
# All arms are compared on masked tokens of these held-out records, which hold nothing else.
COMMON = "masked_lm"

# Measured on two cores of a Xeon with AMX, in bfloat16, for examples/zh_news/albert_config.json with 8,000 tokens. The
# pace of steps that are done corrects them.
STARTUP_SECONDS = 8.0
RECORDS_SECONDS = 10.0
PRETRAINING_TOKENS_PER_SECOND = 30_000
FINE_TUNING_TOKENS_PER_SECOND = 40_000


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the objectives of StructBERT: pretrain arms of equal compute, fine-tune them, write one table."""

    input_file: tuple[str, ...] = flag(
        help="text to pretrain on: paths or patterns, a sentence a line and a blank line between documents"
    )
    data_dir: str = flag(help="folder that has a folder of labelled files for every task, called as the task is")
    output_dir: str = flag(help="folder for all that is made; a run that finds its own goes on")
    arms: tuple[str, ...] = flag(tuple(ARMS), help="models to compare", choices=tuple(ARMS))
    tasks: tuple[str, ...] = flag(("chnsenticorp", "ocnli", "lcqmc"), help="rows of tasks/datasets.toml")
    seeds: tuple[int, ...] = flag((1, 2, 3), help="of fine-tuning, each once for every arm and task")
    dry_run: bool = flag(False, help="only list the commands that are left to run, and about how long they take")
    bert_config_file: str = flag(
        "examples/zh_news/albert_config.json", help="the model's shape; the vocabulary decides its vocab_size"
    )
    vocab_file: str | None = flag(None, help="WordPiece vocabulary; by default one is learnt from --input_file")
    vocab_size: int = flag(8000, help="of the vocabulary that is learnt", unit="tokens", minimum=8)
    max_seq_length: int = flag(128, help="of pretraining and fine-tuning", unit="tokens", minimum=16)
    eval_fraction: float = flag(0.02, help="share of the documents that is held out", minimum=0.001, maximum=0.5)
    dupe_factor: int = flag(2, help="passes over the text, each with its own pairs and masks", minimum=1)
    init_checkpoint: str | None = flag(
        None,
        help="pretrained weights that all arms start from, each with a new sentence-pair head; by default random ones, "
        "with which the shape of --bert_config_file needs 6,000 steps rather than 800",
    )
    pretraining_seed: int = flag(12345, help="of every arm: initial weights, order of examples", minimum=0)
    num_train_steps: int = flag(800, help="length of pretraining", unit="steps", minimum=1)
    num_warmup_steps: int = flag(
        80, help="steps in which pretraining's learning rate rises from 0", unit="steps", minimum=0
    )
    pretraining_batch_size: int = flag(24, help="of pretraining", unit="examples", minimum=1)
    pretraining_learning_rate: float = flag(1e-3, help="peak learning rate of pretraining", minimum=0)
    train_batch_size: int = flag(32, help="of fine-tuning", unit="examples", minimum=1)
    learning_rate: float = flag(5e-4, help="peak learning rate of fine-tuning", minimum=0)
    num_train_epochs: float = flag(3.0, help="passes over a task's training examples", unit="epochs", minimum=0)
    max_train_examples: int = flag(
        3000, help="training examples of a task, the first after a shuffle", unit="examples", minimum=1
    )
    max_dev_examples: int = flag(2000, help="examples of a task that are scored", unit="examples", minimum=1)
    precision: str = flag("bfloat16", help="compute precision", choices=("float32", "bfloat16"))


# Another value of these adds to what is there already; another value of any other flag would mix what cannot be mixed.
_GROWING = ("output_dir", "arms", "tasks", "seeds", "dry_run")


def main(options: Options) -> int:
    """Run all steps that are left; returns the exit status of the first that fails.

    Raises:
        UsageError: something that is needed is missing, or the output is of other flags.
    """
    check(options)
    splits = {task: split_task(options, task) for task in options.tasks}
    steps = plan(options, {task: num_tokens(train, options.max_seq_length) for task, (train, _) in splits.items()})
    folder = Path(options.output_dir)
    for task, (train, dev) in splits.items():
        print(f"{task}: {len(train):,} training examples, {len(dev):,} scored")
    if not options.dry_run:
        write_config(options, folder / "config.json")
        write_model_config(options.bert_config_file, options.vocab_file, options.vocab_size, folder)
        for task, split in splits.items():
            write_task(options, task, split)
    status = run_steps("structbert_ablation", steps, folder, lambda: write_tables(options), dry_run=options.dry_run)
    if not status and not options.dry_run:
        print("\n" + write_tables(options), end="")
    return status


def check(options: Options) -> None:
    """Raise `UsageError` for flags that do not go together, or not with what is in the output already."""
    for name in ("bert_config_file", "vocab_file"):
        path = getattr(options, name)
        if path and not Path(path).is_file():
            raise UsageError(f"--{name}={path}: no such file")
    for name in ("arms", "tasks", "seeds"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise UsageError(f"--{name}={','.join(map(str, values))}: expected one or several, each once")
    if options.init_checkpoint and not options.vocab_file:
        raise UsageError(
            f"--init_checkpoint={options.init_checkpoint} without --vocab_file: give the vocabulary that it has"
        )
    if options.num_warmup_steps > options.num_train_steps:
        raise UsageError(
            f"--num_warmup_steps={options.num_warmup_steps} but --num_train_steps={options.num_train_steps}: "
            "give fewer steps of warmup, or more of training"
        )
    check_same(options, _GROWING)


# -- labelled data -----------------------------------------------------------------------------------------------------


def split_task(options: Options, task: str) -> Split:
    """Examples to train on and to score, the same for every arm and seed.

    A published split is used; a single file, whichever it is, is split. Either way training examples go whose first
    text is also that of one to score.

    Raises:
        UsageError: there is no such task or no file of it, or a file is malformed.
    """
    from tasks.datasets import find_file, find_row, read_examples

    row, folder = find_row(task), Path(options.data_dir) / task
    files: dict[str, Path] = {}
    for split in ("train", "dev"):
        try:
            files[split] = find_file(row, folder, split)
        except UsageError:
            if split == "dev" and not files:
                raise
    train, *dev = (read_examples(row, path, need_labels=True) for path in files.values())
    draw = random.Random(0)
    draw.shuffle(train)
    if dev:
        (scored,) = dev
        draw.shuffle(scored)
    else:
        by_text: dict[str, list[Example]] = {}
        for example in train:
            by_text.setdefault(example.text_a, []).append(example)
        scored = [example for alike in by_text.values() for example in alike][: len(train) // 4]
    scored = scored[: options.max_dev_examples]
    texts = {example.text_a for example in scored}
    return [example for example in train if example.text_a not in texts][: options.max_train_examples], scored


def num_tokens(examples: Sequence[Example], max_seq_length: int) -> int:
    """About as many as Chinese characters, with two or three specials each."""
    lengths = (len(example.text_a) + len(example.text_b or "") + 3 for example in examples)
    return sum(min(length, max_seq_length) for length in lengths)


def write_task(options: Options, task: str, split: Split) -> None:
    """Write the examples to train on and to score, in a form that run_classifier.py reads."""
    from tasks.datasets import find_row

    row = find_row(task)
    columns = ["text_a", "text_b", "label"] if row.is_pair else ["text_a", "label"]
    for examples, kind in zip(split, ("train", "dev"), strict=True):
        cells = [[getattr(example, column).translate(_ONE_LINE) for column in columns] for example in examples]
        name = next(name for name in row.files[kind] if not name.endswith((".json", ".jsonl")))
        lines = "".join("\t".join(line) + "\n" for line in [columns, *cells])
        write_atomically(Path(options.output_dir) / "tasks" / task / name, lines)


_ONE_LINE = str.maketrans("\t\r\n", "   ")


# -- the commands ------------------------------------------------------------------------------------------------------


def plan(options: Options, tokens: Mapping[str, int]) -> list[Step]:
    """All steps in order, those that are done too; `tokens` are those of each task's training examples."""
    folder = Path(options.output_dir)
    vocabulary = options.vocab_file or str(folder / "vocab.txt")
    pretrained = {name: ARMS[name] for name in options.arms if ARMS[name].objective}
    steps = []
    if not options.vocab_file:
        flags = {
            "input_file": ",".join(options.input_file),
            "output_file": vocabulary,
            "vocab_size": options.vocab_size,
            "common_characters": False,
            "character_coverage": 1,
        }
        steps.append(Step("vocabulary", command("train_tokenizer", flags), [Path(vocabulary)], 3.0))
    for name in dict.fromkeys([*pretrained, COMMON] if pretrained else []):
        flags = {
            "input_file": ",".join(options.input_file),
            "output_file": folder / "records" / name / "text.tfrecord",
            "vocab_file": vocabulary,
            "objective": ARMS[name].objective,
            "trigram_rate": ARMS[name].trigram_rate,
            "max_seq_length": options.max_seq_length,
            "max_predictions_per_seq": round(0.15 * options.max_seq_length) + 1,
            "dupe_factor": options.dupe_factor,
            "eval_fraction": options.eval_fraction,
        }
        product = folder / "records" / name / "text.manifest.json"
        steps.append(Step(f"records {name}", command("create_pretraining_data", flags), [product], RECORDS_SECONDS))
    train_seconds = (
        options.num_train_steps
        * options.pretraining_batch_size
        * options.max_seq_length
        / PRETRAINING_TOKENS_PER_SECOND
    )
    for name, arm in pretrained.items():
        flags = {
            **_scoring(options, name),
            "objective": arm.objective,
            "output_dir": folder / "pretraining" / name,
            "do_train": True,
            "train_batch_size": options.pretraining_batch_size,
            "num_train_steps": options.num_train_steps,
            "num_warmup_steps": options.num_warmup_steps,
            "learning_rate": options.pretraining_learning_rate,
            "optimizer": "adamw",
            "adam_bias_correction": True,
            "adam_beta2": 0.98,
            "seed": options.pretraining_seed,
            **(
                {"init_checkpoint": options.init_checkpoint, "init_sentence_head": False}
                if options.init_checkpoint
                else {}
            ),
            "save_checkpoints_steps": max(1, options.num_train_steps // 5),
            "keep_checkpoint_max": 1,
        }
        product = folder / "pretraining" / name / "eval_results.json"
        seconds = 2 * STARTUP_SECONDS + train_seconds
        steps.append(Step(f"pretraining {name}", command("run_pretraining", flags), [product], seconds))
    for name in pretrained:
        flags = {
            **_scoring(options, COMMON),
            "objective": ARMS[COMMON].objective,
            "output_dir": folder / "scoring" / name,
            "init_checkpoint": folder / "pretraining" / name,
        }
        product = folder / "scoring" / name / "eval_results.json"
        steps.append(Step(f"scoring {name}", command("run_pretraining", flags), [product], STARTUP_SECONDS))
    for task in options.tasks:
        for name in options.arms:
            output = folder / "fine_tuning" / name / task
            products = {seed: output / f"seed_{seed}" / "eval_results.json" for seed in options.seeds}
            seeds = [seed for seed in options.seeds if not products[seed].is_file()] or list(options.seeds)
            flags = {
                "task_name": task,
                "data_dir": folder / "tasks" / task,
                "vocab_file": vocabulary,
                "bert_config_file": folder / "model_config.json",
                **({"init_checkpoint": folder / "pretraining" / name} if name in pretrained else {}),
                "output_dir": output,
                "do_train": True,
                "do_eval": True,
                "max_seq_length": options.max_seq_length,
                "train_batch_size": options.train_batch_size,
                "eval_batch_size": 100,
                "learning_rate": options.learning_rate,
                "num_train_epochs": options.num_train_epochs,
                "adam_bias_correction": True,
                "precision": options.precision,
                # Scored once, after the last step: no weights are chosen by the examples that are scored.
                "save_checkpoints_steps": 1_000_000,
                "keep_checkpoint_max": 1,
                "seeds": ",".join(map(str, seeds)),
            }
            train_seconds = tokens[task] * options.num_train_epochs / FINE_TUNING_TOKENS_PER_SECOND
            seconds = STARTUP_SECONDS + len(seeds) * (STARTUP_SECONDS + train_seconds)
            words = command("run_classifier", flags)
            steps.append(Step(f"fine-tuning {name} {task}", words, list(products.values()), seconds))
    return steps


def _scoring(options: Options, records: str) -> dict[str, object]:
    """Flags that score a model on the held-out part of the records called so."""
    folder = Path(options.output_dir)
    return {
        "input_file": folder / "records" / records / "text*.tfrecord",
        "bert_config_file": folder / "model_config.json",
        "do_eval": True,
        "eval_batch_size": 64,
        "precision": options.precision,
    }


# -- the table ---------------------------------------------------------------------------------------------------------


def write_tables(options: Options) -> str:
    """Write table.json and table.md from what is done so far; returns the latter."""
    content = results(options)
    text = markdown(options, content)
    write_atomically(Path(options.output_dir) / "table.json", json.dumps(content, indent=2) + "\n")
    write_atomically(Path(options.output_dir) / "table.md", text)
    return text


def results(options: Options) -> dict[str, Scores]:
    """Scores of every arm, and of its tasks mean and deviation over the seeds; what is not done yet is not there."""
    from tasks.metrics import mean_and_deviation

    folder = Path(options.output_dir)
    seconds = results_in(folder / "seconds.json")
    found: dict[str, Scores] = {}
    for name in options.arms:
        scores: Scores = {
            "held_out": results_in(folder / "pretraining" / name / "eval_results.json"),
            "common_held_out": results_in(folder / "scoring" / name / "eval_results.json"),
            "pretraining_seconds": seconds.get(f"pretraining {name}"),
            "tasks": {},
        }
        for task in options.tasks:
            by_seed = {
                seed: results_in(folder / "fine_tuning" / name / task / f"seed_{seed}" / "eval_results.json")
                for seed in options.seeds
            }
            by_seed = {seed: found["accuracy"] for seed, found in by_seed.items() if found}
            if by_seed:
                summary = mean_and_deviation([{"accuracy": value} for value in by_seed.values()])
                mean, deviation = summary["accuracy"]
                scores["tasks"][task] = {"accuracy": by_seed, "mean": mean, "deviation": deviation}
        found[name] = scores
    return found


def markdown(options: Options, content: Mapping[str, Scores]) -> str:
    """The table as Markdown."""
    tokens = options.num_train_steps * options.pretraining_batch_size * options.max_seq_length
    columns = ["arm", "masked tokens right", "shuffled words right", "pairs right", *options.tasks, "pretraining"]
    rows = []
    for name, scores in content.items():
        own, common, arm = scores["held_out"], scores["common_held_out"], ARMS[name]
        cells = [
            f"{common['masked_lm_accuracy']:.3f} ({common['unigram_accuracy']:.3f})" if common else "",
            f"{own['word_order_accuracy']:.3f} ({own['unchanged_order_accuracy']:.3f})"
            if "word_order_accuracy" in own
            else "",
            f"{own[arm.pair_accuracy]:.3f} ({1 / arm.pair_labels:.3f})" if own and arm.pair_accuracy else "",
        ]
        for task in options.tasks:
            score = scores["tasks"].get(task)
            cells.append(f"{score['mean']:.4f} ± {score['deviation']:.4f}" if score else "")
        seconds = scores["pretraining_seconds"]
        rows.append([arm.title, *cells, format_duration(seconds) if seconds else ""])
    lines = [columns, ["---"] * len(columns), *rows]
    start = options.init_checkpoint or "random weights"
    return (
        f"{options.num_train_steps:,} steps of {options.pretraining_batch_size} examples, {tokens / 1e6:.1f} million "
        f"tokens, from {start}, seed {options.pretraining_seed}; fine-tuned {options.num_train_epochs:g} epochs with "
        f"seeds {', '.join(map(str, options.seeds))}: mean accuracy ± deviation over them. In brackets: share of the "
        "most frequent token, of shuffled words that kept their place, of right guesses.\n\n"
        + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    )


if __name__ == "__main__":
    run(main, Options)
