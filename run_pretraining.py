"""Pretrain a language model: record shards and a config -> checkpoints, curves and held-out scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from absl.app import UsageError

from commands.flags import flag, run
from commands.options import OPTIMIZERS, SPIKE_ACTIONS, TrainingOptions
from data.objectives import OBJECTIVES

if TYPE_CHECKING:
    import keras
    import numpy as np

    from data.reading import PretrainingDataset
    from modeling.config import Config


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Pretrain a language model on record shards."""

    bert_config_file: str = flag(help="JSON file of the model's shape", aliases=("albert_config_file",))
    input_file: tuple[str, ...] = flag(help="record shards: paths or patterns, separated by commas")
    eval_input_file: tuple[str, ...] = flag(
        (), help="record shards to evaluate on; by default those that the manifest of --input_file calls held out"
    )
    objective: str = flag(
        "albert",
        help="what is learnt; must be what the records were made for; the order of words is learnt besides where they "
        "hold shuffled ones",
        choices=tuple(OBJECTIVES),
    )
    masked_lm_loss_weight: float = flag(1.0, help="weight of the masked-token loss", minimum=0)
    word_order_loss_weight: float = flag(1.0, help="weight of the loss of shuffled words", minimum=0)
    sentence_loss_weight: float = flag(1.0, help="weight of the sentence-pair loss", minimum=0)
    pooled_loss: bool = flag(
        False,
        help="average masked and shuffled tokens together, as AliceMind does, instead of each by themselves: the more "
        "numerous weigh more",
    )
    init_checkpoint: str | None = flag(
        None, help="weights to start from: a folder of ours, a TensorFlow 1 prefix, or a transformers folder"
    )
    init_sentence_head: bool = flag(
        True, help="false: start with a new sentence-pair head, whatever --init_checkpoint has"
    )
    max_seq_length: int | None = flag(None, help="of the records; read from their manifest by default", unit="tokens")
    max_predictions_per_seq: int | None = flag(
        None, help="of the records; read from their manifest by default", unit="tokens"
    )
    do_train: bool = flag(False, help="train")
    do_eval: bool = flag(False, help="score held-out records, while training and at its end")
    train_batch_size: int = flag(32, help="of one optimizer step", unit="examples", minimum=1)
    eval_batch_size: int = flag(8, help="of evaluation; results do not depend on it", unit="examples", minimum=1)
    optimizer: str = flag("lamb", help="update rule", choices=OPTIMIZERS)
    on_spike: str = flag(
        "warn",
        help="what to do about a loss that leaps: say so, skip its batch before it changes anything, or go back to the "
        "newest checkpoint and pass over all batches since",
        choices=SPIKE_ACTIONS,
    )
    learning_rate: float = flag(5e-5, help="peak learning rate", minimum=0)
    schedule: str = flag(
        "polynomial", help="learning rate after the warmup", choices=("polynomial", "linear", "constant")
    )
    poly_power: float = flag(1.0, help="power of the polynomial decay", minimum=0)
    num_train_steps: int = flag(100000, help="length of training", unit="steps", minimum=1)
    num_warmup_steps: int = flag(10000, help="steps in which the learning rate rises from 0", unit="steps", minimum=0)
    start_warmup_step: int = flag(0, help="step at which the warmup begins", unit="steps", minimum=0)
    save_checkpoints_steps: int = flag(1000, help="steps between two checkpoints", unit="steps", minimum=1)
    eval_steps: int | None = flag(
        None, help="steps between two evaluations; by default at every checkpoint", unit="steps", minimum=1
    )
    max_eval_steps: int = flag(100, help="batches of one evaluation, at most", unit="batches", minimum=1)


