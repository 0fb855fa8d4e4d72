"""VQA.py on the small synthetic dataset: its data, its answers, its accuracy, and runs that are killed and resumed."""

import json
import math
import os
import shutil

import pytest
import torch
from PIL import Image

import utils.checkpoint
import VQA
from dataset.annotations import load_annotations
from dataset.vqa_dataset import VQAEvalDataset, VQATrainingSet, read_answer_list, tokenize_answers, weighted_answers
from evaluation.vqa_results import accuracy_metrics, accuracy_table, check_results, write_results
from models.tokenization_bert import create_tokenizer, pack_tokenizer, unpack_tokenizer
from tests.processes import KILLED, DieAt, run, tail
from tests.reference import load_json
from tests.tiny import arguments
from utils.config import apply_overrides, read_yaml, resolve


def settings(shapes, *more):
    argv = arguments('vqa', shapes, 'unused', *more)
    overrides = [value for flag, value in zip(argv, argv[1:], strict=False) if flag == '--set']
    return resolve('vqa', apply_overrides(read_yaml(argv[1]), overrides))[0]


@pytest.fixture(scope='module')
def tokenizer(shapes):
    return create_tokenizer(str(shapes / 'vocab'))


def write_rows(path, rows):
    path.write_text(json.dumps(rows))
    return path


def rows_of(shapes, name='vqa_train'):
    return json.loads((shapes / f'{name}.json').read_text())


# ---- data ----


def test_annotators_share_the_weight_and_visual_genome_has_a_half():
    row = {'dataset': 'vqa', 'answer': ['red', 'pink', 'red', 'red', 'rose', 'red', 'red', 'red', 'red', 'pink']}
    assert weighted_answers(row) == pytest.approx({'red': 0.7, 'pink': 0.2, 'rose': 0.1})
    assert weighted_answers({'dataset': 'vg', 'answer': 'on the table'}) == {'on the table': 0.5}
    assert weighted_answers({'dataset': 'vqa', 'answer': 'red'}) == {'red': 1.0}


def test_a_training_batch(shapes, tmp_path, tokenizer):
    """Questions cleaned, cut at 30 words and 25 tokens with [CLS]; answers whole and ended by one token; flat, with
    counts.
    """
    rows = rows_of(shapes)[:3]
    rows[0] |= {'question': 'What COLOR is the red-star, please?' + ' star' * 40}
    rows[1] |= {'dataset': 'vg', 'answer': 'dark green ' * 20}
    rows[2] |= {'answer': ['Red'] * 9 + ['dark green']}
    config = settings(shapes, f'train_file={write_rows(tmp_path / "train.json", rows)}')
    dataset = VQATrainingSet(config, tokenizer, 0)
    batch = dataset.collate([dataset[0, index] for index in range(3)])
    assert batch['image'].shape == (3, 3, 32, 32)
    question = tokenizer.convert_ids_to_tokens(batch['question'].input_ids[0])
    assert len(question) == 25 and question[:7] == ['[CLS]', 'what', 'color', 'is', 'the', 'red', 'star']
    assert '[SEP]' not in question and ',' not in question
    counts = batch['k'].tolist()
    assert counts == [len(set(rows[0]['answer'])), 1, 2] and batch['weights'].tolist()[-3:] == pytest.approx(
        [0.5, 0.9, 0.1]
    )
    assert math.isclose(sum(batch['weights'].tolist()[: counts[0]]), 1, rel_tol=1e-6)
    tokens = [tokenizer.convert_ids_to_tokens(ids[mask.bool()]) for ids, mask in zip(*batch['answer'], strict=True)]
    assert tokens[-2] == ['[CLS]', 'red', '[SEP]'] and tokens[-3] == ['[CLS]', *['dark', 'green'] * 20, '[SEP]']


def test_a_batch_does_not_depend_on_workers(shapes, tokenizer):
    dataset = VQATrainingSet(settings(shapes), tokenizer, 0)
    first, again = (dataset[3, 7] for _ in range(2))
    assert torch.equal(first['image'], again['image'])
    assert not torch.equal(first['image'], dataset[4, 7]['image'])


def test_test_questions_are_not_cut_but_at_the_position_table(shapes, tmp_path, tokenizer, capsys):
    rows = rows_of(shapes, 'vqa_test')[:2]
    rows[0]['question'] = 'star ' * 45
    config = settings(shapes, f'test_file={write_rows(tmp_path / "a.json", rows)}')
    questions = VQAEvalDataset(config, 'test', tokenizer)
    assert questions.collate([questions[0], questions[1]])['question'].input_ids.shape == (2, 46)
    rows[0]['question'] = 'zzzz ' * 60  # words of which the vocabulary has single letters only
    config = settings(shapes, f'test_file={write_rows(tmp_path / "b.json", rows)}')
    questions = VQAEvalDataset(config, 'test', tokenizer)
    for _ in range(2):
        assert questions.collate([questions[0], questions[1]])['question'].input_ids.shape == (2, 64)
    assert capsys.readouterr().out.count('longer than 64 tokens') == 1


