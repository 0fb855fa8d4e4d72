"""Image-text retrieval: fine-tuning and evaluation on COCO, Flickr30k and the like.

ITC ranks all texts for every image and all images for every text; ITM re-ranks the best `k_test` candidates of each.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env Retrieval.py \\
        --config ./configs/Retrieval_coco.yaml --output_dir output/Retrieval_coco/ --checkpoint [Pretrained checkpoint]
"""

import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules load prints no traceback

import os
import time
from functools import partial

import torch

from dataset.base import BlankImages
from dataset.loader import evaluation_splits, fingerprints
from dataset.retrieval_dataset import TEXTS_PER_BATCH, RetrievalEvalDataset, RetrievalTrainDataset
from dataset.samplers import ShardBatches
from engine import TrainingRun, find_checkpoint
from evaluation import retrieval_recall
from evaluation.eccv import check_eccv, eccv_lines, eccv_metrics
from models import create_model
from models.rerank import score_split
from models.tokenization_bert import create_tokenizer
from models.weight_files import read_weights
from models.weights import load_bert, load_retrieval
from reports.retrieval_page import write_page
from utils import distributed
from utils.arguments import add_flag, create_parser
from utils.entry import run_main
from utils.errors import InputError
from utils.finite import require_finite
from utils.log import Progress, print_rank0
from utils.setup import autocast, finish_evaluation, one_thread, script, start, to_device, unwrap

METRICS = ('loss_itc', 'loss_itm', 'itm_acc', 'no_negative')


def score(model, dataset, loader, config, device):
    """Scores of a split, the same for any number of processes. With k_test 0 nothing is re-ranked: all are ITC's."""
    shard = ShardBatches(len(dataset.texts), TEXTS_PER_BATCH, distributed.rank(), distributed.world_size())
    texts = (dataset.tokens(numbers) for numbers in shard)
    store = device if config['keep_embeds'] == 'device' else torch.device('cpu')
    images = images_of(dataset, loader, config, device)
    with one_thread(device), autocast(device, config):
        title = f'{dataset.split}: re-ranking'
        scores = score_split(unwrap(model), images, texts, config['k_test'], store, title, config['print_freq'])
    return scores


def images_of(dataset, loader, config, device):
    """The image batches of this rank's loader, with a progress bar; after the last a collective, see `BlankImages`."""
    size, every, blank = config['batch_size_test'], config['print_freq'], BlankImages(dataset)
    title = f'{dataset.split}: encoding'
    progress = Progress(title, len(loader), every=every, unit_size=size, unit='images', device=device)
    for done, batch in enumerate(loader):
        blank.record(batch['bad'])
        yield batch['image']
        if progress.due(done):
            progress.report(done)
    progress.close()
    blank.report()


def evaluate(model, splits, config, device, page=None):
    """Recall of all splits: {val_...: re-ranked, val_itc_...: ITC only, test_...}, the same on every rank.

    splits: {name: (dataset, loader)}. page: a file to show queries of the last split in, with their top five.
    """
    result = {}
    for name, (dataset, loader) in splits.items():
        started = time.perf_counter()
        scores = score(model, dataset, loader, config, device)
        require_finite(name, *scores)
        if distributed.is_main():
            truth = dataset.txt2img, dataset.img2txt
            coco_ids = dataset.coco_ids() if config['eccv_caption'] and name == 'test' else ()
            rankings = {name: (scores.i2t, scores.t2i), f'{name}_itc': (scores.sim_i2t, scores.sim_i2t.t())}
            for prefix, ranking in rankings.items():
                values = retrieval_recall(*ranking, *truth)
                if coco_ids:
                    values |= eccv_metrics(*ranking, *coco_ids)
                result |= {f'{prefix}_{key}': value for key, value in values.items()}
            if page and name == list(splits)[-1]:
                write_page(page, dataset, scores.i2t, scores.t2i)
                print_rank0(f'{page}: pictures of queries and their top five')
        seconds = time.perf_counter() - started
        print_rank0(f'{name}: {len(dataset)} images and {len(dataset.texts)} texts took {seconds:.1f} s')
    print_rank0(recall_table(result, splits, config['k_test']))
    return distributed.broadcast_object(result)


def recall_table(result, splits, k):
    """Recall of every split as lines of text, ITC only above re-ranked."""
    columns = [f'{side}_{metric}' for side in ('txt', 'img') for metric in ('r1', 'r5', 'r10', 'r_mean')] + ['r_mean']
    heads = [f'{side}@{metric}' for side in ('TR', 'IR') for metric in ('1', '5', '10', 'mean')] + ['mean']
    lines = [f'{"recall in %":24}' + ''.join(f'{head:>8}' for head in heads)]
    for name in splits if result else ():
        rankings = {'ITC only': f'{name}_itc'} | ({f'top {k} re-ranked': name} if k else {})
        for ranking, prefix in rankings.items():
            lines.append(f'{f"{name}, {ranking}":24}' + ''.join(f'{result[f"{prefix}_{key}"]:8.2f}' for key in columns))
        lines += eccv_lines(result, {f'{name}, {ranking}': prefix for ranking, prefix in rankings.items()})
    return '\n'.join(lines)


