"""Measures fine-tuning and prediction on short pairs beside padding to the full length and beside transformers.

python3 -m benchmarks.finetuning writes its results to benchmarks/results. The rows are pairs of random tokens with the
lengths of LCQMC's questions (a mean of 12.5 characters, a deviation of 3.6). Ours cut batches from windows that are
sorted by length, and pad to the next of a few lengths. Transformers has what its Trainer offers for this: padding to
the longest row of a batch, and batches of like length (LengthGroupedSampler, for prediction too). A turn is one pass
over all rows, after one that nobody measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import ROOT, Contender, answer_turns, contender, environment, flags_of, installed
from commands.flags import UsageError, flag, run
from ground.files import write_atomically

if TYPE_CHECKING:
    from data.labelled import EncodedExamples
    from modeling.config import Config

SHAPES = {
    "tiny": "albert_config/albert_config_tiny_google.json",
    "base": "albert_config/bert_config.json",
}
OURS = {"tensorflow": "tensorflow", "jax": "jax"}
PADDED = {"tensorflow_padded": "tensorflow", "jax_padded": "jax"}
PACKAGES = {**OURS, **PADDED, "transformers": "transformers"}
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, DROPOUT = 5e-5, 0.01, 1.0, 0.1
_MEAN, _DEVIATION, _MOST = 12.5, 3.6, 36  # characters of a question of LCQMC's dev.tsv
TURNS = ("train", "predict")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure fine-tuning and prediction of this project and of transformers, side by side."""

    shapes: tuple[str, ...] = flag(tuple(SHAPES), help=f"some of {', '.join(SHAPES)}")
    contenders: tuple[str, ...] = flag(tuple(PACKAGES), help=f"some of {', '.join(PACKAGES)}")
    rows: tuple[int, ...] = flag((2048, 192), help="rows of a turn, one number for each shape", unit="rows")
    batch_size: int = flag(32, help="rows side by side", unit="rows", minimum=1)
    max_seq_length: int = flag(128, help="to which the padded ones are padded", unit="tokens", minimum=80)
    rounds: int = flag(3, help="turns of each contender", minimum=1)
    threads: int = flag(0, help="of each contender; 0: as many as cores", minimum=0)
    results: str = flag("benchmarks/results/finetuning", help="where to write, without .json and .md")
    measure: str | None = flag(None, help="internal: the contender of this process")


def main(options: Options) -> int:
    """Measures all, prints the table as it grows, and writes it."""
    check(options)
    if options.measure:
        measure(options)
        return 0
    names = installed({name: PACKAGES[name] for name in options.contenders})
    found, table = list[dict[str, Any]](), ""
    threads = options.threads or len(os.sched_getaffinity(0))
    for shape, rows in zip(options.shapes, options.rows, strict=True):
        found += side_by_side(replace(options, shapes=(shape,), rows=(rows,), threads=threads), names)
        result = {"machine": f"{threads} cores", "options": vars(options), "rows": found}
        table = as_markdown(result)
        path = ROOT / options.results
        write_atomically(path.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
        write_atomically(path.with_suffix(".md"), table + "\n")
    print(table)
    return 0


def check(options: Options) -> None:
    """Raises `UsageError` for flags that do not fit together."""
    if len(options.rows) != len(options.shapes):
        raise UsageError(f"--rows has {len(options.rows)} values, expected one for each of --shapes")
    for name, given, known in (
        ("shapes", options.shapes, SHAPES),
        ("contenders", options.contenders, PACKAGES),
        ("measure", [options.measure] if options.measure else [], PACKAGES),
    ):
        for value in given:
            if value not in known:
                raise UsageError(f"--{name}={value} is unknown: expected some of {', '.join(known)}")


def side_by_side(case: Options, names: Sequence[str]) -> list[dict[str, Any]]:
    """Measures every contender in turns."""
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                contender(
                    name,
                    "benchmarks.finetuning",
                    flags_of(case, measure=name),
                    environment({**OURS, **PADDED}.get(name, "tensorflow"), case.threads),
                )
            )
            for name in names
        ]
        for _ in range(case.rounds):
            for each in running:
                for what in TURNS:
                    each.take_turn(what)
        return [row_of(each, case) for each in running]


