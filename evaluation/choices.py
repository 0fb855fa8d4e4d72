"""Metrics of benchmarks in which a model chooses a caption: accuracy by kind, and Winoground's three scores.

A score says how well a picture and a caption fit, whether of ITC or of ITM. Only a score above all others wins: a tie
is wrong.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from utils.errors import InputError

Group = dict[str, float]
METRICS = ('text', 'image', 'group')  # of Winoground
PAIR_CHANCE = {'text': 100 / 4, 'image': 100 / 4, 'group': 100 / 6}  # of independent random scores
MOST_KINDS = 60  # that a table shows


def choice_metrics(scores: Sequence[Sequence[float]], kinds: Sequence[str]) -> dict[str, Any]:
    """Accuracy of choosing the true caption of a picture, in percent.

    scores: of each row those of its captions, the true one first, two or more. kinds: of each row. Returns {kinds:
    {kind: group} by first appearance, all: group, mean_of_kinds, ties}: a group is {rows, accuracy, chance},
    mean_of_kinds the accuracy if every kind counts the same, ties the number of rows whose true caption shares the best
    score. InputError if a score is not finite.
    """
    _require_finite(scores)
    correct = [own > max(others) for own, *others in scores]
    ties = sum(own == max(others) for own, *others in scores)
    return _by_kind(correct, [100 / len(row) for row in scores], kinds) | {'ties': ties}


def pair_metrics(scores: Sequence[Sequence[Sequence[float]]], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Winoground's scores, in percent: {text, image, group: as of `choice_metrics`}.

    scores: of each row [[s00, s01], [s10, s11]], where s01 is the score of picture 0 with caption 1. text: each picture
    has the higher score with its own caption. image: each caption has it with its own picture. group: both.
    """
    _require_finite([[*first, *second] for first, second in scores])
    correct: dict[str, list[bool]] = {metric: [] for metric in METRICS}
    ties = dict.fromkeys(METRICS, 0)
    for (s00, s01), (s10, s11) in scores:
        pairs = {'text': ((s00, s01), (s11, s10)), 'image': ((s00, s10), (s11, s01))}
        pairs['group'] = pairs['text'] + pairs['image']
        for metric, compared in pairs.items():
            correct[metric].append(all(own > other for own, other in compared))
            ties[metric] += any(own == other for own, other in compared)
    return {
        metric: _by_kind(correct[metric], [PAIR_CHANCE[metric]] * len(kinds), kinds) | {'ties': ties[metric]}
        for metric in METRICS
    }


def _require_finite(scores: Sequence[Sequence[float]]) -> None:
    for number, row in enumerate(scores):
        if not all(map(math.isfinite, row)):
            raise InputError(f'a score of row {number} is not finite ({row}); give another checkpoint')


def _by_kind(correct: Sequence[bool], chances: Sequence[float], kinds: Sequence[str]) -> dict[str, Any]:
    rows: dict[str, list[int]] = {}
    for number, (kind, _, _) in enumerate(zip(kinds, correct, chances, strict=True)):
        rows.setdefault(kind, []).append(number)

    def group(numbers: Sequence[int]) -> Group:
        count = len(numbers)
        accuracy = 100 * sum(correct[i] for i in numbers) / count
        return {'rows': count, 'accuracy': accuracy, 'chance': sum(chances[i] for i in numbers) / count}

    groups = {kind: group(numbers) for kind, numbers in rows.items()}
    mean = sum(each['accuracy'] for each in groups.values()) / len(groups)
    return {'kinds': groups, 'all': group(range(len(kinds))), 'mean_of_kinds': mean}


def choice_lines(itc: Mapping[str, Any], itm: Mapping[str, Any]) -> list[str]:
    """The metrics of both scores as lines of a text table: a row per kind, all rows, the mean of the kinds."""
    shown = list(itc['kinds'])[:MOST_KINDS] if len(itc['kinds']) > 1 else []
    table = [(kind, itc['kinds'][kind], itm['kinds'][kind]) for kind in shown] + [('all', itc['all'], itm['all'])]
    width = max(len('mean of kinds'), *(len(name) for name, *_ in table))
    lines = [f'{"kind":{width}}  {"rows":>6}  {"ITC":>6}  {"ITM":>6}  chance']
    for name, of_itc, of_itm in table:
        lines.append(
            f'{name:{width}}  {of_itc["rows"]:6}  {of_itc["accuracy"]:6.2f}  {of_itm["accuracy"]:6.2f}  '
            f'{of_itc["chance"]:6.2f}'
        )
    if shown:
        mean = f'{"mean of kinds":{width}}  {"":6}  {itc["mean_of_kinds"]:6.2f}  {itm["mean_of_kinds"]:6.2f}'
        lines.append(mean)
    if len(itc['kinds']) > len(shown) > 0:
        lines.append(f'{len(itc["kinds"]) - len(shown)} more kinds are not shown')
    if itc['ties'] or itm['ties']:
        lines.append(f'ties, which count as wrong: {itc["ties"]} of ITC, {itm["ties"]} of ITM')
    return lines
