"""Positions of the items of a scene: each in a cell of its own, on a grid of 4 x 4 cells.

Exactly one pair of items shares a row or a column of the grid, the related pair: its cells are neighbors in a column
(above) or in a row (beside). So the stated relation is clearly visible, and no other relation is.
"""

from collections.abc import Sequence
from random import Random

from dataset.shapes.drawing import IMAGE_SIDE
from dataset.shapes.scene import Item, Place, rand_below, rand_between, shuffled

GRID = 4
CELL = IMAGE_SIDE // GRID  # pixels
RADII = {'small': 10, 'large': 14}
SHIFT = 3  # pixels; an item is less than this away from the center of its cell, in each direction


def place(rng: Random, items: Sequence[Item], relation: str) -> tuple[Place, ...]:
    """Places for two to four items, the first two in their relation."""
    line, start = rand_below(rng, GRID), rand_below(rng, GRID - 1)
    pair_columns, pair_rows = ([line], [start, start + 1]) if relation == 'above' else ([start, start + 1], [line])
    free_columns, free_rows = (
        shuffled(rng, [i for i in range(GRID) if i not in taken]) for taken in (pair_columns, pair_rows)
    )
    pair = [(column, row) for row in pair_rows for column in pair_columns]
    if relation == 'beside':
        pair = shuffled(rng, pair)  # either order, because the relation is symmetric
    others = list(zip(free_columns, free_rows, strict=False))  # two cells: a row or a column is left over
    cells = [*pair, *others[: len(items) - 2]]
    return tuple(place_in_cell(rng, item, column, row) for item, (column, row) in zip(items, cells, strict=True))


def place_in_cell(rng: Random, item: Item, column: int, row: int) -> Place:
    """A place near the center of a cell, entirely inside it; flipped, it is a possible place as well."""
    radius = RADII[item.size]
    low = max(radius, CELL // 2 - SHIFT)  # pixels that the center keeps from either side of the cell, at least
    x, y = (CELL * i + rand_between(rng, low, CELL - 1 - low) for i in (column, row))
    return Place(x, y, radius)