def row_of(each: Contender, case: Options) -> dict[str, Any]:
    """The result of a contender: rows a second in training and in prediction."""
    row = {"shape": case.shapes[0], "contender": each.name, **each.known}
    if each.answers and "error" not in each.known:
        for place, what in enumerate(TURNS):
            seconds = [answer["seconds"] for answer in each.answers[place :: len(TURNS)]]
            row[f"{what}_rows_per_second"] = case.rows[0] / statistics.median(seconds)
            row[f"{what}_rows_per_second_range"] = [case.rows[0] / max(seconds), case.rows[0] / min(seconds)]
        row |= each.ask("memory")
    return row


# -- in a contender's process ------------------------------------------------------------------------------------------


def measure(options: Options) -> None:
    """Does a pass of each kind, then answers the lines of stdin."""
    import time

    config = config_of(options.shapes[0])
    examples = random_pairs(config.vocab_size, options.rows[0])
    maker = torch_turns if options.measure == "transformers" else our_turns
    turns = maker(options, config, examples)
    begin = time.perf_counter()
    for turn in turns.values():
        turn()
    lengths = examples.lengths_tokens
    answer_turns({"first_seconds": time.perf_counter() - begin, "mean_tokens": float(lengths.mean())}, turns)


def config_of(shape: str) -> Config:
    """The model of a shape, with the dropout of BERT."""
    from modeling.config import load_config

    return replace(load_config(ROOT / SHAPES[shape]), hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT)


def random_pairs(vocab_size: int, rows: int) -> EncodedExamples:
    """Return pairs [CLS] a [SEP] b [SEP] of random tokens, with lengths as LCQMC's."""
    import numpy as np

    from data.labelled import EncodedExamples
    from ground.ragged import bounds_of

    generator = np.random.default_rng(0)
    sides = np.clip(generator.normal(_MEAN, _DEVIATION, (rows, 2)).round(), 2, _MOST).astype(np.int64)
    splits = bounds_of(sides.sum(axis=1) + 3)
    ids = generator.integers(200, vocab_size, splits[-1]).astype(np.int32)
    segments = np.ones(splits[-1], np.int32)
    for begin, first in zip(splits[:-1], sides[:, 0], strict=True):
        segments[begin : begin + first + 2] = 0
    return EncodedExamples(ids, segments, splits, generator.integers(0, 2, rows).astype(np.int32))


def our_turns(options: Options, config: Config, examples: EncodedExamples) -> dict[str, Callable[[], None]]:
    """Ours, as run_classifier.py trains and predicts; padded to the full length where the contender says so."""
    from data.labelled import ClassificationDataset
    from optimization import Constant, create_optimizer
    from tasks.classification import ClassificationTask

    length = options.max_seq_length
    lengths = (length,) if options.measure in PADDED else ()
    dataset = ClassificationDataset(examples, options.batch_size, length, seed=1, lengths=lengths)
    task = ClassificationTask(config, 2, classifier_dropout=DROPOUT)
    optimizer = create_optimizer(
        "adamw", Constant(LEARNING_RATE), weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM, bias_correction=True
    )
    if PACKAGES[str(options.measure)] == "jax":
        from training.jax_engine import JaxEngine

        engine: Any = JaxEngine(task, optimizer, seed=1)
    else:
        from training.tensorflow_engine import TensorFlowEngine

        engine = TensorFlowEngine(task, optimizer, seed=1)

    def train() -> None:
        for step in range(dataset.steps_per_epoch):
            engine.train([dataset.batch(step)])

    def predict() -> None:
        assert sum(len(batch["probabilities"]) for batch in engine.predict(dataset.evaluation_batches(32))) >= len(
            examples.labels
        )

    return {"train": train, "predict": predict}


