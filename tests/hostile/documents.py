"""Classes of wrong JSON and TOML: one value of another type or size, another shape, another encoding, cut short."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.case import CASE, Case, Expectation, change
from tests.hostile.seeds import BASES

_RAW = "raw-{}-raw"
DEEP = 100_000


class Raw:
    """Text that stands in a JSON document as it is."""

    def __init__(self, text: str):
        self.text = text


_VALUES: tuple[tuple[Any, str], ...] = (
    (None, "null"),
    (True, "true"),
    (False, "false"),
    (0, "0"),
    (1, "1"),
    (-1, "-1"),
    (-(2**63) - 1, "below int64"),
    (2**31, "2^31"),
    (2**63, "2^63"),
    (10**9, "10^9"),
    (10**20, "10^20"),
    (1.5, "1.5"),
    (1e300, "1e300"),
    (Raw("NaN"), "NaN"),
    (Raw("Infinity"), "Infinity"),
    (Raw("-Infinity"), "-Infinity"),
    (Raw("1e999"), "1e999"),
    (Raw("9" * 5000), "a number of 5,000 digits"),
    (Raw("[" * DEEP + "]" * DEEP), "100,000 lists in one another"),
    (Raw('{"a":' * DEEP + "1" + "}" * DEEP), "100,000 objects in one another"),
    (Raw('"\\ud800"'), "half a surrogate"),
    (Raw('"a\\u0000b"'), "a text with NUL"),
    (Raw("01"), "no JSON: 01"),
    (Raw("'x'"), "no JSON: 'x'"),
    ("", "an empty text"),
    ("x", "a text"),
    ("nan", "the text nan"),
    ("é中🙂", "a text of other letters"),
    ("x" * 5000, "a long text"),
    ("../victim/thesis.txt", "a path that leads out"),
    (f"{CASE}/victim/thesis.txt", "an absolute path"),
    (".", "a dot"),
    ([], "an empty list"),
    ([1], "a list"),
    ([[]], "a list of a list"),
    ([None], "a list of null"),
    ({}, "an empty object"),
    ({"a": 1}, "an object"),
)


def any_value(random: Random) -> tuple[Any, str]:
    """Return a value of any type, and its name."""
    return random.choice(_VALUES)


def raw(document: Any) -> bytes:
    """Return a document as JSON, with the `Raw` texts in their places."""
    texts: list[str] = []

    def kept(value: Any) -> str:
        texts.append(value.text)
        return _RAW.format(len(texts) - 1)

    text = json.dumps(document, ensure_ascii=False, default=kept)
    for number, each in enumerate(texts):
        text = text.replace(f'"{_RAW.format(number)}"', each)
    return text.encode("utf-8", "surrogatepass")


Place = tuple[Any, ...]


def places(document: Any, place: Place = ()) -> list[Place]:
    """Return the keys that lead to every value of a document."""
    found = [place] if place else []
    if isinstance(document, dict):
        for key, value in document.items():
            found += places(value, (*place, key))
    elif isinstance(document, list):
        for number, value in enumerate(document[:3]):
            found += places(value, (*place, number))
    return found


def at(document: Any, place: Place) -> Any:
    """Return the value at a place."""
    for key in place:
        document = document[key]
    return document


# Documents, the calls that read them, and the keys of which every value but a positive number is nonsense.
_JSON = {
    "in/shared.json": ("pretrain", "classify", "plan", "convert_from_file", "convert_albert"),
    "in/records/zh.manifest.json": ("pretrain", "inspect_show", "inspect_verify", "inspect_repair", "inspect_stats"),
    "in/dynamic/zh.manifest.json": ("pretrain_dynamic", "inspect_stats_dynamic"),
    "in/packed/zh.manifest.json": ("inspect_show_packed",),
    "in/shared/state.json": ("convert_ours", "pretrain_from"),
    "in/transformers/config.json": ("convert_from_transformers", "list"),
    "in/tf1/albert_config.json": ("convert_from_tf1",),
    "in/tuned/run.json": ("convert_run", "predict", "classify_resumed"),
    "in/tuned/config.json": ("convert_run", "predict", "classify_resumed"),
    "in/tuned/model_config.json": ("convert_run", "predict", "classify_resumed"),
    "in/tuned/checkpoints/step_00000002/state.json": ("convert_run", "predict", "classify_resumed"),
    "in/tuned/best/state.json": ("predict", "classify_resumed"),
    "in/pretraining/checkpoints/step_00000002/state.json": ("pretrain_resumed",),
    "in/pretraining/config.json": ("pretrain_resumed",),
    "in/pretraining/run.json": ("pretrain_resumed",),
    "in/pretraining/best/state.json": ("pretrain_resumed",),
}
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_RATES = ("initializer_range", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")
_ABSURD = ("NaN", "Infinity", "-Infinity", "1e999", "-1", "below int64", "2^63", "10^20", "10^9", "1e300")
_NO_NUMBER = ("a text", "an empty text", "a list", "an object", "a list of null", "the text nan", "an empty list")


def _call(random: Random, name: str) -> str:
    """Return the name of a call that reads a document."""
    short = random.choice(_JSON[name])
    known = {"inspect_show", "inspect_verify", "inspect_repair", "inspect_stats"}
    return f"{short}_records" if short in known else short


def json_value(random: Random, seeds: Path) -> Case:
    """One value of a document is another."""
    name = random.choice(list(_JSON))
    base = BASES[_call(random, name)]
    document = json.loads((seeds / name).read_bytes())
    place = random.choice(places(document))
    *above, key = place
    value, word = any_value(random)
    at(document, tuple(above))[key] = value
    expect: Expectation = "either"
    config = name.endswith("shared.json") and base.verb != "convert_checkpoint"
    if config and key in (*_SIZES, *_RATES) and word in (*_ABSURD, *_NO_NUMBER):
        expect = "refuse"
    if key in _SIZES and config and word in ("0", "1.5", "null"):
        expect = "refuse"
    if word.startswith(("no JSON", "100,000")) and not name.endswith("/config.json"):
        expect = "refuse"
    if (
        name.endswith("best/state.json")
        or "resumed" in base.name
        or base.name == "predict"
        or base.name == "convert_run"
    ):
        # Another checkpoint of the folder may be taken, or none of it is needed.
        expect = "either"
    return _changed(base.name, "json value", name, f"{'.'.join(map(str, place))} is {word}", raw(document), expect, key)


def _changed(base: str, kind: str, name: str, text: str, content: bytes, expect: Expectation, *further: Any) -> Case:
    path = Path(name)
    # A document that was found in a folder may be named with it; one of a run by its flag.
    names = (path.name, path.parent.name, *(str(each) for each in further), "--output_dir", "records")
    return change(BASES[base], kind, f"{name}: {text}", expect, names, files={name: content}, uses=["victim"])


def json_key(random: Random, seeds: Path) -> Case:
    """One key of a document is gone, has another name, is there twice, or is unknown."""
    name = random.choice(list(_JSON))
    document = json.loads((seeds / name).read_bytes())
    inner = [place for place in places(document) if isinstance(place[-1], str)]
    place = random.choice(inner)
    *above, key = place
    folder = at(document, tuple(above))
    way = random.choice(("gone", "renamed", "unknown", "twice", "shifted"))
    value = folder[key]
    if way in ("gone", "renamed", "shifted"):
        del folder[key]
    if way == "renamed":
        folder[f"{key}_"] = value
    if way == "unknown":
        folder["no_such_key"] = 1
    if way == "shifted":
        document[f"{key}"] = {"inner": value}
    content = raw(document)
    if way == "twice":
        content = content.replace(b"{", b'{"%s": [], ' % key.encode(), 1)
    base = _call(random, name)
    return _changed(base, "json key", name, f"{'.'.join(map(str, place))} {way}", content, "either", key, "no_such_key")


_SHAPES: tuple[tuple[str, bytes, Expectation], ...] = (
    ("empty", b"", "refuse"),
    ("blank", b" \n", "refuse"),
    ("a list", b"[]", "refuse"),
    ("a list of objects", b'[{"a": 1}]', "refuse"),
    ("a number", b"3", "refuse"),
    ("a text", b'"x"', "refuse"),
    ("null", b"null", "refuse"),
    ("true", b"true", "refuse"),
    ("NaN", b"NaN", "refuse"),
    ("an empty object", b"{}", "refuse"),
    ("100,000 lists in one another", b"[" * DEEP, "refuse"),
    ("100,000 closed lists in one another", b"[" * DEEP + b"]" * DEEP, "refuse"),
    ("100,000 objects in one another", b'{"a":' * DEEP, "refuse"),
    ("a number of 5,000 digits", b"9" * 5000, "refuse"),
    ("a number of 5,000 digits in it", b'{"a": ' + b"9" * 5000 + b"}", "refuse"),
    ("random bytes", bytes(range(128, 256)) * 8, "refuse"),
    ("NUL", b"\0" * 64, "refuse"),
    ("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\3\xab\xae\x05\0\x43\xbf\xa6\xa3\x02\0\0\0", "refuse"),
)


def json_shape(random: Random, seeds: Path) -> Case:
    """A whole document is of another shape or encoding, or cut short."""
    name = random.choice(list(_JSON))
    content = (seeds / name).read_bytes()
    text, other, expect = random.choice(_SHAPES)
    if random.random() < 0.4:
        cut = random.randrange(1, len(content) - 2)
        ways: list[tuple[str, bytes, Expectation]] = [
            (f"cut after {cut} bytes", content[:cut], "refuse"),
            ("UTF-16", content.decode().encode("utf-16"), "either"),
            ("UTF-16 without a mark", content.decode().encode("utf-16-le"), "either"),
            ("UTF-32", content.decode().encode("utf-32"), "either"),
            ("a BOM before it", b"\xef\xbb\xbf" + content, "either"),
            ("twice", content + content, "refuse"),
            ("words behind it", content + b"x", "refuse"),
            ("a comma at its end", content.rstrip()[:-1] + b",}", "refuse"),
            ("single quotes", content.replace(b'"', b"'"), "refuse"),
            ("a byte that is no UTF-8", content[:cut] + b"\xff" + content[cut:], "either"),
        ]
        text, other, expect = random.choice(ways)
    base = _call(random, name)
    # A run's own notes are needed by some of its readers only.
    spared = ("/config.json", "/model_config.json", "best/state.json", "run.json", "state.json")
    if name.endswith(spared) and not name.startswith(("in/transformers", "in/shared/")):
        expect = "either"
    if base.startswith("inspect") or name.startswith("in/tf1"):
        expect = "either"
    return _changed(base, "json shape", name, text, other, expect)


_ROW = """
[{name}]
columns = {columns}
labels = {labels}
metric = {metric}
files = {files}
{further}
"""
_RIGHT = {
    "name": "mirrored",
    "columns": '["text_b", "text_a", "label"]',
    "labels": '["0", "1"]',
    "metric": '"accuracy"',
    "files": '{ train = ["train.txt"], dev = ["dev.txt"], test = ["test.txt"] }',
    "further": "",
}
_WRONG: dict[str, tuple[str, ...]] = {
    "columns": (
        *("3", '"text_a"', "[]", "[1, 2]", '["text_a", "text_a", "label"]', '["label"]', '["text_a", "nonsense"]'),
        *("{}", "true", "1979-05-27", '["text_a", ["text_b"]]', "nan", '[""]', '["text_a", "label", "label"]'),
    ),
    "labels": (
        *("3", '"01"', "[]", "[0, 1]", '["0", "0"]', '["0"]', "{}", "true", '["0", ["1"]]', "nan", '["0", 1]'),
        *('["", "1"]', '["0\\t", "1"]', '["0\\n1", "1"]', '[" ", "1"]', "07:32:00"),
    ),
    "metric": ("3", '""', '"nonsense"', "[]", '["accuracy"]', "{}", "true", "inf", '"accuracy "'),
    "files": (
        *("3", "[]", "{}", '"train.txt"', '{ train = "train.txt" }', "{ train = [1] }", "{ train = [] }"),
        *('{ train = ["../victim/thesis.txt"], dev = ["dev.txt"] }', '{ train = [""], dev = [""] }', "true"),
        *('{ tarin = ["train.txt"] }', '{ train = ["missing.txt"], dev = ["dev.txt"] }', "[[]]", "-inf"),
    ),
    "further": (
        *("kind = 3", 'kind = "nonsense"', "nonsense = 1", "label_names = 3", 'label_names = { a = "z" }'),
        *("ignored_labels = 3", 'ignored_labels = "x"', "label_names = { a = 1 }", "kind = []", "ignored_labels = [1]"),
        *("a = " + "[" * 2000 + "]" * 2000, "labels = []", "[mirrored]", "[[mirrored]]", "a.b.c = 1", "= 1", "x"),
        *(
            'name = "other"',
            "a = 9223372036854775808",
            'a = """',
            "a = 2021-02-30",
            'a = "\\ud800"',
            "a = " + "9" * 5000,
        ),
    ),
    "name": ("3", '"a b"', "lcqmc", "", '""', "mirrored.inner", "é中", "[x]", "a]b"),
}
_TOML_BYTES: tuple[tuple[str, bytes], ...] = (
    ("empty", b""),
    ("random bytes", bytes(range(128, 256)) * 8),
    ("NUL", b"\0" * 64),
    ("a JSON document", b'{"mirrored": {}}'),
    ("nested", b"a = " + b"[" * DEEP),
    ("a key of 100,000 parts", b".".join([b"a"] * DEEP) + b" = 1\n"),
    ("a number at the top", b"mirrored = 3\n"),
    ("a list at the top", b"mirrored = []\n"),
    ("a list of tables", b"[[mirrored]]\ncolumns = []\n"),
    ("an empty table", b"[mirrored]\n"),
)


