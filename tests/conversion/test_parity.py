import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors

from conversion.graphs import as_albert, as_bert
from conversion.parity import largest_differences, our_outputs, random_features
from conversion.proof import read_back
from conversion.readers import Checkpoint, read_checkpoint
from conversion.writers import write_tf1, write_transformers

EXPRESSIBLE = [
    ("bert", "bert"),
    ("bert", "albert"),
    ("bert_erf", "bert"),
    ("bert_shared", "bert"),
    ("bert_shared", "albert"),
    ("google", "albert"),
    ("google_groups", "albert"),
    ("google_more_groups", "albert"),
    ("google_odd_groups", "albert"),
    ("google_unshared_ffn", "albert"),
    ("google_wide", "albert"),
    ("google_wide", "bert"),
    ("zh_all", "bert"),
    ("zh_all", "albert"),
    ("zh_attention", "bert"),
    ("zh_ffn", "bert"),
    ("zh_ffn", "albert"),
    ("zh_none", "bert"),
    ("padded", "bert"),
    ("roberta", "roberta"),
    ("roberta", "bert"),
]

PAIR = "sentence_pair/.*"


def _checkpoint(graph: str, **heads: Any) -> Checkpoint:
    return Checkpoint(random_tensors(graph, **heads), CONFIGS[graph], "ours", Path("memory"))


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "model_type"), EXPRESSIBLE)
def test_stock_transformers_computes_the_same(graph: str, model_type: str, tmp_path: Path):
    checkpoint = _checkpoint(graph)
    write_transformers(
        tmp_path / "out", CONFIGS[graph], checkpoint.tensors, model_type=model_type, allow_dropped=[PAIR]
    )
    differences = largest_differences(checkpoint, tmp_path / "out")
    compared = {"last hidden state", "masked-LM logits"}
    if model_type != "roberta":  # Its masked-LM model has neither a pooler nor a pair head.
        compared |= {"pooled output", "sentence-pair logits"}
    if graph != "google_groups":  # transformers reports one state a group there
        compared |= {"hidden states"}
    assert compared <= differences.keys()
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "model_type"), [("zh_all", "bert"), ("zh_all", "albert"), ("google", "albert"), ("roberta", "roberta")]
)
def test_classifier_computes_the_same(graph: str, model_type: str, tmp_path: Path):
    checkpoint = _checkpoint(graph, num_labels=3)
    write_transformers(
        tmp_path / "out", CONFIGS[graph], checkpoint.tensors, model_type=model_type, labels=("no", "yes", "perhaps")
    )
    differences = largest_differences(checkpoint, tmp_path / "out")
    assert differences["classifier logits"] < 1e-5
    import transformers

    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == {0: "no", 1: "yes", 2: "perhaps"}


TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "model_type"), [("zh_all", "bert"), ("google", "albert"), ("roberta", "roberta"), ("bert", "bert")]
)
@pytest.mark.parametrize("head", ["tagger", "span"])
def test_heads_on_tokens_compute_the_same(graph: str, model_type: str, head: str, tmp_path: Path):
    checkpoint = _checkpoint(graph, tokens=head)
    labels = TAGS if head == "tagger" else ()
    written = write_transformers(
        tmp_path / "out", CONFIGS[graph], checkpoint.tensors, model_type=model_type, labels=labels
    )
    assert largest_differences(checkpoint, tmp_path / "out")[f"{head} logits"] < 1e-5
    assert read_back(written) == {"tensors read back": 0.0}
    assert f"{head}/kernel" in read_checkpoint(tmp_path / "out").tensors
    import transformers

    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    if head == "tagger":
        assert config.id2label == dict(enumerate(TAGS))


def test_a_code_without_heads_on_tokens_refuses_them_in_one_line(tmp_path: Path):
    checkpoint = _checkpoint("bert", tokens="tagger")
    with pytest.raises(UsageError, match=r"^tagger/bias.* have no place in bert_tf1; .*--allow_unexpected=tagger/\.\*"):
        write_tf1(tmp_path / "out", CONFIGS["bert"], checkpoint.tensors)


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "model_type"), [("bert", "bert"), ("google", "albert")])
def test_multiple_choice_computes_the_same(graph: str, model_type: str, tmp_path: Path):
    checkpoint = _checkpoint(graph, num_labels=1)
    write_transformers(tmp_path / "out", CONFIGS[graph], checkpoint.tensors, model_type=model_type, kind="choice")
    assert largest_differences(checkpoint, tmp_path / "out")["classifier logits"] < 1e-5
    (architecture,) = json.loads((tmp_path / "out/config.json").read_text())["architectures"]
    assert architecture.lower() == f"{model_type}formultiplechoice"


