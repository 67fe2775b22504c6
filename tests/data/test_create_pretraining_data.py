import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from absl.app import UsageError

import create_pretraining_data as verb
from commands.flags import parse
from data.objectives import OBJECTIVES
from data.reading import PretrainingDataset
from data.segmentation import SEGMENTERS

ROOT = Path(__file__).resolve().parents[2]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好我们学习语言模型，。"]
ALBERT_ZH = """input_file output_file vocab_file do_lower_case do_whole_word_mask max_seq_length max_predictions_per_seq
    random_seed dupe_factor masked_lm_prob short_seq_prob non_chinese"""
GOOGLE = """input_file output_file vocab_file spm_model_file input_file_mode do_lower_case do_whole_word_mask
    do_permutation favor_shorter_ngram random_next_sentence max_seq_length ngram max_predictions_per_seq random_seed
    dupe_factor masked_lm_prob short_seq_prob"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    (tmp_path / "corpus.txt").write_text("今天天气很好。\n我们学习语言模型。\n今天学习。\n\n" * 9, encoding="utf-8")
    return tmp_path


def arguments(folder, *more):
    files = [
        f"--{n}_file={folder / f}"
        for n, f in (("input", "corpus.txt"), ("output", "x.tfrecord"), ("vocab", "vocab.txt"))
    ]
    return [*files, "--max_seq_length=24", "--max_predictions_per_seq=5", "--num_workers=1", *more]


def test_flags_of_albert_zh_and_google_exist():
    assert set(ALBERT_ZH.split()) | set(GOOGLE.split()) <= set(verb.Options.__dataclass_fields__)


def test_choices_are_those_of_the_library():
    with pytest.raises(UsageError, match=f"expected one of {', '.join(OBJECTIVES)}"):
        parse(verb.Options, ["--input_file=a", "--output_file=b", "--objective=x"])
    with pytest.raises(UsageError, match=f"expected one of {', '.join(SEGMENTERS)}"):
        parse(verb.Options, ["--input_file=a", "--output_file=b", "--segmenter=x"])


def test_command_writes_shards_manifest_and_a_summary(folder):
    command = [
        sys.executable,
        str(ROOT / "create_pretraining_data.py"),
        *arguments(folder, "--do_whole_word_mask=True"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert "read     9 documents, 27 sentences" in result.stdout
    manifest = json.loads((folder / "x.manifest.json").read_text(encoding="utf-8"))
    assert manifest["flags"]["do_whole_word_mask"] is True
    assert manifest["segmenter"].startswith("rjieba ")
    assert PretrainingDataset(str(folder / "x.tfrecord"), 2).num_examples == manifest["num_examples"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "corpus.txt",
        "vocab.txt",
        "x.manifest.json",
        "x.tfrecord",
    ]


def test_comma_list_of_outputs(folder, capsys):
    options = parse(verb.Options, arguments(folder, f"--output_file={folder / 'a.tfrecord'},{folder / 'b.tfrecord'}"))
    assert verb.main(options) == 0
    assert "in 2 file(s)" in capsys.readouterr().out
    counts = [PretrainingDataset(str(folder / name), 2).num_examples for name in ("a.tfrecord", "b.tfrecord")]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--vocab_file="], "no tokenizer: give --vocab_file"),
        (["--output_file=,"], "missing required flag: --output_file"),
        (["--num_shards=2", "--shard_size=9"], "exclude each other"),
        (["--output_file=a,b", "--num_shards=2"], "names 2 files but"),
        (["--output_file=a,a"], "a file is named twice"),
        (["--output_file=.."], r"--output_file=\.\. is a folder: name a file in it"),
        (["--output_file=/"], "--output_file=/ is a folder"),
        (["--random_next_sentence", "--objective=masked_lm"], "asks for pairs"),
        (["--input_file=none/*.txt"], "no file matches"),
        (["--max_seq_length=4"], "expected at least 5"),
        (["--masked_lm_prob=1.5"], "expected at most 1"),
        (["--eval_fraction=0.0001"], "--eval_fraction=0.0001 holds out none of 9 documents"),
        (["--pack_sequences"], "--pack_sequences needs --objective=masked_lm"),
        (["--masking=dynamic", "--do_permutation"], "needs --masking=static"),
    ],
)
def test_mistakes_are_one_line(folder, more, message):
    with pytest.raises(UsageError, match=message) as error:
        verb.main(parse(verb.Options, arguments(folder, *more)))
    assert "\n" not in str(error.value)


def test_googles_name_for_next_sentence(folder):
    verb.main(parse(verb.Options, arguments(folder, "--random_next_sentence=True")))
    assert json.loads((folder / "x.manifest.json").read_text(encoding="utf-8"))["objective"] == "bert"


def test_script_of_albert_zh_runs_from_anywhere(folder):
    more = arguments(folder, "--dupe_factor=1", "--eval_fraction=0")
    script = ["bash", str(ROOT / "create_pretrain_data.sh"), *more]
    subprocess.run(script, capture_output=True, text=True, check=True, cwd=folder)
    manifest = json.loads((folder / "x.manifest.json").read_text(encoding="utf-8"))
    assert (manifest["flags"]["masked_lm_prob"], manifest["flags"]["do_whole_word_mask"]) == (0.1, True)


def test_same_command_again_overwrites(folder):
    for _ in range(2):
        verb.main(parse(verb.Options, arguments(folder)))
    assert (folder / "x.tfrecord").stat().st_size > 0


def test_a_file_whose_name_is_no_text_is_read_by_a_pattern(folder):
    (folder / "corpus.txt").rename(folder / "corpus\udc80.txt")
    verb.main(parse(verb.Options, arguments(folder, f"--input_file={folder}/corpus*.txt")))
    (told,) = json.loads((folder / "x.manifest.json").read_text(encoding="utf-8"))["inputs"]
    assert told["name"].endswith(r"corpus\udc80.txt")


def test_of_a_text_that_is_refused_nothing_held_out_is_left(folder):
    # One document: with some seeds it is held out, and then nothing is left to learn from.
    (folder / "corpus.txt").write_text("\n".join(TOKENS[5:9]), encoding="utf-8")
    before, told = sorted(folder.iterdir()), set()
    for seed in range(6):
        more = ("--eval_fraction=0.5", "--objective=masked_lm", f"--random_seed={seed}")
        with pytest.raises(UsageError) as error:
            verb.main(parse(verb.Options, arguments(folder, *more)))
        told.add(str(error.value)[:20])
        assert sorted(folder.iterdir()) == before
    assert told == {"--eval_fraction=0.5 ", "--input_file: no exa"}
    (folder / "corpus.txt").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="--input_file: no example could be made: 0 documents"):
        verb.main(parse(verb.Options, arguments(folder, "--eval_fraction=0.5")))


def test_held_out_documents_are_in_no_training_shard(folder):
    sentences = ["".join(TOKENS[5 + i % 10] + TOKENS[5 + i // 10] + "。") for i in range(100)]
    text = "".join(f"{one}\n{one}{two}\n\n" for one, two in pairwise(sentences))
    (folder / "corpus.txt").write_text(text * 2, encoding="utf-8")
    verb.main(parse(verb.Options, arguments(folder, "--eval_fraction=0.3", "--masked_lm_prob=0", "--dupe_factor=3")))
    datasets = [PretrainingDataset(str(folder / name), 1) for name in ("x.tfrecord", "x.held_out.tfrecord")]
    training, held_out = (
        {tuple(sorted(d.batch(i)["input_ids"][0].tolist())) for i in range(d.num_examples)} for d in datasets
    )
    # Copies of a document fall on the same side.
    assert not training & held_out
    assert 0.1 < len(held_out) / (len(training) + len(held_out)) < 0.5
    # Without the flag these documents are in the shards, so what was held out before must not stay.
    verb.main(parse(verb.Options, arguments(folder)))
    assert not list(folder.glob("*held_out*"))


def test_oddities_of_the_input_are_reported(folder, capsys):
    text = (folder / "corpus.txt").read_bytes().replace("天".encode(), b"\xff", 1).replace("好".encode(), b"\0", 1)
    (folder / "corpus.txt").write_bytes(b"\xef\xbb\xbf" + text)
    verb.main(parse(verb.Options, arguments(folder)))
    assert "mended   1 byte order marks, 1 invalid sequences, 1 nul characters" in capsys.readouterr().out
