import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from absl import app

from modeling import Config, load_config
from modeling.families import FAMILIES
from modeling.sharing import shared_bricks

CONFIGS = Path(__file__).resolve().parent.parent.parent / "albert_config"
ZH = json.loads((CONFIGS / "albert_config_tiny.json").read_text())
GOOGLE = json.loads((CONFIGS / "albert_config_small_google.json").read_text())
BERT = json.loads((CONFIGS / "bert_config.json").read_text())


def load(folder: Path, values: object, name: str = "config.json") -> Config:
    path = folder / name
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return load_config(path)


def test_each_dialect_is_told_by_its_keys(tmp_path: Path):
    assert load(tmp_path, ZH).family == "albert_zh"
    assert load(tmp_path, GOOGLE).family == "albert"
    assert load(tmp_path, BERT).family == "bert"
    assert load(tmp_path, GOOGLE).ffn_groups == 1
    assert load(tmp_path, GOOGLE, "x_google_fast.json").ffn_groups == 16
    assert load(tmp_path, GOOGLE | {"ffn_groups": 4}, "x_google_fast.json").ffn_groups == 4
    assert load(tmp_path, ZH | {"sharing": "attention"}).sharing == "attention"


@pytest.mark.parametrize(
    ("ln_type", "read"), [("postln", "postln"), (None, "postln"), ("preln", "preln"), ("x", "preln")]
)
def test_albert_zh_reads_any_other_ln_type_as_preln(tmp_path: Path, ln_type: str | None, read: str):
    assert load(tmp_path, ZH | {"ln_type": ln_type}).ln_type == read


def test_transformers_configs_load_with_their_own_meaning_of_gelu(tmp_path: Path):
    transformers.BertConfig(vocab_size=50, hidden_size=24, num_attention_heads=4).save_pretrained(tmp_path)
    bert = load_config(tmp_path / "config.json")
    assert (bert.family, bert.sharing, bert.hidden_act, bert.vocab_size) == ("bert", "none", "gelu_erf", 50)
    transformers.AlbertConfig(embedding_size=8, hidden_size=16, num_attention_heads=4).save_pretrained(tmp_path)
    albert = load_config(tmp_path / "config.json")
    assert (albert.family, albert.sharing, albert.hidden_act) == ("albert", "all", "gelu")
    assert (albert.embedding_size, albert.hidden_size) == (8, 16)


@pytest.mark.parametrize("class_name", ["RobertaConfig", "XLMRobertaConfig"])
def test_robertas_positions_begin_behind_its_padding_id(tmp_path: Path, class_name: str):
    shape: dict[str, Any] = {"vocab_size": 50, "hidden_size": 24, "num_attention_heads": 4, "type_vocab_size": 1}
    getattr(transformers, class_name)(**shape, pad_token_id=3, max_position_embeddings=40).save_pretrained(tmp_path)
    config = load_config(tmp_path / "config.json")
    assert (config.family, config.hidden_act, config.sharing, config.type_vocab_size) == ("bert", "gelu_erf", "none", 1)
    assert (config.position_offset, config.max_position_embeddings, config.max_sequence_length) == (4, 40, 36)


def test_no_file_is_of_two_dialects():
    keys = ("ln_type", "num_hidden_groups", "embedding_size", "architectures", "model_type")
    dialects = [dialect for family in FAMILIES.values() for dialect in family.dialects]
    for chosen in itertools.product([False, True], repeat=len(keys)):
        values: dict[str, Any] = {key: "albert" for key, there in zip(keys, chosen, strict=True) if there}
        assert sum(dialect.recognises(values, "config.json") for dialect in dialects) == 1, values


def test_albert_zh_projects_equal_widths_too(tmp_path: Path):
    config = load(tmp_path, ZH | {"embedding_size": ZH["hidden_size"]})
    assert config.projects
    assert config.projects_equal_widths
    assert not load(tmp_path, ZH).projects_equal_widths
    assert load(tmp_path, json.loads(config.to_json())) == config
    # A model that was trained before the field existed has no projection.
    assert not Config.from_json(without(json.loads(config.to_json()), "projects_equal_widths")).projects


def test_values_of_older_versions_are_completed_and_unknown_ones_refused():
    assert Config.from_json(OURS) == CONFIG
    needed = {key: OURS[key] for key in ("family", "vocab_size", "hidden_size", "num_hidden_layers")}
    needed |= {key: OURS[key] for key in ("num_attention_heads", "intermediate_size")}
    assert Config.from_json(needed) == CONFIG
    with pytest.raises(app.UsageError, match='unknown key "ffn_group"; the nearest is "ffn_groups"'):
        Config.from_json(OURS | {"ffn_group": 1})
    with pytest.raises(app.UsageError, match='missing key "vocab_size"'):
        Config.from_json(without(OURS, "vocab_size"))


def without(values: dict, key: str) -> dict:
    return {name: value for name, value in values.items() if name != key}


