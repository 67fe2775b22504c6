"""Tokens and scores are those of transformers' `generate` on an encoder-decoder of equal weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from generation_cases import config_of, generative, sources

from benchmarks.generation import mbart_of
from generation.generator import Generator
from generation.settings import Settings

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

CASES: list[dict[str, Any]] = [
    {"max_new_tokens": 10},
    {"max_new_tokens": 10, "repetition_penalty": 1.4, "min_new_tokens": 4},
    {"num_beams": 4, "max_new_tokens": 10, "length_penalty": 0.6, "num_return_sequences": 4},
    {"num_beams": 4, "max_new_tokens": 10, "early_stopping": True, "min_new_tokens": 5, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "max_new_tokens": 8, "early_stopping": "never", "length_penalty": 2.0, "forced_eos_token_id": 2},
]


@pytest.mark.slow
def test_generate_of_equal_weights():
    torch.set_num_threads(1)
    model = generative(config_of(initializer_range=0.3))
    model.body.normalizes_twice = False
    peer = mbart_of(model)
    features = sources(5, 12, seed=4)
    ids, mask = (torch.from_numpy(features[name]).long() for name in ("input_ids", "input_mask"))
    ended = 0
    for values in CASES:
        returned = values.get("num_return_sequences", 1)
        theirs = peer.generate(
            ids,
            attention_mask=mask,
            **{"num_beams": 1, "do_sample": False, **values},
            return_dict_in_generate=True,
            output_scores=True,
        )
        rows = theirs.sequences[:, 1:].reshape(len(ids), returned, -1).tolist()
        for b, found in enumerate(Generator(model, Settings(**values), batch_size=5)(features)):
            for k, hypothesis in enumerate(found):
                row = rows[b][k]
                # Behind the end token transformers writes more of them where padding is 0.
                expected = row[: row.index(2)] if 2 in row else row
                assert list(hypothesis.tokens) == expected, (values, b, k)
                assert hypothesis.ended == (2 in row)
                ended += hypothesis.ended
                if "num_beams" in values:
                    score = float(theirs.sequences_scores.reshape(len(ids), returned)[b, k])
                    assert hypothesis.score == pytest.approx(score, abs=1e-4)
    assert ended >= 5


@pytest.mark.slow
def test_states_are_those_of_transformers():
    model = generative()
    model.body.normalizes_twice = False
    features = sources(3, 9)
    target = np.random.default_rng(0).integers(3, 61, (3, 7)).astype(np.int32)
    ours = np.asarray(model.model({**features, "target_ids": np.pad(target, ((0, 0), (0, 1)))})["next_token_logits"])
    with torch.no_grad():
        ids, mask = (torch.from_numpy(features[name]).long() for name in ("input_ids", "input_mask"))
        decoder_ids = torch.from_numpy(target).long()
        theirs = mbart_of(model)(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)
