"""Annotation files: read as written, bad ones refused in one sentence, and a cache that cannot go wrong."""

import json
import os
import random
import socket

import numpy as np
import pytest

from dataset.annotations import cache, json_reader, load_annotations, schema
from tests.dataset.annotation_files import GOOD, caches, write
from tests.helpers import read_rows, write_rows
from utils.errors import InputError

ODD_TEXTS = ['', 'two\nlines', 'nul \0 inside', 'emoji \U0001f600 日本', 'word ' * 10_000, '"quoted", [{JSON}]', ' ']


def random_rows(kind: str, count: int, rng: random.Random) -> tuple[list[dict], list[dict]]:
    """Rows as a user writes them, and as they must be read."""

    def text():
        return rng.choice(ODD_TEXTS[:4] + ODD_TEXTS[5:]) + str(rng.random())

    def texts():
        return [text() for _ in range(rng.randint(1, 4))]

    def optional(row, **fields):
        return row | {name: value for name, value in fields.items() if rng.random() < 0.7}

    given, expected = [], []
    for i in range(count):
        identity = rng.choice([i, str(i), 2**70 + i])
        if kind == 'retrieval_train':
            row = {'image': f'{i}.jpg', 'caption': text(), 'image_id': identity}
            want = row
        elif kind in ('pretrain', 'retrieval_eval'):
            row = {'image': f'{i}.jpg', 'caption': rng.choice([text, texts])()}
            if kind == 'retrieval_eval':
                row = optional(row, image_id=identity, caption_ids=[i, 2**40])
            else:
                row = optional(row, also_true_of=[f'{i + 1}.jpg', text()][: i % 3])
            want = row | {'caption': [row['caption']] if isinstance(row['caption'], str) else row['caption']}
        elif kind == 'nlvr':
            row = optional(
                {
                    'images': [f'{i}a.png', f'{i}b.png'],
                    'sentence': text(),
                    'label': rng.choice([True, False, 'True', 'False']),
                },
                identifier=f'dev-{i}',
                kind='colour',
            )
            want = row | {'label': row['label'] in (True, 'True')}
        else:
            row = optional(
                {
                    'question': text(),
                    'image': f'{i}.jpg',
                    'dataset': rng.choice(['vqa', 'vg']),
                    'question_id': identity,
                },
                answer=rng.choice([text, texts])(),
                answer_type='other',
                question_type='what',
                kind=text(),
            )
            want = row
        given.append(row | {'ignored': [i, {'deep': None}]})
        expected.append(want)
    return given, expected


@pytest.mark.parametrize('kind', schema.REQUIRED)
@pytest.mark.parametrize('ending', ['json', 'jsonl'])
def test_every_row_is_read_as_written(tmp_path, monkeypatch, kind, ending):
    monkeypatch.setattr(json_reader, 'CHUNK', 97)  # rows are longer than chunks
    monkeypatch.setattr(cache, 'ROWS_PER_BATCH', 16)  # and in several record batches
    rng = random.Random(kind)
    files, expected = [], []
    for number, ascii_only in enumerate([True, False]):
        given, want = random_rows(kind, 50, rng)
        encode = json.JSONEncoder(ensure_ascii=ascii_only, indent=None if ending == 'jsonl' else number).encode
        text = '\n'.join(map(encode, given)) + '\n' if ending == 'jsonl' else encode(given)
        files.append(write(tmp_path / f'{number}.{ending}', text))
        expected += want
    inodes = []
    for _ in range(2):  # the second time from the caches
        table = load_annotations(files, kind)
        assert list(table) == expected and len(table) == 100
        assert table[-1] == table[np.int64(99)] == expected[99]
        inodes.append([os.stat(tmp_path / name).st_ino for name in caches(tmp_path)])
    assert len(inodes[0]) == 2 and inodes[0] == inodes[1]
    assert table.source(49) == (files[0], 49) and table.source(50) == (files[1], 0)
    with pytest.raises(IndexError):
        table[100]


