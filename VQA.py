"""Visual question answering: fine-tuning on VQA v2 and Visual Genome, ranking of a list of answers, and scoring (ALBEF).

A question is read over its image, and a decoder learns to say the answers that annotators gave. To answer, every answer of
the list is ranked by its first token, and the best `k_test` by all their tokens.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env VQA.py \\
        --config ./configs/VQA.yaml --output_dir output/vqa/ --checkpoint [Pretrained checkpoint]

    python VQA.py --evaluate --checkpoint output/vqa/checkpoint_07.pth --image a.jpg --question "what color is the cat?"
"""

import time
from functools import partial
from pathlib import Path

import torch

from dataset.loader import EpochBatches, create_loader
from dataset.samplers import EpochPlan, PositionSampler, ShardBatches
from dataset.text import pre_question
from dataset.training_set import BadImages, tokenize
from dataset.transforms import eval_transform
from dataset.vqa_dataset import TEST_WORDS, QuestionSet, VQATrainingSet, read_answer_list, tokenize_answers
from dataset.vqa_results import accuracy_figures, accuracy_table, check_results, write_results
from models import create_model
from models.checkpoint import load_bert, model_state, read_checkpoint
from models.model_vqa import is_vqa, load_vqa
from models.tokenization_bert import create_tokenizer, pack_tokenizer, unpack_tokenizer
from optim import create_optimizer, set_learning_rate
from scheduler import distillation_weight, learning_rate
from utils import distributed
from utils.arguments import create_parser
from utils.checkpoint import STEP_FILE, Run, complete_epoch, find_run, resume_run, save_run, unwrap
from utils.config import apply_overrides, read_yaml, resolve
from utils.log import Averages, Progress, append_log, say, start_log, write_log
from utils.setup import autocast, check_vocabulary, one_thread, optimize, start, to_device

SHOWN = 5  # answers to a question of the command line


def train_epoch(run, model, loader, plan, optimizer, config, device, kept, save):
    """Train on the batches of epoch `run.epoch` from step `run.step` on.

    kept: {name: object} with what an epoch accumulates, see `main`; save: called with the Run of a checkpoint inside the epoch.
    Returns the learning rate of the last step.
    """
    model.train()
    averages = kept['averages']
    progress = Progress(f'epoch {run.epoch}', plan.steps, run.step, config['print_freq'],
                        config['batch_size_train'] * distributed.world_size(), 'questions', device)
    for step, batch in enumerate(loader, start=run.step):
        lr = learning_rate(config['schedular'], run.epoch, step)
        set_learning_rate(optimizer, lr)
        alpha = distillation_weight(config, run.epoch, step, plan.steps)
        image, k, weights = (batch[name].to(device, non_blocking=True) for name in ('image', 'k', 'weights'))
        with autocast(device, config):
            loss = model(image, batch['question'].to(device), batch['answer'].to(device), k=k, weights=weights, alpha=alpha)
        optimize(loss, model, optimizer, config)

        averages.update(loss=loss)
        kept['bad_images'].record(batch['bad'])
        if progress.due(step):
            progress.report(step, lr=lr, **averages.recent())
        if config['save_every'] and (run.epoch * plan.steps + step + 1) % config['save_every'] == 0 and step + 1 < plan.steps:
            run.step = step + 1
            save(run)
    progress.close()
    return lr


@torch.no_grad()
def answer_questions(model, questions, answers, config, device):
    """Answer every question of a split exactly once, this process its share. Returns on rank 0 [{question_id, answer}] in
    the order of the split, elsewhere None (a collective)."""
    model.eval()
    tokens = answers.tokens.to(device)
    batches = ShardBatches(len(questions), config['batch_size_test'], distributed.rank(), distributed.world_size())
    progress = Progress(f'{questions.split} questions', len(batches), 0, config['print_freq'],
                        config['batch_size_test'] * distributed.world_size(), 'questions', device)
    chosen, notes = {}, []
    for step, batch in enumerate(create_loader(questions, batches, config['num_workers'], device)):
        with one_thread(device), autocast(device, config):
            ids, _ = unwrap(model).rank_answers(batch['image'].to(device), batch['question'].to(device), tokens,
                                                config['k_test'])
        chosen |= zip(batch['index'].tolist(), ids[:, 0].tolist(), strict=True)
        notes += batch['notes']
        if progress.due(step):
            progress.report(step)
    progress.close()

    shares = distributed.gather_objects((chosen, notes))
    if shares is None:
        return None
    for note in (note for _, some in shares for note in some):
        say(note)
    chosen = {index: answer for some, _ in shares for index, answer in some.items()}
    return [{'question_id': questions.question_ids[index], 'answer': answers.texts[chosen[index]]} for index in sorted(chosen)]


