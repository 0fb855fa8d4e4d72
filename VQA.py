"""Visual question answering: fine-tuning, ranking of a list of answers, and scoring (ALBEF).

An encoder reads a question and its image, and a decoder learns to generate the answers of the annotators. To answer,
the decoder ranks every answer of the list by its first token, and the best `k_test` by all their tokens.

    python -m torch.distributed.launch --nproc_per_node=4 --use_env VQA.py \\
        --config ./configs/VQA.yaml --output_dir output/vqa/ --checkpoint [Pretrained checkpoint]

`python predict.py answer` answers a question about one image.
"""

import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules load prints no traceback

from functools import partial
from pathlib import Path

import torch

from dataset.base import BlankImages
from dataset.loader import evaluation_splits, fingerprints, move_batch
from dataset.tokens import report_unknown
from dataset.vqa_dataset import AnswerList, VQAEvalDataset, VQATrainingSet, read_answer_list
from engine import TrainingRun, find_checkpoint
from evaluation.vqa_results import accuracy_metrics, accuracy_table, check_results, write_results
from models import create_model
from models.tokenization_bert import create_tokenizer
from models.weight_files import model_state, read_checkpoint
from models.weights import is_vqa, load_bert, load_vqa
from utils import distributed
from utils.arguments import create_parser
from utils.entry import run_main
from utils.errors import InputError
from utils.finite import require_finite
from utils.log import Progress, print_rank0
from utils.setup import autocast, finish_evaluation, one_thread, script, start, to_device, unwrap


@torch.no_grad()
def predict(model, questions, loader, answers, config, device):
    """Answer every question of a split exactly once, each process its shard (a collective).

    Returns on rank 0 [{question_id, answer}] in the order of the split, elsewhere None.
    """
    model.eval()
    tokens, k, every = answers.tokens.to(device), config['k_test'], config['print_freq']
    unit_size = config['batch_size_test'] * distributed.world_size()
    progress = Progress(f'{questions.split} questions', len(loader), 0, every, unit_size, 'questions', device)
    predicted, blank = {}, BlankImages(questions)
    for step, batch in enumerate(loader):
        blank.record(batch['bad'])
        moved = move_batch(batch, device)
        with one_thread(device), autocast(device, config):
            ids, probability = unwrap(model).rank_answers(moved['image'], moved['question'], tokens, k)
        require_finite(questions.split, probability)
        predicted |= zip(batch['index'].tolist(), ids[:, 0].tolist(), strict=True)
        if progress.due(step):
            progress.report(step)
    progress.close()

    blank.report()
    shards = distributed.gather_objects(predicted)
    if shards is None:
        return None
    predicted = {index: answer for shard in shards for index, answer in shard.items()}
    return [
        {'question_id': questions.question_ids[index], 'answer': answers.texts[predicted[index]]}
        for index in sorted(predicted)
    ]


def evaluate(model, splits, answers, epoch, config, device, folder, all_splits):
    """Answer the questions of the splits with true answers, with `all_splits` of every split; write and score them.

    Returns on every rank the metrics for log.txt: {val_overall: percent, ...} (a collective).
    """
    metrics = {}
    for split, (questions, loader) in splits.items():
        if questions.annotated or all_splits:
            results = predict(model, questions, loader, answers, config, device)
            name = 'vqa' if split == 'test' else 'vqa_val'
            path = Path(folder, 'result', f'{name}_result_epoch{epoch}.json')
            metrics |= distributed.main_first(partial(write_and_score, questions, results, path))
    return metrics


def write_and_score(questions, results, path):
    """Check and write the answers to a split; score them if true answers are known -> metrics for log.txt."""
    check_results(results, questions.question_ids)
    write_results(path, results)
    print_rank0(f'{len(results)} answers to the {questions.split} questions are in {path}')
    if not questions.annotated:
        return {}
    rows, results = questions.annotated_rows(), [results[index] for index in questions.annotated]
    print_rank0('\n'.join(accuracy_table(results, rows)))
    return {f'{questions.split}_{name}': value for name, value in accuracy_metrics(results, rows).items()}


