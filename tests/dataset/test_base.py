"""What the datasets share: unreadable images of an evaluation, images that are not where they should be, [UNK]."""

import json
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.base import BlankImages, report_unknown_tokens
from dataset.caption_dataset import PretrainDataset
from dataset.nlvr_dataset import NLVRDataset, NLVREvalDataset
from dataset.retrieval_dataset import RetrievalEvalDataset, RetrievalTrainDataset
from dataset.tokens import report_unknown
from dataset.vqa_dataset import VQAEvalDataset, VQATrainingSet
from tests.helpers import read_rows, write_rows
from tests.tiny import resolved
from utils import distributed
from utils.errors import InputError
from utils.seeding import rng_state, set_rng_state

# ---- unreadable images of an evaluation ----


class Rows(SimpleNamespace):
    """As much of an `EvalSet` as is read."""

    def __len__(self):
        return self.rows


def split(rows, images_per_row=1):
    return Rows(rows=rows, images_per_row=images_per_row, split='val')


def bad(count):
    return [(index, f'rows.json, row {index}: gone') for index in range(count)]


@pytest.mark.parametrize(
    'rows, images_per_row, allowed',
    [(1, 1, 0), (2, 1, 1), (100, 1, 1), (200, 1, 2), (299, 1, 2), (100, 2, 2), (1000, 2, 20)],
)
def test_one_percent_of_the_images_may_be_unreadable_and_one_in_any_case(rows, images_per_row, allowed, capsys):
    blank = BlankImages(split(rows, images_per_row))
    blank.record(bad(allowed))
    blank.report()
    assert capsys.readouterr().out.count('evaluated with a blank image: rows.json, row ') == allowed
    with pytest.raises(
        InputError, match=f'at least {allowed + 1} of the {rows * images_per_row} images .* of val_file'
    ):
        blank.record([(999, 'gone')])


def test_the_images_of_all_ranks_count_and_the_first_row_is_named(monkeypatch):
    blank = BlankImages(split(100))
    monkeypatch.setattr(distributed, 'gather_objects', lambda found: [[(7, 'row 7')], [(3, 'row 3')], found])
    with pytest.raises(InputError, match=r'^2 of the 100 images .* more than 1%, the first: row 3; restore .* check'):
        blank.report()


# ---- images outside their root ----


@pytest.mark.parametrize('root', ['', None])
@pytest.mark.parametrize('start', ['/elsewhere/', 'D:\\data\\'])
def test_images_of_another_machine_name_the_command_that_finds_them(shapes, tokenizer, tmp_path, start, root):
    rows = [{'image': f'{start}{i}.jpg', 'caption': 'a star'} for i in range(40)]
    root = tmp_path if root is None else root
    settings = [f'train_file={write_rows(tmp_path / "rows.json", rows)}', f'image_root={root}']
    with pytest.raises(InputError) as error:
        PretrainDataset(resolved('pretrain', shapes, *settings), tokenizer, 0)
    message = str(error.value)
    assert 'rows.json, row 0: ' in message and f'{start}0.jpg' in message.replace('\\\\', '\\')
    assert 'check' in message and '--rebase OLD=NEW' in message and '--find FOLDER' in message
    assert 'nor any other of 40 looked for' in message or 'is outside image_root' in message
    assert 'set image_root to the folder that the paths' not in message


DATASETS = {
    'pretrain': (lambda config, tokenizer: PretrainDataset(config, tokenizer, 0), 'pretrain', 'train_file', 'pretrain'),
    'retrieval, training': (
        lambda config, tokenizer: RetrievalTrainDataset(config, tokenizer, 0),
        'retrieval',
        'train_file',
        'retrieval_train',
    ),
    'retrieval': (
        lambda config, tokenizer: RetrievalEvalDataset(config, 'val', tokenizer),
        'retrieval',
        'val_file',
        'retrieval_val',
    ),
    'nlvr, training': (lambda config, tokenizer: NLVRDataset(config, tokenizer, 0), 'nlvr', 'train_file', 'nlvr_train'),
    'nlvr': (lambda config, tokenizer: NLVREvalDataset(config, 'val', tokenizer), 'nlvr', 'val_file', 'nlvr_dev'),
    'vqa, training': (lambda config, tokenizer: VQATrainingSet(config, tokenizer, 0), 'vqa', 'train_file', 'vqa_train'),
    'vqa': (lambda config, tokenizer: VQAEvalDataset(config, 'val', tokenizer), 'vqa', 'val_file', 'vqa_val'),
}


@pytest.fixture(params=DATASETS)
def load(request, shapes, tokenizer, tmp_path, monkeypatch):
    """A function that makes a dataset of rows, row 5 of which has the image of a path, in the folder of the images."""
    make, task, key, name = DATASETS[request.param]

    def load(path, *settings):
        rows = read_rows(shapes, name)[:8]
        if 'images' in rows[5]:
            rows[5]['images'][1] = path
        else:
            rows[5]['image'] = path
        config = resolved(task, shapes, f'{key}={write_rows(tmp_path / "rows.json", rows)}', *settings)
        with monkeypatch.context() as patch:
            patch.chdir(shapes)
            make(config, tokenizer)

    return load


