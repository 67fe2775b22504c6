"""A VECO that translates as transformers' BART: equal numbers and texts, there and back, and what BART has not."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from absl.app import UsageError
from conversion_cases import CONFIGS, all_numbers, random_tensors
from eager_search import Eager

import convert_checkpoint
from conversion.containers.safetensors_files import open_safetensors, save_safetensors
from conversion.lazy import Tensors
from conversion.parity import largest_differences, our_model, our_outputs, random_features
from conversion.readers import Checkpoint, read_checkpoint
from conversion.writers import Written, write_ours, write_transformers
from data.tokenizers import load_tokenizer
from generation.generator import Generator
from generation.language_model import Generative
from generation.model import Tokens
from generation.settings import Settings
from modeling.config import Config

# As fairseq has it: scaled words, no token types.
SCALED = CONFIGS["veco_decoder"]
# As a run here has it: a row of token types, a pooler, and here a decoder of its own depth, heads and units.
OWN = dataclasses.replace(
    CONFIGS["veco_plugged_out"],
    num_hidden_layers=2,
    num_decoder_layers=3,
    decoder_attention_heads=4,
    decoder_intermediate_size=12,
    hidden_act="gelu",
    vocab_padding_multiple=20,
)
MODELS = {"scaled": SCALED, "own": OWN}
TYPES = "token_type_embeddings"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _tensors(config: Config) -> dict[str, Any]:
    """Every tensor of a model that was trained to translate, which has no head besides."""
    named = random_tensors(config, num_pair_labels=0)
    return {name: value for name, value in named.items() if name.startswith("backbone/")}


def _checkpoint(config: Config, tensors: Tensors | None = None) -> Checkpoint:
    return Checkpoint(_tensors(config) if tensors is None else tensors, config, "ours", Path("memory"))


def _written(folder: Path, config: Config, **arguments: Any) -> Written:
    return write_transformers(folder, config, _tensors(config), **arguments)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _theirs(folder: Path) -> Any:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("model", MODELS)
def test_stock_transformers_computes_the_same(model: str, tmp_path: Path):
    checkpoint = _checkpoint(MODELS[model])
    _written(tmp_path / "out", MODELS[model])
    differences = largest_differences(checkpoint, tmp_path / "out")
    assert differences.keys() == {"last hidden state", "hidden states", "next-token logits", "greedy tokens"}
    assert max(differences.values()) < 1e-5, differences
    assert not list((tmp_path / "out").glob("*.py"))
    # Without padding, and without a mask.
    features = random_features(MODELS[model])
    whole = {**features, "input_mask": np.ones_like(features["input_mask"])}
    ids, target = (torch.from_numpy(features[name]).long() for name in ("input_ids", "target_ids"))
    with torch.no_grad():
        theirs = _theirs(tmp_path / "out")(input_ids=ids, decoder_input_ids=target[:, :-1]).logits.numpy()
    np.testing.assert_allclose(our_outputs(checkpoint, whole)["next-token logits"], theirs, atol=1e-5)


def test_a_wrong_weight_is_seen(tmp_path: Path):
    """Two projections of equal shape in each other's place."""
    tensors = _tensors(OWN)
    one, other = (f"backbone/decoder/cross_attention_1/{role}/kernel" for role in ("key", "value"))
    write_transformers(tmp_path / "out", OWN, {**tensors, one: tensors[other], other: tensors[one]})
    differences = largest_differences(_checkpoint(OWN, tensors), tmp_path / "out")
    assert differences["next-token logits"] > 1e-3
    assert differences["last hidden state"] < 1e-5


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back_is_the_same_model_and_again_the_same_files(model: str, tmp_path: Path):
    config, tensors = MODELS[model], _tensors(MODELS[model])
    written = _written(tmp_path / "out", config)
    changed = {} if config is SCALED else {"type_vocab_size": 0, "vocab_padding_multiple": 1}
    _theirs(tmp_path / "out").save_pretrained(tmp_path / "again")
    for folder in ("out", "again"):
        found = read_checkpoint(tmp_path / folder)
        assert found.config == written.config == dataclasses.replace(config, **changed)
        assert (found.skipped, found.unplaced) == (["final_logits_bias"], [])
        assert tensors.keys() - found.tensors.keys() == {n for n in tensors if "/pooler/" in n or TYPES in n}
        for name, value in all_numbers(found.tensors).items():
            expected = tensors[name]
            if name.endswith("word_embeddings"):
                expected = expected[: config.vocab_size]
            if name.endswith("position_embeddings") and config.type_vocab_size:
                expected = expected + tensors[name.replace("position_embeddings", TYPES)]
            np.testing.assert_array_equal(value, expected, err_msg=name)
    assert found.config is not None
    write_transformers(tmp_path / "second", found.config, found.tensors)
    assert _files(tmp_path / "second") == _files(tmp_path / "out")
    # What is read back computes what was written, to the bit.
    features = random_features(config)
    ours, again = our_outputs(_checkpoint(config), features), our_outputs(found, features)
    np.testing.assert_array_equal(again["next-token logits"], ours["next-token logits"])


