"""Compare our model with transformers on the written folder: same weights, same random input.

The input has padding and both segments; the two programs share no code, so agreement says that names, transposes,
activation, LayerNorm placement and head sharing were all written right. Where transformers has no class the folder
carries code of ours; it is imported from here, so that no file of a folder is ever run.
"""

import contextlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.loading import ANY_HEAD, load_into, model_for
from conversion.namings import NAMINGS
from conversion.readers import Checkpoint
from ground.documents import read_json
from modeling.config import Config

_BATCH, _LENGTH = 3, 24
_OF_TOKENS = ("last hidden state", "hidden states", "masked-LM logits", "tagger logits", "span logits")
"""Outputs of every token of the source, [.., B, L, width], of which those of padding are not compared."""
_GREEDY_TOKENS = 6


def random_features(config: Config, *, pad_id: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Return int32 [3, L] of random ids and both segments; the first row is whole, 1/3 and 2/3 of the others padding.

    A model with a decoder is given a random target, [3, T + 1].

    No real token has the padding id unless it is 0: RoBERTa's code counts positions over tokens with another id.
    """
    generator = np.random.default_rng(seed)
    length = min(_LENGTH, config.max_sequence_length)
    real_B1 = np.array([[length], [length - length // 3], [max(1, length // 3)]])
    mask_BL = (np.arange(length) < real_B1).astype(np.int32)
    ids_BL = generator.integers(0, config.vocab_size, (_BATCH, length))
    ids_BL = np.where(mask_BL == 0, pad_id, np.where(ids_BL == pad_id, 0, ids_BL))
    segments_BL = (np.arange(length) >= real_B1 // 2) * mask_BL * (config.type_vocab_size > 1)
    features = {
        "input_ids": ids_BL.astype(np.int32),
        "input_mask": mask_BL,
        "segment_ids": segments_BL.astype(np.int32),
    }
    if config.num_decoder_layers:
        target = min(_LENGTH // 2, config.max_target_length)
        features["target_ids"] = generator.integers(0, config.vocab_size, (_BATCH, target + 1)).astype(np.int32)
    return features


def our_model(checkpoint: Checkpoint) -> Any:
    """Return our model with the checkpoint's heads; raise `UsageError` where the two do not fit."""
    assert checkpoint.config is not None
    model = model_for(checkpoint.config, checkpoint.tensors)
    load_into(model, checkpoint, allow_missing=ANY_HEAD, allow_unexpected=ANY_HEAD)
    return model


def our_outputs(checkpoint: Checkpoint, features: Mapping[str, np.ndarray], model: Any = None) -> dict[str, np.ndarray]:
    """Return the outputs of our model of the checkpoint, which is built unless it is given."""
    from keras import ops

    config, tensors = checkpoint.config, checkpoint.tensors
    assert config is not None
    raw = (model or our_model(checkpoint))(dict(features))
    outputs = {"last hidden state": raw["sequence_output"], "hidden states": ops.stack(raw["hidden_states"])}
    if "backbone/pooler/kernel" in tensors:
        outputs["pooled output"] = raw["pooled_output"]
    if "masked_lm_logits" in raw:
        outputs["masked-LM logits"] = raw["masked_lm_logits"][..., : config.vocab_size]
    if "sentence_pair_logits" in raw:
        outputs["sentence-pair logits"] = raw["sentence_pair_logits"]
    if "logits" in raw:
        outputs["classifier logits"] = raw["logits"]
    for head in ("tagger", "span"):
        if f"{head}_logits" in raw:
            outputs[f"{head} logits"] = raw[f"{head}_logits"]
    if "next_token_logits" in raw:
        outputs["next-token logits"] = raw["next_token_logits"][..., : config.vocab_size]
    return {name: np.asarray(ops.convert_to_numpy(value)) for name, value in outputs.items()}


def transformers_outputs(directory: Path, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of transformers' own Auto classes for the folder, under the names of `our_outputs`."""
    import torch

    torch_features = {
        "input_ids": torch.from_numpy(features["input_ids"]).long(),
        "attention_mask": torch.from_numpy(features["input_mask"]).long(),
        "token_type_ids": torch.from_numpy(features["segment_ids"]).long(),
    }
    model, head = _model_of(directory)
    with torch.inference_mode():
        if "target_ids" in features:
            return _seq2seq_outputs(model, torch_features, torch.from_numpy(features["target_ids"]).long())
        backbone = model.base_model(**torch_features, output_hidden_states=True)
        # A choice is an example with choices, of which each is here the only one.
        one = (
            {name: x[:, None] for name, x in torch_features.items()} if head == "ForMultipleChoice" else torch_features
        )
        scores = model(**one)
    outputs = {
        "last hidden state": backbone.last_hidden_state,
        "pooled output": backbone.pooler_output,
        "hidden states": torch.stack(backbone.hidden_states),
    }
    if head == "ForPreTraining":
        outputs["masked-LM logits"] = scores.prediction_logits
        pair = "sop_logits" if "sop_logits" in scores else "seq_relationship_logits"
        outputs["sentence-pair logits"] = scores[pair]
    elif head == "ForTokenClassification":
        outputs["tagger logits"] = scores.logits
    elif head == "ForQuestionAnswering":
        outputs["span logits"] = torch.stack([scores.start_logits, scores.end_logits], dim=-1)
    elif head:
        outputs["masked-LM logits" if head == "ForMaskedLM" else "classifier logits"] = scores.logits
    return {name: value.numpy() for name, value in outputs.items() if value is not None}


def _model_of(directory: Path) -> tuple[Any, str]:
    """Return transformers' model of a folder, or that of our own code, and what its class is for."""
    import transformers

    description = read_json(directory / "config.json", dict[str, Any], what="a config")
    architecture = description["architectures"][0]
    code = next((naming.code for naming in NAMINGS if naming.model_type == description["model_type"]), None)
    heads = {
        "ForPreTraining": transformers.AutoModelForPreTraining,
        "ForMaskedLM": transformers.AutoModelForMaskedLM,
        "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
        "ForTokenClassification": transformers.AutoModelForTokenClassification,
        "ForQuestionAnswering": transformers.AutoModelForQuestionAnswering,
        "ForMultipleChoice": transformers.AutoModelForMultipleChoice,
        "ForConditionalGeneration": transformers.AutoModelForSeq2SeqLM,
    }
    head = next((name for name in heads if architecture.endswith(name)), "")
    kind: Any = heads.get(head, transformers.AutoModel)
    if code is not None:
        kind = getattr(importlib.import_module(f"conversion.remote_code.{code.modeling}"), architecture)
    with _quiet(transformers):
        return kind.from_pretrained(directory).eval(), head


def _seq2seq_outputs(model: Any, source: Mapping[str, Any], target: Any) -> dict[str, np.ndarray]:
    """Return the outputs of a model that generates, and the tokens that it finds most likely, [B, 1 + T]."""
    import torch
    import transformers

    # BART's code reads no token types, and scores nothing but the target.
    read = inspect.signature(model.forward).parameters
    source = {name: value for name, value in source.items() if name in read}
    encoded = model.get_encoder()(**source, output_hidden_states=True)
    outputs = {
        "last hidden state": encoded.last_hidden_state,
        "pooled output": getattr(encoded, "pooler_output", None),
        "hidden states": torch.stack(encoded.hidden_states),
    }
    if not model.can_generate():
        outputs["classifier logits"] = model(**source).logits
    else:
        if hasattr(model, "encoder_scores"):
            words, pairs = model.encoder_scores(encoded.last_hidden_state)
            outputs |= {"masked-LM logits": words, "sentence-pair logits": pairs}
        outputs["next-token logits"] = model(**source, decoder_input_ids=target[:, :-1]).logits
        # Without an end token every row has as many.
        model.generation_config = transformers.GenerationConfig(
            decoder_start_token_id=0, pad_token_id=0, max_new_tokens=_GREEDY_TOKENS
        )
        outputs["greedy tokens"] = model.generate(**source, num_beams=1, do_sample=False)
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

    For text that the other side generates greedily it is how far a token is below the one that ours finds most likely.

    Hidden states are compared where both sides report every block. Padding is not compared: RoBERTa's code gives all
    of it one position.
    """
    assert checkpoint.config is not None
    pad_id = read_json(directory / "config.json", dict[str, Any], what="a config")["pad_token_id"]
    features = random_features(checkpoint.config, pad_id=pad_id, seed=seed)
    model = our_model(checkpoint)
    ours, theirs = our_outputs(checkpoint, features, model), transformers_outputs(directory, features)
    if "greedy tokens" in theirs:
        # Behind the same words: our score of the best next word, and of the one that was chosen there.
        tokens_BT = theirs["greedy tokens"].astype(np.int32)
        again = our_outputs(checkpoint, features | {"target_ids": tokens_BT}, model)["next-token logits"]
        ours["greedy tokens"] = again.max(-1)
        theirs["greedy tokens"] = np.take_along_axis(again, tokens_BT[:, 1:, None], axis=2)[..., 0]
    mask_BL1 = features["input_mask"][:, :, None]
    differences = {
        name: np.abs(value - theirs[name])
        for name, value in ours.items()
        if name in theirs and value.shape == theirs[name].shape
    }
    return {name: float(np.max(gap * mask_BL1 if name in _OF_TOKENS else gap)) for name, gap in differences.items()}
