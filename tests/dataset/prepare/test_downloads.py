"""Which downloaded image belongs to which row: tables of img2dataset, the .json and .txt beside images, TSV files."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from dataset.prepare.common import Summary
from dataset.prepare.releases.web import read_tsv
from tests.dataset.prepare.tools import read, refuse, run, write
from utils.errors import InputError


def urls_of(split: str, count: int = 6) -> list[str]:
    return [f'http://e.org/{split}/{row}x.jpg' for row in range(count)]


def table_file(path, urls: list[str], failed: tuple[int, ...] = (), **columns) -> None:
    """A table of img2dataset beside its shard's folder."""
    keys = [f'{row:09d}' for row in range(len(urls))]
    status = ['failed_to_download' if row in failed else 'success' for row in range(len(urls))]
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({'url': urls, 'key': keys, 'status': status} | columns), path)
    for row, key in enumerate(keys):
        if row not in failed:
            (path.with_suffix('') / f'{key}.jpg').parent.mkdir(exist_ok=True)
            (path.with_suffix('') / f'{key}.jpg').touch()


def tsv_file(path, urls: list[str]) -> str:
    return write(path, ''.join(f'caption {row}\t{url}\n' for row, url in enumerate(urls)))


def test_a_key_names_a_file_of_its_own_shard(tmp_path):
    """Two downloads side by side have the same keys."""
    table_file(tmp_path / 'cc/train/00000.parquet', urls_of('train'), failed=(3,))
    table_file(tmp_path / 'cc/val/00000.parquet', urls_of('val'), failed=(1, 2))
    tsv = tsv_file(tmp_path / 't.tsv', urls_of('train'))
    run('cc3m', tsv, '--images', tmp_path / 'cc', '--out', tmp_path / 'o.json')
    assert read(tmp_path / 'o.json') == [
        {'image': f'train/00000/{row:09d}.jpg', 'caption': f'caption {row}'} for row in (0, 1, 2, 4, 5)
    ]


def test_a_table_without_a_folder_of_its_own(tmp_path):
    table_file(tmp_path / 'cc/00000.parquet', urls_of('train'), failed=(2,))
    (tmp_path / 'cc/00000').rename(tmp_path / 'cc/images')
    (tmp_path / 'cc/other').mkdir()
    (tmp_path / 'cc/other/000000004.jpg').touch()  # two files have the name of row 4
    tsv = tsv_file(tmp_path / 't.tsv', urls_of('train'))
    run('cc3m', tsv, '--images', tmp_path / 'cc', '--out', tmp_path / 'o.json')
    assert [row['caption'] for row in read(tmp_path / 'o.json')] == [f'caption {row}' for row in (0, 1, 3, 5)]


@pytest.mark.parametrize('wrong', ['url', 'text'])
def test_what_is_beside_an_image_contradicts_a_wrong_numbering(tmp_path, wrong):
    """Image 000000003.jpg is that of row 4, as its .json or .txt says."""
    tsv = tsv_file(tmp_path / 't.tsv', urls_of('train'))
    for row in range(1, 6):
        stem = tmp_path / f'i/{row - 1:09d}'
        write(stem.with_suffix('.jpg'), '')
        if wrong == 'url':
            write(stem.with_suffix('.json'), {'url': urls_of('train')[row], 'caption': f'caption {row}'})
        else:
            write(stem.with_suffix('.txt'), f'caption {row}')
    command = ['cc3m', tsv, '--images', tmp_path / 'i', '--out', tmp_path / 'o.json']
    message = refuse(*command)
    assert f'{tmp_path}/i/000000000.{"json" if wrong == "url" else "txt"} is of ' in message and 'row 0' in message
    for row in range(1, 6):
        (tmp_path / f'i/{row - 1:09d}.jpg').rename(tmp_path / f'i/{row:09d}.png')
        for ending in ('json', 'txt'):
            if (file := tmp_path / f'i/{row - 1:09d}.{ending}').exists():
                file.rename(tmp_path / f'i/{row:09d}.{ending}.new')
    for file in (tmp_path / 'i').glob('*.new'):
        file.rename(file.with_suffix(''))
    run(*command)
    assert [row['caption'] for row in read(tmp_path / 'o.json')] == [f'caption {row}' for row in range(1, 6)]


