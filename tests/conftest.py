"""How tests run: without deadlines of Hypothesis and the user's cache, and the files with slow tests first."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from on_jax import QUICKLY_COMPILED

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
    """Put the files with slow tests first where several processes share the files.

    In the order of their names the longest file might begin last, and all processes but one would wait for its end.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
