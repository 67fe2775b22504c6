import pytest
from conversion_cases import CONFIGS, shapes

from conversion.name_maps import (
    LAYOUTS,
    NameMap,
    canonical_name,
    detect_layout,
    graph_of,
    graph_of_config,
    is_backbone,
    name_map,
)
from modeling.config import SHARING

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

MAPS = [
    *(name_map(layout, inner_group_num=inner) for layout in LAYOUTS for inner in (1, 3)),
    *(name_map("albert_zh_tf1", sharing=sharing) for sharing in SHARING),
]


@pytest.mark.parametrize(
    ("names", "layout", "graph", "count"),
    [
        (ALBERT_TINY_ZH, "albert_zh_tf1", "zh_all", 31),
        (ALBERT_BASE, "albert_google_tf1", "google", 32),
        (BERT, "bert_tf1", None, 46),
    ],
)
def test_every_published_name_has_one_place(names: list[str], layout: str, graph: str | None, count: int):
    found = detect_layout(names)
    assert found is not None
    assert found.layout == layout
    ours = [found.to_ours(name) for name in names]
    assert None not in ours
    places = {place[0] for place in ours if place}
    assert len(places) == len(names) == count
    if graph is not None:
        assert places == set(shapes(graph))


def _map_of(graph: str, layout: str) -> NameMap:
    config = CONFIGS[graph]
    return name_map(layout, sharing=config.sharing, inner_group_num=config.inner_group_num)


@pytest.mark.parametrize(
    ("graph", "layout"),
    [
        *((graph, "bert_tf1") for graph in ("bert", "padded")),
        *((graph, "albert_zh_tf1") for graph in CONFIGS if graph.startswith("zh")),
        *((graph, "albert_google_tf1") for graph in CONFIGS if graph.startswith("google")),
        *((graph, "transformers_bert") for graph in ("bert", "bert_erf")),
        *((graph, "transformers_albert") for graph in CONFIGS if graph.startswith("google")),
    ],
)
def test_every_variable_of_a_graph_has_one_name_there_and_the_way_back(graph: str, layout: str):
    layout_map = _map_of(graph, layout)
    ours = [*shapes(graph), *shapes(graph, 2, 3)]
    there = {}
    for name in dict.fromkeys(ours):
        place = layout_map.to_theirs(name)
        assert place is not None, name
        assert layout_map.to_ours(place[0]) == (name, place[1])
        assert canonical_name(layout, place[0]) == place[0]
        assert is_backbone(place[0]) == name.startswith("backbone/")
        there[place[0]] = name
    assert len(there) == len(set(ours))
    assert detect_layout(there) == layout_map


@pytest.mark.parametrize("layout_map", MAPS, ids=lambda m: f"{m.layout}-{m.sharing}-{m.inner_group_num}")
def test_no_two_rules_claim_a_name(layout_map: NameMap):
    def fill(template: str, k: int) -> str:
        group, inner = divmod(k, layout_map.inner_group_num)
        return template.format(k=k, g=group, j=inner)

    examples = {(fill(r.ours, k), fill(r.theirs, k), r.transposed) for r in layout_map.rules for k in (0, 1, 7, 12)}
    assert len({ours for ours, _, _ in examples}) == len({theirs for _, theirs, _ in examples}) == len(examples)
    for ours, theirs, transposed in examples:
        assert layout_map.to_theirs(ours) == (theirs, transposed)
        assert layout_map.to_ours(theirs) == (ours, transposed)
        assert sum(bool(layout_map.to_ours(theirs + suffix)) for suffix in ("/adam_m", "x", "\n")) == 0


@pytest.mark.parametrize(
    ("layout", "raw", "canonical"),
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
def test_wrappers_old_spellings_and_slots(layout: str, raw: str, canonical: str | None):
    assert canonical_name(layout, raw) == canonical


def test_block_beyond_the_group_has_no_place():
    assert (
        name_map("transformers_albert").to_ours("albert.encoder.albert_layer_groups.0.albert_layers.1.ffn.bias") is None
    )


@pytest.mark.parametrize("graph", CONFIGS)
def test_tensors_and_config_tell_the_same_graph(graph: str):
    assert graph_of(shapes(graph)) == graph_of_config(CONFIGS[graph])
