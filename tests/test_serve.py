"""serve.py as a process: flags, one line for each mistake, SIGTERM under load loses nothing that was accepted."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from absl.app import UsageError
from test_predict import model as model

import serve
from serve import Options, key_of, main, named_paths

ROOT = Path(__file__).resolve().parent.parent


def test_models_have_names():
    assert named_paths(("a=x/y", "b=c=d")) == {"a": "x/y", "b": "c=d"}
    for given, message in (
        (("x/y",), "expected NAME=PATH"),
        (("a/b=c",), "expected NAME=PATH"),
        (("=c",), "expected NAME=PATH"),
        (("a=",), "expected NAME=PATH"),
        (("a=b", "a=c"), "names a twice, b and c"),
        ((), "--model is empty"),
    ):
        with pytest.raises(UsageError, match=message):
            named_paths(given)


def test_a_key_is_one_line_of_a_file_or_a_variable(tmp_path: Path):
    (tmp_path / "key").write_text("secret-key-1\n")
    assert key_of(None, None) is None
    assert key_of(None, "") is None
    assert key_of(str(tmp_path / "key"), None) == "secret-key-1"
    assert key_of(None, "secret-key-2") == "secret-key-2"
    with pytest.raises(UsageError, match="both give a key"):
        key_of(str(tmp_path / "key"), "secret-key-2")
    for wrong in ("short", "two words", "línea-secreta", "secret\nkey-two", "a" * 4097):
        (tmp_path / "key").write_text(wrong, encoding="utf-8")
        with pytest.raises(UsageError, match=r"--api_key_file=.* holds no key") as error:
            key_of(str(tmp_path / "key"), None)
        assert wrong not in str(error.value)
    with pytest.raises(OSError, match="absent"):
        key_of(str(tmp_path / "absent"), None)


def test_what_cannot_be_served_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    with pytest.raises(UsageError, match="--max_texts=9 is more than --queue_texts=3"):
        main(Options(model=("a=b",), max_texts=9, queue_texts=3))
    with pytest.raises(UsageError, match=r"--threads=2 does nothing without an export of ONNX"):
        main(Options(model=("a=b",), threads=2))
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else found(name))
    with pytest.raises(UsageError, match=r"needs the package uvicorn: pip install fastapi uvicorn prometheus-client"):
        main(Options(model=("a=b",)))


@contextlib.contextmanager
def served(*flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a server's process once it is ready, and its port; NumPy computes, which starts in a second."""
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}
    environment.pop(serve.KEY_VARIABLE, None)
    process = subprocess.Popen(
        [sys.executable, "serve.py", "--port=0", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+), process (\d+)", first)
        assert found, first + process.stderr.read()
        assert int(found[2]) == process.pid
        while (line := process.stderr.readline()) and not line.endswith(": ready\n"):
            pass
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def asked(port: int, pair: list[str]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v1/models/pairs:predict", json.dumps({"instances": [pair]}))
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing_accepted_and_exits_0(model: Path):
    import serving

    loaded = serving.load(model)
    pairs = [[" ".join("abcdefghij"[: n % 7 + 1]), " ".join("jihgfedcba"[: n % 5 + 1])] for n in range(35)]
    wanted = [loaded.predict(tuple(pair)) for pair in pairs]
    answered, refused, wrong = list[int](), list[str](), list[Any]()
    with served(f"--model=pairs={model}", "--nowarm_up") as (process, port):
        stopped = threading.Event()

        def ask_on(first: int) -> None:
            number = first
            while True:
                try:
                    status, content = asked(port, pairs[number % 35])
                except (OSError, http.client.HTTPException) as error:
                    # Only whoever comes after the signal is not even heard.
                    (refused if stopped.is_set() else wrong).append(repr(error))
                    return
                if status == 503 and content["error"]["code"] == "stopping":
                    refused.append("stopping")
                    return
                prediction = content.get("predictions", [{}])[0]
                answer = wanted[number % 35]
                if prediction.get("probabilities") != pytest.approx(answer["probabilities"], abs=2e-6):
                    wrong.append((status, content))
                answered.append(number)
                number += 1

        threads = [threading.Thread(target=ask_on, args=(7 * first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        while len(answered) < 40 and not wrong:
            threads[0].join(0.01)
        stopped.set()
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert process.wait(60) == 0
        assert process.stderr is not None
        rest = process.stderr.read()
    assert wrong == []
    assert len(refused) == 4
    assert not any("Incomplete" in each or "BadStatus" in each for each in refused)
    assert rest.splitlines()[-1] == "serve.py: stopped: all that was accepted is answered"
    assert "Traceback" not in rest


@pytest.mark.slow
def test_a_model_that_is_none_and_a_port_that_is_taken_are_one_line(model: Path, tmp_path: Path):
    def ended(*flags: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            [sys.executable, "serve.py", *flags],
            cwd=ROOT,
            env={**os.environ, "KERAS_BACKEND": "numpy"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr.splitlines()

    code, lines = ended(f"--model=pairs={model},a={tmp_path / 'absent'}", "--port=0", "--nowarm_up")
    assert code == 2
    assert lines[-1].startswith(f"serve.py: the model a at {tmp_path / 'absent'} cannot be served: ")
    assert "does not exist" in lines[-1]
    assert len(lines) == 3  # where it listens, the first model, what is wrong with the second
    with served(f"--model=pairs={model}", "--nowarm_up") as (_, port):
        code, lines = ended(f"--model=pairs={model}", f"--port={port}")
    assert (code, len(lines)) == (1, 1)
    assert re.search(rf"in use: 127\.0\.0\.1:{port}; give another --port", lines[0])
