"""Accuracy of chosen captions by kind, and Winoground's three scores, against their definitions."""

import itertools
import random

import pytest

from evaluation.choices import METRICS, MOST_KINDS, PAIR_CHANCE, choice_lines, choice_metrics, pair_metrics
from utils.errors import InputError


def random_rows(count, make):
    """(scores, kinds): few different values, so that many are equal."""
    rng = random.Random(0)
    return [make(rng) for _ in range(count)], [rng.choice(['color', 'size', 'order']) for _ in range(count)]


def check(found, correct, kinds):
    """The accuracies are the shares of `correct`, of every kind, of all, and their mean."""
    assert found['all']['rows'] == len(kinds) and found['all']['accuracy'] == pytest.approx(
        100 * sum(correct) / len(correct)
    )
    assert list(found['kinds']) == list(dict.fromkeys(kinds))
    for kind, group in found['kinds'].items():
        own = [each for each, other in zip(correct, kinds, strict=True) if other == kind]
        assert group['rows'] == len(own) and group['accuracy'] == pytest.approx(100 * sum(own) / len(own))
    mean = sum(group['accuracy'] for group in found['kinds'].values()) / len(found['kinds'])
    assert found['mean_of_kinds'] == pytest.approx(mean)


def test_choice_metrics_are_those_of_a_sorted_list():
    """A row is right if its true caption, the last one of equal scores, is first."""
    scores, kinds = random_rows(300, lambda rng: [rng.randrange(4) for _ in range(rng.choice([2, 5]))])
    first = [sorted(range(len(row)), key=lambda i: (-row[i], i == 0))[0] for row in scores]
    found = choice_metrics(scores, kinds)
    check(found, [best == 0 for best in first], kinds)
    assert found['all']['chance'] == pytest.approx(sum(100 / len(row) for row in scores) / 300)
    assert found['ties'] == sum(row.count(max(row)) > 1 and row[0] == max(row) for row in scores) > 10


def test_pair_metrics_are_winogrounds():
    """Of pictures and captions numbered alike, as its paper defines them."""
    scores, kinds = random_rows(300, lambda rng: [[rng.randrange(6) for _ in range(2)] for _ in range(2)])
    found = pair_metrics(scores, kinds)
    text = [s[0][0] > s[0][1] and s[1][1] > s[1][0] for s in scores]
    image = [s[0][0] > s[1][0] and s[1][1] > s[0][1] for s in scores]
    expected = {'text': text, 'image': image, 'group': [a and b for a, b in zip(text, image, strict=True)]}
    for metric in METRICS:
        check(found[metric], expected[metric], kinds)
    assert sum(text) != sum(image) and any(expected['group'])
    assert found['text']['ties'] == sum(s[0][0] == s[0][1] or s[1][1] == s[1][0] for s in scores)


def test_chance_is_the_share_of_all_orders_of_scores():
    orders = [[[a, b], [c, d]] for a, b, c, d in itertools.permutations(range(4))]
    for metric, found in pair_metrics(orders, ['x'] * len(orders)).items():
        assert found['all']['accuracy'] == pytest.approx(PAIR_CHANCE[metric]) == pytest.approx(found['all']['chance'])
    five = list(itertools.permutations(range(5)))
    found = choice_metrics(five, ['x'] * len(five))['all']
    assert found['accuracy'] == pytest.approx(found['chance']) == pytest.approx(20)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(InputError, match='a score of row 1 is not finite'):
        choice_metrics([[1.0, 0.0], [value, 0.0]], ['a', 'b'])
    with pytest.raises(InputError, match='a score of row 0 is not finite'):
        pair_metrics([[[1.0, 0.0], [value, 0.0]]], ['a'])


def test_the_table_has_a_row_for_every_kind():
    itc = choice_metrics([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0]], ['color', 'size', 'color'])
    itm = choice_metrics([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0]], ['color', 'size', 'color'])
    assert [line.split() for line in choice_lines(itc, itm)] == [
        ['kind', 'rows', 'ITC', 'ITM', 'chance'],
        ['color', '2', '100.00', '50.00', '50.00'],
        ['size', '1', '0.00', '0.00', '50.00'],
        ['all', '3', '66.67', '33.33', '50.00'],
        ['mean', 'of', 'kinds', '50.00', '25.00'],
        'ties, which count as wrong: 0 of ITC, 1 of ITM'.split(),
    ]
    one = choice_metrics([[2.0, 1.0]], ['swap'])
    assert [line.split()[0] for line in choice_lines(one, one)] == ['kind', 'all']
    many = choice_metrics([[2.0, 1.0]] * (MOST_KINDS + 3), [f'{i}' for i in range(MOST_KINDS + 3)])
    lines = choice_lines(many, many)
    assert lines[-1] == '3 more kinds are not shown' and len(lines) == 1 + MOST_KINDS + 3