def test_the_answer_list(shapes, tmp_path, tokenizer):
    answers = read_answer_list(shapes / 'answer_list.json')
    tokens = tokenize_answers(tokenizer, answers, '[SEP]')
    lengths = tokens.attention_mask.sum(dim=1)
    assert (tokens.input_ids.gather(1, lengths[:, None] - 1) == tokenizer.sep_token_id).all()
    two_words = tokenizer.convert_ids_to_tokens(tokens.input_ids[answers.index('dark green')])
    assert two_words[:4] == ['[CLS]', 'dark', 'green', '[SEP]']
    for eos in ('', 'dark green', '</s>', '[EOS]'):
        with pytest.raises(ValueError, match='must be one token'):
            tokenize_answers(tokenizer, answers, eos)
    with pytest.raises(FileNotFoundError, match='dataset.prepare vqa'):
        read_answer_list(tmp_path / 'none.json')
    for text in ('{"a": 1}', '[]', '[1]', '["a"'):
        (tmp_path / 'bad.json').write_text(text)
        with pytest.raises(ValueError, match='answer_list: .*bad.json'):
            read_answer_list(tmp_path / 'bad.json')


def test_bad_rows_and_roots_are_named(shapes, tmp_path, tokenizer):
    rows = rows_of(shapes)[:4]
    del rows[2]['answer']
    config = settings(shapes, f'train_file={write_rows(tmp_path / "a.json", rows)}')
    with pytest.raises(ValueError, match=r'a\.json: row 2 has no answer, and 1 of 4'):
        VQATrainingSet(config, tokenizer, 0)
    rows = rows_of(shapes, 'vqa_test')[:3]
    rows[2]['question_id'] = rows[0]['question_id']
    config = settings(shapes, f'test_file={write_rows(tmp_path / "b.json", rows)}')
    with pytest.raises(ValueError, match=r'b\.json: row 2 has question_id .* as row 0 of .*b\.json'):
        VQAEvalDataset(config, 'test', tokenizer)
    rows = rows_of(shapes, 'vqa_val')[:3]
    rows[1]['answer'] = 'red'
    config = settings(shapes, f'val_file={write_rows(tmp_path / "c.json", rows)}')
    with pytest.raises(ValueError, match=r'c\.json: row 1 has 1 answer\(s\).*ten times'):
        VQAEvalDataset(config, 'val', tokenizer).annotated_rows()
    with pytest.raises(FileNotFoundError, match='set vqa_root'):
        VQAEvalDataset(settings(shapes, 'vqa_root=/nowhere'), 'val', tokenizer)
    rows = [row | {'dataset': 'vg', 'answer': 'red'} for row in rows_of(shapes)[:2]]
    file = write_rows(tmp_path / 'd.json', rows * 30)
    config = settings(shapes, 'vg_root=/nowhere', f'train_file=[{shapes}/vqa_train.json, {file}]')
    with pytest.raises(FileNotFoundError, match=r'd\.json, row .*/nowhere.*set vg_root'):
        VQATrainingSet(config, tokenizer, 0)


def test_a_column_tells_which_rows_have_it(shapes, tmp_path):
    rows = rows_of(shapes)[:5]
    del rows[1]['answer'], rows[4]['answer']
    table = load_annotations([str(write_rows(tmp_path / 'a.json', rows)), str(shapes / 'vqa_test.json')], 'vqa')
    assert table.holding('answer').tolist() == [True, False, True, True, False] + [False] * len(
        rows_of(shapes, 'vqa_test')
    )


def test_unreadable_test_images_are_answered_blank_or_refused(shapes, tmp_path, tokenizer):
    rows = rows_of(shapes, 'vqa_test')[:3]
    rows[1]['image'] = 'images/none.jpg'
    file = write_rows(tmp_path / 'a.json', rows)
    questions = VQAEvalDataset(settings(shapes, f'test_file={file}'), 'test', tokenizer)
    batch = questions.collate([questions[i] for i in range(3)])
    assert not batch['image'][1].any() and batch['image'][2].any()
    assert len(batch['bad']) == 1 and 'a.json, row 1' in batch['bad'][0] and 'none.jpg' in batch['bad'][0]
    with pytest.raises(ValueError, match=r'a\.json, row 1: .*none.jpg.*on_bad_image: skip'):
        VQAEvalDataset(settings(shapes, f'test_file={file}', 'on_bad_image=error'), 'test', tokenizer)[1]


