"""Run a verb and kill it once it has saved a checkpoint, before it saves anything else.

python -m tests.identity.crash CHECKOUT VERB STEP '{"FLAG": VALUE}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from .measure import call, use_code


def kill_after(step: int) -> None:
    """Kill this process when it makes or renames the first folder after the checkpoint of `step` got its name."""
    saved = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal saved
        if event in ("os.rename", "os.mkdir"):
            if saved:
                os.kill(os.getpid(), signal.SIGKILL)
            saved = event == "os.rename" and Path(arguments[1]).name == f"step_{step:08d}"

    sys.addaudithook(hook)


if __name__ == "__main__":
    checkout, verb, step, flags = sys.argv[1:]
    use_code(Path(checkout))
    kill_after(int(step))
    call(verb, json.loads(flags))
