"""Image-text retrieval: fine-tuning and evaluation on COCO, Flickr30k and the like.

Contrast ranks all texts for every image and all images for every text; matching re-ranks the best `k_test` of each.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env Retrieval.py \\
        --config ./configs/Retrieval_coco.yaml --output_dir output/Retrieval_coco/ --checkpoint [Pretrained checkpoint]
"""

import time

import torch

from dataset.loader import EpochBatches, create_loader
from dataset.metrics import retrieval_recall
from dataset.retrieval_dataset import TEXTS_PER_BATCH, RetrievalEvalDataset, RetrievalTrainDataset
from dataset.retrieval_page import write_page
from dataset.samplers import EpochPlan, PositionSampler, ShardBatches
from dataset.training_set import BadImages
from models import create_model
from models.checkpoint import load_bert, load_retrieval, model_state, read_checkpoint
from models.rerank import encode, rerank
from models.tokenization_bert import create_tokenizer
from optim import create_optimizer, set_learning_rate
from scheduler import distillation_weight, learning_rate
from utils import distributed
from utils.arguments import add_flag, create_parser
from utils.checkpoint import STEP_FILE, Run, complete_epoch, find_run, resume_run, save_run, unwrap
from utils.log import Averages, Progress, append_log, say, start_log, write_log
from utils.setup import autocast, check_vocabulary, one_thread, optimize, start, to_device

AVERAGED = ('loss_itc', 'loss_itm', 'itm_acc', 'no_negative')


def train_epoch(run, model, loader, plan, optimizer, config, device, kept, save):
    """Train on the batches of epoch `run.epoch` from step `run.step` on.

    kept: {name: object} with what an epoch accumulates, see `main`; save: called with the Run of a checkpoint inside the epoch.
    Returns the learning rate of the last step.
    """
    model.train()
    progress = Progress(f'epoch {run.epoch}', plan.steps, run.step, config['print_freq'],
                        config['batch_size_train'] * distributed.world_size(), device=device)
    for step, batch in enumerate(loader, start=run.step):
        lr = learning_rate(config['schedular'], run.epoch, step)
        set_learning_rate(optimizer, lr)
        alpha = distillation_weight(config, run.epoch, step, plan.steps)
        image, idx = (batch[name].to(device, non_blocking=True) for name in ('image', 'idx'))
        with autocast(device, config):
            out = model(image, batch['text'].to(device), idx=idx, alpha=alpha)
        optimize(out['loss_itc'] + out['loss_itm'], model, optimizer, config)

        kept['averages'].update(**{name: out[name] for name in AVERAGED})
        kept['bad_images'].record(batch['bad'])
        if progress.due(step):
            progress.report(step, lr=lr, **kept['averages'].recent())
        if config['save_every'] and (run.epoch * plan.steps + step + 1) % config['save_every'] == 0 and step + 1 < plan.steps:
            run.step = step + 1
            save(run)
    progress.close()
    return lr


@torch.no_grad()
def score(model, name, dataset, loader, config, device):
    """Scores of a split, the same for any number of processes.

    Returns (sim_i2t [NI, NT], what contrast says; score_i2t [NI, NT] and score_t2i [NT, NI], what matching says of the best
    `k_test`, or contrast with k_test 0), on the CPU of every rank.
    """
    model.eval()
    shard = ShardBatches(len(dataset.texts), TEXTS_PER_BATCH, distributed.rank(), distributed.world_size())
    store = device if config['keep_embeds'] == 'device' else torch.device('cpu')
    bad = []
    with one_thread(device), autocast(device, config):
        # Every process encodes its share of the images and texts, each modality alone.
        encoded = encode(unwrap(model), images_of(loader, f'{name}: encoding', config, device, bad),
                         (dataset.tokens(numbers) for numbers in shard), store)
        for words in sum(distributed.gather_objects(bad) or [], []):
            say(words)
        # Contrast ranks everything ...
        sim_i2t = encoded.similarities()  # [NI, NT]
        scores = sim_i2t.cpu(), sim_i2t.cpu().t()
        # ... and matching re-ranks the best, image by image.
        if config['k_test']:
            scores = rerank(unwrap(model), encoded, sim_i2t, config['k_test'], f'{name}: re-ranking', config['print_freq'])
    return sim_i2t.cpu(), *scores


