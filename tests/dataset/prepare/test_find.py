"""`check --find`: images found by name, only if it is certain which file is meant."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from dataset.prepare.checking.find import best_files, find_by_name, path_from_root
from dataset.prepare.checking.places import fit
from dataset.prepare.common import Summary
from tests.dataset.prepare.tools import jpeg, read, refuse, run, write

COCO = 'COCO_train2014_000000000009.jpg'


def find(tmp_path: Path, files: list[str], paths: list[str], root: str = '.') -> tuple[dict[str, str], Summary]:
    """The replaced paths, where empty files lie under tmp_path."""
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    root = str(tmp_path / root)
    found, summary = {root: {path: path for path in paths}}, Summary('')
    find_by_name(found, [str(tmp_path)], summary)
    return {path: new for path, new in found[root].items() if new != path}, summary


@pytest.mark.parametrize(
    ('path', 'file'),
    [
        ('1.jpg', 'vg/VG_100K_2/1.jpg'),
        ('/export/data/vg/VG_100K/1.jpg', 'vg/VG_100K_2/1.jpg'),
        ('images/train/65/train-10171-0-img0.png', 'nlvr2/train-10171-0-img0.png'),
        (f'train2014/{COCO}', 'train2017/000000000009.jpg'),
        ('train2017/000000000009.jpg', f'coco/{COCO}'),
        ('000000000009.jpg', 'COCO_val2014_000000000009.png'),
        ('a.jpg', 'images/a.JPG'),
        ('IMG_1.JPG', 'img_1.jpg'),
        ('a.jpg', 'a.png'),
        ('a.jpg', 'a.webp'),
        ('photo.v1', 'photo.v1.jpg'),
        ('C:\\data\\flickr\\7.jpg', 'flickr30k-images/7.jpg'),
        ('cafe\u0301.jpg', 'caf\u00e9.jpg'),  # the two forms of Unicode
        ('7', 'x/7.jpg'),
        ('old/photo.php', 'new/photo.php'),
    ],
)
def test_an_image_is_found_by_its_name(tmp_path, path, file):
    moved, summary = find(tmp_path, [file, 'other/b.jpg', 'x.txt'], [path])
    assert moved == {path: file}
    has_other = Path(path).suffix.lower() != Path(file).suffix.lower() and not file.split('/')[-1].startswith('COCO')
    assert dict(summary.changed) == {
        'image found with another extension' if has_other else 'image found elsewhere by its name': 1
    }


@pytest.mark.parametrize(
    ('path', 'files'),
    [
        ('a.jpg', ['b.jpg', 'aa.jpg', 'a.txt', 'a.json', '.a.jpg', 'a.jpg.part']),
        ('photo.v1', ['photo.jpg']),
        ('1.jpg', ['01.jpg', '11.jpg']),
        ('x_000000000009.jpg', ['000000000009.jpg', COCO]),
        ('', ['a.jpg']),
    ],
)
def test_other_names_are_not_taken(tmp_path, path, files):
    moved, summary = find(tmp_path, files, [path] if path else ['gone/'])
    assert not moved and not summary.changed


@pytest.mark.parametrize(
    ('path', 'files', 'wanted'),
    [
        ('65/x.png', ['train/64/x.png', 'train/65/x.png'], 'train/65/x.png'),
        ('images/train/65/x.png', ['dev/65/x.png', 'train/65/x.png'], 'train/65/x.png'),
        ('65/x.png', ['dev/65/x.png', 'train/65/x.png'], None),
        ('x.png', ['a/x.png', 'b/x.png'], None),
        ('a/x.jpg', ['b/x.jpg', 'a/x.JPG'], 'b/x.jpg'),  # the exact name comes first
        ('x.jpg', ['x.JPG', 'a/X.jpg'], None),
        ('x.jpg', ['x.png', 'x.webp'], None),
        ('x.jpg', ['a/x.png', 'a/x.JPG'], 'a/x.JPG'),
        ('000000000009.jpg', ['a/000000000009.jpg', f'b/{COCO}'], 'a/000000000009.jpg'),
        ('000000000009.jpg', [f'a/{COCO}', f'b/{COCO}'], None),
    ],
)
def test_several_files_of_a_name(tmp_path, path, files, wanted):
    moved, summary = find(tmp_path, files, [path], 'root')
    assert [str(Path(new).relative_to(tmp_path)) for new in moved.values()] == ([wanted] if wanted else [])
    ambiguous = 'image found in several places, not replaced'
    assert summary.noted[ambiguous] == (wanted is None)
    if wanted is None:
        assert all(f'{tmp_path}/{file}' in summary.first[ambiguous] for file in files)


@pytest.mark.parametrize(
    ('files', 'paths', 'wanted'),
    [
        # Numbering starts anew in each folder, and only one folder is there.
        (['00000/1.jpg'], ['00000/1.jpg', '00001/1.jpg'], {}),
        (['new/00000/1.jpg'], ['old/00000/1.jpg', 'old/00001/1.jpg'], {'old/00000/1.jpg': 'new/00000/1.jpg'}),
        (['1.jpg'], ['a/1.jpg', 'b/1.jpg'], {}),
        (['a.jpg'], ['a.jpg', 'sub/a.png'], {}),
        (['sub/a.jpg'], ['a.jpg', 'a.png'], {'a.jpg': 'sub/a.jpg'}),
        # Two ways to write one path, and two names of one COCO image.
        (['sub/1.jpg'], ['x/1.jpg', './x//1.jpg'], {'x/1.jpg': 'sub/1.jpg', './x//1.jpg': 'sub/1.jpg'}),
        ([COCO], [COCO, 'train2017/000000000009.jpg'], {'train2017/000000000009.jpg': COCO}),
        ([f'c/{COCO}'], [f'a/{COCO}', f'b/{COCO}'], {f'a/{COCO}': f'c/{COCO}', f'b/{COCO}': f'c/{COCO}'}),
    ],
)
def test_a_file_is_the_image_of_one_path(tmp_path, files, paths, wanted):
    moved, summary = find(tmp_path, files, paths)
    assert moved == wanted
    missing = [path for path in paths if not (tmp_path / path).exists()]
    assert sum(summary.noted.values()) == len(missing) - len(wanted)


NUMBER = 'its name is a number and '


@pytest.mark.parametrize(
    ('files', 'paths', 'wanted', 'doubt'),
    [
        # A failed download: other images of its folder are there.
        (['r/0/1.jpg', 'r/1/1.jpg', 'r/1/5.jpg'], ['r/0/1.jpg', 'r/1/1.jpg', 'r/0/5.jpg'], {}, 'other images of its'),
        (['r/0/1.jpg', 'copy/0/5.jpg'], ['r/0/1.jpg', 'r/0/5.jpg'], {}, 'other images of its folder'),
        (['t/0/1.jpg', 'v/1/5.jpg'], ['t/0/1.jpg', 't/1/5.jpg'], {}, 'other images under t are'),
        (['0/1.jpg', '2/5.jpg'], ['0/1.jpg', '1/5.jpg'], {}, 'another folder'),
        # The folder was moved.
        (['0/1.jpg', 'more/1/5.jpg'], ['0/1.jpg', '1/5.jpg'], {'1/5.jpg': 'more/1/5.jpg'}, ''),
        (
            ['n/0/1.jpg', 'n/1/5.jpg'],
            ['o/0/1.jpg', 'o/1/5.jpg'],
            {'o/0/1.jpg': 'n/0/1.jpg', 'o/1/5.jpg': 'n/1/5.jpg'},
            '',
        ),
        # The folders are gone.
        (['all/1.jpg', 'all/5.jpg'], ['0/1.jpg', '1/5.jpg'], {'0/1.jpg': 'all/1.jpg', '1/5.jpg': 'all/5.jpg'}, ''),
        (['1/5.jpg'], ['0/5.jpg', '1/6.jpg'], {}, 'another folder'),
        (['x/5.jpg', 'y/5.png'], ['0/5.jpg'], {}, 'another folder'),
        (['all/5.jpg'], ['0/1.jpg', '1/1.jpg', '0/5.jpg'], {}, 'another folder'),
        # Names that are no numbers are judged so only if they are repeated.
        (
            ['b/f_1.jpg', 'a/x.jpg', 'b/f_5.jpg'],
            ['a/f_1.jpg', 'b/f_1.jpg', 'a/x.jpg', 'a/f_5.jpg'],
            {},
            'other images of its',
        ),
        (['a/x.jpg', 'b/f_5.jpg'], ['a/x.jpg', 'a/f_5.jpg'], {'a/f_5.jpg': 'b/f_5.jpg'}, ''),
        # Numbers that identify an image.
        (
            ['VG_100K/1.jpg', 'VG_100K_2/5.jpg'],
            ['VG_100K/1.jpg', 'VG_100K/5.jpg'],
            {'VG_100K/5.jpg': 'VG_100K_2/5.jpg'},
            '',
        ),
        (
            ['a/1.jpg', 'b/1000092795.jpg'],
            ['a/1.jpg', 'a/1000092795.jpg'],
            {'a/1000092795.jpg': 'b/1000092795.jpg'},
            '',
        ),
    ],
)
def test_a_number_in_another_folder_is_another_image(tmp_path, files, paths, wanted, doubt):
    moved, summary = find(tmp_path, files, paths)
    assert moved == wanted
    notes = [note for note in summary.noted if doubt in note and NUMBER in note]
    assert bool(notes) == bool(doubt)


@pytest.mark.parametrize(
    ('files', 'paths', 'wanted'),
    [
        (['i/a.jpg', 'm/b.png'], ['i/a.jpg', 'i/b.jpg'], {}),
        (['i/a.jpg', 'm/b.png'], ['a.jpg', 'b.jpg'], {'a.jpg': 'i/a.jpg'}),
        (['i/a.jpg', 'i/b.png'], ['a.jpg', 'b.jpg'], {'a.jpg': 'i/a.jpg', 'b.jpg': 'i/b.png'}),
        (['i/a.jpg', 'i/b.png'], ['i/a.jpg', 'i/b.jpg'], {'i/b.jpg': 'i/b.png'}),
        (['a.jpg', 'b.png'], ['a.jpg', 'b.jpg'], {'b.jpg': 'b.png'}),
        (['png/a.png', 'png/b.png'], ['i/a.jpg', 'i/b.jpg'], {'i/a.jpg': 'png/a.png', 'i/b.jpg': 'png/b.png'}),
    ],
)
def test_a_mask_in_another_folder_is_not_the_image(tmp_path, files, paths, wanted):
    moved, summary = find(tmp_path, files, paths)
    assert moved == wanted
    others = [new for new in wanted.values() if new.endswith('.png')]
    assert summary.changed['image found with another extension'] == len(others)
    assert summary.noted.total() == sum(not (tmp_path / path).exists() for path in paths) - len(wanted)


def test_links_and_folders_given_twice_are_one_place(tmp_path):
    (tmp_path / 'disk/sub').mkdir(parents=True)
    (tmp_path / 'disk/sub/a.jpg').touch()
    (tmp_path / 'disk/sub/loop').symlink_to(tmp_path / 'disk')
    (tmp_path / 'disk/sub/gone.jpg').symlink_to('nowhere')
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root/link').symlink_to(tmp_path / 'disk')
    root = str(tmp_path / 'root')
    paths = {root: {'a.jpg': 'a.jpg', 'gone.jpg': 'gone.jpg'}}
    find_by_name(paths, [f'{root}/link', f'{root}/link/sub', str(tmp_path / 'disk')], Summary(''))
    assert paths[root]['gone.jpg'] == 'gone.jpg'
    assert not os.path.isabs(paths[root]['a.jpg']) and os.path.isfile(f'{root}/{paths[root]["a.jpg"]}')


def test_paths_start_from_the_root_if_they_can(tmp_path, monkeypatch):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'root').symlink_to(tmp_path / 'disk')
    file = str(tmp_path / 'disk/sub/a.jpg')
    assert path_from_root(file, str(tmp_path)) == 'disk/sub/a.jpg'
    assert path_from_root(file, str(tmp_path / 'root')) == 'sub/a.jpg'
    assert path_from_root(file, str(tmp_path / 'dis')) == file
    assert path_from_root(file, '') == file
    assert path_from_root(str(tmp_path / '..a.jpg'), str(tmp_path)) == '..a.jpg'
    monkeypatch.chdir(tmp_path)
    assert path_from_root(file, 'disk') == 'sub/a.jpg'


def test_the_name_decides_before_the_folders():
    files = ['/a/b/X.png', '/c/x.jpg']
    assert best_files('a/b/x.jpg', files) == ['/c/x.jpg'] and best_files('a/b/x.png', files) == ['/a/b/X.png']
    assert [fit('a/b/x.jpg', file) for file in files] == [(-2, 2), (0, 0)]


def test_check_finds_the_images_of_every_row(tmp_path, capsys):
    """Of both roots, of pairs; outside the root it is said."""
    jpeg(tmp_path / 'coco/val2014/000000000001.jpg')
    jpeg(tmp_path / 'vg/VG_100K/5.jpg', seed=1)
    jpeg(tmp_path / 'vg/6.jpg', seed=2)
    rows = [
        {'question': 'x', 'image': image, 'dataset': dataset, 'question_id': 1}
        for image, dataset in (
            ('/old/COCO_val2014_000000000001.jpg', 'vqa'),
            ('vg/5.jpg', 'vg'),
            ('6.jpg', 'vg'),
            ('gone.jpg', 'vg'),
        )
    ]
    roots = ['--image-root', tmp_path / 'root', '--vg-root', tmp_path / 'vg', '--workers', 1]
    command = [
        'check',
        write(tmp_path / 'f.json', rows),
        *roots,
        '--find',
        tmp_path / 'vg',
        '--find',
        tmp_path / 'coco',
    ]
    run(*command, '--out', tmp_path / 'g.json')
    found = [f'{tmp_path}/coco/val2014/000000000001.jpg', 'VG_100K/5.jpg', '6.jpg']
    assert [row['image'] for row in read(tmp_path / 'g.json')] == found
    shown = capsys.readouterr().out
    assert '2 x image found elsewhere by its name' in shown and "first: '/old/COCO_val2014_000000000001.jpg'" in shown
    assert '1 x image found outside its root: training needs images_outside_root: true' in shown

    pairs = [{'images': ['train/1/l.png', 'train/1/r.png'], 'sentence': 'x', 'label': True}]
    for name in 'lr':
        Image.new('RGB', (8, 8)).save(tmp_path / f'coco/{name}.png')
    file = write(tmp_path / 'pairs.jsonl', json.dumps(pairs[0]))
    run('check', file, '--image-root', tmp_path / 'coco', '--find', tmp_path / 'coco', '--out', tmp_path / 'h.json')
    assert read(tmp_path / 'h.json') == [pairs[0] | {'images': ['l.png', 'r.png']}]


def test_rebased_paths_are_looked_up_too(tmp_path):
    for name in ('new/a.jpg', 'elsewhere/b.jpg'):
        jpeg(tmp_path / name)
    file = write(tmp_path / 'f.json', [{'image': f'/old/{name}.jpg', 'caption': 'x'} for name in 'ab'])
    command = ['check', file, '--image-root', tmp_path, '--out', tmp_path / 'g.json', '--workers', 1]
    run(*command, '--rebase', '/old=new', '--find', tmp_path)
    assert [row['image'] for row in read(tmp_path / 'g.json')] == ['new/a.jpg', 'elsewhere/b.jpg']


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    file = write(tmp_path / 'f.json', [{'image': jpeg(tmp_path / 'a.jpg'), 'caption': 'x'}])
    assert 'no such folder' in refuse('check', file, '--out', tmp_path / 'g.json', '--find', tmp_path / 'absent')


def test_each_path_is_tested_once(tmp_path, monkeypatch):
    for name in ('a.jpg', 'sub/b.jpg'):
        jpeg(tmp_path / name)
    rows = [{'image': name, 'caption': 'x'} for name in ('a.jpg', 'b.jpg') for _ in range(5)]
    tested = []
    really_exists = os.path.exists
    monkeypatch.setattr(os.path, 'exists', lambda path: tested.append(str(path)) or really_exists(path))
    command = ['check', write(tmp_path / 'f.json', rows), '--image-root', tmp_path, '--out', tmp_path / 'g.json']
    run(*command, '--find', tmp_path, '--workers', 1)
    assert [path for path in tested if path.endswith('b.jpg')] == [f'{tmp_path}/b.jpg']
    assert len(read(tmp_path / 'g.json')) == 10
