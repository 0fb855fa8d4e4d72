"""Text assignment: one epoch between pre-training and NLVR2, in which a text encoder learns to read two images.

A caption is shown with two images: its own and a similar one, in either order, or two similar ones. The model says which it
is about: the first, the second, neither. Each fusion layer of the pre-trained text encoder is doubled, one for each image.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env Pretrain_nlvr.py \\
        --config ./configs/NLVR_pretrain.yaml --output_dir output/NLVR_pretrain/ --checkpoint [Pretrained checkpoint]
"""

import time

import torch

from dataset.caption_dataset import PretrainDataset
from dataset.loader import EpochBatches, create_loader
from dataset.samplers import EpochPlan, PositionSampler
from dataset.training_set import BadImages
from models import create_model
from models.checkpoint import load_bert, load_text_assignment, model_state, read_checkpoint
from models.tokenization_bert import create_tokenizer
from optim import create_optimizer, set_learning_rate
from scheduler import learning_rate
from utils import distributed
from utils.arguments import create_parser
from utils.checkpoint import STEP_FILE, Run, complete_epoch, find_run, resume_run, save_run
from utils.log import Averages, Progress, append_log, say, start_log, write_log
from utils.setup import autocast, check_vocabulary, optimize, start, to_device

GUESSING = 'guessing gives 1.0986'  # the loss of three answers, each as likely


def train_epoch(run, model, loader, plan, optimizer, config, device, kept, save):
    """Train on the batches of epoch `run.epoch` from step `run.step` on.

    kept: {name: object} with what an epoch accumulates, see `main`; save: called with the Run of a checkpoint inside the epoch.
    Returns the learning rate of the last step.
    """
    model.train()
    progress = Progress(f'epoch {run.epoch}', plan.steps, run.step, config['print_freq'],
                        config['batch_size'] * distributed.world_size(), device=device)
    for step, batch in enumerate(loader, start=run.step):
        lr = learning_rate(config['schedular'], run.epoch, step)
        set_learning_rate(optimizer, lr)
        loss = assign(model, batch, config, device)
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


def assign(model, batch, config, device):
    """The loss of a batch."""
    image, image_key = (batch[name].to(device, non_blocking=True) for name in ('image', 'image_key'))
    with autocast(device, config):
        return model(image, batch['text'].to(device), image_key)


@torch.no_grad()
def evaluate(model, loader, config, device):
    """Mean loss over the training files, in evaluation mode."""
    model.eval()
    averages = Averages(('loss',), device)
    for batch in loader:
        averages.update(loss=assign(model, batch, config, device))
    return {f'val_{name}': value for name, value in averages.epoch().items()}


def initialise(model, args):
    """Starting weights: the checkpoint's where one is given, else BERT's where they are to be had."""
    if args.checkpoint:
        say(load_text_assignment(model, model_state(read_checkpoint(args.checkpoint), args.checkpoint), args.checkpoint))
    else:
        say(load_bert(model.text_encoder, args.text_encoder))
        say('image encoder and projections: start at random; give a pre-training checkpoint with --checkpoint')


def main(argv=None):
    parser = create_parser('nlvr_pretrain', 'Pre-train the assignment of texts to two images.')
    args = parser.parse_args(argv)
    config, device = start('nlvr_pretrain', args)

    # Data, and who plays what in the first epoch.
    tokenizer = create_tokenizer(args.text_encoder)
    check_vocabulary(tokenizer, config['bert_config'], args.text_encoder)
    dataset = PretrainDataset(config, tokenizer, args.seed)
    plan = EpochPlan(len(dataset), config['batch_size'], distributed.rank(), distributed.world_size(), args.seed)
    batches = EpochBatches()
    loader = create_loader(dataset, batches, config['num_workers'], device)
    say(f'{len(dataset)} pairs, {plan.steps} steps an epoch')

    # Model: from where the run stopped, or from starting weights.
    model = create_model('nlvr_pretrain', config, tokenizer)
    resume_from = find_run(args.output_dir, 'nlvr_pretrain', args.checkpoint) if args.resume else None
    if resume_from and args.evaluate:
        args.checkpoint = resume_from
    if args.evaluate or not resume_from:
        initialise(model, args)
    model = to_device(model, device, config)
    if args.evaluate:
        plan.start_random(0, gather=distributed.all_gather_tensors)
        batches.play(0, PositionSampler(plan.order, config['batch_size']))
        result = evaluate(model, loader, config, device)
        say(result)
        append_log(args.output_dir, result)
        return distributed.close()
    optimizer = create_optimizer(config['optimizer'], model)

    # What an epoch accumulates; with the plan and the generators it makes a checkpoint the whole run.
    kept = {'plan': plan, 'averages': Averages(('loss',), device), 'bad_images': BadImages(args.output_dir, len(dataset))}

    def save(run):
        save_run(f'{args.output_dir}/{STEP_FILE}', 'nlvr_pretrain', run, model, optimizer, config, kept)

    if resume_from:
        run = resume_run(resume_from, 'nlvr_pretrain', model, optimizer, config, kept)
    else:
        run = Run()
        start_log(args.output_dir)
        plan.start_random(0, gather=distributed.all_gather_tensors)
    write_log(args.output_dir, run.records)

    for epoch in range(run.epoch, config['schedular']['epochs']):
        began = time.perf_counter()
        batches.play(epoch, PositionSampler(plan.order, config['batch_size'], run.step))
        lr = train_epoch(run, model, loader, plan, optimizer, config, device, kept, save)
        record = {'epoch': epoch, 'train_lr': lr, 'train_loss': kept['averages'].epoch()['loss']}
        plan.start_random(epoch + 1, gather=distributed.all_gather_tensors)
        kept['averages'].reset()
        kept['bad_images'].write()

        run = complete_epoch(args.output_dir, 'nlvr_pretrain', run, record, model, optimizer, config, kept)
        say('  '.join(f'{k} {v:.6g}' for k, v in record.items()))
        say(f'epoch {epoch} took {time.perf_counter() - began:.1f} s; {GUESSING}')
    distributed.close()


if __name__ == '__main__':
    main()
