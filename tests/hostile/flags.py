"""Classes of wrong command lines: values, sizes, paths, names of flags, config files, and outputs that are inputs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import types
import typing
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.case import CASE, Base, Case, Content, Expectation, Link, Special, change
from tests.hostile.seeds import BASES, CONFIG, TEXT, VICTIM, VOCABULARY

LONG = "x" * 5000
_NUMBERS_OF_NOTHING = ("nan", "inf", "-inf", "NaN", "Infinity", "1e400", "-1e400")
_NO_NUMBERS = ("abc", "0x10", "1,5e", "--", "１．５x", "None", "null", "[]", "1 2")
_INTEGERS: dict[str, tuple[str, ...]] = {
    "refuse": (*_NUMBERS_OF_NOTHING, *_NO_NUMBERS, "1.5", "1e3", "-1", str(2**63), str(2**64), str(10**20), "9" * 5000),
    "either": ("0", "1", "2", "3", str(2**31), str(2**31 - 1), str(2**32), str(10**9), "1_0", " 3", "١", "-0", "+5"),
}
_REALS: dict[str, tuple[str, ...]] = {
    "refuse": (*_NUMBERS_OF_NOTHING, *_NO_NUMBERS, "-1", "-1e-9", "9" * 5000),
    "either": ("0", "-0.0", "1", "2", "1e-400", "1e-320", "1e300", "1e38", "0.5", "1.0000000001"),
}
_TEXTS = (
    "",
    "nan",
    LONG,
    "é中🙂",
    "a\nb",
    "a\tb",
    " ",
    "-",
    "--",
    "%s{}",
    "*",
    "[",
    ",",
    "..",
    "\udc80",
    "a,b",
    "(",
    "{case}",
)
# Steps that a run was told to take are taken, however many.
_LONG_RUNS = ("num_train_steps", "num_train_epochs", "seeds", "early_stopping_evaluations", "num_warmup_steps")
_SIZES = (
    *("max_seq_length", "max_predictions_per_seq", "train_batch_size", "eval_batch_size", "predict_batch_size"),
    *("dupe_factor", "num_workers", "num_shards", "vocab_size", "ngram", "gradient_accumulation_steps"),
    *("model_parallel", "num_devices", "max_word_order_per_seq", "freeze_layers", "num_processes", "trigram_tokens"),
)
# What would leave this machine: devices and runners elsewhere.
_ELSEWHERE = ("use_tpu", "tpu_name", "master", "tpu_zone", "gcp_project", "coordinator_address", "runner", "topology")
_ELSEWHERE_TOO = ("beam_options", "num_processes", "process_id", "num_tpu_cores", "backend", "compile", "host")


@dataclasses.dataclass(frozen=True)
class Declared:
    """A flag as its verb declares it."""

    name: str
    kind: type
    optional: bool
    many: bool
    choices: tuple[str, ...]
    mixed: bool
    minimum: float | None
    maximum: float | None


@cache
def declared(verb: str) -> tuple[Declared, ...]:
    """Return the flags of a verb."""
    options = importlib.import_module(verb).Options
    hints = typing.get_type_hints(options)
    return tuple(_declared(field, hints[field.name]) for field in dataclasses.fields(options))


def _declared(field: dataclasses.Field[Any], hint: Any) -> Declared:
    optional = isinstance(hint, types.UnionType)
    if optional:
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    many = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if many else hint
    told = field.metadata["flag"]
    return Declared(field.name, kind, optional, many, tuple(told.choices), told.mixed, told.minimum, told.maximum)


def any_base(random: Random, *, writes: bool = False) -> Base:
    """Return an ordinary call; of every verb equally often."""
    verbs: dict[str, list[Base]] = {}
    for base in BASES.values():
        if base.writes or not writes:
            verbs.setdefault(base.verb, []).append(base)
    return random.choice(random.choice(list(verbs.values())))


def value_of_a_flag(random: Random, seeds: Path) -> Case:
    """One flag has a value that means nothing, or one at the edge."""
    base = any_base(random)
    flag = random.choice([each for each in declared(base.verb) if each.name not in (*_ELSEWHERE, *_ELSEWHERE_TOO)])
    value, expect = _bad_value(random, flag)
    if flag.name in _LONG_RUNS and expect == "either":
        value = random.choice(("0", "1", "2"))
    if flag.name in base.writes:
        value = random.choice(("", LONG, "é中", "out", "..", ".", "out/" + LONG, "out/a\nb", TEXT, f"{TEXT}/below"))
        expect = "either"
    outputs = (*base.outputs, value.split("/")[0]) if flag.name in base.writes else base.outputs
    text = f"--{flag.name}={value[:80]}"
    outputs = tuple(each for each in outputs if each not in ("in", "", ".", ".."))
    if value == "." and base.verb.startswith("run_"):
        outputs += (*_RUN_FILES, "checkpoints/", "best/", "tensorboard/")
    parts = Path(value).parts[:-1] if flag.name in base.writes else ()
    names = (flag.name, *_shown(value), *parts, *_others(base))
    return change(base, "flag value", text, expect, names, flags={flag.name: value}, outputs=outputs, uses=[TEXT])


def _shown(value: str) -> tuple[str, ...]:
    """Return how a message may show a value; white space becomes one space, or is written as in Python."""
    return tuple(text for text in (" ".join(value.split())[:50], repr(value)[1:-1][:50]) if text)


def _others(base: Base) -> tuple[str, ...]:
    """Return what else a message may name, where a value is right by itself but not with the files of the call."""
    values = [value for name in (*base.reads, *base.writes) if (value := base.flags.get(name, ""))]
    return (*(Path(value).name.split("*")[0] or "records" for value in values), "--")


def _bad_value(random: Random, flag: Declared) -> tuple[str, Expectation]:
    """Return a value, and what is to be said of it."""
    if flag.mixed and random.random() < 0.5:
        first, second = random.sample(flag.choices, 2)
        wrong = (
            f"{first}:1,{second}",
            f"{first},{first}",
            f"{first}:0,{second}:1",
            f"{first}:nan",
            f"{first}:1e-9,{second}",
        )
        further = (
            f"{first}:{LONG}",
            f"{first},",
            f"{first}:1:2",
            f":{first}",
            f"{first}:1e400,{second}:1",
            f"{first};{second}",
        )
        return random.choice((*wrong, *further)), "refuse"
    if flag.choices:
        return random.choice(("nonsense", flag.choices[0].swapcase(), f"{flag.choices[-1]} x", "nan", LONG)), "refuse"
    if flag.kind is bool:
        return random.choice(("maybe", "2", "nan", "None", LONG)), "refuse"
    if flag.kind in (int, float):
        table = _INTEGERS if flag.kind is int else _REALS
        expect: Expectation = "refuse" if random.random() < 0.6 else "either"
        value = random.choice(table[expect])
        beyond = flag.maximum is not None and value == "2" and flag.maximum < 2
        return value, "refuse" if beyond or (value == "0" and (flag.minimum or 0) > 0) else expect
    return random.choice(_TEXTS).replace("{case}", CASE), "either"


def size_of_a_flag(random: Random, seeds: Path) -> Case:
    """One size is far beyond any machine."""
    base = any_base(random)
    flags = [each for each in declared(base.verb) if each.name in _SIZES]
    if not flags:
        return size_of_a_flag(random, seeds)
    flag, value = random.choice(flags), random.choice((10**9, 2**31, 2**31 - 1, 10**7, 2**40))
    # A cut into 2 ** 31 parts is refused as well, whether by its size or for what cannot be cut.
    expect: Expectation = "refuse" if value >= 10**9 and flag.name not in ("max_predictions_per_seq",) else "either"
    if base.verb == "plan_training" or (flag.name.endswith("batch_size") and base.verb == "run_classifier"):
        expect = "either"
    if flag.name in ("freeze_layers", "eval_batch_size", "num_processes", "trigram_tokens"):
        expect = "either"
    names = (flag.name, *_others(base))
    return change(base, "flag size", f"--{flag.name}={value}", expect, names, flags={flag.name: str(value)})


def name_of_a_flag(random: Random, seeds: Path) -> Case:
    """Unknown, misspelt, repeated and stray arguments."""
    base = any_base(random)
    name = random.choice(list(base.flags))
    value = base.flags[name]
    wrong = [
        ([f"--{name}x={value}"], "refuse", (name,)),
        (["--no_such_flag"], "refuse", ("no_such_flag",)),
        ([f"--{'é' * 10}=1"], "refuse", ("é",)),
        ([f"--{LONG}=1"], "refuse", ("x",)),
        (["stray"], "refuse" if base.verb != "inspect_records" else "either", ("stray", "action")),
        ([f"--{name}"], "either", (name,)),
        ([f"--no{name}"], "either", (name,)),
        ([f"--{name}={value}", f"--{name}={value}"], "either", (name,)),
        ([f"--{name}="], "either", (*_others(base), name)),
        (["--config="], "either", ("config",)),
        (["--config=in"], "refuse", ("in", "config")),
        (["--config=missing.json"], "refuse", ("missing.json",)),
        (["--flagfile=missing"], "either", ("flagfile", "missing")),
        (["--", "--do_train"], "either", ("do_train", "--")),
        (["="], "either", ("=",)),
    ]
    further, expect, names = random.choice(wrong)
    return change(base, "flag name", " ".join(further)[:200], expect, names, further=further)  # pyright: ignore[reportArgumentType]


def missing_flag(random: Random, seeds: Path) -> Case:
    """A flag of the ordinary call is left out."""
    base = any_base(random)
    # Without a number of steps a run takes its day.
    name = random.choice([name for name in base.flags if name not in _LONG_RUNS])
    names = (name, "missing", "nothing to do", *_others(base))
    return change(base, "flag left out", f"without --{name}", "either", names, flags={name: None})


def two_flags(random: Random, seeds: Path) -> Case:
    """Two flags have other values at once, each of which may be right."""
    first = value_of_a_flag(random, seeds)
    base = BASES[first.base]
    chosen = [each for each in declared(base.verb) if each.name not in (*_ELSEWHERE, *_ELSEWHERE_TOO, *base.writes)]
    flag = random.choice(chosen)
    value = _bad_value(random, flag)[0]
    if flag.name in _LONG_RUNS:
        value = "1"
    flags = (*first.flags, f"--{flag.name}={value}")
    both = f"{first.change} --{flag.name}={value[:80]}"
    names = (*first.names, flag.name, *_shown(value))
    return dataclasses.replace(first, kind="two flags", flags=flags, change=both, expect="either", names=names)


# Actions of inspect_records.py that read no vocabulary.
_WORDLESS = ("verify", "repair")
_PLACES: dict[str, Content | None] = {
    "missing": None,
    "missing/below": None,
    f"{TEXT}/below": None,
    "dangling": Link("nowhere"),
    "loop": Link("loop"),
    "empty": b"",
    "nul": b"\0" * 100,
    "folder/file": b"x",
    "no newline": b"a",
    "é中🙂 name.txt": b"a\n",
    LONG: None,
    "in/*.nothing": None,
    "[": None,
}


def path_of_a_flag(random: Random, seeds: Path) -> Case:
    """A file that is read is missing, a folder, a link to nowhere, empty, or of another kind."""
    base = any_base(random)
    reads = [name for name in base.reads if base.flags.get(name)]
    name = random.choice(reads)
    others = (
        CONFIG,
        VOCABULARY,
        TEXT,
        "in/spiece.model",
        "in/shared",
        "in/tf1",
        "in/records",
        "in/pairs",
        "in/tasks.toml",
    )
    if random.random() < 0.35:
        other = random.choice(others)
        text = f"--{name}={other}"
        # Any text is a text, and BERT's vocabulary is one.
        expect: Expectation = "either" if name == "input_file" or other == base.flags[name] else "refuse"
        if name in ("init_checkpoint", "input", "tf_checkpoint_path", "vocab_file", "data_dir"):
            expect = "either"
        return change(
            base, "flag path", text, expect, (name, Path(other).name, *_others(base)), flags={name: other}, uses=[other]
        )
    place = random.choice(list(_PLACES))
    given = "folder" if place == "folder/file" else place
    files = {} if _PLACES[place] is None else {place: _PLACES[place]}
    # A text may be one letter, and then there is nothing to make of it.
    names = (name, Path(given).name[:50], given[:50], *_others(base))
    wordless = base.flags.get("action") in _WORDLESS
    expect = "either" if place in ("no newline", "é中🙂 name.txt") or (name == "vocab_file" and wordless) else "refuse"
    return change(base, "flag path", f"--{name}={given[:80]}", expect, names, flags={name: given}, files=files)


SPECIAL: dict[str, Content] = {
    "a pipe": Special("pipe"),
    "a socket": Special("socket"),
    "a folder": Special("folder"),
    "/dev/null": Link("/dev/null"),
    "/dev/zero": Link("/dev/zero"),
    "/dev/full": Link("/dev/full"),
    "a link to nowhere": Link("nowhere"),
    "links in a ring": Link("in/ring"),
}
"""What cannot be read to its end, or is empty for ever."""


def special_file(random: Random, seeds: Path) -> Case:
    """A flag names, or a folder holds, a pipe, a socket, a device or a ring of links in the place of a file."""
    from tests.hostile.contents import FILES

    way = random.choice(list(SPECIAL))
    files: dict[str, Content | None] = {"in/ring": Link("in/ring")} if way == "links in a ring" else {}
    if random.random() < 0.5:
        name = random.choice(list(FILES))
        base = BASES[random.choice(FILES[name])]
        names = (Path(name).name, Path(name).parent.name, "--output_dir", *_others(base))
        text, files = f"{name} is {way}", {**files, name: SPECIAL[way]}
        return change(base, "special file", text, "either", names, files=files)
    base = any_base(random)
    name = random.choice([name for name in base.reads if base.flags.get(name)])
    # Some verbs tell kinds of files apart by the end of their names.
    ending = Path(base.flags[name]).suffix
    place = f"in/odd{ending}"
    given = way if way.startswith("/") and random.random() < 0.5 else place
    optional = name == "vocab_file" and (base.flags.get("action") in _WORDLESS or base.verb.startswith("convert"))
    expect: Expectation = "either" if optional else "refuse"
    names = (name, Path(given).name, *_others(base))
    text, files = f"--{name}={given}: {way}", {**files, place: SPECIAL[way]}
    return change(base, "special file", text, expect, names, flags={name: given}, files=files)


def same_file(random: Random, seeds: Path) -> Case:
    """What is written is what is read, under any of its names."""
    base = any_base(random, writes=True)
    target = random.choice(base.writes)
    reads = [name for name in base.reads if base.flags.get(name) and "*" not in base.flags[name]]
    source = base.flags[random.choice(reads)] if reads else VOCABULARY
    forms: list[tuple[str, str, dict[str, Content | None]]] = [
        ("the same", source, {}),
        ("by dots", f"in/../{source}", {}),
        ("by ./", f"./{source}", {}),
        ("absolute", f"{CASE}/{source}", {}),
        ("a symbolic link", "out/link", {"out/link": Link(source)}),
        ("below a linked folder", f"linked/{source.removeprefix('in/')}", {"linked": Link("in")}),
        ("inside", f"{source}/below", {}),
        ("with a slash", f"{source}/", {}),
    ]
    if (seeds / source).is_file():
        forms.append(("a hard link", "out/hard", {"out/hard": Link(source, hard=True)}))
    if base.verb == "create_pretraining_data":
        # The temporary or numbered names of a job.
        forms.append(("the manifest", "in/text.tfrecord", {"in/text.manifest.json": b"Mine, not a manifest.\n"}))
    text, value, files = random.choice(forms)
    # An ordinary folder may take a run's checkpoints beside what it holds; what it held has to stay.
    folder = (seeds / source).is_dir()
    expect: Expectation = "either" if text == "inside" or folder or target == "output_dir" else "refuse"
    if text == "with a slash" and not folder:
        expect = "either"
    names = (target, Path(source).name, Path(value).name, *_others(base))
    outputs = [] if base.verb in ("create_pretraining_data", "train_tokenizer") else [f"{source}/below", "linked/"]
    if folder:
        outputs += [f"{source}/{name}" for name in ("checkpoints", "best", "below", "tensorboard", "metrics.jsonl")]
        outputs += [f"{source}/{name}" for name in ("config.json.", "report.html", "model_config.json", "run.json")]
        outputs += [
            f"{source}/{split}_{what}" for split in ("dev", "test") for what in ("predictions", "results", "report")
        ]
        outputs += [f"{source}/{name}" for name in ("eval_results", "config.json", "vocab.txt", "spiece.model", "lock")]
    if text == "inside" and not folder:
        outputs = []
    return change(
        base,
        "output is input",
        f"--{target}={value} ({text}: {source})",
        expect,
        names,
        flags={target: value},
        files=files,
        outputs=[each for each in outputs if not (seeds / each).exists()],
        uses=[source],
    )


def foreign_output(random: Random, seeds: Path) -> Case:
    """A file of somebody else lies where something is to be written."""
    base = any_base(random, writes=True)
    target = random.choice(base.writes)
    value = base.flags[target]
    mine = b"Years of work.\n"
    stem = str(Path(value).with_suffix(""))
    if target == "output_dir" and not value.startswith("out"):
        places = [f"{value}/notes.txt", f"{value}/checkpoints/notes.txt", f"{value}/best.txt"]
    elif target == "output_dir":
        places = [f"out/{name}" for name in ("notes.txt", "config.json", "run.json", "vocab.txt", "model_config.json")]
        places += ["out/checkpoints/notes.txt", "out/best/notes.txt", "out/metrics.jsonl", "out/eval_results.json"]
        places += ["out", "out/report.html", "out/checkpoints", "out/best", "out/checkpoints/step_00000009/mine.txt"]
    elif base.verb == "create_pretraining_data":
        places = [value, f"{stem}.manifest.json", f"{stem}.partial/notes.txt", f"{stem}.partial", f"{value}/below"]
        places += [f"{stem}.held_out.tfrecord", f"{stem}.held_out.manifest.json", f"{stem}.partial/plan.json", "out"]
    elif base.verb == "train_tokenizer":
        places = [value, f"{value}/below", "out"]
    else:
        places = [value, f"{value}/notes.txt", f"{value}/config.json", f"{value}/vocab.txt", "out", f"{value}/sub/x"]
        places += [f"{value}/pytorch_model.bin", f"{value}/model.safetensors", f"{value}/state.json"]
    place = random.choice(places)
    content: Content = mine
    way = random.random()
    if way < 0.25:
        content = Link(VICTIM)
    elif way < 0.35:
        content = Special(random.choice(("pipe", "socket")))
    manifest = place.endswith("manifest.json")
    if manifest and random.random() < 0.7:
        shard = random.choice(("../victim/thesis.txt", f"{CASE}/victim/thesis.txt", "notes.txt", "../in/text.txt", "."))
        content = json.dumps({"shards": [{"name": shard, "examples": 1, "sha256": ""}]}).encode()
    names = (target, Path(place).name, Path(value).name, Path(stem).name, *_others(base))
    # A user's file beside the output is no reason to stop; one in its place is, and stays as it is.
    outputs = tuple(each for each in base.outputs if not place.startswith(each)) or _all_but(place, base)
    files = {place: content, "out/notes.txt" if value.startswith("out/") else "notes.txt": mine}
    expect: Expectation = "refuse" if place == value and target != "output_dir" else "either"
    if place == "out":
        files, expect = {place: content}, "refuse"
    text = f"a foreign {place}" + ("" if isinstance(content, bytes) else f": {content}")
    return change(base, "foreign output", text, expect, names, files=files, outputs=outputs, uses=["victim"])


def _all_but(place: str, base: Base) -> tuple[str, ...]:
    """Return prefixes of the outputs of a call that do not cover `place`."""
    (folder,) = base.outputs
    if folder != "out/":
        return tuple(f"{folder}{name}" for name in _RUN_FILES if not place.startswith(f"{folder}{name}"))
    if base.verb == "create_pretraining_data":
        endings = ("a.tfrecord", "a.manifest.json", "a.partial", "a.held_out.tfrecord", "a.held_out.manifest.json")
        return tuple(f"out/{name}" for name in endings if not place.startswith(f"out/{name}"))
    if base.verb.startswith("run_"):
        return tuple(f"out/{name}" for name in _RUN_FILES if not place.startswith(f"out/{name}"))
    # A conversion or an export writes its whole folder, and only where nothing else lies.
    own = base.flags[base.writes[0]]
    return () if place.startswith(own) or base.verb == "train_tokenizer" else (own,)


_RUN_FILES = (
    *("config.json", "model_config.json", "run.json", "vocab.txt", "spiece.model", "metrics.jsonl", "report.html"),
    *("checkpoints/step_00000001", "checkpoints/step_00000002", "checkpoints/step_00000003", "best/model"),
    *(
        "best/state",
        "tensorboard",
        "eval_results",
        "test_results",
        "dev_predictions",
        "test_predictions",
        "dev_report",
        "test_report",
        "lock",
        ".lock",
    ),
)


_OTHER_RUN = {
    "learning_rate": ("0.5", "1e-3"),
    "optimizer": ("adamw", "lamb_paper"),
    "train_batch_size": ("4", "6"),
    "seed": ("7",),
    "weight_decay": ("0.3",),
    "adam_beta1": ("0.5",),
    "clip_norm": ("9",),
    "num_train_steps": ("1",),
    "ema_decay": ("0.5",),
    "precision": ("bfloat16",),
}
_OTHER_PRETRAINING = {
    "input_file": ("in/other/*.tfrecord", "in/bare/zh.tfrecord"),
    "bert_config_file": ("in/config.json",),
    "num_warmup_steps": ("2",),
    "masked_lm_loss_weight": ("3",),
    "schedule": ("constant",),
    "init_checkpoint": ("in/shared",),
    "max_seq_length": ("16",),
    "output_dir": ("in/tuned",),
}
_OTHER_TUNING = {
    "data_dir": ("in/pairs_json",),
    "task_name": ("mirrored", "afqmc", "sentence_pair"),
    "do_lower_case": ("false",),
    "init_checkpoint": ("in/tf1",),
    "max_seq_length": ("16",),
    "classifier_dropout": ("0.5",),
    "r_drop_weight": ("2",),
    "layer_decay": ("0.5",),
    "freeze_layers": ("1",),
    "bert_config_file": ("in/config.json",),
    "warmup_proportion": ("0.9",),
    "output_dir": ("in/pretraining",),
}


def reused_folder(random: Random, seeds: Path) -> Case:
    """The output folder is of a run that was made otherwise; what changes its results is refused or named."""
    base = BASES[random.choice(("pretrain_resumed", "classify_resumed"))]
    others = {**_OTHER_RUN, **(_OTHER_PRETRAINING if base.name == "pretrain_resumed" else _OTHER_TUNING)}
    name = random.choice(list(others))
    value = random.choice(others[name])
    uses = [value.split("*")[0].rstrip("/")] if value.startswith("in/") else []
    outputs = [*base.outputs, *(f"{use}/" for use in uses if name == "output_dir")]
    flags = {name: value}
    if value == "mirrored":
        flags, uses = {**flags, "task_file": "in/tasks.toml"}, ["in/tasks.toml"]
    names = (name, "task_name", *(Path(value).name for _ in uses))
    text = f"--{name}={value} in the folder of another run"
    return change(base, "reused folder", text, "refuse or name", names, flags=flags, uses=uses, outputs=outputs)


def config_file(random: Random, seeds: Path) -> Case:
    """The file of --config holds flags of wrong types, unknown ones, or no flags at all."""
    from tests.hostile.documents import any_value, raw

    base = any_base(random)
    flags: dict[str, Any] = dict(base.flags)
    chosen = [each for each in declared(base.verb) if each.name not in (*_ELSEWHERE, *_ELSEWHERE_TOO, *_LONG_RUNS)]
    flag = random.choice([each for each in chosen if each.name not in base.writes])
    value, word = any_value(random)
    ways: Sequence[tuple[str, bytes, Expectation]] = (
        (f"{flag.name}: {word}", raw({**flags, flag.name: value}), "either"),
        (f"only {flag.name}: {word}", raw({flag.name: value}), "either"),
        ("an unknown flag", raw({**flags, "no_such": 1}), "refuse"),
        ("a list", b"[]", "refuse"),
        ("a number", b"3", "refuse"),
        ("null", b"null", "refuse"),
        ("empty", b"", "refuse"),
        ("UTF-16", raw(flags).decode().encode("utf-16"), "either"),
        ("a BOM", b"\xef\xbb\xbf" + raw(flags), "either"),
        ("nested", b"[" * 100_000, "refuse"),
        ("nested value", b'{"seed": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "refuse"),
        ("not closed", raw(flags)[:-3], "refuse"),
        ("a key twice", b'{"seed": 1, "seed": 2}', "either"),
    )
    text, content, expect = random.choice(ways)
    names = ("config", "flags.json", flag.name, *_others(base))
    given = [f"--{name}={value}" for name, value in base.flags.items() if name in base.writes or random.random() < 0.5]
    case = change(base, "config file", text, expect, names, files={"flags.json": content})
    if expect != "refuse":
        given = [f"--{name}={value}" for name, value in base.flags.items()]
    return dataclasses.replace(case, flags=(*given, "--config=flags.json"))
