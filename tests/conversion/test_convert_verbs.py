import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors

import convert_albert_tf_checkpoint_to_pytorch as lone_verb
import convert_checkpoint as verb
from commands.flags import parse
from conversion import parity, proof
from conversion.readers import read_checkpoint
from conversion.writers import write_ours, write_tf1

ROOT = Path(verb.__file__).parent


def _convert(*arguments: str) -> int:
    return verb.main(parse(verb.Options, arguments))


@pytest.fixture
def zh(tmp_path: Path) -> Path:
    vocabulary = tmp_path / "vocab.txt"
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + i) for i in range(27))]
    vocabulary.write_text("\n".join(entries) + "\n", encoding="utf-8")
    write_tf1(tmp_path / "zh", CONFIGS["zh_all"], random_tensors("zh_all"), [vocabulary])
    vocabulary.unlink()
    return tmp_path / "zh"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["auto", "albert", "bert"])
def test_to_transformers_with_parity_report(
    model_type: str, zh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert _convert(f"--input={zh}", f"--output={out}", f"--model_type={model_type}", "--pytorch_model_bin") == 0
    told = capsys.readouterr().out
    assert "model.ckpt: read as albert_zh_tf1\nloaded: 31 tensors\n" in told
    assert "missing: none\nunexpected: none\nof another shape: none\n" in told
    assert "not told by the weights: 2 attention heads, gelu, postln" in told
    assert f"written to {out} as transformers_{'bert' if model_type == 'bert' else 'albert'}" in told
    for name in ("last hidden state", "hidden states", "masked-LM logits", "sentence-pair logits"):
        assert f"  {name:22} " in told
    assert {path.name for path in out.iterdir()} == {
        ".divan.json",
        "config.json",
        "model.safetensors",
        "parity.json",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }


def test_there_and_back_through_every_format(zh: Path, tmp_path: Path):
    expected = read_checkpoint(zh)
    _convert(f"--input={zh}", f"--output={tmp_path / 'ours'}", "--format=ours")
    _convert(f"--input={tmp_path / 'ours'}", f"--output={tmp_path / 'tf1'}", "--format=tf1")
    got = read_checkpoint(tmp_path / "tf1")
    assert got.config == expected.config
    for name, value in expected.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], value)
    assert (tmp_path / "tf1" / "vocab.txt").read_bytes() == (zh / "vocab.txt").read_bytes()