def test_odd_captions_are_kept(tmp_path):
    file = write(tmp_path / 'a.json', [{'image': 'a.jpg', 'caption': ODD_TEXTS}])
    assert load_annotations(file, 'pretrain')[0]['caption'] == ODD_TEXTS


def test_half_an_emoji_becomes_a_string_that_can_be_encoded(tmp_path):
    file = write(tmp_path / 'a.json', r'[{"image": "a.jpg", "caption": ["half \ud83d", "whole \ud83d\ude00"]}]')
    assert load_annotations(file, 'pretrain')[0]['caption'] == ['half ?', 'whole \U0001f600']


def test_columns(tmp_path):
    ids = [{'image': 'a.jpg', 'caption': 'x', 'image_id': i} for i in (5, 7, 5)]
    table = load_annotations(write(tmp_path / 'a.json', ids), 'retrieval_train')
    assert table.column('image_id').dtype == np.int64 and table.column('image_id').tolist() == [5, 7, 5]
    assert table.column('caption') == ['x'] * 3
    mixed = [row | {'image_id': i} for row, i in zip(ids, (5, '5', 2**64), strict=True)]
    assert load_annotations(write(tmp_path / 'b.json', mixed), 'retrieval_train').column('image_id') == [5, '5', 2**64]
    pairs = [{'images': ['a', 'b'], 'sentence': 's', 'label': label} for label in ('True', False)]
    table = load_annotations(write(tmp_path / 'c.json', [pairs[0] | {'identifier': 'x'}, pairs[1]]), 'nlvr')
    assert table.column('label').dtype == bool and table.column('label').tolist() == [True, False]
    assert table.column('identifier') == ['x', None]
    with pytest.raises(ValueError, match="no column 'labels': they have images, sentence, label"):
        table.column('labels')


def test_rows_with_an_optional_field(shapes, tmp_path):
    rows = read_rows(shapes, 'vqa_train')[:5]
    del rows[1]['answer'], rows[4]['answer']
    table = load_annotations([write_rows(tmp_path / 'a.json', rows), str(shapes / 'vqa_test.json')], 'vqa')
    rest = [False] * len(read_rows(shapes, 'vqa_test'))
    assert table.holding('answer').tolist() == [True, False, True, True, False, *rest]


DEEP = f'{{"image": "a", "caption": "x", "more": {"[" * 100_000}{"]" * 100_000}}}'
LONG = f'{{"image": "a", "caption": "x", "more": {"9" * 5000}}}'


