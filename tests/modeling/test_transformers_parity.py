"""Our forward pass against transformers' on the same random weights, an independent implementation in torch."""

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import torch
import transformers
from modeling_cases import CONFIGS, features

from modeling import Config, LanguageModel, PretrainingModel, named_variables


def reference(config: Config) -> torch.nn.Module:
    """A transformers model whose every parameter, LayerNorms and biases included, is random."""
    arguments: dict[str, Any] = {
        field: getattr(config, field)
        for field in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
            "layer_norm_eps",
        )
    }
    arguments["hidden_act"] = {"gelu": "gelu_new", "gelu_erf": "gelu", "relu": "relu"}[config.hidden_act]
    torch.manual_seed(0)
    if config.family == "bert":
        model = transformers.BertForPreTraining(transformers.BertConfig(**arguments))
    else:
        albert = transformers.AlbertConfig(
            **arguments,
            embedding_size=config.embedding_size,
            num_hidden_groups=config.num_hidden_groups,
            inner_group_num=config.inner_group_num,
        )
        model = transformers.AlbertForPreTraining(albert)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model.eval()


def their_name(name: str, config: Config) -> str:
    """The transformers parameter that holds our variable."""
    albert = config.family == "albert"
    kinds = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    parts = name.split("/")
    kind = kinds.get(parts[-1], "weight")
    root = "albert" if albert else "bert"
    match parts[:-1]:
        case ["backbone", "embeddings"]:
            return f"{root}.embeddings.{parts[-1]}.weight"
        case ["backbone", "embeddings", "layer_norm"]:
            return f"{root}.embeddings.LayerNorm.{kind}"
        case ["backbone", "embeddings", "projection"]:
            return f"albert.encoder.embedding_hidden_mapping_in.{kind}"
        case ["backbone", "pooler"]:
            return f"albert.pooler.{kind}" if albert else f"bert.pooler.dense.{kind}"
        case ["masked_lm", part]:
            if albert:
                return f"predictions.{'dense' if part == 'transform' else 'LayerNorm'}.{kind}"
            return f"cls.predictions.transform.{'dense' if part == 'transform' else 'LayerNorm'}.{kind}"
        case ["masked_lm"]:
            return "predictions.bias" if albert else "cls.predictions.bias"
        case ["sentence_pair"]:
            return f"sop_classifier.classifier.{kind}" if albert else f"cls.seq_relationship.{kind}"
    brick, k = parts[2].rsplit("_", 1)
    part = parts[3]
    if albert:
        group, inner = divmod(int(k), config.inner_group_num)
        layer = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}"
        names = {
            "attention": {"output": "attention.dense", "layer_norm": "attention.LayerNorm"},
            "feed_forward": {"intermediate": "ffn", "output": "ffn_output", "layer_norm": "full_layer_layer_norm"},
        }
        default = f"attention.{part}"
    else:
        layer = f"bert.encoder.layer.{k}"
        names = {
            "attention": {"output": "attention.output.dense", "layer_norm": "attention.output.LayerNorm"},
            "feed_forward": {
                "intermediate": "intermediate.dense",
                "output": "output.dense",
                "layer_norm": "output.LayerNorm",
            },
        }
        default = f"attention.self.{part}"
    return f"{layer}.{names[brick].get(part, default)}.{kind}"


def ours(config: Config, model: torch.nn.Module) -> LanguageModel:
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    result = PretrainingModel(config)
    for name, variable in named_variables(result).items():
        value = state[their_name(name, config)]
        variable.assign(value.T if name.endswith("kernel") else value)
    return result


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert", {}),
        ("bert", {"hidden_act": "gelu_erf"}),
        ("albert", {"vocab_padding_multiple": 1}),
        ("albert_groups", {}),
    ],
)
def test_forward_pass_equals_transformers(name: str, changes: dict):
    config = dataclasses.replace(CONFIGS[name], **changes)
    theirs = reference(config)
    model = ours(config, theirs)
    batch = {key: value for key, value in features().items() if key != "masked_lm_positions"}
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(batch["input_ids"]).long(),
            attention_mask=torch.from_numpy(batch["input_mask"]).long(),
            token_type_ids=torch.from_numpy(batch["segment_ids"]).long(),
            output_hidden_states=True,
        )
    outputs = model(batch)
    pair = expected.sop_logits if config.family == "albert" else expected.seq_relationship_logits
    real = batch["input_mask"].astype(bool)
    compare(outputs["sentence_pair_logits"], pair)
    compare(outputs["masked_lm_logits"], expected.prediction_logits, real)
    compare(outputs["hidden_states"][0], expected.hidden_states[0], real)
    compare(outputs["sequence_output"], expected.hidden_states[-1], real)


def compare(value, expected: torch.Tensor, rows: np.ndarray | None = None) -> None:
    value, answer = np.asarray(keras.ops.convert_to_tensor(value)), expected.numpy()
    if rows is not None:
        value, answer = value[rows], answer[rows]
    scale = max(1.0, np.abs(answer).max())
    np.testing.assert_allclose(value, answer, atol=1e-5 * scale, rtol=1e-5)
