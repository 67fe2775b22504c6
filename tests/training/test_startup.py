import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.startup import _stderr_kept_back


def test_tensorflow_starts_without_a_word():
    code = (
        "from training.startup import import_tensorflow as start; start(); import keras; print(keras.backend.backend())"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}
    started = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment, check=True
    )
    assert (started.stdout, started.stderr) == ("tensorflow\n", "")


def test_what_was_kept_back_is_shown_when_it_fails(capfd):
    def failing():
        with _stderr_kept_back():
            os.write(2, b"no CUDA 13\n")
            raise ImportError

    with pytest.raises(ImportError):
        failing()
    assert capfd.readouterr().err == "no CUDA 13\n"