@pytest.mark.parametrize("changes", [{}, {"embedding_scale": round(8**0.5, 7)}, {"num_hidden_groups": 2}])
def test_what_bart_does_not_say_is_one_value(changes: dict[str, Any], tmp_path: Path):
    """A root of the width in fewer digits is the same number in float32."""
    assert _written(tmp_path / "out", dataclasses.replace(SCALED, **changes)).config == SCALED
    assert read_checkpoint(tmp_path / "out").config == SCALED


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of XLM-R's form for the vocabulary of the configs."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog ate the cat"] * 20),
        model_writer=model,
        vocab_size=OWN.vocab_size - 2,
        user_defined_symbols=[f"<extra{i}>" for i in range(12)],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("pieces") / "sentencepiece.bpe.model"
    path.write_bytes(model.getvalue())
    return path


def _lively(config: Config, seed: int, late: int) -> dict[str, Any]:
    """Weights whose texts change from word to word and with the source: words of one length, large positions.

    A word that texts of the seed come to late lends its vector to </s>.
    """
    tensors = {
        name: value * 1.5 if name.endswith("kernel") else value
        for name, value in random_tensors(config, num_pair_labels=0, seed=seed).items()
        if name.startswith("backbone/")
    }
    words, places = "backbone/embeddings/word_embeddings", "backbone/target_embeddings/position_embeddings"
    last = f"backbone/decoder/feed_forward_{config.num_decoder_layers - 1}/layer_norm/beta"
    tensors[words] = tensors[words] / np.linalg.norm(tensors[words], axis=1, keepdims=True)
    tensors[words][[2, late]] = tensors[words][[late, 2]]
    return {**tensors, places: tensors[places] * 4, last: tensors[last] * 0}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "seed", "late"), [("scaled", 14, 8), ("own", 10, 26)])
