"""`python -m dataset.prepare vqa` and `answers`: the layouts of four releases, and one's own rows."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset.annotations import load_annotations
from dataset.annotations.schema import clean_row
from dataset.prepare.__main__ import create_parser
from dataset.prepare.releases.answers import most_common_answer
from tests.dataset.prepare.tools import coco_name, read, refuse, run, write
from utils.errors import InputError

GENOME_IMAGES = [
    {'image_id': 1, 'url': 'https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg', 'coco_id': None, 'flickr_id': None},
    {'image_id': 2, 'url': 'https://cs.stanford.edu/people/rak248/VG_100K/2.jpg', 'coco_id': 15, 'flickr_id': 77},
]


def questions(numbers: tuple[int, ...], split: str = 'train2014', **fields: Any) -> dict:
    listed = [{'image_id': n, 'question': f'What is {n}?', 'question_id': n * 1000} | fields for n in numbers]
    return {'data_subtype': split, 'questions': listed}


def annotation(number: int, answers: list[str], **fields: Any) -> dict:
    listed = [{'answer': answer, 'answer_confidence': 'yes', 'answer_id': i + 1} for i, answer in enumerate(answers)]
    types = {'question_type': 'what is', 'answer_type': 'other'}
    return {'question_id': number * 1000, 'image_id': number, 'answers': listed} | types | fields


def v2(answers: dict[int, str]) -> dict:
    """Annotations of VQA v2 in which the annotators agree."""
    listed = [annotation(n, [answer] * 10, multiple_choice_answer=answer) for n, answer in answers.items()]
    return {'data_subtype': 'train2014', 'annotations': listed}


def vizwiz(split: str, number: int, answers: list[str] | None = None) -> dict:
    row = {'image': f'VizWiz_{split}_{number:08d}.jpg', 'question': f'What is this {number}?'}
    if answers is None:
        return row
    listed = [{'answer': answer, 'answer_confidence': 'maybe'} for answer in answers]
    return row | {'answers': listed, 'answer_type': 'other', 'answerable': 1}


def genome_questions(image: int, answers: list[str]) -> dict:
    pairs = [
        {'qa_id': image * 10 + i, 'image_id': image, 'question': 'Where is it?', 'answer': answer, 'a_objects': []}
        for i, answer in enumerate(answers)
    ]
    return {'id': image, 'qas': pairs}


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / 'out'


@pytest.fixture
def put(tmp_path) -> Callable[..., list[str]]:
    """Writes 0.json, 1.json, ... and returns their paths."""
    return lambda *contents: [write(tmp_path / f'{i}.json', data) for i, data in enumerate(contents)]


def test_vqa_v2_and_visual_genome(tmp_path, out, put, karpathy, capsys):
    listed = questions((9, 10, 11)), questions((15, 16), 'val2014'), questions((20,), 'test2015')
    files = put(*listed, v2({9: 'Two', 10: 'the dog'}), v2({15: 'dog', 16: 'cat'}))
    qa = [genome_questions(image, ['In the sky.', '.']) for image in (1, 2)]
    genome = [write(tmp_path / 'qa.json', qa), write(tmp_path / 'image_data.json', GENOME_IMAGES)]
    prefixes = ['--image-prefix', 'coco', '--vg-image-prefix', 'vg']
    run('vqa', *files, '--vg', *genome, '--out', out, '--num-answers', 2, '--exclude', karpathy, *prefixes)
    assert read(out / 'vqa_train.json')[0] == {
        'question': 'What is 9?',
        'image': f'coco/train2014/{coco_name(9, "train2014")}',
        'dataset': 'vqa',
        'question_id': 9000,
        'answer': ['Two'] * 10,
        'answer_type': 'other',
        'question_type': 'what is',
    }
    assert [row['question_id'] for row in read(out / 'vqa_val.json')] == [16000]  # 15 is a Karpathy test image
    test_image = f'coco/test2015/{coco_name(20, "test2015")}'
    assert read(out / 'vqa_test.json') == [
        {'question': 'What is 20?', 'image': test_image, 'dataset': 'vqa', 'question_id': 20000}
    ]
    row = {'question': 'Where is it?', 'image': 'vg/VG_100K_2/1.jpg', 'dataset': 'vg', 'question_id': 10}
    assert read(out / 'vg_qa.json') == [row | {'answer': 'in sky'}]
    assert read(out / 'answer_list.json') == ['dog', '2']  # dog: twice when normalized; 2 is before cat
    shown = capsys.readouterr().out
    for line in (
        '1 x question of train2014 without an annotation, the first: question_id 11000',
        '1 x empty answer',
        'excluded  2 images',
        '2 of 3 answers, each the most common one of at least 1 questions; together of 75.0% of the 4 questions',
    ):
        assert line in shown
    table = load_annotations([str(out / f'{name}.json') for name in ('vqa_train', 'vg_qa', 'vqa_test')], 'vqa')
    assert [type(row.get('answer')).__name__ for row in table] == ['list', 'list', 'str', 'NoneType']


def test_ok_vqa_counts_the_most_common_answer(out, put, capsys):
    raw = [annotation(9, ['pony', 'a horse', 'Horse', 'pony', 'dog']), annotation(10, ['cat', 'dog'])]
    run('vqa', *put(questions((9, 10)), {'annotations': raw, 'question_types': {'one': 'Vehicles'}}), '--out', out)
    assert read(out / 'vqa_train.json')[0]['answer'] == ['pony', 'a horse', 'Horse', 'pony', 'dog']
    assert read(out / 'answer_list.json') == ['cat', 'pony']  # both are the first of two that are equally common
    assert capsys.readouterr().out.startswith('OK-VQA')
    assert most_common_answer(['.', 'the', 'half \ud83d']) == 'half'
    assert most_common_answer(['.', 'the', '']) == ''


def test_vizwiz(out, put, capsys):
    unsure = vizwiz('train', 0, ['unanswerable'] * 6 + ['dog'] * 4)
    train = [unsure, vizwiz('train', 1, ['dog'] * 10), vizwiz('train', 2)]
    files = put(train, [vizwiz('val', 0, ['cat'] * 10)], [vizwiz('test', 0)])
    run('vqa', *files, '--out', out, '--image-prefix', 'vizwiz')
    assert read(out / 'vqa_train.json')[0] == {
        'question': 'What is this 0?',
        'image': 'vizwiz/train/VizWiz_train_00000000.jpg',
        'dataset': 'vqa',
        'question_id': 'VizWiz_train_00000000.jpg',
        'answer': ['unanswerable'] * 6 + ['dog'] * 4,
        'answer_type': 'other',
    }
    assert [row['image'] for row in read(out / 'vqa_val.json')] == ['vizwiz/val/VizWiz_val_00000000.jpg']
    assert 'answer' not in read(out / 'vqa_test.json')[0]
    assert read(out / 'answer_list.json') == ['cat', 'dog', 'unanswerable']
    shown = capsys.readouterr().out
    assert shown.startswith('VizWiz') and '1 x question of train without an annotation, the first: question_id' in shown
    run('vqa', files[2], '--out', out / 'test')
    assert [path.name for path in (out / 'test').iterdir()] == ['vqa_test.json']  # without answers there is no list


def test_layouts_are_not_mixed(out, put):
    ok_vqa = {'annotations': [annotation(10, ['y'])]}
    train, ours, ok, blind = put(questions((9,)), v2({9: 'x'}), ok_vqa, [vizwiz('val', 1)])
    for files in ([train, ours, ok], [ok, ours], [blind, train], [train, blind]):
        assert 'the files before it are of' in refuse('vqa', *files, '--out', out)
    assert not out.exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([{'image': 'a.jpg', 'question': 'x', 'dataset': 'vqa'}], "'image' in question 0 is 'a.jpg'"),
        ([{'id': 1, 'qas': []}], "has no 'image' in question 0"),
        ([], 'no question and no annotation is there'),
        ({'annotations': []}, 'no question and no annotation is there'),
        ({}, "has no 'questions' and no 'annotations'"),
        ('3', 'its top level is 3, not an object'),
        (questions((9,), 'train2015'), "data_subtype 'train2015' is not train2014"),
        (questions((9,), image_id=True), "'image_id' in question 0 is True"),
        (questions((9, 10), question_id=5), 'question 1 has question_id 5 of another question of train2014'),
        ({'data_subtype': 'val2014', 'questions': ['What?']}, "question 0 is 'What?', not an object"),
        ({'annotations': [annotation(9, ['x']) | {'answers': ['x']}]}, "annotation 0, answer 0 is 'x', not an object"),
        ({'annotations': [annotation(9, ['x', 3])]}, "'answer' in annotation 0, answer 1 is 3"),
        ({'annotations': [annotation(9, ['x']), annotation(9, ['y'])]}, 'annotation 1, of question 9000, differs from'),
    ],
)
def test_a_wrong_form_is_refused_with_its_place(out, put, content, message):
    [file] = put(content)
    refused = refuse('vqa', file, '--out', out)
    assert message in refused and '0.json' in refused
    assert not out.exists()


def test_what_is_empty_or_repeated_is_counted(out, put, capsys):
    listed = questions((9, 10, 11, 12))
    listed['questions'][1]['question'] = None
    listed['questions'].append(listed['questions'][0])
    listed['questions'][3] |= {'image_id': '12', 'question_id': '12000'}
    notes = v2({9: 'red', 10: 'red', 12: 'blue', 13: 'green', 14: '.'})
    notes['annotations'][0]['answers'][2]['answer'] = ' '
    notes['annotations'].append(annotation(11, ['', ' '], multiple_choice_answer=''))
    notes['annotations'][2] |= {'multiple_choice_answer': None, 'answer_type': None}
    run('vqa', *put(listed, notes, notes), '--out', out)
    rows = read(out / 'vqa_train.json')
    assert [row['question_id'] for row in rows] == [9000, '12000']
    assert rows[0]['answer'] == ['red', 'red', ' '] + ['red'] * 7  # the official accuracy is over ten annotators
    assert rows[1]['image'].endswith('_000000000012.jpg') and 'answer_type' not in rows[1]
    assert read(out / 'answer_list.json') == ['red', 'blue', 'green']
    shown = capsys.readouterr().out
    for line in (
        'read      5 questions of train2014',
        'read      12 annotations',
        'dropped   1 x question without a text, the first: question_id 10000',
        'dropped   1 x question that is there twice',
        'dropped   5 x annotation that is there twice',
        'dropped   2 x annotation without an answer',
        'dropped   1 x question of train2014 without an annotation, the first: question_id 11000',
        'noted     2 x blank answer of an annotator, kept',
        'noted     2 x annotation without multiple_choice_answer',
        'noted     2 x annotation of a question that is not in the files',
        'noted     1 x question whose answers consist of punctuation and articles',
        'together of 80.0% of the 5 questions with answers',
    ):
        assert line in shown


def test_nothing_is_written_if_an_exclusion_matches_nothing(tmp_path, out, put):
    files, exclude = put(questions((9,)), v2({9: 'red'})), write(tmp_path / 'e.txt', '77\n')
    assert 'no entry matches an image' in refuse('vqa', *files, '--out', out, '--exclude', exclude)
    assert not out.exists()
    run('vqa', *files, '--out', out, '--exclude', exclude, '--allow-unmatched')


def own(answer: Any, **fields: Any) -> dict:
    return {'question': 'What?', 'image': 'a.jpg', 'dataset': 'vqa', 'question_id': 'q1', 'answer': answer} | fields


def test_answers_of_own_rows(tmp_path, out, capsys):
    rows = [own('The cat'), own(['dog', 'cat', 'dog']), own('cat'), own(None), own([' ', '']), own('Five')]
    more = ''.join(json.dumps(own(answer)) + '\n' for answer in ('dog', '.', 'a'))
    files = [write(tmp_path / 'own.json', rows), write(tmp_path / 'more.jsonl', more)]
    run('answers', *files, '--num-answers', 2, '--out', out / 'list.json')
    assert read(out / 'list.json') == ['cat', 'dog']
    shown = capsys.readouterr().out
    for line in (
        'read      9 rows',
        '2 x row without an answer, not counted, the first:',
        'own.json, row 3',
        '2 x question whose answers consist of punctuation and articles',
        '2 of 3 answers, each the most common one of at least 2 questions; together of 57.1% of the 7 questions',
    ):
        assert line in shown
    run('answers', *files, '--out', out / 'list.json')
    assert read(out / 'list.json') == ['cat', 'dog', '5']
    bad = write(tmp_path / 'bad.json', [own('x'), own(3)])
    assert "bad.json: row 1, {'question'" in refuse('answers', bad, '--out', out / 'bad.json')
    none = write(tmp_path / 'none.json', [own(None)])
    assert 'no answer is left to write' in refuse('answers', none, '--out', out / 'none.json')
    assert 'is an input of the command' in refuse('answers', *files, '--out', files[0])
    assert not (out / 'bad.json').exists() and not (out / 'none.json').exists() and read(tmp_path / 'own.json') == rows


LAYOUTS = {  # command and layout: contents of the files
    'vqa v2': [questions((9,)), {'annotations': [annotation(9, ['red'], multiple_choice_answer='red')]}],
    'vqa ok': [questions((9,), 'val2014'), {'annotations': [annotation(9, ['red', 'blue'])]}],
    'vqa vizwiz': [[vizwiz('train', 0, ['red', 'blue'])]],
    'vqa --vg': [questions((9,), 'test2015'), [genome_questions(1, ['red'])], GENOME_IMAGES[:1]],
    'answers': [[own(['red', 'blue'], answer_type='other'), own('red')]],
}
WRONG = [None, '', ' ', 'x', '9', 3, -1, 2.5, True, [], {}, [None], [{}], '\ud83d', 'a\0\nb', MISSING := object()]


def places(data: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in JSON data, itself included."""
    yield path
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from places(data[key], (*path, key))


