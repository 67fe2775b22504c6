import json
import random
from typing import Any

import keras
import numpy as np
import pytest
from absl.app import UsageError

import create_pretraining_data
import run_pretraining
from commands.records import keep_pair_head
from commands.weights import initialize
from conversion.writers import write_ours
from data.objectives import OBJECTIVES
from modeling import Computation, Config
from modeling.variables import named_variables
from tasks.kinds import PRETRAINING_HEADS
from tasks.pretraining import PretrainingTask, unchanged_share

SMALL = {
    "vocab_size": 31,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "initializer_range": 0.5,
}
CONFIGS = {
    "bert": Config(family="bert", **SMALL),
    "albert": Config(family="albert", sharing="all", embedding_size=4, **SMALL),
    "albert_zh": Config(family="albert_zh", sharing="all", embedding_size=4, **SMALL),
}
KEY = np.array([3, 5], np.uint32)


def make_batch(seed=0, rows=4, length=16, num_labels=3) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    slots = np.stack([draw.permutation(np.arange(1, length - 1)) for _ in range(rows)])
    weights = {"masked_lm": draw.integers(0, 2, (rows, 4)), "word_order": draw.integers(0, 2, (rows, 6))}
    batch = {
        "input_ids": draw.integers(5, 31, (rows, length)),
        "input_mask": np.ones((rows, length), int),
        "segment_ids": draw.integers(0, 2, (rows, length)),
        "masked_lm_positions": slots[:, :4],
        "word_order_positions": slots[:, 4:10],
        "masked_lm_ids": draw.integers(5, 31, (rows, 4)),
        "word_order_ids": draw.integers(5, 31, (rows, 6)),
        "next_sentence_labels": draw.integers(0, num_labels, rows),
    }
    batch = {name: value.astype(np.int32) for name, value in batch.items()}
    return batch | {f"{name}_weights": value.astype(np.float32) for name, value in weights.items()}


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def numbers(terms):
    return {name: tuple(float(part) for part in pair) for name, pair in terms.items()}


