import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors, shapes

import convert_checkpoint
from conversion.namings import NAMINGS, graph_of, graph_of_config, naming_of
from conversion.rules import Naming, Rule, Translation

_DENSE, _NORM = ("kernel", "bias"), ("beta", "gamma")


def _with(scopes: dict[str, tuple[str, ...]]) -> list[str]:
    return [f"{scope}/{leaf}" for scope, leaves in scopes.items() for leaf in leaves]


_HEADS = [
    "cls/predictions/output_bias",
    "cls/seq_relationship/output_bias",
    "cls/seq_relationship/output_weights",
    *_with(
        {
            "bert/embeddings/LayerNorm": _NORM,
            "bert/pooler/dense": _DENSE,
            "cls/predictions/transform/LayerNorm": _NORM,
            "cls/predictions/transform/dense": _DENSE,
        }
    ),
    "bert/embeddings/position_embeddings",
    "bert/embeddings/token_type_embeddings",
    "bert/embeddings/word_embeddings",
]
_BLOCK = {
    "attention/output/LayerNorm": _NORM,
    "attention/output/dense": _DENSE,
    "attention/self/key": _DENSE,
    "attention/self/query": _DENSE,
    "attention/self/value": _DENSE,
    "intermediate/dense": _DENSE,
    "output/LayerNorm": _NORM,
    "output/dense": _DENSE,
}
# What the published albert_tiny_zh holds, and the published albert_base (specs of both graphs).
ALBERT_TINY_ZH = [
    *_HEADS,
    "bert/embeddings/word_embeddings_2",
    *_with({f"bert/encoder/layer_shared/{scope}": leaves for scope, leaves in _BLOCK.items()}),
]
_GOOGLE_BLOCK = {
    "LayerNorm": _NORM,
    "LayerNorm_1": _NORM,
    "attention_1/output/dense": _DENSE,
    "attention_1/self/key": _DENSE,
    "attention_1/self/query": _DENSE,
    "attention_1/self/value": _DENSE,
    "ffn_1/intermediate/dense": _DENSE,
    "ffn_1/intermediate/output/dense": _DENSE,
}
ALBERT_BASE = [
    *_HEADS,
    *_with({"bert/encoder/embedding_hidden_mapping_in": _DENSE}),
    *_with(
        {f"bert/encoder/transformer/group_0/inner_group_0/{scope}": leaves for scope, leaves in _GOOGLE_BLOCK.items()}
    ),
]
BERT = [
    *_HEADS,
    *_with({f"bert/encoder/layer_{i}/{scope}": leaves for i in (0, 1) for scope, leaves in _BLOCK.items()}),
]


@pytest.mark.parametrize(
    ("names", "naming", "graph", "count"),
    [
        (ALBERT_TINY_ZH, "albert_zh_tf1", "zh_all", 31),
        (ALBERT_BASE, "albert_google_tf1", "google", 32),
        (BERT, "bert_tf1", None, 46),
    ],
)
def test_every_published_name_has_one_place(names: list[str], naming: str, graph: str | None, count: int):
    found = naming_of(names)
    assert found is not None
    assert found.name == naming
    places = [Translation(found).to_ours(name) for name in names]
    ours = {name for place in places if place for name in place[1]}
    assert None not in places
    assert len(ours) == len(names) == count
    if graph is not None:
        assert ours == set(shapes(graph))


def _id(naming: Naming) -> str:
    return "-".join([naming.name, *map(str, naming.implies({}).values())])


def _models(naming: Naming):
    """Every model that can be written under a naming: its blocks in a group, and its tensors with each set of heads."""
    for graph, config in CONFIGS.items():
        several: tuple[dict[str, Any], ...] = ({}, {"num_labels": 3}, {"tokens": "tagger"}, {"tokens": "span"})
        for heads in several:
            tensors = random_tensors(graph, **heads)
            if naming.absent and not naming.heads & {name.split("/")[0] for name in tensors}:
                continue  # for that head alone
            if naming.serves(config) and naming.writes(config):
                try:
                    rewritten, converted = naming.rewrite(config, tensors)
                except UsageError:
                    continue
                yield (
                    Translation(naming, rewritten.inner_group_num),
                    {
                        name: value
                        for name, value in converted.items()
                        if name.startswith("backbone/") or name.split("/")[0] in naming.heads
                    },
                )


@pytest.mark.slow
@pytest.mark.parametrize("naming", NAMINGS, ids=_id)
def test_every_variable_of_a_family_has_exactly_one_rule_and_the_way_back(naming: Naming):
    """Total and one to one; and the names that are written are known again."""
    for translation, tensors in _models(naming):
        named, lost = translation.exported(tensors)
        assert lost == []
        back = [name for theirs in named for name in translation.to_ours(theirs)[1]]  # pyright: ignore[reportOptionalSubscript]
        assert sorted(back) == sorted(tensors)
        for ours in tensors:
            assert sum(bool(pattern.fullmatch(ours)) for pattern, _ in naming.by_ours) == 1, ours
            _, theirs = translation.to_theirs(ours)  # pyright: ignore[reportGeneralTypeIssues]
            assert naming.canonical(theirs) == theirs
            assert naming.is_backbone(theirs) == ours.startswith("backbone/")
        for theirs in named:
            assert sum(bool(pattern.fullmatch(theirs)) for pattern, _ in naming.by_theirs) == 1, theirs
            assert translation.to_ours(f"{theirs}/adam_m") is translation.to_ours(f"{theirs}\n") is None
        assert naming_of(named) is naming


