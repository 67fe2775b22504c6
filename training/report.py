"""report.html: the curves of a run on one page of inline SVG; needs no server, no network and no script."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ground.files import write_atomically
from ground.pages import facts_list, html_page
from ground.progress import format_value
from training.engine import is_norm_of_brick

Points = list[tuple[float, float]]

_MAX_POINTS = 300
_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 30
_NOT_VALUES = ("step", "phase", "time", "skipped")

_STYLE = """
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 18px; }
figure { margin: 0; padding: 14px 16px 8px; background: var(--card); border: 1px solid var(--grid);
  border-radius: 10px; }
figcaption { display: flex; justify-content: space-between; flex-wrap: wrap; gap: 4px 12px; font-weight: 600; }
figcaption span { font-weight: 550; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
svg text { font-size: 12.5px; fill: var(--faint); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg path { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg circle { fill: currentColor; stroke: var(--card); stroke-width: 1.5; }
"""


def write_report(path: Path, title: str, facts: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> None:
    """Write the page for the `records` of a metrics.jsonl: one panel a value, training and held-out together.

    Norms of single bricks are left to TensorBoard: they are more than all others.
    """
    series: dict[str, dict[str, Points]] = {}
    for record in records:
        for name, value in record.items():
            if name not in _NOT_VALUES and value is not None and not is_norm_of_brick(name):
                phases = series.setdefault(name, {"train": [], "eval": []})
                phases[record["phase"]].append((float(record["step"]), float(value)))
    order = sorted(series, key=_rank)
    panels = "\n".join(_panel(name, series[name]["train"], series[name]["eval"]) for name in order)
    last_step = max(
        (point[0] for phases in series.values() for points in phases.values() for point in points), default=0
    )
    body = panels or "<p>No step has been recorded yet.</p>"
    write_atomically(
        path,
        html_page(
            title,
            f"""{facts_list(facts)}
<p class="key"><b class="train">training</b>, means over the steps since the point before;
<b class="eval">held out</b>, at single steps. The horizontal axis counts steps, up to {last_step:,.0f}.</p>
<main>
{body}
</main>""",
            _STYLE,
        ),
    )


def _rank(name: str) -> tuple[int, str]:
    """The loss, its terms, the scores, then how the training itself went."""
    if name == "loss":
        return 0, name
    if name.endswith("loss"):
        return 1, name
    last = ("learning_rate", "gradient_norm", "flop_utilization")
    return (3 if name in last or name.endswith("_per_second") else 2), name


def _panel(name: str, train: Points, held_out: Points) -> str:
    train, held_out = _thinned(train), _thinned(held_out)
    points = train + held_out
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), 6)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), 5)
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(_LEFT + across * inner_width, 1), round(_TOP + (1 - up) * inner_height, 1)

    parts = []
    for y in y_ticks:
        height = at(x_ticks[0], y)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4}" text-anchor="end">{_tick_text(y, y_ticks)}</text>')
    for number, x in enumerate(x_ticks):
        anchor = "end" if number == len(x_ticks) - 1 else "middle"
        place = at(x, y_ticks[0])[0] + (_RIGHT - 2 if anchor == "end" else 0)
        parts.append(f'<text x="{place}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{_tick_text(x, x_ticks)}</text>')
    for kind, line in (("train", train), ("eval", held_out)):
        places = [at(x, y) for x, y in line]
        if len(places) > 1:
            path = "M" + " L".join(f"{x} {y}" for x, y in places)
            parts.append(f'<path class="{kind}" d="{path}"/>')
        if len(places) == 1 or (kind == "eval" and len(places) <= 40):
            parts += [f'<circle class="{kind}" cx="{x}" cy="{y}" r="4"/>' for x, y in places]
    values = "".join(
        f' <span class="{kind}">{format_value(line[-1][1])}</span>'
        for kind, line in (("train", train), ("eval", held_out))
        if line
    )
    label = html.escape(name.replace("_", " "))
    return (
        f"<figure><figcaption>{label}<span>{values}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label} by step">{"".join(parts)}</svg></figure>'
    )


def _thinned(points: Points) -> Points:
    """At most `_MAX_POINTS` points, each the mean of its neighbourhood."""
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if size > 1 else []
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return means or points


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers, evenly spaced, the first not above `low` and the last not below `high`."""
    # Numbers that differ by less than numbers have digits, as 0 and 5e-324, are one on a page.
    if high - low <= max(abs(low), abs(high)) * 1e-12 or high - low < 1e-300:
        margin = abs(low) / 2 if abs(low) > 1e-290 else 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    spacing = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
    first, last = math.floor(low / spacing + 1e-9), math.ceil(high / spacing - 1e-9)
    return [number * spacing for number in range(first, last + 1)]


def _tick_text(value: float, among: Sequence[float]) -> str:
    spacing, largest = among[1] - among[0], max(map(abs, among))
    if abs(value) < spacing * 1e-6:
        return "0"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if largest >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.6g}{unit}"
    if largest < 1e-3:
        return f"{value:.3g}"
    decimals = max(0, math.ceil(-math.log10(spacing) - 1e-9))
    text = f"{value:,.{decimals + 1}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
