"""Positions of the items of a scene: the stated relation is clearly visible, and no other relation is.

Items that are not said to touch keep `GAP` pixels apart. If one item of the related pair is above the other, the other
items stay out of the columns of both, so that nothing else is above or below.
"""

from collections.abc import Sequence
from random import Random

from dataset.shapes.drawing import IMAGE_SIDE, contact_distance
from dataset.shapes.scene import Item, Place, pick, rand_between

MARGIN = 8  # pixels left free along the border, so that a mild crop cuts off no item
GAP = 6
RADII = {'small': (11, 13), 'large': (20, 24)}
INNER, OUTER = (10, 11), (27, 29)  # radii of an item inside another, and of the outer item
LAYOUTS, TRIES = 40, 12


def place(rng: Random, items: Sequence[Item], relation: str) -> tuple[Place, ...] | None:
    """Places for the items, the first two in their relation; None if `LAYOUTS` attempts found no room."""
    for _ in range(LAYOUTS):
        places = place_pair(rng, items[0], items[1], relation)
        for item in items[2:]:
            free = place_apart(rng, item, places, clear_of=places[:2] if relation == 'above' else [])
            if free is None:
                break
            places.append(free)
        if len(places) == len(items):
            return tuple(places)
    return None


def place_pair(rng: Random, first: Item, second: Item, relation: str) -> list[Place]:
    """Places for the related pair, anywhere inside the margins."""
    if relation == 'inside':
        radii = rand_between(rng, *INNER), rand_between(rng, *OUTER)
        dx, dy = rand_between(rng, -1, 1), rand_between(rng, -1, 1)
    else:
        radii = rand_between(rng, *RADII[first.size]), rand_between(rng, *RADII[second.size])
        if relation == 'above':
            dx, dy = rand_between(rng, -6, 6), sum(radii) + GAP + rand_between(rng, 0, 6)
        else:
            dy = rand_between(rng, -3, 3)
            dx = pick(rng, (-1, 1)) * contact_distance((first.shape, radii[0]), (second.shape, radii[1]), dy)
    x, y = (
        rand_between(
            rng,
            MARGIN + max(radii[0], radii[1] - shift),
            IMAGE_SIDE - 1 - MARGIN - max(radii[0], radii[1] + shift),
        )
        for shift in (dx, dy)
    )
    return [Place(x, y, radii[0]), Place(x + dx, y + dy, radii[1])]


def place_apart(rng: Random, item: Item, places: list[Place], clear_of: list[Place]) -> Place | None:
    """A place apart from all `places` and outside the columns of `clear_of`; None if `TRIES` attempts found none."""
    for _ in range(TRIES):
        radius = rand_between(rng, *RADII[item.size])
        low, high = MARGIN + radius, IMAGE_SIDE - 1 - MARGIN - radius
        new = Place(rand_between(rng, low, high), rand_between(rng, low, high), radius)
        is_clear = all(abs(new.x - other.x) >= radius + other.radius + GAP for other in clear_of)
        if is_clear and all(are_apart(new, other) for other in places):
            return new
    return None


def are_apart(a: Place, b: Place) -> bool:
    """Whether the bounding squares keep `GAP` pixels between them."""
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP
