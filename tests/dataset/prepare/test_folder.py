"""`python -m dataset.prepare folder`: images with texts, and tables."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tests.dataset.prepare.tools import jpeg, read, refuse, run, write
from utils.entry import user_message


def test_folder_of_images_with_texts(tmp_path, capsys):
    for name in ('a.jpg', 'sub/b.PNG', 'c.jpg', 'd.jpg', '.hidden.jpg'):
        jpeg(tmp_path / 'own' / name)
    write(tmp_path / 'own/a.txt', '\ufefffirst\r\n\r\nsecond\0 half\n')
    write(tmp_path / 'own/sub/b.txt', 'only one, 日本 \U0001f600')
    write(tmp_path / 'own/d.txt', ' \n')
    run('folder', tmp_path / 'own', '--out', tmp_path / 'f.json')
    assert read(tmp_path / 'f.json') == [
        {'image': 'a.jpg', 'caption': 'first'},
        {'image': 'a.jpg', 'caption': 'second half'},
        {'image': 'sub/b.PNG', 'caption': 'only one, 日本 \U0001f600'},
    ]
    shown = capsys.readouterr().out
    for line in (
        'read      4 images',
        '1 x image without a .txt',
        '1 x image with an empty .txt',
        '1 x caption with emoji',
        '1 x caption with line breaks or control characters',
    ):
        assert line in shown
    run(
        'folder',
        tmp_path / 'own',
        '--out',
        tmp_path / 'f.json',
        '--one-row-per-image',
        '--image-prefix',
        '/data/own',
        '--exclude',
        write(tmp_path / 'no.txt', 'sub/b.jpg\n'),
    )
    assert read(tmp_path / 'f.json') == [{'image': '/data/own/a.jpg', 'caption': ['first', 'second half']}]


@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'json', 'parquet', 'no heading'])
def test_folder_from_a_table(tmp_path, capsys, ending):
    for name in ('a.jpg', 'b, c.jpg'):
        jpeg(tmp_path / name)
    rows = [
        ('a.jpg', 'a "quoted", text\nof two lines'),
        ('b, c.jpg', 'x' * 200_000),
        ('gone.jpg', 'y'),
        ('a.jpg', 'more'),
        ('a.jpg', ''),
    ]
    heading, columns = ('File_Name', 'Text'), []
    path = tmp_path / f'table.{"csv" if ending == "no heading" else ending}'
    if ending in ('csv', 'tsv', 'no heading'):
        separator = '\t' if ending == 'tsv' else ','
        quoted = [
            separator.join('"' + cell.replace('"', '""') + '"' for cell in row)
            for row in ([] if ending == 'no heading' else [heading]) + rows
        ]
        write(path, '\n'.join(quoted) + '\n')
    elif ending == 'parquet':
        columns = ['--columns', 'where', 'what']
        table = {'id': range(5), 'what': [row[1] for row in rows], 'where': [row[0] for row in rows]}
        parquet.write_table(pa.table(table), path)
    else:
        objects = [dict(zip(heading, row, strict=True)) for row in rows]
        write(path, objects if ending == 'json' else '\n'.join(map(json.dumps, objects)))
    run('folder', path, '--out', tmp_path / 'out/f.json', *columns, '--one-row-per-image')
    assert read(tmp_path / 'out/f.json') == [
        {'image': 'a.jpg', 'caption': ['a "quoted", text of two lines', 'more']},
        {'image': 'b, c.jpg', 'caption': ['x' * 200_000]},
    ]
    shown = capsys.readouterr().out
    assert 'read      5 rows' in shown and '1 x image that is not there' in shown and '1 x empty caption' in shown


def test_folder_refuses_what_it_cannot_read(tmp_path):
    out = ['--out', tmp_path / 'f.json']
    assert 'has the columns a, b' in refuse('folder', write(tmp_path / 'a.csv', 'a,b\n1,2\n'), *out)
    assert 'is empty' in refuse('folder', write(tmp_path / 'b.csv', ''), *out)
    assert 'not a complete Parquet file' in refuse('folder', write(tmp_path / 'c.parquet', 'PAR1 cut'), *out)
    assert 'is cut off' in refuse('folder', write(tmp_path / 'd.jsonl', '{"image": "a.jpg", "capt'), *out)
    assert 'is not a folder or' in refuse('folder', tmp_path / 'absent', *out)
    for ending in ('csv', 'parquet'):
        with pytest.raises(FileNotFoundError) as caught:
            run('folder', tmp_path / f'absent.{ending}', *out)
        assert user_message(caught.value) == f'{tmp_path}/absent.{ending}: No such file or directory; correct the path'
    jpeg(tmp_path / 'own/a.jpg')
    assert 'no row is left' in refuse('folder', tmp_path / 'own', *out)
    assert not (tmp_path / 'f.json').exists()