def initialize(model, args):
    """Starting weights: those of --checkpoint, else BERT's if available.

    Returns the epoch that the checkpoint was last trained on, 0 if it does not say.
    """
    if args.checkpoint:
        checkpoint = read_checkpoint(args.checkpoint)
        state = model_state(checkpoint, args.checkpoint)
        if args.evaluate and not is_vqa(state):
            raise InputError(
                f'--evaluate: {args.checkpoint} has no answer decoder; give a checkpoint that VQA.py wrote'
            )
        print_rank0(load_vqa(model, state, args.checkpoint))
        epoch = checkpoint.get('epoch')
        return max(0, epoch) if isinstance(epoch, int) else 0
    if args.evaluate:
        raise InputError('--evaluate: nothing to evaluate; give the weights of a finished run with --checkpoint')
    print_rank0(load_bert(model.text_encoder, args.text_encoder))
    option = '--text_decoder' if args.text_decoder else '--text_encoder'
    name = args.text_decoder or args.text_encoder
    print_rank0(load_bert(model.text_decoder, name, 'answer decoder', option))
    print_rank0('image encoder: random weights; give a pre-training checkpoint with --checkpoint')
    model.copy_momentum()
    return 0


def check_splits(splits, args):
    """Refuse before any work splits that cannot be evaluated."""
    for name, (questions, _) in splits.items():
        print_rank0(f'{len(questions.annotated)} of the {name} questions have answers')
        if name == 'val' and not questions.annotated:
            raise InputError('val_file: no row has answers, so nothing can be validated; give the file as test_file')
        questions.check_annotated()
    if args.evaluate and not splits:
        raise InputError('--evaluate: the configuration has neither val_file nor test_file')


@script
def main(argv=None):
    parser = create_parser('vqa', 'Fine-tune for visual question answering, or answer the questions of a split.')
    help_decoder = 'BERT weights for the answer decoder if no checkpoint is given (default: those of --text_encoder)'
    parser.add_argument('--text_decoder', help=help_decoder)
    args = parser.parse_args(argv)
    config, device = start('vqa', args)
    tokenizer = create_tokenizer(args.text_encoder, config['bert_config']['vocab_size'])
    answers = AnswerList(read_answer_list(config['answer_list']), tokenizer, config['eos'])
    make = partial(VQAEvalDataset, config, tokenizer=tokenizer)
    splits = evaluation_splits(config, make, config['batch_size_test'], device)
    check_splits(splits, args)
    report_unknown(tokenizer, {config['answer_list']: answers.texts}, 'answer_list')

    model = create_model('vqa', config, tokenizer)
    resume_from = find_checkpoint('vqa', args)
    start_epoch = None if resume_from else initialize(model, args)
    model = to_device(model, device, config)
    if args.evaluate:
        metrics = evaluate(model, splits, answers, start_epoch, config, device, args.output_dir, all_splits=True)
        return finish_evaluation(args, {'epoch': start_epoch} | metrics)

    dataset = VQATrainingSet(config, tokenizer, args.seed)
    sizes = {'batch_size': config['batch_size_train'], 'epochs': config['schedular']['epochs']}
    more = {'state': {'answers': answers}, 'identity': fingerprints(splits) | {'answer_list': answers.fingerprint()}}
    run = TrainingRun('vqa', model, dataset, args, config, device, metrics=('loss',), **sizes, **more)
    run.begin(resume_from)

    for epoch in run.epochs():
        for batch in run.batches():
            inputs = batch['image'], batch['question'], batch['answer']
            with autocast(device, config):
                loss = model(*inputs, k=batch['k'], weights=batch['weights'], alpha=run.distillation_weight())
            run.optimize(loss)
            run.log(loss=loss)

        # Splits with true answers after every epoch; a test split without them only at the end, for the official
        # server.
        record = run.summary()
        run.save()  # the evaluation may fail, or be killed
        is_last = epoch + 1 == config['schedular']['epochs']
        record |= evaluate(model, splits, answers, epoch, config, device, args.output_dir, all_splits=is_last)
        run.plan.set_random_order(epoch + 1)
        run.end_epoch(record, metric=record.get('val_overall'))


if __name__ == '__main__':
    run_main(main)