def test_other_texts_beside_images_say_nothing(tmp_path):
    tsv = tsv_file(tmp_path / 't.tsv', urls_of('train'))
    for row in range(6):
        write(tmp_path / f'i/{row}.jpg', '')
        write(tmp_path / f'i/{row}.txt', f'a new caption {row}')
        write(tmp_path / f'i/{row}.json', 'not JSON' if row else {'url': None})
    run('cc3m', tsv, '--images', tmp_path / 'i', '--out', tmp_path / 'o.json')
    assert len(read(tmp_path / 'o.json')) == 6


def test_two_downloads_without_tables_are_refused_in_every_reading(tmp_path):
    for split in ('train', 'val'):
        for row in (0, 2, 5):
            write(tmp_path / f'i/{split}/{row:09d}.jpg', '')
    command = [
        'cc3m',
        tsv_file(tmp_path / 't.tsv', urls_of('train')),
        '--images',
        tmp_path / 'i',
        '--out',
        tmp_path / 'o.json',
    ]
    assert 'rename the folders' in refuse(*command)
    assert 'give the folder of one of them with --images' in refuse(*command, '--per-folder', 0)


@pytest.mark.parametrize(
    ('text', 'pairs'),
    [
        ('a\thttp://e.org/1\nb\thttp://e.org/2\n', [('http://e.org/1', 'a'), ('http://e.org/2', 'b')]),
        ('http://e.org/1\ta\n', [('http://e.org/1', 'a')]),
        ('caption\turl\na\thttp://e.org/1\n', [('http://e.org/1', 'a')]),
        ('URL\tTEXT\r\nHTTP://e.org/1\ta\r\n', [('HTTP://e.org/1', 'a')]),
        ('a\t\nb\thttp://e.org/2\n', [('', 'a'), ('http://e.org/2', 'b')]),  # no heading: the URL is missing
        ('a\tftp://e.org/1\nb\thttp://e.org/2\n', [('', 'a'), ('http://e.org/2', 'b')]),
        ('"a ""big"" dog"\t"http://e.org/1"\n', [('http://e.org/1', 'a "big" dog')]),
        ('"a" dog\thttp://e.org/1\n', [('http://e.org/1', '"a" dog')]),
        ('http://e.org/1\thttp://e.org/2\n', [('http://e.org/2', 'http://e.org/1')]),
    ],
)
def test_lines_of_captions_and_urls(tmp_path, text, pairs):
    assert read_tsv(write(tmp_path / 't.tsv', text), None, Summary('')) == pairs


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('\turl\tcaption\n0\thttp://e.org/1\ta\n', 'line 1 has 3 columns'),  # pandas writes the index
        ('a\thttp://e.org/1\n1\tb\thttp://e.org/2\n', 'line 2 has 3 columns'),
        ('caption\turl\na\tb\n', 'has no caption<TAB>URL lines'),
    ],
)
def test_tables_of_other_columns_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_tsv(write(tmp_path / 't.tsv', text), None, Summary(''))


def test_no_command_overwrites_its_input(tmp_path):
    rows = [{'image': 'a.jpg', 'caption': 'x'}]
    write(tmp_path / 'a.jpg', '')
    own = write(tmp_path / 'own.json', rows)
    regions = write(tmp_path / 'r.json', [{'id': 1, 'regions': [{'phrase': 'x'}]}])
    images = write(tmp_path / 'i.json', [{'image_id': 1, 'url': 'http://x/VG_100K/1.jpg'}])
    coco = write(
        tmp_path / 'coco.json',
        {'images': [{'file_name': 'a.jpg', 'id': 1}], 'annotations': [{'image_id': 1, 'caption': 'x'}]},
    )
    (tmp_path / 'link.json').symlink_to(own)
    for command in (
        ['folder', own, '--out', own],
        ['folder', own, '--out', tmp_path / 'link.json'],
        ['folder', own, '--exclude', regions, '--out', regions],
        ['vg', regions, images, '--out', images],
        ['coco', coco, '--out', tmp_path],
    ):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert 'is an input of the command' in refuse(*command) or command[0] == 'folder'
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert json.loads((tmp_path / 'own.json').read_text()) == rows