def initialize(model, args):
    """Starting weights: those of --checkpoint, else BERT's if available; and the momentum encoders'."""
    missing = ['visual_encoder_m']
    if args.checkpoint:
        report = load_retrieval(model, read_weights(args.checkpoint), args.checkpoint)
        missing = report.missing
        print_rank0(report)
    else:
        print_rank0(load_bert(model.text_encoder, args.text_encoder))
        print_rank0('image encoder: random weights; give a pre-training checkpoint with --checkpoint')
    if args.copy_init:
        model.copy_momentum()
        print_rank0('momentum encoders: copies of the loaded weights (--copy_init)')
    elif model.use_momentum and any(key.startswith('visual_encoder_m') for key in missing):
        print_rank0(
            'momentum encoders: not in a checkpoint, so their image encoder and projections start at random, as '
            'officially; --copy_init copies the loaded weights'
        )
        print_rank0(f'momentum {load_bert(model.text_encoder_m, args.text_encoder)}')


def check_arguments(args, config):
    """Refuse before any work what cannot succeed."""
    if args.copy_init and not config['use_momentum']:
        raise InputError('--copy_init: there is no momentum model to copy to; drop the flag or set use_momentum: true')
    if args.page and (not args.evaluate or os.path.isdir(args.page)):
        raise InputError(f'--page {args.page}: needs --evaluate and the name of a file')
    if args.evaluate and not (config['val_file'] or config['test_file']):
        raise InputError('--evaluate: the configuration has neither val_file nor test_file')
    if config['eccv_caption'] and not config['test_file']:
        raise InputError('eccv_caption: it evaluates test_file, which is missing; give it, or set eccv_caption: false')
    if not args.evaluate and not config[f'{args.select_on}_file']:
        other = {'val': 'test', 'test': 'val'}[args.select_on]
        raise InputError(
            f'{args.select_on}_file is missing, which chooses the best checkpoint; give one, or --select_on {other} '
            f'with {other}_file'
        )


def parse_arguments(argv):
    parser = create_parser('retrieval', 'Fine-tune for image-text retrieval, or evaluate.')
    add_flag(parser, '--copy_init', False, 'start the momentum encoders from the loaded weights')
    help_select = 'the split whose r_mean chooses checkpoint_best.pth (officially test)'
    parser.add_argument('--select_on', choices=('val', 'test'), default='val', help=help_select)
    help_page = 'with --evaluate: write an HTML page of queries and their top five'
    parser.add_argument('--page', default='', metavar='FILE', help=help_page)
    return parser.parse_args(argv)


@script
def main(argv=None):
    args = parse_arguments(argv)
    config, device = start('retrieval', args)
    check_arguments(args, config)
    tokenizer = create_tokenizer(args.text_encoder, config['bert_config']['vocab_size'])
    make = partial(RetrievalEvalDataset, config, tokenizer=tokenizer)
    splits = evaluation_splits(config, make, config['batch_size_test'], device)
    if config['eccv_caption']:
        check_eccv(*splits['test'][0].coco_ids())

    resume_from = find_checkpoint('retrieval', args)
    if args.evaluate:
        if not args.checkpoint:
            raise InputError('--evaluate: nothing to evaluate; give weights with --checkpoint')
        args.copy_init = False
        model = create_model('retrieval', config | {'use_momentum': False, 'distill': False}, tokenizer)
        initialize(model, args)
        return finish_evaluation(args, evaluate(to_device(model, device, config), splits, config, device, args.page))

    model = create_model('retrieval', config, tokenizer)
    if not resume_from:
        initialize(model, args)
    model = to_device(model, device, config)
    dataset = RetrievalTrainDataset(config, tokenizer, args.seed)
    run = TrainingRun(
        'retrieval',
        model,
        dataset,
        args,
        config,
        device,
        metrics=METRICS,
        batch_size=config['batch_size_train'],
        epochs=config['schedular']['epochs'],
        identity=fingerprints(splits),
    )
    run.begin(resume_from)

    for epoch in run.epochs():
        for batch in run.batches():
            with autocast(device, config):
                out = model(batch['image'], batch['text'], idx=batch['idx'], alpha=run.distillation_weight())
            run.optimize(out['loss_itc'] + out['loss_itm'])
            run.log(**{name: out[name] for name in METRICS})
        record = run.summary()
        run.save()  # the evaluation may fail, or be killed
        record |= evaluate(model, splits, config, device)
        run.plan.set_random_order(epoch + 1)
        run.end_epoch(record, metric=record[f'{args.select_on}_r_mean'])


if __name__ == '__main__':
    run_main(main)
