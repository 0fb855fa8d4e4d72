"""Hours and memory of every stage with the official configurations, computed from counted FLOPs and bytes.

    python benchmarks/cost.py                                                   # 4 A100: 312 TFLOP/s in bfloat16
    python benchmarks/cost.py --gpus 8 --device-tflops 989 --utilization 0.35   # 8 H100
    python benchmarks/cost.py --stages pretrain vqa                             # some of the stages

Nothing is measured. FLOPs and bytes are counted on the real models with the configured batch, on tensors without
values, in about half a minute and less than 2 GB of memory. The numbers of examples are constants with their source
(`DATA`), the lengths of texts are assumptions (`WORDS`, and in counting.py).

    hours = epochs x steps x batch x FLOPs of an example / (TFLOP/s x utilization), steps = examples // (batch x GPUs)

FLOPs of training: 3 x forward (the backward pass takes two), momentum encoders 1 x forward. Recomputing activations
(`grad_checkpointing: true`) adds at most one forward pass. Memory of a GPU: parameters, gradients, AdamW's moments,
momentum copies, queue, and what the forward pass keeps; without workspace, fragmentation and CUDA itself.

Legend: B batch of a GPU.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmarks.bench_rerank import random_encoded  # noqa: E402
from benchmarks.counting import (  # noqa: E402
    ANSWER_TOKENS,
    CLS,
    PAD,
    TOKENIZER,
    TOKENS,
    FakeStep,
    Weights,
    count_flops,
    random_batch,
    training_flops,
)
from dataset.tokens import Text  # noqa: E402
from models import create_model  # noqa: E402
from models.answer_ranking import rank_answers  # noqa: E402
from models.model_vqa import read_question  # noqa: E402
from models.rerank import Encoded, score_texts  # noqa: E402
from models.xbert import create_bert  # noqa: E402
from utils.arguments import Parser  # noqa: E402
from utils.config import resolve  # noqa: E402
from utils.config_files import find_file, read_yaml  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402

# Examples of the public datasets, as docs/data.md: published by the releases and the papers; ~ marks what is rounded.
DATA = {
    'pairs of COCO, VG, CC3M, SBU': 5_100_000,  # ~ ALBEF and GRIT-VLP: 567 K + 769 K + 2.95 M + 860 K
    'images of COCO, VG, CC3M, SBU': 4_000_000,  # ~ 113 K + 100 K + 2.95 M + 860 K; --one-row-per-image
    'COCO captions': 566_747,  # Karpathy's train + restval, 113,287 images
    'COCO 5K test': (5_000, 25_010),  # images, captions
    'Flickr30k captions': 145_000,  # Karpathy's train, 29,000 images
    'Flickr30k test': (1_000, 5_000),
    'NLVR2 train': 86_373,
    'NLVR2 dev and test-P': 6_982 + 6_967,
    'VQA v2 train and val': 443_757 + 214_354,  # a question has 3 distinct answers, on average; one of VG has 1
    'VG questions': 1_445_322,  # ~ Visual Genome 1.2, before images of the test splits are excluded
    'VQA v2 test': 447_793,
    'VQA answers': 3_128,
}
WORDS = 10.5  # of a caption in evaluation, where captions of similar length are batched
SETTINGS = [(precision, recompute) for precision in ('fp32', 'bf16') for recompute in (False, True)]
GB = 1e9


Config = Mapping[str, Any]


class Stage(NamedTuple):
    """A row of the tables; one that only evaluates has no `weights` and no `memory`."""

    name: str
    examples: int
    epochs: int
    batch: int  # per GPU
    flops: float  # of an example
    weights: Weights | None = None
    memory: Mapping[tuple[str, bool], float] | None = None  # {setting: bytes of a GPU}

    def hours(self, gpus: int, tflops: float, utilization: float) -> float:
        """Training drops the remainder of an epoch, evaluation divides all examples."""
        steps = self.examples // (self.batch * gpus)
        per_gpu = steps * self.batch if self.memory else self.examples / gpus
        return self.epochs * per_gpu * self.flops / (tflops * 1e12 * utilization) / 3600


def training(name: str, task: str, config: Config, examples: int) -> Stage:
    """A stage that trains, with the configured batch."""
    step = FakeStep(task, config)
    flops = training_flops(step.count_flops(step.batch)) / step.batch
    memory = {setting: sum(step.weights) + step.activation_bytes(step.batch, *setting) for setting in SETTINGS}
    epochs = config.get('train_epochs') or config['schedular']['epochs']
    return Stage(name, examples, epochs, step.batch, flops, step.weights, memory)


def pretrain(config: Config) -> list[Stage]:
    rows = DATA['pairs of COCO, VG, CC3M, SBU'], DATA['images of COCO, VG, CC3M, SBU']
    stage = training('pre-training, a row per pair', 'pretrain', config, rows[0])
    return [stage, stage._replace(name='pre-training, a row per image', examples=rows[1])]


def retrieval(config: Config, dataset: str, captions: int, test: tuple[int, int]) -> list[Stage]:
    stages = [training(f'retrieval, {dataset}', 'retrieval', config, captions)]
    flops = evaluation_flops(config, *test)
    return [*stages, Stage(f'one evaluation, {dataset} test images', test[0], 1, config['batch_size_test'], flops)]


def evaluation_flops(config: Config, images: int, texts: int) -> float:
    """FLOPs of an image when a split is ranked: the image and its share of the texts are encoded, pairs re-ranked.

    Every image and every text has `k_test` candidates. A pair that both directions need is scored once; how many these
    are depends on the data, so none is assumed.
    """
    with torch.device('meta'):
        model = create_model('retrieval', config, TOKENIZER).eval()
    image, text = random_batch(1, round(1 + WORDS), config, 'meta')
    encoding = count_flops(lambda: model.encode_image(image))['Global']
    encoding += count_flops(lambda: model.encode_text(*text))['Global'] * texts / images
    pairs = min(config['k_test'], texts) + min(config['k_test'], images) * texts / images
    lengths = random_encoded(1, round(pairs), WORDS, 1).text_lengths
    embeds = torch.empty(int(lengths.sum()), model.bert_config.hidden_size, device='meta')
    encoded = Encoded(embeds, embeds, {}, embeds, lengths)
    tokens = torch.empty(model.visual_encoder.pos_embed.shape[1:], device='meta')
    return encoding + count_flops(lambda: score_texts(model, tokens, encoded, torch.arange(len(lengths))))['Global']


def text_assignment(config: Config) -> list[Stage]:
    return [training('text assignment', 'nlvr_pretrain', config, DATA['pairs of COCO, VG, CC3M, SBU'])]


def nlvr(config: Config) -> list[Stage]:
    stage = training('NLVR2', 'nlvr', config, DATA['NLVR2 train'])
    flops = stage.flops / 3  # without `distill` nothing but the forward pass of training
    return [stage, Stage('one evaluation, dev and test-P', DATA['NLVR2 dev and test-P'], 1, stage.batch, flops)]


def vqa(config: Config) -> list[Stage]:
    stage = training('VQA', 'vqa', config, DATA['VQA v2 train and val'] + DATA['VG questions'])
    flops = answering_flops(config)
    return [stage, Stage('answers, VQA v2 test', DATA['VQA v2 test'], 1, config['batch_size_test'], flops)]


def answering_flops(config: Config) -> float:
    """FLOPs of a question when `k_test` answers are ranked. The decoder has values: they select the candidates."""
    with torch.device('meta'):
        model = create_model('vqa', config, TOKENIZER).eval()
    image, question = random_batch(1, TOKENS['vqa'], config, 'meta')
    reading = count_flops(lambda: read_question(model.visual_encoder, model.text_encoder, image, question))['Global']
    decoder = create_bert(model.text_decoder.bert.config, head=True).eval()
    ids = torch.full((DATA['VQA answers'], ANSWER_TOKENS), CLS)
    states = torch.zeros(1, TOKENS['vqa'], model.bert_config.hidden_size)
    inputs = decoder, states, torch.ones(1, TOKENS['vqa']), Text(ids, ids), config['k_test'], PAD
    return reading + count_flops(lambda: rank_answers(*inputs))['Global']


STAGES: dict[str, tuple[str, str, Callable[[Config], list[Stage]]]] = {  # {name: (task, configuration, function)}
    'pretrain': ('pretrain', 'Pretrain', pretrain),
    'albef': (
        'pretrain',
        'Pretrain_ALBEF',
        lambda config: [pretrain(config)[0]._replace(name="ALBEF's own pre-training, a row per pair")],
    ),
    'coco': (
        'retrieval',
        'Retrieval_coco',
        lambda config: retrieval(config, 'COCO', DATA['COCO captions'], DATA['COCO 5K test']),
    ),
    'flickr30k': (
        'retrieval',
        'Retrieval_flickr',
        lambda config: retrieval(config, 'Flickr30k', DATA['Flickr30k captions'], DATA['Flickr30k test']),
    ),
    'text_assignment': ('nlvr_pretrain', 'NLVR_pretrain', text_assignment),
    'nlvr': ('nlvr', 'NLVR', nlvr),
    'vqa': ('vqa', 'VQA', vqa),
}


def duration(hours: float) -> str:
    """In the largest unit of which it has at least one."""
    if hours >= 1:
        return f'{hours:.1f} h'
    return f'{hours * 60:.0f} min' if hours * 60 >= 1 else f'{hours * 3600:.0f} s'


def time_table(stages: Sequence[Stage], gpus: int, tflops: float, utilization: float) -> str:
    lines = ['| stage | examples | epochs | batch | GFLOP per example | time | GPU hours |', '|---|' + '---:|' * 6]
    for stage in stages:
        hours = stage.hours(gpus, tflops, utilization)
        lines.append(
            f'| {stage.name} | {stage.examples:,} | {stage.epochs} | {gpus} x {stage.batch} | {stage.flops / 1e9:,.0f} '
            f'| {duration(hours)} | {hours * gpus:,.2f} |'
        )
    return '\n'.join(lines)


def memory_table(stages: Sequence[Stage]) -> str:
    heads = [f'{precision}{", recomputed" if recompute else ""}' for precision, recompute in SETTINGS]
    heads = ['weights', 'gradients', 'AdamW', 'momentum copies', 'queue', *heads]
    lines = [f'| GB of each GPU | batch | {" | ".join(heads)} |', '|---|' + '---:|' * (1 + len(heads))]
    for stage, before in zip(stages, [None, *stages], strict=False):
        if stage.memory and (before is None or stage.memory is not before.memory):
            sizes = [f'{size / GB:.2f}' for size in stage.weights]
            sizes += [f'{stage.memory[setting] / GB:.1f}' for setting in SETTINGS]
            lines.append(f'| {stage.name} | {stage.batch} | {" | ".join(sizes)} |')
    return '\n'.join(lines)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Arguments: the speed of a GPU."""
    parser.add_argument(
        '--device-tflops', type=float, default=312, help='peak TFLOP/s of a GPU in the precision used (default: A100)'
    )
    parser.add_argument('--utilization', type=float, default=0.4, help='share of the peak (default %(default)s)')


