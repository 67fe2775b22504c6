"""Pretrain a language model: record shards and a config -> checkpoints, curves and held-out scores."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from absl.app import UsageError

from commands.flags import Group, flag, run
from commands.needs import DEVICE_NEEDS, Need, check_needs
from commands.options import OPTIMIZERS, SPIKE_ACTIONS, TrainingOptions
from data.languages import ALPHA
from data.objectives import OBJECTIVES

if TYPE_CHECKING:
    import numpy as np

    from commands.estimate import Work
    from commands.records import Records
    from commands.session import Session
    from data.reading import PretrainingDataset
    from modeling.config import Config
    from tasks.run_file import RunFile


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Pretrain a language model on record shards."""

    _model: ClassVar = Group.MODEL
    bert_config_file: str = flag(help="JSON file of the model's shape", aliases=("albert_config_file",))
    _data: ClassVar = Group.DATA
    input_file: tuple[str, ...] = flag(help="record shards: paths or patterns, separated by commas")
    eval_input_file: tuple[str, ...] = flag(
        (),
        help="record shards to evaluate on; by default those that the manifest of --input_file calls held out",
        group=Group.EVALUATION,
    )
    language_alpha: float = flag(
        ALPHA,
        help="records of several languages: one is drawn for each step, in proportion to its share of the text to this "
        "power: 1 as often as its text is large, 0 all alike",
        minimum=0,
    )
    parallel_share: float | None = flag(
        None,
        help="likewise: share of the steps that learn from pairs of languages; by default a pair is drawn as if it "
        "were a language",
        minimum=0.0,
        maximum=1.0,
    )
    _objective: ClassVar = Group.OBJECTIVE
    objective: str = flag(
        "albert",
        help="what is learnt; must be what the records were made for; the order of words is learnt besides where they "
        "hold shuffled ones",
        choices=tuple(OBJECTIVES),
        essential=True,
    )
    masked_lm_loss_weight: float = flag(1.0, help="weight of the masked-token loss", minimum=0)
    word_order_loss_weight: float = flag(1.0, help="weight of the loss of shuffled words", minimum=0)
    sentence_loss_weight: float = flag(1.0, help="weight of the sentence-pair loss", minimum=0)
    crossed_loss_weight: float = flag(
        1.0, help="weight of the losses of masked tokens that are read with the other text in sight", minimum=0
    )
    camlm_mask: str = flag(
        "strict",
        help="what masked tokens of a sentence read of its translation: strict, what is not masked of it, which has "
        "itself read nothing else; cross, as others reproduced it: what is not masked reads both",
        choices=("strict", "cross"),
    )
    camlm_computation: str = flag(
        "split",
        help="split: each text by itself, with the other's masked tokens beside it; dense: one row of both; the same "
        "result",
        choices=("split", "dense"),
    )
    camlm_positions: str = flag(
        "continued",
        help="of the second text: continued behind the first, as in pairs that are fine-tuned, or restarted",
        choices=("continued", "restarted"),
    )
    pseudo_length_ratio: float = flag(
        1.0, help="tokens that the model writes for each token of a text, as far as it has positions", minimum=0.0
    )
    pseudo_pick: str = flag(
        "argmax", help="what the model writes: the best token, or a drawn one", choices=("argmax", "sample")
    )
    next_tokens_loss_weight: float = flag(1.0, help="weight of the loss of a target's tokens", minimum=0)
    masked_lm_until: float = flag(
        1.0,
        help="share of --num_train_steps after which masked tokens and shuffled words weigh nothing; PLUG's 0.9",
        minimum=0.0,
        maximum=1.0,
    )
    label_smoothing: float = flag(
        0.0, help="share of the label of a target's token that is spread over the vocabulary", minimum=0.0
    )
    pooled_loss: bool = flag(
        False,
        help="average masked and shuffled tokens together, as AliceMind does, instead of each by themselves: the more "
        "numerous weigh more",
    )
    init_checkpoint: str | None = flag(
        None,
        help="weights to start from: a folder of ours, a TensorFlow 1 prefix, or a transformers folder; an archive of "
        "one, or its http(s) address, works too",
        essential=True,
        group=Group.MODEL,
    )
    init_sentence_head: bool = flag(
        True, help="false: start with a new sentence-pair head, whatever --init_checkpoint has", group=Group.MODEL
    )
    allow_any_start: bool = flag(
        False,
        help="btmlm: begin with new weights, or with a checkpoint that does not say that it learnt camlm",
        group=Group.MODEL,
    )
    max_seq_length: int | None = flag(
        None, help="of the records; read from their manifest by default", unit="tokens", group=Group.DATA
    )
    max_predictions_per_seq: int | None = flag(
        None, help="of the records; read from their manifest by default", unit="tokens", group=Group.DATA
    )
    _training: ClassVar = Group.TRAINING
    do_train: bool = flag(False, help="train", essential=True)
    do_eval: bool = flag(
        False, help="score held-out records, while training and at its end", essential=True, group=Group.EVALUATION
    )
    train_batch_size: int = flag(32, help="of one optimizer step", unit="examples", minimum=1, essential=True)
    eval_batch_size: int = flag(
        8, help="of evaluation; results do not depend on it", unit="examples", minimum=1, group=Group.EVALUATION
    )
    optimizer: str = flag("lamb", help="update rule", choices=OPTIMIZERS)
    on_spike: str = flag(
        "warn",
        help="what to do about a loss that leaps: say so, skip its batch before it changes anything, or go back to the "
        "newest checkpoint and pass over all batches since",
        choices=SPIKE_ACTIONS,
    )
    learning_rate: float = flag(5e-5, help="peak learning rate", minimum=0, essential=True)
    schedule: str = flag(
        "polynomial", help="learning rate after the warmup", choices=("polynomial", "linear", "constant")
    )
    poly_power: float = flag(1.0, help="power of the polynomial decay", minimum=0)
    num_train_steps: int = flag(100000, help="length of training", unit="steps", minimum=1, essential=True)
    num_warmup_steps: int = flag(
        10000, help="steps in which the learning rate rises from 0", unit="steps", minimum=0, essential=True
    )
    start_warmup_step: int = flag(0, help="step at which the warmup begins", unit="steps", minimum=0)
    _watching: ClassVar = Group.WATCHING
    save_checkpoints_steps: int = flag(
        1000, help="steps between two checkpoints", unit="steps", minimum=1, essential=True
    )
    _evaluation: ClassVar = Group.EVALUATION
    eval_steps: int | None = flag(
        None, help="steps between two evaluations; by default at every checkpoint", unit="steps", minimum=1
    )
    max_eval_steps: int = flag(100, help="batches of one evaluation, at most", unit="batches", minimum=1)


