"""The search alone, on models that are tables: golden values, transformers itself on random tables, laws."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from generation.model import Tokens
from generation.rows import Rows
from generation.search import Beams, State, best_of
from generation.settings import Settings

TOKENS = Tokens(start=1, end=2, padding=0)
NOWHERE = [-9.0] * 6
# Scores by the last token: pad, start, end, a, b, c.
TABLE = np.array(
    [
        NOWHERE,
        [-9, -9, 0, 1, 0.9, -1],
        NOWHERE,
        [-9, -9, 0.5, 0.3, 1, 0.2],
        [-9, -9, 1.2, 0.8, -0.5, 1.1],
        [-9, -9, -0.3, 1.4, 0.6, 0.1],
    ],
    np.float32,
)


def searched(table_BVV: np.ndarray, settings: Settings, beams: bool = True) -> tuple[Any, State, int]:
    search = (Beams if beams else Rows)(settings, TOKENS, table_BVV.shape[-1])
    batch = len(table_BVV)
    least, most = np.full(batch, settings.min_new_tokens), np.full(batch, settings.max_new_tokens)
    state = search.start(least, most, np.zeros((batch, 2), np.uint32))
    steps = 0
    while np.asarray(state["open"]).any():
        last = np.asarray(state["tokens"])[:, :, steps]
        table = table_BVV[:, steps] if table_BVV.ndim == 4 else table_BVV
        state = search.advance(state, steps, table[np.arange(batch)[:, None], last])
        steps += 1
    return search, state, steps


def texts(table_BVV: np.ndarray, settings: Settings, beams: bool = True) -> list[list[tuple[list[int], float]]]:
    search, state, _ = searched(table_BVV, settings, beams)
    tokens, lengths, scores = search.hypotheses(state)
    return [
        [(tokens[b, k, : lengths[b, k]].tolist(), float(scores[b, k])) for k in range(search.rows)]
        for b in range(len(tokens))
    ]


NEVER = "never"
GOLDEN: list[tuple[dict[str, Any], str, list[float], int]] = [
    ({"length_penalty": 0}, "bE abE", [-1.9933, -2.8304], 4),
    ({"length_penalty": 0, "early_stopping": True}, "bE abE", [-1.9933, -2.8304], 3),
    ({"length_penalty": 0, "early_stopping": NEVER}, "bE abE", [-1.9933, -2.8304], 4),
    ({}, "abcabca bcabcab", [-0.8958, -0.9101], 7),
    ({"early_stopping": NEVER}, "abcabca bcabcab", [-0.8958, -0.9101], 7),
    ({"early_stopping": True}, "abE bE", [-0.9435, -0.9967], 3),
    ({"length_penalty": 2, "early_stopping": True}, "abE bE", [-0.3145, -0.4983], 3),
    ({"length_penalty": 2}, "abcabca bcabcab", [-0.1280, -0.1300], 7),
    ({"num_beams": 3}, "abcabca bcabcab abcabE", [-0.8958, -0.9101, -0.9210], 7),
    ({"num_beams": 3, "early_stopping": True}, "abE bE E", [-0.9435, -0.9967, -1.8789], 3),
    ({"early_stopping": True, "min_new_tokens": 4}, "abcabE bcabE", [-0.9210, -0.9378], 6),
    ({"no_repeat_ngram_size": 2}, "bcabE abE", [-0.9378, -0.9435], 5),
    ({"max_new_tokens": 4, "forced_eos_token_id": 2}, "bcaE abcE", [-0.6844, -0.7326], 4),
    ({"early_stopping": True, "forced_bos_token_id": 5}, "cabE caE", [-0.6490, -0.6938], 4),
    ({"early_stopping": True, "repetition_penalty": 1.5}, "abE bE", [-0.9435, -0.9967], 3),
    ({"rule": "fairseq", "max_new_tokens": 8}, "abE bE", [-0.9435, -0.9967], 3),
    ({"rule": "fairseq", "num_beams": 3}, "bcabE abE bE", [-0.9378, -0.9435, -0.9967], 5),
    ({"rule": "fairseq", "length_penalty": 0}, "bE abE", [-1.9933, -2.8304], 3),
    ({"rule": "fairseq", "min_new_tokens": 4}, "abcabE bcabE", [-0.9210, -0.9378], 6),
    ({"rule": "gnmt", "length_penalty": 0.6}, "bE E", [-1.8172, -1.8789], 4),
    ({"rule": "gnmt", "length_penalty": 0}, "E bE", [-1.8789, -1.9933], 3),
    ({"rule": "gnmt", "num_beams": 3, "length_penalty": 0.6}, "bE E aE", [-1.8172, -1.8789, -2.1113], 4),
    ({"rule": "palm", "length_penalty": 0}, "bE abE", [-1.9933, -2.8304], 3),
    ({"rule": "palm", "length_penalty": 0.6}, "bE abE", [-1.8172, -2.3817], 3),
    ({"rule": "palm", "length_penalty": 0.95}, "bE abE", [-1.7218, -2.1536], 3),
    ({"rule": "palm", "num_beams": 3, "length_penalty": 0.6}, "bE E abE", [-1.8172, -1.8789, -2.3817], 7),
    ({"rule": "palm", "length_penalty": 0.95, "min_new_tokens": 4}, "bcabE abcabE", [-2.8863, -3.1071], 6),
]


@pytest.mark.parametrize(("values", "expected", "scores", "steps"), GOLDEN)
def test_golden(values: dict[str, Any], expected: str, scores: list[float], steps: int):
    settings = Settings(**{"num_beams": 2, "max_new_tokens": 7, **values})
    search, state, taken = searched(TABLE[None], settings)
    tokens, lengths, found = search.hypotheses(state)
    words = ["".join("pBEabc"[i] for i in tokens[0, k, : lengths[0, k]]) for k in range(search.rows)]
    assert words == expected.split()
    np.testing.assert_allclose(found[0], scores, atol=1e-4)
    assert taken == steps


def test_golden_greedy():
    settings = Settings(max_new_tokens=7)
    (((tokens, score),),) = texts(TABLE[None], settings, beams=False)
    assert "".join("pBEabc"[i] for i in tokens) == "abE"
    assert score == pytest.approx(-0.9435, abs=1e-4)


def test_best_of_takes_the_lowest_index_of_ties():
    generator = np.random.default_rng(0)
    for _ in range(50):
        x = generator.integers(0, 4, (2, 3, 5)).astype(np.float32)
        value, index = best_of(x, 7)
        order = np.argsort(-x.reshape(2, 15), axis=1, kind="stable")[:, :7]
        np.testing.assert_array_equal(index, order)
        np.testing.assert_array_equal(value, np.take_along_axis(x.reshape(2, 15), order, 1))


@pytest.mark.parametrize("values", [{}, {"min_new_tokens": 3}, {"no_repeat_ngram_size": 2}, {"forced_eos_token_id": 2}])
def test_one_beam_that_stops_at_its_first_hypothesis_is_greedy_search(values: dict[str, Any]):
    tables = np.random.default_rng(1).normal(0, 2, (20, 9, 9)).astype(np.float32)
    settings = Settings(max_new_tokens=6, early_stopping=True, **values)
    by_beam, greedy = texts(tables, settings), texts(tables, settings, beams=False)
    for ((tokens, score),), ((others, other),) in zip(by_beam, greedy, strict=True):
        # An end token that is second best makes no hypothesis of a beam either.
        assert tokens == others
        assert score == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("rule", ["transformers", "fairseq", "gnmt", "palm"])
def test_batch_equals_one_by_one_and_scores_can_be_recomputed(rule: str):
    tables = np.random.default_rng(2).normal(0, 1.5, (3, 9, 9)).astype(np.float32)
    log_probs = np.asarray(keras.ops.log_softmax(tables, axis=-1))
    settings = Settings(rule=rule, num_beams=3, max_new_tokens=7, length_penalty=0.7, early_stopping=True)
    for b, found in enumerate(texts(tables, settings)):
        (alone,) = texts(tables[b : b + 1], settings)
        assert [t for t, _ in alone] == [t for t, _ in found]
        for tokens, score in found:
            n = len(tokens)
            if not n:
                continue
            total = sum(log_probs[b, was, now] for was, now in zip([1, *tokens], tokens, strict=False))
            length = n**0.7 if rule in ("transformers", "fairseq") else ((5 + n) / 6) ** 0.7
            assert score == pytest.approx(total / length, abs=1e-4)


# -- transformers itself -----------------------------------------------------------------------------------------------


def random_case(seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    pick = generator.choice
    values: dict[str, Any] = {
        "num_beams": int(pick([2, 3, 4])),
        "length_penalty": float(pick([-1.0, 0.0, 0.5, 1.0, 2.0])),
        "early_stopping": [False, True, NEVER][pick(3)],
        "max_new_tokens": int(pick([4, 7, 10])),
        "min_new_tokens": int(pick([0, 0, 3])),
        "no_repeat_ngram_size": int(pick([0, 0, 2, 3])),
        "repetition_penalty": float(pick([1.0, 1.0, 1.3])),
        "forced_bos_token_id": [None, None, 5][pick(3)],
        "forced_eos_token_id": [None, None, 2][pick(3)],
    }
    if not seed % 6:
        values["num_beams"] = 1
    return values


@pytest.fixture(scope="module")
def table_model() -> Any:
    """A model of transformers whose next logits are a row of a table, picked by source and last token."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_outputs import CausalLMOutput

    class Table(transformers.PreTrainedModel, transformers.GenerationMixin):
        config_class = transformers.PretrainedConfig
        _supports_cache_class = False

        def __init__(self) -> None:
            super().__init__(
                transformers.PretrainedConfig(vocab_size=9, pad_token_id=0, bos_token_id=1, eos_token_id=2)
            )
            self.nothing = torch.nn.Parameter(torch.zeros(1))
            self.tables = torch.zeros(0)

        def prepare_inputs_for_generation(
            self, input_ids: Any, attention_mask: Any = None, **further: Any
        ) -> dict[str, Any]:
            return {"input_ids": input_ids}

        def forward(self, input_ids: Any, attention_mask: Any = None, **further: Any) -> Any:
            rows = torch.arange(len(input_ids)) // (len(input_ids) // len(self.tables))
            # Another table at every step: the order of the same tokens would not matter otherwise.
            return CausalLMOutput(logits=self.tables[rows[:, None], torch.arange(input_ids.shape[1])[None], input_ids])

    return Table()


@pytest.mark.slow
def test_sixty_random_cases_equal_transformers(table_model: Any):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    for seed in range(60):
        values = random_case(seed)
        tables = np.random.default_rng(1000 + seed).normal(0, 2, (2, 10, 9, 9)).astype(np.float32)
        ours = texts(tables, Settings(**values), beams=values["num_beams"] > 1)
        table_model.tables = torch.from_numpy(tables)
        theirs = table_model.generate(
            torch.ones((2, 1), dtype=torch.long),
            attention_mask=torch.ones((2, 1), dtype=torch.long),
            **values,
            num_return_sequences=values["num_beams"],
            do_sample=False,
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        rows = theirs.sequences[:, 1:].reshape(2, values["num_beams"], -1).tolist()
        for b in range(2):
            for k, (tokens, score) in enumerate(ours[b]):
                row = rows[b][k]
                assert tokens == row[: row.index(2) + 1 if 2 in row else len(row)], (seed, values)
                if values["num_beams"] > 1:
                    expected = float(theirs.sequences_scores.reshape(2, -1)[b, k])
                    assert score == pytest.approx(expected, abs=1e-4), (seed, values)
