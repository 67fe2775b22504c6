"""How tests run: without deadlines of Hypothesis and the user's cache, and the long files first."""

from __future__ import annotations

import collections
import gc
import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from on_jax import QUICKLY_COMPILED
from uncompiled import uncompiled

# transformers copies the code of exported folders to a cache, by default in the home folder, and asks once, at import.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf-modules-")
# TensorFlow's XLA and JAX's both read it when they are loaded.
os.environ.setdefault("XLA_FLAGS", QUICKLY_COMPILED)
# Tests make tokens anew, and leave none in the home folder.
os.environ["DIVAN_TOKEN_CACHE"] = "off"

# On a busy machine the first example of a test takes longer than any deadline that is fixed, and drawing it too.
settings.register_profile("without deadlines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("without deadlines")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files with slow tests first where several processes share the files, and then those of most tests.

    In the order of their names the longest file might begin last, and all processes but one would wait for its end.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        counts = collections.Counter(item.path for item in items)
        items.sort(key=lambda item: 0 if item.path in slow else 1 / counts[item.path])


def pytest_collection_finish() -> None:
    """Leave out what was imported when Python looks for garbage: it stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def operation_by_operation() -> Iterator[None]:
    """Run a test without compiling, which takes longer than a few steps of a tiny model."""
    with uncompiled():
        yield