def images_of(loader, title, config, device, bad):
    """The image batches of this rank's loader, with a progress bar; what is wrong with images is added to `bad`."""
    progress = Progress(title, len(loader), every=config['print_freq'], unit_size=config['batch_size_test'], unit='images',
                        device=device)
    for done, batch in enumerate(loader):
        bad += batch['bad']
        yield batch['image']
        if progress.due(done):
            progress.report(done)
    progress.close()


def evaluate(model, splits, config, device, page=None):
    """Recall of all splits: {val_...: re-ranked, val_itc_...: by contrast alone, test_...}, the same on every rank.

    splits: {name: (dataset, loader)}. page: a file to show the last split's queries in, with their best five.
    """
    result = {}
    for name, (dataset, loader) in splits.items():
        began = time.perf_counter()
        sim_i2t, score_i2t, score_t2i = score(model, name, dataset, loader, config, device)
        if distributed.is_main():
            owners = dataset.txt2img, dataset.img2txt
            result |= {f'{name}_{key}': value for key, value in retrieval_recall(score_i2t, score_t2i, *owners).items()}
            result |= {f'{name}_itc_{key}': value for key, value in retrieval_recall(sim_i2t, sim_i2t.t(), *owners).items()}
            if page and name == list(splits)[-1]:
                write_page(page, dataset, score_i2t, score_t2i)
                say(f'{page}: pictures of queries and their best five')
        say(f'{name}: {len(dataset)} images and {len(dataset.texts)} texts took {time.perf_counter() - began:.1f} s')
    say(recall_table(result, splits, config['k_test']))
    return distributed.broadcast_object(result)


def recall_table(result, splits, k):
    """Recall of every split as lines of text, contrast alone above re-ranked."""
    columns = [f'{side}_{figure}' for side in ('txt', 'img') for figure in ('r1', 'r5', 'r10', 'r_mean')] + ['r_mean']
    heads = [f'{side}@{figure}' for side in ('TR', 'IR') for figure in ('1', '5', '10', 'mean')] + ['mean']
    lines = [f'{"recall in %":24}' + ''.join(f'{head:>8}' for head in heads)]
    for name in splits if result else ():
        for words, prefix in (('contrast', f'{name}_itc'), (f'best {k} re-ranked', name))[:2 if k else 1]:
            lines.append(f'{f"{name}, {words}":24}' + ''.join(f'{result[f"{prefix}_{key}"]:8.2f}' for key in columns))
    return '\n'.join(lines)


def evaluation_splits(config, tokenizer, device):
    """{'val': (dataset, loader), 'test': ...} of the files that the configuration names."""
    splits = {}
    for name in ('val', 'test'):
        if config[f'{name}_file']:
            dataset = RetrievalEvalDataset(config, config[f'{name}_file'], tokenizer)
            shard = ShardBatches(len(dataset), config['batch_size_test'], distributed.rank(), distributed.world_size())
            splits[name] = dataset, create_loader(dataset, shard, config['num_workers'], device)
    return splits


def initialise(model, args):
    """Starting weights: the checkpoint's where one is given, else BERT's where they are to be had; and the momentum copies'."""
    new = ['visual_encoder_m']
    if args.checkpoint:
        report = load_retrieval(model, model_state(read_checkpoint(args.checkpoint), args.checkpoint), args.checkpoint)
        new = report.new
        say(report)
    else:
        say(load_bert(model.text_encoder, args.text_encoder))
        say('image encoder: starts at random; give a pre-training checkpoint with --checkpoint')
    if args.copy_init:
        model.copy_momentum()
        say('momentum copies: of the weights after loading (--copy_init)')
    elif model.use_momentum and any(key.startswith('visual_encoder_m') for key in new):
        say('momentum copies: not in a checkpoint, so their image encoder and projections start at random, as officially; '
            '--copy_init copies the loaded weights')
        say(f'momentum {load_bert(model.text_encoder_m, args.text_encoder)}')


