"""VECO's checkpoints: transformers computes both streams, fairseq's layout there and back, and what begins as what."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors, shapes

from commands.weights import initialize
from conversion.containers.safetensors_files import save_safetensors
from conversion.lazy import Tensors
from conversion.loading import assignment, check_fits, load_into
from conversion.namings import NAMINGS, naming_of
from conversion.parity import largest_differences
from conversion.readers import Checkpoint, read_checkpoint
from conversion.rules import Translation
from conversion.writers import write_ours, write_transformers
from modeling import LanguageModel, named_variables
from modeling.families import FAMILIES

VECO, PLUGGED_OUT, DECODER = (CONFIGS[name] for name in ("veco", "veco_plugged_out", "veco_decoder"))
LENGTH, REAL = 9, 6


def _texts(seed: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(4, VECO.vocab_size, (3, LENGTH), dtype=np.int32)
    mask = np.ones_like(ids)
    mask[1:, REAL - seed :] = 0
    return {"input_ids": np.where(mask > 0, ids, 1).astype(np.int32), "input_mask": mask}


def _theirs(**further: Any) -> Any:
    """transformers' XLM-R with random weights, none of which is an initial value."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("max_position_embeddings", "layer_norm_eps", "type_vocab_size")
    shape = {name: getattr(VECO, name) for name in names}
    config = transformers.XLMRobertaConfig(**shape, **further, hidden_act="gelu", pad_token_id=1, bos_token_id=0)
    torch.manual_seed(0)
    model = transformers.XLMRobertaModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def test_streams_are_those_of_transformers(tmp_path: Path):
    """Its decoder under a mask that hides padding alone, and for H without a memory."""
    theirs = _theirs(is_decoder=True, add_cross_attention=True)
    state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    save_safetensors(tmp_path / "model.safetensors", {n: v for n, v in state.items() if v.dtype == np.float32})
    checkpoint = read_checkpoint(tmp_path, config=VECO)
    assert checkpoint.source_format == "transformers_veco"
    model = LanguageModel(VECO, [])
    load_into(model, checkpoint)
    sides = {"": _texts(0), "other_": _texts(1)}
    outputs = model({prefix + name: value for prefix, side in sides.items() for name, value in side.items()})

    def run(side: dict[str, np.ndarray], **further: Any) -> np.ndarray:
        whole = torch.from_numpy(side["input_mask"]).bool()[:, None, None, :].expand(-1, 1, LENGTH, -1)
        with torch.no_grad():
            ids = torch.from_numpy(side["input_ids"]).long()
            return theirs(ids, attention_mask=whole, use_cache=False, **further).last_hidden_state.numpy()

    h = {prefix: run(side) for prefix, side in sides.items()}
    for prefix, other in (("", "other_"), ("other_", "")):
        real = sides[prefix]["input_mask"].astype(bool)
        np.testing.assert_allclose(np.asarray(outputs[f"{prefix}sequence_output"])[real], h[prefix][real], atol=1e-5)
        memory = {
            "encoder_hidden_states": torch.from_numpy(h[other]),
            "encoder_attention_mask": torch.from_numpy(sides[other]["input_mask"]),
        }
        s = run(sides[prefix], **memory)
        np.testing.assert_allclose(np.asarray(outputs[f"{prefix}crossed_output"])[real], s[real], atol=1e-5)


def test_plugged_out_it_is_xlmr(tmp_path: Path):
    theirs = _theirs()
    theirs.save_pretrained(tmp_path)
    model, given = LanguageModel(PLUGGED_OUT, []), _texts(0)
    load_into(model, read_checkpoint(tmp_path, config=PLUGGED_OUT))
    with torch.no_grad():
        ids, mask = (torch.from_numpy(given[name]).long() for name in ("input_ids", "input_mask"))
        expected = theirs(ids, attention_mask=mask)
    outputs, real = model(given), given["input_mask"].astype(bool)
    np.testing.assert_allclose(
        np.asarray(outputs["sequence_output"])[real], expected.last_hidden_state.numpy()[real], atol=1e-5
    )
    np.testing.assert_allclose(outputs["pooled_output"], expected.pooler_output.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["veco", "veco_plugged_out"])
def test_what_is_written_opens_in_transformers_as_xlmr(graph: str, tmp_path: Path):
    config = CONFIGS[graph]
    checkpoint = Checkpoint(random_tensors(graph, num_pair_labels=0), config, "ours", Path("memory"))
    write_transformers(tmp_path / "out", config, checkpoint.tensors)
    differences = largest_differences(checkpoint, tmp_path / "out")
    assert {"last hidden state", "masked-LM logits"} <= differences.keys()
    assert max(differences.values()) < 1e-5, differences
    again = read_checkpoint(tmp_path / "out")
    assert again.config == (config if config.cross_attention else dataclasses.replace(config, family="bert"))
    assert again.tensors.keys() == checkpoint.tensors.keys()


