"""ECCV-Caption and CxC: the metrics against their definitions, with a stand-in for the package and with itself."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch

from evaluation.eccv import best_candidates, check_eccv, eccv_lines, eccv_metrics
from utils.errors import InputError

IMAGES, TEXTS = 12, 40


def truths():
    """{i2t, t2i} of both annotations: one to five correct candidates of each query, of ECCV-Caption of some only."""
    rng = random.Random(0)
    images, texts = [100 + 3 * i for i in range(IMAGES)], [7 * t for t in range(TEXTS)]

    def draw(queries, candidates):
        return {query: rng.sample(candidates, rng.randint(1, 5)) for query in queries}

    cxc = {'i2t': draw(images, texts), 't2i': draw(texts, images)}
    eccv = {'i2t': draw(images[::2], texts), 't2i': draw(texts[::3], images)}
    return images, texts, eccv, cxc


class StandIn:
    """The interface of the package's `Metrics` that `evaluation.eccv` uses; it reads sets of the lists it is given."""

    def __init__(self, eccv_gts=None, cxc_gts=None):
        if eccv_gts is None:
            _, _, eccv_gts, cxc_gts = truths()
        self.eccv_gts, self.cxc_gts = eccv_gts, cxc_gts

    def compute_all_metrics(self, i2t, t2i, target_metrics, Ks):
        assert set(target_metrics) == {'eccv_r1', 'eccv_map_at_r', 'eccv_rprecision', 'cxc_recalls'}
        print('a progress bar', file=sys.stderr)
        values = {}
        for side, lists in (('i2t', i2t), ('t2i', t2i)):
            truth, queries = self.eccv_gts[side], self.eccv_gts[side].items()
            hits = {q: [c in right for c in lists[q][: len(right)]] for q, right in queries}
            assert all(len(hits[q]) == len(truth[q]) for q in truth)  # lists are long enough
            precisions = {q: [sum(h[: r + 1]) / (r + 1) for r in range(len(h))] for q, h in hits.items()}
            of_query = {
                'eccv_r1': [h[0] for h in hits.values()],
                'eccv_rprecision': [p[-1] for p in precisions.values()],
                'eccv_map_at_r': [
                    sum(p * h for p, h in zip(precisions[q], hits[q], strict=True)) / len(hits[q]) for q in hits
                ],
            }
            for k in Ks:
                of_query[f'cxc_r{k}'] = [bool({*lists[q][:k]} & {*right}) for q, right in self.cxc_gts[side].items()]
            for name, each in of_query.items():
                values.setdefault(name, {})[side] = sum(each) / len(each)
        return values


def oracle(scores, queries, candidates, eccv, cxc):
    """{metric: percent} of one direction, from the scores, a candidate at a time; ties: the later candidate first."""
    ranked = {}
    for query, row in zip(queries, scores.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda j: (row[j], j), reverse=True)
        ranked[query] = [candidates[j] for j in order]
    found = {name: [] for name in ('eccv_r1', 'eccv_map_at_r', 'eccv_r_precision', 'cxc_r1', 'cxc_r5', 'cxc_r10')}
    for query, correct in eccv.items():
        count, area = 0, 0.0
        for rank in range(1, len(correct) + 1):
            if ranked[query][rank - 1] in correct:
                count += 1
                area += count / rank
        found['eccv_r1'].append(ranked[query][0] in correct)
        found['eccv_r_precision'].append(count / len(correct))
        found['eccv_map_at_r'].append(area / len(correct))
    for query, correct in cxc.items():
        rank = min(ranked[query].index(candidate) for candidate in correct)
        for k in (1, 5, 10):
            found[f'cxc_r{k}'].append(rank < k)
    return {name: 100 * sum(values) / len(values) for name, values in found.items()}


def scores_with_ties(seed):
    """[IMAGES, TEXTS] of few values, and a row in which most were not scored."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-6, 6, (IMAGES, TEXTS), generator=generator).float() / 8
    scores[3, 4:] = -100
    return scores


def real_package(eccv_gts, cxc_gts):
    """The package's own `Metrics` with other annotations."""
    metrics = pytest.importorskip('eccv_caption').Metrics()
    metrics.eccv_gts, metrics.cxc_gts = eccv_gts, cxc_gts
    return metrics