def test_writes_the_text_that_ours_writes(model: str, seed: int, late: int, pieces: Path, tmp_path: Path):
    """With what stands in the folder: nothing but beams and length is said to `generate`."""
    config, tensors = MODELS[model], _lively(MODELS[model], seed, late)
    write_transformers(tmp_path / "out", config, tensors, [pieces])
    theirs, tokenizer = _theirs(tmp_path / "out"), load_tokenizer(spm_model_file=pieces)
    ids = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert ids == {
        "decoder_start_token_id": tokenizer.template.first[-1],
        "bos_token_id": 0,
        "eos_token_id": tokenizer.template.last[0],
        "pad_token_id": tokenizer.pad_id,
        "suppress_tokens": [0, 1, 3, config.vocab_size - 1],
    }
    assert set(ids["suppress_tokens"]) <= tokenizer.special_ids
    texts = ["the cat", "a dog ate the cat", "mat", "the dog sat on a mat", "ate", "cat the cat the cat"]
    source = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(texts, return_tensors="pt", padding=True)
    features = {"input_ids": source["input_ids"].numpy().astype(np.int32)}
    features["input_mask"] = source["attention_mask"].numpy().astype(np.int32)
    assert (features["input_mask"] == 0).any()
    for row, mask, text in zip(features["input_ids"], features["input_mask"], texts, strict=True):
        assert row[mask == 1].tolist() == [0, *tokenizer.encode(text), 2]
    tokens = Tokens(ids["decoder_start_token_id"], ids["eos_token_id"], ids["pad_token_id"])
    decodable, found, ended = Generative(our_model(_checkpoint(config, tensors)), tokens), set(), 0
    for beams in (1, 3):
        settings = Settings(num_beams=beams, max_new_tokens=9, suppress_tokens=tuple(ids["suppress_tokens"]))
        ours = Generator(decodable, settings, executor=Eager)(features)
        rows = theirs.generate(**source, num_beams=beams, max_new_tokens=9).tolist()
        for hypotheses, row in zip(ours, rows, strict=True):
            text = row[1:]
            assert row[0] == tokens.start
            assert list(hypotheses[0].tokens) == (text[: text.index(2)] if 2 in text else text)
            found.add(hypotheses[0].tokens)
            ended += hypotheses[0].ended
    assert len(found) >= 6, found
    assert sum(len(set(text)) for text in found) >= 2 * len(found), found
    assert 0 < ended < 12, found
    # A text that is cut ends with no </s>, as BART's own default would have it.
    assert theirs.generation_config.forced_eos_token_id is None


# -- BART of others ----------------------------------------------------------------------------------------------------


def _stock(folder: Path, **further: Any) -> Any:
    """transformers' BART with random weights, none of which is an initial value."""
    shape = {"vocab_size": 32, "d_model": 8, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 20}
    shape |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 12, "encoder_attention_heads": 2, "decoder_attention_heads": 4}
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**{**shape, **further})).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("form", ["folder", "old names"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_stock_bart_is_read(form: str, scaled: bool, tmp_path: Path):
    theirs = _stock(tmp_path / "in", decoder_start_token_id=0, scale_embedding=scaled)
    if form == "old names":  # of the body alone, every table for itself
        (tmp_path / "in/model.safetensors").unlink()
        torch.save(theirs.model.state_dict(), tmp_path / "in/pytorch_model.bin")
    found = read_checkpoint(tmp_path / "in")
    assert found.config is not None
    assert found.source_format == "transformers_bart"
    assert (found.config.max_position_embeddings, found.config.embedding_scale) == (22, 8**0.5 if scaled else 1.0)
    assert (found.config.num_decoder_layers, found.config.decoder_intermediate_size) == (1, 12)
    features = random_features(found.config, pad_id=1)
    ids, mask, target = (torch.from_numpy(features[n]).long() for n in ("input_ids", "input_mask", "target_ids"))
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=target[:, :-1]).logits.numpy()
    np.testing.assert_allclose(our_outputs(found, features)["next-token logits"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_start_token_id": 2}, "decoder_start_token_id is 2, bos_token_id 0; expected one id"),
        ({"normalize_before": True}, "normalize_before is True; only False can be read"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False; only True can be read"),
        ({"activation_function": ["gelu"]}, r"activation_function is \['gelu'\]; expected one of gelu"),
        ({"scale_embedding": "yes"}, "scale_embedding is 'yes'; expected true or false"),
        ({"d_model": "8"}, "d_model is '8'; expected a whole number"),
        ({"d_model": -8}, "hidden_size is -8"),
        ({"d_model": 10**400}, "hidden_size is 1"),
        ({"max_position_embeddings": 1.5}, "max_position_embeddings is 1.5; expected a whole number"),
        ({"encoder_layers": None}, "num_hidden_layers is None; expected int"),
        ({"decoder_layers": 0}, r'family "veco", num_decoder_layers 0\) has no decoder; give one that has'),
    ],
)
def test_a_json_of_something_else_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path):
    _written(tmp_path / "out", SCALED)
    path = tmp_path / "out/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UsageError, match=message):
        our_model(read_checkpoint(tmp_path / "out"))


def test_a_missing_key_is_named(tmp_path: Path):
    _written(tmp_path / "out", SCALED)
    path = tmp_path / "out/config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "decoder_layers"}))
    with pytest.raises(UsageError, match='missing key "decoder_layers"'):
        read_checkpoint(tmp_path / "out")


@pytest.mark.parametrize("value", [1e-3, np.nan])
def test_a_bias_of_the_words_has_no_place(value: float, tmp_path: Path):
    _written(tmp_path / "out", SCALED)
    path = tmp_path / "out/model.safetensors"
    tensors = all_numbers(open_safetensors(path))
    bias = np.array(tensors["final_logits_bias"])
    bias[0, 5] = value
    save_safetensors(path, {**tensors, "final_logits_bias": bias})
    with pytest.raises(UsageError, match=r"^final_logits_bias of .* is not 0 everywhere: .*$"):
        read_checkpoint(tmp_path / "out")


# -- what BART has not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_norm_eps": 1e-12}, "it adds 1e-12 in a LayerNorm, BART 1e-05"),
        ({"position_offset": 0}, "its positions begin at 0, BART's at 2"),
        ({"embedding_scale": 2.0}, r"its word vectors are multiplied by 2, BART's by 1 or .*, 2\.82843"),
        ({"ln_type": "preln"}, "its layers are pre-LN"),
        ({"final_layer_norm": True}, "it has a final LayerNorm"),
        ({"sharing": "all"}, "its layers are shared"),
        ({"ffn_groups": 2}, "its feed-forward is split in 2 groups"),
        ({"copy": "additive"}, r"it copies words of the source \(additive\)"),
        ({"vocab_size": 2}, "its vocabulary of 2 has no <s>, <pad> and </s>"),
    ],
)
def test_what_bart_does_not_compute_is_one_line(changes: dict[str, Any], reason: str, tmp_path: Path):
    config = dataclasses.replace(SCALED, **changes)
    message = f"^this model cannot be written as transformers' BART: {reason}; --format=ours can hold it$"
    with pytest.raises(UsageError, match=message):
        write_transformers(tmp_path / "out", config, _tensors(config))
    assert list(tmp_path.iterdir()) == []


