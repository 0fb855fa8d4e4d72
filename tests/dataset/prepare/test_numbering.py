"""Images named by row number: every reading that the names allow is right, the others are refused."""

import random

import pytest

from dataset.prepare.releases.numbering import match_numbers
from tests.dataset.prepare.tools import read, refuse, run, write


def kept(rows, seed: int = 0, share: float = 0.8) -> list[int]:
    """The rows whose image could be downloaded."""
    return sorted(random.Random(seed).sample(rows, int(share * len(rows))))


@pytest.mark.parametrize(
    'name',
    [
        lambda row: f'{row}.jpg',
        lambda row: f'{row:09d}.png',
        lambda row: f'{row // 10000:05d}/{row:09d}.jpg',  # img2dataset
        lambda row: f'{row // 500}/{row}.jpg',
        lambda row: f'{row % 64:02d}/{row}.jpg',
        lambda row: f'part-{row // 1000}/{row}.webp',
        lambda row: f'{row // 1000:04d}/{row % 1000:03d}.jpg',  # SBU's archive
        lambda row: f'a/b/{row // 100}/{row % 100:02d}',
    ],
)
def test_numberings_that_the_names_show(name):
    rows = kept(range(20_000))
    found = match_numbers(map(name, rows), 20_000)
    assert found.fault is None
    assert found.rows == {row: name(row) for row in rows}
    assert found.conflicts == found.beyond == 0


@pytest.mark.parametrize(
    ('name', 'remedy'),
    [
        (lambda row: f'{row // 500:04d}/{row % 500:03d}.jpg', '--per-folder N (row'),
        (lambda row: f'{row // 960:02d}/{row % 960:03d}.jpg', '--per-folder N (row'),
        (lambda row: f'{row // 1000}/{row % 1000}.jpg', '--per-folder N (row'),
        (
            lambda row: f'{row // 5000:05d}/{row // 5000:05d}{row % 5000:04d}.jpg',
            '--per-folder N (10000',
        ),  # img2dataset
        (lambda row: f'shard-{"abcdefghijklmnopqrst"[row // 1000]}/{row % 1000:03d}.jpg', 'rename the folders'),
        (
            lambda row: f'{row // 1000}/{row // 100 % 10}/{row % 100:02d}.jpg',
            'have the same number: give the folder of',
        ),
        (lambda row: f'{row // 10000}/{row // 10000}/{row % 10000:04d}.jpg', None),
        (lambda row: f'{row + 1}.jpg', '--first-row 1,'),
        (lambda row: f'{row // 10000:05d}/{row + 1:09d}.jpg', '--first-row 1,'),
        (lambda row: f'{row // 1000 + 1:04d}/{row % 1000:03d}.jpg', '--first-row 1000,'),
        (lambda row: f'{row // 10000 + 1:05d}/{row + 10000:09d}.jpg', '--first-row 10000,'),
        (lambda row: f'{"train" if row < 15000 else "val"}/{row % 15000}.jpg', 'rename the folders'),
    ],
)
def test_numberings_that_the_names_do_not_show_are_refused(name, remedy):
    """Complete downloads, and partial ones where that is certain, too."""
    found = match_numbers(map(name, range(20_000)), 20_000)
    if remedy is None:
        assert found.fault is None and len(found.rows) == 20_000
    else:
        assert remedy in found.fault


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        (lambda row: f'{row // 500}/{row % 500}.jpg', {'per_folder': 500}),
        (lambda row: f'{row // 500:05d}/{row // 500:05d}{row % 500:04d}.jpg', {'per_folder': 500}),
        (lambda row: f'{row // 960:02d}/{row % 960:03d}.jpg', {'per_folder': 960}),
        (lambda row: f'{row // 1000 + 1:04d}/{row % 1000:03d}.jpg', {'first_row': 1000}),
        (lambda row: f'{row // 99:02d}/{row % 99 + 1:02d}.jpg', {'per_folder': 99, 'first_row': 1}),
        (lambda row: f'{row + 1}.jpg', {'first_row': 1}),
        (lambda row: f'{row + 7}.jpg', {'first_row': 7}),
        (lambda row: f'{"ab"[row % 2]}/{row}.jpg', {'per_folder': 0}),
    ],
)
def test_what_the_user_says_is_taken(name, said):
    rows = kept(range(3000))
    found = match_numbers(map(name, rows), 3000, **said)
    assert found.fault is None and found.rows == {row: name(row) for row in rows}


def test_remedies_that_cannot_work_are_refused():
    assert 'has no number' in match_numbers(['x/1.jpg'], 3000, per_folder=500).fault
    two = ['train/00/6.jpg', 'val/00/6.jpg', 'train/00/7.jpg']
    for per_folder in (0, 100):
        assert 'give the folder of one' in match_numbers(two, 3000, per_folder=per_folder).fault