# ---- results ----


def test_the_accuracy_is_the_official_one():
    reference = load_json('vqa_accuracy')
    figures = accuracy_metrics(reference['results'], reference['annotations'])
    assert figures['overall'] == reference['accuracy']['overall']
    for part, name in (('answer_type', 'perAnswerType'), ('question_type', 'perQuestionType')):
        ours = {key.removeprefix(f'{part}_'): value for key, value in figures.items() if key.startswith(f'{part}_')}
        assert ours == reference['accuracy'][name]


def test_the_table_shows_the_most_frequent_answer(shapes):
    rows = rows_of(shapes, 'vqa_val')
    right = [{'question_id': row['question_id'], 'answer': max(row['answer'], key=row['answer'].count)} for row in rows]
    figures, lines = accuracy_metrics(right, rows), accuracy_table(right, rows)
    assert figures['kind_colour'] > 95 and figures['overall'] > 95
    shown = {line[:12].strip(): line.split() for line in lines[1:]}
    assert shown.keys() == {'colour', 'shape', 'count', 'relation', 'yes/no', 'all'}
    colours = [row['answer'] for row in rows if row['kind'] == 'colour']
    most = max(
        sum(max(answers, key=answers.count) == colour for answers in colours)
        for colour in read_answer_list(shapes / 'answer_list.json')
    )
    assert float(shown['colour'][3]) == pytest.approx(100 * most / len(colours), abs=100 / len(colours))


@pytest.mark.parametrize(
    'results, fault',
    [
        ([(1, 'a'), (2, 'b')], 'without an answer: [3]'),
        ([(1, 'a'), (2, 'b'), (3, 'c'), (2, 'b')], 'with several: [2]'),
        ([(1, 'a'), (2, None), (3, 'c')], 'text `answer`'),
        ([(1, 'a'), (True, 'b'), (3, 'c')], '`question_id`'),
        ([(1, 'a'), (3, 'b'), (2, 'c')], 'with several: []'),
    ],
)
def test_results_that_the_server_would_refuse(results, fault):
    with pytest.raises(ValueError, match='results: ') as error:
        check_results([{'question_id': question, 'answer': answer} for question, answer in results], [1, 2, 3])
    assert fault in str(error.value)


def test_results_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'result' / 'r.json'
    write_results(path, [{'question_id': 1, 'answer': 'old'}])

    def fail(*_):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError):
        write_results(path, [{'question_id': 1, 'answer': 'new'}])
    assert json.loads(path.read_text()) == [{'question_id': 1, 'answer': 'old'}]


# ---- the script ----


@pytest.fixture(scope='module')
def trained(shapes, pretrained, tmp_path_factory):
    """The output folder of two epochs with checkpoints inside the epochs."""
    folder = tmp_path_factory.mktemp('vqa')
    VQA.main([*arguments('vqa', shapes, folder, 'save_every=8'), '--checkpoint', str(pretrained)])
    return folder


def read_log(folder):
    return [json.loads(line) for line in (folder / 'log.txt').read_text().splitlines()]


def test_a_run_leaves_what_it_should(shapes, trained):
    log = read_log(trained)
    assert [record['epoch'] for record in log] == [0, 1]
    assert log[1]['train_loss'] < log[0]['train_loss']
    assert {
        'train_lr',
        'val_overall',
        'val_answer_type_yes/no',
        'val_question_type_how many',
        'val_kind_colour',
    } <= log[0].keys()
    assert not any(key.startswith('test_') for key in log[1])
    names = {str(path.relative_to(trained)) for path in trained.rglob('*') if path.is_file()}
    assert names == {
        'checkpoint_00.pth',
        'checkpoint_01.pth',
        'checkpoint_best.pth',
        'config.yaml',
        'log.txt',
        'result/vqa_val_result_epoch0.json',
        'result/vqa_val_result_epoch1.json',
        'result/vqa_result_epoch1.json',
    }
    best = torch.load(trained / 'checkpoint_best.pth', weights_only=True)
    assert best['best'] == max(record['val_overall'] for record in log) == log[best['epoch']]['val_overall']
    results = json.loads((trained / 'result/vqa_result_epoch1.json').read_text())
    assert [row['question_id'] for row in results] == [row['question_id'] for row in rows_of(shapes, 'vqa_test')]
    assert {row['answer'] for row in results} <= set(read_answer_list(shapes / 'answer_list.json'))
    validated = json.loads((trained / 'result/vqa_val_result_epoch1.json').read_text())
    assert accuracy_metrics(validated, rows_of(shapes, 'vqa_val'))['overall'] == log[1]['val_overall']


