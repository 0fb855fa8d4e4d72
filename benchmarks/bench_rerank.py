"""Re-ranking image by image (`models.rerank`) compared with pair by pair: FLOPs and seconds of the same model.

    python benchmarks/bench_rerank.py                   # ViT-B/16 and BERT-base at 384 px, captions of about ten words
    python benchmarks/bench_rerank.py --words 60        # captions so long that none is padded: the smallest saving
    python benchmarks/bench_rerank.py --count_only true # FLOPs only, for any size: --images 1000 --k 128

Both ways score the same candidates. Features, image tokens and captions are random: neither FLOPs nor seconds depend on
values. Pair by pair is the official way: the tokens of an image are projected again for each of its texts, texts are
padded to 30 tokens, and a pair that both directions need is scored twice. Encoding is not part of either.

Legend: NI images, NT texts, P image tokens (1 + patches), n pairs.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from models.rerank import Encoded, best_candidates, merge_pairs, rerank, scatter_scores, score_texts  # noqa: E402
from models.xbert import BertConfig, create_bert  # noqa: E402
from utils.arguments import Parser, add_flag  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402

PADDED = 30  # tokens of a padded text
PATCH = 16  # pixels of a patch side


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


@torch.no_grad()
def score_pairs(model: ItmModel, encoded: Encoded, images: Tensor, texts: Tensor) -> Tensor:
    """Scores of n pairs as one batch: the image of each is projected, its text is padded: two of [n] -> [n]."""
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
    best_texts, best_images = best_candidates(sim_i2t, k), best_candidates(sim_i2t.t(), k)
    of_images = [score_pairs(model, encoded, torch.full_like(texts, i), texts) for i, texts in enumerate(best_texts)]
    of_texts = [score_pairs(model, encoded, images, torch.full_like(images, i)) for i, images in enumerate(best_images)]
    return (
        scatter_scores(torch.cat(of_images), best_texts, len(best_images)),
        scatter_scores(torch.cat(of_texts), best_images, len(best_texts)),
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


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=12, help='(default %(default)s)')
    parser.add_argument('--captions', type=int, default=5, help='of each image (default %(default)s)')
    parser.add_argument(
        '--words',
        type=float,
        default=10.5,
        help='mean of a caption; the standard deviation is 2.5 (default %(default)s)',
    )
    parser.add_argument(
        '--k', type=int, default=4, help='candidates to re-rank of each image and text (default %(default)s)'
    )
    parser.add_argument('--image_res', type=int, default=384, help='resolution in pixels (default %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='of the CPU (default %(default)s)')
    add_flag(parser, '--count_only', False, 'count FLOPs, do not run the model')
    args = parser.parse_args(argv)
    for name in ('images', 'captions', 'k', 'threads'):
        if getattr(args, name) < 1:
            raise InputError(f'--{name} {getattr(args, name)}: must be at least 1')
    if args.image_res < PATCH or args.image_res % PATCH:
        raise InputError(f'--image_res {args.image_res}: must be a multiple of {PATCH}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    tokens = 1 + (args.image_res // PATCH) ** 2
    encoded = random_encoded(args.images, args.captions, args.words, tokens)
    sim_i2t = encoded.similarities()
    scored = sum(best_candidates(sim, args.k).numel() for sim in (sim_i2t, sim_i2t.t()))
    print(
        f'{args.images} images of {args.image_res} px, {len(encoded.text_lengths)} texts of '
        f'{encoded.text_lengths.float().mean():.1f} tokens, best {args.k}: {scored} pairs'
    )
    plain, fast = count_operations(encoded, sim_i2t, args.k)
    print(
        f'pair by pair {plain / 1e12:.3f} TFLOP ({plain / scored / 1e9:.2f} GFLOP per pair), '
        f'image by image {fast / 1e12:.3f} TFLOP: {fast / plain:.3f} of it'
    )
    if args.count_only:
        return
    model = ItmModel().eval()
    pair_by_pair(model, encoded, sim_i2t[:1, :1], 1)  # the first use of a library is slow
    results = []
    for name, way in (('pair by pair', pair_by_pair), ('image by image', rerank)):
        wall, cpu = time.perf_counter(), time.process_time()
        scores = way(model, encoded, sim_i2t, args.k)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        results.append((cpu, scores))
        print(f'{name}: {cpu:.1f} s of CPU time, {wall:.1f} s elapsed, on {args.threads} thread(s)')
    (plain, slow_scores), (fast, fast_scores) = results
    difference = max((a - b).abs().max().item() for a, b in zip(slow_scores, fast_scores, strict=True))
    print(f'pair by pair takes {plain / fast:.1f} times the CPU time; the scores differ by at most {difference:.1e}')


if __name__ == '__main__':
    run_main(main)