def main(options: Options) -> None:
    """Train and evaluate as the flags say."""
    from commands import session

    if not (options.do_train or options.do_eval):
        raise UsageError("nothing to do: give at least one of --do_train, --do_eval")
    processes = session.check_device(options)
    processes.together(lambda: session.check_files(options, ["bert_config_file"]))

    from data.reading import PretrainingDataset

    training_files, held_out_files = processes.together(lambda: split_held_out(options.input_file))
    held_out_files = list(options.eval_input_file) or held_out_files
    if options.do_eval and not held_out_files:
        raise UsageError(
            f"--do_eval: none of {', '.join(options.input_file)} is held out; make the records with --eval_fraction, "
            "or give --eval_input_file"
        )

    def open_records(files: Sequence[str], batch_size: int, rows: tuple[int, int] = (0, 1)) -> PretrainingDataset:
        return PretrainingDataset(
            files,
            batch_size // rows[1],
            seed=options.seed,
            shard=rows,
            max_seq_length=options.max_seq_length,
            max_predictions_per_seq=options.max_predictions_per_seq,
        )

    training = processes.together(lambda: open_records(training_files, options.train_batch_size))
    held_out = (
        processes.together(lambda: open_records(held_out_files, options.eval_batch_size)) if options.do_eval else None
    )
    check_objective(training, options.objective)
    shuffled = bool(training.max_word_order_per_seq)
    if held_out and bool(held_out.max_word_order_per_seq) != shuffled:
        with_words, without = ("--input_file", "the held-out ones")[:: 1 if shuffled else -1]
        raise UsageError(f"{with_words} hold shuffled words but {without} do not: make both with one --trigram_rate")
    if options.pooled_loss and not shuffled:
        raise UsageError(
            "--pooled_loss=True but the records hold no shuffled words: make them with --trigram_rate=0.05"
        )

    from commands.startup import start_backend

    start_backend(options)
    from ground.tables import print_table
    from modeling import load_config
    from modeling.accounting import flops_per_example
    from optimization import create_schedule
    from tasks.pretraining import PretrainingTask, unchanged_share, unigram_accuracy
    from training.loop import train
    from training.run import RunPlan

    config = load_config(options.bert_config_file)
    tokenizer = (training.manifest or {}).get(
        "tokenizer", {"file": options.bert_config_file, "vocab_size": config.vocab_size}
    )
    session.check_cuts(config, options.bert_config_file, options)
    session.check_fit(
        config,
        options.bert_config_file,
        vocab_size=tokenizer["vocab_size"],
        vocabulary=tokenizer["file"],
        max_seq_length=training.max_seq_length,
    )
    if training.manifest is None:
        check_ids(training, config.vocab_size, options.bert_config_file)
    task = PretrainingTask(
        config,
        options.objective,
        weights={
            "masked_lm": options.masked_lm_loss_weight,
            "pair": options.sentence_loss_weight,
            **({"word_order": options.word_order_loss_weight} if shuffled else {}),
        },
        pooled=options.pooled_loss,
        computation=session.computation(options),
    )
    schedule = create_schedule(
        options.schedule,
        rate=options.learning_rate,
        total_steps=options.num_train_steps,
        warmup_steps=options.num_warmup_steps,
        power=options.poly_power,
        start_warmup_step=options.start_warmup_step,
    )
    engine = session.create_engine(task, options, schedule, batch_size=options.train_batch_size)
    weights = "new"
    if options.init_checkpoint and options.do_train:
        weights = initialize(engine.model, config, options, task.objective.labels)
    rows = session.rows_of_process(engine)
    rows_of_batch = training if rows == (0, 1) else open_records(training_files, options.train_batch_size, rows)
    session.write_run_files(options, config)

    def evaluate() -> dict[str, float]:
        assert held_out is not None
        batches = itertools.islice(held_out.evaluation_batches(options.eval_batch_size), options.max_eval_steps)
        return engine.evaluate(batches)

    epochs = options.num_train_steps * options.train_batch_size / training.num_examples
    scored = training.max_predictions_per_seq + training.max_word_order_per_seq
    tokens_per_step = options.train_batch_size * training.max_seq_length
    if options.do_train:
        plan = RunPlan(
            num_steps=options.num_train_steps,
            output_dir=Path(options.output_dir),
            config=session.config_json(config),
            complete_config=session.complete_config,
            options=session.options_json(options),
            summary=session.preamble(
                config,
                engine,
                options,
                weights=weights,
                data=f"{training.num_examples:,} examples of {training.max_seq_length} tokens{filling(training)}, "
                f"{held_out.num_examples if held_out else 0:,} held out",
                step=f"{options.train_batch_size} examples, {tokens_per_step:,} tokens; "
                f"{options.num_train_steps:,} steps are {epochs:.1f} epochs",
            ),
            save_every_steps=options.save_checkpoints_steps,
            eval_every_steps=(options.eval_steps or options.save_checkpoints_steps) if held_out else 0,
            best_metric="loss" if held_out else None,
            lower_is_better=True,
            keep_checkpoint_max=options.keep_checkpoint_max,
            log_every_steps=options.log_steps,
            steps_per_call=session.steps_per_call(options),
            unit="tokens",
            count_units=lambda batch: int(batch["input_ids"].size) * rows[1],
            flops_per_unit=flops_per_example(config, training.max_seq_length, scored) / training.max_seq_length,
            **session.watching(options),
        )
        outcome = train(engine, rows_of_batch, plan, evaluate=evaluate if held_out else None)
        scores = dict(outcome.evaluation)
    else:
        # Any model can be scored on masked tokens alone.
        unused = () if task.objective.labels else ("sentence_pair/.*",)
        engine.step = session.restore_weights(
            engine,
            config,
            options.output_dir,
            options.init_checkpoint,
            allow_unexpected=unused,
            adjust=lambda tensors: check_head(tensors, options, task.objective.labels),
        )
        scores = evaluate()
    if held_out is None:
        return
    scores = {
        "global_step": float(engine.step),
        **scores,
        "unigram_accuracy": unigram_accuracy(
            itertools.islice(training.evaluation_batches(options.eval_batch_size), options.max_eval_steps),
            itertools.islice(held_out.evaluation_batches(options.eval_batch_size), options.max_eval_steps),
        ),
    }
    if shuffled:
        batches = held_out.evaluation_batches(options.eval_batch_size)
        scores["unchanged_order_accuracy"] = unchanged_share(itertools.islice(batches, options.max_eval_steps))
    session.write_results(options.output_dir, scores)
    print_table("held-out records", ["score", "value"], [[name, f"{value:.4f}"] for name, value in scores.items()])


