import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_cases import CONFIGS
from on_jax import environment_on_jax

from modeling import PretrainingModel, count_parameters, load_config
from modeling.accounting import (
    Layout,
    collective_bytes,
    declared_model,
    flops_per_example,
    parameter_count,
    step_memory,
)
from modeling.computation import Sizes

ROOT = Path(__file__).resolve().parents[2]
BERT = load_config(ROOT / "albert_config/bert_config_large_en.json")
PUBLISHED = sorted(ROOT.glob("albert_config/*.json"))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("labels", [0, 3])
def test_parameters_are_those_of_the_model(name: str, labels: int):
    built = count_parameters(lambda: PretrainingModel(CONFIGS[name], num_pair_labels=labels))
    assert parameter_count(CONFIGS[name], labels) == built


COUNT_PRODUCTS = """
import json, sys
import jax, numpy as np
from modeling_cases import CONFIGS, features, without_dropout
from modeling import PretrainingModel

def products(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * int(summed * np.prod(equation.outvars[0].aval.shape))
        for value in equation.params.values():
            for item in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(item, "jaxpr", item)
                total += products(inner) if hasattr(inner, "eqns") else 0
    return total

found = {}
for name in CONFIGS:
    model = PretrainingModel(without_dropout(CONFIGS[name]), num_pair_labels=0)
    weights = [variable.value for variable in model.trainable_variables]
    state = [variable.value for variable in model.non_trainable_variables]
    def loss(weights):
        outputs, _ = model.stateless_call(weights, state, features(), training=True)
        return (outputs["masked_lm_logits"] ** 2).sum() + (outputs["pooled_output"] ** 2).sum()
    found[name] = [products(jax.make_jaxpr(f)(weights).jaxpr) for f in (loss, jax.grad(loss))]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_operations_are_those_of_every_product_that_jax_traces():
    environment = environment_on_jax(ROOT, Path(__file__).parent)
    command = [sys.executable, "-c", COUNT_PRODUCTS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    batch, length, predictions = 3, 9, 4
    for name, (forward, whole) in json.loads(result.stdout).items():
        config = CONFIGS[name]
        width = PretrainingModel(config).backbone.embeddings.sum_width
        # Token types are looked up by a product with one-hot rows, which have no gradient.
        lookup = 2 * batch * length * config.type_vocab_size * width
        counted = batch * flops_per_example(config, length, predictions)
        assert forward - lookup == counted // 3, name
        assert whole - 2 * lookup == counted, name


LAYOUTS = st.builds(
    Layout,
    batch_size=st.sampled_from([8, 16, 64]),
    length=st.sampled_from([32, 128, 512]),
    predictions=st.integers(1, 20),
    half_precision=st.booleans(),
    remat=st.booleans(),
    scan=st.booleans(),
    cpu=st.booleans(),
    averaged=st.booleans(),
    micro_batches=st.sampled_from([1, 2]),
    data_parts=st.sampled_from([1, 4]),
    model_parts=st.sampled_from([1, 2]),
    fsdp=st.booleans(),
)


# The first example declares the model.
@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(LAYOUTS)
def test_memory_grows_with_what_is_held_and_falls_with_what_is_cut(layout: Layout):
    def peak(**changes: object) -> float:
        return step_memory(BERT, dataclasses.replace(layout, **changes)).peak

    now = peak()
    assert peak(batch_size=2 * layout.batch_size) > now
    assert peak(length=2 * layout.length) > now
    assert peak(averaged=True) >= now
    assert peak(remat=True) <= now
    assert peak(fsdp=True) <= now
    assert peak(model_parts=2 * layout.model_parts) < now
    assert peak(batch_size=2 * layout.batch_size, data_parts=2 * layout.data_parts) <= now * (1 + 1e-9)


def test_held_bytes_are_those_of_float32_weights_and_two_slots():
    layout = Layout(batch_size=8, length=128, predictions=20)
    weights = 4 * parameter_count(BERT)
    assert step_memory(BERT, layout).held == {"weights": weights, "optimizer slots": 2 * weights}
    cut = dataclasses.replace(layout, fsdp=True, data_parts=4, averaged=True)
    assert step_memory(BERT, cut).held["average"] == weights / 4
    assert collective_bytes(BERT, layout) == {}
    assert collective_bytes(BERT, dataclasses.replace(layout, data_parts=4)) == {"all-reduce": weights}


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("half", [False, True])
def test_collectives_are_those_of_the_papers(micro_batches: int, half: bool):
    """ZeRO (Rajbhandari et al. 2020, section 7): a micro-batch has two gathers and a scatter. Megatron: four sums."""
    layout = Layout(
        batch_size=64, length=128, predictions=20, micro_batches=micro_batches, half_precision=half, data_parts=4
    )
    weights, item = 4 * parameter_count(BERT), 2 if half else 4
    cut = collective_bytes(BERT, dataclasses.replace(layout, fsdp=True))
    assert cut == {
        "all-gather": micro_batches * 2 * parameter_count(BERT) * item,
        "reduce-scatter": micro_batches * weights,
    }
    split = collective_bytes(BERT, dataclasses.replace(layout, model_parts=2))
    states = 64 / 4 * 128 * BERT.hidden_size * item
    assert split == {"all-reduce": weights / 2 + 4 * BERT.num_hidden_layers * states}


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_scored_unless_asked(name: str):
    model = declared_model(CONFIGS[name], 0)
    assert 3 * model.operations(Sizes(9)) == flops_per_example(CONFIGS[name], 9, 0)
    assert model.operations(Sizes(9, scored=1)) > model.operations(Sizes(9))