@pytest.mark.parametrize(
    ('kind', 'change', 'message'),
    [
        ('pretrain', {'caption': 5}, "'caption' must be a string or a list of strings"),
        ('pretrain', {'caption': ['x', None]}, "'caption' must be a string or a list of strings"),
        ('pretrain', {'caption': []}, "'caption' is an empty list"),
        ('pretrain', {'caption': None}, "'caption' must be a string"),
        ('pretrain', {'caption': ...}, "has no 'caption'; a row of kind pretrain needs image, caption"),
        ('pretrain', {'image': ''}, "'image' must be the path of an image"),
        ('pretrain', {'image': ['a']}, "'image' must be the path of an image"),
        ('retrieval_train', {'caption': ['x']}, 'a row of its own'),
        ('retrieval_train', {'image_id': 1.5}, "'image_id' must be an integer or a string"),
        ('retrieval_train', {'image_id': True}, "'image_id' must be an integer or a string"),
        ('retrieval_train', {'image_id': ...}, "has no 'image_id'"),
        *(
            ('pretrain', {'also_true_of': value}, "'also_true_of' must be a list of the paths of images, non-empty str")
            for value in ('b.jpg', ['b.jpg', ''], ['b.jpg', 3], [['b.jpg']], {'b.jpg': 1}, 5, False)
        ),
        ('nlvr', {'images': []}, 'a list of two paths'),
        ('nlvr', {'images': ['a', '']}, 'a list of two paths'),
        ('nlvr', {'images': ['a', 'b', 'c']}, 'a list of two paths'),
        ('nlvr', {'label': 'true'}, '"True", "False" or a JSON boolean'),
        ('nlvr', {'label': 1}, '"True", "False" or a JSON boolean'),
        ('nlvr', {'sentence': 3}, "'sentence' must be one string"),
        ('vqa', {'dataset': 'coco'}, '"vqa" or "vg"'),
        ('vqa', {'answer': []}, "'answer' is an empty list"),
        ('vqa', {'answer': 3}, "'answer' must be a string or a list of strings"),
        ('vqa', {'question_id': None}, "'question_id' must be an integer or a string"),
        ('vqa', {'question_id': [1]}, "'question_id' must be an integer or a string"),
        ('vqa', {'answer': {'answer': 'red'}}, "'answer' must be a string or a list of strings"),
        ('vqa', {'answer': ['red', 3]}, "'answer' must be a string or a list of strings"),
        ('vqa', {'dataset': ['vqa']}, '"vqa" or "vg"'),
        *(
            (kind, {name: value}, f"'{name}' must be a string, because accuracy is given for each of its values")
            for kind, name in (('nlvr', 'kind'), ('vqa', 'kind'), ('vqa', 'answer_type'), ('vqa', 'question_type'))
            for value in (['a'], 3, {'a': 1}, True)
        ),
        ('nlvr', {'identifier': ['dev-1-0-0']}, "'identifier' must be an integer or a string"),
        ('nlvr', {'identifier': {}}, "'identifier' must be an integer or a string"),
        ('nlvr', {'label': ['True']}, '"True", "False" or a JSON boolean'),
        ('retrieval_eval', {'caption': ...}, "has no 'caption'; a row of kind retrieval_eval needs image, caption"),
        ('retrieval_eval', {'caption': []}, "'caption' is an empty list"),
        ('retrieval_eval', {'image_id': 1.5}, "'image_id' must be an integer or a string"),
        *(
            ('retrieval_eval', {'caption_ids': ids}, "'caption_ids' must be a list of integers")
            for ids in (5, ['5'], [5, None], [True])
        ),
        ('retrieval_eval', {'caption': {'a': 'b'}}, "'caption' must be a string or a list of strings"),
    ],
)
def test_a_bad_row_is_named(tmp_path, kind, change, message):
    bad = {name: value for name, value in (GOOD[kind] | change).items() if value is not ...}
    file = write(tmp_path / 'a.json', [GOOD[kind]] * 3 + [bad])
    with pytest.raises(ValueError) as error:
        load_annotations(file, kind)
    assert str(error.value).startswith(f'{file}: row 3, {{') and message in str(error.value)
    assert '\n' not in str(error.value)
    assert caches(tmp_path) == []  # no partial file is left


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.json', '', 'is empty'),
        ('a.json', ' \n ', 'is empty'),
        ('a.json', '[]', 'contains no rows'),
        ('a.jsonl', '\n\n', 'contains no rows'),
        ('a.json', '{"images": []}', 'must be a JSON list of objects, but it starts with'),
        ('a.json', '<!DOCTYPE html>', 'must be a JSON list of objects'),
        ('a.json', '[{"image": "a", "caption": "x"}, 3]', 'row 1, 3: is a int'),
        ('a.json', '[{"image": "a", "caption": "x"}, {"image": "b", "capti', 'is cut off at row 1'),
        ('a.json', '[{"image": "a", "caption": "x"}', 'is cut off at row 1'),
        ('a.json', '[{"image": "a", "caption": "x"},', 'is cut off at row 1'),
        ('a.json', '[', 'is cut off at row 0'),
        ('a.json', '[{"image": "a" "caption": "x"},' + '{"image": "a", "caption": "x"}]', 'is not valid JSON'),
        ('a.json', '[{"image": "a", "caption": "x"} {"image": "a", "caption": "x"}]', "expecting ',' or ']'"),
        ('a.json', '[{"image": "a", "caption": "x"}] []', 'continues after the end of its list'),
        ('a.jsonl', '{"image": "a", "caption": "x"}\n{"image": "a", "cap', 'is cut off in its last line: line 2'),
        ('a.jsonl', '{"image": "a", "caption": "x"}\n{"image": }\n{}\n', 'is not valid JSON Lines: line 2'),
        (
            'a.json',
            f'[{{"image": "a", "caption": "x"}}, {DEEP}]',
            ': row 1: its lists or objects are nested too deeply',
        ),
        ('a.json', f'[{{"image": "a", "caption": "x"}}, {LONG}]', ': row 1: it has an integer of thousands of digits'),
        ('a.jsonl', f'{{"image": "a", "caption": "x"}}\n{DEEP}\n', ': line 2: its lists or objects are nested too'),
        ('a.jsonl', f'{{"image": "a", "caption": "x"}}\n{LONG}\n', ': line 2: it has an integer of thousands of'),
    ],
)
@pytest.mark.parametrize('chunk', [10, 1 << 20])
def test_a_bad_file_is_named(tmp_path, monkeypatch, name, text, message, chunk):
    monkeypatch.setattr(json_reader, 'CHUNK', chunk)
    file = write(tmp_path / name, text)
    with pytest.raises(ValueError) as error:
        load_annotations(file, 'pretrain')
    assert file in str(error.value) and message in str(error.value)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_reader, 'CHUNK', 16)
    text = json.dumps([{'image': 'a.jpg', 'caption': ['x\u00e9"', '\U0001f600'], 'n': [1.5e3, True, None]}] * 2)
    for end in range(len(text)):
        with pytest.raises(ValueError, match='is cut off at row|is empty'):
            load_annotations(write(tmp_path / 'a.json', text[:end]), 'pretrain')
    assert len(load_annotations(write(tmp_path / 'a.json', text), 'pretrain')) == 2


