"""Which candidate goes into which blank when each is used once: the exact assignment (Kuhn 1955, Munkres 1957)."""

from __future__ import annotations

import numpy as np


def best_assignment(scores: np.ndarray) -> np.ndarray:
    """Return for every row another column, int64 [R], such that the sum of their scores is largest; R <= C.

    Rows join one by one. Each takes the cheapest path of exchanges to a free column (Dijkstra over reduced costs), as
    in Jonker and Volgenant (1987).

    Args:
        scores: finite, float64 [R, C].
    """
    costs = -np.asarray(scores, np.float64)
    rows, columns = costs.shape
    if rows > columns:
        raise ValueError(f"{rows} rows cannot have {columns} columns for themselves")
    of_row, of_column = np.full(rows, -1), np.full(columns, -1)
    row_prices, column_prices = np.zeros(rows), np.zeros(columns)
    for new in range(rows):
        distance, came_from = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, bool)
        row, travelled, path = new, 0.0, [new]
        while True:
            reached = travelled + costs[row] - row_prices[row] - column_prices
            closer = ~done & (reached < distance)
            distance[closer], came_from[closer] = reached[closer], row
            column = int(np.where(done, np.inf, distance).argmin())
            travelled, done[column] = distance[column], True
            if of_column[column] < 0:
                break
            row = int(of_column[column])
            path.append(row)
        # Prices move so that the path costs nothing and no other pair costs less than nothing.
        for visited in path:
            at = 0.0 if visited == new else distance[of_row[visited]]
            row_prices[visited] += travelled - at
        column_prices[done] -= travelled - distance[done]
        while True:
            row = int(came_from[column])
            of_column[column], (of_row[row], column) = row, (column, of_row[row])
            if row == new:
                break
    return of_row
