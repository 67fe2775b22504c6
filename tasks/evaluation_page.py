"""`dev_report.html`: what there is to see of the answers to a split, on one page without script or network.

All that comes from a file of the user is escaped: a text that is HTML is shown, and does nothing.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from ground.files import write_atomically
from ground.pages import facts_list, html_page
from tasks.inspection import Inspection, Mark, Seen, Table, Text, shown

CURVES = "report.html"
_STYLE = """h2 { margin: 28px 0 8px; font-size: 17px; font-weight: 650; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--grid); font-size: 14px; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--grid); text-align: right;
  font-variant-numeric: tabular-nums; }
th { color: var(--faint); font-weight: 550; }
th:first-child, td:first-child { text-align: left; }
td.right { font-weight: 650; color: var(--train); }
.note { margin: 6px 0; color: var(--faint); font-size: 14px; }
article { margin: 0 0 12px; padding: 10px 14px; background: var(--card); border: 1px solid var(--grid);
  border-radius: 10px; overflow-wrap: anywhere; }
article p { margin: 4px 0; white-space: pre-wrap; }
article .name { color: var(--faint); font-size: 13px; }
mark { color: inherit; background: none; border-bottom: 2px solid var(--train); }
mark.wrong { border-bottom-color: var(--eval); }
mark sub { color: var(--faint); font-size: 11px; margin-left: 2px; }
"""


def write_page(path: Path, title: str, scores: Mapping[str, float], inspection: Inspection) -> None:
    """Write the page of one split; raises `OSError`."""
    parts = [facts_list({name: shown(value) for name, value in scores.items()})]
    if path.with_name(CURVES).is_file():
        parts.append(f'<p class="key"><a href="{CURVES}">The curves of the training</a></p>')
    parts += map(_table, inspection.tables)
    if inspection.examples:
        marks = any(text.marks for seen in inspection.examples for text in seen.texts)
        legend = ". Underlined: right in blue, missed or wrong in orange" if marks else ""
        note = f"The worst first, {html.escape(inspection.measure)}{legend}"
        parts.append(f'<h2>Most wrong examples</h2><p class="note">{note}</p>')
        parts += map(_example, inspection.examples)
    # A lone surrogate, which JSON can spell, has no place in UTF-8.
    write_atomically(path, html_page(title, "\n".join(parts), _STYLE).encode(errors="replace"))


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "\n".join(
        "<tr>"
        + "".join(_cell(cell, table.is_matrix and place == number + 1) for place, cell in enumerate(row))
        + "</tr>"
        for number, row in enumerate(table.rows)
    )
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f"<h2>{html.escape(table.title)}</h2>{note}"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    )


def _cell(text: str, is_right: bool) -> str:
    kind = ' class="right"' if is_right else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _example(seen: Seen) -> str:
    named = " · ".join(f"{html.escape(name)} <b>{html.escape(value)}</b>" for name, value in seen.facts.items())
    return f"<article><p>{named}</p>{''.join(map(_text, seen.texts))}</article>"


def _text(text: Text) -> str:
    return f'<p><span class="name">{html.escape(text.name)}</span> {marked(text.text, text.marks)}</p>'


def marked(text: str, marks: Sequence[Mark]) -> str:
    """Return the text as HTML with its marks; where several overlap, each stretch has one element for all of them."""
    kept = [mark for mark in marks if 0 <= mark.begin < mark.end]
    ends = sorted({0, len(text), *(min(place, len(text)) for mark in kept for place in (mark.begin, mark.end))})
    parts = []
    for begin, end in itertools.pairwise(ends):
        piece, over = html.escape(text[begin:end]), [mark for mark in kept if mark.begin <= begin and end <= mark.end]
        if not over:
            parts.append(piece)
            continue
        names = ", ".join(dict.fromkeys(mark.name for mark in over if min(mark.end, len(text)) == end))
        wrong = "" if all(mark.right for mark in over) else ' class="wrong"'
        label = f"<sub>{html.escape(names)}</sub>" if names else ""
        parts.append(f"<mark{wrong}>{piece}{label}</mark>")
    return "".join(parts)
