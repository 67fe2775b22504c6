"""Serve trained models over HTTP: one process, batches of many requests, limits; docs/serving.md has the routes."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from absl.app import UsageError

from commands.flags import Group, flag, run
from commands.needs import Need, check_needs

if TYPE_CHECKING:
    from serving.limits import Limits

VERB = "serve.py"
KEY_VARIABLE = "DIVAN_API_KEY"
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LEAST_KEY, _MOST_KEY = 8, 4096


@dataclass(frozen=True, kw_only=True)
class Options:
    """Serve trained models over HTTP."""

    _data: ClassVar = Group.DATA
    model: tuple[str, ...] = flag(
        help="NAME=PATH of each model: what predict.py takes, an export of export_model.py, also its "
        "model_int8.onnx, or a folder of them with numbers for names, of which the greatest is served"
    )
    warm_up: bool = flag(True, help="compute every shape of a batch once before the server is ready")
    reload_seconds: float = flag(5.0, help="between two looks for something new at the paths; 0: never", unit="seconds")
    _listening: ClassVar = Group.SERVING
    host: str = flag("127.0.0.1", help="address to listen on; others than this machine's are open to its network")
    port: int = flag(8000, help="to listen on; 0: any that is free", essential=True)
    allowed_hosts: tuple[str, ...] = flag(
        (), help="names that a request's Host may have besides this machine's, as a proxy in front sends it"
    )
    api_key_file: str | None = flag(
        None,
        help=f"file of the one line that every request has to bring as a bearer key; or give it in {KEY_VARIABLE}",
    )
    max_body_bytes: int = flag(1_000_000, help="of a request", unit="bytes")
    max_texts: int = flag(32, help="instances of a request", unit="instances")
    max_text_characters: int = flag(20_000, help="of each text", unit="characters")
    queue_texts: int = flag(256, help="instances that are accepted and not yet answered; more are refused, 503")
    deadline_seconds: float = flag(20.0, help="until an answer is there; later it is refused, 504", unit="seconds")
    grace_seconds: float = flag(25.0, help="that accepted requests have after SIGTERM", unit="seconds")
    _computing: ClassVar = Group.DEVICES
    batch_tokens: int = flag(4096, help="of a batch, padding counted; on a GPU four times as many", unit="tokens")
    batch_rows: int = flag(32, help="texts side by side", unit="rows")
    threads: int = flag(0, help="that ONNX Runtime computes with; 0: as many as cores", unit="threads")


NEEDS = (Need(("threads",), "an export of ONNX", lambda o: any(map(_is_onnx, o.model))),)


def _is_onnx(model: str) -> bool:
    """Return whether NAME=PATH is an export of ONNX, or of several versions."""
    path = Path(model.partition("=")[2] or "absent")
    return path.suffix == ".onnx" or any(True for name in ("*.onnx", "*/*.onnx") for _ in path.glob(name))


def main(options: Options) -> None:
    """Listen, load and warm the models, answer until SIGTERM."""
    paths = named_paths(options.model)
    check_needs(options, NEEDS)
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"serve.py needs the package {package}: pip install fastapi uvicorn prometheus-client")
    key = key_of(options.api_key_file, os.environ.get(KEY_VARIABLE))
    from serving.limits import Limits

    limits = Limits(
        body_bytes=options.max_body_bytes,
        texts=options.max_texts,
        text_characters=options.max_text_characters,
        queue_texts=options.queue_texts,
        deadline_seconds=options.deadline_seconds,
        grace_seconds=options.grace_seconds,
        batch_tokens=options.batch_tokens,
        batch_rows=options.batch_rows,
    )
    if limits.texts > limits.queue_texts:
        raise UsageError(
            f"--max_texts={limits.texts} is more than --queue_texts={limits.queue_texts}: such a request would "
            "never come in; lower the first, or raise the second"
        )
    serve(options, paths, limits, key)


def serve(options: Options, paths: dict[str, str], limits: Limits, key: str | None) -> None:
    """Serve the models of the paths until a signal."""
    from serving.metrics import Metrics
    from serving.models import Models, open_model
    from serving.server import LOOPBACK_NAMES, Serving, is_loopback, listen

    with listen(options.host, options.port) as listening:
        host, port = listening.getsockname()[:2]
        say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}, process {os.getpid()}")
        local = is_loopback(options.host)
        if not local and key is None:
            say(f"whoever reaches {options.host} may ask: there is no key ({KEY_VARIABLE} or --api_key_file)")
        if os.environ.get("KERAS_BACKEND") == "tensorflow" and not all(map(_is_onnx, options.model)):
            from commands.startup import import_tensorflow

            import_tensorflow()
        metrics = Metrics()
        sizes = [1 << n for n in range(limits.batch_rows.bit_length())] if options.warm_up else []
        models = Models(
            paths,
            lambda path: open_model(path, options.threads),
            sizes=[size for size in sizes if size <= limits.batch_rows],
            budget_tokens=limits.batch_tokens,
            say=say,
            metrics=metrics,
        )
        hosts = (*LOOPBACK_NAMES, *options.allowed_hosts) if local or options.allowed_hosts else ()
        serving = Serving(models, limits, metrics, key=key, hosts=hosts, reload_seconds=options.reload_seconds, say=say)
        serving.run(listening)
        say("stopped: all that was accepted is answered")
        if models.loads:
            # A thread that still compiles for nobody would break the end of the interpreter.
            sys.stderr.flush()
            os._exit(0)


def say(line: str) -> None:
    """Tell whoever runs the server a line; requests are not told, nor any of their texts."""
    print(f"{VERB}: {line}", file=sys.stderr, flush=True)


def named_paths(given: tuple[str, ...]) -> dict[str, str]:
    """Return the path of each model by its name; raises `UsageError`."""
    found: dict[str, str] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not equals or not path or not _NAME.fullmatch(name):
            raise UsageError(
                f"--model={each}: expected NAME=PATH, the name of at most 64 letters, digits, - and _, as "
                f"--model=lcqmc=my_lcqmc_model"
            )
        if name in found:
            raise UsageError(f"--model names {name} twice, {found[name]} and {path}: give each model its own name")
        found[name] = path
    if not found:
        raise UsageError("--model is empty: give NAME=PATH of each model, as --model=lcqmc=my_lcqmc_model")
    return found


def key_of(path: str | None, variable: str | None) -> str | None:
    """Return the key that requests have to bring; raises `UsageError` for one that is none, `OSError`."""
    if path is None and not variable:
        return None
    if path is not None and variable:
        raise UsageError(f"--api_key_file and {KEY_VARIABLE} both give a key: leave one of them out")
    where = KEY_VARIABLE if path is None else f"--api_key_file={path}"
    if path is None:
        key = variable or ""
    else:
        from ground.files import check_plain

        with check_plain(Path(path)).open("rb") as stream:
            key = stream.read(_MOST_KEY + 1).decode("ascii", "replace").strip()
    # A key that is cut would be another one.
    if not _LEAST_KEY <= len(key) <= _MOST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"{where} holds no key: expected {_LEAST_KEY} to {_MOST_KEY:,} letters, digits and signs on one line"
        )
    return key


if __name__ == "__main__":
    run(main, Options)
