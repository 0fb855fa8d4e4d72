"""Pre-training with GRIT: grouped mini-batch sampling for vision-language pre-training (arXiv 2208.04060).

While epoch e trains, the features of every step are collected in queues; full queues are grouped into chains of similar
examples; the chains, cut into mini-batches whose places are shuffled, are the order of epoch e + 1. Nothing is encoded
twice, and the hardest negatives in a mini-batch are really hard.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env Pretrain.py \\
        --config ./configs/Pretrain.yaml --output_dir output/Pretrain/
"""

import time

import torch

from dataset.batch_similarity import BatchSimilarity
from dataset.caption_dataset import PretrainDataset
from dataset.grit import GritCollector
from dataset.loader import EpochBatches, create_loader
from dataset.samplers import EpochPlan, PositionSampler
from dataset.training_set import BadImages
from dataset.warmstart import kept_order
from models import create_model
from models.checkpoint import load_bert, load_deit, load_pretrain, model_state, read_checkpoint
from models.tokenization_bert import create_tokenizer
from optim import create_optimizer, set_learning_rate
from scheduler import learning_rate
from utils import distributed
from utils.arguments import add_flag, create_parser
from utils.checkpoint import STEP_FILE, Run, complete_epoch, find_run, resume_run, save_run, unwrap
from utils.log import Averages, Progress, append_log, say, start_log, write_log
from utils.setup import autocast, check_vocabulary, optimize, start, to_device

LOSSES = ('loss_mlm', 'loss_itc', 'loss_itm')
MAJORITY_ITM = 'always answering "no match" gives itm_acc 0.6667 and loss_itm 0.6365'


def train_epoch(run, model, loader, plan, optimizer, config, device, kept, save):
    """Train on the batches of epoch `run.epoch` from step `run.step` on, and collect features for the grouping.

    kept: {name: object} with what an epoch accumulates, see `main`; save: called with the Run of a checkpoint inside the epoch.
    Returns the learning rate of the last step.
    """
    model.train()
    averages, similarity, collector = kept['averages'], kept['similarity'], kept['collector']
    progress = Progress(f'epoch {run.epoch}', plan.steps, run.step, config['print_freq'],
                        config['batch_size'] * distributed.world_size(), device=device)
    for step, batch in enumerate(loader, start=run.step):
        lr = learning_rate(config['schedular'], run.epoch, step)
        set_learning_rate(optimizer, lr)
        image = batch['image'].to(device, non_blocking=True)
        image_key = batch['image_key'].to(device, non_blocking=True)
        with autocast(device, config):
            out = model(image, batch['text'].to(device), image_key)
        optimize(sum(out[name] for name in LOSSES), model, optimizer, config)

        # GRIT: the features of this step, as they were before its update, go into the queue.
        if is_grouped(run.epoch + 1, config):
            collect(collector, batch, out['image_feat'], out['text_feat'])
        similarity.update(out['image_feat'], out['text_feat'])
        averages.update(**{name: out[name] for name in (*LOSSES, 'itm_acc')}, temp=unwrap(model).temp)
        kept['bad_images'].record(batch['bad'])

        if progress.due(step):
            progress.report(step, lr=lr, **averages.recent())
        if config['save_every'] and (run.epoch * plan.steps + step + 1) % config['save_every'] == 0 and step + 1 < plan.steps:
            run.step = step + 1
            save(run)
    progress.close()
    return lr


def is_grouped(epoch, config):
    """Whether GRIT orders an epoch; the first is always random, and so are those before `grit_from_epoch`."""
    return config['sampler'] == 'grit' and epoch >= max(1, config['grit_from_epoch'])


def collect(collector, batch, image_feat, text_feat):
    """Queue the features under their examples' indices; an example whose image was replaced is kept without features."""
    index, requested = batch['index'], batch['requested']
    own = index == requested  # on the CPU: nothing waits for the device
    if not own.all():
        collector.set_aside(requested[~own])
        image_feat, text_feat = image_feat[own.to(image_feat.device)], text_feat[own.to(text_feat.device)]
    collector.add(index[own], image_feat, text_feat)


def plan_next_epoch(epoch, plan, collector, config, args):
    """Group what the last epoch collected and lay out the order of `epoch`: GRIT's, or a random one.

    Returns the seconds that grouping took over the last epoch.
    """
    grouping_seconds = 0.
    if is_grouped(epoch, config):
        grouped = collector.finish()
        grouping_seconds = collector.grouping_seconds
        plan.start_grit(epoch, grouped, across_ranks=args.mini_batch_shuffle_across_gpu,
                        gather=distributed.all_gather_tensors)
    else:
        plan.start_random(epoch, gather=distributed.all_gather_tensors)
    collector.begin_epoch(epoch)
    return grouping_seconds


