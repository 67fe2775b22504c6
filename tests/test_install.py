"""What `make install` installs: locks that add up in one environment, and one line for an EXTRA that there is not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements-runtime.lock", "requirements-cuda.lock", "requirements-tpu.lock")
PIN = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


def pins(lock: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / lock).read_text(encoding="utf-8")))


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_have_the_versions_that_the_tests_ran_with(lock: str):
    tested, here = pins("requirements.lock"), pins(lock)
    only_here = {name for name in here if name not in tested}
    assert {name: version for name, version in here.items() if name in tested and tested[name] != version} == {}
    assert all(name.startswith(("nvidia-", "jax-cuda12-")) for name in only_here), only_here
    assert bool(only_here) == ("cuda" in lock)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash_and_no_address(lock: str):
    text = (ROOT / lock).read_text(encoding="utf-8")
    for part in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
        assert not part or ("--hash=sha256:" in part and "==" in part), part
    assert "://" not in text


def test_one_cuda_serves_both_backends():
    majors = {match[1] for name in pins(LOCKS[1]) if (match := re.search(r"cu(?:da)?(\d\d)\b", name))}
    assert majors == {"12"}


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize(
    ("extra", "lock"),
    [
        ("", "requirements-runtime.lock"),
        ("cuda", "requirements-cuda.lock"),
        ("tpu", "requirements-tpu.lock"),
        ("test", "requirements.lock"),
    ],
)
def test_make_install_takes_the_lock_of_its_extra(tmp_path: Path, extra: str, lock: str):
    command = ["make", "--dry-run", "install", f"EXTRA={extra}", f"VENV={tmp_path}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"--require-hashes --requirement {lock} " in made.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_an_unknown_extra_is_one_line():
    made = subprocess.run(["make", "install", "EXTRA=gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 2
    assert re.fullmatch(r"Makefile:\d+: \*\*\* EXTRA=gpu: expected cuda, tpu, test, or nothing.*\n", made.stderr)
