"""Positions of the items of a scene: each in a cell of its own, on a grid of 4 x 4 cells.

Exactly one pair of items shares a row or a column of the grid, the related pair. Its cells are neighbors, in a column
(above) or in a row (beside), and its items lie at the edge between them; all other items lie in the middle of their
cells. So the stated relation is clearly visible, and no other relation is.
"""

from collections.abc import Sequence
from random import Random

from dataset.shapes.drawing import IMAGE_SIDE
from dataset.shapes.scene import Item, Place, rand_below, shuffled

GRID = 4
CELL = IMAGE_SIDE // GRID  # pixels
RADII = {'small': 10, 'large': 13}


def place(rng: Random, items: Sequence[Item], relation: str) -> tuple[Place, ...]:
    """Places for two to four items, the first two in their relation."""
    line, start = rand_below(rng, GRID), rand_below(rng, GRID - 1)
    pair_columns, pair_rows = ([line], [start, start + 1]) if relation == 'above' else ([start, start + 1], [line])
    free_columns, free_rows = (
        shuffled(rng, [i for i in range(GRID) if i not in taken]) for taken in (pair_columns, pair_rows)
    )
    pair = [(column, row) for row in pair_rows for column in pair_columns]
    edges = [(0, 1), (0, -1)] if relation == 'above' else [(1, 0), (-1, 0)]  # across, down
    if relation == 'beside' and rand_below(rng, 2):  # either order, because the relation is symmetric
        pair, edges = pair[::-1], edges[::-1]
    others = list(zip(free_columns, free_rows, strict=False))  # two cells: a row or a column is left over
    cells = [*pair, *others[: len(items) - 2]]
    edges += [(0, 0)] * (len(items) - 2)
    places = []
    for item, (column, row), (across, down) in zip(items, cells, edges, strict=True):
        radius = RADII[item.size]
        x, y = coordinate(rng, column, across, radius), coordinate(rng, row, down, radius)
        places.append(Place(x, y, radius))
    return tuple(places)


def coordinate(rng: Random, number: int, edge: int, radius: int) -> int:
    """Where an item's center lies in the row or column of this number, in pixels.

    edge: -1 or 1 if the item lies at the near or the far edge of its cell, 0 if in the middle.
    """
    if edge:
        within = radius if edge < 0 else CELL - 1 - radius
    else:
        within = CELL // 2 - 1 + rand_below(rng, 2)  # an even number of pixels has two in the middle
    return CELL * number + within
