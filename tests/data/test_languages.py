"""Languages of inputs: codes, line-aligned files read in parts, shares by alpha, inputs that contradict themselves."""

from __future__ import annotations

import bz2
import dataclasses
import math
from pathlib import Path

import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

import train_tokenizer
from data.corpus import (
    Counts,
    check_inputs,
    expand_inputs,
    files_of,
    find_corpora,
    plan_spans,
    read_documents,
)
from data.languages import NAMES, drawn_shares, find_language, mixed_shares, repeated
from data.manifest import stamp

sizes_of_languages = st.dictionaries(
    st.sampled_from(["en", "zh", "de", "en-zh", "de-en"]), st.integers(1, 10**9), min_size=1
)


# -- codes and shares --------------------------------------------------------------------------------------------------


def test_codes_are_known_in_any_letters_and_with_a_variant():
    assert [find_language(word, "x") for word in ("en", "ZH", "zh_Hant", "en-zh", "EN-zh_hant")] == [
        "en",
        "zh",
        "zh_hant",
        "en-zh",
        "en-zh_hant",
    ]
    assert len(NAMES) > 180
    assert all(code.isalpha() and code.islower() and len(code) in (2, 3) and name for code, name in NAMES.items())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("xx", "'xx' is no known code of a language; the nearest is "),
        ("german", r"'german' is no known code of a language; the nearest is 'de' \(German\)"),
        ("en-xq", "'xq' is no known code"),
        ("en-", "'' is no known code"),
        ("zh" + "_x" * 50, "is no known code"),
        ("en-de-fr", "'en-de-fr' is no pair of languages; expected two codes, such as en-zh"),
        ("en-en", "'en-en' is no pair of languages"),
    ],
)
def test_an_unknown_code_is_one_line_with_the_nearest(word: str, said: str):
    with pytest.raises(UsageError, match=f"^--input_file=x: .*{said}") as error:
        find_language(word, "--input_file=x")
    assert "\n" not in str(error.value)


@given(sizes_of_languages, st.floats(0, 4))
def test_shares_follow_the_power_law(sizes: dict[str, int], alpha: float):
    drawn = drawn_shares(sizes, alpha)
    assert math.isclose(sum(drawn.values()), 1)
    for one in sizes:
        for other in sizes:
            ratio = (sizes[one] / sizes[other]) ** alpha
            assert math.isclose(drawn[one], drawn[other] * ratio, rel_tol=1e-9)


@given(sizes_of_languages, st.floats(0, 2), st.none() | st.floats(0, 1))
def test_pairs_have_the_share_that_is_asked_for(sizes: dict[str, int], alpha: float, parallel: float | None):
    shares = mixed_shares(sizes, alpha, parallel)
    assert list(shares) == list(sizes)
    assert math.isclose(sum(shares.values()), 1)
    pairs = {name: size for name, size in sizes.items() if "-" in name}
    alone = {name: size for name, size in sizes.items() if "-" not in name}
    if parallel is None or not pairs or not alone:
        assert shares == drawn_shares(sizes, alpha)
        return
    for part, whole in ((pairs, parallel), (alone, 1 - parallel)):
        for name, share in drawn_shares(part, alpha).items():
            assert math.isclose(shares[name], share * whole, abs_tol=1e-12)


@given(st.integers(1, 40), st.integers(0, 200))
def test_items_are_repeated_to_the_wanted_number_and_evenly(size: int, wanted: int):
    times = [len(repeated("x", place, size, wanted)) for place in range(size)]
    assert sum(times) == wanted
    assert max(times) - min(times) <= 1


@pytest.mark.parametrize(
    ("alpha", "expected"), [(1.0, {"en": 54, "zh": 6}), (0.5, {"en": 45, "zh": 15}), (0.0, {"en": 30, "zh": 30})]
)
def test_a_tokenizer_learns_from_languages_by_alpha(tmp_path, capsys, alpha: float, expected: dict[str, int]):
    (tmp_path / "t.en").write_text("".join(f"only {number}\n" for number in range(49)))
    (tmp_path / "t.zh").write_text("只\n")
    (tmp_path / "both.tsv").write_text("".join(f"word {number}\t句{number}\n" for number in range(5)))
    names = (f"en={tmp_path / 't.en'}", f"zh={tmp_path / 't.zh'}", f"en-zh={tmp_path / 'both.tsv'}")
    options = train_tokenizer.Options(input_file=names, output_file="x", language_alpha=alpha)
    counts, sample = Counts(), []
    found = list(train_tokenizer.sentences(options, find_corpora(names), "utf-8", counts, sample))
    chinese = sum(not sentence.isascii() for sentence in found)
    assert {"en": len(found) - chinese, "zh": chinese} == expected
    assert (counts.sentences, len(sample)) == (60, 60)
    assert "language zh: 6 sentences, 10.0%; learnt from as" in capsys.readouterr().out
    with pytest.raises(
        UsageError, match=r"--language_alpha=0.7 does nothing without languages, as --input_file=en=PATH"
    ):
        train_tokenizer.main(dataclasses.replace(options, input_file=names[0][3:].split(","), language_alpha=0.7))


# -- line-aligned files ------------------------------------------------------------------------------------------------

lines = st.lists(st.tuples(st.text("ab 文\r\t\0", max_size=6), st.text("cd 字\u2028", max_size=9)), max_size=12)


def written(folder: Path, rows: list[tuple[str, str]], *, ended: bool = True) -> Path:
    """Write two files; return the input that they are together."""
    for name, side in (("a", 0), ("b", 1)):
        text = "\n".join(row[side] for row in rows) + ("\n" if ended and rows else "")
        (folder / name).write_bytes(text.encode())
    return expand_inputs(f"{folder / 'a'}:{folder / 'b'}")[0]


