"""Queries: tokens that read a text and themselves; who sees whom at every depth, and their work."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from modeling_cases import BERT, without_dropout

from modeling import Config, LanguageModel, load_config, masks, named_variables
from modeling.accounting import Layout, flops_per_example, step_memory
from modeling.computation import Computation, Sizes
from modeling.heads import MaskedLMHead, QueriesHead

ROOT = Path(__file__).resolve().parents[2]
ERNIE = dataclasses.replace(
    BERT,
    family="ernie_m",
    hidden_act="gelu_erf",
    layer_norm_eps=1e-5,
    position_offset=2,
    type_vocab_size=0,
    max_position_embeddings=24,
    num_hidden_layers=2,
)
L, P = 6, 3


def randomized(config: Config, computation: Computation = Computation(seed=3)) -> LanguageModel:  # noqa: B008
    model = LanguageModel(config, [QueriesHead], computation)
    generator = np.random.default_rng(5)
    for variable in named_variables(model).values():
        variable.assign(np.asarray(variable) + 0.1 * generator.standard_normal(variable.shape))
    return model


@pytest.fixture(scope="module", params=[1, 2, 4])
def deep(request: pytest.FixtureRequest) -> LanguageModel:
    return randomized(dataclasses.replace(without_dropout(ERNIE), num_hidden_layers=request.param))


def beside(seed: int = 0) -> dict[str, np.ndarray]:
    """Two rows: a text of 6 tokens and one of 4, each with 3 queries."""
    generator = np.random.default_rng(seed)
    mask = np.array([[1] * 6, [1, 1, 1, 1, 0, 0]], np.int32)
    return {
        "input_ids": generator.integers(5, 37, (2, L), dtype=np.int32) * mask,
        "input_mask": mask,
        "places": np.tile(np.arange(L, dtype=np.int32), (2, 1)),
        "query_ids": np.full((2, P), 4, np.int32),
        "query_places": np.array([[6, 7, 8], [4, 5, 6]], np.int32),
    }


def changed(given: dict[str, np.ndarray], name: str, row: int, column: int) -> dict[str, np.ndarray]:
    value = given[name].copy()
    value[row, column] = (value[row, column] + 1) % 37
    return given | {name: value}


def test_the_mask_is_that_of_the_example():
    side_ids, masked = np.array([[1, 1, 2, 2]], np.int32), np.array([[0, 1, 0, 1]]) > 0
    strict = ["1000", "0110", "0010", "1001"]
    cross = ["1110", "0110", "1011", "1001"]
    for reading, expected in (("strict", strict), ("cross", cross)):
        found = np.asarray(masks.across_mask(side_ids, masked, reading))[0, 0].astype(int)
        assert ["".join(map(str, row)) for row in found] == expected
    # Padding reads itself, and is read by none.
    padded = np.asarray(masks.across_mask(np.array([[1, 2, 0]], np.int32), np.array([[True, False, False]])))[0, 0]
    np.testing.assert_array_equal(padded, [[True, True, False], [False, True, False], [False, False, True]])


def test_a_text_is_as_if_there_were_no_queries(deep: LanguageModel):
    given = beside()
    alone = deep({name: given[name] for name in ("input_ids", "input_mask")})
    outputs = deep(given)
    for state, expected in zip(outputs["hidden_states"], alone["hidden_states"][:-1], strict=True):
        np.testing.assert_allclose(state, expected, atol=3e-6)


def test_a_query_reads_the_text_and_itself_alone(deep: LanguageModel):
    given = beside()
    before = np.asarray(deep(given)["queried_output"])
    for name in ("query_ids", "query_places"):
        after = np.asarray(deep(changed(given, name, 0, 1))["queried_output"])
        np.testing.assert_array_equal(after[0, [0, 2]], before[0, [0, 2]])
        np.testing.assert_array_equal(after[1], before[1])
        assert np.abs(after[0, 1] - before[0, 1]).max() > 1e-3
    for row, column, read in ((0, 3, True), (1, 3, True), (1, 4, False)):
        after = np.asarray(deep(changed(given, "input_ids", row, column))["queried_output"])
        moved = np.abs(after[row] - before[row]).max(axis=-1)
        assert (moved > 1e-4).all() if read else not moved.any(), (row, column)


def test_queries_are_the_dense_mask_with_all_of_the_other_text_masked(deep: LanguageModel):
    """What is written beside a text is computed by the code that recovers masked tokens."""
    given = beside()
    row = {name: np.concatenate([given[name], given[f"query_{name[6:] if name == 'input_ids' else name}"]], axis=1)
           for name in ("input_ids", "places")}  # fmt: skip
    sides = np.concatenate([given["input_mask"], np.full((2, P), 2)], axis=1).astype(np.int32)
    mask = masks.across_mask(sides, np.tile(np.arange(L + P) >= L, (2, 1)))
    dense = np.asarray(deep(row | {"attention_mask": mask})["sequence_output"])
    np.testing.assert_allclose(deep(given)["queried_output"], dense[:, L:], atol=3e-6)


@pytest.mark.parametrize("reading", ["strict", "cross"])
def test_nothing_of_its_own_text_reaches_a_masked_token_at_any_depth(deep: LanguageModel, reading: str):
    """Two texts of four tokens, the second token of each masked; "cross" is known to leak from the second block on."""
    ids = np.array([[10, 4, 11, 12, 13, 4, 14, 15]], np.int32)
    mask = masks.across_mask(np.array([[1] * 4 + [2] * 4], np.int32), np.array([[0, 1, 0, 0] * 2]) > 0, reading)
    given = {"input_ids": ids, "attention_mask": mask}
    before = np.asarray(deep(given)["sequence_output"])[0]
    for own, place, other in ((1, 2, 5), (5, 7, 1)):
        after = np.asarray(deep(changed(given, "input_ids", 0, place))["sequence_output"])[0]
        leaks = reading == "cross" and deep.config.num_hidden_layers > 1
        assert (np.abs(after[own] - before[own]).max() > 1e-5) == leaks
        assert np.abs(after[other] - before[other]).max() > 1e-3
        # Nor does anything read what a masked token shows, but itself; with "cross" its own text does.
        shown = np.asarray(deep(changed(given, "input_ids", 0, own))["sequence_output"])[0]
        if reading == "strict":
            np.testing.assert_array_equal(np.delete(shown, own, axis=0), np.delete(before, own, axis=0))
        assert np.abs(shown[own] - before[own]).max() > 1e-3


def test_a_legacy_mask_hides_the_first_token_and_reads_padding():
    config = dataclasses.replace(without_dropout(ERNIE), legacy_mask=True)
    model = LanguageModel(config, [])
    ids = np.array([[0, 7, 8, 9, 2, 1, 1]], np.int32)
    given = {"input_ids": ids, "input_mask": (ids != 1).astype(np.int32)}
    usual = LanguageModel(without_dropout(ERNIE), [])
    for name, variable in named_variables(model).items():
        variable.assign(named_variables(usual)[name])
    expected = usual({"input_ids": ids, "input_mask": (ids != 0).astype(np.int32)})
    np.testing.assert_array_equal(model(given)["sequence_output"], expected["sequence_output"])
    with pytest.raises(UsageError, match="legacy_mask true, with which masked tokens would be read"):
        LanguageModel(config, [QueriesHead])


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (ERNIE, {"type_vocab_size": 1}, "type_vocab_size is 1; ERNIE-M has no token types: 0"),
        (ERNIE, {"embedding_size": 8}, "embedding_size 8 differs from hidden_size 16"),
        (BERT, {"legacy_mask": True}, 'legacy_mask is True, which family "bert" has not; leave it out or use ernie_m'),
    ],
)
def test_what_is_none_of_its_graphs_is_one_line(config: Config, changes: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(config, **changes)


def test_another_body_has_no_queries():
    with pytest.raises(UsageError, match='which family "bert" cannot; give a config of ERNIE-M') as error:
        LanguageModel(BERT, [QueriesHead])
    assert "\n" not in str(error.value)


def test_the_published_counts_are_those_of_the_config_files():
    for size, expected in (("base", 278_042_880), ("large", 559_889_408)):
        config = load_config(ROOT / f"albert_config/ernie_m_{size}.json")
        assert config.least_parameters <= expected
        assert (config.max_sequence_length, config.legacy_mask) == (512, False)


def test_operations_are_n_squared_and_queries_times_n():
    width, inner, layers = 16, 24, 2

    def row(length: int, queries: int) -> int:
        """Of a row with queries, whose last block computes keys and values of the text alone."""
        of_position = 4 * width**2 + 2 * width * inner
        products = (length + queries) * of_position + 2 * (length + queries) * length * width
        last = queries * of_position + 2 * length * width**2 + 2 * queries * length * width
        return 2 * ((layers - 1) * products + last)

    body = LanguageModel(ERNIE, []).backbone
    two_layers = dataclasses.replace(BERT, num_hidden_layers=layers)
    assert body.operations(Sizes(9)) == LanguageModel(two_layers, []).backbone.operations(Sizes(9))
    assert body.operations(Sizes(9, queries=4)) == row(9, 4)
    assert body.operations(Sizes(9, other=7, scored=6)) == row(9, 3) + row(7, 3)
    assert len(body.states(Sizes(9, other=7, scored=6))) == 2 * layers
    assert body.computed_positions(Sizes(9, other=7, scored=6)) == 2 * (12 + 10) + 2 * (3 + 3)
    # A row of both texts scores all pairs; half of them are masked away.
    split, dense = flops_per_example(ERNIE, 64, 20, other=64), flops_per_example(ERNIE, 128, 20)
    assert split < dense
    head = LanguageModel(ERNIE, [MaskedLMHead]).heads[0]
    written = body.operations(Sizes(9, queries=5)) + head.operations(Sizes(9, scored=5), body)
    assert flops_per_example(ERNIE, 9, 3, written=5) == flops_per_example(ERNIE, 14, 3) + written
    layout = Layout(batch_size=8, length=9, predictions=4)
    assert step_memory(ERNIE, dataclasses.replace(layout, written=9)).peak > step_memory(ERNIE, layout).peak
