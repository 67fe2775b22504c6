"""The last step of the demo: a server answers once and ends, and where it does not the demo fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_predict import model as model

from examples import demo


@pytest.mark.slow
def test_the_demo_ends_with_an_answer_over_http(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    monkeypatch.setattr(demo, "SERVE", ["serve.py", f"--model=pairs={model}", "--port=0", "--nowarm_up"])
    answer = demo.answer_over_http()
    assert answer is not None
    assert answer.keys() == {"prediction", "confidence", "probabilities"}
    seen = capfd.readouterr()
    assert "all that was accepted is answered" in seen.out
    assert seen.err == ""
    monkeypatch.setattr(demo, "SERVE", ["serve.py", f"--model=pairs={tmp_path / 'absent'}", "--port=0"])
    assert demo.answer_over_http() is None
    assert "demo: step" in capfd.readouterr().err
