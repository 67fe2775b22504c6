"""The device half of augmentation: which words a masked-LM model would put in the place of hidden ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ground.tensors import Tensor, ops
from modeling import Computation, LanguageModel
from modeling.fusion import fusing
from modeling.heads import MaskedLMHead
from tasks.grouped import ROW_FEATURES

if TYPE_CHECKING:
    from modeling.config import Config

POSITIONS, CLASSES, FORMER = "scored_positions", "classes", "former_ids"
_NEVER = -1e9


class FillingTask:
    """The best candidates for each hidden token; implements as much of `training.engine.Task` as predicts.

    Args:
        config: of the model.
        allowed: [2, V], which ids may stand where a token of class 0, and of class 1, was hidden.
        most: K, candidates of a place.
        computation: how the model is computed.
    """

    loss_weights: Mapping[str, float] = {}
    metrics = ()

    def __init__(self, config: Config, allowed: np.ndarray, most: int, computation: Computation = Computation()):  # noqa: B008
        self.config, self.most, self.computation = config, most, computation
        self._allowed_2V = allowed

    def build_model(self) -> LanguageModel:
        """Return a new masked-LM model."""
        return LanguageModel(self.config, [MaskedLMHead], self.computation, name="filling_model")

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return nothing: nothing is learnt."""
        return {}

    def terms(self, model: Any, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool) -> tuple[dict, dict]:
        """Return nothing: nothing is learnt."""
        return {}, {}

    def predictions(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `candidates` int32 [B, P, K], best first, and their logits `scores` float32 [B, P, K].

        What a place had before, and what may not stand there, comes last, with a score below -1e8.
        """
        features = {name: batch[name] for name in (*ROW_FEATURES, POSITIONS)}
        with fusing():
            logits_BPV = ops.cast(model(features, training=False, scores_only=True)["masked_lm_logits"], "float32")
        size = logits_BPV.shape[-1]
        # A table of ids that was padded has rows for none.
        allowed_2V = np.pad(self._allowed_2V, [(0, 0), (0, size - self._allowed_2V.shape[1])])
        refused_2V = ops.convert_to_tensor(np.where(allowed_2V, 0.0, _NEVER).astype(np.float32))
        logits_BPV = logits_BPV + ops.take(refused_2V, batch[CLASSES], axis=0)
        logits_BPV = logits_BPV + _NEVER * ops.one_hot(batch[FORMER], size, dtype="float32")
        scores_BPK, candidates_BPK = ops.top_k(logits_BPV, self.most)
        return {"candidates": ops.cast(candidates_BPK, "int32"), "scores": scores_BPK}
