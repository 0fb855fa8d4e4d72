"""ECCV-Caption and CxC: retrieval on COCO with the correct pairs that COCO itself does not list.

COCO counts one image as correct for a caption and five captions for an image, although others fit as well. CxC
(https://arxiv.org/abs/2004.15020) and ECCV-Caption (https://arxiv.org/abs/2204.03359) add verified pairs. The optional
package `eccv-caption` contains their annotations and metrics; `Retrieval.py --set eccv_caption=true` uses it.

Legend: NI images, NT texts, N queries (rows), M candidates (columns), K candidates of each query that a metric reads.
"""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.errors import InputError

ROWS = 1024  # queries ranked at a time: limits the memory to a few [1024, M] matrices
RECALL_AT = (1, 5, 10)
SIDES = {'txt': 'i2t', 'img': 't2i'}  # txt_*: texts are ranked for images
METRICS = {
    'eccv': {'r1': 'eccv_r1', 'map_at_r': 'eccv_map_at_r', 'r_precision': 'eccv_rprecision'},
    'cxc': {f'r{k}': f'cxc_r{k}' for k in RECALL_AT},
}
TITLES = {'txt': 'TR', 'img': 'IR'}
HEADS = {f'r{k}': str(k) for k in RECALL_AT} | {'map_at_r': 'mAP@R', 'r_precision': 'R-P'}


def load_evaluator() -> Any:
    """`Metrics` of the package with its annotations. InputError with the command if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # it prefers ujson to json
            from eccv_caption import Metrics
    except ImportError as error:
        raise InputError(
            f'eccv_caption: its package cannot be imported ({error}); install it with `pip install eccv-caption`, or '
            'set eccv_caption: false'
        ) from None
    return Metrics()


def check_eccv(image_ids: Sequence[int], caption_ids: Sequence[int]) -> None:
    """InputError if the package is missing, if ids repeat, or if a query of its annotations is not among them."""
    evaluator = load_evaluator()
    for what, ids, side in (('image', image_ids, 'i2t'), ('caption', caption_ids, 't2i')):
        wanted = evaluator.cxc_gts[side].keys() | evaluator.eccv_gts[side].keys()
        missing = sorted(wanted - set(ids))
        if missing:
            raise InputError(
                f'eccv_caption: test_file lacks {len(missing)} of {len(wanted)} {what}s that are queries, such as id '
                f"{missing[0]}; give all of Karpathy's test split, as `python -m dataset.prepare coco` writes it"
            )
        if len(set(ids)) < len(ids):
            raise InputError(
                f'eccv_caption: test_file has {len(ids) - len(set(ids))} {what}s with the id of another; make it again '
                'with `python -m dataset.prepare coco`'
            )


def eccv_metrics(
    score_i2t: Tensor,
    score_t2i: Tensor,
    image_ids: Sequence[int],
    caption_ids: Sequence[int],
    evaluator: Any = None,
) -> dict[str, float]:
    """Return `{eccv,cxc}_{txt,img}_METRIC` in percent: `txt_*` ranks texts for images, `img_*` images for texts.

    score_i2t: [NI, NT] and score_t2i: [NT, NI], float32, higher is better; ties as in `retrieval_recall`. image_ids:
    [NI] and caption_ids: [NT], COCO's. evaluator: of `load_evaluator`, which is the default.

    eccv: r1; r_precision, the share of correct ones among the first R, if R are correct; map_at_r, the mean over the
    first R ranks of the precision up to a rank, 0 where the candidate of that rank is wrong. cxc: r1, r5, r10. Means
    over the queries of the respective annotations. Candidates that were not scored (-100) rank behind the others.
    """
    evaluator = evaluator or load_evaluator()
    truths = [truth[side] for truth in (evaluator.eccv_gts, evaluator.cxc_gts) for side in SIDES.values()]
    depth = max(*RECALL_AT, *(len(correct) for truth in truths for correct in truth.values()))
    i2t = _ranked(score_i2t, image_ids, caption_ids, depth)
    t2i = _ranked(score_t2i, caption_ids, image_ids, depth)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars that the package cannot switch off
        values = evaluator.compute_all_metrics(
            i2t, t2i, target_metrics=('eccv_r1', 'eccv_map_at_r', 'eccv_rprecision', 'cxc_recalls'), Ks=RECALL_AT
        )
    return {
        f'{dataset}_{side}_{metric}': 100 * float(values[name][direction])
        for dataset, names in METRICS.items()
        for side, direction in SIDES.items()
        for metric, name in names.items()
    }


def _ranked(scores: Tensor, queries: Sequence[int], candidates: Sequence[int], depth: int) -> dict[int, list[int]]:
    """{id of a query: ids of its best candidates, in order}."""
    best = torch.cat([best_candidates(some, depth) for some in scores.split(ROWS)]).tolist()
    return {query: [candidates[number] for number in row] for query, row in zip(queries, best, strict=True)}


def best_candidates(scores: Tensor, depth: int) -> Tensor:
    """The best `depth` candidates of each query in order, of equal ones the higher number first: [N, M] -> [N, K].

    A float32 and a column number become one int64 of the same order, so that no two are equal and `topk` is exact.
    """
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0: -0.0 equals 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys = (ordered << 32) | torch.arange(scores.shape[1], device=scores.device)
    return keys.topk(min(depth, scores.shape[1])).indices


def eccv_lines(result: Mapping[str, float], rankings: Mapping[str, str]) -> list[str]:
    """The metrics as lines of a text table, none without metrics. rankings: {name: prefix of its keys in `result`}."""
    lines: list[str] = []
    for dataset, title in (('eccv', 'ECCV-Caption in %'), ('cxc', 'CxC in %')):
        columns = {
            f'{TITLES[side]}@{HEADS[metric]}': f'{side}_{metric}' for side in SIDES for metric in METRICS[dataset]
        }
        shown = {name: prefix for name, prefix in rankings.items() if f'{prefix}_{dataset}_txt_r1' in result}
        lines += [f'{title:24}' + ''.join(f'{head:>9}' for head in columns)] * bool(shown)
        for name, prefix in shown.items():
            cells = (f'{result[f"{prefix}_{dataset}_{key}"]:9.2f}' for key in columns.values())
            lines.append(f'{name:24}' + ''.join(cells))
    return lines