def test_counting_from_one_in_each_of_many_folders():
    names = [f'{row // 99:02d}/{row % 99 + 1:02d}.jpg' for row in range(30 * 99)]
    assert '--first-row 1' in match_numbers(names, len(names)).fault


def test_a_list_of_another_download_is_refused():
    paths = [f'{number}.jpg' for number in range(1000)]
    assert '500 of 1000 files are not of rows 0 to 499, such as 500.jpg' in match_numbers(paths, 500).fault
    assert match_numbers(paths, 995).fault is None  # a few


def test_files_without_a_row_of_their_own_are_counted():
    found = match_numbers(['0.jpg', '1.jpg', '1.png', 'cover.jpg', '7.jpg'], 5)
    assert (found.rows, found.conflicts, found.beyond, found.files) == ({0: '0.jpg'}, 2, 1, 4)
    assert match_numbers(['cover.jpg'], 5).rows == {}
    # Row 0 could not be downloaded, and the table was cut.
    assert match_numbers(['1.jpg', '5.jpg'], 3, first_row=0).rows == {1: '1.jpg'}


@pytest.mark.parametrize(
    'paths',
    [['0/3.jpg', '0/40.jpg', '1/7.jpg', '2/31.jpg'], ['0/3.jpg', '1/17.jpg', '2/120.jpg'], ['a/3.jpg', 'b/9.jpg']],
)
def test_few_numbers_in_several_folders_are_not_guessed(paths):
    assert '--per-folder 0' in match_numbers(paths, 3000).fault
    assert match_numbers(paths, 3000, per_folder=0).fault is None


@pytest.mark.parametrize('command', ['cc3m', 'sbu'])
def test_commands_refuse_or_pair_rightly(tmp_path, capsys, command):
    urls = [f'http://e.org/{row}x.jpg' for row in range(300)]
    if command == 'sbu':
        data = {'image_urls': urls, 'captions': [f'caption {row}' for row in range(300)]}
        table = write(tmp_path / 'sbu.json', data)
    else:
        table = write(tmp_path / 't.tsv', ''.join(f'caption {row}\t{url}\n' for row, url in enumerate(urls)))
    for row in (1, 99, 120, 299):
        file = tmp_path / f'anew/{row // 100}/{row % 100:02d}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / 'anew/readme.jpg').touch()
    out = ['--out', tmp_path / 'o.json']
    run(command, table, '--images', tmp_path / 'anew', *out)
    assert [(row['image'], row['caption']) for row in read(tmp_path / 'o.json')] == [
        ('0/01.jpg', 'caption 1'),
        ('0/99.jpg', 'caption 99'),
        ('1/20.jpg', 'caption 120'),
        ('2/99.jpg', 'caption 299'),
    ]
    shown = capsys.readouterr().out
    assert "row, 100 rows per folder; check a pair: 0/01.jpg is row 1, 'caption 1'" in shown
    assert '1 x image that no row names' in shown
    (tmp_path / 'one').mkdir()
    for number in (1, 2, 300):
        (tmp_path / f'one/{number}.jpg').touch()
    images = ['--images', tmp_path / 'one', *out]
    assert 'counted from 1' in refuse(command, table, *images)
    run(command, table, *images, '--first-row', 1)
    assert read(tmp_path / 'o.json')[2] == {'image': '300.jpg', 'caption': 'caption 299'}
    assert 'are for --naming row' in refuse(command, table, *images, '--first-row', 1, '--naming', 'crc32')


def test_shards_without_numbers_are_refused(tmp_path):
    table = write(tmp_path / 't.tsv', ''.join(f'caption {row}\thttp://e.org/{row}x.jpg\n' for row in range(300)))
    for name in ('a/1.jpg', 'b/1.jpg', 'a/2.jpg', 'b/2.jpg'):
        (tmp_path / 'i' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'i' / name).touch()
    message = refuse('cc3m', table, '--images', tmp_path / 'i', '--out', tmp_path / 'o.json')
    assert 'file numbers start anew in each folder (a/1.jpg, b/1.jpg), and the folders have no numbers' in message


def test_one_image_may_belong_to_rows_of_one_url(tmp_path, capsys):
    urls = ['http://e.org/one.jpg', 'http://e.org/two.jpg', 'http://e.org/one.jpg']
    table = write(tmp_path / 't.tsv', ''.join(f'caption {row}\t{url}\n' for row, url in enumerate(urls)))
    for name in ('one.jpg', 'two.jpg', 'three.jpg'):
        (tmp_path / name).touch()
    run('cc3m', table, '--images', tmp_path, '--out', tmp_path / 'o.json')
    assert [row['image'] for row in read(tmp_path / 'o.json')] == ['one.jpg', 'two.jpg', 'one.jpg']
    assert '1 x image that no row names, the first: three.jpg' in capsys.readouterr().out
