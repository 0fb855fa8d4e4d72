"""Pre-training with GRIT: grouped mini-batch sampling for vision-language pre-training (arXiv 2208.04060).

While epoch e trains, the features of every step are collected in queues; full queues are grouped into chains of similar
examples; the chains, cut into mini-batches that are permuted, are the order of epoch e + 1. Nothing is encoded twice,
and the hardest negatives of a mini-batch are really hard.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env Pretrain.py \\
        --config ./configs/Pretrain.yaml --output_dir output/Pretrain/
"""

import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules load prints no traceback

import torch

from dataset.caption_dataset import MAX_TOKENS, PretrainDataset
from dataset.grit.batch_similarity import BatchSimilarity
from dataset.grit.collector import GritCollector
from dataset.grit.cuthill_mckee import require_grouping
from dataset.grit.quantile import GritQuantile
from dataset.grit.schedule import is_grouped, may_be_grouped
from dataset.grit.warmstart import saved_order
from engine import TrainingRun, find_checkpoint
from models import create_model
from models.false_negatives import false_negative_rate
from models.match_filter import load_filter
from models.tokenization_bert import create_tokenizer
from models.weight_files import read_weights
from models.weights import load_bert, load_deit, load_pretrain
from utils import distributed
from utils.arguments import add_flag, boolean_or_folder, create_parser
from utils.checkpoint import open_run
from utils.entry import run_main
from utils.errors import InputError
from utils.log import Averages, print_rank0
from utils.setup import autocast, finish_evaluation, script, start, to_device, unwrap

LOSSES = ('loss_mlm', 'loss_itc', 'loss_itm')
METRICS = (*LOSSES, 'itm_acc')
MAJORITY_ITM = 'ITM that always predicts "no match" has itm_acc 0.6667 and loss_itm 0.6365'


def set_next_order(run, epoch, collector, record, args, config):
    """Set the order of `epoch`: GRIT's grouping of what was collected, or a random one."""
    if is_grouped(epoch, config, [*run.status.records, record]):
        run.plan.set_grit_order(epoch, collector.finish_epoch(), across_ranks=args.mini_batch_shuffle_across_gpu)
        print_rank0(
            f'GRIT orders epoch {epoch}; grouping took {collector.grouping_seconds / run.seconds():.2%} of this one'
        )
    else:
        run.plan.set_random_order(epoch)
    collector.begin_epoch(epoch)


def metrics_of(model, quantile, dataset):
    """What else is logged of a step, depending on the settings: {name: a function of the batch and the output}."""
    settings = {
        'temp': (True, lambda batch, out: model.temp),
        'itm_beta': (model.negatives.adapts, lambda batch, out: model.negatives.beta),
        'grit_quantile': (quantile.adapts, lambda batch, out: 1 - quantile.distance),
        'false_negative_rate': (dataset.has_truth, lambda batch, out: false_negative_rate(batch, *out['pairs'])),
        'match_rate': (model.filter, lambda batch, out: out['pairs'].is_match.float().mean()),
    }
    return {name: value for name, (is_logged, value) in settings.items() if is_logged}


@torch.no_grad()
def evaluate(run, checkpoint, config, device):
    """Mean losses and ITM accuracy over the training files, in evaluation mode: {val_...: mean}.

    ITM's negatives are those of the last epoch, with the beta of the checkpoint.
    """
    run.model.eval()
    unwrap(run.model).begin_epoch(config['train_epochs'] - 1)
    negatives = unwrap(run.model).negatives
    content = open_run(checkpoint, 'pretrain') if negatives.adapts and checkpoint else None
    if content and 'itm_negatives' in content['ranks'][0]:
        negatives.load_state_dict(content['ranks'][0]['itm_negatives'])
    averages = Averages(METRICS, device)
    for batch in run.evaluation_batches():
        with autocast(device, config):
            out = run.model(batch['image'], batch['text'], batch['image_key'])
        averages.update(**{name: out[name] for name in METRICS})
    result = {f'val_{name}': value for name, value in averages.epoch().items()}
    print_rank0(result)
    return result