def test_paths_and_kinds_that_do_not_exist(tmp_path):
    good = write(tmp_path / 'a.json', [GOOD['pretrain']])
    with pytest.raises(FileNotFoundError, match='b.json does not exist'):
        load_annotations([good, str(tmp_path / 'b.json')], 'pretrain')
    with pytest.raises(ValueError, match='is a folder'):
        load_annotations(str(tmp_path), 'pretrain')
    with pytest.raises(ValueError, match='must be one of pretrain, retrieval_train'):
        load_annotations(good, 'retrieval')
    with pytest.raises(ValueError, match='no annotation file'):
        load_annotations([], 'pretrain')
    (tmp_path / 'latin.json').write_bytes(b'[{"image": "a", "caption": "caf\xe9"}]')
    with pytest.raises(ValueError, match='latin.json is not UTF-8 text .*, before the end of the first row'):
        load_annotations(str(tmp_path / 'latin.json'), 'pretrain')


@pytest.mark.parametrize('name', ['pipe', 'socket', 'device', 'a\0b'])
def test_what_is_not_a_file_is_refused_at_once(tmp_path, name):
    """To open a pipe for reading waits for a writer, and /dev/zero never ends."""
    path, listener = str(tmp_path / name), socket.socket(socket.AF_UNIX)
    if name == 'pipe':
        os.mkfifo(path)
    elif name == 'socket':
        listener.bind(path)
    elif name == 'device':
        os.symlink('/dev/zero', path)
    with listener, pytest.raises(InputError) as error:
        load_annotations(path, 'pretrain')
    assert repr(path) in str(error.value) and 'cannot be read' in str(error.value)


def test_half_an_emoji_in_an_optional_field_can_be_printed(tmp_path):
    """Metrics are named after it."""
    row = GOOD['vqa'] | {'kind': 'half \ud83d', 'answer': ['half \ud83d'], 'question_id': 'q\ud83d'}
    table = load_annotations(write(tmp_path / 'a.json', [row]), 'vqa')
    assert table[0] == row | {'kind': 'half ?', 'answer': ['half ?'], 'question_id': 'q?'}


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf' + json.dumps([GOOD['pretrain']]).encode())
    assert load_annotations(str(tmp_path / 'a.json'), 'pretrain')[0]['image'] == 'a.jpg'
