"""The families of the synthetic dataset: captions that differ in one word, and how often in which."""

from collections import Counter
from random import Random

import pytest

from dataset.shapes.captions import all_captions, one_word_apart
from dataset.shapes.sampling import draw_scene, vary
from dataset.shapes.scene import COLORS, SHAPES, SIZES, SPLITS
from tests.dataset.shapes.tools import parse_caption, read


def differ_in_one_word(first, second):
    first, second = first.split(), second.split()
    return len(first) == len(second) and sum(a != b for a, b in zip(first, second, strict=True)) == 1


def words_that_differ(base, variant):
    """The two words that two captions of a scene and its variant do not share, where they share all others."""
    pairs = [(a, b) for a in all_captions(base) for b in all_captions(variant) if differ_in_one_word(a, b)]
    assert pairs and parse_caption(pairs[0][0]) != parse_caption(pairs[0][1])
    (words,) = {pair for pair in zip(*map(str.split, pairs[0]), strict=True) if len(set(pair)) == 2}
    return words


@pytest.mark.parametrize('split', SPLITS)
def test_a_variant_differs_in_one_word(split):
    rng, words = Random(0), set()
    for _ in range(500):
        base = draw_scene(rng, split)
        words.update(words_that_differ(base, vary(rng, base, split)))
    assert words >= {*SIZES, *COLORS, *SHAPES, 'above', 'below', 'beside'}


@pytest.mark.parametrize('split', SPLITS)
def test_shares_of_what_varies(folder, split):
    """In percent, of 2,000 variants. The color and the shape of an item have few other values that the split allows.

    Every word is proposed equally often, so the relation in one of 3n + 1 proposals. But a proposal that changes
    nothing or is not allowed is drawn anew, and so is its word.
    """
    kind_of = {word: kind for kind, words in read(folder / 'word_kinds.json').items() for word in words}
    rng, found = Random(0), Counter()
    for _ in range(2000):
        base = draw_scene(rng, split)
        first, second = words_that_differ(base, vary(rng, base, split))
        assert kind_of[first] == kind_of[second]
        found[kind_of[first]] += 1
    expected = {'relation': 28, 'size': 60, 'color': 6, 'shape': 6}
    if split == 'train':
        expected = {'relation': 19, 'size': 39, 'color': 21, 'shape': 21}
    assert {kind: count / 20 for kind, count in found.items()} == pytest.approx(expected, abs=2.5)


def test_many_test_captions_are_one_word_apart(folder):
    rows = read(folder / 'retrieval_test.json')
    captions = [(caption, i) for i, row in enumerate(rows) for caption in row['caption']]
    close = [any(i != j and differ_in_one_word(ours, other) for other, j in captions) for ours, i in captions]
    share = sum(close) / len(close)
    assert share > 0.5
    assert one_word_apart(*zip(*captions, strict=True)) == share
    assert read(folder / 'world.json')['test_captions_one_word_apart'] == round(share, 4)
