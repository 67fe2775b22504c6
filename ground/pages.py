"""A page of HTML that stands alone: no server, no network, no script; light or dark as its reader has it."""

from __future__ import annotations

import html
from collections.abc import Mapping

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1c2330; --faint: #667085; --grid: #e4e7ec;
  --train: #2563c9; --eval: #c2570c; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2029; --ink: #e8ebf0; --faint: #98a2b3;
  --grid: #2f3744; --train: #74a9ff; --eval: #ffa45c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 32px 24px 48px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", sans-serif; }
h1 { margin: 0 0 16px; font-size: 22px; font-weight: 650; }
dl { display: flex; flex-wrap: wrap; gap: 12px 36px; margin: 0 0 20px; }
dt { color: var(--faint); font-size: 13px; }
dd { margin: 0; font-weight: 550; }
.key { margin: 0 0 16px; color: var(--faint); font-size: 14px; }
.key b { font-weight: 650; }
.train { color: var(--train); } .eval { color: var(--eval); }
"""


def html_page(title: str, body: str, style: str = "") -> str:
    """Return a page; `title` is text, `body` and `style` are HTML and CSS."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
</body>
</html>
"""


def facts_list(facts: Mapping[str, str]) -> str:
    """Return names and values, both text, as a list."""
    entries = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{entries}</dl>"