def initialize(model, args, config):
    """Starting weights: those of --checkpoint, else BERT's and DeiT's if available."""
    if args.checkpoint:
        print_rank0(load_pretrain(model, read_weights(args.checkpoint), args.checkpoint))
        return
    if args.evaluate:
        raise InputError('--evaluate: nothing to evaluate; give the weights of a finished run with --checkpoint')
    print_rank0(load_bert(model.text_encoder, args.text_encoder))
    print_rank0(load_deit(model.visual_encoder, config['init_deit'], config['vit']))
    model.copy_momentum()


def parse_arguments(argv):
    parser = create_parser('pretrain', 'Pre-train with grouped mini-batch sampling.')
    parser.add_argument(
        '--index_warmstart',
        nargs='?',
        const=True,
        default=False,
        type=boolean_or_folder,
        metavar='FOLDER',
        help='epoch 0 has the order that a run saved in FOLDER; without one, that of total_indices.mat in output_dir',
    )
    add_flag(parser, '--mini_batch_shuffle_across_gpu', False, 'shuffle the mini-batches of all ranks together')
    return parser.parse_args(argv)


@script
def main(argv=None):
    args = parse_arguments(argv)
    config, device = start('pretrain', args)

    # Model and data. A resumed run takes its weights from its checkpoint, a new one from --checkpoint or BERT and DeiT.
    tokenizer = create_tokenizer(args.text_encoder, config['bert_config']['vocab_size'])
    require_grouping(config['grit_grouping'])
    match_filter = load_filter(config, tokenizer, MAX_TOKENS, device)
    dataset = PretrainDataset(config, tokenizer, args.seed)
    model = create_model('pretrain', config, tokenizer)
    resume_from = find_checkpoint('pretrain', args)
    if not resume_from:
        initialize(model, args, config)
    model = to_device(model, device, config)

    # GRIT's queues, how similar the neighbors in the batches were, ITM's negatives, and what else adapts itself.
    quantile = GritQuantile(config['grit_quantile'], config['itm_target_accuracy']).to(device)
    negatives, similarity = unwrap(model).negatives.to(device), BatchSimilarity()
    sizes = config['queue_size'], config['search_space']
    collector = GritCollector(*sizes, args.seed, distributed.rank(), quantile, config['grit_grouping'])
    adaptive = {'itm_negatives': negatives, 'grit_quantile': quantile}
    adaptive = {name: part for name, part in adaptive.items() if part.adapts}
    unwrap(model).filter = match_filter
    extra = metrics_of(unwrap(model), quantile, dataset)
    run = TrainingRun(
        'pretrain',
        model,
        dataset,
        args,
        config,
        device,
        metrics=(*METRICS, *extra),
        batch_size=config['batch_size'],
        epochs=config['train_epochs'],
        state={'collector': collector, 'similarity': similarity, **adaptive},
        identity={'false_negative_filter': match_filter.digest} if match_filter else {},
    )
    if args.evaluate:
        return finish_evaluation(args, evaluate(run, args.checkpoint, config, device))
    folder = args.output_dir if args.index_warmstart is True else args.index_warmstart
    run.begin(resume_from, saved_order(folder) if folder and not resume_from else None)

    for epoch in run.epochs():
        unwrap(model).begin_epoch(epoch)
        quantile.begin_epoch(is_grouped(epoch, config, run.status.records), run.steps)
        for batch in run.batches():
            with autocast(device, config):
                out = model(batch['image'], batch['text'], batch['image_key'], alpha=run.distillation_weight())
            run.optimize(sum(out[name] for name in LOSSES))
            for part in adaptive.values():
                part.adapt(out['itm_acc'], run.is_finite)
            run.log(**{name: out[name] for name in METRICS}, **{name: of(batch, out) for name, of in extra.items()})

            # GRIT collects the features of this step, from before its update.
            if may_be_grouped(epoch + 1, config):
                collector.collect(batch, out['image_feat'], out['text_feat'])
            similarity.update(out['image_feat'], out['text_feat'])

        neighbour, random_pair = similarity.epoch()
        record = run.summary() | {'train_sim_neighbour': neighbour, 'train_sim_random': random_pair}
        set_next_order(run, epoch + 1, collector, record, args, config)
        run.end_epoch(record)
        if not match_filter:
            print_rank0(MAJORITY_ITM)


if __name__ == '__main__':
    run_main(main)
