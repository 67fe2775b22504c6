"""Tests that hold on both backends, once more on JAX: all of them in one process, which takes seconds to begin.

Their own files run them on TensorFlow. What compares the two backends starts a process of its own, in its own file.
"""

from __future__ import annotations

import re
import subprocess
import sys

import keras
import pytest
from on_jax import ROOT, environment_on_jax

FILES = {
    "tests/modeling/test_differentiation.py": "",
    "tests/optimization/test_child_tuning.py": "the_same_on_every_backend",
    "tests/tasks/test_fisher.py": "",
    "tests/tasks/test_packing.py": "bert_offset",
    "tests/tasks/test_prompt_tasks.py": "",
    "tests/tasks/test_regularization.py": "known_answer_of_the_released or masks_of_the_passes",
    "tests/test_technique_pairs.py": "at_once and child_F",
}
"""A file, and which of its tests are chosen, in the words of pytest's -k; all of them by default."""


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() == "jax", reason="this is that process")
def test_all_of_this_holds_on_jax():
    words = [f"(not {file.split('/')[-1].removesuffix('.py')} or {chosen})" for file, chosen in FILES.items() if chosen]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "-k", " and ".join(words), *FILES]
    done = subprocess.run(command, cwd=ROOT, env=environment_on_jax(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.findall(r"^PASSED (\S+?)::", done.stdout, re.MULTILINE)
    assert set(passed) == FILES.keys()
    assert len(passed) >= 25
    assert "skipped" not in done.stdout.splitlines()[-1]