@pytest.mark.parametrize("name", sorted({naming.name for naming in NAMINGS}))
def test_every_rule_is_met_by_a_model(name: str):
    """A rule for a tensor that no model has, or two for one, cannot be tested and is a mistake."""
    met, rules = set(), set()
    for naming in (naming for naming in NAMINGS if naming.name == name):
        rules |= {rule.ours for rule in naming.rules}
        for translation, tensors in _models(naming):
            met |= {translation.to_theirs(ours)[0].ours for ours in tensors}  # pyright: ignore[reportOptionalSubscript]
    assert met == rules


@pytest.mark.parametrize("naming", NAMINGS, ids=_id)
def test_reading_is_the_inverse_of_writing(naming: Naming):
    for translation, tensors in _models(naming):
        named, _ = translation.exported(tensors)
        back = {name: value for theirs in named for name, value in translation.imported(theirs, named[theirs]).items()}
        assert back.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(back[name], value, err_msg=name)


# Words that say which of several tensors of equal shape one is: a mix-up of two passes every check of shapes.
_ROLES = {
    "query": "query|q_proj",
    "key": "key|k_proj",
    "value": "value|v_proj",
    "word_embeddings": r"word_embeddings|^decoder\.embeddings|embed_tokens|shared",
    "position_embeddings": "position_embeddings|embed_positions",
    "token_type_embeddings": "token_type_embeddings",
    "gamma": r"gamma|LayerNorm.*weight|layer_?norm.*weight|\.norm\d\.weight",
    "beta": r"beta|LayerNorm.*bias|layer_?norm.*bias|\.norm\d\.bias",
    "bias": "bias",
}


@pytest.mark.parametrize("naming", NAMINGS, ids=_id)
def test_a_role_of_ours_is_the_same_role_of_theirs(naming: Naming):
    """In order inside of a joined tensor too, whose name has every role that it joins."""
    for rule in naming.rules:
        parts = set(re.split(r"[/._]|(?<=word)_|(?<=position)_", rule.theirs))
        roles = [role for name in rule.ours for role in _ROLES if role in name.split("/")]
        for role in roles:
            assert re.search(_ROLES[role], rule.theirs), (rule.ours, rule.theirs)
        for other in {"query", "key", "value"} - set(roles):
            assert other not in parts, (rule.ours, rule.theirs)
            assert f"{other[0]}_proj" not in rule.theirs, (rule.ours, rule.theirs)
        places = [re.search(_ROLES[role], rule.theirs) for role in roles if role in ("query", "key", "value")]
        starts = [place.start() for place in places if place is not None]
        assert starts == sorted(starts), rule.theirs


@pytest.mark.parametrize(
    ("name", "raw", "canonical"),
    [
        ("albert_google_tf1", "module/bert/pooler/dense/bias", "bert/pooler/dense/bias"),
        ("albert_zh_tf1", "bert/pooler/dense/bias/lamb_m", None),
        ("bert_tf1", "bert/pooler/dense/bias/adam_v_1", None),
        ("bert_tf1", "global_step", None),
        ("transformers_bert", "module.bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("transformers_bert", "encoder.layer.3.output.LayerNorm.beta", "bert.encoder.layer.3.output.LayerNorm.bias"),
        ("transformers_bert", "module.embeddings.position_ids", None),
        ("transformers_albert", "pooler.weight", "albert.pooler.weight"),
    ],
)
def test_wrappers_old_spellings_and_slots(name: str, raw: str, canonical: str | None):
    assert {naming.canonical(raw) for naming in NAMINGS if naming.name == name} == {canonical}


def test_block_beyond_the_group_has_no_place():
    naming = next(naming for naming in NAMINGS if naming.name == "transformers_albert")
    name = "albert.encoder.albert_layer_groups.0.albert_layers.1.ffn.bias"
    assert Translation(naming, 1).to_ours(name) is None
    assert Translation(naming, 2).to_ours(name) is not None


@pytest.mark.parametrize("graph", CONFIGS)
def test_tensors_and_config_tell_the_same_graph(graph: str):
    assert graph_of(shapes(graph)) == graph_of_config(CONFIGS[graph])


def test_the_flag_offers_every_model_type():
    (field,) = (field for field in dataclasses.fields(convert_checkpoint.Options) if field.name == "model_type")
    offered = {"auto"} | {naming.model_type for naming in NAMINGS if naming.model_type}
    (declaration,) = field.metadata.values()
    assert set(declaration.choices) == offered


def test_a_rule_joins_several_along_an_axis_or_has_one():
    for ours, axis in ((("a", "b"), None), (("a",), 0)):
        with pytest.raises(ValueError, match="joins"):
            Rule(ours, "c", joined_axis=axis)
