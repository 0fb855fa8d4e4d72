"""Statements about two images, in sets as in NLVR2: each sentence comes with four pairs of images, true of two of them.

A statement says which of the two images show a sight: 'a star', 'exactly three objects', 'a circle above a square'.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from random import Random

from dataset.shapes.captions import article, plural
from dataset.shapes.scene import COLORS, CONVERSE, RELATION_WORDS, SHAPES, Scene, pick, shuffled
from utils.errors import InputError

KINDS = ('presence', 'count', 'relation')
NUMBER_WORDS = {2: 'two', 3: 'three', 4: 'four'}

# {sentence: (two pairs for which it is true, two for which it is false)}; a pair says whether the (left, right) image
# shows the sight.
LEFT = [(1, 1), (1, 0)], [(0, 1), (0, 0)]
RIGHT = [(1, 1), (0, 1)], [(1, 0), (0, 0)]
BOTH = [(1, 1), (1, 1)], [(1, 0), (0, 1)]
FORMS = {
    'the left picture shows {sight}': LEFT,
    'there {verb} {sight} in the left picture': LEFT,
    'the right picture shows {sight}': RIGHT,
    'there {verb} {sight} in the right picture': RIGHT,
    'both pictures show {sight}': BOTH,
    'there {verb} {sight} in each picture': BOTH,
    'at least one picture shows {sight}': ([(1, 0), (0, 1)], [(0, 0), (0, 0)]),
    'only one picture shows {sight}': ([(1, 0), (0, 1)], [(1, 1), (0, 0)]),
}


def sights(scene: Scene) -> Iterator[tuple[str, str, str, bool]]:
    """(kind, group, sight, whether this scene shows it) of every sight for which the answer is unambiguous."""
    colors, shapes = (Counter(getattr(item, field) for item in scene.items) for field in ('color', 'shape'))
    for color in COLORS:
        yield 'presence', 'color', f'{article(color)} object', color in colors
    for shape in SHAPES:
        yield 'presence', 'shape', f'a {shape}', shape in shapes
    for number, word in NUMBER_WORDS.items():
        yield 'count', 'all', f'exactly {word} objects', len(scene.items) == number
    nouns = {f'{color} objects': n for color, n in colors.items()} | {plural(s): n for s, n in shapes.items()}
    for noun, number in nouns.items():
        if number <= 2:  # a scene with one such item is the negative for 'exactly two'
            yield 'count', 'some', f'exactly two {noun}', number == 2
    yield 'relation', 'any', 'one object above another', scene.relation == 'above'
    yield 'relation', 'any', 'two objects beside each other', scene.relation == 'beside'
    yield from related_sights(scene, [f'{article(item.color)} object' for item in scene.items])
    yield from related_sights(scene, [f'a {item.shape}' for item in scene.items])


def related_sights(scene: Scene, names: list[str]) -> Iterator[tuple[str, str, str, bool]]:
    """The related pair in each relation, if its names fit no other item; a false sight differs in the relation only."""
    first, second = names[:2]
    if names.count(first) > 1 or names.count(second) > 1:
        return
    for a, b, actual in ((first, second, scene.relation), (second, first, CONVERSE[scene.relation])):
        for relation in RELATION_WORDS:
            yield 'relation', 'pair', f'{a} {relation} {b}', relation == actual


def collect_sights(split: str, scenes: Sequence[Scene]) -> dict[str, dict[str, dict[str, tuple[list, list]]]]:
    """{kind: {group: {sight: (scenes that do not show it, scenes that do)}}} by number, at least two of each.

    InputError if a kind has no such sight.
    """
    found = {kind: defaultdict(lambda: defaultdict(lambda: ([], []))) for kind in KINDS}
    for number, scene in enumerate(scenes):
        for kind, group, sight, shown in sights(scene):
            found[kind][group][sight][shown].append(number)
    usable = {kind: {} for kind in KINDS}
    for kind, groups in found.items():
        for group, pools in groups.items():
            pools = {sight: pool for sight, pool in pools.items() if min(map(len, pool)) >= 2}
            if pools:
                usable[kind][group] = pools
        if not usable[kind]:
            raise InputError(f"{len(scenes)} {split} scenes are too few for statements of kind '{kind}': ask for more")
    return usable


def statements(rng: Random, split: str, scenes: Sequence[Scene], images: Sequence[str], sets: int) -> list[dict]:
    """NLVR2 rows, four per set, the kinds in turn. Identifiers as in NLVR2: split-set-pair-sentence."""
    usable, rows = collect_sights(split, scenes), []
    for number in range(sets):
        kind = KINDS[number % len(KINDS)]
        pools = usable[kind][pick(rng, list(usable[kind]))]
        sight = pick(rng, list(pools))
        form = pick(rng, list(FORMS))
        sentence = form.format(sight=sight, verb='is' if sight.split()[0] in ('a', 'an', 'one') else 'are')
        for pair, (label, left, right) in enumerate(draw_pairs(rng, pools[sight], form)):
            rows.append(
                {
                    'identifier': f'{split}-{number}-{pair}-0',
                    'sentence': sentence,
                    'label': label,
                    'images': [images[left], images[right]],
                    'kind': kind,
                }
            )
    return rows


def draw_pairs(rng: Random, pool: tuple[list, list], form: str) -> list[tuple[str, int, int]]:
    """Four different (label, left scene, right scene), two of each label, in random order."""
    drawn = {}
    for label, patterns in zip(('True', 'False'), FORMS[form], strict=True):
        for shown_left, shown_right in patterns:
            pair = (0, 0)
            while pair[0] == pair[1] or pair in drawn:
                pair = pick(rng, pool[shown_left]), pick(rng, pool[shown_right])
            drawn[pair] = label
    return [(label, *pair) for pair, label in shuffled(rng, list(drawn.items()))]
