"""Re-ranking image by image (`models.rerank`) against one pair after the other: operations and seconds of the same
model.

    python benchmarks/bench_rerank.py                   # ViT-B/16 and BERT-base at 384 px, captions of about ten words
    python benchmarks/bench_rerank.py --words 60        # captions too long to be padded: the least saving
    python benchmarks/bench_rerank.py --count_only true # operations alone, at any size: --images 1000 --k 128

Both score the same candidates of random features, texts being image tokens and captions at random: neither operations
nor seconds depend on values. Pair by pair is the official way: the images' tokens are projected again for each of their
texts, texts are padded to 30 tokens, and a pair wanted from both sides is scored twice. Encoding is not part of either.
"""

import argparse
import os
import sys
import time
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from models.rerank import Encoded, best_candidates, merge_pairs, rerank, scatter_scores, score_texts  # noqa: E402
from models.xbert import BertConfig, create_bert  # noqa: E402
from utils.arguments import add_flag  # noqa: E402

PADDED = 30  # tokens


class Matching(torch.nn.Module):
    """The part of the retrieval model that re-ranks."""

    def __init__(self):
        super().__init__()
        self.text_encoder = create_bert(BertConfig())
        self.itm_head = torch.nn.Linear(768, 2)


def random_encoded(images, captions, words, tokens, seed=0):
    """What encoding would leave: features, image tokens [P, 768] and captions of `words` words on average, [CLS]
    besides.
    """
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
def score_pairs(model, encoded, images, texts):
    """Scores of n pairs as one batch, each with its own image projected and its text padded: two of [n] -> [n]."""
    place = torch.arange(PADDED)
    lengths = encoded.text_lengths[texts]
    starts = (encoded.text_lengths.cumsum(0) - encoded.text_lengths)[texts]
    tokens = (starts[:, None] + place).clamp(max=len(encoded.text_embeds) - 1)  # [n, 30]; behind a text lies another's
    memory = model.text_encoder.project(torch.stack([encoded.image_embeds[image] for image in images.tolist()]))
    fused = model.text_encoder(
        mode='fusion',
        hidden=encoded.text_embeds[tokens.to(encoded.text_embeds.device)],
        attention_mask=(place < lengths[:, None]).to(encoded.text_embeds.device),
        memory=memory,
    )
    return model.itm_head(fused[:, 0])[:, 1]


def pair_by_pair(model, encoded, sim_i2t, k):
    """The official way -> (i2t, t2i), as `rerank` returns them: a batch for every image and for every text."""
    best_texts, best_images = best_candidates(sim_i2t, k), best_candidates(sim_i2t.t(), k)
    of_images = [score_pairs(model, encoded, torch.full_like(texts, i), texts) for i, texts in enumerate(best_texts)]
    of_texts = [score_pairs(model, encoded, images, torch.full_like(images, i)) for i, images in enumerate(best_images)]
    return (
        scatter_scores(torch.cat(of_images), best_texts, len(best_images)),
        scatter_scores(torch.cat(of_texts), best_images, len(best_texts)),
    )


def count_operations(encoded, sim_i2t, k):
    """Operations of both ways, 2 a multiply-add, attention counted as products: (pair by pair, image by image).

    Counted on the real candidates and lengths, but without values, which takes no time. All pairs of the first way are
    alike.
    """
    with torch.device('meta'):
        model = Matching().eval()
    encoded = replace(
        encoded,
        image_embeds={i: tokens.to('meta') for i, tokens in encoded.image_embeds.items()},
        text_embeds=encoded.text_embeds.to('meta'),
    )
    best_texts, best_images = best_candidates(sim_i2t, k), best_candidates(sim_i2t.t(), k)
    pairs, place = merge_pairs(best_texts, best_images)
    with FlopCounterMode(display=False) as plain, sdpa_kernel(SDPBackend.MATH):
        score_pairs(model, encoded, torch.tensor([0]), torch.tensor([0]))
    with FlopCounterMode(display=False) as fast, sdpa_kernel(SDPBackend.MATH):
        for image, tokens in encoded.image_embeds.items():
            score_texts(model, tokens, encoded, pairs[pairs // len(best_images) == image] % len(best_images))
    return plain.get_total_flops() * len(place), fast.get_total_flops()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--images', type=int, default=12)
    parser.add_argument('--captions', type=int, default=5, help='of each image')
    parser.add_argument('--words', type=float, default=10.5, help='of a caption on average, 2.5 more or less')
    parser.add_argument('--k', type=int, default=4, help='candidates re-ranked of each image and each text')
    parser.add_argument('--image_res', type=int, default=384)
    parser.add_argument('--threads', type=int, default=1)
    add_flag(parser, '--count_only', False, 'do not run anything')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokens = 1 + (args.image_res // 16) ** 2
    encoded = random_encoded(args.images, args.captions, args.words, tokens)
    sim_i2t = encoded.similarities()
    wanted = sum(best_candidates(sim, args.k).numel() for sim in (sim_i2t, sim_i2t.t()))
    print(
        f'{args.images} images of {args.image_res} px, {len(encoded.text_lengths)} texts of '
        f'{encoded.text_lengths.float().mean():.1f} tokens, best {args.k}: {wanted} pairs'
    )
    plain, fast = count_operations(encoded, sim_i2t, args.k)
    print(
        f'operations: pair by pair {plain / 1e12:.3f} TFLOP ({plain / wanted / 1e9:.2f} GFLOP a pair), '
        f'image by image {fast / 1e12:.3f} TFLOP: {fast / plain:.3f} of it'
    )
    if args.count_only:
        return
    model = Matching().eval()
    pair_by_pair(model, encoded, sim_i2t[:1, :1], 1)  # the first use of a library is slow
    results = []
    for name, way in (('pair by pair', pair_by_pair), ('image by image', rerank)):
        wall, cpu = time.perf_counter(), time.process_time()
        scores = way(model, encoded, sim_i2t, args.k)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        results.append((cpu, scores))
        print(f'{name}: {cpu:.1f} s of computing, {wall:.1f} s elapsed, on {args.threads} thread(s)')
    (plain, slow_scores), (fast, fast_scores) = results
    difference = max((a - b).abs().max().item() for a, b in zip(slow_scores, fast_scores, strict=True))
    print(f'{plain / fast:.1f} times less computing time; the scores differ by at most {difference:.1e}')


if __name__ == '__main__':
    main()