@pytest.mark.parametrize('make', [StandIn, real_package])
def test_metrics_are_their_definitions(make, capfd):
    images, texts, eccv, cxc = truths()
    for seed in range(3):
        i2t, t2i = scores_with_ties(seed), scores_with_ties(seed + 10).t()
        found = eccv_metrics(i2t, t2i, images, texts, make(eccv, cxc))
        expected = {
            f'{name.partition("_")[0]}_{side}_{name.partition("_")[2]}': value
            for side, of_side in (
                ('txt', oracle(i2t, images, texts, eccv['i2t'], cxc['i2t'])),
                ('img', oracle(t2i, texts, images, eccv['t2i'], cxc['t2i'])),
            )
            for name, value in of_side.items()
        }
        assert found == pytest.approx(expected) and len(set(found.values())) > 6
    assert capfd.readouterr().err == ''  # no progress bar


def test_best_candidates_are_those_of_a_stable_sort():
    """Negative and equal values, zeros of both signs, and fewer candidates than asked for."""
    generator = torch.Generator().manual_seed(0)
    scores = (
        torch.randint(-3, 4, (50, 30), generator=generator).float() * torch.tensor([0.0, -1e-30, 2.5e8])[:, None, None]
    )
    for some in (scores.flatten(0, 1), torch.randn(50, 30, generator=generator)):
        order = 29 - some.flip(1).sort(dim=1, descending=True, stable=True).indices
        for depth in (1, 7, 30, 99):
            assert torch.equal(best_candidates(some, depth), order[:, :depth])
    assert best_candidates(torch.tensor([[0.0, -0.0, 0.0]]), 3).tolist() == [[2, 1, 0]]


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setitem(sys.modules, 'eccv_caption', SimpleNamespace(Metrics=StandIn))


def test_ids_of_a_complete_test_split_are_accepted(installed):
    images, texts, _, _ = truths()
    assert check_eccv([*images, 1], [1, *reversed(texts)]) is None  # further ones are further candidates


def test_other_ids_are_refused(installed):
    images, texts, _, _ = truths()
    for given, message in (
        ((images[1:], texts), f'lacks 1 of {IMAGES} images that are queries, such as id {images[0]}; give all'),
        ((images, texts[:-2]), f'lacks 2 of {TEXTS} captions .* such as id {texts[-2]}; give all'),
        (([*images, images[0]], texts), 'has 1 images with the id of another'),
        ((images, [*texts, texts[0], texts[1]]), 'has 2 captions with the id of another'),
    ):
        with pytest.raises(InputError, match=message):
            check_eccv(*given)


def test_a_missing_package_names_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'eccv_caption', None)
    with pytest.raises(InputError, match='`pip install eccv-caption`'):
        check_eccv([1], [2])


def test_the_annotations_of_the_package_are_of_its_test_split():
    metrics = pytest.importorskip('eccv_caption').Metrics()
    images, texts = ([*metrics.coco_gts[side]] for side in ('i2t', 't2i'))
    assert (len(images), len(texts)) == (5000, 25000)
    check_eccv(images, texts)
    with pytest.raises(InputError, match='lacks 1 of 5000 images'):
        check_eccv(images[:-1], texts)


def test_the_table_shows_the_rankings_that_have_the_metrics():
    images, texts, eccv, cxc = truths()
    found = eccv_metrics(scores_with_ties(0), scores_with_ties(1).t(), images, texts, StandIn(eccv, cxc))
    lines = eccv_lines(
        {f'test_{key}': value for key, value in found.items()}, {'val': 'val', 'test, re-ranked': 'test'}
    )
    assert [line.split()[:2] for line in lines] == [
        ['ECCV-Caption', 'in'],
        ['test,', 're-ranked'],
        ['CxC', 'in'],
        ['test,', 're-ranked'],
    ]
    cells = [float(cell) for line in lines[1::2] for cell in line.split()[2:]]
    assert cells == pytest.approx(list(found.values()), abs=0.005)
    assert eccv_lines({'test_r_mean': 1.0}, {'test': 'test'}) == []