def toml(random: Random, seeds: Path) -> Case:
    """A row of a task of one's own is of wrong types, incomplete, or no TOML."""
    base = BASES["classify_rows"]
    right = _ROW.format(**_RIGHT).encode()
    expect: Expectation = "either"
    key = "tasks.toml"
    choice = random.random()
    if choice < 0.6:
        key = random.choice(list(_WRONG))
        value = random.choice(_WRONG[key])
        text, content = f"{key} = {value[:60]}", _ROW.format(**{**_RIGHT, key: value}).encode()
        expect = "refuse" if key in ("columns", "labels", "metric", "files") else "either"
        if value in ('{ train = ["../victim/thesis.txt"], dev = ["dev.txt"] }', '["0"]'):
            expect = "either"
    elif choice < 0.8:
        text, content = random.choice(_TOML_BYTES)
        expect = "refuse"
    else:
        cut = random.randrange(1, len(right) - 3)
        text, content = random.choice(
            (
                (f"cut after {cut} bytes", right[:cut]),
                ("UTF-16", right.decode().encode("utf-16")),
                ("a BOM before it", b"\xef\xbb\xbf" + right),
                ("lines end by CR", right.replace(b"\n", b"\r")),
                ("twice", right * 2),
                ("a byte that is no UTF-8", right[:cut] + b"\xff" + right[cut:]),
                ("a key gone", b"".join(right.splitlines(keepends=True)[:3] + right.splitlines(keepends=True)[4:])),
            )
        )
    names = ("tasks.toml", "mirrored", "task_file", "task_name", key, "train.txt", "dev.txt")
    return change(base, "toml", text, expect, names, files={"in/tasks.toml": content}, uses=["victim"])
