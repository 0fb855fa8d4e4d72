"""Recall against the official metrics and a slow oracle, and clear errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import retrieval
from evaluation.retrieval import retrieval_recall
from tests.reference import load_reference


def captions(images, each):
    txt2img = {text: text // each for text in range(images * each)}
    return txt2img, {image: [text for text in txt2img if txt2img[text] == image] for image in range(images)}


def slow_ranks(scores, correct):
    """Sort each row by (score, number), best first; the rank of the first correct one."""
    ranks = []
    for query, row in enumerate(np.asarray(scores)):
        order = sorted(range(len(row)), key=lambda c, row=row: (row[c], c), reverse=True)
        ranks.append(min(rank for rank, c in enumerate(order) if c in correct[query]))
    return np.array(ranks)


def slow_recall(score_i2t, score_t2i, txt2img, img2txt):
    result = {}
    for side, scores, correct in (
        ('txt', score_i2t, img2txt),
        ('img', score_t2i, {t: [i] for t, i in txt2img.items()}),
    ):
        ranks = slow_ranks(scores, correct)
        result |= {f'{side}_r{k}': 100 * float((ranks < k).mean()) for k in (1, 5, 10)}
        result[f'{side}_r_mean'] = sum(result[f'{side}_r{k}'] for k in (1, 5, 10)) / 3
    return result | {'r_mean': (result['txt_r_mean'] + result['img_r_mean']) / 2}


def test_official_recall():
    reference = load_reference('recall')
    recall = retrieval_recall(reference['score_i2t'], torch.tensor(reference['score_t2i']), *captions(60, 5))
    assert recall == pytest.approx(reference['result'], rel=1e-12)
    assert list(recall) == list(reference['result'])
    assert all(type(value) is float for value in recall.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(1, 3), st.integers(1, 6), st.floats(0, 0.9), st.integers(0, 2**31))
def test_recall_against_sorting_with_ties_and_unscored_pairs(images, each, levels, unscored, seed):
    random = np.random.default_rng(seed)
    texts = images * each
    owner = random.permutation(np.repeat(np.arange(images), each))
    owner[random.integers(texts)] = owner[0]  # captions need not be equally many
    owner[:images] = random.permutation(images)  # but every image has one
    txt2img = {text: int(image) for text, image in enumerate(owner)}
    img2txt = {image: [text for text in txt2img if txt2img[text] == image] for image in range(images)}
    scores = []
    for shape in ((images, texts), (texts, images)):
        score = random.integers(levels, size=shape).astype(np.float32)
        scores.append(np.where(random.random(shape) < unscored, np.float32(-100), score))
    expected = slow_recall(*scores, txt2img, img2txt)
    assert retrieval_recall(*scores, txt2img, img2txt) == pytest.approx(expected)


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    reference = load_reference('recall')
    monkeypatch.setattr(retrieval, 'ROWS', 7)
    recall = retrieval_recall(reference['score_i2t'], reference['score_t2i'], *captions(60, 5))
    assert recall == pytest.approx(reference['result'], rel=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.int64])
def test_equal_scores_give_chance(dtype):
    recall = retrieval_recall(torch.zeros(50, 50, dtype=dtype), torch.zeros(50, 50, dtype=dtype), *captions(50, 1))
    assert [recall[key] for key in ('txt_r1', 'txt_r5', 'img_r1', 'img_r10')] == [2.0, 10.0, 2.0, 20.0]


def test_what_was_not_scored_ranks_behind_what_was():
    score = torch.full((12, 12), -100.0)
    score[0, 0] = score[1, 2] = score[1, 3] = -50.0  # image 1 has candidates, but not its own text
    recall = retrieval_recall(score, torch.eye(12), *captions(12, 1))
    # Image 0 finds its text first; behind scored ones, and if nothing was scored, the higher number comes first.
    assert recall['txt_r1'] == pytest.approx(100 * 2 / 12) and recall['img_r1'] == 100.0
    assert recall['txt_r10'] == pytest.approx(100 * 11 / 12)  # all but image 1, whose text has rank 11


@pytest.mark.parametrize('change, message', [
    (lambda i2t, t2i, txt2img, img2txt: img2txt.pop(2), 'image 2 has no text'),
    (lambda i2t, t2i, txt2img, img2txt: img2txt[1].clear(), 'image 1 has no text'),
    (lambda i2t, t2i, txt2img, img2txt: txt2img.pop(3), 'text 3 has no image'),
    (lambda i2t, t2i, txt2img, img2txt: txt2img.update({5: 9}), 'text 5 belongs to image 9, but there are 3 of them'),
    (lambda i2t, t2i, txt2img, img2txt: img2txt.update({3: [0]}), '4 images have a text, but 3 were scored'),
    (lambda i2t, t2i, txt2img, img2txt: i2t[1].fill_(torch.nan), 'score_i2t contains NaN in 1 of 3 rows, first in row'),
    (lambda i2t, t2i, txt2img, img2txt: t2i.t_(), r'score_i2t \[3, 6\] and score_t2i \[3, 6\] must be'),
])  # fmt: skip
def test_bad_retrieval_input(change, message):
    txt2img, img2txt = captions(3, 2)
    score_i2t, score_t2i = torch.rand(3, 6), torch.rand(6, 3)
    change(score_i2t, score_t2i, txt2img, img2txt)
    with pytest.raises(ValueError, match=message):
        retrieval_recall(score_i2t, score_t2i, txt2img, img2txt)