NEEDS = (
    *DEVICE_NEEDS,
    Need(("eval_input_file", "eval_steps"), "--do_eval", lambda o: o.do_eval),
    Need(("start_warmup_step",), "--num_warmup_steps", lambda o: o.num_warmup_steps),
    Need(("poly_power",), "--schedule=polynomial", lambda o: o.schedule == "polynomial"),
    Need(("init_sentence_head",), "--init_checkpoint", lambda o: o.init_checkpoint),
    Need(
        ("sentence_loss_weight",),
        f"an --objective of pairs ({', '.join(name for name, row in OBJECTIVES.items() if row.labels)})",
        lambda o: OBJECTIVES[o.objective].labels,
    ),
    Need(
        ("crossed_loss_weight",),
        f"an --objective of two sides ({', '.join(name for name, row in OBJECTIVES.items() if row.streams > 1)})",
        lambda o: OBJECTIVES[o.objective].streams > 1,
    ),
    Need(
        ("camlm_mask", "camlm_computation", "camlm_positions"),
        f"an --objective across texts ({', '.join(name for name, row in OBJECTIVES.items() if row.across)})",
        lambda o: OBJECTIVES[o.objective].across,
    ),
    Need(
        ("pseudo_length_ratio", "pseudo_pick"),
        f"an --objective that writes ({', '.join(name for name, row in OBJECTIVES.items() if row.writes)})",
        lambda o: OBJECTIVES[o.objective].writes,
    ),
    Need(
        ("allow_any_start",),
        f"an --objective after another ({', '.join(name for name, row in OBJECTIVES.items() if row.after)})",
        lambda o: OBJECTIVES[o.objective].after,
    ),
    Need(
        ("next_tokens_loss_weight", "label_smoothing"),
        f"an --objective with targets ({', '.join(name for name, row in OBJECTIVES.items() if row.continuing)})",
        lambda o: OBJECTIVES[o.objective].continuing,
    ),
    Need(
        ("masked_lm_until",),
        "an --objective that learns more than masked tokens",
        lambda o: len(OBJECTIVES[o.objective].losses) > 1,
    ),
)


