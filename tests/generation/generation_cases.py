"""A small encoder-decoder of the Chinese PALM graph, its features, and what its texts must be by other ways."""

from __future__ import annotations

from typing import Any

import numpy as np

from generation.language_model import Generative
from generation.model import Tokens
from modeling import Config, LanguageModel
from modeling.heads import NextTokenHead

TOKENS = Tokens(start=1, end=2, padding=0)


def config_of(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "family": "palm",
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_decoder_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_act": "gelu_erf",
        "max_position_embeddings": 64,
        "type_vocab_size": 1,
        "initializer_range": 0.35,
        "layer_norm_eps": 1e-5,
        "ln_type": "preln",
        "final_layer_norm": True,
    }
    return Config(**{**values, **changes})


def generative(config: Config | None = None, tokens: Tokens = TOKENS) -> Generative:
    return Generative(LanguageModel(config or config_of(), [NextTokenHead]), tokens)


def sources(count: int, length: int, vocab_size: int = 61, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of sources of different lengths; the first is whole."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(max(1, length // 3), length + 1, count)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return {"input_ids": generator.integers(3, vocab_size, (count, length)).astype(np.int32) * mask, "input_mask": mask}


def teacher_forced(model: Generative, features: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
    """Log-probabilities of every next token, [B, T, V], without any cache."""
    # The last is not read; Keras warns of a softmax over a single position.
    ids = np.pad(target, ((0, 0), (0, 2)))
    logits = np.asarray(model.model({**features, "target_ids": ids})["next_token_logits"])
    logits = logits[:, : target.shape[1], : model.vocab_size]
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
