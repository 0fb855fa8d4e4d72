"""Which scenes a split holds: the rule that keeps the splits' combinations apart, and families of near-equal scenes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from random import Random

from dataset.shapes.drawing import BACKGROUNDS
from dataset.shapes.layout import place
from dataset.shapes.scene import (
    COLOURS,
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

CONTAINERS = ('circle', 'square', 'heart', 'diamond', 'ring')
SHARES = {'train': (0, 60), 'val': (60, 80), 'test': (80, 100)}  # percent of the pairs of kinds
VARIANTS = 2
PATIENCE = 30  # families in a row that bring no new scene before a split counts as used up


@cache
def partners(split: str) -> dict[tuple[str, str], frozenset]:
    """{(colour, shape): the (colour, shape) kinds that may share a picture with it in this split}.

    The 2,016 unordered pairs of two kinds are dealt once and for all, whatever the seed of the world: 60 % to train,
    20 % to val, 20 % to test. A picture of one split holds that split's pairs only, so a model trained on any world's
    training pictures has never seen two things of a test picture together, in whatever sizes or relation.
    """
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    pairs = shuffled(Random('pairs of kinds'), list(combinations(kinds, 2)))
    start, end = (len(pairs) * percent // 100 for percent in SHARES[split])
    mates = {kind: set() for kind in kinds}
    for first, second in pairs[start:end]:
        mates[first].add(second)
        mates[second].add(first)
    return {kind: frozenset(others) for kind, others in mates.items()}


def allowed(items: Sequence[Item], relation: str, split: str) -> bool:
    """Whether these items may share a picture of the split, the first two in that relation."""
    mates = partners(split)
    if any(b.kind not in mates[a.kind] for a, b in combinations(items, 2)):
        return False
    first, second = items[:2]
    if relation == 'inside' and (first.size, second.size) != ('small', 'large'):
        return False
    if relation == 'inside' and second.shape not in CONTAINERS:
        return False
    return relation == 'above' or first.colour != second.colour  # in contact, equal colours would run together


def draw_scene(rng: Random, split: str) -> Scene:
    """A scene of two to four items, not yet placed."""
    mates = partners(split)
    count, relation = rand_between(rng, 2, 4), pick(rng, RELATIONS)
    while True:
        kinds = [pick(rng, list(mates))]
        while len(kinds) < count:
            options = [kind for kind in mates if all(kind in mates[chosen] for chosen in kinds)]
            if not options:
                break
            kinds.append(pick(rng, options))
        items = tuple(Item(pick(rng, SIZES), *kind) for kind in kinds)
        if len(items) == count and allowed(items, relation, split):
            return Scene(items, relation)


def vary(rng: Random, scene: Scene, split: str) -> Scene:
    """A scene whose caption differs from this one's in a single word: a size, a colour, a shape or the relation."""
    while True:
        field = pick(rng, ('size', 'colour', 'shape', 'relation'))
        items, relation = list(scene.items), scene.relation
        if field == 'relation':
            relation = pick(rng, RELATIONS)
            if relation == scene.relation == 'above':  # changing places is the one word 'below' for 'above'
                items[:2] = items[1::-1]
        else:
            i = rand_below(rng, len(items))
            values = {'size': SIZES, 'colour': COLOURS, 'shape': SHAPES}[field]
            items[i] = items[i]._replace(**{field: pick(rng, values)})
        varied = Scene(tuple(items), relation)
        if varied.meaning != scene.meaning and allowed(items, relation, split):
            return varied


class Distinct:
    """Accepts a scene unless a caption of it is also true of an accepted one, or the reverse.

    A caption of a scene is true of any picture that holds the same items and more. So of two scenes neither's items
    contain the other's, except that they may be the same items, the same two of them in another relation.
    """

    def __init__(self):
        self.pairs, self.parts, self.meanings = {}, set(), set()

    def accepts(self, scene: Scene) -> bool:
        whole, pair = frozenset(scene.items), frozenset(scene.items[:2])
        parts = {frozenset(part) for n in range(2, len(whole)) for part in combinations(scene.items, n)}
        if whole in self.parts or scene.meaning in self.meanings or any(part in self.pairs for part in parts):
            return False
        if self.pairs.setdefault(whole, pair) != pair:
            return False
        self.parts |= parts
        self.meanings.add(scene.meaning)
        return True


class Unequal:
    """Accepts a scene unless it says the same as an accepted one: enough where nothing is ranked."""

    def __init__(self):
        self.meanings = set()

    def accepts(self, scene: Scene) -> bool:
        known = scene.meaning in self.meanings
        self.meanings.add(scene.meaning)
        return not known


def draw_scenes(split: str, count: int, seed: int) -> list[Scene]:
    """`count` placed scenes in families of up to three: a scene, and two that differ from it in one word each.

    Scenes of val and test are `Distinct`, those of train `Unequal`. A smaller count gives the first of the same scenes.
    ValueError when the split has not that many.
    """
    rng, scenes, misses = Random(f'{seed} {split} scenes'), [], 0
    register = Unequal() if split == 'train' else Distinct()
    while misses < PATIENCE:
        misses += 1
        base = draw_scene(rng, split)
        for scene in (base, *(vary(rng, base, split) for _ in range(VARIANTS))):
            places = place(rng, scene.items, scene.relation)
            if places and register.accepts(scene):
                scenes.append(replace(scene, places=places, background=rand_below(rng, len(BACKGROUNDS))))
                misses = 0
        if len(scenes) >= count:
            return scenes[:count]
    raise InputError(f'{count} {split} scenes are more than can be told apart ({len(scenes)} found): ask for fewer')