def main(options: Options) -> None:
    """Train and evaluate as the flags say."""
    from commands.session import Session

    if not (options.do_train or options.do_eval):
        raise UsageError("nothing to do: give at least one of --do_train, --do_eval")
    check_needs(options, NEEDS)
    session = Session.check(options, ["bert_config_file"])

    from commands.across import check_start
    from commands.records import check_ids, open_records

    session.together(lambda: check_start(options))
    records = session.together(lambda: open_records(options))
    config = session.start()
    tokenizer = records.tokenizer_facts(config, options.bert_config_file)
    session.check_fit(
        vocab_size=tokenizer["vocab_size"],
        vocabulary=tokenizer["file"],
        max_seq_length=records.training.max_seq_length,
        max_target_length=records.training.max_target_length,
        scored=records.scored,
    )
    check_ids(records.training, config.vocab_size, options.bert_config_file)
    work = work_of(config, options, records)

    build(session, options, records)
    with session.entered(run_file(session, options, records), reads(options, records), options.num_train_steps):
        load_weights(session, options)
        if options.dry_run:
            session.show_plan(work=work if options.do_train else None, **plan_of(session, options, records))
            return
        session.describe(lambda folder: run_file(session, options, records).tokenizer)
        scores = train(session, options, records) if options.do_train else {}
        if records.held_out is None:
            return
        scores = scores or evaluate(session, options, records)
        scores = {"global_step": float(session.engine.step), **scores, **floors(options, records)}
        session.finish("eval_results", scores, "held-out records")


def run_file(session: Session, options: Options, records: Records) -> RunFile:
    """Return what the run is made of."""
    from commands.resuming import data_of_records
    from tasks.run_file import PRETRAINING, RunFile, TokenizerFile

    tokenizer = records.tokenizer_facts(session.config, options.bert_config_file)
    return RunFile(
        kind=PRETRAINING,
        config=session.config,
        computation=dataclasses.asdict(session.computation()),
        tokenizer=TokenizerFile(fingerprint=tokenizer["fingerprint"], max_seq_length=records.training.max_seq_length),
        objective=options.objective,
        shuffles_words=records.shuffled,
        data=data_of_records(records),
    )


def reads(options: Options, records: Records) -> dict[str, Sequence[str | Path | None]]:
    """Return the files that the run reads, by flag."""
    return {
        "--bert_config_file": [options.bert_config_file],
        "--input_file": records.training.paths,
        "--eval_input_file": records.held_out.paths if records.held_out else (),
        "--init_checkpoint": [options.init_checkpoint if options.do_train else None],
    }


def build(session: Session, options: Options, records: Records) -> None:
    """Build the task of the objective, its schedule and its engine."""
    from commands.across import across_of, pseudo_of
    from optimization import create_schedule
    from tasks.pretraining import PretrainingTask

    task = PretrainingTask(
        session.config,
        options.objective,
        weights={
            "masked_lm": options.masked_lm_loss_weight,
            "pair": options.sentence_loss_weight,
            "crossed": options.crossed_loss_weight,
            "next_tokens": options.next_tokens_loss_weight,
            **({"word_order": options.word_order_loss_weight} if records.shuffled else {}),
        },
        pooled=options.pooled_loss,
        label_smoothing=options.label_smoothing,
        across=across_of(options),
        pseudo=pseudo_of(options, records),
        until=dict.fromkeys(("masked_lm", "word_order"), round(options.masked_lm_until * options.num_train_steps))
        if options.masked_lm_until < 1
        else None,
        computation=session.computation(),
    )
    schedule = create_schedule(
        options.schedule,
        rate=options.learning_rate,
        total_steps=options.num_train_steps,
        warmup_steps=options.num_warmup_steps,
        power=options.poly_power,
        start_warmup_step=options.start_warmup_step,
    )
    session.build(task, schedule, batch_size=options.train_batch_size)


def load_weights(session: Session, options: Options) -> None:
    """Load the weights to train from, or those of the finished run to score."""
    from commands.records import check_pair_head, keep_pair_head
    from tasks.kinds import DECODER, PRETRAINING_HEADS

    if options.do_train:
        session.start_from(
            options.init_checkpoint,
            allow_missing=(*PRETRAINING_HEADS, *DECODER),
            allow_unexpected=("classifier/.*",),
            adjust=lambda tensors: keep_pair_head(tensors, options),
        )
        return
    # Any pretrained model can be scored on masked tokens alone.
    unused = () if OBJECTIVES[options.objective].labels else PRETRAINING_HEADS[1:]
    session.engine.step = session.restore(
        options.init_checkpoint,
        allow_unexpected=unused,
        adjust=lambda tensors: check_pair_head(tensors, options.objective),
    )