@torch.no_grad()
def evaluate(model, loader, config, device):
    """Mean losses and matching accuracy over the training files, in evaluation mode: {val_...: mean}."""
    model.eval()
    averages = Averages((*LOSSES, 'itm_acc'), device)
    for batch in loader:
        with autocast(device, config):
            out = model(batch['image'].to(device), batch['text'].to(device), batch['image_key'].to(device))
        averages.update(**{name: out[name] for name in averages.names})
    return {f'val_{name}': value for name, value in averages.epoch().items()}


def initialise(model, args, config):
    """Starting weights: the checkpoint's where one is given, else BERT's and DeiT's where they are to be had."""
    if args.checkpoint:
        say(load_pretrain(model, model_state(read_checkpoint(args.checkpoint), args.checkpoint), args.checkpoint))
        return
    say(load_bert(model.text_encoder, args.text_encoder))
    if config['init_deit']:
        say(load_deit(model.visual_encoder, config['init_deit'], config['vit']))
    else:
        say('image encoder: starts at random (init_deit: false)')


def main(argv=None):
    parser = create_parser('pretrain', 'Pre-train with grouped mini-batch sampling.')
    add_flag(parser, '--index_warmstart', False, 'epoch 0 plays the order kept in output_dir')
    add_flag(parser, '--mini_batch_shuffle_across_gpu', False, 'shuffle the mini-batches of all ranks together')
    args = parser.parse_args(argv)
    config, device = start('pretrain', args)
    rank, world_size = distributed.rank(), distributed.world_size()

    # Data, and who plays what in the first epoch.
    tokenizer = create_tokenizer(args.text_encoder)
    check_vocabulary(tokenizer, config['bert_config'], args.text_encoder)
    dataset = PretrainDataset(config, tokenizer, args.seed)
    plan = EpochPlan(len(dataset), config['batch_size'], rank, world_size, args.seed)
    batches = EpochBatches()
    loader = create_loader(dataset, batches, config['num_workers'], device)
    say(f'{len(dataset)} pairs, {plan.steps} steps an epoch')

    # Model: from where the run stopped, or from starting weights.
    model = create_model('pretrain', config, tokenizer)
    resume_from = find_run(args.output_dir, 'pretrain', args.checkpoint) if args.resume else None
    if not resume_from:
        initialise(model, args, config)
    model = to_device(model, device, config)
    if args.evaluate:
        if resume_from:
            load_pretrain(unwrap(model), model_state(read_checkpoint(resume_from), resume_from), resume_from)
        plan.start_random(0, gather=distributed.all_gather_tensors)
        batches.play(0, PositionSampler(plan.order, config['batch_size']))
        result = evaluate(model, loader, config, device)
        say(result)
        return append_log(args.output_dir, result)
    optimizer = create_optimizer(config['optimizer'], model)

    # What an epoch accumulates; with the plan and the generators it makes a checkpoint the whole run.
    kept = {'plan': plan, 'averages': Averages((*LOSSES, 'itm_acc', 'temp'), device), 'similarity': BatchSimilarity(),
            'collector': GritCollector(config['queue_size'], config['search_space'], args.seed, rank),
            'bad_images': BadImages(args.output_dir, len(dataset))}

    def save(run):
        save_run(f'{args.output_dir}/{STEP_FILE}', 'pretrain', run, model, optimizer, config, kept)

    if resume_from:
        run = resume_run(resume_from, 'pretrain', model, optimizer, config, kept)
    else:
        run = Run()
        start_log(args.output_dir)
        if args.index_warmstart:
            plan.play(kept_order(args.output_dir), gather=distributed.all_gather_tensors)
        else:
            plan.start_random(0, gather=distributed.all_gather_tensors)
    write_log(args.output_dir, run.records)

    for epoch in range(run.epoch, config['train_epochs']):
        began = time.perf_counter()
        hard = epoch >= config['hard_negatives_from_epoch']
        unwrap(model).itm_negatives = config['itm_negatives'] if hard else 'sampled'
        batches.play(epoch, PositionSampler(plan.order, config['batch_size'], run.step))
        lr = train_epoch(run, model, loader, plan, optimizer, config, device, kept, save)
        sim_neighbour, sim_random = kept['similarity'].epoch()
        record = {'epoch': epoch, 'train_lr': lr, **{f'train_{k}': v for k, v in kept['averages'].epoch().items()},
                  'train_sim_neighbour': sim_neighbour, 'train_sim_random': sim_random}
        grouping_seconds = plan_next_epoch(epoch + 1, plan, kept['collector'], config, args)
        kept['averages'].reset()
        kept['similarity'].reset()
        kept['bad_images'].write()

        run = complete_epoch(args.output_dir, 'pretrain', run, record, model, optimizer, config, kept)
        seconds = time.perf_counter() - began
        say('  '.join(f'{k} {v:.6g}' for k, v in record.items()))
        say(f'epoch {epoch} took {seconds:.1f} s, of which grouping {grouping_seconds / seconds:.2%}; {MAJORITY_ITM}')
    distributed.close()


if __name__ == '__main__':
    main()