def check_device(args: argparse.Namespace) -> None:
    """InputError for an impossible speed."""
    if not 0 < args.device_tflops < float('inf'):
        raise InputError(f'--device-tflops {args.device_tflops}: must be above 0')
    if not 0 < args.utilization <= 1:
        raise InputError(f'--utilization {args.utilization}: must be above 0, at most 1')


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gpus', type=int, default=4, help='processes, one per GPU (default %(default)s)')
    add_device(parser)
    parser.add_argument('--stages', nargs='+', choices=STAGES, default=list(STAGES), help='(default: all)')
    args = parser.parse_args(argv)
    if args.gpus < 1:
        raise InputError(f'--gpus {args.gpus}: must be at least 1')
    check_device(args)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    stages = []
    for name in args.stages:
        task, file, count = STAGES[name]
        path = find_file(f'configs/{file}.yaml')
        stages += count(resolve(task, read_yaml(path), path)[0])
    print(
        f'Computed, not measured: {args.gpus} GPUs of {args.device_tflops:g} TFLOP/s, of which '
        f'{args.utilization:.0%} are used.\n'
    )
    print(time_table(stages, args.gpus, args.device_tflops, args.utilization), end='\n\n')
    print(memory_table(stages))


if __name__ == '__main__':
    run_main(main)