def test_the_internal_spelling_is_read():
    naming = next(naming for naming in NAMINGS if naming.name == "transformers_veco")
    name = "encoder.layer.3.cross_attention.output.LayerNorm.gamma"
    assert naming_of(["encoder.layer.3.cross_attention.self.query.weight"]) is naming
    assert naming.canonical(name) == "roberta.encoder.layer.3.crossattention.output.LayerNorm.weight"
    place = Translation(naming).to_ours(str(naming.canonical(name)))
    assert place is not None
    assert place[1] == ("backbone/encoder/cross_attention_3/layer_norm/gamma",)


def _fairseq(tensors: Tensors) -> dict[str, Any]:
    naming = next(naming for naming in NAMINGS if naming.name == "veco_fairseq")
    _, kept = naming.rewrite(DECODER, {name: value for name, value in tensors.items() if name.startswith("backbone/")})
    named, lost = Translation(naming).exported(kept)
    assert lost == []
    return {name: np.asarray(value) for name, value in named.items()}


def test_fairseqs_layout_there_and_back(tmp_path: Path):
    tensors = random_tensors("veco_decoder")
    named = _fairseq(tensors)
    # As the specification of its state dict lists them.
    assert {re.sub(r"layers\.\d+", "layers.N", name) for name in named} == {
        "encoder.embed_tokens.weight",
        *(f"{stack}.embed_positions.weight" for stack in ("encoder", "decoder")),
        *(f"{stack}.layernorm_embedding.{part}" for stack in ("encoder", "decoder") for part in ("weight", "bias")),
        *(
            f"{stack}.layers.N.{module}.{part}"
            for stack in ("encoder", "decoder")
            for module in (
                *(f"self_attn.{role}_proj" for role in ("q", "k", "v", "out")),
                "self_attn_layer_norm",
                "fc1",
                "fc2",
                "final_layer_norm",
            )
            for part in ("weight", "bias")
        ),
        *(
            f"decoder.layers.N.{module}.{part}"
            for module in (*(f"encoder_attn.{role}_proj" for role in ("q", "k", "v", "out")), "encoder_attn_layer_norm")
            for part in ("weight", "bias")
        ),
    }
    assert named["encoder.embed_positions.weight"].shape[0] == DECODER.max_sequence_length + 2
    tied = {
        f"decoder.{name}.weight": named["encoder.embed_tokens.weight"] for name in ("embed_tokens", "output_projection")
    }
    version = {"encoder.version": np.array([3.0], np.float32)}
    torch.save(
        {"model": {name: torch.from_numpy(np.array(v)) for name, v in (named | tied | version).items()}},
        tmp_path / "model.pt",
    )
    checkpoint = read_checkpoint(tmp_path / "model.pt", config=DECODER)
    assert checkpoint.source_format == "veco_fairseq"
    assert checkpoint.skipped == sorted([*tied, *version])
    assert checkpoint.tensors.keys() == {n for n in tensors if n.startswith("backbone/") and "pooler" not in n}
    for name, value in checkpoint.tensors.items():
        np.testing.assert_array_equal(np.asarray(value), tensors[name], err_msg=name)
    check_fits(checkpoint)
    model = LanguageModel(DECODER, [])
    assert load_into(model, checkpoint).begun == []
    with pytest.raises(UsageError, match="it has token types; --format=ours can hold it"):
        next(n for n in NAMINGS if n.name == "veco_fairseq").rewrite(
            dataclasses.replace(DECODER, type_vocab_size=1), {}
        )


def test_kept_layers_of_fairseq_become_the_decoder_by_their_numbers(tmp_path: Path):
    """The last of layers 2 and 3 of a stack: the original's replacement of digits would rename fc2 too."""
    named = _fairseq(random_tensors("veco_decoder"))
    renumbered = {
        re.sub(r"^decoder\.layers\.(\d)", lambda m: f"decoder.layers.{int(m[1]) + 2}", n): v for n, v in named.items()
    }
    assert "decoder.layers.3.fc2.weight" in renumbered
    save_safetensors(tmp_path / "model.safetensors", renumbered)
    for k in (1, 2):
        config = dataclasses.replace(DECODER, num_decoder_layers=k)
        model = LanguageModel(config, [])
        load_into(model, read_checkpoint(tmp_path, config=config))
        found = named_variables(model)
        for block in range(k):
            value = named[f"decoder.layers.{2 - k + block}.fc2.weight"].T
            np.testing.assert_array_equal(found[f"backbone/decoder/feed_forward_{block}/output/kernel"], value)