@pytest.mark.parametrize("family", CONFIGS)
def test_each_loss_is_the_mean_over_its_own_positions(family):
    task = PretrainingTask(CONFIGS[family], "structbert", weights={"word_order": 1.0})
    model, batch = task.build_model(), make_batch()
    losses, metrics = map(numbers, task.terms(model, batch, seed=KEY, training=False))
    # The scores of all positions, from the model itself.
    outputs = model({name: batch[name] for name in ("input_ids", "input_mask", "segment_ids")})
    logits: Any = keras.ops.convert_to_numpy(outputs["masked_lm_logits"])
    for name in ("masked_lm", "word_order"):
        scores = np.take_along_axis(logits, batch[f"{name}_positions"][..., None], axis=1)
        labels, weights = batch[f"{name}_ids"], batch[f"{name}_weights"]
        surprise = -np.take_along_axis(log_softmax(scores), labels[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(losses[name], [(surprise * weights).sum(), weights.sum()], rtol=1e-4)
        right = ((scores.argmax(-1) == labels) * weights).sum()
        np.testing.assert_allclose(metrics[f"{name}_accuracy"], [right, weights.sum()])
    scores = log_softmax(keras.ops.convert_to_numpy(outputs["sentence_pair_logits"]))
    assert scores.shape == (4, 3)
    expected = -scores[np.arange(4), batch["next_sentence_labels"]].sum()
    np.testing.assert_allclose(losses["sentence_structure"], [expected, 4], rtol=1e-4)
    assert metrics.keys() == {"masked_lm_accuracy", "word_order_accuracy", "sentence_structure_accuracy"}
    assert losses.keys() == task.loss_weights.keys() == task.normalizers(batch).keys()


def test_pooled_losses_add_up_to_one_mean_and_metrics_stay_apart():
    config, batch = CONFIGS["bert"], make_batch(1)
    apart = PretrainingTask(config, "structbert", weights={"word_order": 1.0})
    pooled = PretrainingTask(config, "structbert", weights={"word_order": 1.0}, pooled=True)
    model = apart.build_model()
    (a, metrics_a), (b, metrics_b) = (
        map(numbers, task.terms(model, batch, seed=KEY, training=False)) for task in (apart, pooled)
    )
    total = a["masked_lm"][1] + a["word_order"][1]
    assert [b[name] for name in ("masked_lm", "word_order")] == [(a[n][0], total) for n in ("masked_lm", "word_order")]
    normalizers = {name: float(value) for name, value in pooled.normalizers(batch).items()}
    assert normalizers == {"masked_lm": total, "word_order": total, "sentence_structure": 4}
    assert metrics_a == metrics_b


@pytest.mark.parametrize("task", [PretrainingTask, lambda *a, **k: PretrainingTask(*a, pooled=True, **k)])
def test_normalizers_of_parts_add_up_and_padding_counts_nothing(task):
    task, batch = task(CONFIGS["bert"], "structbert", weights={"word_order": 1.0}), make_batch(2)
    whole = task.normalizers(batch)
    halves = [task.normalizers({name: value[part] for name, value in batch.items()}) for part in (np.s_[:2], np.s_[2:])]
    for name, value in whole.items():
        assert float(value) == float(halves[0][name]) + float(halves[1][name])
    zeros = {name: np.zeros_like(value) for name, value in batch.items()}
    assert all(float(value) == 0 for value in task.normalizers(zeros).values())


@pytest.mark.parametrize(
    "objective",
    [name for name, row in OBJECTIVES.items() if not (row.continuing or row.streams > 1 or row.across or row.writes)],
)
@pytest.mark.parametrize("word_order", [None, 1.0])
def test_objectives_combine(objective, word_order):
    labels = OBJECTIVES[objective].labels
    task, batch = (
        PretrainingTask(CONFIGS["albert"], objective, weights={"word_order": word_order} if word_order else {}),
        make_batch(3, num_labels=2),
    )
    model = task.build_model()
    losses, metrics = map(numbers, task.terms(model, batch, seed=KEY, training=False))
    expected = {"masked_lm"} | ({"word_order"} if word_order else set()) | ({OBJECTIVES[objective].label_name} - {""})
    assert losses.keys() == expected
    assert metrics.keys() == {f"{name}_accuracy" for name in expected}
    names = named_variables(model)
    assert ("sentence_pair/bias" in names) == bool(labels)
    if labels:
        assert names["sentence_pair/bias"].shape == (len(labels),)
    predictions = task.predictions(model, batch)
    assert ("word_order_ids" in predictions) == (word_order is not None)
    assert ("sentence_pair_probabilities" in predictions) == bool(labels)
    # As many right predictions as the metric counts.
    for name in expected & {"masked_lm", "word_order"}:
        best = keras.ops.convert_to_numpy(predictions[f"{name}_ids"])
        right = ((best == batch[f"{name}_ids"]) * batch[f"{name}_weights"]).sum()
        assert metrics[f"{name}_accuracy"][0] == right


def test_unchanged_share():
    batch = make_batch(4)
    row, slot = np.nonzero(batch["word_order_weights"])
    position = batch["word_order_positions"][row, slot]
    batch["input_ids"][row, position] = 5 + (batch["word_order_ids"][row, slot] - 5 + 1) % 26
    assert unchanged_share([batch]) == 0.0
    batch["input_ids"][row[:3], position[:3]] = batch["word_order_ids"][row[:3], slot[:3]]
    assert unchanged_share([batch]) == 3 / len(row)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structbert_run")
    letters = [chr(0x4E00 + i) for i in range(26)]
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]) + "\n", encoding="utf-8"
    )
    draw = random.Random(2)
    documents = ["\n".join("".join(draw.choices(letters, k=5)) for _ in range(8)) for _ in range(40)]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    for objective in ("structbert", "masked_lm"):
        create_pretraining_data.main(
            create_pretraining_data.Options(
                input_file=(str(folder / "text.txt"),),
                output_file=(str(folder / f"{objective}.tfrecord"),),
                vocab_file=str(folder / "vocab.txt"),
                objective=objective,
                max_seq_length=16,
                max_predictions_per_seq=2,
                dupe_factor=2,
                eval_fraction=0.3,
                num_workers=1,
            )
        )
    for family, config in CONFIGS.items():
        (folder / f"{family}.json").write_text(config.to_json(), encoding="utf-8")
    return folder


