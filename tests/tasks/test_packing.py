"""Packed rows: every sequence is scored, and changes the weights, as if it stood alone.

`tests/test_on_jax.py` runs it on JAX too.
"""

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError

from data.forms import FORMS
from data.masking import Masking, MaskVocabulary
from data.pairing import Pairs
from data.randomness import keys
from data.recipe import Recipe, Vocabulary
from data.tokenizers.template import Template
from ground.tensors import ops
from modeling import Config, PretrainingModel, named_variables
from modeling.differentiation import variable_gradients
from tasks.pretraining import PretrainingTask

CLS, SEP, MASK, VOCABULARY, LENGTH = 2, 3, 4, 37, 24
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": LENGTH + 2,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CONFIGS = {
    "bert_offset": Config(family="bert", position_offset=2, **SMALL),
    "albert_preln": Config(family="albert", sharing="all", embedding_size=4, ln_type="preln", **SMALL),
    "albert_zh": Config(family="albert_zh", sharing="all", embedding_size=4, **SMALL),
}
FEATURES = ("input_ids", "input_mask", "segment_ids")
KEY = np.array([1, 2], np.uint32)


def packed_and_alone(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Masked rows as `data` packs them; their sequences a row each; which packed position every one of those is."""
    random, form = np.random.default_rng(seed), FORMS["packed"]
    recipe = Recipe("masked_lm", Masking(0.3, 8), False, False, "none", LENGTH, 1, 0.0, seed, form="packed")
    lengths = np.append(random.integers(1, LENGTH // 2, 14), LENGTH - 2)
    special = np.arange(VOCABULARY) < 5
    masking = MaskVocabulary(MASK, np.arange(5, VOCABULARY, dtype=np.int32), special)
    vocabulary = Vocabulary(Template.of_bert(CLS, SEP), 1, special, masking, np.dtype(np.uint16))
    tokens = random.integers(5, VOCABULARY, lengths.sum()).astype(np.uint16) * 2 + 1
    zeros = np.zeros_like(lengths)
    pairs = Pairs(np.cumsum(lengths) - lengths, lengths, zeros, zeros, zeros)
    tokens, pairs, _ = form.lay_out(tokens, pairs, recipe, vocabulary)
    rows = form.join(tokens, pairs, recipe, vocabulary)
    drawn = keys(seed, np.arange(len(pairs)))
    packed = form.features(rows, drawn, recipe, vocabulary.specials, masking)
    packed = form.complete(packed, vocabulary.specials)
    numbers = packed["sequence_ids"]
    alone = {name: [] for name in packed if name != "sequence_ids"}
    origins = []
    for row in range(len(numbers)):
        for number in range(1, numbers[row].max() + 1):
            places = np.flatnonzero(numbers[row] == number)
            origins.append(np.pad(row * LENGTH + places, (0, LENGTH - len(places)), constant_values=-1))
            for name in FEATURES:
                alone[name].append(np.pad(packed[name][row, places], (0, LENGTH - len(places))))
            inside = np.isin(packed["masked_lm_positions"][row], places) & (packed["masked_lm_weights"][row] > 0)
            alone["masked_lm_positions"].append((packed["masked_lm_positions"][row] - places[0]) * inside)
            alone["masked_lm_ids"].append(packed["masked_lm_ids"][row])
            alone["masked_lm_weights"].append(packed["masked_lm_weights"][row] * inside)
            alone["next_sentence_labels"].append(0)
    stacked = {name: np.stack(values).astype(packed[name].dtype) for name, values in alone.items()}
    return packed, stacked, np.stack(origins)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_sequence_is_scored_as_it_is_alone(name):
    packed, alone, origins = packed_and_alone(0)
    assert packed["sequence_ids"].max() > 2
    model = PretrainingModel(CONFIGS[name], num_pair_labels=0)

    def logits(batch):
        outputs = model({name: batch[name] for name in (*FEATURES, "sequence_ids") if name in batch})
        return np.reshape(ops.convert_to_numpy(outputs["masked_lm_logits"]), (-1, VOCABULARY))

    real = alone["input_mask"].ravel() > 0
    assert packed["input_mask"].sum() == real.sum() == len(np.unique(origins[origins >= 0]))
    np.testing.assert_allclose(logits(packed)[origins.ravel()[real]], logits(alone)[real], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_offset", "albert_preln"])
def test_losses_metrics_and_gradients_of_packed_rows_are_those_of_their_sequences(name):
    packed, alone, _ = packed_and_alone(5)
    task = PretrainingTask(CONFIGS[name], "masked_lm")
    model = task.build_model()
    weights = named_variables(model)

    def loss(batch):
        losses, metrics = task.terms(model, batch, seed=KEY, training=True)
        assert losses.keys() == {"masked_lm"}
        return losses["masked_lm"], metrics["masked_lm_accuracy"]

    def gradients(batch):
        names = sorted(batch)
        compute = variable_gradients(
            lambda *values: loss(dict(zip(names, values, strict=True)))[0][0], list(weights.values())
        )
        return compute(*(ops.convert_to_tensor(batch[name]) for name in names))

    for one, other in zip(loss(packed), loss(alone), strict=True):
        assert float(one[1]) == float(other[1]) == packed["masked_lm_weights"].sum() > 10
        np.testing.assert_allclose(float(one[0]), float(other[0]), rtol=1e-5)
    for variable, one, other in zip(weights, gradients(packed), gradients(alone), strict=True):
        one, other = ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        assert np.abs(other).max() > 1e-3 or not variable.startswith(("backbone/embeddings", "masked_lm"))
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, np.abs(other).max()), err_msg=variable)


@pytest.mark.slow
def test_the_verbs_train_on_and_score_packed_records(tmp_path, capsys):
    import create_pretraining_data
    import run_pretraining

    letters, random = [chr(0x4E00 + i) for i in range(VOCABULARY - 5)], np.random.default_rng(3)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    documents = ["".join(random.choice(letters, random.integers(2, 15))) for _ in range(200)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(CONFIGS["bert_offset"].to_json(), encoding="utf-8")
    create_pretraining_data.main(
        create_pretraining_data.Options(
            input_file=(str(tmp_path / "text.txt"),),
            output_file=(str(tmp_path / "packed.tfrecord"),),
            vocab_file=str(tmp_path / "vocab.txt"),
            objective="masked_lm",
            masking="dynamic",
            pack_sequences=True,
            max_seq_length=LENGTH,
            max_predictions_per_seq=5,
            dupe_factor=1,
            eval_fraction=0.3,
            num_workers=1,
        )
    )
    assert re.search(r"filled   9\d\.\d% of all positions with 2\.\d sequences an example", capsys.readouterr().out)
    common: dict[str, Any] = {
        "bert_config_file": str(tmp_path / "config.json"),
        "output_dir": str(tmp_path / "run"),
        "objective": "masked_lm",
        "do_eval": True,
    }
    run_pretraining.main(
        run_pretraining.Options(
            input_file=(str(tmp_path / "packed*tfrecord"),),
            do_train=True,
            train_batch_size=8,
            num_train_steps=2,
            num_warmup_steps=1,
            **common,
        )
    )
    shown = capsys.readouterr()
    assert re.search(r"of 24 tokens \(2\.\d sequences each, 9\d\.\d% of positions filled\)", shown.out + shown.err)
    scores = json.loads((tmp_path / "run/eval_results.json").read_text())
    assert scores["global_step"] == 2
    assert np.isfinite(scores["masked_lm_loss"])

    short = tmp_path / "short.json"
    short.write_text(dataclasses.replace(CONFIGS["bert_offset"], max_position_embeddings=LENGTH + 1).to_json())
    with pytest.raises(UsageError, match=r"max_seq_length=24 but .* has positions for 23 tokens"):
        run_pretraining.main(
            run_pretraining.Options(
                input_file=(str(tmp_path / "packed*tfrecord"),), **{**common, "bert_config_file": str(short)}
            )
        )
