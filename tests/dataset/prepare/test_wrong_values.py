"""Releases in which any value is replaced by a wrong one: one clear line, or a count, and never the caption "None"."""

import copy
import json
from collections.abc import Iterator

import pytest

from dataset.prepare.entries import Entry
from tests.dataset.prepare.tools import read, refuse, run, write
from utils.errors import InputError

WRONG = (None, '', ' ', 3, -1, 2.5, True, [], {}, 'x', ['x'], {'x': 1}, [None], 'http://a.org/1.jpg', '9' * 5000)
URL = 'http://images.org/VG_100K/1.jpg'

RELEASES = {
    'coco': [
        {
            'images': [
                {
                    'file_name': '000000000001.jpg',
                    'coco_url': 'http://x.org/train2017/1.jpg',
                    'id': 1,
                    'flickr_url': 'x',
                }
            ],
            'annotations': [{'image_id': 1, 'caption': 'x'}],
        }
    ],
    'karpathy': [
        {
            'images': [
                {
                    'filename': '1.jpg',
                    'filepath': 'train2014',
                    'cocoid': 1,
                    'split': 'train',
                    'sentences': [{'raw': 'x'}],
                }
            ]
        }
    ],
    'vg': [
        [
            {
                'id': 1,
                'regions': [{'phrase': 'a dog', 'width': 3, 'height': 4}, {'phrase': 'a cat', 'width': 2, 'height': 1}],
            }
        ],
        [{'image_id': 1, 'url': URL, 'coco_id': 9, 'flickr_id': 1234567}],
    ],
    'sbu': [{'image_urls': ['http://a.org/1.jpg', 'http://a.org/2.jpg'], 'captions': ['x', 'y']}],
    'nlvr2': [[{'identifier': 'train-1-0-0', 'sentence': 'x', 'label': 'True', 'directory': 4}]],
}


def damaged(value: object) -> Iterator[object]:
    """The value with each of its parts replaced by each wrong one, or left out."""
    yield from WRONG
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for other in damaged(part):
            changed = copy.deepcopy(value)
            changed[key] = other
            yield changed
        if isinstance(value, dict):
            yield {name: part for name, part in value.items() if name != key}


@pytest.mark.parametrize('release', RELEASES)
def test_any_wrong_value_is_refused_or_counted(tmp_path, release):
    (tmp_path / 'i').mkdir()
    for name in ('1.jpg', '2.jpg'):
        (tmp_path / 'i' / name).touch()
    command = {'karpathy': 'coco'}.get(release, release)
    options = {'sbu': ['--images', tmp_path / 'i'], 'vg': ['--largest', 1]}.get(release, [])
    contents, out = RELEASES[release], tmp_path / ('o' if command in ('coco', 'nlvr2') else 'o.json')
    written = refused = 0
    for number, content in enumerate(contents):
        for other in damaged(content):
            files = [
                write(tmp_path / f'{index}.json', other if index == number and other != content else whole)
                for index, whole in enumerate(contents)
            ]
            if number < len(files) and isinstance(other, str):
                write(tmp_path / f'{number}.json', json.dumps(other))
            try:
                run(command, *files, *options, '--out', out)
            except InputError as error:
                message = str(error)
                assert str(tmp_path) in message and '\n' not in message
                refused += 1
                continue
            written += 1
            for path in [out] if out.suffix else out.iterdir():
                assert 'None' not in path.read_text()
                path.unlink()
    assert written and refused > written / 10


def test_an_error_says_where_a_value_stands(tmp_path):
    regions = write(tmp_path / 'r.json', [{'id': 1, 'regions': []}, {'id': 2, 'regions': [{'phrase': 'x'}, 7]}])
    images = write(tmp_path / 'i.json', [{'image_id': 1, 'url': URL}, {'image_id': 2, 'url': URL}])
    message = refuse('vg', regions, images, '--out', tmp_path / 'o.json')
    assert message.startswith(f'{regions}: image 1, region 1 is 7, not an object')
    message = refuse(
        'vg', write(tmp_path / 'r.json', [{'id': 1, 'regions': None}]), images, '--out', tmp_path / 'o.json'
    )
    assert message.startswith(f"{regions}: 'regions' in image 0 is null: correct it")


def test_an_url_without_a_folder_is_no_folder(tmp_path):
    for url in ('', None, 'x', 'http://images.org', 'http://images.org/1.jpg', 5):
        data = {
            'images': [{'file_name': 'a.jpg', 'coco_url': url, 'id': '1'}],
            'annotations': [{'image_id': 1, 'caption': 'x'}],
        }
        run('coco', write(tmp_path / 'c.json', data), '--out', tmp_path)
        assert read(tmp_path / 'coco.json') == [{'image': 'a.jpg', 'caption': 'x'}]


def test_what_does_not_fit_together_is_counted(tmp_path, capsys):
    data = {
        'images': [{'file_name': 'a.jpg', 'id': 1}, {'file_name': 'b.jpg', 'id': 2}],
        'annotations': [{'image_id': 1, 'caption': 'x'}, {'image_id': 7, 'caption': 'y'}],
    }
    run('coco', write(tmp_path / 'c.json', data), '--out', tmp_path)
    shown = capsys.readouterr().out
    assert '1 x caption of an image that is not listed, the first:' in shown and '1 x image without a caption' in shown
    data['images'][1]['id'] = 1
    assert 'has the id 1 of an image before it' in refuse('coco', write(tmp_path / 'c.json', data), '--out', tmp_path)
    entry = {'filename': '1.jpg', 'split': 'training', 'sentences': [{'raw': 'x'}]}
    images = {'images': [entry, entry | {'split': 'test'}]}
    run('flickr30k', write(tmp_path / 'k.json', images), '--out', tmp_path)
    assert "image of another split than train, restval, val, test, the first: image 0, split 'training'" in (
        capsys.readouterr().out
    )


def test_fields_of_an_entry():
    entry = Entry({'text': 'x', 'number': '07', 'none': None, 'list': [{'a': 1}, 2], 'flag': True}, 'f.json', 'row 3')
    assert (entry.text('text'), entry.integer('number'), entry.identity('none', 'number')) == ('x', 7, '07')
    assert 'none' not in entry and 'absent' not in entry and 'flag' in entry
    for read_field, message in (
        (
            lambda: entry.text('number', 'text') and entry.text('flag'),
            "f.json: 'flag' in row 3 is True, not a non-empty",
        ),
        (lambda: entry.integer('flag'), "'flag' in row 3 is True, not an integer"),
        (lambda: entry.integer('none'), "'none' in row 3 is null: correct"),
        (lambda: entry.list('absent', 'other'), "f.json has no 'absent' in row 3"),
        (lambda: list(entry.entries('list', 'item')), 'f.json: row 3, item 1 is 2, not an object'),
    ):
        with pytest.raises(InputError) as caught:
            read_field()
        assert message in str(caught.value)
