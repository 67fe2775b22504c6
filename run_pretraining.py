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
from commands.shares import numbers_of, shares_of
from data.languages import ALPHA
from data.objectives import OBJECTIVES

if TYPE_CHECKING:
    import numpy as np

    from commands.estimate import Work
    from commands.records import AllRecords, Records
    from commands.session import Session
    from conversion.lazy import Array
    from data.objectives import Objective
    from data.reading import PretrainingDataset
    from data.spoken import Spoken
    from modeling.config import Config
    from tasks.pretraining import PretrainingTask
    from tasks.run_file import RunFile


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Pretrain a language model on record shards."""

    _model: ClassVar = Group.MODEL
    bert_config_file: str = flag(help="JSON file of the model's shape", aliases=("albert_config_file",))
    _data: ClassVar = Group.DATA
    input_file: tuple[str, ...] = flag(
        help="record shards: paths or patterns, separated by commas; of several objectives each learns from what was "
        "made for it, unless masked_lm=PATTERN says what from"
    )
    eval_input_file: tuple[str, ...] = flag(
        (),
        help="record shards to evaluate on, as --input_file; by default those that its manifest calls held out",
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
        "hold shuffled ones; or several, one at a step, with their shares: masked_lm:0.5,tlm:0.5",
        choices=tuple(OBJECTIVES),
        mixed=True,
        essential=True,
    )
    objective_weights: str | None = flag(
        None, help="of several objectives: factor of all losses of some, as tlm:2; each is 1 by default"
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
    language_signal: bool = flag(
        False,
        help="masked tokens of camlm, and placeholders of btmlm's pseudo sentences, say by a learnt vector what "
        "language they are to be of; the published weights have no such vectors",
    )
    pseudo_language: str | None = flag(
        None,
        help="with --language_signal: what pseudo sentences are to be in; by default, and beside texts of this "
        "language, any other of the records is drawn",
    )
    pseudo_length_ratio: float = flag(
        1.0, help="tokens that the model writes for each token of a text, as far as it has positions", minimum=0.0
    )
    pseudo_pick: str = flag(
        "argmax", help="what the model writes: the best token, or a drawn one", choices=("argmax", "sample")
    )
    cached_pseudo: bool = flag(
        False,
        help="write the pseudo sentences of all texts once, by the weights that the run begins with, and keep them in "
        "the cache; by default they are written in every step, by those of the step",
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

    @property
    def shares(self) -> dict[str, float]:
        """Share of the steps by objective; raises `UsageError`."""
        return shares_of(self.objective, OBJECTIVES, "objective")

    @property
    def rows(self) -> list[Objective]:
        """What is known of the objectives."""
        return [OBJECTIVES[name] for name in self.shares]

    @property
    def weights_of_objectives(self) -> dict[str, float]:
        """Factor of the losses of the objectives that have one; raises `UsageError`."""
        return numbers_of(self.objective_weights, self.shares, "objective_weights") if self.objective_weights else {}


NEEDS = (
    *DEVICE_NEEDS,
    Need(("eval_input_file", "eval_steps"), "--do_eval", lambda o: o.do_eval),
    Need(("start_warmup_step",), "--num_warmup_steps", lambda o: o.num_warmup_steps),
    Need(("poly_power",), "--schedule=polynomial", lambda o: o.schedule == "polynomial"),
    Need(("init_sentence_head",), "--init_checkpoint", lambda o: o.init_checkpoint),
    Need(
        ("sentence_loss_weight",),
        f"an --objective of pairs ({', '.join(name for name, row in OBJECTIVES.items() if row.labels)})",
        lambda o: any(row.labels for row in o.rows),
    ),
    Need(
        ("crossed_loss_weight",),
        f"an --objective of two sides ({', '.join(name for name, row in OBJECTIVES.items() if row.streams > 1)})",
        lambda o: any(row.streams > 1 for row in o.rows),
    ),
    Need(
        ("camlm_mask", "camlm_computation", "camlm_positions"),
        f"an --objective across texts ({', '.join(name for name, row in OBJECTIVES.items() if row.across)})",
        lambda o: any(row.across for row in o.rows),
    ),
    Need(
        ("pseudo_length_ratio", "pseudo_pick"),
        f"an --objective that writes ({', '.join(name for name, row in OBJECTIVES.items() if row.writes)})",
        lambda o: any(row.writes for row in o.rows),
    ),
    Need(
        ("language_signal",),
        f"an --objective with queries ({', '.join(name for name, row in OBJECTIVES.items() if row.has_queries)})",
        lambda o: any(row.has_queries for row in o.rows),
    ),
    Need(
        ("pseudo_language",),
        "--language_signal and an --objective that writes",
        lambda o: o.language_signal and any(row.writes for row in o.rows),
    ),
    Need(
        ("cached_pseudo",),
        "an --objective that writes, --init_checkpoint and --pseudo_pick=argmax",
        lambda o: any(row.writes for row in o.rows) and o.init_checkpoint and o.pseudo_pick == "argmax",
    ),
    Need(
        ("allow_any_start",),
        f"an --objective after another ({', '.join(name for name, row in OBJECTIVES.items() if row.after)})",
        lambda o: any(row.after for row in o.rows),
    ),
    Need(
        ("next_tokens_loss_weight", "label_smoothing"),
        f"an --objective with targets ({', '.join(name for name, row in OBJECTIVES.items() if row.continuing)})",
        lambda o: any(row.continuing for row in o.rows),
    ),
    Need(
        ("masked_lm_until",),
        "an --objective that learns more than masked tokens",
        lambda o: any(len(row.losses) > 1 for row in o.rows),
    ),
    Need(("objective_weights",), "several objectives, as --objective=masked_lm:0.5,tlm:0.5", lambda o: len(o.rows) > 1),
)


def main(options: Options) -> None:
    """Train and evaluate as the flags say."""
    from commands.session import Session

    if not (options.do_train or options.do_eval):
        raise UsageError("nothing to do: give at least one of --do_train, --do_eval")
    check_needs(options, NEEDS)
    factors = options.weights_of_objectives
    session = Session.check(options, ["bert_config_file"])

    from commands.across import check_start
    from commands.records import check_ids, open_records

    session.together(lambda: check_start(options))
    records = session.together(lambda: open_records(options))
    config = session.start()
    # Positions that are too few are found out before the folder of the run is made.
    works = works_of(config, options, records)
    for part, work in zip(records.parts.values(), works, strict=True):
        tokenizer = part.tokenizer_facts(config, options.bert_config_file)
        session.check_fit(
            vocab_size=tokenizer["vocab_size"],
            vocabulary=tokenizer["file"],
            max_seq_length=part.training.max_seq_length,
            max_target_length=part.training.max_target_length,
            # All texts of an example are rows of one call; what is written joins the row of its text.
            tokens=work.length + work.other + work.written,
            scored=part.scored,
        )
        check_ids(part.training, config.vocab_size, options.bert_config_file)
    build(session, options, records, factors)
    with session.entered(run_file(session, options, records), reads(options, records), options.num_train_steps):
        load_weights(session, options, records.signal)
        if options.dry_run:
            session.show_plan(works=works if options.do_train else (), **plan_of(session, options, records))
            return
        session.describe(lambda folder: run_file(session, options, records).tokenizer)
        scores = train(session, options, records) if options.do_train else {}
        if not records.has_held_out:
            return
        scores = scores or evaluate(session, options, records)
        scores = {"global_step": float(session.engine.step), **scores, **floors(options, records)}
        session.finish("eval_results", scores, "held-out records")


def run_file(session: Session, options: Options, records: AllRecords) -> RunFile:
    """Return what the run is made of."""
    from commands.resuming import data_of_records
    from tasks.run_file import PRETRAINING, MixedObjective, RunFile, TokenizerFile

    tokenizer = records.tokenizer_facts(session.config, options.bert_config_file)
    mixed = {
        name: MixedObjective(share=share, shuffles_words=records.parts[name].shuffled)
        for name, share in records.shares.items()
    }
    return RunFile(
        kind=PRETRAINING,
        config=session.config,
        computation=dataclasses.asdict(session.computation()),
        tokenizer=TokenizerFile(fingerprint=tokenizer["fingerprint"], max_seq_length=records.max_seq_length),
        objective=",".join(records.parts),
        shuffles_words=any(part.shuffled for part in records.parts.values()),
        objectives=mixed if records.are_mixed else {},
        data=data_of_records(records),
    )


def reads(options: Options, records: AllRecords) -> dict[str, Sequence[str | Path | None]]:
    """Return the files that the run reads, by flag."""
    return {
        "--bert_config_file": [options.bert_config_file],
        "--input_file": records.paths(),
        "--eval_input_file": records.paths(held_out=True),
        "--init_checkpoint": [options.init_checkpoint if options.do_train else None],
    }


def build(session: Session, options: Options, records: AllRecords, factors: Mapping[str, float]) -> None:
    """Build the task of the objectives, its schedule and its engine; `factors` multiply the losses of an objective."""
    from optimization import create_schedule
    from tasks.mixing import MixedTask

    tasks = {name: task_of(session, options, part) for name, part in records.parts.items()}
    for name, one in tasks.items():
        if not any(one.loss_weights.values()):
            raise UsageError(
                f"--objective={options.objective}: all losses of {name} ({', '.join(one.loss_weights)}) weigh 0; give "
                "one a weight above 0"
            )
    task = MixedTask(tasks, factors) if records.are_mixed else next(iter(tasks.values()))
    schedule = create_schedule(
        options.schedule,
        rate=options.learning_rate,
        total_steps=options.num_train_steps,
        warmup_steps=options.num_warmup_steps,
        power=options.poly_power,
        start_warmup_step=options.start_warmup_step,
    )
    # A call of the engine takes steps of one objective: longer ones would be filled up with steps that are not taken.
    most = records.order(options.seed).longest_turn if records.are_mixed else None
    session.build(task, schedule, batch_size=options.train_batch_size, most_steps_per_call=most)


def task_of(session: Session, options: Options, records: Records) -> PretrainingTask:
    """Return the task of one objective."""
    from commands.across import across_of, pseudo_of
    from tasks.pretraining import PretrainingTask

    # Beside other objectives, one that learns nothing but masked tokens would from that step on learn nothing.
    ends = options.masked_lm_until < 1 and len(OBJECTIVES[records.objective].losses) > 1
    return PretrainingTask(
        session.config,
        records.objective,
        weights={
            "masked_lm": options.masked_lm_loss_weight,
            "pair": options.sentence_loss_weight,
            "crossed": options.crossed_loss_weight,
            "next_tokens": options.next_tokens_loss_weight,
            **({"word_order": options.word_order_loss_weight} if records.shuffled else {}),
        },
        pooled=options.pooled_loss,
        label_smoothing=options.label_smoothing,
        across=across_of(options, records),
        pseudo=pseudo_of(options, records),
        until=dict.fromkeys(("masked_lm", "word_order"), round(options.masked_lm_until * options.num_train_steps))
        if ends
        else None,
        computation=session.computation(),
    )


def load_weights(session: Session, options: Options, signal: Sequence[str] = ()) -> None:
    """Load the weights to train from, or those of the finished run to score; `signal` are the languages they say."""
    from commands.across import check_vectors
    from commands.records import check_pair_head, keep_pair_head, pair_labels
    from modeling.computation import LANGUAGES
    from tasks.kinds import DECODER, PRETRAINING_HEADS

    def adjust(tensors: dict[str, Array]) -> None:
        check_vectors(tensors, options, signal)
        (keep_pair_head if options.do_train else check_pair_head)(tensors, options)

    if options.do_train:
        session.start_from(
            options.init_checkpoint,
            allow_missing=(*PRETRAINING_HEADS, *DECODER, f"{LANGUAGES}/.*"),
            allow_unexpected=("classifier/.*",),
            adjust=adjust,
        )
        return
    # Any pretrained model can be scored on masked tokens alone.
    unused = () if pair_labels(options.shares) else PRETRAINING_HEADS[1:]
    session.engine.step = session.restore(
        options.init_checkpoint,
        allow_unexpected=unused,
        adjust=adjust,
    )


def train(session: Session, options: Options, records: AllRecords) -> Mapping[str, float]:
    """Train on the records, and return the last scores of those held out, if there are any."""
    plan = plan_of(session, options, records)
    if options.cached_pseudo:
        records, told = with_cached_pseudo(session, options, records)
        plan["facts"] = {**plan["facts"], "pseudo sentences": told}
    outcome = session.train(
        records.mixture(session.rows_of_process(), options.train_batch_size, options.seed),
        (lambda: evaluate(session, options, records)) if records.has_held_out else None,
        **plan,
    )
    return outcome.evaluation


def with_cached_pseudo(session: Session, options: Options, records: AllRecords) -> tuple[AllRecords, str]:
    """Return the records with what the present weights write beside their texts, and a line about it."""
    from commands.across import with_sentences

    parts, told = dict(records.parts), []
    for name, part in records.parts.items():
        if OBJECTIVES[name].writes:
            (loss,) = task_of(session, options, part).losses
            parts[name], line = with_sentences(session, options, part, loss)
            told.append(line)
    return dataclasses.replace(records, parts=parts), "; ".join(told)


def plan_of(session: Session, options: Options, records: AllRecords) -> dict[str, Any]:
    """Return the facts of the preamble, and what `training.run.RunPlan` has to know of pretraining."""
    from data.mixture import mark_of
    from modeling.accounting import flops_per_example

    works = works_of(session.config, options, records)
    tokens = {name: options.train_batch_size * part.tokens for name, part in records.parts.items()}
    flops = sum(
        work.share
        * options.train_batch_size
        * flops_per_example(
            session.config, work.length, work.predictions, work.target, work.other, written=work.written
        )
        for work in works
    )
    only = next(iter(tokens))
    return {
        "facts": facts_of(options, records, tokens),
        "num_steps": options.num_train_steps,
        "save_every_steps": options.save_checkpoints_steps,
        "eval_every_steps": (options.eval_steps or options.save_checkpoints_steps) if records.has_held_out else 0,
        "best_metric": "loss" if records.has_held_out else None,
        "lower_is_better": True,
        "unit": "tokens",
        "count_units": lambda batch: tokens[mark_of(batch) or only],
        "kind_of": mark_of,
        "flops_per_unit": flops / sum(records.shares[name] * count for name, count in tokens.items()),
    }


def facts_of(options: Options, records: AllRecords, tokens: Mapping[str, int]) -> dict[str, str]:
    """Return the lines of the preamble about the records; `tokens` are those of a step of each objective."""
    facts: dict[str, str] = {}
    if records.are_mixed:
        order = records.order(options.seed)
        facts["objectives"] = ", ".join(f"{name} {float(order.shares[name]):.1%}" for name in records.parts)
    if records.signal:
        facts["language signal"] = f"a vector each of {', '.join(records.signal)}"
    for name, part in records.parts.items():
        of = f" of {name}" if records.are_mixed else ""
        facts[f"data{of}"] = part.facts
        if drawn := part.drawn:
            facts[f"languages{of}"] = drawn
        if options.do_train:
            steps = options.num_train_steps * records.shares[name]
            epochs = steps * options.train_batch_size / part.training.num_examples
            size = f"{options.train_batch_size} examples, {tokens[name]:,} tokens"
            facts[f"step{of}"] = f"{size}; {steps:,.0f} steps are {epochs:.1f} epochs"
    return facts


def works_of(config: Config, options: Options, records: AllRecords) -> list[Work]:
    """Return what a step of each objective computes, for a plan of memory and time."""
    from commands.across import lengths_read, written
    from commands.estimate import Work

    works = []
    for name, part in records.parts.items():
        target = part.training.max_target_length
        length, other = lengths_read(options, part, config)
        beside = written(options, part, config)
        if options.cached_pseudo:
            # They are read in the row of their text, and not written in the step.
            length, beside = length + beside, 0
        work = Work(
            batch_size=options.train_batch_size,
            length=length,
            predictions=part.scored - target,
            num_steps=options.num_train_steps,
            target=target,
            other=other,
            written=beside,
            share=records.shares[name],
        )
        works.append(work)
    return works


def evaluate(session: Session, options: Options, records: AllRecords) -> dict[str, float]:
    """Return the losses and accuracies of the present weights on the held-out records.

    Of several languages each is scored by itself: `NAME_en` is the loss of one, NAME the mean over all. Of several
    objectives each has losses under its own name, and `loss` is the mean by their shares.
    """
    found = {name: evaluate_part(session, options, records, name) for name in records.parts}
    if not records.are_mixed:
        return found[next(iter(found))]
    all_scores = {"loss": sum(records.shares[name] * scores["loss"] for name, scores in found.items())}
    for objective, scores in found.items():
        # The sum of its losses, `loss` and `loss_en`, has the objective's name unless its only loss has that already.
        wholes = {name: x for name, x in scores.items() if name == "loss" or name.startswith("loss_")}
        own = {name: x for name, x in scores.items() if name not in wholes}
        all_scores |= {f"{objective}_{name}": x for name, x in wholes.items()} | own
    return all_scores


def evaluate_part(session: Session, options: Options, records: AllRecords, objective: str) -> dict[str, float]:
    """Return the scores of one objective."""
    from data.mixture import marked

    mark = (lambda batch: marked(batch, objective)) if records.are_mixed else (lambda batch: batch)
    part = records.parts[objective]
    found = {
        language: session.engine.evaluate(map(mark, first_batches({language: part.spoken(language, dataset)}, options)))
        for language, dataset in part.held_out_languages.items()
    }
    first, *others = found.values()
    if not others:
        return first
    scores = {name: statistics.fmean(each[name] for each in found.values()) for name in first}
    losses = [name for name in scores if name.endswith("loss")]
    return scores | {f"{name}_{language}": each[name] for language, each in found.items() for name in losses}


def first_batches(
    languages: Mapping[str, PretrainingDataset | Spoken] | Mapping[str, PretrainingDataset], options: Options
) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of one evaluation, at most --max_eval_steps of each language."""
    for dataset in languages.values():
        yield from itertools.islice(dataset.evaluation_batches(options.eval_batch_size), options.max_eval_steps)


def floors(options: Options, records: AllRecords) -> dict[str, float]:
    """Return the accuracies that a model without any knowledge of the text would have."""
    of_each = {name: floors_of(options, part) for name, part in records.parts.items()}
    if not records.are_mixed:
        return of_each[next(iter(of_each))]
    return {f"{objective}_{name}": x for objective, found in of_each.items() for name, x in found.items()}


def floors_of(options: Options, records: Records) -> dict[str, float]:
    """Return these accuracies for one objective."""
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
