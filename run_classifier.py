"""Fine-tune, evaluate and predict with a text or text-pair classifier: checkpoint + task -> scores and predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from absl.app import UsageError

from training.files import write_atomically
from training.flags import flag, run
from training.options import TrainingOptions

if TYPE_CHECKING:
    import numpy as np

    from data.features import ClassificationDataset
    from tasks.datasets import DatasetRow, Example
    from training.engine import Engine

Scores = dict[str, float]
RESULTS = {"dev": "eval_results", "test": "test_results"}


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Fine-tune, evaluate and predict with a text or text-pair classifier."""

    task_name: str = flag(help="a row of tasks/datasets.toml, such as lcqmc_pair")
    data_dir: str = flag(help="folder of the task's train, dev and test files")
    bert_config_file: str = flag(help="JSON file of the model's shape", aliases=("albert_config_file",))
    vocab_file: str | None = flag(None, help="WordPiece vocabulary")
    spm_model_file: str | None = flag(None, help="SentencePiece model, in place of --vocab_file")
    do_lower_case: bool = flag(True, help="lower the case and strip accents, as the vocabulary was made")
    task_file: str | None = flag(None, help="TOML file of task rows of your own, in the form of tasks/datasets.toml")
    init_checkpoint: str | None = flag(
        None, help="pretrained weights: a folder of ours, a TensorFlow 1 prefix, or a transformers folder"
    )
    max_seq_length: int = flag(128, help="longer inputs are cut", unit="tokens", minimum=4)
    do_train: bool = flag(False, help="train on the task's training file")
    do_eval: bool = flag(False, help="score the best checkpoint on the development file")
    do_predict: bool = flag(False, help="predict the test file with the best checkpoint")
    train_batch_size: int = flag(32, help="of training", unit="examples", minimum=1)
    eval_batch_size: int = flag(32, help="of evaluation; results do not depend on it", unit="examples", minimum=1)
    predict_batch_size: int = flag(32, help="of prediction; results do not depend on it", unit="examples", minimum=1)
    optimizer: str = flag("adamw", help="update rule", choices=("adamw", "lamb", "lamb_paper", "lamb_albert_zh"))
    learning_rate: float = flag(5e-5, help="peak learning rate", minimum=0)
    num_train_epochs: float = flag(3.0, help="passes over the training file", unit="epochs", minimum=0)
    num_train_steps: int | None = flag(
        None, help="optimizer steps, in place of --num_train_epochs", unit="steps", minimum=1, aliases=("train_step",)
    )
    warmup_proportion: float = flag(
        0.1, help="share of the steps in which the learning rate rises from 0", minimum=0, maximum=1
    )
    save_checkpoints_steps: int = flag(
        1000,
        help="steps between two evaluations on the development file, each with a checkpoint",
        unit="steps",
        minimum=1,
    )
    early_stopping_evaluations: int = flag(
        0, help="stop after this many evaluations without a better one; 0 never stops early", minimum=0
    )
    classifier_dropout: float = flag(0.1, help="dropout on the pooled output while training", minimum=0, maximum=0.9)
    seeds: tuple[int, ...] = flag(
        (), help="train once with each of these seeds, below OUTPUT_DIR/seed_N, and report mean and deviation"
    )


def main(options: Options) -> None:
    """Do what was asked, once a seed."""
    import launch

    if not (options.do_train or options.do_eval or options.do_predict):
        raise UsageError("nothing to do: give at least one of --do_train, --do_eval, --do_predict")
    launch.check_device(options)
    launch.check_files(options, ["bert_config_file", "vocab_file", "spm_model_file", "task_file"])

    from tasks.datasets import find_file, find_row

    row = find_row(options.task_name, Path(options.task_file) if options.task_file else None)
    wanted = {"train": options.do_train, "dev": options.do_train or options.do_eval, "test": options.do_predict}
    files = {split: find_file(row, Path(options.data_dir), split) for split, asked in wanted.items() if asked}
    if not options.seeds:
        fine_tune(options, row, files)
        return
    scores = []
    for seed in options.seeds:
        folder = str(Path(options.output_dir) / f"seed_{seed}")
        print(f"seed {seed} -> {folder}", flush=True)
        scores.append(fine_tune(dataclasses.replace(options, seed=seed, seeds=(), output_dir=folder), row, files))
    if "dev" in files:
        report_seeds(options, scores)