def check_arguments(args, config):
    """What can be refused before any work is done."""
    if args.copy_init and not config['use_momentum']:
        raise ValueError('--copy_init: there is no momentum model to copy to; drop the flag or set use_momentum: true')
    if args.page and not args.evaluate:
        raise ValueError('--page: pictures are made with --evaluate only')
    if args.evaluate and not (config['val_file'] or config['test_file']):
        raise ValueError('--evaluate: the configuration has neither val_file nor test_file')
    if not args.evaluate and not config[f'{args.select_on}_file']:
        other = {'val': 'test', 'test': 'val'}[args.select_on]
        raise ValueError(f'{args.select_on}_file is missing, on which the best checkpoint is chosen; give one, or --select_on '
                         f'{other} with {other}_file')


def main(argv=None):
    parser = create_parser('retrieval', 'Fine-tune for image-text retrieval, or evaluate.')
    add_flag(parser, '--copy_init', False, 'start the momentum copies from the loaded weights')
    parser.add_argument('--select_on', choices=('val', 'test'), default='val',
                        help='the split whose r_mean chooses checkpoint_best.pth (officially test)')
    parser.add_argument('--page', default='', metavar='FILE',
                        help='with --evaluate: write an HTML page of queries and their best five')
    args = parser.parse_args(argv)
    config, device = start('retrieval', args)
    check_arguments(args, config)

    # Data, and who plays what in the first epoch.
    tokenizer = create_tokenizer(args.text_encoder)
    check_vocabulary(tokenizer, config['bert_config'], args.text_encoder)
    splits = evaluation_splits(config, tokenizer, device)

    # Model: from where the run stopped, or from starting weights.
    resume_from = find_run(args.output_dir, 'retrieval', args.checkpoint) if args.resume else None
    if args.evaluate:
        args.checkpoint, args.copy_init = resume_from or args.checkpoint, False
        if not args.checkpoint:
            raise ValueError('--evaluate: nothing to evaluate; give weights with --checkpoint')
        model = create_model('retrieval', config | {'use_momentum': False, 'distill': False}, tokenizer)
        initialise(model, args)
        append_log(args.output_dir, evaluate(to_device(model, device, config), splits, config, device, args.page))
        return distributed.close()
    model = create_model('retrieval', config, tokenizer)
    if not resume_from:
        initialise(model, args)
    model = to_device(model, device, config)
    dataset = RetrievalTrainDataset(config, tokenizer, args.seed)
    plan = EpochPlan(len(dataset), config['batch_size_train'], distributed.rank(), distributed.world_size(), args.seed)
    batches = EpochBatches()
    loader = create_loader(dataset, batches, config['num_workers'], device)
    say(f'{len(dataset)} pairs, {plan.steps} steps an epoch; ' +
        ', '.join(f'{len(split)} images and {len(split.texts)} texts in {name}' for name, (split, _) in splits.items()))
    optimizer = create_optimizer(config['optimizer'], model)

    # What an epoch accumulates; with the plan and the generators it makes a checkpoint the whole run.
    kept = {'plan': plan, 'averages': Averages(AVERAGED, device), 'bad_images': BadImages(args.output_dir, len(dataset))}

    def save(run):
        save_run(f'{args.output_dir}/{STEP_FILE}', 'retrieval', run, model, optimizer, config, kept)

    if resume_from:
        run = resume_run(resume_from, 'retrieval', model, optimizer, config, kept)
    else:
        run = Run()
        start_log(args.output_dir)
        plan.start_random(0, gather=distributed.all_gather_tensors)
    write_log(args.output_dir, run.records)

    for epoch in range(run.epoch, config['schedular']['epochs']):
        began = time.perf_counter()
        batches.play(epoch, PositionSampler(plan.order, config['batch_size_train'], run.step))
        lr = train_epoch(run, model, loader, plan, optimizer, config, device, kept, save)
        record = {'epoch': epoch, 'train_lr': lr, **{f'train_{k}': v for k, v in kept['averages'].epoch().items()},
                  **evaluate(model, splits, config, device)}
        plan.start_random(epoch + 1, gather=distributed.all_gather_tensors)
        kept['averages'].reset()
        kept['bad_images'].write()

        run = complete_epoch(args.output_dir, 'retrieval', run, record, model, optimizer, config, kept,
                             record[f'{args.select_on}_r_mean'])
        say('  '.join(f'{k} {v:.6g}' for k, v in record.items() if not k.startswith(('val_', 'test_'))))
        say(f'epoch {epoch} took {time.perf_counter() - began:.1f} s')
    distributed.close()


if __name__ == '__main__':
    main()