def pretrain(folder, output, objective="structbert", family="bert", **flags):
    options = {
        "bert_config_file": str(folder / f"{family}.json"),
        "input_file": (str(folder / f"{objective}*tfrecord"),),
        "output_dir": str(folder / output),
        "do_train": True,
        "do_eval": True,
        "objective": objective,
        "num_train_steps": 2,
        "num_warmup_steps": 1,
        "train_batch_size": 8,
        "max_eval_steps": 20,
        **flags,
    }
    run_pretraining.main(run_pretraining.Options(**options))
    return json.loads((folder / output / "eval_results.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_reports_all_three_objectives(folder, capsys):
    scores = pretrain(folder, "bert_run")
    named = {"masked_lm", "word_order", "sentence_structure"}
    assert {f"{name}_loss" for name in named} | {f"{name}_accuracy" for name in named} <= scores.keys()
    # A third of the tokens of a random order stay where they are.
    assert 0.15 < scores["unchanged_order_accuracy"] < 0.55
    np.testing.assert_allclose(scores["loss"], sum(scores[f"{name}_loss"] for name in named), rtol=1e-5)
    shown = capsys.readouterr().out
    assert "word_order_accuracy" in shown
    assert "sentence_structure_accuracy" in shown


def weights_of(model):
    return {name: np.asarray(variable) for name, variable in named_variables(model).items()}


@pytest.fixture(scope="module")
def three_way(tmp_path_factory):
    weights = weights_of(PretrainingTask(CONFIGS["bert"], "structbert", computation=Computation(seed=1)).build_model())
    folder = tmp_path_factory.mktemp("three_way") / "best"
    write_ours(folder, CONFIGS["bert"], weights)
    return folder, weights


def start_from(folder, objective, **flags):
    task = PretrainingTask(CONFIGS["bert"], objective, computation=Computation(seed=2))
    model = task.build_model()
    options = run_pretraining.Options(
        bert_config_file="", input_file=(), output_dir="", objective=objective, init_checkpoint=str(folder), **flags
    )
    initialize(
        model,
        CONFIGS["bert"],
        str(folder),
        allow_missing=PRETRAINING_HEADS,
        adjust=lambda tensors: keep_pair_head(tensors, options),
    )
    return weights_of(model)


@pytest.mark.parametrize(
    ("objective", "flags"),
    [("structbert", {}), ("masked_lm", {}), ("bert", {"init_sentence_head": False})],
)
def test_objectives_start_from_the_weights_of_others(three_way, objective, flags):
    folder, weights = three_way
    loaded = start_from(folder, objective, **flags)
    for name, value in loaded.items():
        assert name.startswith("sentence_pair/") or np.array_equal(value, weights[name])
    if objective == "structbert":
        np.testing.assert_array_equal(loaded["sentence_pair/kernel"], weights["sentence_pair/kernel"])


def test_heads_of_other_objectives_are_refused(three_way):
    with pytest.raises(UsageError) as error:
        start_from(three_way[0], "bert")
    message = str(error.value)
    assert "has a sentence-pair head of 3 classes" in message
    assert "--objective=bert has 2 (next, random)" in message
    assert "--init_sentence_head=False" in message


@pytest.mark.parametrize(("trained", "got"), [("albert", "a sentence-pair head of 2 classes"), ("masked_lm", "no sen")])
def test_scoring_needs_the_head_of_the_objective(folder, tmp_path, trained, got):
    write_ours(tmp_path, CONFIGS["bert"], weights_of(PretrainingTask(CONFIGS["bert"], trained).build_model()))
    with pytest.raises(UsageError, match=f"the weights have {got}.*, but --objective=structbert scores 3 .*--do_train"):
        pretrain(folder, "scored", do_train=False, init_checkpoint=str(tmp_path))


def test_losses_of_words_need_records_with_shuffled_ones(folder):
    with pytest.raises(UsageError, match="--pooled_loss=True but the records hold no shuffled words"):
        pretrain(folder, "no_words", "masked_lm", pooled_loss=True)
    with pytest.raises(UsageError, match="--input_file hold shuffled words but the held-out ones do not"):
        pretrain(folder, "mixed", eval_input_file=(str(folder / "masked_lm.held_out.tfrecord"),))