@pytest.mark.slow
def test_a_difference_is_told_and_fails(
    zh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    original = parity.transformers_outputs
    for change in (2e-4, float("nan")):
        monkeypatch.setattr(
            parity,
            "transformers_outputs",
            lambda *args, change=change: {name: value + change for name, value in original(*args).items()},
        )
        assert _convert(f"--input={zh}", f"--output={tmp_path / 'out'}") == 1
        assert "NOT EQUAL" in capsys.readouterr().out


def test_without_torch_the_tensors_are_read_back_instead(
    zh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(proof.importlib.util, "find_spec", lambda name: None)
    assert _convert(f"--input={zh}", f"--output={tmp_path / 'out'}") == 0
    told = capsys.readouterr().out
    assert "outputs not compared: that needs torch and transformers" in told
    assert "  tensors read back      0.0e+00" in told


def test_list_writes_nothing(zh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert _convert(f"--input={zh}", "--list") == 0
    told = capsys.readouterr().out.splitlines()
    assert "backbone/embeddings/projection/kernel  [4, 8]" in told
    assert told[-1].startswith("31 tensors, ")
    assert [path.name for path in tmp_path.iterdir()] == ["zh"]


def test_a_check_names_tensors_with_numbers_that_are_not_finite(zh: Path, capsys: pytest.CaptureFixture[str]):
    assert _convert(f"--input={zh}", "--check_only") == 0
    assert "not finite: none" in capsys.readouterr().out
    tensors = random_tensors("zh_all")
    tensors["backbone/pooler/bias"][3] = np.nan
    tensors["backbone/embeddings/word_embeddings"][:2] = np.inf
    broken = zh.parent / "broken"
    write_tf1(broken, CONFIGS["zh_all"], tensors)
    assert _convert(f"--input={broken}", "--check_only") == 1
    told = capsys.readouterr().out
    assert "not finite: backbone/embeddings/word_embeddings (8 of 128), backbone/pooler/bias (1 of 8)" in told


def test_what_has_no_place_is_an_error_unless_a_flag_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_tf1(tmp_path / "bert", CONFIGS["bert"], random_tensors("bert", num_pair_labels=3))
    arguments = [f"--input={tmp_path / 'bert'}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(
        UsageError, match=r"sentence_pair has 2 classes and not 3; .*: --allow_unexpected=sentence_pair"
    ):
        _convert(*arguments)
    assert not (tmp_path / "out").exists()
    assert _convert(*arguments, "--allow_unexpected=sentence_pair/.*") == 0
    told = capsys.readouterr().out
    assert "left out, as --allow_unexpected says: sentence_pair/kernel has no place in transformers_bert" in told
    assert "no vocabulary found: pass --vocab_file" in told


def test_config_has_to_be_there_and_to_fit(zh: Path, tmp_path: Path):
    (zh / "albert_config.json").rename(tmp_path / "kept.json")
    with pytest.raises(UsageError, match="pass --config_file"):
        _convert(f"--input={zh}", f"--output={tmp_path / 'out'}")
    with pytest.raises(UsageError, match="missing required flag: --output"):
        _convert(f"--input={zh}")
    assert _convert(f"--input={zh}", f"--output={tmp_path / 'out'}", f"--config_file={tmp_path / 'kept.json'}") == 0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of a classifier with a step and a best, as a run of old leaves it: without run.json."""
    for place in ("checkpoints/step_00000010", "best"):
        write_ours(tmp_path / "run" / place, CONFIGS["zh_all"], random_tensors("zh_all", num_labels=3))
    return tmp_path / "run"


def _written_labels(run: Path, *arguments: str) -> dict[str, str]:
    out = run.parent / "out"
    assert _convert(f"--input={run}", f"--output={out}", *arguments) == 0
    return json.loads((out / "config.json").read_text(encoding="utf-8"))["id2label"]


ROW = {"name": "xnli", "labels": ["矛盾", "中立", "蕴含"]}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--best"]])
def test_classes_have_the_names_of_the_run(run: Path, arguments: list[str]):
    """A row names them in the order of the classifier's columns; --labels wins; a run of old has none."""
    assert _written_labels(run, *arguments) == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    (run / "run.json").write_text(json.dumps({"kind": "classification", "row": ROW}), encoding="utf-8")
    assert _written_labels(run, *arguments) == {"0": "矛盾", "1": "中立", "2": "蕴含"}
    assert _written_labels(run, "--labels=a,b,c", *arguments) == {"0": "a", "1": "b", "2": "c"}
    (run / "run.json").write_text(json.dumps({"kind": "pretraining", "row": None}), encoding="utf-8")
    assert _written_labels(run, *arguments)["2"] == "LABEL_2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"run.json: not a run.json \(.*\); restore it, or name the classes with --labels"),
        ("[]", "run.json: .* is a list: expected an object"),
        ('{"row": {"name": "x"}}', "run.json: .*missing required field 'labels'"),
        ('{"row": {"labels": "yes"}}', "row.labels is 'yes': expected a list; .* with --labels"),
        ('{"row": {"labels": ["a", "b"]}}', r"2 labels given \(a, b\), the classifier has 3 classes"),
    ],
)
def test_a_damaged_run_file_is_one_line(content: str, message: str, run: Path):
    (run / "run.json").write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        _written_labels(run)
    assert "\n" not in str(error.value)
    assert _written_labels(run, "--labels=a,b,c") == {"0": "a", "1": "b", "2": "c"}


def test_a_bin_file_may_be_named_as_output(zh: Path, tmp_path: Path):
    """Its config, tokenizer and measured difference come beside it; nothing else there is touched."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "notes.txt").write_text("kept")
    assert _convert(f"--input={zh}", f"--output={tmp_path / 'torch' / 'weights.bin'}") == 0
    assert {path.name for path in (tmp_path / "torch").iterdir()} == {
        ".divan.json",
        "config.json",
        "notes.txt",
        "parity.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "weights.bin",
    }
    names = read_checkpoint(tmp_path / "torch" / "weights.bin").tensors.keys()
    assert names == read_checkpoint(zh).tensors.keys() - {"backbone/embeddings/projection/kernel"}


def _lone(*arguments: str) -> int:
    return lone_verb.main(parse(lone_verb.Options, arguments))


@pytest.mark.slow
def test_flags_of_albert_pytorch_write_one_file_with_its_config(zh: Path, tmp_path: Path):
    dump = tmp_path / "prev_trained_model" / "pytorch_model.bin"
    arguments = [
        f"--tf_checkpoint_path={zh}/model.ckpt",
        f"--bert_config_file={zh}/albert_config.json",
        f"--pytorch_dump_path={dump}",
    ]
    assert _lone(*arguments, "--share_type=all") == 0
    names = {path.name for path in dump.parent.iterdir()}
    assert names == {
        ".divan.json",
        "config.json",
        "parity.json",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    import transformers

    model = transformers.AutoModelForPreTraining.from_pretrained(dump.parent)
    assert type(model).__name__ == "AlbertForPreTraining"
    before = dump.read_bytes()
    with pytest.raises(UsageError, match=r"--share_type=None, but the layers of .* share 'all'; leave the flag out"):
        _lone(*arguments, "--share_type=None")
    (dump.parent / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config.json exists and is another file; name a file in a new folder"):
        _lone(*arguments)
    assert dump.read_bytes() == before


def test_flags_of_transformers_write_a_folder(zh: Path, tmp_path: Path):
    arguments = [f"--tf_checkpoint_path={zh}", f"--albert_config_file={zh}/albert_config.json"]
    assert _lone(*arguments, f"--pytorch_dump_path={tmp_path / 'out'}") == 0
    assert {"pytorch_model.bin", "model.safetensors"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("convert_checkpoint.py", ["--inptu=x"], "unknown flag --inptu; the nearest is --input"),
        ("convert_checkpoint.py", ["--input=/nowhere/model.ckpt", "--list"], "does not exist; expected a run's output"),
        ("convert_albert_tf_checkpoint_to_pytorch.py", [], "missing required flags: --tf_checkpoint_path"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(script: str, arguments: list[str], message: str):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, ROOT / script, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert done.stdout == ""