@settings(max_examples=60, deadline=None)
@given(lines, st.integers(1, 40), st.booleans())
def test_any_division_yields_every_pair_of_lines_once(tmp_path_factory, rows, span_bytes: int, ended: bool):
    rows = [row for row in rows if "\r" not in row[0][-1:]]
    # A last line without an end that is empty is no line.
    ended = ended or not (rows and rows[-1][0] and rows[-1][1])
    path = written(tmp_path_factory.mktemp("sides"), rows, ended=ended)
    clean = [tuple(side.replace("\0", "").strip() for side in row) for row in rows]
    counts = Counts()
    found = list(read_documents(plan_spans([path], span_bytes), counts, text="pairs"))
    assert found == [list(row) for row in clean if all(row)]
    assert counts.empty_documents == sum(any(row) and not all(row) for row in clean)
    assert counts.bytes == sum(file.stat().st_size for file in files_of(path)) == stamp(path)[0]


def test_compressed_files_and_other_encodings_are_read_by_lines_too(tmp_path):
    rows = [(f"the {number}", f"第{number}句") for number in range(50)]
    plain = written(tmp_path, rows)
    first, second = files_of(plain)
    expected = [list(row) for row in rows]
    (tmp_path / "a.bz2").write_bytes(bz2.compress(first.read_bytes()))
    packed = expand_inputs(f"{tmp_path / 'a.bz2'}:{second}")
    assert len(plan_spans(packed, 10)) == 1
    assert list(read_documents(plan_spans(packed, 10), text="pairs")) == expected
    for file in (first, second):
        file.write_bytes(file.read_bytes().decode().encode("gb18030"))
    spans = plan_spans([plain], 100, "gb18030")
    assert len(spans) > 3
    assert list(read_documents(spans, text="pairs")) == expected
    with pytest.raises(UsageError, match=r"/b: .*of its bytes are not utf-8"):
        check_inputs([plain], "utf-8", accept=False)


@pytest.mark.parametrize(
    ("first", "second"), [("x\n" * 3, "y\n" * 5), ("x\n" * 5, "y\n" * 3), ("", "y\n"), ("x", "y\n\n")]
)
def test_files_of_unequal_lines_are_one_line_with_both_counts(tmp_path, first: str, second: str):
    path = written(tmp_path, [])
    for file, text in zip(files_of(path), (first, second), strict=True):
        file.write_text(text)
    counts = [len(text.removesuffix("\n").split("\n")) if text else 0 for text in (first, second)]
    shorter = "a" if counts[0] < counts[1] else "b"
    said = f"a:.*b: {counts[0]} lines and {counts[1]} lines; .*/{shorter} ends at line {min(counts)}$"
    for spans in (lambda: plan_spans([path]), lambda: list(read_documents(plan_spans([path], 1), text="pairs"))):
        with pytest.raises(UsageError, match=said) as error:
            spans()
        assert "\n" not in str(error.value)


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.en", "a.zh", "b.txt", "c.tsv", "lang=en.txt", "x:y"):
        (tmp_path / name).write_text("one\n")
    return tmp_path


def corpora(patterns: str) -> list[tuple[str, str, list[str]]]:
    return [(each.language, each.text, [str(path) for path in each.inputs]) for each in find_corpora(patterns)]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("b.txt,*.tsv,b.txt", [("", "", ["b.txt", "c.tsv"])]),
        ("a.en:a.zh", [("", "pairs", ["a.en:a.zh"])]),
        ("x:y,b.txt", [("", "", ["x:y", "b.txt"])]),
        ("lang=en.txt", [("", "", ["lang=en.txt"])]),
        ("en=a.en,zh=a.*h,en=b.txt", [("en", "documents", ["a.en", "b.txt"]), ("zh", "documents", ["a.zh"])]),
        (
            "en-zh=a.en:a.zh,EN-zh=c.tsv,zh=a.zh",
            [("en-zh", "pairs", ["a.en:a.zh", "c.tsv"]), ("zh", "documents", ["a.zh"])],
        ),
        ("en=tfds:wiki,zh=a.zh", [("en", "documents", ["tfds:wiki"]), ("zh", "documents", ["a.zh"])]),
    ],
)
def test_inputs_are_found_by_language(folder, patterns, expected):
    assert corpora(patterns) == expected


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ("en=a.en,b.txt", "--input_file=b.txt: no language, but another input is en=...; give the language of every"),
        ("b.txt,a.en:a.zh", "--input_file=a.en:a.zh: pairs of sentences beside documents; give each its languages"),
        ("en=a.en:a.zh", "--input_file=en=a.en:a.zh: two files are of two languages; give both codes"),
        ("en-zh=tfds:wiki", "tfds examples are documents"),
        ("a.en:a.fr", "--input_file=a.en:a.fr: there is no file a.fr; expected two files with as many lines each"),
        ("en-zh=a.de:a.zh", "--input_file=en-zh=a.de:a.zh: there is no file a.de"),
        ("klingon=b.txt", "--input_file=klingon=b.txt: 'klingon' is no known code of a language"),
        ("en=nothing*", "--input_file=en=nothing.: no file matches"),
        (" , ", "--input_file: no input given"),
    ],
)
def test_inputs_that_contradict_themselves_are_one_line(folder, patterns, said):
    with pytest.raises(UsageError, match=said) as error:
        find_corpora(patterns)
    assert "\n" not in str(error.value)