def evaluate(model, splits, answers, epoch, config, device, folder, all_splits):
    """Answer the questions of the splits that have true answers, or of `all_splits`; write the answers, score what can be.

    Returns on every rank the figures for log.txt: {val_overall: percent, ...} (a collective).
    """
    figures = {}
    for questions in splits:
        if not (questions.annotated or all_splits):
            continue
        results = answer_questions(model, questions, answers, config, device)
        path = Path(folder, 'result', f'vqa_{"" if questions.split == "test" else "val_"}result_epoch{epoch}.json')
        figures |= distributed.main_first(partial(finish, questions, results, path))
    return figures


def finish(questions, results, path):
    """Check and write the answers to a split; score them where the true ones are known -> figures for log.txt."""
    check_results(results, questions.question_ids)
    write_results(path, results)
    say(f'{len(results)} answers to the {questions.split} questions are in {path}')
    if not questions.annotated:
        return {}
    rows, results = questions.annotated_rows(), [results[index] for index in questions.annotated]
    say('\n'.join(accuracy_table(results, rows)))
    return {f'{questions.split}_{name}': value for name, value in accuracy_figures(results, rows).items()}


class Answers:
    """The list of answers, and the vocabulary they are written in: what a checkpoint needs besides weights and
    configuration to be asked a question anywhere."""

    def __init__(self, texts, tokenizer, eos):
        self.texts, self.tokenizer = texts, tokenizer
        self.tokens = tokenize_answers(tokenizer, texts, eos)

    def state_dict(self):
        return {'texts': list(self.texts), 'tokenizer': pack_tokenizer(self.tokenizer)}

    def load_state_dict(self, state):
        if state['texts'] != self.texts:
            say(f'--resume: the list of answers has changed, from {len(state["texts"])} to {len(self.texts)} answers')


def ask(args, parser):
    """Answer the questions of the command line about one image: the best answers with their probabilities.

    Configuration, answers and vocabulary are the checkpoint's own, unless --config or --text_encoder name others.
    """
    if not (args.image and args.question and args.checkpoint):
        raise ValueError('to ask about an image, give all of --checkpoint, --image and --question')
    checkpoint = read_checkpoint(args.checkpoint)
    state = model_state(checkpoint, args.checkpoint)
    if not is_vqa(state):
        raise ValueError(f'--checkpoint {args.checkpoint}: it has no answer decoder; give one that VQA.py wrote')
    own = args.config == parser.get_default('config') and 'config' in checkpoint
    config, source = (checkpoint['config'], args.checkpoint) if own else (read_yaml(args.config), args.config)
    config = resolve('vqa', apply_overrides(config, args.set), source)[0] | {'distill': False}
    kept = checkpoint['ranks'][0]['answers'] if 'ranks' in checkpoint else None
    if kept and args.text_encoder == parser.get_default('text_encoder'):
        tokenizer = unpack_tokenizer(kept['tokenizer'])
    else:
        tokenizer = create_tokenizer(args.text_encoder)
        check_vocabulary(tokenizer, config['bert_config'], args.text_encoder)
    answers = Answers(kept['texts'] if kept and own else read_answer_list(config['answer_list']), tokenizer, config['eos'])

    device = distributed.choose_device(args.device)
    model = create_model('vqa', config, tokenizer).eval()
    load_vqa(model, state, args.checkpoint)
    model.to(device)
    image = eval_transform(config)(args.image)[None].to(device)
    for question in args.question:
        text = tokenize(tokenizer, [pre_question(question, TEST_WORDS)])
        with autocast(device, config):
            ids, probabilities = model.rank_answers(image, text.to(device), answers.tokens.to(device), config['k_test'])
        say(question)
        for answer, probability in list(zip(ids[0].tolist(), probabilities[0].tolist(), strict=True))[:SHOWN]:
            say(f'{100 * probability:7.2f} %  {answers.texts[answer]}')


def initialise(model, args):
    """Starting weights: the checkpoint's where one is given, else BERT's where they are to be had.

    Returns the epoch that the checkpoint was last trained on, 0 where it does not say.
    """
    if args.checkpoint:
        checkpoint = read_checkpoint(args.checkpoint)
        state = model_state(checkpoint, args.checkpoint)
        if args.evaluate and not is_vqa(state):
            raise ValueError(f'--evaluate: {args.checkpoint} has no answer decoder; give a checkpoint that VQA.py wrote')
        say(load_vqa(model, state, args.checkpoint))
        return max(0, int(checkpoint.get('epoch', 0)))
    if args.evaluate:
        raise ValueError('--evaluate: nothing to evaluate; give the weights of a finished run with --checkpoint')
    say(load_bert(model.text_encoder, args.text_encoder))
    say(str(load_bert(model.text_decoder, args.text_decoder)).replace('text encoder', 'answer decoder', 1))
    say('image encoder: starts at random; give a pre-training checkpoint with --checkpoint')
    model.copy_momentum()
    return 0


