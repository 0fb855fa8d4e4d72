"""JSON lists and JSON Lines are told apart by their content; what is neither is refused with the remedy."""

import gzip
import json

import pytest

from dataset.annotations import load_annotations
from dataset.annotations.json_reader import layout, open_annotations
from utils.errors import InputError

ROWS = [{'image': f'{number}.jpg', 'caption': 'ein Bär'} for number in range(3)]
LINES = '\n'.join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize('name', ['a.json', 'a.jsonl', 'a.JSONL', 'a.ndjson', 'a'])
@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf', b'\n \r\n'])
@pytest.mark.parametrize(
    'text', [LINES, f'{LINES}\n\n', LINES.replace('\n', '\r\n'), json.dumps(ROWS), json.dumps(ROWS, indent=1)]
)
def test_the_content_says_how_a_file_is_written(tmp_path, name, mark, text):
    (tmp_path / name).write_bytes(mark + text.encode())
    assert [row['image'] for row in load_annotations(str(tmp_path / name), 'pretrain')] == ['0.jpg', '1.jpg', '2.jpg']


@pytest.mark.parametrize(
    ('name', 'data', 'message'),
    [
        ('a.json', gzip.compress(LINES.encode(), mtime=0), 'is gzip data, not text: unpack it'),
        ('a.json.gz', gzip.compress(b'[]', mtime=0), 'is gzip data'),
        ('a.json', b'PK\x03\x04', 'is a zip archive'),
        ('a.json', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull'),
        ('a.json', LINES.encode('utf-16'), 'is UTF-16 or UTF-32 text: convert it to UTF-8'),
        ('a.json', LINES.encode('utf-32'), 'is UTF-16 or UTF-32 text'),
        ('a.json', json.dumps(ROWS[0]).encode(), 'give JSON Lines a name that ends in .jsonl'),
        ('a.json', json.dumps({'images': ROWS}, indent=1).encode(), 'must be a JSON list of objects'),
        ('a.json', b'image,caption\n', 'must be a JSON list of objects'),
        ('a.json', LINES.encode('latin-1'), 'is not UTF-8 text'),
        ('a.json', LINES.replace('}', '', 1).encode(), 'must be a JSON list of objects'),
        ('a.json', LINES.encode()[:-5], 'is cut off in its last line: line 3'),
    ],
)
def test_what_is_neither_is_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_annotations(str(tmp_path / name), 'pretrain')


def test_one_object_is_a_row_if_the_name_says_so(tmp_path):
    for name, form in (('a.jsonl', 'lines'), ('a.json', 'object')):
        (tmp_path / name).write_text(json.dumps(ROWS[0]))
        with open_annotations(str(tmp_path / name)) as handle:
            assert layout(handle, name) == form


def test_integers_of_any_size_are_read(tmp_path):
    row = {'image': 'a.jpg', 'caption': 'x', 'image_id': 2**70}
    (tmp_path / 'a.json').write_text(json.dumps([row]))
    assert load_annotations(str(tmp_path / 'a.json'), 'retrieval_train')[0] == row
