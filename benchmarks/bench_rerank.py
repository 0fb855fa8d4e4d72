"""Re-ranking image by image (`models.rerank`) compared with pair by pair: FLOPs and seconds of the same model.

    python benchmarks/bench_rerank.py                   # ViT-B/16 and BERT-base at 384 px, captions of about ten words
    python benchmarks/bench_rerank.py --words 60        # captions so long that none is padded: the smallest saving
    python benchmarks/bench_rerank.py --count_only true # FLOPs only, for any size: --images 1000 --k 128

On a GPU the default size is Flickr30k's test split: 1,000 images, 5,000 captions, k 128. Both ways score the same
candidates; that they give the same scores is checked first, on a part of them. Features, image tokens and captions are
random: neither FLOPs nor seconds depend on values. Pair by pair is the official way: the tokens of an image are
projected again for each of its texts, texts are padded to 30 tokens, and a pair that both directions need is scored
twice. Both use the fused attention of PyTorch, and encoding is part of neither. On a CPU seconds are CPU time,
and `of peak` divides by what a product of large matrices reaches per second of CPU time.

Legend: NI images, NT texts, P image tokens (1 + patches), n pairs.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.report import Report, add_arguments, exact_products, matrix_peak, take_turns  # noqa: E402
from models.bert_layers import BertConfig  # noqa: E402
from models.rerank import Encoded, best_candidates, merge_pairs, rerank, scatter_scores, score_texts  # noqa: E402
from models.xbert import create_bert  # noqa: E402
from utils.arguments import Parser, add_flag, positive_int  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402

PADDED = 30  # tokens of a padded text
PATCH = 16  # pixels of a patch side
TOLERANCE = 1e-4  # of scores, in float32
ROUNDED_TOLERANCE = 0.05  # of all scores on a GPU, which computes them in TF32


class ItmModel(torch.nn.Module):
    """The part of the retrieval model that computes ITM."""

    def __init__(self):
        super().__init__()
        self.text_encoder = create_bert(BertConfig())
        self.itm_head = torch.nn.Linear(768, 2)


def random_encoded(images: int, captions: int, words: float, tokens: int, seed: int = 0) -> Encoded:
    """A random result of encoding: features, image tokens [P, 768], captions of [CLS] and `words` words on average."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (1 + words + 2.5 * torch.randn(images * captions, generator=generator)).round().long().clamp(5, PADDED)
    feats = [
        torch.nn.functional.normalize(torch.randn(n, 256, generator=generator)) for n in (images, images * captions)
    ]
    return Encoded(
        *feats,
        {i: torch.randn(tokens, 768, generator=generator) for i in range(images)},
        torch.randn(int(lengths.sum()), 768, generator=generator),
        lengths,
    )


def move(encoded: Encoded, device: torch.device | str) -> Encoded:
    """The same on another device; lengths stay on the CPU, as `rerank` has them."""
    return Encoded(
        encoded.image_feat.to(device),
        encoded.text_feat.to(device),
        {number: tokens.to(device) for number, tokens in encoded.image_embeds.items()},
        encoded.text_embeds.to(device),
        encoded.text_lengths,
    )


def first_images(encoded: Encoded, images: int, texts: int) -> Encoded:
    """The first images and texts of a split."""
    tokens = int(encoded.text_lengths[:texts].sum())
    return Encoded(
        encoded.image_feat[:images],
        encoded.text_feat[:texts],
        {number: encoded.image_embeds[number] for number in range(images)},
        encoded.text_embeds[:tokens],
        encoded.text_lengths[:texts],
    )


@torch.no_grad()
def score_pairs(model: ItmModel, encoded: Encoded, images: Tensor, texts: Tensor) -> Tensor:
    """Scores of n pairs as one batch: the image of each is projected, its text padded: two of [n] on the CPU -> [n]."""
    position = torch.arange(PADDED)
    lengths = encoded.text_lengths[texts]
    starts = (encoded.text_lengths.cumsum(0) - encoded.text_lengths)[texts]
    tokens = (starts[:, None] + position).clamp(max=len(encoded.text_embeds) - 1)  # [n, 30]; padding: the next text's
    memory = model.text_encoder.project(torch.stack([encoded.image_embeds[image] for image in images.tolist()]))
    fused = model.text_encoder(
        mode='fusion',
        hidden=encoded.text_embeds[tokens.to(encoded.text_embeds.device)],
        attention_mask=(position < lengths[:, None]).to(encoded.text_embeds.device),
        memory=memory,
    )
    return model.itm_head(fused[:, 0])[:, 1]


