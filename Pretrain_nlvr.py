"""Text assignment: one epoch between pre-training and NLVR2, in which a text encoder learns to read two images.

A caption is shown with two images: its own and a similar one, in either order, or two similar ones. The model predicts
which image it describes: the first, the second, neither. Each fusion layer of the pre-trained text encoder is doubled,
one per image.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env Pretrain_nlvr.py \\
        --config ./configs/NLVR_pretrain.yaml --output_dir output/NLVR_pretrain/ --checkpoint [Pretrained checkpoint]
"""

import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules load prints no traceback

import torch

from dataset.caption_dataset import PretrainDataset
from engine import TrainingRun, find_checkpoint
from models import create_model
from models.tokenization_bert import create_tokenizer
from models.weight_files import read_weights
from models.weights import load_bert, load_text_assignment
from utils.arguments import create_parser
from utils.entry import run_main
from utils.errors import InputError
from utils.log import Averages, print_rank0
from utils.setup import autocast, finish_evaluation, script, start, to_device

CHANCE = 'chance is 1.0986'  # the loss of three equally likely answers


@torch.no_grad()
def evaluate(run, config, device):
    """Mean loss over the training files, in evaluation mode: {val_loss}."""
    run.model.eval()
    averages = Averages(('loss',), device)
    for batch in run.evaluation_batches():
        with autocast(device, config):
            averages.update(loss=run.model(batch['image'], batch['text'], batch['image_key']))
    result = {'val_loss': averages.epoch()['loss']}
    print_rank0(f'{result}; {CHANCE}')
    return result


def initialize(model, args):
    """Starting weights: those of --checkpoint, else BERT's if available."""
    if args.checkpoint:
        print_rank0(load_text_assignment(model, read_weights(args.checkpoint), args.checkpoint, args.evaluate))
    elif args.evaluate:
        raise InputError('--evaluate: nothing to evaluate; give the weights of a finished run with --checkpoint')
    else:
        print_rank0(load_bert(model.text_encoder, args.text_encoder))
        print_rank0('image encoder and projections: random weights; give a pre-training checkpoint with --checkpoint')


@script
def main(argv=None):
    args = create_parser('nlvr_pretrain', 'Pre-train the assignment of captions to two images.').parse_args(argv)
    config, device = start('nlvr_pretrain', args)

    tokenizer = create_tokenizer(args.text_encoder, config['bert_config']['vocab_size'])
    dataset = PretrainDataset(config, tokenizer, args.seed)
    model = create_model('nlvr_pretrain', config, tokenizer)
    resume_from = find_checkpoint('nlvr_pretrain', args)
    if not resume_from:
        initialize(model, args)
    model = to_device(model, device, config)

    sizes = {'batch_size': config['batch_size'], 'epochs': config['schedular']['epochs']}
    run = TrainingRun('nlvr_pretrain', model, dataset, args, config, device, metrics=('loss',), **sizes)
    if args.evaluate:
        return finish_evaluation(args, evaluate(run, config, device))
    run.begin(resume_from)

    for epoch in run.epochs():
        for batch in run.batches():
            with autocast(device, config):
                loss = model(batch['image'], batch['text'], batch['image_key'])
            run.optimize(loss)
            run.log(loss=loss)
        record = run.summary()
        run.plan.set_random_order(epoch + 1)
        run.end_epoch(record)
        print_rank0(CHANCE)


if __name__ == '__main__':
    run_main(main)
