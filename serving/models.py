"""The models of a server by name: loaded, warmed, and replaced when something new lies at their paths.

A path is a model, an export, or a folder of versions, whose folders have numbers for names as TF Serving has them; the
greatest is served. What is new is loaded and warmed beside the old, and then takes its place in one assignment;
requests that began with the old one end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from ground.words import one_line
from serving.served import Served

if TYPE_CHECKING:
    from serving.loading import Loaded
    from serving.metrics import Metrics

Say = Callable[[str], None]
_MOST_FILES = 2000


def open_model(path: str, threads: int = 0) -> Loaded:
    """Open an export, or whatever `serving.load` opens; raises `UsageError` or `OSError`."""
    from serving.exported import is_exported, open_export
    from serving.loading import NoVocabularyError, load

    try:
        return open_export(path, threads) if is_exported(Path(path)) else load(path)
    except NoVocabularyError as error:
        # There is no flag for it here, where each model has its own.
        raise UsageError(
            f"{error.what}: copy the vocabulary that it was trained with there, as {error.names}"
        ) from None


class Models:
    """What a server serves.

    Args:
        paths: by name.
        open_: opens what lies at a path.
        sizes: rows of the batches that a model is warmed for, ascending.
        budget_tokens: of a batch.
        say: takes a line for whoever runs the server.
        metrics: count loads.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        open_: Callable[[str], Loaded],
        *,
        sizes: Sequence[int],
        budget_tokens: int,
        say: Say = lambda line: None,
        metrics: Metrics | None = None,
    ):
        self._paths, self._open = dict(paths), open_
        self._sizes, self._budget_tokens, self._say, self._metrics = sizes, budget_tokens, say, metrics
        self._served: dict[str, Served] = {}
        self._times = dict.fromkeys(paths, 0)
        self._loaded_prints: dict[str, Any] = {}
        self.loads = 0
        """Models that are being loaded at this moment."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names, those too that are still loading."""
        return tuple(self._paths)

    @property
    def ready(self) -> bool:
        """Whether each model answers."""
        return len(self._served) == len(self._paths)

    def get(self, name: str) -> Served | None:
        """Return the model of a name, as it is now; None while it is loading. Raises `KeyError`."""
        if name not in self._paths:
            raise KeyError(name)
        return self._served.get(name)

    def load_all(self) -> None:
        """Load each model and warm it; raises `UsageError` or `OSError`, which name the first that cannot be served."""
        for name, path in self._paths.items():
            with _named(f"the model {name} at {path} cannot be served"):
                place, version = resolved(path)
                self._take(name, place, version, fingerprint(place))

    async def watch(self, seconds: float) -> None:
        """Look every so many seconds for something new, and serve it once it has stopped changing."""
        seen: dict[str, Any] = {}
        while True:
            await asyncio.sleep(seconds)
            for name in self._paths:
                try:
                    place, version, mark = await _aside(lambda name=name: self._look(name))
                except (OSError, UsageError):
                    continue  # nothing lies there at present; the old one goes on
                if mark == self._loaded_prints.get(name):
                    seen.pop(name, None)
                elif seen.get(name) != mark:
                    seen[name] = mark
                else:
                    await _aside(lambda given=(name, place, version, mark): self._renew(*given))

    def _look(self, name: str) -> tuple[str, str | None, Any]:
        place, version = resolved(self._paths[name])
        return place, version, fingerprint(place)

    def _renew(self, name: str, place: str, version: str | None, mark: Any) -> None:
        """Load what is new; where it is no model the old one stays, and it is not looked at again before it changes."""
        try:
            self._take(name, place, version, mark)
            result = "served"
        except Exception as error:  # whatever is wrong with new files, the server goes on with the old
            self._loaded_prints[name] = mark
            former = self._served[name].version
            why = one_line(str(error))[:500]
            self._say(f"{name}: what is new at {place} is not served, version {former} goes on: {why}")
            result = "refused"
        if self._metrics is not None:
            self._metrics.reloads.labels(name, result).inc()

    def _take(self, name: str, place: str, version: str | None, mark: Any) -> None:
        """Load what lies at a place, warm it, and let it take the place of the old one."""
        self.loads += 1
        try:
            self._load(name, place, version, mark)
        finally:
            self.loads -= 1

    def _load(self, name: str, place: str, version: str | None, mark: Any) -> None:
        begin = time.monotonic()
        loaded = self._open(place)
        self._times[name] += 1
        served = Served(name, version or str(self._times[name]), loaded)
        opened = time.monotonic()
        shapes = served.warm(self._sizes, self._budget_tokens)
        former = self._served.get(name)
        self._served[name], self._loaded_prints[name] = served, mark
        self._say(
            f"{name}: version {served.version}, {loaded.kind}, {loaded.form}, {loaded.precision}; opened in "
            f"{opened - begin:.1f} s, {shapes} shapes warmed in {time.monotonic() - opened:.1f} s"
        )
        if self._metrics is not None:
            if former is not None:
                self._metrics.models.remove(name, former.version, former.loaded.form, former.loaded.precision)
            self._metrics.models.labels(name, served.version, loaded.form, loaded.precision).set(1)


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Let what is wrong say of which model it is: whoever starts many has to know."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}", error.filename) from None


async def _aside(function: Callable[[], Any]) -> Any:
    """Return what a function returns in a thread of its own, which nobody waits for when the loop ends."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not found.done():
            found.set_exception(error) if error is not None else found.set_result(result)

    def run() -> None:
        result, wrong = None, None
        try:
            result = function()
        except Exception as error:
            wrong = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, wrong)

    threading.Thread(target=run, name="reload", daemon=True).start()
    return await found


def resolved(path: str) -> tuple[str, str | None]:
    """Return the path of a model, and the number of its version where the path is a folder of versions."""
    folder = Path(path)
    if not folder.is_dir():
        return path, None
    names = [each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
    numbers = [name for name in names if name.isascii() and name.isdigit()]
    if not numbers or len(numbers) < len(names):
        return path, None
    newest = max(numbers, key=int)
    return str(folder / newest), newest


def fingerprint(path: str) -> Any:
    """Return what changes when something else lies at a path: names, sizes, times and places of its files.

    Of a run folder those of its best weights count, which it keeps while the run goes on. Of an address nothing does.
    """
    place = Path(path)
    if place.is_file():
        return _print_of(place)
    if not place.is_dir():
        return None
    if (place / "best").is_dir():
        chosen = [place / "run.json", *(place / "best").iterdir()]
    else:
        chosen = [each for pattern in ("*", "*/*") for each in place.glob(pattern)]
    files = sorted(each for each in chosen if each.is_file())[:_MOST_FILES]
    return tuple((each.relative_to(place).as_posix(), *_print_of(each)) for each in files)


def _print_of(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
