"""`python -m dataset.prepare folder`: images with texts, and tables."""

import json
import subprocess
import sys

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
    (tmp_path / 'own/c.txt').write_text('une étoile')
    run(*command, '--encoding', 'cp1252')
    assert [row['caption'] for row in read(tmp_path / 'f.json')] == ['a red star', 'it’s a dog', 'une étoile']


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


def test_texts_beside_images(tmp_path, capsys):
    """A mask with the name of its image, extensions in capitals, ends of lines in CR, and folders of file managers."""
    for name in ('a.jpg', 'a.png', 'b.jpg', 'c.jpg', '.Trash-1/files/x.jpg', 'sub/.cache/y.jpg'):
        jpeg(tmp_path / 'own' / name)
    for name, text in {'a.txt': 'star', 'b.TXT': 'upper', 'c.txt': 'one\rtwo\r', 'c.Txt': 'other'}.items():
        write(tmp_path / 'own' / name, text)
    for name in ('.Trash-1/files/x.txt', 'sub/.cache/y.txt'):
        write(tmp_path / 'own' / name, 'deleted')
    run('folder', tmp_path / 'own', '--out', tmp_path / 'f.json', '--one-row-per-image')
    rows = {row['image']: row['caption'] for row in read(tmp_path / 'f.json')}
    assert rows == {'a.jpg': ['star'], 'a.png': ['star'], 'b.jpg': ['upper'], 'c.jpg': ['one', 'two']}
    shown = capsys.readouterr().out
    for line in (
        '1 x image that shares its .txt with another, such as a mask, the first: a.png and a.jpg',
        f'2 x hidden folder, not read, the first: {tmp_path}/own/.Trash-1',
        '1 x .txt with the name of another in another case, the first: c.Txt',
    ):
        assert line in shown


def test_folders_of_several_splits_are_refused(tmp_path):
    for name in ('train/a', 'x/test2014/b', 'other/c'):
        jpeg(tmp_path / f'own/{name}.jpg')
        write(tmp_path / f'own/{name}.txt', 'star')
    command = ['folder', tmp_path / 'own', '--out', tmp_path / 'f.json']
    assert 'examples of the splits train, test2014: choose with --split NAME' in refuse(*command)
    run(*command, '--split', 'train')
    assert [row['image'] for row in read(tmp_path / 'f.json')] == ['train/a.jpg']
    run(*command, '--split', 'train', '--split', 'test2014')
    assert len(read(tmp_path / 'f.json')) == 2
    assert '--split val: ' in refuse(*command, '--split', 'val')


def test_one_image_has_one_path(tmp_path, capsys):
    for name in ('a.jpg', 'sub/b.jpg', 'elsewhere/deep/x.jpg', 'elsewhere/c.jpg', 'c.jpg'):
        jpeg(tmp_path / 'own' / name)
    (tmp_path / 'own/link').symlink_to('elsewhere/deep')
    paths = ['./a.jpg', 'a.jpg', './/a.jpg', 'sub/../a.jpg', 'sub\\b.jpg', 'link/../c.jpg']
    table = write(tmp_path / 't.csv', 'image,caption\n' + ''.join(f'{path},star\n' for path in paths))
    command = ['folder', table, '--image-root', tmp_path / 'own', '--out', tmp_path / 'f.json']
    run(*command, '--kind', 'retrieval_eval')
    rows = {row['image']: len(row['caption']) for row in read(tmp_path / 'f.json')}
    assert rows == {'a.jpg': 4, 'sub/b.jpg': 1, 'link/../c.jpg': 1}
    assert '1 x path with backslashes, which become slashes, the first: sub\\b.jpg' in capsys.readouterr().out
    write(tmp_path / 't.csv', f'image,caption\n{tmp_path}/own/a.jpg,star\n')
    run(*command)
    assert read(tmp_path / 'f.json')[0]['image'] == f'{tmp_path}/own/a.jpg'
    assert 'is absolute: leave the prefix out' in refuse(*command, '--image-prefix', 'own')