def test_an_image_outside_the_root_is_refused_at_start(load, shapes, tmp_path):
    for path in ('/etc/passwd', '../secret.jpg', 'images/../../secret.jpg', str(tmp_path / 'a.jpg')):
        with pytest.raises(InputError) as error:
            load(path)
        message = str(error.value)
        assert f'rows.json, row 5: the image {path!r} is outside ' in message and f'_root {str(shapes)!r}' in message
        assert 'images_outside_root: true' in message and '\n' not in message
        load(path, 'images_outside_root=true')
    for path in ('images/../images/none.jpg', f'{shapes}/images/none.jpg'):
        load(path)


def test_without_a_root_every_path_is_as_written(load):
    roots = "image_root=''", "vqa_root=''", "vg_root=''"
    load('/etc/passwd', *roots)
    load('../secret.jpg', *roots)


def test_each_source_of_vqa_has_a_root_of_its_own(shapes, tokenizer, tmp_path):
    rows = read_rows(shapes, 'vqa_train')[:4]
    rows[2] |= {'dataset': 'vg', 'answer': 'red', 'image': os.path.join(shapes, rows[2]['image'])}
    file = write_rows(tmp_path / 'rows.json', rows)
    VQATrainingSet(resolved('vqa', shapes, f'train_file={file}', "vg_root=''"), tokenizer, 0)
    with pytest.raises(InputError, match="row 2: the image .* is outside vg_root '/elsewhere'"):
        VQATrainingSet(resolved('vqa', shapes, f'train_file={file}', 'vg_root=/elsewhere'), tokenizer, 0)


# ---- [UNK] ----


TEXTS = {  # of a kind of dataset: a row with other texts
    'pretrain': {'caption': ['{}', '{}']},
    'retrieval, training': {'caption': '{}'},
    'retrieval': {'caption': ['{}', '{}']},
    'nlvr, training': {'sentence': '{}'},
    'nlvr': {'sentence': '{}'},
    'vqa, training': {'question': '{}', 'answer': ['{}'] * 10},
    'vqa': {'question': '{}'},
}


@pytest.mark.parametrize('name', DATASETS)
def test_the_share_of_unknown_tokens_is_reported_of_every_dataset(name, shapes, tokenizer, tmp_path, capsys):
    """Of two files one is in a script that the vocabulary does not have."""
    make, task, key, file = DATASETS[name]
    rows = read_rows(shapes, file)[:10]
    russian = [row | json.loads(json.dumps(TEXTS[name]).replace('{}', 'красный круг слева')) for row in rows]
    for number, row in enumerate(russian):
        row |= {'question_id': 10**9 + number} if 'question_id' in row else {}
        row |= {'image': f'./{row["image"]}'} if name == 'retrieval' else {}
    files = [write_rows(tmp_path / f'{language}.json', some) for language, some in (('en', rows), ('ru', russian))]
    if name == 'retrieval':  # rows of the same images would be merged
        files = files[1:]
    dataset = make(resolved(task, shapes, f'{key}={json.dumps(files)}'), tokenizer)
    capsys.readouterr()
    tokenizer(['a star'], padding='longest', truncation=True, max_length=2)
    settings = tokenizer.backend_tokenizer.to_str()
    state, expected = rng_state(), draw()
    set_rng_state(state)
    report_unknown_tokens(dataset, key)
    assert draw() == expected and tokenizer.backend_tokenizer.to_str() == settings
    line, *warnings = capsys.readouterr().out.splitlines()
    share = float(line.removeprefix(f'{key}: ').split('%')[0])
    assert 'of the tokens are [UNK]' in line and (share == 100 if len(files) == 1 else 5 < share < 60)
    assert len(warnings) == 1 and warnings[0].startswith(f'warning: {tmp_path}/ru.json: 100% of the tokens are [UNK]')
    assert '--text_encoder' in warnings[0]


def test_a_short_file_is_sampled_too(shapes, tokenizer, tmp_path, capsys):
    """Wherever it is among the files."""
    row = read_rows(shapes, 'pretrain')[0]
    long = write_rows(tmp_path / 'long.json', [row] * 20_000)
    short = write_rows(tmp_path / 'short.json', [row | {'caption': 'круг'}] * 15)
    for files in ([long, short], [short, long]):
        dataset = PretrainDataset(resolved('pretrain', shapes, f'train_file={json.dumps(files)}'), tokenizer, 0)
        capsys.readouterr()
        report_unknown_tokens(dataset, 'train_file')
        line, warning = capsys.readouterr().out.splitlines()
        assert '(in 1014 texts)' in line and warning.startswith(f'warning: {short}: 100% of the tokens')


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_texts_without_unknown_tokens_give_no_warning(tokenizer, capsys, monkeypatch):
    report_unknown(tokenizer, {'a.json': ['a red star', ''], 'b.json': [''], 'c.json': ['a red star ж ' * 3]}, 'texts')
    assert capsys.readouterr().out.startswith('texts: ')
    report_unknown(tokenizer, {'a.json': ['a red star'] * 9 + ['a red ж']}, 'texts')
    assert capsys.readouterr().out == 'texts: 3.33% of the tokens are [UNK] (in 10 texts)\n'
    monkeypatch.setattr(distributed, 'is_main', lambda: False)
    report_unknown(tokenizer, {'a.json': ['ж']}, 'texts')
    assert capsys.readouterr().out == ''