def main(argv=None):
    parser = create_parser('vqa', 'Fine-tune for visual question answering, answer test questions, or ask about an image.')
    parser.add_argument('--text_decoder', help='BERT weights for the answer decoder where no checkpoint is given; where '
                                               'absent, those of --text_encoder')
    parser.add_argument('--image', help='ask about this image, with --question')
    parser.add_argument('--question', action='append', help='a question about --image; may be repeated')
    args = parser.parse_args(argv)
    args.text_decoder = args.text_decoder or args.text_encoder
    if args.image or args.question:
        return ask(args, parser)
    config, device = start('vqa', args)
    rank, world_size = distributed.rank(), distributed.world_size()

    # Data: what is trained on, what is answered, and the answers to choose from.
    tokenizer = create_tokenizer(args.text_encoder)
    check_vocabulary(tokenizer, config['bert_config'], args.text_encoder)
    answers = Answers(read_answer_list(config['answer_list']), tokenizer, config['eos'])
    splits = [QuestionSet(config, split, tokenizer) for split in ('val', 'test') if config[f'{split}_file']]
    for questions in splits:
        say(f'{len(questions)} {questions.split} questions, {len(questions.annotated)} of them with answers')
        if questions.split == 'val' and not questions.annotated:
            raise ValueError('val_file: no row has answers, so nothing can be validated; give the file as test_file')

    # Model: from where the run stopped, or from starting weights.
    model = create_model('vqa', config, tokenizer)
    resume_from = find_run(args.output_dir, 'vqa', args.checkpoint) if args.resume else None
    if resume_from and args.evaluate:
        args.checkpoint = resume_from
    if args.evaluate or not resume_from:
        weights_epoch = initialise(model, args)
    model = to_device(model, device, config)
    if args.evaluate:
        if not splits:
            raise ValueError('--evaluate: the configuration names neither val_file nor test_file')
        figures = evaluate(model, splits, answers, weights_epoch, config, device, args.output_dir, all_splits=True)
        append_log(args.output_dir, {'epoch': weights_epoch} | figures)
        return distributed.close()
    dataset = VQATrainingSet(config, tokenizer, args.seed)
    plan = EpochPlan(len(dataset), config['batch_size_train'], rank, world_size, args.seed)
    batches = EpochBatches()
    loader = create_loader(dataset, batches, config['num_workers'], device)
    say(f'{len(dataset)} questions to train on, {plan.steps} steps an epoch, {len(answers.texts)} answers to choose from')
    optimizer = create_optimizer(config['optimizer'], model)

    # What an epoch accumulates; with the plan and the generators it makes a checkpoint the whole run.
    kept = {'plan': plan, 'averages': Averages(('loss',), device), 'bad_images': BadImages(args.output_dir, len(dataset)),
            'answers': answers}

    def save(run):
        save_run(f'{args.output_dir}/{STEP_FILE}', 'vqa', run, model, optimizer, config, kept)

    if resume_from:
        run = resume_run(resume_from, 'vqa', model, optimizer, config, kept)
    else:
        run = Run()
        start_log(args.output_dir)
        plan.start_random(0, gather=distributed.all_gather_tensors)
    write_log(args.output_dir, run.records)

    for epoch in range(run.epoch, config['schedular']['epochs']):
        began = time.perf_counter()
        batches.play(epoch, PositionSampler(plan.order, config['batch_size_train'], run.step))
        lr = train_epoch(run, model, loader, plan, optimizer, config, device, kept, save)
        record = {'epoch': epoch, 'train_lr': lr, **{f'train_{k}': v for k, v in kept['averages'].epoch().items()}}
        trained = time.perf_counter() - began

        # Splits with true answers after every epoch; a test split without them after the last one, for the official server.
        is_last = epoch + 1 == config['schedular']['epochs']
        record |= evaluate(model, splits, answers, epoch, config, device, args.output_dir, all_splits=is_last)
        plan.start_random(epoch + 1, gather=distributed.all_gather_tensors)
        kept['averages'].reset()
        kept['bad_images'].write()
        run = complete_epoch(args.output_dir, 'vqa', run, record, model, optimizer, config, kept, record.get('val_overall'))
        say('  '.join(f'{k} {v:.6g}' for k, v in record.items() if 'question_type' not in k))
        say(f'epoch {epoch} took {time.perf_counter() - began:.1f} s, of which training {trained:.1f} s')
    distributed.close()


if __name__ == '__main__':
    main()
