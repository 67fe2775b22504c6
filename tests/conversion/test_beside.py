"""What travels with weights: vocabulary, lower-casing and labels come back from every format that holds them."""

import json
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors
from tokenizers import Tokenizer

from conversion.beside import find_vocabulary, is_lowered, labels_of
from conversion.containers.safetensors_files import save_safetensors
from conversion.namings import NAMINGS
from conversion.readers import read_checkpoint
from conversion.rules import Translation
from conversion.tokenizer_files import sentencepiece_pieces
from conversion.writers import write_ours, write_transformers
from data.tokenizers import load_tokenizer
from data.tokenizers.training import train_sentencepiece

# BERT's Chinese vocabulary in small: StructBERT's has two of the unused slots renamed, and the rest is the same.
SPECIALS = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENTRIES = [*SPECIALS, "[SLR]", "[BYR]", "\u2028", *(chr(0x4E00 + i) for i in range(21)), "ok", "##ok"]
VOCABULARY = "".join(f"{entry}\n" for entry in ENTRIES).encode()
LABELS = ("矛盾", "中立", "蕴含")
SHAPE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "initializer_range"),
)


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY)
    return tmp_path / "vocab.txt"


def _classifier(folder: Path, vocab_file: Path, **options: Any) -> Path:
    tensors = random_tensors("bert", num_labels=3)
    write_transformers(folder, CONFIGS["bert"], tensors, [vocab_file], **options)
    return folder


@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize(
    "lost", [(), ("vocab.txt",), ("tokenizer_config.json",), ("vocab.txt", "tokenizer_config.json")]
)
def test_there_and_back_whatever_file_is_lost(
    do_lower_case: bool, lost: tuple[str, ...], vocab_file: Path, tmp_path: Path
):
    """transformers 5 itself writes no vocab.txt: tokenizer.json has it all."""
    folder = _classifier(tmp_path / "a", vocab_file, do_lower_case=do_lower_case, labels=LABELS)
    for name in lost:
        (folder / name).unlink()
    checkpoint = read_checkpoint(folder)
    (found,) = find_vocabulary(checkpoint, None)
    assert (found.name, found.content) == ("vocab.txt", VOCABULARY)
    assert is_lowered(checkpoint) == do_lower_case
    assert labels_of(checkpoint) == LABELS
    config = checkpoint.config
    assert config is not None
    write_ours(tmp_path / "b", config, checkpoint.tensors, [found], labels=labels_of(checkpoint))
    assert labels_of(read_checkpoint(tmp_path / "b")) == LABELS
    assert (tmp_path / "b" / "vocab.txt").read_bytes() == VOCABULARY


def test_renamed_slots_keep_their_ids(vocab_file: Path, tmp_path: Path):
    import transformers

    folder = _classifier(tmp_path / "a", vocab_file)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    assert [ids["[SLR]"], ids["[BYR]"], ids["\u2028"]] == [6, 7, 8]
    theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.convert_tokens_to_ids(["[SLR]", "[BYR]"]) == [6, 7]
    theirs.save_pretrained(tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "saved" / name).write_bytes((folder / name).read_bytes())
    (found,) = find_vocabulary(read_checkpoint(tmp_path / "saved"), None)
    assert found.content == VOCABULARY