def test_other_graphs_and_heads_are_one_line(tmp_path: Path):
    for graph, reason in (
        ("bert", "of the family bert"),
        ("palm", "of the family palm"),
        ("veco", "it has no decoder"),
    ):
        with pytest.raises(UsageError, match=f"as transformers' BART: .*{reason}; --format=ours"):
            write_transformers(tmp_path / "out", CONFIGS[graph], random_tensors(graph), model_type="bart")
    tensors = random_tensors(SCALED, num_pair_labels=0)
    with pytest.raises(UsageError, match=r"^masked_lm/.* no place in transformers_bart; --format=ours keeps them; .*$"):
        write_transformers(tmp_path / "out", SCALED, tensors)
    assert list(tmp_path.iterdir()) == []
    written = write_transformers(tmp_path / "out", SCALED, tensors, allow_dropped=["masked_lm/.*"])
    assert {name.split("/")[0] for name in written.dropped} == {"masked_lm"}


def test_the_command_proves_what_it_writes(
    pieces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_ours("in", OWN, _tensors(OWN), [pieces])
    for source, output, form in (
        ("in", "out", "transformers"),
        ("in", "file/weights.bin", "transformers"),
        ("out", "ours", "ours"),
    ):
        assert convert_checkpoint.main(convert_checkpoint.Options(input=source, output=output, format=form)) == 0
        told = capsys.readouterr().out
        assert "next-token logits" in told
        assert "greedy tokens" in told
    assert {path.name for path in Path("out").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "parity.json", ".divan.json"),
        *("sentencepiece.bpe.model", "tokenizer.json", "tokenizer_config.json"),
    }
    first, second = read_checkpoint("out"), read_checkpoint("file/weights.bin")
    assert first.config == second.config == read_checkpoint("ours").config
    for name, value in first.tensors.items():
        np.testing.assert_array_equal(np.asarray(second.tensors[name]), np.asarray(value), err_msg=name)