def _assigned(graph: str, config: Any, **arguments: Any) -> tuple[dict[str, Any], Any]:
    tensors = {name: value for name, value in random_tensors(graph).items() if name.startswith("backbone/")}
    wanted = {name: shape for name, shape in shapes(config).items() if name.startswith("backbone/")}
    checkpoint = Checkpoint(tensors, CONFIGS[graph], "ours", Path("given"))
    beginning = FAMILIES[config.family].begins(wanted, tensors)
    values, report = assignment(wanted, checkpoint, beginning=beginning, **arguments)
    return {name: next(n for n in tensors if tensors[n] is value) for name, value in values.items()}, report


@pytest.mark.parametrize("k", [1, 3, 4])
def test_the_decoder_begins_as_the_last_blocks_of_the_encoder(k: int):
    config = dataclasses.replace(PLUGGED_OUT, num_decoder_layers=k)
    sources, report = _assigned("veco", config)
    assert report.missing == []
    for block in range(k):
        for kind in ("attention", "cross_attention", "feed_forward"):
            part = "output/kernel"
            assert (
                sources[f"backbone/decoder/{kind}_{block}/{part}"] == f"backbone/encoder/{kind}_{4 - k + block}/{part}"
            )
    target = {name: source for name, source in sources.items() if name.startswith("backbone/target_embeddings/")}
    assert target == {name: name.replace("target_embeddings", "embeddings") for name in target}
    assert len(target) == 4
    assert all(
        sources[name] == name for name in sources if name.startswith(("backbone/encoder/", "backbone/embeddings/"))
    )
    # Nothing is lost but cross-attention that no block of the decoder has.
    assert len(report.unexpected) == (4 - k) * 10
    assert all("encoder/cross_attention_" in name for name in report.unexpected)
    assert f"{len(report.begun)} begun as copies of others" in str(report)


def test_a_run_that_generates_starts_from_a_pretrained_folder(tmp_path: Path):
    write_ours(tmp_path / "pretrained", VECO, random_tensors("veco", num_pair_labels=0))
    config = dataclasses.replace(PLUGGED_OUT, num_decoder_layers=3)
    model = LanguageModel(config, [])
    told = initialize(model, config, str(tmp_path / "pretrained"), allow_unexpected=["masked_lm/.*"])
    # Three blocks of 10 + 10 + 6 tensors, positions, the row of types and a LayerNorm.
    assert "82 begun as copies of others; not used: backbone/encoder/* (10), masked_lm/" in told
    held = random_tensors("veco", num_pair_labels=0)["backbone/encoder/feed_forward_3/output/kernel"]
    np.testing.assert_array_equal(named_variables(model)["backbone/decoder/feed_forward_2/output/kernel"], held)


def test_cross_attention_is_new_on_xlmr_and_left_out_where_it_is_plugged_out():
    sources, report = _assigned("roberta", VECO)
    assert len(report.missing) == 40
    assert all("cross_attention_" in name for name in report.missing)
    assert all(name == source for name, source in sources.items())
    _, report = _assigned("roberta", dataclasses.replace(PLUGGED_OUT, num_decoder_layers=2))
    assert {name.split("/")[2] for name in report.missing} == {"cross_attention_0", "cross_attention_1"}
    _, report = _assigned("veco", PLUGGED_OUT)
    assert (report.missing, len(report.unexpected)) == ([], 40)


def test_a_part_of_the_cross_attention_is_not_enough():
    tensors = random_tensors("veco")
    del tensors["backbone/encoder/cross_attention_2/key/bias"]
    with pytest.raises(UsageError, match="1 missing, 0 unexpected:\n- backbone/encoder/cross_attention_2/key/bias"):
        load_into(
            LanguageModel(VECO, []), Checkpoint(tensors, VECO, "ours", Path("given")), allow_unexpected=["[ms].*"]
        )


def test_another_graph_and_a_format_without_the_decoder_are_one_line(tmp_path: Path):
    tensors = {name: value for name, value in random_tensors("veco").items() if name.startswith("backbone/")}
    save_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(
        UsageError, match=r"is of the VECO graph \(cross_attention in the encoder\), the config describes"
    ):
        read_checkpoint(tmp_path, config=CONFIGS["roberta"])
    # But BART (test_bart_namings.py) nothing that transformers or our code for it has computes this decoder.
    for model_type in ("xlm-roberta", "roberta", "bert", "albert", "divan_encoder", "divan_palm"):
        with pytest.raises(UsageError, match="--format=ours") as error:
            write_transformers(tmp_path / "out", DECODER, random_tensors("veco_decoder"), model_type=model_type)
        assert "\n" not in str(error.value)
        assert re.search("has a decoder, which|of the family veco", str(error.value))
    assert not (tmp_path / "out").exists()
