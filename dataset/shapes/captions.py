"""Captions that describe a scene, all of its named items, in four wordings; articles and plurals."""

from collections import Counter
from collections.abc import Sequence
from random import Random

from dataset.shapes.scene import CONVERSE, Item, Scene, shuffled

# {forward}: 'a small red star above a large blue ring'; {backward}: the same relation, stated from the other item.
WORDINGS = ('{forward}', 'there is {forward}', '{backward}', 'a picture of {backward}')


def name(item: Item) -> str:
    return f'a {item.size} {item.color} {item.shape}'


def article(words: str) -> str:
    return f'an {words}' if words[0] in 'aeiou' else f'a {words}'


def plural(shape: str) -> str:
    return shape + ('es' if shape.endswith('s') else 's')


def all_captions(scene: Scene) -> list[str]:
    """The scene in each of the `WORDINGS`; at most 22 words."""
    first, second = map(name, scene.named[:2])
    parts = {
        'forward': f'{first} {scene.relation} {second}',
        'backward': f'{second} {CONVERSE[scene.relation]} {first}',
    }
    others = ' and '.join(map(name, scene.named[2:]))
    return [wording.format(**parts) + (f' with {others}' if others else '') for wording in WORDINGS]


def some_captions(rng: Random, scene: Scene, count: int) -> list[str]:
    """`count` different captions of the scene, in random order."""
    return shuffled(rng, all_captions(scene))[:count]


def one_word_apart(captions: Sequence[str], owners: Sequence[int]) -> float:
    """Share of the captions that differ in exactly one word from a caption of another owner (image)."""
    gaps = []
    for caption in captions:
        words = caption.split()
        gaps.append([(*words[:i], None, *words[i + 1 :]) for i in range(len(words))])
    of_all = Counter(gap for row in gaps for gap in row)
    of_owner = Counter((gap, owner) for row, owner in zip(gaps, owners, strict=True) for gap in row)
    hits = [any(of_all[gap] > of_owner[gap, owner] for gap in row) for row, owner in zip(gaps, owners, strict=True)]
    return sum(hits) / len(captions)
