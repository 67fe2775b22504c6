"""Rate and time left of a long job: one live line on a terminal, a plain line now and then elsewhere.

rich is imported only when a terminal is there to draw on.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.live import Live

_LIVE_INTERVAL_SECONDS = 0.2
_WINDOW_SECONDS = 30.0
# After a pause for a checkpoint one step of half a minute would be all there is, and the time left a day.
_WINDOW_UPDATES = 32


def format_duration(seconds: float) -> str:
    """Return `seconds` as `59s`, `12m03s`, `5h04m` or `3d07h`."""
    whole = int(seconds + 0.5)
    for unit, per, finer, finer_seconds in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= per:
            return f"{whole // per}{unit}{whole % per // finer_seconds:02d}{finer}"
    return f"{whole}s"


def format_value(value: float | str) -> str:
    """Return counts as they are, other numbers with four significant digits, large ones with thousands separators."""
    if isinstance(value, str):
        return value
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_flops(flops: float) -> str:
    """Return `flops` with three digits and its prefix: 61.2T."""
    for limit, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if flops >= limit:
            return f"{flops / limit:.3g}{prefix}"
    return f"{flops:.3g}"


class Progress:
    """Shows the progress of a job. Use it as a context manager, or call `close`.

    Args:
        total: number of units in the job; None when it is not known, then there is no time left either.
        unit: plural name of the things counted.
        description: name of the job; opens the line.
        done: where a resumed job starts; the rate counts from there.
        stream: where to write; a terminal gets one live line, anything else a plain line now and then.
        interval_seconds: least time between two plain lines.
        clock: returns seconds.
    """

    def __init__(
        self,
        total: float | None,
        unit: str = "examples",
        description: str = "",
        *,
        done: float = 0,
        stream: TextIO | None = None,
        interval_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._unit, self._description = total, unit, description
        self._stream = sys.stderr if stream is None else stream
        self._interval_seconds, self._clock = interval_seconds, clock
        self._history: deque[tuple[float, float]] = deque([(clock(), done)])
        self._fields: Mapping[str, float | str] = {}
        self._shown_at = self._started = self._history[0][0]
        self._shown_line = ""
        self._live: Live | None = None
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), auto_refresh=False)
            self._live.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def rate(self) -> float:
        """Units a second over the last half minute and the last 32 updates; 0 before the first is done."""
        (then, before), (now, after) = self._history[0], self._history[-1]
        return max(0.0, after - before) / (now - then) if now > then else 0.0

    def update(self, done: float, fields: Mapping[str, float | str] = {}) -> None:
        """Set the number of finished units to `done`; `fields` follow on the line."""
        now = self._clock()
        self._history.append((now, done))
        while len(self._history) > _WINDOW_UPDATES + 1 and self._history[1][0] <= now - _WINDOW_SECONDS:
            self._history.popleft()
        self._fields = fields
        if now - self._shown_at >= (_LIVE_INTERVAL_SECONDS if self._live else self._interval_seconds):
            self._show(now)

    def print(self, line: str) -> None:
        """Write a line that stays, above the live one."""
        if self._live:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Show the final state and let go of the terminal."""
        self._show(self._clock())
        if self._live:
            self._live.stop()

    def line(self) -> str:
        """Return the current line without the bar."""
        now, done = self._history[-1]
        parts = [self._description] if self._description else []
        if self._total is None:
            parts.append(f"{done:,.0f} {self._unit}")
        else:
            share = done / self._total if self._total else 1.0
            parts.append(f"{done:,.0f}/{self._total:,.0f} {self._unit} ({share:.0%})")
        # Less than one unit, such as a file of some bytes, has no rate worth a word.
        if self.rate > 0 and done >= 1:
            slow = self.rate < 1
            parts.append(f"{1 / self.rate:.1f} s each" if slow else f"{format_value(round(self.rate, 1))}/s")
            if self._total is not None and done < self._total:
                parts.append(f"ETA {format_duration((self._total - done) / self.rate)}")
        if self._total is None or done >= self._total:
            parts.append(f"in {format_duration(now - self._started)}")
        parts += [f"{name} {format_value(value)}" for name, value in self._fields.items()]
        return "  ".join(parts)

    def _show(self, now: float) -> None:
        self._shown_at = now
        line = self.line()
        if self._live:
            from rich.progress_bar import ProgressBar
            from rich.table import Table
            from rich.text import Text

            grid = Table.grid(padding=(0, 1))
            bar = ProgressBar(total=self._total or 1, completed=self._history[-1][1], width=20)
            grid.add_row(*([bar] if self._total is not None else []), Text(line))
            self._live.update(grid, refresh=True)
        elif line != self._shown_line:
            self._shown_line = line
            print(line, file=self._stream, flush=True)
