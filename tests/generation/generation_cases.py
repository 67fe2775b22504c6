"""Models of the tests: one without a network, whose scores come from a table, and a small encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from generation.model import Features, SelfCache, Tensors, Tokens
from ground.tensors import Tensor, ops
from modeling import Config, masks
from modeling.decoder import Decoder
from modeling.embeddings import Embeddings
from modeling.encoder import Encoder
from modeling.variables import Initialization

TOKENS = Tokens(start=1, end=2, padding=0)


def config_of(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "family": "bert",
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_act": "gelu_erf",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 64,
        "type_vocab_size": 1,
        "initializer_range": 0.35,
        "layer_norm_eps": 1e-5,
        "ln_type": "preln",
        "final_layer_norm": True,
    }
    return Config(**{**values, **changes})


class Small:
    """The Chinese PALM graph: pre-LN stacks over one word table, which is the output matrix too."""

    def __init__(self, config: Config, seed: int = 1, tokens: Tokens = TOKENS) -> None:
        initialization = Initialization(config.initializer_range, seed)
        self.config = config
        self.tokens = tokens
        self.vocab_size = config.vocab_size
        self.max_new_tokens = config.max_position_embeddings
        self.embeddings = Embeddings(config, initialization, dtype="float32")
        self.encoder = Encoder(config, initialization, dtype="float32")
        self.decoder = Decoder(config, initialization, dtype="float32")
        for layer in (self.embeddings, self.encoder, self.decoder):
            layer.build(None)

    @property
    def variables(self) -> Sequence[keras.Variable]:
        return [v for layer in (self.embeddings, self.encoder, self.decoder) for v in layer.weights]

    def lengths(self, features: Features) -> np.ndarray:
        return np.asarray(features["input_mask"]).sum(1)

    def prepare(self) -> Tensors:
        return {"output": ops.transpose(ops.convert_to_tensor(self.embeddings.word_embeddings))}

    def encode(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        mask = masks.padding_mask(features["input_mask"])
        return self.encoder(self.embeddings(features["input_ids"]), attention_mask=mask)[0], mask

    def start(self, features: Mapping[str, Tensor]) -> Tensors:
        states, mask = self.encode(features)
        return {"cross": self.decoder.project_memory(states), "mask": mask}

    def empty_cache(self, batch: int | Tensor, slots: int) -> SelfCache:
        return self.decoder.start_cache(batch, slots)["self"]

    def step(
        self,
        tokens_BK: Tensor,
        position: Tensor,
        memory: Tensors,
        cache: SelfCache,
        visible: Tensor | None,
        slot: Tensor | None,
        prepared: Tensors,
    ) -> tuple[Tensor, SelfCache]:
        rows = tokens_BK.shape[1]
        x = self.embeddings(ops.reshape(tokens_BK, (-1, 1)), position=position)
        x = ops.reshape(x, (-1, rows, self.config.hidden_size))
        held = {"self": cache, "memory": memory["cross"]}
        x, held = self.decoder.step(x, held, slot, memory["mask"], visible)
        return self.scores(x, prepared["output"]), held["self"]

    def scores(self, x: Tensor, output: Tensor) -> Tensor:
        flat = ops.matmul(ops.reshape(x, (-1, self.config.hidden_size)), output)
        return ops.reshape(flat, (-1, x.shape[1], self.vocab_size))

    def teacher_forced(self, features: Mapping[str, Tensor], target: np.ndarray) -> np.ndarray:
        """Log-probabilities of every next token, [B, T, V], without any cache."""
        states, mask = self.encode(features)
        x, _ = self.decoder(self.embeddings(target), memory_BSD=states, memory_mask=mask)
        return np.asarray(ops.log_softmax(self.embeddings.logits(x), axis=-1))


def sources(count: int, length: int, vocab_size: int = 61, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of sources of different lengths; the first is whole."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(max(1, length // 3), length + 1, count)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return {"input_ids": generator.integers(3, vocab_size, (count, length)).astype(np.int32) * mask, "input_mask": mask}
