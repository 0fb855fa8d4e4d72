"""What a scene is, and the draws everything here is made with.

A scene is what its captions say, items (size, colour, shape) of which the first two stand in a relation, and where each
item lies. Pixels are integers, y grows downwards. Every draw goes through `Random.random()`, the one method of
Python's generator whose sequence is promised never to change, so a seed gives the same world under any Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

SIZES = ('small', 'large')
COLOURS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'black')
SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'heart', 'diamond', 'ring')
# Said of (first item, second item). None changes when the picture is flipped.
RELATIONS = ('above', 'inside', 'touching')
# The same, said of (second item, first item).
CONVERSE = {'above': 'below', 'inside': 'around', 'touching': 'touching'}
SPLITS = ('train', 'val', 'test')


class Item(NamedTuple):
    size: str
    colour: str
    shape: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.colour, self.shape


class Place(NamedTuple):
    """Centre and radius (half the side of the bounding square), in pixels."""

    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Scene:
    """`relation` holds between `items[0]` and `items[1]`; the others stand apart. `places` follow `items`."""

    items: tuple[Item, ...]
    relation: str
    places: tuple[Place, ...] = ()
    background: int = 0

    @property
    def meaning(self) -> tuple:
        """What a caption says: equal for two scenes exactly when no caption tells them apart."""
        pair = self.items[:2] if self.relation != 'touching' else tuple(sorted(self.items[:2]))
        return pair, self.relation, tuple(sorted(self.items[2:]))


def rand_below(rng: Random, n: int) -> int:
    """A whole number in [0, n)."""
    return int(rng.random() * n)


def rand_between(rng: Random, low: int, high: int) -> int:
    """A whole number in [low, high]."""
    return low + rand_below(rng, high - low + 1)


def pick(rng: Random, options: Sequence):
    return options[rand_below(rng, len(options))]


def shuffled(rng: Random, options: Sequence) -> list:
    return sorted(options, key=lambda _: rng.random())
