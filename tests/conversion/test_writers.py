import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors

from conversion import writers
from conversion.lazy import Tensors
from conversion.namings import NAMINGS
from conversion.readers import read_checkpoint
from conversion.rules import Naming
from conversion.writers import write_ours, write_tf1, write_transformers, writing_directory
from modeling.config import Config
from tasks.kinds import HeadOptions

TF1_GRAPHS = [
    "bert",
    "google",
    "google_groups",
    "google_more_groups",
    "google_wide",
    "google_fast",
    "zh_all",
    "zh_attention",
    "zh_ffn",
    "zh_none",
    "zh_preln",
]


def _assert_same(got: Tensors, expected: Tensors) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(got[name]), np.asarray(value), err_msg=name)


@pytest.mark.parametrize("num_labels", [0, 3])
@pytest.mark.parametrize("graph", TF1_GRAPHS)
def test_tf1_read_back_is_the_same_model(graph: str, num_labels: int, tmp_path: Path):
    tensors = random_tensors(graph, num_labels=num_labels)
    write_tf1(tmp_path / "out", CONFIGS[graph], tensors)
    checkpoint = read_checkpoint(tmp_path / "out")
    _assert_same(checkpoint.tensors, tensors)
    assert checkpoint.config == CONFIGS[graph]
    assert checkpoint.skipped == []
    assert checkpoint.source_format.endswith("_tf1")


@pytest.mark.parametrize("pytorch_bin", [False, True])
@pytest.mark.parametrize(
    ("graph", "model_type"), [("bert", "bert"), ("bert_erf", "bert"), ("google", "albert"), ("google_groups", "albert")]
)
def test_transformers_read_back_is_the_same_model(graph: str, model_type: str, pytorch_bin: bool, tmp_path: Path):
    tensors = random_tensors(graph)
    out = tmp_path / "out"
    write_transformers(out, CONFIGS[graph], tensors, model_type=model_type, pytorch_bin=pytorch_bin)
    if pytorch_bin:
        (out / "model.safetensors").unlink()
    checkpoint = read_checkpoint(out)
    _assert_same(checkpoint.tensors, tensors)
    assert checkpoint.config == CONFIGS[graph]


def test_identity_mapping_of_wide_embeddings_leaves_again(tmp_path: Path):
    written = write_transformers(tmp_path / "out", CONFIGS["zh_all"], random_tensors("zh_all"), model_type="albert")
    checkpoint = read_checkpoint(tmp_path / "out")
    _assert_same(checkpoint.tensors, written.tensors)
    assert checkpoint.config == written.config


@pytest.mark.parametrize("graph", ["zh_all", "google_fast", "padded"])
def test_ours_read_back_is_the_same_model(graph: str, tmp_path: Path):
    tensors = random_tensors(graph)
    write_ours(tmp_path / "out", CONFIGS[graph], tensors)
    checkpoint = read_checkpoint(tmp_path / "out")
    _assert_same(checkpoint.tensors, tensors)
    assert checkpoint.config == CONFIGS[graph]


@pytest.mark.parametrize("model_type", ["bert", "albert"])
def test_stock_tokenizer_numbers_entries_as_the_file_does(model_type: str, tmp_path: Path):
    import transformers

    entries = ["[PAD]", "\u2028", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "你", "好", "##好", "ok"]
    entries += [f"[unused{i}]" for i in range(32 - len(entries))]
    vocab = tmp_path / "vocab.txt"
    vocab.write_bytes(("\n".join(entries) + "\n").encode())
    write_transformers(tmp_path / "out", CONFIGS["bert"], random_tensors("bert"), [vocab], model_type=model_type)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == {entry: i for i, entry in enumerate(entries)}
    assert tokenizer("你好", "OK")["input_ids"] == [3, 6, 7, 4, 9, 4]
    assert tokenizer("你好", "OK")["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_sentencepiece_model_is_opened_by_the_stock_tokenizer(tmp_path: Path):
    import io

    import sentencepiece
    import transformers

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog ate the cat"] * 20),
        model_writer=model,
        vocab_size=32,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece="<pad>",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        user_defined_symbols=[f"<extra{i}>" for i in range(12)],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "30k-clean.model"
    path.write_bytes(model.getvalue())
    write_transformers(tmp_path / "out", CONFIGS["google"], random_tensors("google"), [path])
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("The cat")["input_ids"] == [2, *processor.encode("the cat"), 3]


def _vocabulary_of(path: Path, count: int) -> Path:
    path.write_text("\n".join(f"[unused{i}]" for i in range(count)) + "\n")
    return path


def test_vocabulary_of_another_size_is_refused(tmp_path: Path):
    vocab = _vocabulary_of(tmp_path / "vocab.txt", 31)
    with pytest.raises(UsageError, match=r"vocab\.txt: 31 entries, the config says 32"):
        write_transformers(tmp_path / "out", CONFIGS["bert"], random_tensors("bert"), [vocab])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("bert_erf", "only the tanh form of GELU"),
        ("bert_shared", "BERT shares no layers"),
        ("google_unshared_ffn", "Google's ALBERT shares all of a layer"),
        ("padded", "no offset of positions"),
        ("google_eps", "adds 1e-12 in a LayerNorm, not 1e-06"),
        ("palm", "writes models of albert, albert_zh, bert; the family palm has no TF 1 code"),
    ],
)
def test_what_the_original_code_cannot_compute_is_refused(graph: str, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        write_tf1(tmp_path / "out", CONFIGS[graph], random_tensors(graph))
    assert list(tmp_path.iterdir()) == []


def test_labels_are_counted(tmp_path: Path):
    with pytest.raises(UsageError, match=r"2 labels given \(a, b\), the classifier has 3 classes"):
        write_transformers(tmp_path / "out", CONFIGS["bert"], random_tensors("bert", num_labels=3), labels=("a", "b"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("write", [write_ours, write_tf1, write_transformers])
def test_interrupted_write_changes_nothing(write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    write(out, CONFIGS["bert"], random_tensors("bert"))
    before = _contents(out)

    def fail(path: Path, *_) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(writers, "_write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        write(out, CONFIGS["bert"], random_tensors("bert", seed=1))
    assert _contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", [write_ours, write_tf1, write_transformers])
def test_full_disk_is_an_os_error_and_changes_nothing(write: Callable, tmp_path: Path):
    out = tmp_path / "out"
    write(out, CONFIGS["bert"], random_tensors("bert"))
    before = _contents(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"."):
            write(out, CONFIGS["bert"], random_tensors("bert", seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_former_conversion_is_replaced_whole(tmp_path: Path):
    out = tmp_path / "out"
    write_tf1(out, CONFIGS["bert"], random_tensors("bert"))
    write_ours(out, CONFIGS["bert"], random_tensors("bert"))
    assert set(_contents(out)) == {".divan.json", "model.safetensors", "state.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folder_with_other_files_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds other files than .* \(thesis.tex\); name a new or an empty folder"):
        write_ours(tmp_path, CONFIGS["bert"], random_tensors("bert"))
    assert set(_contents(tmp_path)) == {"thesis.tex"}


def test_output_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file; expected a folder"), writing_directory(tmp_path / "out"):
        pass


def test_training_reads_what_is_written_for_it(tmp_path: Path):
    from training.checkpoints import read_state

    tensors = random_tensors("google")
    write_ours(tmp_path / "out", CONFIGS["google"], tensors)
    checkpoint = read_state(tmp_path / "out")
    _assert_same({name.removeprefix("model/"): value for name, value in checkpoint.tensors.items()}, tensors)
    assert Config(**checkpoint.config) == CONFIGS["google"]


def test_written_config_of_albert_zh_is_in_its_own_dialect(tmp_path: Path):
    write_tf1(tmp_path / "out", CONFIGS["zh_preln"], random_tensors("zh_preln"))
    values = json.loads((tmp_path / "out" / "albert_config.json").read_text())
    assert values["ln_type"] == "preln"
    assert not values.keys() & {"family", "sharing"}


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda naming: naming.model_type or "tf1")
def test_other_programs_are_told_the_dropout_of_our_heads(naming: Naming):
    names = [name for name in naming.config_constants if name.startswith("classifier_dropout")]
    assert bool(names) is bool(naming.class_prefix)
    assert all(naming.config_constants[name] == HeadOptions().dropout for name in names)
