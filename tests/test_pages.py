"""Every command of README.md and docs/ runs, in a small world: the same names with tiny shapes and few documents.

The README's commands train, tune and convert for real. On the other pages `--dry_run` stands for training, but for the
runs that others go on from (`FOR_REAL`): those train uncompiled. What names a TPU or other hosts is parsed as it stands
and runs without them, on JAX. A plan for a slice is made by accounting;
`tests/test_plan_training.py` compiles one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
from language_files import write_xnli
from on_jax import environment_on_jax
from test_ernie_m_command import make_model
from uncompiled import uncompiled

from commands.flags import parse, run
from conversion.readers import read_checkpoint
from conversion.writers import write_tf1
from modeling import load_config
from training.planning import parse_topology

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))
TRAINING = ("run_pretraining.py", "run_classifier.py", "run_generation.py")
ELSEWHERE = ("use_tpu", "coordinator_address", "num_processes", "process_id", "model_parallel")
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FOR_REAL = (
    *(
        "my_lcqmc_model",
        "my_questions",
        "my_teacher",
        "my_plug_encoder",
        "my_veco",
        "my_ernie_m",
        "my_few_asked",
        "my_pruned",
    ),
)
"""Folders of runs that other parts of the pages read."""
FEWER = {
    "create_pretraining_data.py": ["--dupe_factor=1", "--num_workers=1"],
    "run_pretraining.py": [
        "--train_batch_size=4",
        "--num_train_steps=2",
        "--num_warmup_steps=1",
        "--eval_batch_size=4",
    ],
    "run_classifier.py": ["--train_batch_size=8", "--num_train_epochs=1"],
    "run_generation.py": ["--train_batch_size=16", "--num_train_epochs=1", "--num_beams=2"],
    "train_tokenizer.py": ["--nocommon_characters"],
}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Return the commands of a page as words, in their order."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def is_of_jax(words: Sequence[str]) -> bool:
    return any("--backend=jax" in word or "use_tpu" in word for word in words)


def is_dry(words: Sequence[str]) -> bool:
    return not any(name in str(words) for name in FOR_REAL)


def is_short(words: Sequence[str]) -> bool:
    """Return whether compiling would take longer than the few steps; a text has many, and exports are compiled."""
    short = ("run_pretraining.py", "run_classifier.py", "run_generation.py", "predict.py", "augment_examples.py")
    return words[1] in short and "--do_export" not in words


def inner(words: list[str]) -> list[str]:
    """Return the command that a gcloud line gives to the hosts, without what goes before it."""
    if words[0] != "gcloud":
        return words
    given = shlex.split(next(word for word in words if word.startswith("--command=")).removeprefix("--command="))
    return ["python3", *given[next(place for place, word in enumerate(given) if word.endswith(".py")) :]]


def call(words: list[str], *, dry: bool) -> int:
    """Run one command of a page in the present folder and return its exit code."""
    words = inner(words)
    if words[0] == "make":
        made = subprocess.run(
            ["make", "--dry-run", *words[1:], "VENV=absent"], cwd=ROOT, capture_output=True, check=False
        )
        return made.returncode
    if words[0] == "bash":
        script = (ROOT / words[1]).read_text(encoding="utf-8").replace("\\\n", " ")
        given = re.search(r"create_pretraining_data\.py (.*)", script)
        assert given
        words = ["python3", "create_pretraining_data.py", *shlex.split(given[1].replace('"$@"', ""))]
    assert words[0] == "python3", words
    if words[1] == "-m":
        made = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, check=False)
        return made.returncode
    module = importlib.import_module(words[1].removesuffix(".py"))
    flags = module.as_flags(words[2:]) if hasattr(module, "as_flags") else words[2:]
    if words[1] in TRAINING:
        parse(module.Options, flags)
        flags = [flag for flag in flags if not re.match(rf"--({'|'.join(ELSEWHERE)})=", flag)]
        flags = [flag.replace("/shared/records/*", "./data/tf*").replace("/shared/", "my_shared_") for flag in flags]
    slices = [flag.removeprefix("--topology=") for flag in flags if flag.startswith("--topology=")]
    for name in slices:
        flags = [flag for flag in flags if not flag.startswith("--model_parallel=")]
        flags = [*flags, "--topology=", "--device=l4", f"--num_devices={math.prod(parse_topology(name)[1])}"]
    if any(flag.startswith("--eval_fraction") for flag in flags):
        # Of a few documents more are held out, so that there are two of a file.
        flags = [*flags, "--eval_fraction=0.4"]
    fewer = FEWER.get(words[1], [])
    if any("per_device_train" in flag for flag in flags):
        fewer = [flag for flag in fewer if "train_batch_size" not in flag]
    flags = [*flags, *fewer, *(["--dry_run"] if dry and words[1] in TRAINING else [])]
    # plan_training.py sets KERAS_BACKEND for its process, which is also that of the commands to come.
    with pytest.raises(SystemExit) as stopped, mock.patch.dict(os.environ):
        run(module.main, module.Options, flags)
    return int(stopped.value.code or 0)


def make_small_world(folder: Path) -> None:
    """Write what the commands of the pages read, under the names that they give."""
    (folder / "albert_config").mkdir()
    shutil.copy(ROOT / "albert_config/vocab.txt", folder / "albert_config")
    for path in (ROOT / "albert_config").glob("*.json"):
        config = load_config(path)
        if config.ffn_groups == 1 and config.num_hidden_groups == 1:
            narrow = 8 if config.embedding_size != config.hidden_size else TINY["hidden_size"]
            config = dataclasses.replace(config, **TINY, embedding_size=narrow)
        (folder / "albert_config" / path.name).write_text(config.to_json())
    for language in ("zh", "en"):
        (folder / "data/samples" / language).mkdir(parents=True)
        for name in ("nature", "history"):
            text = "\n\n".join(
                (ROOT / f"data/samples/{language}/{name}.txt")
                .read_text("utf-8")
                .split("\n\n")[: {"zh": 12}.get(language)]
            )
            (folder / f"data/samples/{language}/{name}.txt").write_text(text, encoding="utf-8")
    (folder / "data/samples/pairs").mkdir()
    for split, count in (("train", 24), ("dev", 9), ("test", 7)):
        lines = (ROOT / f"data/samples/pairs/{split}.txt").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"data/samples/pairs/{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("reviews", "few_reviews", "entities", "answers", "choices", "parallel"):
        shutil.copytree(ROOT / "data/samples" / name, folder / "data/samples" / name)
    make_configs_and_pairs_of_a_reader(folder)
    make_model(folder / "ernie-m-base", positions=300)
    write_xnli(folder / "xnli")
    (folder / "data/samples/questions").mkdir()
    for split in ("train", "dev", "test"):
        lines = (ROOT / f"data/samples/questions/{split}.tsv").read_text(encoding="utf-8").splitlines()[:9]
        (folder / f"data/samples/questions/{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_configs_and_pairs_of_a_reader(folder: Path) -> None:
    """Write what docs/multilingual.md tells its reader to make of files that are there."""
    config = dataclasses.replace(load_config(folder / "albert_config/veco_tiny.json"), vocab_size=2500)
    plugged_out = dataclasses.replace(config, cross_attention=False)
    translator = dataclasses.replace(plugged_out, num_decoder_layers=2)
    ernie_m = dataclasses.replace(load_config(folder / "albert_config/ernie_m_tiny.json"), vocab_size=2500)
    configs = {"my_veco": config, "my_plugged_out": plugged_out, "my_translator": translator, "my_ernie_m": ernie_m}
    for name, own in configs.items():
        (folder / f"{name}.json").write_text(own.to_json())
    (folder / "my_translation").mkdir()
    for side, language in (("source", "zh"), ("target", "en")):
        lines = (folder / f"data/samples/parallel/train.{language}").read_text(encoding="utf-8").splitlines()
        for part, some in (("train", lines[:40]), ("dev", lines[40:50])):
            (folder / f"my_translation/{part}.{side}").write_text("\n".join(some) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the commands of the README have run; every other page goes on from there."""
    folder = tmp_path_factory.mktemp("journey")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_small_world(folder)
        for words in commands("README.md"):
            assert call(words, dry=False) == 0, words
        checkpoint = read_checkpoint("my_new_model_path")
        assert checkpoint.config
        write_tf1(folder / "my_tf1_checkpoint", checkpoint.config, checkpoint.tensors)
    return folder


