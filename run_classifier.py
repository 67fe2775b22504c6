"""Fine-tune, evaluate and predict with a text or text-pair classifier: checkpoint + task -> scores and predictions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.flags import flag, run
from commands.options import TrainingOptions
from ground.files import write_atomically

if TYPE_CHECKING:
    import keras
    import numpy as np

    from data.labelled import ClassificationDataset
    from modeling.config import Config
    from optimization import TaskDrivenChild
    from tasks.classification import ClassificationTask
    from tasks.datasets import DatasetRow, Example
    from tasks.regularization import Regularizer
    from training.engine import Engine

Scores = dict[str, float]
RESULTS = {"dev": "eval_results", "test": "test_results"}


@dataclass(frozen=True, kw_only=True)
class TechniqueOptions:
    """What makes fine-tuning on little data stronger; all are off by default, and any combine."""

    adversarial_weight: float = flag(
        0.0,
        help="weight of the divergence from predictions on adversarially perturbed word vectors; 1 is the recipe "
        "released with StructBERT, whose values are the defaults of the next three; triples the forward passes",
        minimum=0,
    )
    adversarial_sigma: float = flag(5e-6, help="deviation of the random perturbation before the step", minimum=0)
    adversarial_step: float = flag(5e-5, help="length of the step along the scaled gradient", minimum=0)
    adversarial_bound: float = flag(1e-5, help="largest step of a component", minimum=0)
    r_drop_weight: float = flag(
        0.0, help="weight of the divergence between two dropout masks (R-Drop); doubles the passes", minimum=0
    )
    child_tuning: str | None = flag(
        None,
        help="train a part of the network: F, redrawn every step, or D, of the largest Fisher information",
        choices=("F", "D"),
    )
    child_tuning_fraction: float = flag(0.2, help="share of the weights in the child", minimum=0.001, maximum=1)
    child_tuning_fisher: str = flag(
        "paper",
        help="for D: from every example without dropout (paper), or every batch as trained, clipped (released)",
        choices=("paper", "released"),
    )
    layer_decay: float = flag(
        1.0,
        help="factor on the learning rate from each layer to the one below, head to embeddings",
        minimum=0,
        maximum=1,
    )
    freeze: tuple[str, ...] = flag((), help="regular expressions over names of variables that keep their values")
    freeze_layers: int = flag(
        0, help="layers from the lowest, embeddings included, that keep their values", unit="layers", minimum=0
    )
    gradual_unfreezing: float = flag(
        0.0,
        help="share of the steps in which the layers join the training, from the highest to the embeddings; the head "
        "trains from the start",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True, kw_only=True)
class Options(TechniqueOptions, TrainingOptions):
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
    from commands import session

    if not (options.do_train or options.do_eval or options.do_predict):
        raise UsageError("nothing to do: give at least one of --do_train, --do_eval, --do_predict")
    check_techniques(options)
    processes = session.check_device(options)
    named = ["bert_config_file", "vocab_file", "spm_model_file", "task_file"]
    processes.together(lambda: session.check_files(options, named))

    from tasks.datasets import find_file, find_row

    row = find_row(options.task_name, Path(options.task_file) if options.task_file else None)
    wanted = {"train": options.do_train, "dev": options.do_train or options.do_eval, "test": options.do_predict}
    files = processes.together(
        lambda: {split: find_file(row, Path(options.data_dir), split) for split, asked in wanted.items() if asked}
    )
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
    from data.labelled import ClassificationDataset
    from data.tokenizers import load_tokenizer
    from tasks.datasets import read_examples

    tokenizer = load_tokenizer(
        vocab_file=options.vocab_file, spm_model_file=options.spm_model_file, do_lower_case=options.do_lower_case
    )
    examples = {split: read_examples(row, path, need_labels=split != "test") for split, path in files.items()}

    from commands import session
    from commands.startup import start_backend

    start_backend(options)
    from ground.tables import print_table
    from modeling import load_config
    from optimization import create_schedule
    from tasks.classification import ClassificationTask, encode
    from training.loop import train
    from training.run import RunPlan

    config = load_config(options.bert_config_file)
    vocabulary = options.spm_model_file or options.vocab_file or ""
    session.check_cuts(config, options.bert_config_file, options)
    session.check_fit(
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
        computation=session.computation(options),
        regularizers=regularizers(options),
    )
    schedule = create_schedule(
        "polynomial",
        rate=options.learning_rate,
        total_steps=num_steps,
        warmup_steps=int(num_steps * options.warmup_proportion),
    )
    behaviour, child = optimizer_behaviour(options, config, num_steps)
    engine = session.create_engine(task, options, schedule, batch_size=options.train_batch_size, **behaviour)
    weights, step = "new", 0
    pretraining_heads = ("masked_lm/.*", "sentence_pair/.*")
    if not options.do_train:
        step = session.restore_weights(
            engine, config, options.output_dir, options.init_checkpoint, allow_unexpected=pretraining_heads
        )
    elif options.init_checkpoint:
        weights = session.initialize(
            engine.model,
            config,
            options.init_checkpoint,
            allow_missing=("classifier/.*", "pooled_layer_norm/.*"),
            allow_unexpected=pretraining_heads,
        )
    session.write_run_files(options, config)
    if session.writes():
        tokenizer.save(Path(options.output_dir))
    if options.do_train:
        facts = {"child": choose_child(options, task, engine.model, child, data["train"])} if child else {}
        summary = session.preamble(
            config,
            engine,
            options,
            weights=weights,
            data=", ".join(f"{split} {len(rows):,}" for split, rows in examples.items()) + f" examples of {row.name}",
            step=f"{options.train_batch_size} examples; {num_steps:,} steps are "
            f"{num_steps / data['train'].steps_per_epoch:.1f} epochs",
            **facts,
        )
        plan = RunPlan(
            num_steps=num_steps,
            output_dir=Path(options.output_dir),
            config=session.config_json(config),
            complete_config=session.complete_config,
            options=session.options_json(options),
            summary=summary,
            save_every_steps=options.save_checkpoints_steps,
            eval_every_steps=options.save_checkpoints_steps,
            best_metric=row.metric,
            early_stopping_evaluations=options.early_stopping_evaluations,
            keep_checkpoint_max=options.keep_checkpoint_max,
            log_every_steps=options.log_steps,
            steps_per_call=session.steps_per_call(options),
            **session.watching(options),
        )
        train(
            engine,
            session.own_rows(data["train"], engine),
            plan,
            evaluate=lambda: evaluate(engine, row, data["dev"], examples["dev"], options.eval_batch_size),
        )
        step = session.restore_weights(engine, config, options.output_dir)
    scores: Scores = {}
    for split, batch_size in (("dev", options.eval_batch_size), ("test", options.predict_batch_size)):
        if split in data:
            probabilities = predict(engine, data[split], batch_size)
            path = Path(options.output_dir) / f"{split}_predictions.tsv"
            if session.writes():
                write_predictions(path, row, probabilities, examples[split])
            print(f"predictions of {len(examples[split]):,} {split} examples  {path}", flush=True)
            if all(example.label is not None for example in examples[split]):
                found = score(row, probabilities, examples[split])
                session.write_results(options.output_dir, {"global_step": step, **found}, RESULTS[split])
                title = f"{row.name}, {split}, {len(examples[split]):,} examples, weights of step {step:,}"
                print_table(title, ["score", "value"], [[name, f"{value:.4f}"] for name, value in found.items()])
                scores = scores or found
    return scores


def check_techniques(options: Options) -> None:
    """Raise `UsageError` for flags of techniques that would do nothing."""
    switches = {
        "adversarial_weight": ("adversarial_sigma", "adversarial_step", "adversarial_bound"),
        "child_tuning": ("child_tuning_fraction", "child_tuning_fisher"),
    }
    defaults = {field.name: field.default for field in dataclasses.fields(TechniqueOptions)}
    for switch, details in switches.items():
        for name in details:
            if not getattr(options, switch) and getattr(options, name) != defaults[name]:
                raise UsageError(
                    f"--{name}={getattr(options, name)} does nothing without --{switch}; give both or neither"
                )
    if options.child_tuning == "F" and options.child_tuning_fisher != defaults["child_tuning_fisher"]:
        raise UsageError("--child_tuning_fisher=released does nothing with --child_tuning=F; use --child_tuning=D")
    if options.adversarial_weight and options.precision != "float32":
        bits = {"bfloat16": 8, "float16": 11}[options.precision]
        raise UsageError(
            f"--adversarial_weight={options.adversarial_weight:g} with --precision={options.precision}: steps of "
            f"{options.adversarial_bound:g} are lost in its {bits} bits; use --precision=float32"
        )


def regularizers(options: Options) -> list[Regularizer]:
    """The further losses; those of weight 0 are off."""
    from tasks.regularization import Adversarial, RDrop

    adversarial = Adversarial(
        options.adversarial_weight, options.adversarial_sigma, options.adversarial_step, options.adversarial_bound
    )
    return [RDrop(options.r_drop_weight), adversarial]


def optimizer_behaviour(
    options: Options, config: Config, num_steps: int
) -> tuple[dict[str, Any], TaskDrivenChild | None]:
    """Arguments of `create_optimizer` for what learns, how fast and from when; and the child that is yet to be chosen.

    Raises:
        UsageError: layers are asked to differ that share their weights.
    """
    from optimization import Start, TaskDrivenChild, TaskFreeChild
    from tasks.layer_rates import frozen_expressions, learning_rate_multipliers

    child = {
        None: None,
        "F": TaskFreeChild(options.child_tuning_fraction, options.seed),
        "D": TaskDrivenChild(),
    }[options.child_tuning]
    rates = learning_rate_multipliers(config, options.layer_decay, options.gradual_unfreezing, num_steps)
    behaviour = {
        "frozen": [*options.freeze, *frozen_expressions(config, options.freeze_layers)],
        "learning_rate_multipliers": [
            (expression, Start(factor, first_step) if first_step else factor)
            for expression, factor, first_step in rates
        ],
        "transforms_after_clipping": [child] if child else [],
    }
    return behaviour, child if isinstance(child, TaskDrivenChild) else None


def choose_child(
    options: Options,
    task: ClassificationTask,
    model: keras.Model,
    child: TaskDrivenChild,
    dataset: ClassificationDataset,
) -> str:
    """Choose the child by the Fisher information of the model's present weights; returns what was chosen.

    A run that continues has the same weights here as when it began, and so chooses the same child.
    """
    from modeling import named_variables
    from optimization import child_masks
    from tasks.fisher import fisher_information
    from tasks.layer_rates import BLOCKS, frozen_expressions

    frozen = [*options.freeze, *frozen_expressions(task.config, options.freeze_layers)]
    names = [
        name
        for name in named_variables(model)
        if re.search(BLOCKS, name) and not any(re.search(expression, name) for expression in frozen)
    ]
    if not names:
        raise UsageError("--child_tuning=D: all layers are frozen, there is none to choose a child from; freeze fewer")
    released = options.child_tuning_fisher == "released"
    batches = (
        (dataset.batch(step) for step in range(dataset.steps_per_epoch)) if released else dataset.evaluation_batches(1)
    )
    fisher = fisher_information(task, model, batches, names, released=released, seed=options.seed)
    masks = child_masks(fisher, options.child_tuning_fraction)
    child.choose(masks)
    kept, total = (sum(int(count(mask)) for mask in masks.values()) for count in (lambda m: m.sum(), lambda m: m.size))
    return f"{kept:,} of {total:,} weights of the layers, by the {options.child_tuning_fisher} Fisher information"


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


def write_predictions(path: Path, row: DatasetRow, probabilities: np.ndarray, examples: Sequence[Example]) -> None:
    """Write, per example in file order, the predicted label, its probability, the true label and the texts."""
    lines = ["index\tprediction\tconfidence\tlabel\ttext_a\ttext_b"]
    for index, (distribution, example) in enumerate(zip(probabilities, examples, strict=True)):
        best = int(distribution.argmax())
        texts = (example.label or "", example.text_a, example.text_b or "")
        lines.append("\t".join([str(index), row.labels[best], f"{distribution[best]:.4f}", *texts]))
    write_atomically(path, "\n".join(lines) + "\n")


def report_seeds(options: Options, scores: list[Scores]) -> None:
    """Print and write mean and deviation of the development scores over the seeds."""
    import json

    from commands import session
    from ground.tables import print_table
    from tasks.metrics import mean_and_deviation

    summary = mean_and_deviation(scores)
    print_table(
        f"{options.task_name}, {len(scores)} seeds",
        ["score", "mean", "deviation"],
        [[name, f"{mean:.4f}", f"{deviation:.4f}"] for name, (mean, deviation) in summary.items()],
    )
    content = {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in summary.items()}
    if session.writes():
        write_atomically(Path(options.output_dir) / "eval_results.json", json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run(main, Options)