def test_what_a_classifier_is_for_stands_beside_it(tmp_path: Path):
    for kind, labels, problem in (
        ("regression", 1, "regression"),
        ("multilabel", 3, "multi_label_classification"),
        ("classification", 3, None),
    ):
        checkpoint = _checkpoint("bert", num_labels=labels)
        write_transformers(tmp_path / kind, CONFIGS["bert"], checkpoint.tensors, kind=kind)
        assert json.loads((tmp_path / kind / "config.json").read_text()).get("problem_type") == problem
    checkpoint = _checkpoint("roberta", num_labels=1)
    with pytest.raises(
        UsageError, match=r"a run of multiple choice has no class in .*; use --model_type=bert or albert"
    ):
        write_transformers(tmp_path / "x", CONFIGS["roberta"], checkpoint.tensors, model_type="roberta", kind="choice")
    assert not (tmp_path / "x").exists()


def test_a_wrong_weight_is_seen(tmp_path: Path):
    checkpoint = _checkpoint("google")
    tensors = random_tensors("google")
    changed = {name: value.T if "query/kernel" in name else value for name, value in tensors.items()}
    write_transformers(tmp_path / "out", CONFIGS["google"], changed)
    assert largest_differences(checkpoint, tmp_path / "out")["last hidden state"] > 1e-3


def test_three_way_pair_head_is_refused_or_left_out_by_name(tmp_path: Path):
    checkpoint = _checkpoint("bert", num_pair_labels=3)
    with pytest.raises(UsageError, match=r"whose sentence_pair has 2 classes and not 3; .*=sentence_pair/\.\*"):
        write_transformers(tmp_path / "out", CONFIGS["bert"], checkpoint.tensors, allow_dropped=["classifier/.*"])
    written = write_transformers(tmp_path / "out", CONFIGS["bert"], checkpoint.tensors, allow_dropped=[PAIR])
    assert written.dropped == ["sentence_pair/bias", "sentence_pair/kernel"]
    differences = largest_differences(checkpoint, tmp_path / "out")
    assert "sentence-pair logits" not in differences
    assert differences["masked-LM logits"] < 1e-5


@pytest.mark.parametrize(("graph", "rewrite"), [("zh_all", as_bert), ("zh_attention", as_albert), ("padded", as_bert)])
def test_rewritten_graph_is_the_same_function_here(graph: str, rewrite):
    checkpoint = _checkpoint(graph)
    config, tensors = rewrite(CONFIGS[graph], checkpoint.tensors)
    features = random_features(CONFIGS[graph])
    before = our_outputs(checkpoint, features)
    after = our_outputs(dataclasses.replace(checkpoint, config=config, tensors=tensors), features)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-5, err_msg=name)


def test_inner_blocks_are_layers_of_the_rewritten_graph(monkeypatch: pytest.MonkeyPatch):
    config = dataclasses.replace(CONFIGS["zh_all"], num_hidden_layers=2, num_hidden_groups=2, inner_group_num=3)
    monkeypatch.setitem(CONFIGS, "zh_inner", config)
    rewritten, _ = as_bert(config, random_tensors("zh_inner"))
    assert rewritten.num_hidden_layers == 2 * 3
    test_rewritten_graph_is_the_same_function_here("zh_inner", as_bert)


def test_random_features_pad_and_use_both_segments():
    features = random_features(CONFIGS["bert"])
    assert set(np.unique(features["input_mask"])) == set(np.unique(features["segment_ids"])) == {0, 1}
    assert not (features["segment_ids"] > features["input_mask"]).any()


@pytest.mark.parametrize(
    ("graph", "model_type", "message"),
    [
        ("zh_preln", "bert", "layers are pre-LN.*use --model_type=auto"),
        ("google_fast", "albert", "feed-forward is split in 16 groups"),
        ("bert", "roberta", "positions begin at 0, RoBERTa's at 2; use --model_type=bert"),
        ("padded", "roberta", "masked-LM head has gelu, RoBERTa's always has exact GELU"),
        ("google", "bert", "LayerNorm comes before the projection from 4 to 8"),
    ],
)
def test_what_transformers_cannot_express_is_refused(graph: str, model_type: str, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        write_transformers(tmp_path / "out", CONFIGS[graph], random_tensors(graph), model_type=model_type)
    assert list(tmp_path.iterdir()) == []