def initialize(model: keras.Model, config: Config, options: Options, pair_labels: Sequence[str]) -> str:
    """Load --init_checkpoint; returns what became of every tensor.

    Raises `UsageError` where its sentence-pair head has another number of classes than `pair_labels`.
    """
    from commands import session

    def adjust(tensors: dict[str, np.ndarray]) -> None:
        head = tensors.get("sentence_pair/bias")
        if options.init_sentence_head and pair_labels and head is not None and len(head) != len(pair_labels):
            raise UsageError(
                f"--init_checkpoint={options.init_checkpoint} has a sentence-pair head of {len(head)} classes, but "
                f"--objective={options.objective} has {len(pair_labels)} ({', '.join(pair_labels)}): give an objective "
                f"of {len(head)} classes, or --init_sentence_head=False for a new head"
            )
        if not (options.init_sentence_head and pair_labels):
            for name in ("sentence_pair/kernel", "sentence_pair/bias"):
                tensors.pop(name, None)

    return session.initialize(
        model,
        config,
        options.init_checkpoint or "",
        allow_missing=("masked_lm/.*", "sentence_pair/.*"),
        allow_unexpected=("classifier/.*",),
        adjust=adjust,
    )


def check_head(tensors: Mapping[str, np.ndarray], options: Options, pair_labels: Sequence[str]) -> None:
    """Raise `UsageError` where weights that are to be scored have no sentence-pair head of these classes."""
    head = tensors.get("sentence_pair/bias")
    if pair_labels and (head is None or len(head) != len(pair_labels)):
        got = "no sentence-pair head" if head is None else f"a sentence-pair head of {len(head)} classes"
        raise UsageError(
            f"the weights have {got}, but --objective={options.objective} scores {len(pair_labels)} "
            f"({', '.join(pair_labels)}): give the --objective that they were trained with and records made for it, "
            "or train a head with --do_train"
        )


def split_held_out(patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part record files into those to train on and those whose manifest says that their documents are held out."""
    from data.reading import expand_shards, find_manifests

    paths = expand_shards(patterns)
    described = find_manifests(paths)
    held_out = [path for path in paths if path in described and described[path][0]["recipe"]["held_out"]]
    training = [path for path in paths if path not in held_out]
    if not training:
        raise UsageError(f"all of {', '.join(patterns)} is held out: give --input_file the training records too")
    return [str(path) for path in training], [str(path) for path in held_out]


def filling(dataset: PretrainingDataset) -> str:
    """How full the rows are, and with how many sequences, as far as manifests tell."""
    sequences = f"{dataset.sequences_per_example:.1f} sequences each, " if dataset.sequences_per_example else ""
    return f" ({sequences}{dataset.fill:.1%} of positions filled)" if dataset.fill else ""


def check_objective(dataset: PretrainingDataset, objective: str) -> None:
    """Raise `UsageError` where the records were made for another objective than is asked for."""
    made_for = (dataset.manifest or {}).get("objective", objective)
    if made_for != objective:
        raise UsageError(
            f"--objective={objective} but the records were made with --objective={made_for}: "
            f"give --objective={made_for}, or make others"
        )


def check_ids(dataset: PretrainingDataset, vocab_size: int, config_file: str) -> None:
    """Raise `UsageError` where the first batch of records without a manifest has ids beyond the vocabulary."""
    batch = dataset.batch(0)
    largest = max(int(batch[name].max()) for name in ("input_ids", "masked_lm_ids"))
    if largest >= vocab_size:
        raise UsageError(
            f"the records hold the id {largest:,} but {config_file} has vocab_size={vocab_size:,}: "
            "use the config whose vocabulary the records were made with"
        )


if __name__ == "__main__":
    run(main, Options)
