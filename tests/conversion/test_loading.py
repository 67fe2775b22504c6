import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors, shapes

from conversion.loading import assignment, check_fits, load_into
from conversion.parity import our_outputs, random_features
from conversion.readers import Checkpoint

HEADS_OF_PRETRAINING = ("masked_lm/.*", "sentence_pair/.*")


def _checkpoint(graph: str, **heads: Any) -> Checkpoint:
    return Checkpoint(random_tensors(graph, **heads), CONFIGS[graph], "ours", Path("given"))


def test_whole_checkpoint_is_loaded_whole():
    from modeling import PretrainingModel, named_variables

    model, checkpoint = PretrainingModel(CONFIGS["google"]), _checkpoint("google")
    report = load_into(model, checkpoint)
    assert report.loaded == sorted(checkpoint.tensors)
    assert report.missing == report.unexpected == report.untied == []
    for name, variable in named_variables(model).items():
        np.testing.assert_array_equal(np.asarray(variable), checkpoint.tensors[name])


def test_fine_tuning_drops_old_heads_and_gets_a_new_one_by_name():
    from modeling import ClassifierModel, named_variables

    model = ClassifierModel(CONFIGS["zh_all"], 3)
    before = np.asarray(named_variables(model)["classifier/kernel"]).copy()
    report = load_into(
        model, _checkpoint("zh_all"), allow_missing=["classifier/.*"], allow_unexpected=HEADS_OF_PRETRAINING
    )
    assert report.missing == ["classifier/bias", "classifier/kernel"]
    assert {name.split("/")[0] for name in report.unexpected} == {"masked_lm", "sentence_pair"}
    assert str(report).startswith("24 tensors loaded; new: classifier/bias, classifier/kernel; not used: masked_lm/")
    np.testing.assert_array_equal(np.asarray(named_variables(model)["classifier/kernel"]), before)


def test_nothing_is_assigned_unless_all_fits():
    from modeling import ClassifierModel, named_variables

    model = ClassifierModel(CONFIGS["zh_all"], 3)
    before = {name: np.asarray(variable).copy() for name, variable in named_variables(model).items()}
    with pytest.raises(UsageError):
        load_into(model, _checkpoint("zh_all"))
    for name, variable in named_variables(model).items():
        np.testing.assert_array_equal(np.asarray(variable), before[name])


def _removed(checkpoint: Checkpoint, pattern: str) -> Checkpoint:
    kept = {name: value for name, value in checkpoint.tensors.items() if not re.fullmatch(pattern, name)}
    return dataclasses.replace(checkpoint, tensors=kept)


@pytest.mark.parametrize("name", sorted(shapes("google")))
def test_any_one_missing_tensor_is_named(name: str):
    allowed = [".*"] if name.startswith("backbone/") else []
    with pytest.raises(UsageError) as error:
        assignment(shapes("google"), _removed(_checkpoint("google"), re.escape(name)), allow_missing=allowed)
    told = str(error.value)
    assert f"- {name} {list(shapes('google')[name])}" in told or "Google ALBERT graph" in told


def test_every_backbone_tensor_is_wanted_even_when_all_is_allowed():
    checkpoint = _checkpoint("bert")
    extra = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, "backbone/more": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match=r"1 unexpected:\n\+ backbone/more \[3\]"):
        assignment(shapes("bert"), extra, allow_missing=[".*"], allow_unexpected=[".*"])


def test_pattern_has_to_match_the_whole_name():
    with pytest.raises(UsageError, match="2 missing"):
        assignment(shapes("bert"), _removed(_checkpoint("bert"), "sentence_pair/.*"), allow_missing=["sentence"])


def test_other_shapes_name_both_sides():
    with pytest.raises(UsageError) as error:
        assignment(shapes("bert", 3), _checkpoint("bert"))
    assert str(error.value) == (
        "checkpoint given does not fit the model (- model, + checkpoint): 2 of another shape, 0 missing, "
        "0 unexpected:\n"
        "- sentence_pair/bias [3] + sentence_pair/bias [2]\n"
        "- sentence_pair/kernel [8, 3] + sentence_pair/kernel [8, 2]"
    )