def test_the_readme_leads_from_text_to_a_pytorch_model(journey: Path):
    for name in ("eval_results.json", "best"):
        assert (journey / "my_new_model_path" / name).exists()
    assert (journey / "my_lcqmc_model/test_predictions.tsv").exists()
    assert max(json.loads((journey / "my_pytorch_model/parity.json").read_text()).values()) < 1e-4


@pytest.mark.parametrize("page", DOCS)
def test_the_commands_of_a_page_run(page: str, journey: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(journey)
    for words in commands(page):
        if not is_of_jax(words):
            with uncompiled() if is_short(words) else contextlib.nullcontext():
                assert call(words, dry=is_dry(words)) == 0, words
    if snippets := blocks(page, "python"):
        exec("\n".join(snippets), {})


def test_the_commands_for_jax_run(journey: Path):
    given = [words for page in DOCS for words in commands(page) if is_of_jax(words)]
    assert len(given) >= 4
    script = f"import test_pages; print([test_pages.call(words, dry=test_pages.is_dry(words)) for words in {given!r}])"
    environment = environment_on_jax(ROOT, ROOT / "tests")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=journey, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == [str([0] * len(given))], done.stdout + done.stderr


def test_a_page_with_a_wrong_command_is_found(journey: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(journey)
    assert call(["python3", "inspect_records.py", "stats", "data/absent*.tfrecord"], dry=True) == 2
    assert call(["make", "absent"], dry=True) != 0
