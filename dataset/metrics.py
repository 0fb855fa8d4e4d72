"""The figures that the benchmarks report: recall of retrieval, VQA v2 accuracy, NLVR2 consistency.

    python -m dataset.metrics table OUTPUT_DIR ...   prints the key figures of finished runs side by side

Legend: NI images, NT texts, N queries (rows), M candidates (columns), C the most right candidates that a query has.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dataset.log_table import log_table
from dataset.vqa_eval import vqa_accuracy, vqa_accuracy_per_question

__all__ = ['nlvr_consistency', 'retrieval_recall', 'vqa_accuracy', 'vqa_accuracy_per_question']

ROWS = 1024  # queries ranked at a time: bounds the memory to a few [1024, M] masks


def retrieval_recall(
    score_i2t, score_t2i, txt2img: Mapping[int, int], img2txt: Mapping[int, Sequence[int]]
) -> dict[str, float]:
    """Return recall at 1, 5 and 10 in percent: `txt_*` ranks texts for images, `img_*` images for texts.

    score_i2t: [NI, NT] and score_t2i: [NT, NI], arrays or tensors, higher is better. txt2img: {text: image} and
    img2txt: {image: its texts}, numbered as the rows. An image's rank is that of its best text.

    Ties: the candidate with the higher number comes first, in every row. That is the official ranking, an ascending
    argsort read backwards, wherever its sort is stable; elsewhere the official result depends on the machine. Equal
    scores everywhere so give chance, not 0 or 100. A candidate at -100 was not scored; it takes a place behind those
    that were, as officially, which matters where fewer than ten are scored.

    Raises ValueError for shapes that do not fit, NaN scores, images without a text and texts without an image.
    """
    score_i2t, score_t2i = (
        scores if scores.is_floating_point() else scores.double()
        for scores in (torch.as_tensor(score_i2t), torch.as_tensor(score_t2i))
    )
    _check_scores(score_i2t, score_t2i)
    images, texts = score_i2t.shape
    right_texts = _right_candidates(img2txt, images, texts, 'image', 'text')
    right_images = _right_candidates({text: [image] for text, image in txt2img.items()}, texts, images, 'text', 'image')
    txt = _recall(_ranks(score_i2t, right_texts))
    img = _recall(_ranks(score_t2i, right_images))
    result = {f'txt_{key}': value for key, value in txt.items()} | {f'img_{key}': value for key, value in img.items()}
    return result | {'r_mean': (txt['r_mean'] + img['r_mean']) / 2}


def nlvr_consistency(identifiers: Sequence[str], correct: Sequence[bool]) -> float:
    """Return the share of sentences that are judged rightly on every pair of pictures they are said of (0 to 1).

    identifiers: NLVR2's `split-set-pair-sentence`; rows that differ only in the pair share their sentence.
    correct: whether the prediction of each row is right.
    """
    if len(identifiers) != len(correct) or not len(identifiers):
        raise ValueError(f'{len(identifiers)} identifiers for {len(correct)} predictions; give one for each row')
    sentences: dict[tuple[str, str, str], bool] = {}
    for identifier, right in zip(identifiers, correct, strict=True):
        parts = identifier.split('-')
        if len(parts) != 4:
            raise ValueError(f"identifier {identifier!r} is not 'split-set-pair-sentence', such as 'dev-850-0-0'")
        sentence = (parts[0], parts[1], parts[3])
        sentences[sentence] = sentences.get(sentence, True) and bool(right)
    return sum(sentences.values()) / len(sentences)


def _check_scores(score_i2t: Tensor, score_t2i: Tensor) -> None:
    if score_i2t.ndim != 2 or not score_i2t.numel() or score_t2i.shape != score_i2t.shape[::-1]:
        raise ValueError(
            f'score_i2t {list(score_i2t.shape)} and score_t2i {list(score_t2i.shape)} must be [NI, NT] and [NT, NI]'
        )
    for name, scores in (('score_i2t', score_i2t), ('score_t2i', score_t2i)):
        bad = torch.isnan(scores).any(dim=1).nonzero()
        if len(bad):
            raise ValueError(f'{name} holds NaN in {len(bad)} of {len(scores)} rows, first in row {int(bad[0])}')


def _right_candidates(right: Mapping[int, Sequence[int]], queries: int, candidates: int, query: str, candidate: str):
    """The right candidates of each query, [N, C] int64, filled up with -1."""
    for number in range(queries):
        if number not in right or not len(right[number]):
            raise ValueError(f'{query} {number} has no {candidate}: its recall is not defined')
        for other in right[number]:
            if not 0 <= other < candidates:
                raise ValueError(f'{query} {number} belongs to {candidate} {other}, but there are {candidates} of them')
    if len(right) != queries:
        raise ValueError(f'{len(right)} {query}s have a {candidate}, but {queries} were scored')
    width = max(len(right[number]) for number in range(queries))
    rows = [[*right[number], *[-1] * (width - len(right[number]))] for number in range(queries)]
    return torch.tensor(rows)  # [N, C]


def _ranks(scores: Tensor, right: Tensor) -> Tensor:
    """How many candidates come before the best right one: [N, M], [N, C] -> [N]."""
    right = right.to(scores.device)
    parts = zip(scores.split(ROWS), right.split(ROWS), strict=True)
    return torch.cat([_ranks_of_some(some, its_right) for some, its_right in parts])


def _ranks_of_some(scores: Tensor, right: Tensor) -> Tensor:
    own = scores.gather(1, right.clamp(min=0))  # [N, C]
    own = own.masked_fill(right < 0, -torch.inf)
    best = own.max(dim=1, keepdim=True).values  # [N, 1]
    number = right.masked_fill(own != best, -1).max(dim=1, keepdim=True).values  # [N, 1], the first of equal ones
    candidates = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > best) | ((scores == best) & (candidates > number))  # [N, M]
    return before.sum(dim=1)


def _recall(ranks: Tensor) -> dict[str, float]:
    values = {f'r{k}': 100.0 * int((ranks < k).sum()) / len(ranks) for k in (1, 5, 10)}
    return values | {'r_mean': sum(values.values()) / 3}


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m dataset.metrics', description='Figures of finished runs.')
    commands = parser.add_subparsers(dest='command', required=True)
    table = commands.add_parser('table', help='print a Markdown table of the key figures of output folders')
    table.add_argument('output_dir', nargs='+', help='a folder with the log.txt of a run')
    arguments = parser.parse_args(argv)
    try:
        print(log_table(arguments.output_dir))
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
