"""Recall of image-text retrieval.

Legend: NI images, NT texts, N queries (rows), M candidates (columns), C the most correct candidates that a query has.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError

ROWS = 1024  # queries ranked at a time: limits the memory to a few [1024, M] masks


def retrieval_recall(
    score_i2t: Tensor | np.ndarray,
    score_t2i: Tensor | np.ndarray,
    txt2img: Mapping[int, int],
    img2txt: Mapping[int, Sequence[int]],
) -> dict[str, float]:
    """Return recall at 1, 5 and 10 in percent: `txt_*` ranks texts for images, `img_*` images for texts.

    score_i2t: [NI, NT] and score_t2i: [NT, NI], arrays or tensors, higher is better. txt2img: {text: image} and
    img2txt: {image: its texts}, numbered as the rows. An image's rank is that of its best text.

    Ties: the candidate with the higher number comes first, in every row. This is the official ranking, an ascending
    argsort read backwards, if its sort is stable; otherwise the official result depends on the machine. Equal scores
    everywhere therefore give chance, not 0 or 100. A candidate at -100 was not scored and ranks behind those that were,
    as officially, which matters if fewer than ten are scored.

    InputError for shapes that do not fit, NaN scores, images without a text and texts without an image.
    """
    score_i2t, score_t2i = (
        scores if scores.is_floating_point() else scores.double()
        for scores in (torch.as_tensor(score_i2t), torch.as_tensor(score_t2i))
    )
    _check_scores(score_i2t, score_t2i)
    images, texts = score_i2t.shape
    correct_texts = _correct_candidates(img2txt, images, texts, 'image', 'text')
    correct_images = _correct_candidates(
        {text: [image] for text, image in txt2img.items()}, texts, images, 'text', 'image'
    )
    txt = _recall(_ranks(score_i2t, correct_texts))
    img = _recall(_ranks(score_t2i, correct_images))
    result = {f'txt_{key}': value for key, value in txt.items()} | {f'img_{key}': value for key, value in img.items()}
    return result | {'r_mean': (txt['r_mean'] + img['r_mean']) / 2}


def _check_scores(score_i2t: Tensor, score_t2i: Tensor) -> None:
    if score_i2t.ndim != 2 or not score_i2t.numel() or score_t2i.shape != score_i2t.shape[::-1]:
        raise InputError(
            f'score_i2t {list(score_i2t.shape)} and score_t2i {list(score_t2i.shape)} must be [NI, NT] and [NT, NI]'
        )
    for name, scores in (('score_i2t', score_i2t), ('score_t2i', score_t2i)):
        bad = torch.isnan(scores).any(dim=1).nonzero()
        if len(bad):
            raise InputError(f'{name} contains NaN in {len(bad)} of {len(scores)} rows, first in row {int(bad[0])}')


def _correct_candidates(
    correct: Mapping[int, Sequence[int]], queries: int, candidates: int, query: str, candidate: str
):
    """The correct candidates of each query, [N, C] int64, padded with -1."""
    for number in range(queries):
        if number not in correct or not len(correct[number]):
            raise InputError(f'{query} {number} has no {candidate}: its recall is not defined')
        for other in correct[number]:
            if not 0 <= other < candidates:
                raise InputError(f'{query} {number} belongs to {candidate} {other}, but there are {candidates} of them')
    if len(correct) != queries:
        raise InputError(f'{len(correct)} {query}s have a {candidate}, but {queries} were scored')
    width = max(len(correct[number]) for number in range(queries))
    rows = [[*correct[number], *[-1] * (width - len(correct[number]))] for number in range(queries)]
    return torch.tensor(rows)  # [N, C]


def _ranks(scores: Tensor, correct: Tensor) -> Tensor:
    """How many candidates come before the best correct one: [N, M], [N, C] -> [N]."""
    correct = correct.to(scores.device)
    parts = zip(scores.split(ROWS), correct.split(ROWS), strict=True)
    return torch.cat([_ranks_of_some(some, its_correct) for some, its_correct in parts])


def _ranks_of_some(scores: Tensor, correct: Tensor) -> Tensor:
    own = scores.gather(1, correct.clamp(min=0))  # [N, C]
    own = own.masked_fill(correct < 0, -torch.inf)
    best = own.max(dim=1, keepdim=True).values  # [N, 1]
    number = correct.masked_fill(own != best, -1).max(dim=1, keepdim=True).values  # [N, 1], the first of equal ones
    candidates = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > best) | ((scores == best) & (candidates > number))  # [N, M]
    return before.sum(dim=1)


def _recall(ranks: Tensor) -> dict[str, float]:
    values = {f'r{k}': 100.0 * int((ranks < k).sum()) / len(ranks) for k in (1, 5, 10)}
    return values | {'r_mean': sum(values.values()) / 3}