def fine_tune(options: Options, row: DatasetRow, files: Mapping[str, Path]) -> Scores:
    """One run with one seed; returns the scores of the best weights on the development file."""
    from data.features import ClassificationDataset
    from data.tokenizers import load_tokenizer
    from tasks.datasets import read_examples

    tokenizer = load_tokenizer(
        vocab_file=options.vocab_file, spm_model_file=options.spm_model_file, do_lower_case=options.do_lower_case
    )
    examples = {split: read_examples(row, path, need_labels=split != "test") for split, path in files.items()}

    import launch
    from modeling import load_config
    from optimization import create_schedule
    from tasks.classification import ClassificationTask, encode
    from training.loop import train
    from training.tables import print_table

    config = load_config(options.bert_config_file)
    vocabulary = options.spm_model_file or options.vocab_file or ""
    launch.check_fit(
        config,
        options.bert_config_file,
        vocab_size=tokenizer.vocab_size,
        vocabulary=vocabulary,
        max_seq_length=options.max_seq_length,
    )
    data = {
        split: ClassificationDataset(
            encode(row, rows, tokenizer, options.max_seq_length),
            options.train_batch_size,
            options.max_seq_length,
            seed=options.seed,
        )
        for split, rows in examples.items()
    }
    num_steps = training_steps(options, data.get("train"))
    task = ClassificationTask(
        config,
        len(row.labels),
        classifier_dropout=options.classifier_dropout,
        dtype=launch.DTYPES[options.precision],
        seed=options.seed,
        remat=options.remat,
    )
    schedule = create_schedule(
        "polynomial",
        rate=options.learning_rate,
        total_steps=num_steps,
        warmup_steps=int(num_steps * options.warmup_proportion),
    )
    engine = launch.create_engine(task, options, schedule)
    weights = "new"
    if options.init_checkpoint:
        weights = launch.initialize(
            engine,
            config,
            options.init_checkpoint,
            allow_missing=("classifier/.*", "pooled_layer_norm/.*") if options.do_train else (),
            allow_unexpected=("masked_lm/.*", "sentence_pair/.*"),
        )
    launch.write_run_files(options, config, Path(vocabulary))
    if options.do_train:
        summary = launch.preamble(
            config,
            engine,
            options,
            weights=weights,
            data=", ".join(f"{split} {len(rows):,}" for split, rows in examples.items()) + f" examples of {row.name}",
            step=f"{options.train_batch_size} examples; {num_steps:,} steps are "
            f"{num_steps / data['train'].steps_per_epoch:.1f} epochs",
        )
        train(
            engine,
            data["train"],
            num_steps=num_steps,
            output_dir=options.output_dir,
            config=launch.config_json(config) | {"labels": list(row.labels)},
            options=launch.options_json(options),
            summary=summary,
            save_every_steps=options.save_checkpoints_steps,
            eval_every_steps=options.save_checkpoints_steps,
            evaluate=lambda: evaluate(engine, row, data["dev"], examples["dev"], options.eval_batch_size),
            best_metric=row.metric,
            early_stopping_evaluations=options.early_stopping_evaluations,
            keep_checkpoint_max=options.keep_checkpoint_max,
            log_every_steps=options.log_steps,
            steps_per_call=launch.steps_per_call(options),
        )
    step = launch.restore_weights(engine, config, options.output_dir, options.init_checkpoint)
    scores: Scores = {}
    for split, batch_size in (("dev", options.eval_batch_size), ("test", options.predict_batch_size)):
        if split in data:
            probabilities = predict(engine, data[split], batch_size)
            path = write_predictions(options, row, probabilities, examples[split], split)
            print(f"predictions of {len(examples[split]):,} {split} examples  {path}", flush=True)
            if all(example.label is not None for example in examples[split]):
                found = score(row, probabilities, examples[split])
                launch.write_results(options.output_dir, {"global_step": step, **found}, RESULTS[split])
                title = f"{row.name}, {split}, {len(examples[split]):,} examples, weights of step {step:,}"
                print_table(title, ["score", "value"], [[name, f"{value:.4f}"] for name, value in found.items()])
                scores = scores or found
    return scores


def training_steps(options: Options, dataset: ClassificationDataset | None) -> int:
    """Length of training: --num_train_steps, or --num_train_epochs in steps."""
    if options.num_train_steps or dataset is None:
        return options.num_train_steps or 1
    return max(1, round(dataset.steps_per_epoch * options.num_train_epochs))


def predict(engine: Engine, dataset: ClassificationDataset, batch_size: int) -> np.ndarray:
    """Probabilities float32 [N, C] of all examples in the order of their file."""
    import numpy as np

    batches = engine.predict(dataset.evaluation_batches(batch_size))
    by_length = np.concatenate([batch["probabilities"] for batch in batches])[: dataset.num_examples]
    in_order = np.empty_like(by_length)
    in_order[dataset.evaluation_order()] = by_length
    return in_order


def score(row: DatasetRow, probabilities: np.ndarray, examples: Sequence[Example]) -> Scores:
    """The row's scores and the mean cross-entropy in nats, for examples that all have labels."""
    import numpy as np

    from tasks.metrics import classification_scores

    labels = np.array([row.labels.index(example.label or "") for example in examples])
    loss = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)).mean()
    return {**classification_scores(labels, probabilities.argmax(axis=1), len(row.labels)), "loss": float(loss)}


def evaluate(
    engine: Engine, row: DatasetRow, dataset: ClassificationDataset, examples: Sequence[Example], batch_size: int
) -> Scores:
    """Score the engine's present weights."""
    return score(row, predict(engine, dataset, batch_size), examples)


def write_predictions(
    options: Options, row: DatasetRow, probabilities: np.ndarray, examples: Sequence[Example], split: str
) -> Path:
    """Write, per example in file order, the predicted label, its probability, the true label and the texts."""
    lines = ["index\tprediction\tconfidence\tlabel\ttext_a\ttext_b"]
    for index, (distribution, example) in enumerate(zip(probabilities, examples, strict=True)):
        best = int(distribution.argmax())
        texts = (example.label or "", example.text_a, example.text_b or "")
        lines.append("\t".join([str(index), row.labels[best], f"{distribution[best]:.4f}", *texts]))
    path = Path(options.output_dir) / f"{split}_predictions.tsv"
    write_atomically(path, "\n".join(lines) + "\n")
    return path


def report_seeds(options: Options, scores: list[Scores]) -> None:
    """Print and write mean and deviation of the development scores over the seeds."""
    import json

    from tasks.metrics import mean_and_deviation
    from training.tables import print_table

    summary = mean_and_deviation(scores)
    print_table(
        f"{options.task_name}, {len(scores)} seeds",
        ["score", "mean", "deviation"],
        [[name, f"{mean:.4f}", f"{deviation:.4f}"] for name, (mean, deviation) in summary.items()],
    )
    content = {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in summary.items()}
    write_atomically(Path(options.output_dir) / "eval_results.json", json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run(main, Options)