def test_labels_that_mean_nothing_are_none(vocab_file: Path, tmp_path: Path):
    assert labels_of(read_checkpoint(_classifier(tmp_path / "a", vocab_file))) == ()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "config.json",
            {"id2label": {"0": "a", "2": "b"}},
            "id2label of .* has the keys 0, 2; expected 0, 1, ...; .*--labels",
        ),
        ("config.json", {"id2label": {"0": 3}}, "id2label of .*: expected text"),
        ("config.json", {"id2label": ["a"]}, "id2label of .*: expected an object"),
        ("tokenizer_config.json", {"do_lower_case": "yes"}, "do_lower_case of .* is 'yes': expected true or false"),
        ("tokenizer.json", {"model": {"type": "BPE"}}, "a tokenizer of the kind BPE, .*; give --vocab_file"),
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {"a": 99}}}, "ids with gaps"),
        ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": [1]}}, "model.vocab of .*: expected an object"),
        ("tokenizer.json", {"model": 3}, "model is 3: expected an object"),
        ("tokenizer.json", {"normalizer": 3}, "normalizer of .* is 3: expected an object"),
    ],
)
def test_files_that_nobody_wrote_are_one_line(
    name: str, change: dict[str, Any], message: str, vocab_file: Path, tmp_path: Path
):
    folder = _classifier(tmp_path / "a", vocab_file, labels=LABELS)
    checkpoint = read_checkpoint(folder)
    (folder / "vocab.txt").unlink()
    if name == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(UsageError, match=message) as error:
        (labels_of(checkpoint), is_lowered(checkpoint), find_vocabulary(checkpoint, None))
    assert "\n" not in str(error.value)


def _ernie_m(folder: Path, naming_name: str) -> Path:
    """Write a folder of ERNIE-M with its two tokenizer files, as transformers 4 or PaddleNLP has them."""
    naming = next(naming for naming in NAMINGS if naming.name == naming_name)
    tensors = {n: v for n, v in random_tensors("no_types").items() if n.startswith("backbone/")}
    named, _ = Translation(naming).exported(tensors)
    folder.mkdir()
    save_safetensors(folder / "model.safetensors", named)
    values = {name: getattr(CONFIGS["no_types"], name) for name in SHAPE}
    (folder / "config.json").write_text(
        json.dumps(values | {"model_type": "ernie_m", "pad_token_id": 1, "hidden_act": "gelu"})
    )
    texts = ["the cat sat on the mat", "a dog ate the cat", "in 1999, that toad sang"] * 20
    model = train_sentencepiece(texts, vocab_size=28, layout="xlmr")
    pieces = [piece for piece, _, _ in sentencepiece_pieces(model)[0]][3:]
    tokens = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *pieces, "[MASK]"]
    tokens += [f"[unused{i}]" for i in range(CONFIGS["no_types"].vocab_size - len(tokens))]
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    (folder / "vocab.txt").write_text("".join(f"{token}\t{i}\n" for i, token in enumerate(tokens)))
    return folder


@pytest.mark.parametrize(("naming", "own"), [("ernie_m", "hf"), ("ernie_m_paddle", "paddlenlp")])
def test_both_files_of_ernie_m_travel_with_the_way_that_its_text_was_cut(naming: str, own: str, tmp_path: Path):
    checkpoint = read_checkpoint(_ernie_m(tmp_path / "a", naming))
    assert checkpoint.source_format == naming
    for given, wanted in ((None, own), ("ernie_repo", "ernie_repo")):
        (found,) = find_vocabulary(checkpoint, None, segmentation=given)
        assert found.segmentation == wanted
        folder = tmp_path / wanted
        assert checkpoint.config is not None
        write_ours(folder, checkpoint.config, checkpoint.tensors, [found])
        (again,) = find_vocabulary(read_checkpoint(folder), None)
        assert again.ids is not None
        assert found.ids is not None
        assert (again.content, again.ids.content, again.segmentation) == (found.content, found.ids.content, wanted)
        tokenizer = load_tokenizer(
            spm_model_file=again.path, vocab_file=again.ids.path, segmentation=again.segmentation
        )
        assert tokenizer.vocab_size == checkpoint.config.vocab_size
    (named,) = find_vocabulary(checkpoint, str(found.paths[1]), str(found.paths[0]))
    assert (named.segmentation, named.content) == (own, found.content)


def test_a_damaged_segmentation_is_one_line(tmp_path: Path):
    folder = _ernie_m(tmp_path / "a", "ernie_m")
    (folder / "tokenizer_config.json").write_text('{"segmentation": 3}')
    with pytest.raises(
        UsageError, match=r"segmentation of .*tokenizer_config\.json: .*restore it, or give --segmentat"
    ):
        find_vocabulary(read_checkpoint(folder), None)
