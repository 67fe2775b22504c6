import numpy as np
import pytest
import torch
import transformers
from modeling_cases import CONFIGS, features
from test_transformers_parity import compare, their_name

from modeling import PretrainingModel, load_config, named_variables

PAD = 1


@pytest.fixture(scope="module", params=["Roberta", "XLMRoberta"])
def models(request, tmp_path_factory):
    """A model of transformers with random parameters, and ours of its config.json with the same ones."""
    shape = {
        name: getattr(CONFIGS["bert"], name)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    config = getattr(transformers, f"{request.param}Config")(
        **shape,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        max_position_embeddings=14,
        type_vocab_size=1,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    config.save_pretrained(folder)
    read = load_config(folder / "config.json")
    theirs = getattr(transformers, f"{request.param}Model")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 0.3)
    state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    ours = PretrainingModel(read, num_pair_labels=0)
    for name, variable in named_variables(ours).items():
        if name.startswith("backbone/"):
            value = state[their_name(name, read).removeprefix("bert.")]
            variable.assign(value.T if name.endswith("kernel") else value)
    return ours, theirs


@pytest.mark.parametrize("real", [1, 6, 9, 12])
def test_backbone_equals_roberta(models, real):
    """RoBERTa counts tokens from its padding id on; segments do not count."""
    ours, theirs = models
    batch = features(real, length=12, real=real)
    ids = np.where(batch["input_mask"] == 1, 2 + batch["input_ids"] % 35, PAD).astype(np.int32)
    batch = {"input_ids": ids, "input_mask": batch["input_mask"], "segment_ids": batch["segment_ids"]}
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(batch["input_mask"]).long()
        )
    outputs = ours.backbone(batch)
    compare(outputs["sequence_output"], expected.last_hidden_state, batch["input_mask"].astype(bool))
    compare(outputs["pooled_output"], expected.pooler_output)