def evaluate_argv(shapes, checkpoint, output, *more):
    return [*arguments('vqa', shapes, output, *more), '--evaluate', '--checkpoint', str(checkpoint)]


def test_evaluation_alone_at_any_number_of_processes(shapes, trained, tmp_path):
    """The same answers and figures as in the run, whoever answers what; a test split with answers is scored as well.
    The training files are not read.
    """
    more = (f'test_file={shapes}/vqa_test_annotated.json', 'train_file=none.json')
    logs = []
    for processes in (1, 3):
        argv = evaluate_argv(shapes, trained / 'checkpoint_01.pth', tmp_path / f'{processes}', *more)
        if processes == 1:
            VQA.main(argv)
        else:
            assert run(VQA.main, argv, tmp_path / 'out', processes) == [0] * processes, tail(tmp_path / 'out')
        for name in ('vqa_result_epoch1.json', 'vqa_val_result_epoch1.json'):
            assert (tmp_path / f'{processes}/result/{name}').read_text() == (trained / 'result' / name).read_text()
        logs.append(read_log(tmp_path / f'{processes}'))
        assert not (tmp_path / f'{processes}/config.yaml').exists()
    assert logs[0] == logs[1] and len(logs[0]) == 1
    assert logs[0][0]['val_overall'] == read_log(trained)[1]['val_overall'] and 'test_kind_count' in logs[0][0]


def test_a_partly_annotated_test_file_is_scored_where_it_can_be(shapes, trained, tmp_path):
    rows = rows_of(shapes, 'vqa_test_annotated')
    for row in rows[10:]:
        del row['answer']
    more = (f'test_file={write_rows(tmp_path / "half.json", rows)}', 'val_file=null')
    VQA.main(evaluate_argv(shapes, trained / 'checkpoint_01.pth', tmp_path / 'out', *more))
    results = json.loads((tmp_path / 'out/result/vqa_result_epoch1.json').read_text())
    assert len(results) == len(rows)
    assert read_log(tmp_path / 'out')[0]['test_overall'] == accuracy_metrics(results[:10], rows[:10])['overall']


def test_nothing_to_evaluate_is_said(shapes, pretrained, trained, tmp_path):
    with pytest.raises(ValueError, match='neither val_file nor test_file'):
        VQA.main(evaluate_argv(shapes, trained / 'checkpoint_01.pth', tmp_path, 'val_file=null', 'test_file=null'))
    with pytest.raises(ValueError, match='nothing to evaluate'):
        VQA.main([*arguments('vqa', shapes, tmp_path), '--evaluate'])
    with pytest.raises(ValueError, match='has no answer decoder'):
        VQA.main(evaluate_argv(shapes, pretrained, tmp_path))
    with pytest.raises(ValueError, match='val_file: no row has answers'):
        VQA.main(arguments('vqa', shapes, tmp_path, f'val_file={shapes}/vqa_test.json'))


def test_fine_tuning_again_with_a_teacher_from_a_vqa_checkpoint(shapes, trained, tmp_path, capsys):
    more = ('distill=true', 'alpha=0.4', 'schedular.epochs=1', 'val_file=null', 'test_file=null')
    VQA.main([*arguments('vqa', shapes, tmp_path, *more), '--checkpoint', str(trained / 'checkpoint_01.pth')])
    assert 'momentum copies: of the weights just loaded' in capsys.readouterr().out
    assert read_log(tmp_path)[0]['train_loss'] < read_log(trained)[0]['train_loss']
    assert sorted(path.name for path in tmp_path.glob('*')) == ['checkpoint_00.pth', 'config.yaml', 'log.txt']
    state = torch.load(tmp_path / 'checkpoint_00.pth', weights_only=True)['model']
    follower, leader = (state[f'text_decoder{m}.bert.encoder.layer.0.output.dense.weight'] for m in ('_m', ''))
    assert not torch.equal(follower, leader)