CONFIG = Config(
    family="bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)
OURS: dict[str, Any] = dataclasses.asdict(CONFIG)
THEIRS = {"model_type": "bert", **without(BERT, "hidden_size")}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (without(ZH, "ln_type") | {"ln_typ": "postln"}, 'unknown key "ln_typ"; the nearest is "ln_type"'),
        (ZH | {"hiden_size": 3}, 'unknown key "hiden_size"; the nearest is "hidden_size"'),
        (BERT | {"zzz": 3}, 'unknown key "zzz"; the nearest is'),
        (without(BERT, "hidden_size"), 'missing key "hidden_size"'),
        (without(GOOGLE, "inner_group_num"), 'missing key "inner_group_num"'),
        (without(ZH, "ln_type"), 'missing key "num_hidden_groups"'),
        (without(ZH, "embedding_size"), 'missing key "embedding_size"'),
        (without(OURS, "vocab_size"), 'missing key "vocab_size"'),
        (OURS | {"ffn_group": 2}, 'unknown key "ffn_group"; the nearest is "ffn_groups"'),
        (THEIRS | {"hiden_size": 8}, 'missing key "hidden_size"; the nearest there is "hiden_size"'),
        ({"model_type": "gpt2"}, "'gpt2'; expected one of albert, bart, bert, ernie_m, palm, palm_en, plug,"),
        (BERT | {"model_type": "bert", "position_embedding_type": "relative_key"}, "only 'absolute' can be read"),
        (BERT | {"model_type": "bert", "hidden_act": "mish"}, "hidden_act is 'mish'; expected one of"),
        (BERT | {"hidden_size": "768"}, "hidden_size is '768'; expected int"),
        (BERT | {"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0; expected below 1"),
        (BERT | {"num_attention_heads": 7}, "hidden_size 768 is not a multiple of num_attention_heads 7"),
        (BERT | {"num_hidden_layers": 0}, "num_hidden_layers is 0; expected at least 1"),
        (BERT | {"hidden_act": "gleu"}, "hidden_act is 'gleu'; expected one of gelu, "),
        (GOOGLE | {"ffn_groups": 7}, "must both be multiples of ffn_groups 7"),
        (OURS | {"embedding_size": 2}, "embedding_size 2 differs from hidden_size 4"),
        (OURS | {"projects_equal_widths": True}, "projects_equal_widths is True: BERT's embedding is not projected"),
        (OURS | {"projects_equal_widths": 1}, "projects_equal_widths is 1; expected bool"),
        ({"model_type": "roberta", **BERT}, 'missing key "pad_token_id"'),
        (OURS | {"family": "brt"}, "family is 'brt'; expected one of bert, albert, albert_zh"),
        ([], "$ is a list: expected an object"),
        ("{", "not a JSON config"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line_with_the_file_in_it(tmp_path: Path, values: object, message: str):
    with pytest.raises(app.UsageError) as caught:
        load(tmp_path, values)
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_numbers_without_a_point_are_rates_too(tmp_path: Path):
    config = load(tmp_path, BERT | {"hidden_dropout_prob": 0})
    assert isinstance(config.hidden_dropout_prob, float)


def test_absent_file_is_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "absent.json")


def test_sequence_length_is_checked_against_positions_after_the_offset():
    config = dataclasses.replace(CONFIG, position_offset=2)
    config.check_sequence_length(510)
    with pytest.raises(app.UsageError, match="sequences of 511 tokens, but this model has 510 positions"):
        config.check_sequence_length(511)


@pytest.mark.parametrize("depth", [22, 23, 26, 39])
def test_as_many_groups_as_layers_means_one_group_a_layer(depth: int):
    """Floating point division puts two layers of these depths into one group."""
    config = dataclasses.replace(CONFIG, sharing="all", num_hidden_layers=depth, num_hidden_groups=depth)
    assert shared_bricks(config) == [(k, k) for k in range(depth)]


def test_sharing():
    config = dataclasses.replace(CONFIG, num_hidden_layers=3)
    bricks = {s: shared_bricks(dataclasses.replace(config, sharing=s)) for s in ("all", "attention", "ffn", "none")}
    assert bricks == {
        "all": [(0, 0)] * 3,
        "attention": [(0, 0), (0, 1), (0, 2)],
        "ffn": [(0, 0), (1, 0), (2, 0)],
        "none": [(0, 0), (1, 1), (2, 2)],
    }


ANY_VALUE: list[Any] = [None, True, [], {}, "", "x", [[1]], -1, 0, 2**31, 2**70, 1.5, 1e308, float("nan"), {"a": {}}]


@pytest.mark.parametrize(
    "values",
    [ZH, GOOGLE, BERT, OURS, BERT | {"model_type": "bert"}, BERT | {"model_type": "roberta", "pad_token_id": 1}],
    ids=["zh", "google", "bert", "ours", "transformers", "roberta"],
)
def test_any_value_of_any_key_is_read_or_refused_in_one_line(values: dict[str, Any], tmp_path: Path):
    for key in [*values, "model_type", "architectures", "pad_token_id", "hidden_act", "family"]:
        for value in ANY_VALUE:
            try:
                load(tmp_path, values | {key: value})
            except app.UsageError as error:
                line = str(error)
                assert "\n" not in line, (key, value)
                assert len(line) < 1000, (key, value)


def test_what_a_config_leaves_out_is_as_the_papers_have_it():
    """A default that changes would change the model of every config that leaves the field out."""
    given: dict[str, Any] = {
        "vocab_size": 7,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    expected = {
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "ln_type": "postln",
        "final_layer_norm": False,
        "sharing": "none",
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "ffn_groups": 1,
        "position_offset": 0,
        "vocab_padding_multiple": 1,
        "projects_equal_widths": False,
        "num_decoder_layers": 0,
        "decoder_attention_heads": 0,
        "decoder_intermediate_size": 0,
        "copy": "none",
        "cross_attention": False,
        "embedding_scale": 1.0,
        "legacy_mask": False,
        "heads_by_brick": (),
        "units_by_brick": (),
        "embedding_size": 4,
    }
    assert dataclasses.asdict(Config(family="bert", **given)) == {"family": "bert"} | given | expected  # pyright: ignore
