"""NLVR2: is a statement about two images true? Fine-tuning and evaluation.

A text encoder with doubled fusion layers, one per image, reads a statement and both images; a classifier answers. The
weights come from text assignment (Pretrain_nlvr.py), or directly from pre-training.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env NLVR.py \\
        --config ./configs/NLVR.yaml --output_dir output/NLVR/ --checkpoint [NLVR-Pretrained checkpoint]
"""

import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules load prints no traceback

import json
from functools import partial

import numpy as np
import torch

from dataset.base import BlankImages
from dataset.loader import evaluation_splits, fingerprints, move_batch
from dataset.nlvr_dataset import NLVRDataset, NLVREvalDataset
from engine import TrainingRun, find_checkpoint
from evaluation.nlvr import nlvr_metrics
from models import create_model
from models.tokenization_bert import create_tokenizer
from models.weight_files import read_weights
from models.weights import load_bert, load_nlvr
from utils import distributed
from utils.arguments import create_parser
from utils.entry import run_main
from utils.errors import InputError
from utils.files import atomic_write
from utils.finite import require_finite
from utils.log import print_rank0
from utils.setup import autocast, finish_evaluation, script, start, to_device, unwrap


@torch.no_grad()
def predict(model, dataset, loader, config, device):
    """Predict every statement of a split exactly once, for any number of processes.

    Returns the logits of (false, true) in the order of the rows, [n, 2], on the CPU of every rank. With `eval_ema` they
    are the momentum copy's.
    """
    model.eval()
    index, logits, blank = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, 2)], BlankImages(dataset)
    for batch in loader:
        blank.record(batch['bad'])
        moved = move_batch(batch, device)
        with autocast(device, config):
            out = unwrap(model)(moved['images'], moved['text'], use_momentum=config['eval_ema'])
        index.append(batch['index'])
        logits.append(out.cpu())
    blank.report()
    index, logits = (torch.cat(distributed.all_gather_tensors(torch.cat(parts))) for parts in (index, logits))
    assert len(index) == len(dataset)
    require_finite(dataset.split, logits)
    return logits[index.argsort()]


def write_predictions(path, table, predicted, scores):
    """Write one JSON object per row, in their order (rank 0); `score` is the probability of true."""
    if distributed.is_main():
        with atomic_write(path) as file:
            for row, prediction, score in zip(table, predicted.tolist(), scores.tolist(), strict=True):
                file.write(json.dumps(row | {'prediction': prediction, 'score': score}, ensure_ascii=False) + '\n')


def metrics_of(dataset, predicted):
    """The metrics of a split's rows that have a label. predicted: [n] bool, of all rows.

    Consistency is about all pairs of images of a sentence, so it is given only if all rows have a label.
    """
    rows = [dataset.table[index] for index in dataset.labelled]
    labels, kinds, identifiers = ([row.get(key) for row in rows] for key in ('label', 'kind', 'identifier'))
    if len(rows) < len(dataset):
        identifiers = [None] * len(rows)
    return nlvr_metrics(np.array(labels), predicted[dataset.labelled], kinds, identifiers)


def evaluate(model, splits, config, device, folder, suffix='', all_splits=True):
    """Predict the splits with labels, with `all_splits` every split, and write the predictions.

    Returns the metrics of the labelled rows, {val_...: metric, test_...: metric}, the same on every rank.
    splits: {name: (dataset, loader)}. suffix: of the files' names, `result/nlvr_NAME{suffix}.jsonl`.
    """
    result = {}
    for name, (dataset, loader) in splits.items():
        if not (len(dataset.labelled) or all_splits):
            continue
        logits, table = predict(model, dataset, loader, config, device), dataset.table
        predicted = logits[:, 1] > logits[:, 0]
        path = f'{folder}/result/nlvr_{name}{suffix}.jsonl'
        write_predictions(path, table, predicted, logits.softmax(dim=1)[:, 1])
        print_rank0(f'{len(table)} predictions of {name} are in {path}')
        if len(dataset.labelled):
            result |= {f'{name}_{key}': value for key, value in metrics_of(dataset, predicted.numpy()).items()}
    if result:
        print_rank0('  '.join(f'{key} {value:.6g}' for key, value in result.items()))
    return result


def initialize(model, args, eval_ema):
    """Starting weights: those of --checkpoint, else BERT's if available."""
    if args.checkpoint:
        momentum = args.evaluate and eval_ema
        print_rank0(load_nlvr(model, read_weights(args.checkpoint), args.checkpoint, args.evaluate, momentum))
    elif args.evaluate:
        raise InputError('--evaluate: nothing to evaluate; give the weights of a finished run with --checkpoint')
    else:
        print_rank0(load_bert(model.text_encoder, args.text_encoder))
        print_rank0('image encoder: random weights; give a pre-training checkpoint with --checkpoint')
        model.copy_momentum()


def check_splits(splits, args):
    """Refuse before any work splits that cannot be evaluated."""
    for name, (dataset, _) in splits.items():
        labelled = len(dataset.labelled)
        if name == 'val' and not labelled and not args.evaluate:
            raise InputError('val_file: no row has a label, so nothing can be validated; give the file as test_file')
        if not labelled:
            print_rank0(f'no {name} statement has a label: they are predicted, without metrics')
        elif labelled < len(dataset):
            print_rank0(f'{labelled} of the {len(dataset)} {name} statements have a label, and metrics are over these')
    if args.evaluate and not splits:
        raise InputError(f'--evaluate: {args.config} has neither val_file nor test_file')


@script
def main(argv=None):
    args = create_parser('nlvr', 'Fine-tune on NLVR2, or evaluate.').parse_args(argv)
    config, device = start('nlvr', args)
    tokenizer = create_tokenizer(args.text_encoder, config['bert_config']['vocab_size'])
    make = partial(NLVREvalDataset, config, tokenizer=tokenizer)
    splits = evaluation_splits(config, make, config['batch_size'], device)
    check_splits(splits, args)

    model = create_model('nlvr', config, tokenizer)
    resume_from = find_checkpoint('nlvr', args)
    if not resume_from:
        initialize(model, args, config['eval_ema'])
    model = to_device(model, device, config)
    if args.evaluate:
        return finish_evaluation(args, evaluate(model, splits, config, device, args.output_dir))

    dataset = NLVRDataset(config, tokenizer, args.seed)
    sizes = {'batch_size': config['batch_size'], 'epochs': config['schedular']['epochs']}
    run = TrainingRun(
        'nlvr', model, dataset, args, config, device, metrics=('loss',), **sizes, identity=fingerprints(splits)
    )
    run.begin(resume_from)

    for epoch in run.epochs():
        for batch in run.batches():
            with autocast(device, config):
                loss = model(batch['images'], batch['text'], batch['targets'], run.distillation_weight())
            run.optimize(loss)
            run.log(loss=loss)
        record = run.summary()
        run.save()  # the evaluation may fail, or be killed
        is_last = epoch + 1 == config['schedular']['epochs']  # a split without labels is predicted only at the end
        record |= evaluate(model, splits, config, device, args.output_dir, f'_epoch{epoch}', all_splits=is_last)
        run.plan.set_random_order(epoch + 1)
        run.end_epoch(record, metric=record.get('val_acc'))


if __name__ == '__main__':
    run_main(main)