def torch_turns(options: Options, config: Config, examples: EncodedExamples) -> dict[str, Callable[[], None]]:
    """Transformers' classifier on the batches of its Trainer with group_by_length, in a plain loop of PyTorch."""
    import torch
    import transformers
    from transformers.trainer_pt_utils import LengthGroupedSampler

    torch.manual_seed(1)
    model = torch_model(transformers, config)
    plain = [p for name, p in model.named_parameters() if "LayerNorm" in name or "layer_norm" in name or "bias" in name]
    decayed = [p for p in model.parameters() if not any(p is other for other in plain)]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=1e-6, fused=True)
    parameters = list(model.parameters())
    lengths = examples.lengths_tokens.tolist()
    ids, segments = (
        torch.from_numpy(values.astype("int64")).split(lengths) for values in (examples.ids, examples.segments)
    )
    labels = torch.from_numpy(examples.labels.astype("int64"))

    def batches() -> Sequence[list[int]]:
        order = list(LengthGroupedSampler(options.batch_size, lengths=lengths))
        return [order[begin : begin + options.batch_size] for begin in range(0, len(order), options.batch_size)]

    def features(members: Sequence[int]) -> dict[str, Any]:
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad([ids[i] for i in members], batch_first=True),
            "token_type_ids": pad([segments[i] for i in members], batch_first=True),
            "attention_mask": pad([torch.ones_like(ids[i]) for i in members], batch_first=True),
        }

    def train() -> None:
        model.train()
        for members in batches():
            model(**features(members), labels=labels[members]).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def predict() -> None:
        model.eval()
        with torch.inference_mode():
            for members in batches():
                model(**features(members)).logits.softmax(-1).numpy()

    return {"train": train, "predict": predict}


def torch_model(transformers: Any, config: Config) -> Any:
    """The same graph in transformers."""
    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        # torch's own kernel; transformers' "gelu_new" is the same function in Python.
        "hidden_act": {"gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu"}.get(config.hidden_act, config.hidden_act),
        "hidden_dropout_prob": DROPOUT,
        "attention_probs_dropout_prob": DROPOUT,
        "classifier_dropout": DROPOUT,
        "max_position_embeddings": config.max_position_embeddings,
        "attn_implementation": "sdpa",
        "num_labels": 2,
    }
    if config.family == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**shape))
    shape |= {"embedding_size": config.embedding_size, "classifier_dropout_prob": DROPOUT}
    return transformers.AlbertForSequenceClassification(transformers.AlbertConfig(**shape))


# -- for a person ------------------------------------------------------------------------------------------------------


def as_markdown(result: Mapping[str, Any]) -> str:
    """The results for a person: a table for every shape, with ratios to the contenders of others."""
    options = result["options"]
    lines = [
        "# Fine-tuning and prediction",
        "",
        f"{result['machine']}; load average {os.getloadavg()[1]:.1f}. Pairs with LCQMC's lengths, batches of "
        f"{options['batch_size']}, --max_seq_length={options['max_seq_length']}, float32. Median of "
        f"{options['rounds']} passes, slowest to fastest in brackets, after one that is not counted. `_padded`: every "
        "row to the full length. transformers: padding to the longest of a batch, rows grouped by length.",
    ]
    for shape in dict.fromkeys(row["shape"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["shape"] == shape]
        lines += ["", f"## {shape}", ""]
        lines += ["| contender | trained rows/s | of transformers | predicted rows/s | of transformers |"]
        lines[-1] += " peak MB | first pass s |"
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [line_of(row, rows) for row in rows]
    return "\n".join(lines)


def line_of(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A row of the table; where the contender failed, why."""
    if "train_rows_per_second" not in row:
        return f"| {row['contender']} | {row.get('error', 'not measured')} | | | | | |"
    cells = [row["contender"]]
    for what in TURNS:
        name = f"{what}_rows_per_second"
        peer = next((each[name] for each in rows if each["contender"] == "transformers" and name in each), None)
        slowest, fastest = row[f"{name}_range"]
        cells.append(f"{row[name]:,.1f} ({slowest:,.1f}-{fastest:,.1f})")
        cells.append("" if peer is None else f"{row[name] / peer:.2f}")
    return f"| {' | '.join(cells)} | {row['peak_bytes'] / 1e6:,.0f} | {row['first_seconds']:.1f} |"


if __name__ == "__main__":
    run(main, Options)
