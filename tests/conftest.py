"""The order in which files of tests are handed to several processes: those with slow tests first."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put files with slow tests first where several processes share the files.

    The processes would otherwise end apart: one of them waits while the other begins the longest file last.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
