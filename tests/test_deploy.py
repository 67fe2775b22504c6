"""The image and the unit of systemd name files, flags and packages that there are."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

import serve

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
UNIT = (ROOT / "deploy/divan.service").read_text(encoding="utf-8")
FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"modeling", "ground"}


def imported(path: Path) -> set[str]:
    """Return the folders of this project that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names & FOLDERS


def test_the_image_holds_every_folder_that_serving_imports():
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    named = {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in named), named
    # Of commands the verb needs the flags and the start of TensorFlow; what trains stays lazy.
    needed, seen = {"serving", "commands"}, set[str]()
    while left := needed - seen - {"commands"}:
        folder = left.pop()
        seen.add(folder)
        for path in (ROOT / folder).rglob("*.py"):
            needed |= imported(path)
    assert needed <= named, needed - named


def test_the_image_listens_for_others_as_no_root_and_is_asked_whether_it_is_ready():
    flags = re.findall(r"--(\w+)=", re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[1])  # pyright: ignore
    assert set(flags) <= {field.name for field in dataclasses.fields(serve.Options)}
    assert "--host=0.0.0.0" in DOCKERFILE
    assert re.search(r"^USER divan$", DOCKERFILE, re.MULTILINE)
    assert "/readyz" in DOCKERFILE
    assert re.search(r"^STOPSIGNAL SIGTERM$", DOCKERFILE, re.MULTILINE)
    instructions = set(re.findall(r"^([A-Z]+) ", DOCKERFILE, re.MULTILINE))
    known = {
        "FROM",
        "COPY",
        "RUN",
        "ENV",
        "WORKDIR",
        "USER",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert instructions <= known


def test_the_packages_of_the_image_are_locked():
    lines = re.findall(r"^([a-z0-9_.-]+==[^ ]+) \\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    locked = {line.split("==")[0] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    names = {re.split(r"[=><\[]", each)[0].lower().replace("_", "-") for each in wanted}
    assert names <= locked
    assert {each.replace("_", "-") for each in serve.PACKAGES} <= locked


def test_the_unit_starts_with_flags_that_there_are_and_waits_for_what_was_accepted():
    # systemd names a key several times, and configparser would take the last.
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    parser.read_string(UNIT)
    service = parser["Service"]
    names = {field.name for field in dataclasses.fields(serve.Options)}
    assert set(re.findall(r"--(\w+)=", service["ExecStart"])) <= names
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) > serve.Options(model=()).grace_seconds
    assert service["NoNewPrivileges"] == "yes"
    assert service["User"] != "root"
    assert parser.sections() == ["Unit", "Service", "Install"]


@pytest.mark.parametrize("text", [DOCKERFILE, UNIT])
def test_no_key_is_written_down(text: str):
    assert not re.search(rf"^[^#\n]*{serve.KEY_VARIABLE}=\S", text, re.MULTILINE)