def test_a_table_without_its_images(tmp_path, capsys):
    for name in 'ab':
        jpeg(tmp_path / f'own/{name}.jpg')
    lines = ['image,caption', '/old/a.jpg,star', 'C:\\old\\b.jpg,other']
    table = write(tmp_path / 't.csv', '\n'.join(lines))
    command = ['folder', table, '--image-root', tmp_path / 'own', '--out', tmp_path / 'f.json']
    message = refuse(*command)
    assert "the first that was looked for is '/old/a.jpg'" in message and '--keep-missing' in message
    run(*command, '--keep-missing')
    assert '2 x image that is not there, kept, the first: /old/a.jpg' in capsys.readouterr().out
    check = ['check', tmp_path / 'f.json', '--image-root', tmp_path / 'own', '--find', tmp_path / 'own', '--workers', 1]
    run(*check, '--out', tmp_path / 'g.json')
    assert [row['image'] for row in read(tmp_path / 'g.json')] == ['a.jpg', 'b.jpg']
    assert '--keep-missing is for tables' in refuse(
        'folder', tmp_path / 'own', '--keep-missing', '--out', tmp_path / 'f.json'
    )


def test_several_tables(tmp_path):
    for name in ('a.jpg', 'b.jpg'):
        jpeg(tmp_path / 'own' / name)
    parquet.write_table(pa.table({'image': ['a.jpg'], 'caption': ['star']}), tmp_path / 'part-0.parquet')
    write(tmp_path / 'part-1.csv', 'file_name,text\nb.jpg,moon\n')
    rows = [{'image': 'a.jpg', 'caption': 'star'}, {'image': 'b.jpg', 'caption': 'moon'}]
    options = ['--image-root', tmp_path / 'own', '--out', tmp_path / 'f.json']
    run('folder', tmp_path / 'part-*', *options)
    assert read(tmp_path / 'f.json') == rows
    (tmp_path / 'tables').mkdir()
    for name in ('part-0.parquet', 'part-1.csv'):
        (tmp_path / name).rename(tmp_path / 'tables' / name)
    run('folder', tmp_path / 'tables', *options)
    assert read(tmp_path / 'f.json') == rows
    assert 'no file fits the pattern' in refuse('folder', tmp_path / '*.csv', *options)
    (tmp_path / 'tables/part-1.csv').rename(tmp_path / 'tables/test.csv')
    (tmp_path / 'tables/part-0.parquet').rename(tmp_path / 'tables/train.parquet')
    assert 'files of the splits test, train: choose with --split' in refuse('folder', tmp_path / 'tables', *options)
    run('folder', tmp_path / 'tables', *options, '--split', 'train')
    assert read(tmp_path / 'f.json') == rows[:1]
    write(tmp_path / 'own/metadata.csv', 'image,caption\na.jpg,star\n')
    message = refuse('folder', tmp_path / 'own', '--out', tmp_path / 'f.json')
    assert f'if a table has the captions, give it, such as {tmp_path}/own/metadata.csv' in message


def test_lists_of_captions_in_a_table(tmp_path, capsys):
    jpeg(tmp_path / 'a.jpg')
    table = write(tmp_path / 't.csv', 'image,caption\na.jpg,"[""one"", ""two""]"\na.jpg,[music]\n')
    run('folder', table, '--out', tmp_path / 'f.json')
    assert [row['caption'] for row in read(tmp_path / 'f.json')] == ['one', 'two', '[music]']
    assert '1 x caption field with a list written as text, taken as captions' in capsys.readouterr().out


def test_torch_and_opencv_are_imported_only_where_they_are_needed():
    modules = 'dataset.prepare.own.folder, dataset.prepare.checking.check'
    program = f'import sys, {modules}; print({{"torch", "cv2"}} & set(sys.modules))'
    shown = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert shown.stdout == 'set()\n'
