"""A table on the terminal, with which the verbs close."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, stream: TextIO | None = None
) -> None:
    """Print `rows` under `columns`; all columns but the first are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    target = stream or sys.stdout
    # Where no terminal limits the width, no cell need be broken.
    console = Console(file=target, highlight=False, markup=False, width=None if target.isatty() else 160)
    # Not as the table's own title, which is wrapped to the width of the columns.
    console.print(title)
    console.print(table)