def test_ask_with_nothing_but_the_checkpoint(shapes, trained, tmp_path, monkeypatch, capsys):
    """Answers, vocabulary and configuration come from the checkpoint, wherever it is."""
    checkpoint = str(shutil.copy(trained / 'checkpoint_01.pth', tmp_path / 'c.pth'))
    image = str(shapes / rows_of(shapes, 'vqa_test')[0]['image'])
    Image.open(image).save(tmp_path / 'a.png')
    monkeypatch.chdir(tmp_path)
    VQA.main(
        [
            '--evaluate',
            '--checkpoint',
            checkpoint,
            '--image',
            'a.png',
            '--question',
            'What color is the circle?',
            '--question',
            'how many objects are there?',
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'What color is the circle?' and lines[5] == 'how many objects are there?' and len(lines) == 10
    answers = read_answer_list(shapes / 'answer_list.json')
    shares = [float(line.split('%')[0]) for line in lines[1:5]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.05)  # k_test is 4
    assert all(line.split('%')[1].strip() in answers for line in lines[1:5])
    assert sorted(os.listdir(tmp_path)) == ['a.png', 'c.pth']


def test_asking_says_what_is_missing(shapes, pretrained, trained, tmp_path):
    checkpoint = str(trained / 'checkpoint_01.pth')
    with pytest.raises(ValueError, match='all of --checkpoint, --image and --question'):
        VQA.main(['--evaluate', '--checkpoint', checkpoint, '--image', 'a.png'])
    with pytest.raises(ValueError, match='no answer decoder'):
        VQA.main(['--checkpoint', str(pretrained), '--image', 'a.png', '--question', 'what?'])
    with pytest.raises(ValueError, match="cannot read the image 'a.png'"):
        VQA.main(['--checkpoint', checkpoint, '--image', 'a.png', '--question', 'what?'])


def test_a_packed_tokenizer_is_the_same(tokenizer):
    packed = json.loads(json.dumps(pack_tokenizer(tokenizer)))
    texts = ['what color is the red star', 'dark green[SEP]', 'Zebra é', '']
    for max_length in (None, 5):
        arguments = dict(padding='longest', truncation=max_length is not None, max_length=max_length)
        ours, theirs = (some(texts, **arguments) for some in (unpack_tokenizer(packed), tokenizer))
        assert ours.input_ids == theirs.input_ids and ours.attention_mask == theirs.attention_mask


# ---- resuming ----

FAULTS = {  # one after another, each in a process of its own
    'after a checkpoint inside an epoch': DieAt(VQA, 'save_run', 1, after=True),
    'while validating': DieAt(VQA, 'check_results', 1),
    'between checkpoint and log': DieAt(utils.checkpoint, 'write_log', 1),
    'in the second epoch': DieAt(torch.optim.AdamW, 'step', 12),
    'after the last checkpoint': DieAt(utils.checkpoint, 'prune_checkpoints', 1, after=True),
}


def test_killed_and_resumed_equals_uninterrupted(shapes, pretrained, trained, tmp_path):
    argv = [*arguments('vqa', shapes, tmp_path / 'run', 'save_every=8'), '--checkpoint', str(pretrained), '--resume']
    for place, fault in FAULTS.items():
        assert run(VQA.main, argv, tmp_path / 'log', fault=fault) == [KILLED], (place, tail(tmp_path / 'log'))
    assert run(VQA.main, argv, tmp_path / 'log') == [0], tail(tmp_path / 'log')
    ours, theirs = (
        torch.load(folder / 'checkpoint_01.pth', weights_only=True) for folder in (tmp_path / 'run', trained)
    )
    assert [key for key in theirs['model'] if not torch.equal(ours['model'][key], theirs['model'][key])] == []
    for number, state in theirs['optimizer']['state'].items():
        assert all(torch.equal(ours['optimizer']['state'][number][name], value) for name, value in state.items())
    assert (tmp_path / 'run/log.txt').read_text() == (trained / 'log.txt').read_text()
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob('*')) for folder in (tmp_path / 'run', trained)
    ]
    assert names[0] == names[1]


def test_evaluation_can_take_the_newest_checkpoint_of_the_folder(shapes, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / 'run')
    VQA.main([*arguments('vqa', shapes, folder), '--resume', '--evaluate'])
    assert read_log(folder)[2]['val_overall'] == read_log(trained)[1]['val_overall']


def test_two_processes_train_as_one_run(shapes, pretrained, tmp_path):
    argv = arguments('vqa', shapes, tmp_path / 'run', 'schedular.epochs=1', 'batch_size_train=8')
    argv += ['--checkpoint', str(pretrained)]
    assert run(VQA.main, argv, tmp_path / 'log', 2) == [0, 0], tail(tmp_path / 'log')
    assert read_log(tmp_path / 'run')[0]['val_overall'] >= 0
    results = json.loads((tmp_path / 'run/result/vqa_result_epoch0.json').read_text())
    assert [row['question_id'] for row in results] == [row['question_id'] for row in rows_of(shapes, 'vqa_test')]
