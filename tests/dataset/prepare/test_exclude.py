"""Lists of images: what an entry may look like, and entries that match nothing."""

import json

import pytest

from dataset.prepare.common import Summary
from dataset.prepare.exclude import Exclusions
from tests.dataset.prepare.tools import read, refuse, run, write
from utils.errors import InputError

PATHS = ['flickr30k-images/36979.jpg', 'flickr30k-images/1000092795.jpg', 'coco/val2014/COCO_val2014_000000000009.jpg']


def excluded(tmp_path, text: str, name: str = 'list.txt', paths=PATHS) -> list[str]:
    exclusions = Exclusions([write(tmp_path / name, text)])
    return [path for path in paths if exclusions.contains(path)]


@pytest.mark.parametrize(
    'entry',
    [
        '1000092795',
        '1000092795.jpg',
        '1000092795.JPG',
        'flickr30k-images/1000092795.jpg',
        'elsewhere/1000092795.png',
        'C:\\data\\images\\1000092795.jpg',
        '1000092795.jpg#0',
        '1000092795.jpg#0\tTwo dogs.',
        '1000092795.jpg,Two dogs .',
        '"1000092795.jpg","Two, dogs."',
        '1000092795.jpg| 0| Two dogs .',
        'https://farm2.staticflickr.com/1000/1000092795_0a1b2c3d4e.jpg',
        '  1000092795_0a1b2c3d4e_z.jpg',
    ],
)
@pytest.mark.parametrize('start', ['', '\ufeff', 'image,caption\n', '\n'])
def test_a_flickr_image_is_known_by_its_number(tmp_path, entry, start):
    if start.startswith('image') and ('|' in entry or '\t' in entry):
        pytest.skip('another table')
    assert excluded(tmp_path, f'{start}{entry}\n') == PATHS[1:2]


def test_short_numbers_are_ids_of_coco_and_flickr(tmp_path):
    assert excluded(tmp_path, '36979\n9\n') == [PATHS[0], PATHS[2]]
    assert excluded(tmp_path, '000000000009.jpg\n') == PATHS[2:]
    exclusions = Exclusions([write(tmp_path / 'a.json', [{'image': 'vg/VG_100K/36979.jpg'}])])
    assert not exclusions.contains(PATHS[0])  # a number of Visual Genome
    assert exclusions.contains('x/VG_100K/36979.jpg', None, None)


def test_the_image_column_of_a_table_is_read(tmp_path):
    assert excluded(tmp_path, 'id;file_name;split\n36979;1000092795.jpg;test\n', 'split.csv') == PATHS[1:2]


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('a.json', [{'image': PATHS[0], 'caption': 'x'}]),
        ('a.json', f'{json.dumps({"image": PATHS[0]})}\n{json.dumps({"image": PATHS[1]})}\n'),
        ('a.JSONL', json.dumps({'images': PATHS[:2]})),
        ('a.json', {'images': [{'filename': '36979.jpg', 'split': 'val'}, {'filename': 'b.jpg', 'split': 'train'}]}),
        ('a.json', PATHS[:1]),
        ('a.json', [36979]),
    ],
)
def test_json_of_every_form(tmp_path, name, content):
    assert excluded(tmp_path, content, name)[0] == PATHS[0]


@pytest.mark.parametrize('row', [3.5, None, {}, {'image': None}, {'image': 3}, {'images': 'a.jpg'}, []])
def test_a_row_of_another_form_is_refused(tmp_path, row):
    with pytest.raises(InputError, match='row 1'):
        excluded(tmp_path, [{'image': 'a.jpg'}, row], 'a.json')


def test_entries_that_match_nothing_are_counted(tmp_path):
    file = write(tmp_path / 'list.txt', 'absent.jpg\n36979.jpg\n36979.jpg\nnowhere.jpg\n')
    exclusions, summary = Exclusions([file]), Summary('')
    assert [exclusions.contains(path) for path in PATHS] == [True, False, False]
    exclusions.report(summary)
    note = f'entry of --exclude {file}, of 3, that matches no image'
    assert summary.noted == {note: 2} and summary.first == {note: 'absent.jpg'}


@pytest.mark.parametrize('option', ['--exclude', '--val', '--test'])
def test_a_list_that_matches_nothing_is_refused(tmp_path, option):
    token = write(tmp_path / 'r.token', ''.join(f'1000{i}.jpg#0\tdog {i}\n' for i in range(4)))
    wrong, right = write(tmp_path / 'wrong.txt', 'a.jpg\nb.jpg\n'), write(tmp_path / 'right.txt', '10002\nb.jpg\n')
    out = ['--out', tmp_path / 'o']
    message = refuse('flickr30k', token, option, wrong, *out)
    assert f"{option} {wrong}: no entry matches an image: an entry is 'a.jpg', an image '10000.jpg'" in message
    assert not (tmp_path / 'o').exists()
    run('flickr30k', token, option, wrong, *out, '--allow-unmatched')
    assert len(read(tmp_path / 'o/flickr30k_train.json')) == 4
    run('flickr30k', token, option, right, *out)
    assert len(read(tmp_path / 'o/flickr30k_train.json')) == 3


def test_no_file_is_written_when_the_list_matches_nothing(tmp_path):
    wrong = ['--exclude', write(tmp_path / 'wrong.txt', 'a.jpg\n'), '--out', tmp_path / 'o.json']
    (tmp_path / 'i').mkdir()
    (tmp_path / 'i/0.jpg').touch()
    tsv = write(tmp_path / 't.tsv', 'caption\thttp://a.org/x.jpg\n')
    regions = write(tmp_path / 'r.json', [{'id': 1, 'regions': [{'phrase': 'x'}]}])
    image_data = write(tmp_path / 'd.json', [{'image_id': 1, 'url': 'http://x/VG_100K/1.jpg'}])
    table = write(tmp_path / 't.csv', 'image,caption\ni/0.jpg,x\n')
    for command in (['cc3m', tsv, '--images', tmp_path / 'i'], ['vg', regions, image_data], ['folder', table]):
        assert 'no entry matches an image' in refuse(*command, *wrong)
        assert not (tmp_path / 'o.json').exists()


def test_lists_of_val_and_test_do_not_overlap(tmp_path):
    token = write(tmp_path / 'r.token', ''.join(f'1000{i}.jpg#0\tdog {i}\n' for i in range(4)))
    val, test = write(tmp_path / 'val.txt', '10001\n10002\n'), write(tmp_path / 'test.txt', '10002\n')
    message = refuse('flickr30k', token, '--val', val, '--test', test, '--out', tmp_path / 'o')
    assert 'both name 1 images, such as 10002.jpg' in message
