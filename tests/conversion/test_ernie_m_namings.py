"""ERNIE-M's checkpoints: read under both namings, written as transformers' XLM-R, and begun from XLM-R's weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors

from conversion.containers.safetensors_files import save_safetensors
from conversion.loading import load_into
from conversion.namings import NAMINGS, transformers_model_type
from conversion.parity import largest_differences, our_outputs, random_features
from conversion.readers import Checkpoint, read_checkpoint
from conversion.rules import Translation
from conversion.writers import write_transformers
from modeling import Config, LanguageModel

ERNIE, XLMR = CONFIGS["ernie_m"], CONFIGS["roberta"]
NAMES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_dropout_prob")
THEIRS = {name: getattr(ERNIE, name) for name in (*NAMES, "attention_probs_dropout_prob", "max_position_embeddings")}
THEIRS |= {"model_type": "ernie_m", "hidden_act": "gelu", "pad_token_id": 1, "intermediate_size": 7}


def checkpoint(config: Config, graph: str = "ernie_m", **heads: Any) -> Checkpoint:
    return Checkpoint(random_tensors(graph, **heads), config, "ours", Path("memory"))


def published(folder: Path, naming_name: str) -> dict[str, Any]:
    """Write a checkpoint as transformers 4 or Paddle names it; return its tensors under our names."""
    naming = next(naming for naming in NAMINGS if naming.name == naming_name)
    tensors = random_tensors("ernie_m", num_labels=3)
    named, lost = Translation(naming).exported(tensors)
    assert not lost
    save_safetensors(folder / "model.safetensors", named)
    (folder / "config.json").write_text(json.dumps(THEIRS))
    return dict(tensors)


@pytest.mark.parametrize("naming", ["ernie_m", "ernie_m_paddle"])
def test_what_is_published_is_read_as_its_family(naming: str, tmp_path: Path):
    tensors = published(tmp_path, naming)
    found = read_checkpoint(tmp_path)
    # Its JSON says another width of the feed-forward than the tensors have.
    assert (found.source_format, found.config) == (naming, dataclasses.replace(ERNIE, intermediate_size=16))
    for name, value in tensors.items():
        np.testing.assert_array_equal(found.tensors[name], value, err_msg=name)
    # Configs that were written before the family had a row.
    former = dataclasses.replace(ERNIE, family="bert")
    assert read_checkpoint(tmp_path, config=former).config == former
    load_into(LanguageModel(former, []), found, allow_unexpected=("classifier/.*",))


@pytest.mark.slow
def test_what_is_written_opens_in_transformers_as_xlmr(tmp_path: Path):
    found = checkpoint(ERNIE, num_pair_labels=0)
    write_transformers(tmp_path / "out", ERNIE, found.tensors)
    differences = largest_differences(found, tmp_path / "out")
    assert {"last hidden state", "masked-LM logits"} <= differences.keys()
    assert max(differences.values()) < 1e-5, differences
    again = read_checkpoint(tmp_path / "out")
    assert again.config == dataclasses.replace(XLMR, initializer_range=ERNIE.initializer_range)
    assert not np.any(again.tensors["backbone/embeddings/token_type_embeddings"])


def test_a_model_begins_from_xlmr_as_the_same_function():
    found = checkpoint(XLMR, "roberta", num_pair_labels=0)
    features = random_features(ERNIE)
    theirs, ours = LanguageModel(XLMR, []), LanguageModel(ERNIE, [])
    load_into(theirs, found, allow_unexpected=("masked_lm/.*",))
    load_into(ours, found, allow_unexpected=("masked_lm/.*",))
    whole = {name: features[name] for name in ("input_ids", "input_mask")}
    np.testing.assert_allclose(ours(whole)["sequence_output"], theirs(whole)["sequence_output"], atol=1e-5)
    np.testing.assert_allclose(ours(whole)["pooled_output"], theirs(whole)["pooled_output"], atol=1e-5)


def test_the_code_of_ours_has_it_as_bert(tmp_path: Path):
    found = checkpoint(ERNIE, num_pair_labels=0)
    write_transformers(tmp_path / "out", ERNIE, found.tensors, model_type="divan_encoder")
    again = read_checkpoint(tmp_path / "out")
    assert again.config == dataclasses.replace(ERNIE, family="bert")
    features = random_features(ERNIE)
    for name, value in our_outputs(again, features).items():
        np.testing.assert_allclose(value, our_outputs(found, features)[name], atol=1e-6, err_msg=name)


def test_a_legacy_mask_is_kept_here_alone(tmp_path: Path):
    legacy = dataclasses.replace(ERNIE, legacy_mask=True)
    assert transformers_model_type(legacy) == "roberta"
    for model_type, message in (("auto", r"RoBERTa|BERT"), ("divan_encoder", 'no graph for the family "ernie_m"')):
        with pytest.raises(UsageError, match=message) as error:
            write_transformers(tmp_path / "out", legacy, checkpoint(legacy).tensors, model_type=model_type)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
