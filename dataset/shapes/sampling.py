"""Which scenes a split contains: families of similar scenes, and no combination of items that is in another split."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from random import Random

from dataset.shapes.drawing import BACKGROUNDS
from dataset.shapes.layout import place
from dataset.shapes.scene import (
    COLORS,
    RELATIONS,
    SHAPES,
    SIZES,
    Item,
    Scene,
    pick,
    rand_below,
    rand_between,
    shuffled,
)
from utils.errors import InputError

SHARES = {'train': (0, 60), 'val': (60, 80), 'test': (80, 100)}  # percent of the pairs of kinds
VARIANTS = 2
PATIENCE = 30  # a split is exhausted after this many families in a row without a new scene


@cache
def partners(split: str) -> dict[tuple[str, str], frozenset]:
    """{(color, shape): the (color, shape) kinds that may be in one image with it in this split}.

    The 2,016 unordered pairs of two kinds are assigned to the splits once, independent of the seed of the dataset: 60 %
    to train, 20 % to val, 20 % to test. An image contains pairs of its own split only. So a model trained on the
    training images of any seed has never seen two items of a test image together, in any sizes or relation.
    """
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]
    pairs = shuffled(Random('pairs of kinds'), list(combinations(kinds, 2)))
    start, end = (len(pairs) * percent // 100 for percent in SHARES[split])
    mates = {kind: set() for kind in kinds}
    for first, second in pairs[start:end]:
        mates[first].add(second)
        mates[second].add(first)
    return {kind: frozenset(others) for kind, others in mates.items()}


def is_allowed(items: Sequence[Item], split: str) -> bool:
    """Whether these items may be in one image of the split."""
    mates = partners(split)
    return all(b.kind in mates[a.kind] for a, b in combinations(items, 2))


def companions(kinds: Sequence[tuple[str, str]], split: str) -> list[tuple[str, str]]:
    """The kinds that may be in one image of the split with all of these."""
    mates = partners(split)
    return [kind for kind in mates if all(kind in mates[chosen] for chosen in kinds)]


def draw_scene(rng: Random, split: str) -> Scene:
    """A random scene of two to four items, without places."""
    mates = partners(split)
    count, relation = rand_between(rng, 2, 4), pick(rng, RELATIONS)
    while True:
        kinds = [pick(rng, list(mates))]
        while len(kinds) < count:
            options = companions(kinds, split)
            if not options:
                break
            kinds.append(pick(rng, options))
        items = tuple(Item(pick(rng, SIZES), *kind) for kind in kinds)
        if len(items) == count:
            return Scene(items, relation)


def vary(rng: Random, scene: Scene, split: str) -> Scene:
    """A scene whose caption differs from that of `scene` in one word: a size, a color, a shape or the relation."""
    while True:
        words = ['relation', *(field for _ in scene.items for field in ('size', 'color', 'shape'))]
        field = pick(rng, words)
        items, relation = list(scene.items), scene.relation
        if field == 'relation':
            relation = pick(rng, RELATIONS)
            if relation == scene.relation == 'above':  # swapped items turn 'above' into 'below'
                items[:2] = items[1::-1]
        else:
            i = rand_below(rng, len(items))
            values = {'size': SIZES, 'color': COLORS, 'shape': SHAPES}[field]
            items[i] = items[i]._replace(**{field: pick(rng, values)})
        varied = Scene(tuple(items), relation)
        if varied.meaning != scene.meaning and is_allowed(items, split):
            return varied


class Distinct:
    """Accepts a scene unless one of its captions is also true of an accepted scene, or the reverse.

    A caption of a scene is true of any image that contains the same items, and possibly more. So the items of one scene
    must not include those of another, except that both may have the same items with the same pair in another relation.
    """

    def __init__(self):
        self.pairs, self.parts, self.meanings = {}, set(), set()

    def accepts(self, scene: Scene) -> bool:
        items, pair = frozenset(scene.items), frozenset(scene.items[:2])
        parts = {frozenset(part) for n in range(2, len(items)) for part in combinations(scene.items, n)}
        if items in self.parts or scene.meaning in self.meanings or any(part in self.pairs for part in parts):
            return False
        if self.pairs.setdefault(items, pair) != pair:
            return False
        self.parts |= parts
        self.meanings.add(scene.meaning)
        return True


class Unequal:
    """Accepts a scene unless an accepted one has the same meaning: sufficient for training, where nothing is ranked."""

    def __init__(self):
        self.meanings = set()

    def accepts(self, scene: Scene) -> bool:
        known = scene.meaning in self.meanings
        self.meanings.add(scene.meaning)
        return not known


def placed(rng: Random, scene: Scene) -> Scene:
    """The scene with random places and a random background."""
    places = place(rng, scene.items, scene.relation)
    return replace(scene, places=places, background=rand_below(rng, len(BACKGROUNDS)))


def draw_scenes(split: str, count: int, seed: int) -> list[Scene]:
    """`count` placed scenes in families of up to three: a scene and two variants that differ from it in one word each.

    Scenes of val and test are `Distinct`, those of train `Unequal`. A smaller count gives the first of the same scenes.
    InputError if the split has fewer scenes.
    """
    rng, scenes, misses = Random(f'{seed} {split} scenes'), [], 0
    register = Unequal() if split == 'train' else Distinct()
    while misses < PATIENCE:
        misses += 1
        base = draw_scene(rng, split)
        for scene in (base, *(vary(rng, base, split) for _ in range(VARIANTS))):
            if register.accepts(scene):
                scenes.append(placed(rng, scene))
                misses = 0
        if len(scenes) >= count:
            return scenes[:count]
    raise InputError(f'only {len(scenes)} of {count} {split} scenes can be told apart: ask for fewer')
