"""Lists of images: what an entry may look like, and entries that match nothing."""

import json

import pytest

from dataset.prepare.common import Summary
from dataset.prepare.exclude import Exclusions, flickr_id_in_name
from tests.dataset.prepare.tools import read, refuse, run, write
from utils.errors import InputError

PATHS = ['flickr30k-images/36979.jpg', 'flickr30k-images/1000092795.jpg', 'coco/val2014/COCO_val2014_000000000009.jpg']


def excluded(tmp_path, text, name: str = 'list.txt', paths=PATHS, option: str = '--exclude') -> list[str]:
    exclusions = Exclusions([write(tmp_path / name, text)], Summary(''), option=option)
    numbers = {path: flickr_id_in_name(path) for path in paths}  # as of Flickr30k
    return [path for path in paths if exclusions.contains(path, None, numbers[path])]


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
    exclusions = Exclusions([write(tmp_path / 'a.json', [{'image': 'vg/VG_100K/36979.jpg'}])], Summary(''))
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


@pytest.mark.parametrize(
    ('option', 'found'), [('--exclude', ['b', 'c', 'd', 'e']), ('--val', ['b', 'd', 'e']), ('--test', ['c', 'e'])]
)
@pytest.mark.parametrize('form', ['karpathy', 'table', 'rows'])
def test_a_list_with_splits_names_those_of_the_option(tmp_path, option, found, form):
    splits = {'a.jpg': 'train', 'b.jpg': 'val', 'c.jpg': 'testA', 'd.jpg': 'dev', 'e.jpg': None}
    if form == 'karpathy':
        name, content = 'k.json', {'images': [{'filename': image, 'split': split} for image, split in splits.items()]}
    elif form == 'rows':
        name, content = 'r.jsonl', '\n'.join(json.dumps({'image': i, 'split': split}) for i, split in splits.items())
    else:
        lines = ['split,file_name', *(f'{split or ""},{image}' for image, split in splits.items())]
        name, content = 's.csv', '\n'.join(lines)
    assert excluded(tmp_path, content, name, [*splits], option) == [f'{letter}.jpg' for letter in found]


@pytest.mark.parametrize('heading', [',cocoid,split', 'id,image_id,caption', 'Index;COCO_ID', 'image_id'])
def test_tables_of_ids_name_their_column(tmp_path, heading):
    delimiter = ';' if ';' in heading else ','
    names = heading.lower().split(delimiter)
    place = next(i for i, name in enumerate(names) if name in ('cocoid', 'image_id', 'coco_id'))
    rows = [delimiter.join(str(17 + n) if i == place else str(n) for i in range(len(names))) for n in range(3)]
    paths = [f'val2014/COCO_val2014_{number:012d}.jpg' for number in (0, 1, 2, 17, 18, 19)]
    assert excluded(tmp_path, '\n'.join([heading, *rows]).replace(',0\n', ',\n'), 'ids.csv', paths) == paths[3:]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('17,18,19\n', 'line 1 names several images'),
        ('a.jpg\np00.jpg p01.jpg\n', 'line 2 names several images'),
        ('1 2\n', 'line 1 names several images'),
        ('where,what\na.jpg,x\n', 'the columns where, what do not say which names the image'),
    ],
)
def test_a_list_of_another_form_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        excluded(tmp_path, text)


def test_paths_may_be_spelled_in_several_ways(tmp_path):
    composed, decomposed = 'caf\u00e9.jpg', 'cafe\u0301.jpg'
    for entry, path in (
        ('./p00.jpg', 'p00.jpg'),
        ('/data/own/p00.jpg', 'p00.jpg'),
        ('own/p00.jpg', 'p00.jpg'),
        ('p00.jpg', 'sub/p00.jpg'),
        ('own/sub/p00.jpg', 'sub/p00.jpg'),
        (composed, decomposed),
        (decomposed, f'x/{composed}'),
    ):
        assert excluded(tmp_path, entry, paths=[path]) == [path], entry
    assert excluded(tmp_path, 'other/p00.jpg', paths=['sub/p00.jpg']) == []


def test_numbers_of_own_images_are_not_those_of_flickr(tmp_path):
    exclusions = Exclusions([write(tmp_path / 'list.txt', 'a/10001.jpg\nflickr/1000092795.jpg\n')], Summary(''))
    assert not exclusions.contains('b/10001.jpg') and exclusions.contains('a/10001.jpg')
    assert exclusions.contains('b/1000092795.jpg')  # long enough to be Flickr's


def test_images_of_coco_are_known_by_their_flickr_url(tmp_path):
    image = {'file_name': 'COCO_val2014_000000000042.jpg', 'id': 42}
    image['flickr_url'] = 'http://farm8.staticflickr.com/7212/8119368305_9ef6a0b0f8_z.jpg'
    coco = {'images': [image], 'annotations': [{'image_id': 42, 'caption': 'x'}]}
    file = write(tmp_path / 'captions_val2014.json', coco)
    exclusions = Exclusions([file], Summary(''))
    assert exclusions.contains('sbu/1.jpg', flickr_id='8119368305') and exclusions.contains(image['file_name'])
    flickr = write(tmp_path / 'f.json', [{'image': 'flickr30k-images/8119368305.jpg'}])
    assert 'no row is left' in refuse('coco', file, '--exclude', flickr, '--out', tmp_path / 'o')


def test_entries_that_match_nothing_are_counted(tmp_path):
    file = write(tmp_path / 'list.txt', 'absent.jpg\n36979.jpg\n36979.jpg\nnowhere.jpg\n')
    summary = Summary('')
    exclusions = Exclusions([file], summary)
    assert [exclusions.contains(path) for path in PATHS] == [True, False, False]  # by name
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