def test_long_listings_are_cut():
    with pytest.raises(UsageError, match="48 missing") as error:
        assignment(
            shapes("zh_none"), _removed(_checkpoint("zh_none"), "backbone/encoder/(attention|feed_forward)_[123]/.*")
        )
    lines = str(error.value).splitlines()
    assert len(lines) == 8
    assert lines[-1] == "- ... 42 more"


def test_vocabulary_of_another_size_names_both():
    config = dataclasses.replace(CONFIGS["bert"], vocab_size=40)
    from modeling import PretrainingModel, variable_shapes

    with pytest.raises(UsageError, match="vocabulary of 32 tokens, the model's config says vocab_size 40; use the voc"):
        assignment(variable_shapes(lambda: PretrainingModel(config)), _checkpoint("bert"))


@pytest.mark.parametrize(
    ("there", "here", "names"),
    [
        ("zh_all", "google", r"albert_zh graph \(word_embeddings_2\), the model is the Google ALBERT graph"),
        ("google", "bert", r"Google ALBERT graph \(embedding_hidden_mapping_in\), the model is the BERT graph"),
        ("bert", "zh_none", r"BERT graph, the model is the albert_zh graph"),
    ],
)
def test_another_graph_names_both(there: str, here: str, names: str):
    with pytest.raises(UsageError, match=names):
        assignment(shapes(here), _checkpoint(there))


@pytest.mark.parametrize("sharing", ["attention", "ffn", "none"])
def test_own_layers_start_from_a_shared_one_only_when_asked(sharing: str):
    checkpoint, target = _checkpoint("zh_all"), shapes(f"zh_{sharing}")
    with pytest.raises(UsageError, match="its layers are shared, the model's are not"):
        assignment(target, checkpoint)
    values, report = assignment(target, checkpoint, untie=True)
    assert values.keys() == target.keys()
    assert len(report.untied) == len(target) - len(checkpoint.tensors)
    for name, value in values.items():
        shared = re.sub(r"_[0-9]+/", "_0/", name) if "encoder/" in name else name
        np.testing.assert_array_equal(value, checkpoint.tensors[shared])


def test_layers_that_are_absent_are_not_made_up():
    shallow = _removed(_checkpoint("bert"), "backbone/encoder/(attention|feed_forward)_[23]/.*")
    with pytest.raises(UsageError, match="32 missing, 0 unexpected:"):
        assignment(shapes("bert"), shallow, untie=True)


@pytest.mark.parametrize("heads", [{}, {"num_pair_labels": 3}, {"num_labels": 5}])
@pytest.mark.parametrize("graph", CONFIGS)
def test_own_config_fits(graph: str, heads: dict[str, int]):
    check_fits(_checkpoint(graph, **heads))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 5}, {"intermediate_size": 24}, {"type_vocab_size": 3}])
def test_config_of_another_model_does_not_fit(change: dict[str, int]):
    config = dataclasses.replace(CONFIGS["bert"], **change)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="does not fit the model"):
        check_fits(dataclasses.replace(_checkpoint("bert"), config=config))


def test_checkpoint_without_config_says_which_flag():
    with pytest.raises(UsageError, match=r"kind of LayerNorm cannot be seen in the weights: pass --config_file"):
        check_fits(dataclasses.replace(_checkpoint("bert"), config=None))


def test_every_head_of_a_checkpoint_is_checked_and_computed():
    """A checkpoint may have the heads of pretraining and a classifier; one of another width does not fit."""
    both = random_tensors("bert", num_pair_labels=3) | random_tensors("bert", num_labels=5)
    checkpoint = dataclasses.replace(_checkpoint("bert"), tensors=both)
    check_fits(checkpoint)
    outputs = our_outputs(checkpoint, random_features(CONFIGS["bert"]))
    assert {name for name in outputs if "logits" in name} == {
        "masked-LM logits",
        "sentence-pair logits",
        "classifier logits",
    }
    narrow = {**both, "masked_lm/transform/kernel": np.zeros((8, 4), np.float32)}
    with pytest.raises(UsageError, match="1 of another shape"):
        check_fits(dataclasses.replace(checkpoint, tensors=narrow))
