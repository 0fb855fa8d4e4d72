"""`python -m dataset.prepare folder`: images with texts, and tables."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from dataset.annotations import load_annotations
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


def test_texts_that_cannot_be_decoded_are_counted_and_refused(tmp_path):
    texts = {'a': 'a red star\r\n'.encode('utf-16'), 'b': b'it\x92s a dog', 'c': '一颗红色的星星'.encode('gb18030')}
    for name, data in texts.items():
        jpeg(tmp_path / f'own/{name}.jpg')
        (tmp_path / f'own/{name}.txt').write_bytes(data)
    command = ['folder', tmp_path / 'own', '--out', tmp_path / 'f.json']
    message = refuse(*command)
    assert message.startswith(f'2 of 3 .txt files cannot be read, the first: {tmp_path}/own/b.txt: byte 0x92')
    assert not (tmp_path / 'f.json').exists()
    (tmp_path / 'own/c.jpg').unlink()
    run(*command, '--encoding', 'cp1252')
    assert [row['caption'] for row in read(tmp_path / 'f.json')] == ['a red star', 'it’s a dog']


@pytest.mark.parametrize('source', ['folder', 'table'])
def test_folder_writes_rows_of_retrieval(tmp_path, source):
    for name in ('a.jpg', 'b.jpg'):
        jpeg(tmp_path / 'own' / name)
    captions = {'a': ['star a', 'another a'], 'b': ['star b']}
    if source == 'folder':
        own = tmp_path / 'own'
        for name, texts in captions.items():
            write(own / f'{name}.txt', '\n'.join(texts))
    else:
        lines = ['a.jpg,star a', 'b.jpg,star b', 'a.jpg,another a']
        own = write(tmp_path / 'own/own.csv', '\n'.join(['image,caption', *lines]))
    expected = {
        'retrieval_train': [
            {'image': 'x/a.jpg', 'caption': 'star a', 'image_id': 'x/a.jpg'},
            {'image': 'x/a.jpg', 'caption': 'another a', 'image_id': 'x/a.jpg'},
            {'image': 'x/b.jpg', 'caption': 'star b', 'image_id': 'x/b.jpg'},
        ],
        'retrieval_eval': [
            {'image': 'x/a.jpg', 'caption': ['star a', 'another a']},
            {'image': 'x/b.jpg', 'caption': ['star b']},
        ],
    }
    for kind, rows in expected.items():
        run('folder', own, '--out', tmp_path / f'{kind}.json', '--kind', kind, '--image-prefix', 'x')
        assert sorted(read(tmp_path / f'{kind}.json'), key=lambda row: row['image']) == rows
        assert len(load_annotations(str(tmp_path / f'{kind}.json'), kind)) == len(rows)


@pytest.mark.parametrize('ending', ['jsonl', 'ndjson', 'JSONL', 'json'])
def test_the_name_says_what_is_written(tmp_path, ending):
    jpeg(tmp_path / 'own/a.jpg')
    write(tmp_path / 'own/a.txt', 'star\nanother')
    out = tmp_path / f'f.{ending}'
    run('folder', tmp_path / 'own', '--out', out)
    rows = [{'image': 'a.jpg', 'caption': 'star'}, {'image': 'a.jpg', 'caption': 'another'}]
    text = out.read_text()
    assert (json.loads(text) if ending == 'json' else list(map(json.loads, text.splitlines()))) == rows
    run('check', out, '--image-root', tmp_path / 'own', '--out', tmp_path / f'g.{ending}', '--workers', 1)
    assert (tmp_path / f'g.{ending}').read_text() == text


@pytest.mark.parametrize('command', ['folder', 'check', 'vg', 'cc3m', 'sbu'])
def test_an_output_of_another_name_is_refused(tmp_path, capsys, command):
    arguments = {'vg': ['a', 'b'], 'cc3m': ['a', '--images', 'b'], 'sbu': ['a', '--images', 'b']}.get(command, ['a'])
    for name in ('f.json.gz', 'f.csv', 'f'):
        with pytest.raises(SystemExit):
            run(command, *arguments, '--out', name)
        assert f"'{name}' does not end in .json, .jsonl or .ndjson" in capsys.readouterr().err


def test_damage_of_an_earlier_decoding_is_noted(tmp_path, capsys):
    jpeg(tmp_path / 'own/a.jpg')
    write(tmp_path / 'own/a.txt', 'it\ufffds a dog')
    run('folder', tmp_path / 'own', '--out', tmp_path / 'f.json')
    assert (
        '1 x caption with U+FFFD, which an earlier wrong decoding left, kept, the first: it' in capsys.readouterr().out
    )
