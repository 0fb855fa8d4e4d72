"""The scene, and the random draws that everything in this package uses.

A scene is a list of items (size, color, shape), a relation between the first two, and the place of each item. Pixels
are integers, y grows downwards. Every draw uses `Random.random()`, the one method of Python's generator whose sequence
is guaranteed never to change, so a seed gives the same dataset under any Python version.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeVar

T = TypeVar('T')

SIZES = ('small', 'large')
COLORS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'black')
SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'heart', 'diamond', 'ring')
# Between (first item, second item). Neither changes when the image is flipped.
RELATIONS = ('above', 'beside')
# {relation: the same relation between (second item, first item)}
CONVERSE = {'above': 'below', 'beside': 'beside'}
RELATION_WORDS = ('above', 'below', 'beside')
SPLITS = ('train', 'val', 'test')


class Item(NamedTuple):
    size: str
    color: str
    shape: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.color, self.shape


class Place(NamedTuple):
    """Center and radius (half the side of the bounding square), in pixels."""

    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Scene:
    """`relation` is between `items[0]` and `items[1]`, and no other pair is related.

    `places` are in the order of `items`. The last `unnamed` items are in the picture, but no caption names them.
    """

    items: tuple[Item, ...]
    relation: str
    places: tuple[Place, ...] = ()
    background: int = 0
    unnamed: int = 0

    @property
    def named(self) -> tuple[Item, ...]:
        """The items that every caption names."""
        return self.items[: len(self.items) - self.unnamed]

    @property
    def meaning(self) -> tuple:
        """What a caption says: equal for two scenes if and only if no caption distinguishes them."""
        pair = self.named[:2] if self.relation != 'beside' else tuple(sorted(self.named[:2]))
        return pair, self.relation, tuple(sorted(self.named[2:]))


def rand_below(rng: Random, n: int) -> int:
    """An integer in [0, n)."""
    return int(rng.random() * n)


def rand_between(rng: Random, low: int, high: int) -> int:
    """An integer in [low, high]."""
    return low + rand_below(rng, high - low + 1)


def pick(rng: Random, options: Sequence[T]) -> T:
    return options[rand_below(rng, len(options))]


def shuffled(rng: Random, options: Sequence[T]) -> list[T]:
    return sorted(options, key=lambda _: rng.random())
