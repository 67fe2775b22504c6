"""Laws of layer-wise decay, freezing and gradual unfreezing, over the names of real models."""

import dataclasses
import re
from typing import Any

import pytest
from absl.app import UsageError

from modeling import ClassifierModel, Config, variable_shapes
from tasks.layer_rates import BLOCKS, frozen_expressions, learning_rate_multipliers

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 8,
}
BERT = Config(family="bert", **SIZES)
VECO = Config(
    family="veco",
    type_vocab_size=1,
    position_offset=2,
    cross_attention=True,
    **{**SIZES, "max_position_embeddings": 10},
)
ALBERT = Config(family="albert", sharing="all", embedding_size=4, **SIZES)
GROUPS = Config(family="albert", sharing="all", num_hidden_groups=4, embedding_size=4, **SIZES)
UNSHARED = Config(family="albert", sharing="none", inner_group_num=2, embedding_size=4, **SIZES)


def names_of(config):
    return list(variable_shapes(lambda: ClassifierModel(config, 2)))


def first_match(rules, name):
    return next((rule[1:] for rule in rules if re.search(rule[0], name)), (1.0, 0))


@pytest.mark.parametrize("config", [BERT, VECO])
def test_layer_decay_by_depth(config):
    rules = learning_rate_multipliers(config, 0.5, 0.0, 100)
    for name in names_of(config):
        block = re.search(r"_(\d+)/", name) if "/encoder/" in name else None
        depth = 12 - int(block[1]) if block else 13 if "embeddings" in name else 0
        assert first_match(rules, name) == (0.5**depth, 0), name


def test_layers_join_from_the_top_at_equal_distances():
    rules = learning_rate_multipliers(BERT, 0.5, 0.65, 200)
    for name in names_of(BERT):
        block = re.search(r"_(\d+)/", name) if "/encoder/" in name else None
        depth = 12 - int(block[1]) if block else 13 if "embeddings" in name else 0
        assert first_match(rules, name) == (0.5**depth, 10 * depth), name  # 0.65 * 200 = 13 * 10


def test_nothing_asked_no_rule():
    for config in (BERT, ALBERT):
        assert learning_rate_multipliers(config, 1.0, 0.0, 100) == []
        assert frozen_expressions(config, 0) == []


@pytest.mark.parametrize("config", [BERT, UNSHARED, VECO])
@pytest.mark.parametrize("layers", [1, 5, 12])
def test_frozen_are_the_embeddings_and_exactly_the_lowest_layers(config, layers):
    expressions = frozen_expressions(config, layers)
    for name in names_of(config):
        block = re.search(r"_(\d+)/", name) if re.search(BLOCKS, name) else None
        wanted = int(block[1]) // config.inner_group_num < layers if block else "embeddings" in name
        assert any(re.search(each, name) for each in expressions) == wanted, name


def test_blocks_are_the_variables_of_attention_and_feed_forward():
    for config in (BERT, ALBERT):
        outside = {name.split("/")[0] for name in names_of(config) if not re.search(BLOCKS, name)}
        assert outside == {"backbone", "classifier"}
        assert {
            name.split("/")[1] for name in names_of(config) if "backbone" in name and not re.search(BLOCKS, name)
        } == {"embeddings", "pooler"}


def test_shared_weights_cannot_differ_by_layer():
    for call, flag in (
        (lambda: learning_rate_multipliers(ALBERT, 0.9, 0.0, 10), "--layer_decay=0.9"),
        (lambda: learning_rate_multipliers(ALBERT, 1.0, 0.5, 10), "--gradual_unfreezing=0.5"),
        (lambda: frozen_expressions(ALBERT, 3), "--freeze_layers=3"),
    ):
        with pytest.raises(UsageError) as error:
            call()
        assert str(error.value) == (
            f"{flag}: layers of this model share weights (sharing=all, 12 layers in 1 groups), and what all use cannot "
            "differ by layer; use a config whose layers have weights of their own, or leave the flag out"
        )


def test_groups_freeze_as_a_whole_or_not_at_all():
    assert len(frozen_expressions(ALBERT, 12)) == 2  # the embeddings and the one block
    frozen = frozen_expressions(GROUPS, 6)  # two groups of three layers
    names = [name for name in names_of(GROUPS) if any(re.search(each, name) for each in frozen)]
    assert {int(re.findall(r"_(\d+)/", name)[0]) for name in names if re.search(BLOCKS, name)} == {0, 1}
    with pytest.raises(UsageError, match=r"--freeze_layers=5: layers of this model share weights"):
        frozen_expressions(GROUPS, 5)


def test_more_layers_than_there_are():
    with pytest.raises(UsageError) as error:
        frozen_expressions(BERT, 13)
    assert str(error.value) == "--freeze_layers=13: the model has 12 layers; freeze at most so many"


def test_the_rates_of_ernie_m_are_those_of_its_script():
    """Layer k of n has decay^(n - k), embeddings decay^(n + 1), pooler and classifier 1."""
    for layers, wanted in ((12, {0: 0.0687, 11: 0.8, None: 0.0550}), (24, {0: 0.0047, 23: 0.8, None: 0.0038})):
        rules = learning_rate_multipliers(dataclasses.replace(BERT, num_hidden_layers=layers), 0.8, 0.0, 100)
        places = {k: f"backbone/encoder/attention_{k}/query/kernel" for k in range(layers)}
        names = {None: "backbone/embeddings/word_embeddings", **places}
        for k, name in names.items():
            (factor,) = [factor for expression, factor, start in rules if re.search(expression, name) and start == 0]
            assert factor == pytest.approx(0.8 ** (layers + 1 if k is None else layers - k))
            assert k not in wanted or round(factor, 4) == wanted[k]
        assert not [rule for rule in rules if re.search(rule[0], "backbone/pooler/kernel classifier/kernel")]
