"""NLVR2: is a statement about two images true? Fine-tuning and evaluation.

A statement is read against both images by a text encoder whose fusion layers are doubled, one for each image; a classifier
answers. The weights come from text assignment (Pretrain_nlvr.py), or straight from pre-training.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env NLVR.py \\
        --config ./configs/NLVR.yaml --output_dir output/NLVR/ --checkpoint [NLVR-Pretrained checkpoint]
"""

import json
import os
import time

import torch

from dataset.loader import EpochBatches, create_loader
from dataset.metrics import nlvr_consistency
from dataset.nlvr_dataset import NLVRDataset, NLVREvalDataset
from dataset.samplers import EpochPlan, PositionSampler, ShardBatches
from dataset.training_set import BadImages
from models import create_model
from models.checkpoint import load_bert, load_nlvr, model_state, read_checkpoint
from models.tokenization_bert import create_tokenizer
from optim import create_optimizer, set_learning_rate
from scheduler import distillation_weight, learning_rate
from utils import distributed
from utils.arguments import create_parser
from utils.checkpoint import STEP_FILE, Run, complete_epoch, find_run, resume_run, save_run, unwrap
from utils.log import Averages, Progress, append_log, say, start_log, write_log
from utils.setup import autocast, check_vocabulary, optimize, start, to_device


def train_epoch(run, model, loader, plan, optimizer, config, device, kept, save):
    """Train on the batches of epoch `run.epoch` from step `run.step` on.

    kept: {name: object} with what an epoch accumulates, see `main`; save: called with the Run of a checkpoint inside the epoch.
    Returns the learning rate of the last step.
    """
    model.train()
    progress = Progress(f'epoch {run.epoch}', plan.steps, run.step, config['print_freq'],
                        config['batch_size'] * distributed.world_size(), 'statements', device)
    for step, batch in enumerate(loader, start=run.step):
        lr = learning_rate(config['schedular'], run.epoch, step)
        set_learning_rate(optimizer, lr)
        alpha = distillation_weight(config, run.epoch, step, plan.steps)
        images, targets = (batch[name].to(device, non_blocking=True) for name in ('images', 'targets'))
        with autocast(device, config):
            loss = model(images, batch['text'].to(device), targets, alpha)
        optimize(loss, model, optimizer, config)

        kept['averages'].update(loss=loss)
        kept['bad_images'].record(batch['bad'])
        if progress.due(step):
            progress.report(step, lr=lr, **kept['averages'].recent())
        if config['save_every'] and (run.epoch * plan.steps + step + 1) % config['save_every'] == 0 and step + 1 < plan.steps:
            run.step = step + 1
            save(run)
    progress.close()
    return lr


@torch.no_grad()
def judge(model, dataset, loader, config, device):
    """Judge every statement of a split exactly once, whatever the number of processes.

    Returns the logits of (false, true) in the order of the rows, [n, 2], on the CPU of every rank.
    """
    model.eval()
    index, logits, bad = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, 2)], []
    for batch in loader:
        with autocast(device, config):
            answers = unwrap(model)(batch['images'].to(device), batch['text'].to(device))
        index.append(batch['index'])
        logits.append(answers.cpu())
        bad += batch['bad']
    for words in sum(distributed.gather_objects(bad) or [], []):
        say(words)
    index, logits = (torch.cat(distributed.all_gather_tensors(torch.cat(parts))) for parts in (index, logits))
    assert len(index) == len(dataset)
    return logits[index.argsort()]


def figures(table, predicted):
    """Accuracy, alone and by kind where rows carry one, and NLVR2's consistency where all rows carry its identifiers.

    table: the rows; predicted: [n] bool, whether each statement is held to be true. Returns fractions.
    """
    right = predicted.numpy() == table.column('label')
    result = {'acc': float(right.mean())}
    kinds = table.column('kind')
    for kind in sorted({kind for kind in kinds if kind is not None}, key=str):
        result[f'acc_{kind}'] = float(right[[other == kind for other in kinds]].mean())
    identifiers = table.column('identifier')
    if all(isinstance(name, str) and name.count('-') == 3 for name in identifiers):
        result['consistency'] = nlvr_consistency(identifiers, right)
    return result


def write_predictions(path, table, predicted, scores):
    """One JSON object a row, in their order, written beside its place first (rank 0); `score` is the probability of true."""
    if not distributed.is_main():
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f'{path}.tmp', 'w', encoding='utf-8') as file:
        for row, prediction, score in zip(table, predicted.tolist(), scores.tolist(), strict=True):
            file.write(json.dumps(row | {'prediction': prediction, 'score': score}, ensure_ascii=False) + '\n')
    os.replace(f'{path}.tmp', path)