def train(session: Session, options: Options, records: Records) -> Mapping[str, float]:
    """Train on the records, and return the last scores of those held out, if there are any."""
    outcome = session.train(
        records.mixture(session.rows_of_process(), options.train_batch_size, options.seed),
        (lambda: evaluate(session, options, records)) if records.held_out else None,
        **plan_of(session, options, records),
    )
    return outcome.evaluation


def plan_of(session: Session, options: Options, records: Records) -> dict[str, Any]:
    """Return the facts of the preamble, and what `training.run.RunPlan` has to know of pretraining."""
    from modeling.accounting import flops_per_example

    training, held_out = records.training, records.held_out
    work = work_of(session.config, options, records)
    epochs = options.num_train_steps * options.train_batch_size / training.num_examples
    lengths = training.max_seq_length, training.max_target_length, training.max_other_length
    tokens_per_step = options.train_batch_size * sum(lengths)
    facts = {"data": records.facts} | ({"languages": drawn} if (drawn := records.drawn) else {})
    if options.do_train:
        facts["step"] = (
            f"{options.train_batch_size} examples, {tokens_per_step:,} tokens; "
            f"{options.num_train_steps:,} steps are {epochs:.1f} epochs"
        )
    return {
        "facts": facts,
        "num_steps": options.num_train_steps,
        "save_every_steps": options.save_checkpoints_steps,
        "eval_every_steps": (options.eval_steps or options.save_checkpoints_steps) if held_out else 0,
        "best_metric": "loss" if held_out else None,
        "lower_is_better": True,
        "unit": "tokens",
        "count_units": lambda batch: tokens_per_step,
        "flops_per_unit": options.train_batch_size
        * flops_per_example(
            session.config, work.length, work.predictions, work.target, work.other, written=work.written
        )
        / tokens_per_step,
    }


def work_of(config: Config, options: Options, records: Records) -> Work:
    """Return what the run computes, for a plan of memory and time."""
    from commands.across import lengths_read, written
    from commands.estimate import Work

    target = records.training.max_target_length
    length, other = lengths_read(options, records, config)
    return Work(
        batch_size=options.train_batch_size,
        length=length,
        predictions=records.scored - target,
        num_steps=options.num_train_steps,
        target=target,
        other=other,
        written=written(options, records, config),
    )


def evaluate(session: Session, options: Options, records: Records) -> dict[str, float]:
    """Return the losses and accuracies of the present weights on the held-out records.

    Of several languages each is scored by itself: `NAME_en` is the loss of one, NAME the mean over all.
    """
    found = {
        language: session.engine.evaluate(first_batches({language: dataset}, options))
        for language, dataset in records.held_out_languages.items()
    }
    first, *others = found.values()
    if not others:
        return first
    scores = {name: statistics.fmean(each[name] for each in found.values()) for name in first}
    losses = [name for name in scores if name.endswith("loss")]
    return scores | {f"{name}_{language}": each[name] for language, each in found.items() for name in losses}


def first_batches(languages: Mapping[str, PretrainingDataset], options: Options) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of one evaluation, at most --max_eval_steps of each language."""
    for dataset in languages.values():
        yield from itertools.islice(dataset.evaluation_batches(options.eval_batch_size), options.max_eval_steps)


def floors(options: Options, records: Records) -> dict[str, float]:
    """Return the accuracies that a model without any knowledge of the text would have."""
    from tasks.pretraining import next_tokens_unigram_accuracy, unchanged_share, unigram_accuracy

    training, held_out = records.training_languages, records.held_out_languages

    def batches() -> tuple[Iterator[dict[str, np.ndarray]], Iterator[dict[str, np.ndarray]]]:
        return first_batches(training, options), first_batches(held_out, options)

    lists = [side.hidden for side in records.training.form.sides if side.hidden]
    found = {f"{name}_accuracy".replace("masked_lm", "unigram"): unigram_accuracy(*batches(), name) for name in lists}
    if records.training.max_target_length:
        found["next_tokens_unigram_accuracy"] = next_tokens_unigram_accuracy(*batches())
    if records.shuffled:
        found["unchanged_order_accuracy"] = unchanged_share(first_batches(held_out, options))
    return found


if __name__ == "__main__":
    run(main, Options)
