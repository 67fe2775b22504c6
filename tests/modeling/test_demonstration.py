import subprocess
import sys
from pathlib import Path

import pytest

import test_changes

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_the_three_changes_are_shown_and_hold():
    result = subprocess.run(
        [sys.executable, "test_changes.py"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for number in ("30,720,000", "3,971,072", "125,976,576", "10,498,048", "All numbers hold."):
        assert number in result.stdout


def test_a_number_that_does_not_hold_stops_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(test_changes, "EMBEDDING", 64)
    with pytest.raises(SystemExit, match="FAILED: the factors have V x E"):
        test_changes.factorised_embedding()
    assert "3,971,072" not in capsys.readouterr().out