def evaluate(model, splits, config, device, folder, suffix=''):
    """Judge all splits and write their predictions; {val_...: figure, test_...: figure}, the same on every rank.

    splits: {name: (dataset, loader)}. suffix: of the names of the files, `result/nlvr_NAME{suffix}.jsonl`.
    """
    result = {}
    for name, (dataset, loader) in splits.items():
        logits = judge(model, dataset, loader, config, device)
        predicted = logits[:, 1] > logits[:, 0]
        write_predictions(f'{folder}/result/nlvr_{name}{suffix}.jsonl', dataset.table, predicted, logits.softmax(dim=1)[:, 1])
        result |= {f'{name}_{key}': value for key, value in figures(dataset.table, predicted).items()}
    return result


def evaluation_splits(config, tokenizer, device):
    """{'val': (dataset, loader), 'test': ...} of the files that the configuration names."""
    splits = {}
    for name in ('val', 'test'):
        if config[f'{name}_file']:
            dataset = NLVREvalDataset(config, config[f'{name}_file'], tokenizer)
            shard = ShardBatches(len(dataset), config['batch_size'], distributed.rank(), distributed.world_size())
            splits[name] = dataset, create_loader(dataset, shard, config['num_workers'], device)
    return splits


def initialise(model, args):
    """Starting weights: the checkpoint's where one is given, else BERT's where they are to be had."""
    if args.checkpoint:
        state = model_state(read_checkpoint(args.checkpoint), args.checkpoint)
        say(load_nlvr(model, state, args.checkpoint, head=args.evaluate))
    elif args.evaluate:
        raise ValueError('--evaluate: nothing to evaluate; give the weights of a finished run with --checkpoint')
    else:
        say(load_bert(model.text_encoder, args.text_encoder))
        say('image encoder: starts at random; give a pre-training checkpoint with --checkpoint')
        model.copy_momentum()


def main(argv=None):
    parser = create_parser('nlvr', 'Fine-tune on NLVR2, or evaluate.')
    args = parser.parse_args(argv)
    config, device = start('nlvr', args)

    # Data, and who plays what in the first epoch.
    tokenizer = create_tokenizer(args.text_encoder)
    check_vocabulary(tokenizer, config['bert_config'], args.text_encoder)
    splits = evaluation_splits(config, tokenizer, device)
    if args.evaluate and not splits:
        raise ValueError(f'--evaluate: {args.config} names neither a val_file nor a test_file')

    # Model: from where the run stopped, or from starting weights.
    model = create_model('nlvr', config, tokenizer)
    resume_from = find_run(args.output_dir, 'nlvr', args.checkpoint) if args.resume else None
    if resume_from and args.evaluate:
        args.checkpoint = resume_from
    if args.evaluate or not resume_from:
        initialise(model, args)
    model = to_device(model, device, config)
    if args.evaluate:
        result = evaluate(model, splits, config, device, args.output_dir)
        say('  '.join(f'{k} {v:.6g}' for k, v in result.items()))
        append_log(args.output_dir, result)
        return distributed.close()

    dataset = NLVRDataset(config, tokenizer, args.seed)
    plan = EpochPlan(len(dataset), config['batch_size'], distributed.rank(), distributed.world_size(), args.seed)
    batches = EpochBatches()
    loader = create_loader(dataset, batches, config['num_workers'], device)
    say(f'{len(dataset)} statements, {plan.steps} steps an epoch; ' +
        ', '.join(f'{len(split)} in {name}' for name, (split, _) in splits.items()))
    optimizer = create_optimizer(config['optimizer'], model)

    # What an epoch accumulates; with the plan and the generators it makes a checkpoint the whole run.
    kept = {'plan': plan, 'averages': Averages(('loss',), device), 'bad_images': BadImages(args.output_dir, len(dataset))}

    def save(run):
        save_run(f'{args.output_dir}/{STEP_FILE}', 'nlvr', run, model, optimizer, config, kept)

    if resume_from:
        run = resume_run(resume_from, 'nlvr', model, optimizer, config, kept)
    else:
        run = Run()
        start_log(args.output_dir)
        plan.start_random(0, gather=distributed.all_gather_tensors)
    write_log(args.output_dir, run.records)

    for epoch in range(run.epoch, config['schedular']['epochs']):
        began = time.perf_counter()
        batches.play(epoch, PositionSampler(plan.order, config['batch_size'], run.step))
        lr = train_epoch(run, model, loader, plan, optimizer, config, device, kept, save)
        record = {'epoch': epoch, 'train_lr': lr, 'train_loss': kept['averages'].epoch()['loss'],
                  **evaluate(model, splits, config, device, args.output_dir, f'_epoch{epoch}')}
        plan.start_random(epoch + 1, gather=distributed.all_gather_tensors)
        kept['averages'].reset()
        kept['bad_images'].write()

        run = complete_epoch(args.output_dir, 'nlvr', run, record, model, optimizer, config, kept, record.get('val_acc'))
        say('  '.join(f'{k} {v:.6g}' for k, v in record.items()))
        say(f'epoch {epoch} took {time.perf_counter() - began:.1f} s')
    distributed.close()


if __name__ == '__main__':
    main()
