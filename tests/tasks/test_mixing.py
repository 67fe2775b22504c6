"""Several objectives of one model: each step is that of its objective alone, under names of its own."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mixing_cases
import numpy as np
import pytest
from absl.app import UsageError
from mixing_cases import CONFIG, SEQUENCE, batch_of, task
from on_jax import environment_on_jax

from data.mixture import marked
from data.objectives import OBJECTIVES
from modeling import named_variables
from modeling.heads import BothSidesHead, MaskedLMHead, PairHead
from tasks.mixing import MixedTask, _joined, name_of_term
from tasks.pretraining import PretrainingTask, Until

KEY = np.array([1, 2], np.uint32)
ENCODER = dataclasses.replace(CONFIG, family="bert", cross_attention=False, type_vocab_size=2)
PALM = dataclasses.replace(ENCODER, family="palm", num_decoder_layers=1, type_vocab_size=3)


def mixed(config: Any, *names: str, **weights: float) -> MixedTask:
    return MixedTask({name: PretrainingTask(config, name, weights=weights) for name in names})


def test_losses_have_the_names_of_their_objectives():
    found = task()
    sides = ("masked_lm", "other_masked_lm", "crossed", "other_crossed")
    assert found.loss_weights == {"masked_lm": 1.0, "tlm": 2.0, **dict.fromkeys((f"veco_{x}" for x in sides), 1.0)}
    assert found.metrics == ("masked_lm_accuracy", "tlm_accuracy", *(f"veco_{x}_accuracy" for x in sides))
    # Of an objective with losses of its own name they stay.
    assert name_of_term("camlm", "camlm", ("camlm",)) == "camlm"
    assert name_of_term("camlm", "camlm_accuracy", ("camlm", "camlm_other")) == "camlm_accuracy"
    assert name_of_term("btmlm", "repetition", ("btmlm",)) == "btmlm_repetition"
    assert name_of_term("btmlm", "empty_share", ("masked_lm",)) == "btmlm_empty_share"


def test_no_two_rows_share_a_name():
    named = {}
    for name in OBJECTIVES:
        one = PretrainingTask(PALM if OBJECTIVES[name].continuing else CONFIG, name, weights={"word_order": 1.0})
        named[name] = {name_of_term(name, term, tuple(one.loss_weights)) for term in (*one.loss_weights, *one.metrics)}
        assert len(named[name]) == len(one.loss_weights) + len(one.metrics)
    for one, other in itertools.combinations(OBJECTIVES, 2):
        assert not named[one] & named[other], (one, other)


def test_one_head_serves_all_that_name_it():
    model = task().build_model()
    (head,) = model.heads
    assert isinstance(head, BothSidesHead)
    alone = PretrainingTask(CONFIG, "veco").build_model()
    # One masked-LM head for all; every variable begins as it would alone.
    assert named_variables(model).keys() == named_variables(alone).keys()
    for name, value in named_variables(alone).items():
        np.testing.assert_array_equal(np.asarray(named_variables(model)[name]), np.asarray(value))
    encoder, decoder = (mixed(PALM, *names).build_model() for names in (("masked_lm", "tlm"), ("masked_lm", "palm")))
    assert [len(encoder.heads), len(decoder.heads)] == [1, 2]
    assert _joined(MaskedLMHead, BothSidesHead) is _joined(BothSidesHead, MaskedLMHead) is BothSidesHead
    assert _joined(partial(PairHead, num_labels=2), partial(PairHead, num_labels=3)) is None
    assert _joined(partial(PairHead, num_labels=2), partial(PairHead, num_labels=2)) is not None
    assert _joined(BothSidesHead, type("Another", (MaskedLMHead,), {})) is None


@pytest.mark.parametrize(
    ("config", "names", "said"),
    [
        (
            ENCODER,
            ("masked_lm", "palm"),
            r"--objective: palm cannot be learnt by this model: .* has no decoder; give one",
        ),
        (
            ENCODER,
            ("masked_lm", "veco"),
            r"--objective: veco cannot be learnt by this model: .* has no cross-attention",
        ),
        (
            ENCODER,
            ("albert", "structbert"),
            r"albert and structbert cannot share a model, whose one sentence-pair head",
        ),
        (ENCODER, ("albert", "bert"), r"would tell in order, swapped and also next, random: learn one of the two"),
    ],
)
def test_objectives_that_no_one_model_has_are_one_line(config: Any, names: tuple[str, ...], said: str):
    with pytest.raises(UsageError, match=said) as error:
        mixed(config, *names).build_model()
    assert "\n" not in str(error.value)


def test_a_batch_without_a_mark_is_refused():
    with pytest.raises(ValueError, match="a batch of no objective; expected one of masked_lm, tlm, veco"):
        task().normalizers(batch_of("tlm", 0))


def test_schedules_and_predictions_are_those_of_the_objective():
    palm = PretrainingTask(PALM, "palm", until={"masked_lm": 9})
    found = MixedTask({"masked_lm": PretrainingTask(PALM, "masked_lm"), "palm": palm})
    assert found.loss_schedules == {"palm_masked_lm": Until(9)}
    batch = batch_of("tlm", 0)
    model = task().build_model()
    expected = PretrainingTask(CONFIG, "tlm").predictions(model, batch)["masked_lm_ids"]
    np.testing.assert_array_equal(task().predictions(model, marked(batch, "tlm"))["masked_lm_ids"], expected)
    # An objective may have models of its own beside.
    toy: Any = PretrainingTask(PALM, "tlm")
    toy.companions = lambda: {"teacher": "x"}
    assert MixedTask({"tlm": toy, "masked_lm": found.members["masked_lm"]}).companions() == {"tlm/teacher": "x"}


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("jax") / "found.npz"
    command = [sys.executable, "-W", "error", str(Path(mixing_cases.__file__)), str(path)]
    done = subprocess.run(command, env=environment_on_jax(devices=2), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(path))


def below(found: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): x for key, x in found.items() if key.startswith(prefix)}


def assert_equal_alone_and_mixed(found: dict[str, np.ndarray], name: str) -> None:
    """Losses and metrics are the same numbers, and so are the weights where nothing multiplies the loss."""
    alone, mixed = below(found, "alone/"), below(found, "mixed/")
    factor = mixing_cases.FACTORS.get(name, 1.0)
    np.testing.assert_allclose(mixed["loss"], factor * alone["loss"], rtol=1e-6)
    one = PretrainingTask(CONFIG, name)
    losses = tuple(one.loss_weights)
    expected = {f"{name_of_term(name, term, losses)}_loss": alone[f"{term}_loss"] for term in losses}
    expected |= {name_of_term(name, term, losses): alone[term] for term in one.metrics}
    assert {key for key in mixed if key.endswith(("_loss", "_accuracy"))} == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(mixed[key], value, err_msg=key)
    for key, value in alone.items():
        if key.startswith(("model/", "optimizer/")) and factor == 1:
            np.testing.assert_array_equal(mixed[key], value, err_msg=key)


@pytest.mark.slow
def test_a_step_is_the_step_of_its_objective_alone_bit_for_bit(on_jax):
    for name in mixing_cases.OBJECTIVES:
        assert_equal_alone_and_mixed(below(on_jax, f"first/{name}/"), name)
    assert_equal_alone_and_mixed(mixing_cases.alone_and_mixed("masked_lm"), "masked_lm")


@pytest.mark.slow
def test_what_an_objective_does_not_train_keeps_its_value(on_jax):
    before = below(on_jax, "initial/model/")
    moved = {
        name: {key for key, x in below(on_jax, f"first/{name}/mixed/model/").items() if (x != before[key]).any()}
        for name in mixing_cases.OBJECTIVES
    }
    assert moved["tlm"] == moved["masked_lm"]
    assert not any("cross_attention" in key for key in moved["tlm"])
    assert moved["veco"] > moved["tlm"]
    assert any("cross_attention" in key for key in moved["veco"])


@pytest.mark.slow
def test_alike_batches_swap_no_names_however_calls_devices_and_micro_batches_cut_them_on_both_backends(on_jax):
    expected = below(on_jax, "turns/")
    for n, name in enumerate((*SEQUENCE, *mixing_cases.ALIKE)):
        assert {key for key in expected if key.startswith(f"{n}/") and key.endswith(("_loss", "_accuracy"))} == {
            f"{n}/{name}_loss",
            f"{n}/{name}_accuracy",
        }
    found = mixing_cases.in_turn(steps_per_call=3, micro_batches=2)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # Softmax does not see the bias of the keys: its gradient is nothing but rounding, which Adam then scales up.
        if "key/bias" not in key:
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
