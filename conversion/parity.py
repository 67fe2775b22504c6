"""Compare our model with stock transformers on the written folder: same weights, same random input.

The input has padding and both segments; the two programs share no code, so agreement says that names, transposes,
activation, LayerNorm placement and head sharing were all written right.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.loading import ANY_HEAD, load_into, model_for
from conversion.readers import Checkpoint
from ground.documents import read_json
from modeling.config import Config

_BATCH, _LENGTH = 3, 24


def random_features(config: Config, *, pad_id: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Return int32 [3, L] of random ids and both segments; the first row is whole, 1/3 and 2/3 of the others padding.

    No real token has the padding id unless it is 0: RoBERTa's code counts positions over tokens with another id.
    """
    generator = np.random.default_rng(seed)
    length = min(_LENGTH, config.max_sequence_length)
    real_B1 = np.array([[length], [length - length // 3], [max(1, length // 3)]])
    mask_BL = (np.arange(length) < real_B1).astype(np.int32)
    ids_BL = generator.integers(0, config.vocab_size, (_BATCH, length))
    ids_BL = np.where(mask_BL == 0, pad_id, np.where(ids_BL == pad_id, 0, ids_BL))
    segments_BL = (np.arange(length) >= real_B1 // 2) * mask_BL * (config.type_vocab_size > 1)
    return {
        "input_ids": ids_BL.astype(np.int32),
        "input_mask": mask_BL,
        "segment_ids": segments_BL.astype(np.int32),
    }


def our_outputs(checkpoint: Checkpoint, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of our model with the checkpoint's heads; raise `UsageError` where the two do not fit."""
    from keras import ops

    config, tensors = checkpoint.config, checkpoint.tensors
    assert config is not None
    model = model_for(config, tensors)
    load_into(model, checkpoint, allow_missing=ANY_HEAD, allow_unexpected=ANY_HEAD)
    raw = model(dict(features))
    outputs = {"last hidden state": raw["sequence_output"], "hidden states": ops.stack(raw["hidden_states"])}
    if "backbone/pooler/kernel" in tensors:
        outputs["pooled output"] = raw["pooled_output"]
    if "masked_lm_logits" in raw:
        outputs["masked-LM logits"] = raw["masked_lm_logits"][..., : config.vocab_size]
    if "sentence_pair_logits" in raw:
        outputs["sentence-pair logits"] = raw["sentence_pair_logits"]
    if "logits" in raw:
        outputs["classifier logits"] = raw["logits"]
    return {name: np.asarray(ops.convert_to_numpy(value)) for name, value in outputs.items()}


def transformers_outputs(directory: Path, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of transformers' own Auto classes for the folder, under the names of `our_outputs`."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    architecture = str((config.architectures or [""])[0])
    torch_features = {
        "input_ids": torch.from_numpy(features["input_ids"]).long(),
        "attention_mask": torch.from_numpy(features["input_mask"]).long(),
        "token_type_ids": torch.from_numpy(features["segment_ids"]).long(),
    }
    heads = {
        "ForPreTraining": transformers.AutoModelForPreTraining,
        "ForMaskedLM": transformers.AutoModelForMaskedLM,
        "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    }
    head = next((name for name in heads if architecture.endswith(name)), "")
    with _quiet(transformers):
        model: Any = heads.get(head, transformers.AutoModel).from_pretrained(directory)
    model.eval()
    with torch.inference_mode():
        backbone = model.base_model(**torch_features, output_hidden_states=True)
        scores = model(**torch_features)
    outputs = {
        "last hidden state": backbone.last_hidden_state,
        "pooled output": backbone.pooler_output,
        "hidden states": torch.stack(backbone.hidden_states),
    }
    if head == "ForPreTraining":
        outputs["masked-LM logits"] = scores.prediction_logits
        pair = "sop_logits" if "sop_logits" in scores else "seq_relationship_logits"
        outputs["sentence-pair logits"] = scores[pair]
    elif head:
        outputs["masked-LM logits" if head == "ForMaskedLM" else "classifier logits"] = scores.logits
    return {name: value.numpy() for name, value in outputs.items() if value is not None}


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence progress bars and reports of transformers, which would come between our own lines."""
    logging = transformers.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def largest_differences(checkpoint: Checkpoint, directory: Path, *, seed: int = 0) -> dict[str, float]:
    """Return the largest absolute difference per output that both sides have, over real tokens.

    Hidden states are compared where both sides report every block. Padding is not compared: RoBERTa's code gives all
    of it one position.
    """
    assert checkpoint.config is not None
    pad_id = read_json(directory / "config.json", dict[str, Any], what="a config")["pad_token_id"]
    features = random_features(checkpoint.config, pad_id=pad_id, seed=seed)
    ours, theirs = our_outputs(checkpoint, features), transformers_outputs(directory, features)
    mask_BL1 = features["input_mask"][:, :, None]
    differences = {
        name: np.abs(value - theirs[name])
        for name, value in ours.items()
        if name in theirs and value.shape == theirs[name].shape
    }
    # Outputs for tokens are [.., B, L, width], outputs for examples [B, C].
    return {name: float(np.max(gap * mask_BL1 if gap.ndim > 2 else gap)) for name, gap in differences.items()}