def variants(data: Any) -> Iterator[Any]:
    """Copies in which one value is another one, or is missing."""
    for path in places(data):
        for value in WRONG:
            changed = [copy.deepcopy(data)]
            parent, last = changed, 0
            for key in path:
                parent, last = parent[last], key
            if value is MISSING:
                del parent[last]
            else:
                parent[last] = value
            yield from changed


@pytest.mark.parametrize('name', LAYOUTS)
def test_any_value_in_any_field_is_read_or_refused(tmp_path, out, put, name):
    command, parser, refused, written = name.split()[0], create_parser(), 0, 0
    target = str(out if command == 'vqa' else out / 'answer_list.json')
    for number, content in enumerate(LAYOUTS[name]):
        for changed in variants(content):
            shutil.rmtree(out, ignore_errors=True)
            files = put(*LAYOUTS[name][:number], json.dumps(changed), *LAYOUTS[name][number + 1 :])
            files[1:1] = ['--vg'] * (name == 'vqa --vg')
            args = parser.parse_args([command, *files, '--out', target])
            try:
                args.run(args)
                written += 1
            except InputError:
                refused += 1
            for path in out.glob('*.json'):
                check_written(path)
    assert refused > 20 and written > 20


def check_written(path: Path) -> None:
    """What was written can be read by training, and no value of another type became text."""
    rows = read(path)
    if path.name == 'answer_list.json':
        rows = [own(answer) for answer in rows if answer.strip()]
        assert len(rows) == len(read(path))
    for row in rows:
        clean = clean_row(row, 'vqa')
        assert not any(word in str(value) for value in clean.values() for word in ('None', 'True', '{', '2.5'))
