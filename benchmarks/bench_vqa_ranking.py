"""Ranking of VQA's answers (`models.answer_ranking`) compared with the official way: seconds of the same decoder.

    python benchmarks/bench_vqa_ranking.py                      # 3,128 answers, k 128, BERT-base
    python benchmarks/bench_vqa_ranking.py --questions 16 --k 128
    python benchmarks/bench_vqa_ranking.py --lengths 1          # all answers have one token: the largest saving

Both ways take the first step of the decoder once per question, which selects k answers. The official way then repeats
the states of the question for each of them, projects them to keys and values every time, computes the whole answer
again from [CLS] on, padded to the longest of the list, vocabulary logits at every position included, and has no fused
attention. That both give the same answers and probabilities is checked first. States of the questions are random: the
reading of images and questions is part of neither. On a CPU seconds are CPU time, by default of one thread, as in
`VQA.py`, and `of peak` divides by what a product of large matrices reaches per second of CPU time.

The answers are random tokens. How many have 1, 2, 3, ... tokens besides [CLS] and [SEP] is an assumption: most are one
word. (Of the answers that people give, 89, 7 and 3 % have one, two and three words, as published with VQA; a list
without repetition has more long ones.)

Legend: B questions, S question tokens, A answers in the list, L answer tokens, D width.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.counting import CLS, MASK, PAD, count_flops  # noqa: E402
from benchmarks.plain_layers import decode  # noqa: E402
from benchmarks.report import Report, add_arguments, exact_products, matrix_peak, take_turns  # noqa: E402
from dataset.tokens import Text  # noqa: E402
from models.answer_ranking import rank_answers  # noqa: E402
from models.bert_layers import BertConfig  # noqa: E402
from models.xbert import BertWithHead, create_bert  # noqa: E402
from utils.arguments import Parser, positive_int  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402

SEP = 102
LENGTHS = (0.70, 0.20, 0.07, 0.02, 0.01)  # share of the answers with 1, 2, ... tokens
TOLERANCE = (
    1e-4  # of probabilities, relative, in float32: that of their logarithms, which are sums of scores of 10 each
)
HEAD_WIDTH = 64


def random_answers(count: int, lengths: Sequence[float], vocabulary: int) -> Text:
    """A list of answers, [CLS] tokens [SEP], padded to the longest: [A, L]. lengths: shares of those with 1, 2, ..."""
    most = [round(count * sum(lengths[: i + 1]) / sum(lengths)) for i in range(len(lengths))]
    sizes = torch.bucketize(torch.arange(count), torch.tensor(most), right=True)[torch.randperm(count)] + 1
    position = torch.arange(2 + int(sizes.max()))
    ids = torch.randint(MASK + 1, vocabulary, (count, len(position)))
    ids[:, 0] = CLS
    ids = ids.masked_fill(position == sizes[:, None] + 1, SEP).masked_fill(position > sizes[:, None] + 1, PAD)
    return Text(ids, (ids != PAD).long())


@torch.no_grad()
def rank_plainly(
    decoder: BertWithHead, states: Tensor, mask: Tensor, answers: Text, k: int, pad: int
) -> tuple[Tensor, Tensor]:
    """The official way, arguments and results as of `rank_answers`: the chosen answers run as a whole, k per question.

    states: [B, S, D]. mask: [B, S]. answers: [A, L]. Returns (ids [B, k], scores [B, k]), best first.
    """
    ids, scores = plain_scores(decoder, states, mask, answers, k, pad)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), scores.softmax(dim=1)


def plain_scores(
    decoder: BertWithHead, states: Tensor, mask: Tensor, answers: Text, k: int, pad: int
) -> tuple[Tensor, Tensor]:
    """(the k answers with the most probable first tokens [B, k], their scores [B, k])."""
    batch = len(states)
    start = answers.input_ids[:1, :1].expand(batch, 1)
    first = F.log_softmax(decode(decoder, start, torch.ones_like(start), states, mask)[:, 0], dim=1)  # [B, V]
    of_answers = first.index_select(1, answers.input_ids[:, 1])  # [B, A]
    first_token, chosen = of_answers.sort(dim=1, descending=True, stable=True)
    first_token, chosen = first_token[:, :k], chosen[:, :k]
    rows, attended = answers.input_ids[chosen.flatten()], answers.attention_mask[chosen.flatten()]  # [B*k, L]
    repeated = states.repeat_interleave(chosen.shape[1], dim=0), mask.repeat_interleave(chosen.shape[1], dim=0)
    logits = decode(decoder, rows, attended, *repeated)[:, :-1].flatten(0, 1)  # [B*k*(L-1), V]
    labels = rows[:, 1:].masked_fill(rows[:, 1:] == pad, -100)  # [B*k, L-1]
    loss = F.cross_entropy(logits, labels.flatten(), reduction='none', ignore_index=-100)
    return chosen, first_token - loss.view(labels.shape).sum(dim=1).view(chosen.shape)


def compare(decoder: BertWithHead, states: Tensor, mask: Tensor, answers: Text, k: int) -> float:
    """The largest relative difference of probabilities of both ways; InputError above `TOLERANCE`.

    Both are compared answer by answer, so two may change places if their probabilities are equal within the tolerance.
    """
    inputs = decoder, states, mask, answers, k, PAD
    ours, plain = (
        torch.zeros(len(states), len(answers.input_ids), device=states.device).scatter(1, *rank(*inputs))
        for rank in (rank_answers, rank_plainly)
    )  # [B, A], 0 where an answer was not chosen
    difference = ((ours - plain).abs() / plain.where(plain > 0, 1)).max().item()
    if not difference <= TOLERANCE:
        raise InputError(
            f'probabilities of ours and of the plain way differ by {difference:.1e}; no times are measured'
        )
    return difference


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--questions', type=positive_int, help='in a batch (default: 2; on a GPU 16)')
    parser.add_argument('--tokens', type=positive_int, default=12, help='of the longest question (default %(default)s)')
    parser.add_argument('--answers', type=positive_int, default=3128, help='in the list (default %(default)s)')
    parser.add_argument('--k', type=positive_int, default=128, help='answers to rank (default %(default)s)')
    parser.add_argument(
        '--lengths', type=float, nargs='+', default=LENGTHS, help='shares of answers with 1, 2, ... tokens'
    )
    parser.add_argument('--width', type=positive_int, default=768, help='of the decoder (default %(default)s)')
    parser.add_argument('--layers', type=positive_int, default=6, help='of the decoder (default %(default)s)')
    parser.add_argument('--rounds', type=positive_int, help='timed runs of each way (default: 3; on a GPU 10)')
    parser.add_argument('--threads', type=positive_int, default=1, help='of the CPU (default %(default)s)')
    add_arguments(parser, 'vqa_ranking')
    args = parser.parse_args(argv)
    if min(args.lengths) < 0 or not 0 < sum(args.lengths) < float('inf'):
        raise InputError(f'--lengths {" ".join(map(str, args.lengths))}: must be shares, at least one above 0')
    if args.width % HEAD_WIDTH:
        raise InputError(f'--width {args.width}: must be a multiple of {HEAD_WIDTH}')
    return args


def create_inputs(args: argparse.Namespace, questions: int, device: torch.device) -> tuple:
    """(decoder, states [B, S, D], mask [B, S], answers [A, L]): random, the shape of ALBEF's decoder by default."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // HEAD_WIDTH,
        intermediate_size=4 * args.width,
        fusion_layer=0,
        encoder_width=args.width,
    )
    answers = random_answers(args.answers, args.lengths, config.vocab_size)
    lengths = torch.randint((args.tokens + 1) // 2, args.tokens + 1, (questions,))
    mask = (torch.arange(args.tokens) < lengths[:, None]).long()
    states = torch.randn(questions, args.tokens, args.width)
    return create_bert(config, head=True).eval().to(device), states.to(device), mask.to(device), answers.to(device)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    report = Report('vqa_ranking', args, argv)
    device = report.device
    questions, rounds = ((2, 3), (16, 10))[device.type == 'cuda']
    questions, rounds = args.questions or questions, args.rounds or rounds
    inputs = decoder, states, mask, answers = create_inputs(args, questions, device)
    with exact_products(device):
        difference = compare(*inputs, args.k)
    ways = {
        'plain': partial(rank_plainly, *inputs, args.k, PAD),
        'ours': partial(rank_answers, *inputs, args.k, PAD),
    }
    flops = {name: count_flops(way)['Global'] for name, way in ways.items()}
    clock = time.process_time if device.type == 'cpu' else time.perf_counter
    peak = matrix_peak(device, torch.float32, clock=clock) / 1e12
    report.facts[f'peak TFLOP/s{" of a thread" if device.type == "cpu" else ""}'] = peak
    seconds = take_turns(ways, rounds, device, clock=clock)
    best = {name: min(taken) for name, taken in seconds.items()}
    row = {
        'questions': questions,
        'answers': args.answers,
        'longest': answers.input_ids.shape[1],
        'k': min(args.k, args.answers),
        'plain TFLOP': flops['plain'] / 1e12,
        'TFLOP': flops['ours'] / 1e12,
        'FLOP ratio': flops['plain'] / flops['ours'],
        'plain s': best['plain'],
        's': best['ours'],
        'ratio': best['plain'] / best['ours'],
        'questions/s': questions / best['ours'],
        'of peak': flops['ours'] / 1e12 / best['ours'] / peak,
    }
    report.add(
        row,
        difference=difference,
        seconds=seconds,
        **{'mean tokens': answers.attention_mask.sum(1).float().mean().item()},
    )
    report.finish()


if __name__ == '__main__':
    run_main(main)