def test_marks_of_missing_values_are_no_captions(tmp_path, capsys):
    marks = ['NA', 'NaN', '\\N', 'NULL', 'None']
    rows = [{'file_name': f'{n}.jpg', 'id': n} for n in range(len(marks) + 1)]
    captions = [*marks, 'None of the dogs']
    data = {'images': rows, 'annotations': [{'image_id': n, 'caption': text} for n, text in enumerate(captions)]}
    run('coco', write(tmp_path / 'c.json', data), '--out', tmp_path / 'o')
    assert [row['caption'] for row in read(tmp_path / 'o/coco.json')] == ['None of the dogs']
    assert "1 x caption 'NA', the mark of a missing value" in capsys.readouterr().out


def test_folders_of_coco_images(tmp_path):
    cases = {
        'COCO_val2014_000000000042.jpg': ('', 'val2014/COCO_val2014_000000000042.jpg'),
        '000000000042.jpg': ('http://images.cocodataset.org/val2017/000000000042.jpg', 'val2017/000000000042.jpg'),
        'val2017/000000000043.jpg': (
            'http://images.cocodataset.org/val2017/000000000043.jpg',
            'val2017/000000000043.jpg',
        ),
        'my.jpg': ('https://labels.com/exports/8812/my.jpg', 'my.jpg'),
        'COCO_own.jpg': (None, 'COCO_own.jpg'),
    }
    for name, (url, path) in cases.items():
        data = {
            'images': [{'file_name': name, 'id': 1, 'coco_url': url}],
            'annotations': [{'image_id': 1, 'caption': 'x'}],
        }
        file = write(tmp_path / 'c.json', data)
        run('coco', file, '--out', tmp_path / 'o')
        assert read(tmp_path / 'o/coco.json')[0]['image'] == path
    assert 'is in two of the files' in refuse('coco', file, file, '--out', tmp_path / 'o')
    assert 'is absolute: leave the prefix out' in refuse(
        'coco',
        write(tmp_path / 'c.json', data | {'images': [{'file_name': '/a/b.jpg', 'id': 1}]}),
        '--image-prefix',
        'coco',
        '--out',
        tmp_path / 'o',
    )


def test_statements_of_one_identifier(tmp_path, capsys):
    one = {'identifier': 'dev-1-0-0', 'sentence': 'x', 'label': 'True'}

    def lines(*rows):
        return write(tmp_path / 'dev.json', '\n'.join(map(json.dumps, rows)))

    run('nlvr2', lines(one, one), '--out', tmp_path / 'o')
    assert len(read(tmp_path / 'o/nlvr_dev.json')) == 1
    assert '1 x statement that is there twice' in capsys.readouterr().out
    message = refuse('nlvr2', lines(one, one | {'label': 'False'}), '--out', tmp_path / 'o')
    assert "row 1 has the identifier 'dev-1-0-0' of another statement" in message
    unlabelled = {'identifier': 'test1-1-0-0', 'sentence': 'x'}
    run('nlvr2', lines(unlabelled), '--out', tmp_path / 'o')
    assert 'label' not in read(tmp_path / 'o/nlvr_test.json')[0]


def test_a_question_and_its_annotation_are_about_one_image(tmp_path):
    questions = {'data_subtype': 'val2014', 'questions': [{'image_id': 9, 'question': 'W?', 'question_id': 1}]}
    annotation = {'question_id': 1, 'image_id': 8, 'answers': [{'answer': 'x'}], 'multiple_choice_answer': 'x'}
    files = [write(tmp_path / 'q.json', questions), write(tmp_path / 'a.json', {'annotations': [annotation]})]
    assert 'is about image 8, the question about val2014/COCO_val2014_000000000009.jpg' in refuse(
        'vqa', *files, '--out', tmp_path / 'o'
    )