def pair_by_pair(model: ItmModel, encoded: Encoded, sim_i2t: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The official way: one batch per image and one per text -> (i2t [NI, NT], t2i [NT, NI]), as `rerank` does."""
    best_texts, best_images = best_candidates(sim_i2t, k).cpu(), best_candidates(sim_i2t.t(), k).cpu()
    of_images = [score_pairs(model, encoded, torch.full_like(texts, i), texts) for i, texts in enumerate(best_texts)]
    of_texts = [score_pairs(model, encoded, images, torch.full_like(images, i)) for i, images in enumerate(best_images)]
    return (
        scatter_scores(torch.cat(of_images).cpu(), best_texts, len(best_images)),
        scatter_scores(torch.cat(of_texts).cpu(), best_images, len(best_texts)),
    )


def count_operations(encoded: Encoded, sim_i2t: Tensor, k: int) -> tuple[int, int]:
    """FLOPs of both ways, 2 for each multiply-add, attention counted as products: (pair by pair, image by image).

    They are counted for the real candidates and lengths, but on tensors without values, which takes no time. Pair by
    pair, every pair costs the same.
    """
    with torch.device('meta'):
        model = ItmModel().eval()
    encoded = replace(
        encoded,
        image_embeds={i: tokens.to('meta') for i, tokens in encoded.image_embeds.items()},
        text_embeds=encoded.text_embeds.to('meta'),
    )
    best_texts, best_images = best_candidates(sim_i2t, k), best_candidates(sim_i2t.t(), k)
    pairs, position = merge_pairs(best_texts, best_images)
    with FlopCounterMode(display=False) as plain, sdpa_kernel(SDPBackend.MATH):
        score_pairs(model, encoded, torch.tensor([0]), torch.tensor([0]))
    with FlopCounterMode(display=False) as fast, sdpa_kernel(SDPBackend.MATH):
        for image, tokens in encoded.image_embeds.items():
            score_texts(model, tokens, encoded, pairs[pairs // len(best_images) == image] % len(best_images))
    return plain.get_total_flops() * len(position), fast.get_total_flops()


def compare(model: ItmModel, encoded: Encoded, k: int) -> float:
    """The largest difference of scores of both ways on the first three images; InputError above `TOLERANCE`."""
    images = min(3, len(encoded.image_embeds))
    part = first_images(encoded, images, len(encoded.text_lengths) * images // len(encoded.image_embeds))
    sim = part.similarities()
    difference = largest_difference(pair_by_pair(model, part, sim, min(k, 2)), rerank(model, part, sim, min(k, 2)))
    if not difference <= TOLERANCE:
        raise InputError(f'scores of pair by pair and image by image differ by {difference:.1e}; no times are measured')
    return difference


def largest_difference(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, two, strict=True))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=positive_int, help='(default: 12; on a GPU 1,000)')
    parser.add_argument('--captions', type=positive_int, default=5, help='of each image (default %(default)s)')
    parser.add_argument(
        '--words',
        type=float,
        default=10.5,
        help='mean of a caption; the standard deviation is 2.5 (default %(default)s)',
    )
    parser.add_argument(
        '--k', type=positive_int, help='candidates to re-rank of each image and text (default: 4; on a GPU 128)'
    )
    parser.add_argument('--image_res', type=int, default=384, help='resolution in pixels (default %(default)s)')
    parser.add_argument('--rounds', type=positive_int, default=1, help='timed runs of each way (default %(default)s)')
    parser.add_argument('--threads', type=positive_int, default=1, help='of the CPU (default %(default)s)')
    add_flag(parser, '--count_only', False, 'count FLOPs, do not run the model')
    add_arguments(parser, 'rerank')
    args = parser.parse_args(argv)
    if args.image_res < PATCH or args.image_res % PATCH:
        raise InputError(f'--image_res {args.image_res}: must be a multiple of {PATCH}')
    return args


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds: on a CPU those of all threads together."""
    return time.process_time if device.type == 'cpu' else time.perf_counter


def measure(encoded: Encoded, sim_i2t: Tensor, k: int, args: argparse.Namespace, device: torch.device) -> dict:
    """Check both ways, then time them: {column: value}."""
    torch.manual_seed(0)
    model = ItmModel().eval().to(device)
    encoded = move(encoded, device)
    with exact_products(device):
        difference = compare(model, encoded, k)
    sim_i2t, scores = sim_i2t.to(device), {}

    def run(name: str, way: Callable) -> None:
        scores[name] = way(model, encoded, sim_i2t, k)

    ways = {'plain': partial(run, 'plain', pair_by_pair), 'ours': partial(run, 'ours', rerank)}
    seconds = take_turns(ways, args.rounds, device, clock=clock_of(device))
    rounded = largest_difference(scores['plain'], scores['ours'])
    if not rounded <= (TOLERANCE if device.type == 'cpu' else ROUNDED_TOLERANCE):
        raise InputError(f'scores of pair by pair and image by image differ by {rounded:.1e}')
    best = {name: min(taken) for name, taken in seconds.items()}
    times = {'plain s': best['plain'], 's': best['ours'], 'ratio': best['plain'] / best['ours']}
    return times | {'difference': difference, 'difference of all scores': rounded, 'seconds': seconds}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    report = Report('rerank', args, argv)
    images, k = ((12, 4), (1000, 128))[report.device.type == 'cuda']
    images, k = args.images or images, args.k or k
    encoded = random_encoded(images, args.captions, args.words, 1 + (args.image_res // PATCH) ** 2)
    sim_i2t = encoded.similarities()
    plain, ours = count_operations(encoded, sim_i2t, k)
    row = {
        'images': images,
        'px': args.image_res,
        'texts': len(encoded.text_lengths),
        'tokens': encoded.text_lengths.float().mean().item(),
        'k': k,
        'pairs': sum(best_candidates(sim, k).numel() for sim in (sim_i2t, sim_i2t.t())),
        'plain TFLOP': plain / 1e12,
        'TFLOP': ours / 1e12,
        'FLOP ratio': plain / ours,
    }
    details = {}
    if not args.count_only:
        peak = matrix_peak(report.device, torch.float32, clock=clock_of(report.device)) / 1e12
        report.facts[f'peak TFLOP/s{" of a thread" if report.device.type == "cpu" else ""}'] = peak
        details = measure(encoded, sim_i2t, k, args, report.device)
        row |= {name: details.pop(name) for name in ('plain s', 's', 'ratio')}
        row['of peak'] = ours / 1e12 / row['s'] / peak
    report.add(row, **details)
    report.finish()


if __name__ == '__main__':
    run_main(main)
