"""Files of benchmarks to choose captions: each layout, and what is refused with file, row and remedy."""

import json

import pytest

from dataset.choices import LAYOUTS, Picture, read_choices
from utils.errors import InputError, MissingFileError

BOX = {'bbox_x': 5, 'bbox_y': 7, 'bbox_w': 20, 'bbox_h': 10}
SUGARCREPE = {'filename': 'a.jpg', 'caption': 'A red cup.', 'negative_caption': 'A blue cup.'}
ARO = BOX | {'image_id': 12, 'true_caption': 'the cup is on the table', 'false_caption': 'the table is on the cup'}
WINOGROUND = {
    'id': 0,
    'image_0': 'ex_0_img_0',
    'image_1': 'ex_0_img_1',
    'caption_0': 'a cup on a table',
    'caption_1': 'a table on a cup',
    'tag': 'Noun',
    'secondary_tag': '',
    'collapsed_tag': 'Object',
    'num_main_preds': 1,
}
ROWS = {
    'sugarcrepe': SUGARCREPE,
    'aro': ARO | {'relation_name': 'on'},
    'order': {'image': 'a.jpg', 'caption_options': ['a b', 'b a', 'a a', 'b b', 'b']},
    'winoground': WINOGROUND,
    'choices': {'image': 'a.jpg', 'captions': ['a b', 'b a', 'c'], 'kind': 'size'},
}


@pytest.fixture
def root(tmp_path):
    """A folder of images, which are not read."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for name in ('a.jpg', 'b.jpg', '12.jpg', 'ex_0_img_0.png', 'ex_0_img_1.png'):
        (folder / name).touch()
    return folder


def write(path, rows, form='list'):
    text = '\n'.join(map(json.dumps, rows)) if form == 'lines' else json.dumps(rows)
    path.write_text(text)
    return str(path)


def test_sugarcrepe_is_an_object_of_rows_and_its_kind_the_file(tmp_path, root):
    rows = {'0': SUGARCREPE, '7': SUGARCREPE | {'filename': 'b.jpg'}}
    file = write(tmp_path / 'swap_att.json', rows)
    first, second = read_choices(file, str(root))
    assert first.pictures == (Picture(f'{root}/a.jpg'),) and first.captions == ('A red cup.', 'A blue cup.')
    assert (second.file, second.row, second.kind, second.place) == (file, '7', 'swap_att', f'{file}, row 7')
    assert read_choices(file, str(root), limit=1) == [first]


@pytest.mark.parametrize('form', ['list', 'lines'])
def test_aro_has_a_box_and_a_kind(tmp_path, root, form):
    rows = [
        ARO | {'relation_name': 'on'},
        ARO | {'image_path': 'a.jpg', 'attributes': ['red', 'round'], 'bbox_x': 1.6, 'bbox_y': -2},
        ARO,
    ]
    found = read_choices(write(tmp_path / 'relation.json', rows, form), str(root))
    assert [choice.kind for choice in found] == ['on', 'red / round', 'relation']
    assert found[0].pictures == (Picture(f'{root}/12.jpg', (5, 7, 25, 17)),)
    assert found[1].pictures == (Picture(f'{root}/a.jpg', (2, -2, 22, 8)),)
    assert found[0].captions == (ARO['true_caption'], ARO['false_caption'])


def test_winoground_has_two_pictures_and_two_captions(tmp_path, root):
    other = WINOGROUND | {'image_1': 'ex_0_img_1.png', 'collapsed_tag': None}
    first, second = read_choices(write(tmp_path / 'examples.jsonl', [WINOGROUND, other], 'lines'), str(root))
    assert first.pictures == second.pictures == (Picture(f'{root}/ex_0_img_0.png'), Picture(f'{root}/ex_0_img_1.png'))
    assert first.captions == ('a cup on a table', 'a table on a cup')
    assert (first.kind, second.kind) == ('Object', 'examples')


@pytest.mark.parametrize('form', ['list', 'lines'])
def test_order_and_our_own_layout_have_a_list_of_captions(tmp_path, root, form):
    (order,) = read_choices(write(tmp_path / 'coco_order.json', [ROWS['order']], form), str(root))
    assert order.captions == tuple(ROWS['order']['caption_options']) and order.kind == 'coco_order'
    rows = [ROWS['choices'], {'image': 'b.jpg', 'captions': ['x', 'y']}]
    own = read_choices(write(tmp_path / 'mine.json', rows, form), str(root))
    assert [(choice.kind, len(choice.captions)) for choice in own] == [('size', 3), ('mine', 2)]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_layout_is_that_of_the_first_row_and_can_be_named(tmp_path, root, layout):
    file = write(tmp_path / 'rows.json', [ROWS[layout]])
    assert read_choices(file, str(root)) == read_choices(file, str(root), layout)
    other = 'aro' if layout != 'aro' else 'order'
    with pytest.raises(
        InputError,
        match=f'rows.json, row 0, .*; correct or drop the row, or name another layout than {other} with --layout',
    ):
        read_choices(file, str(root), other)


@pytest.mark.parametrize(
    ('layout', 'change', 'message'),
    [
        ('sugarcrepe', {'caption': ...}, "has no 'caption'"),
        ('sugarcrepe', {'negative_caption': 5}, "'negative_caption' must be a non-empty string"),
        ('sugarcrepe', {'negative_caption': ' . '}, "the caption ' . ' has no word in it"),
        ('aro', {'image_id': ...}, "has no 'image_path'"),
        ('aro', {'bbox_w': ...}, "has no 'bbox_w'"),
        ('aro', {'bbox_w': 0}, 'its box is 0 x 10 pixels'),
        ('aro', {'bbox_x': 'five'}, "'bbox_x' must be a number of pixels"),
        ('aro', {'bbox_x': float('inf')}, "'bbox_x' must be a number of pixels"),
        ('order', {'caption_options': ['one']}, "'caption_options' must be a list of two or more strings"),
        ('order', {'image': ...}, "has no 'image' and no 'image_path'"),
        ('winoground', {'image_1': ''}, "'image_1' must be a non-empty string"),
        ('choices', {'captions': 'a b'}, "'captions' must be a list of two or more strings"),
        ('choices', {'kind': 3}, "'kind' must be a string"),
    ],
)
def test_a_bad_row_is_named(tmp_path, root, layout, change, message):
    bad = {key: value for key, value in (ROWS[layout] | change).items() if value is not ...}
    file = write(tmp_path / 'rows.json', [ROWS[layout], bad])
    with pytest.raises(InputError) as error:
        read_choices(file, str(root))
    text = str(error.value)
    assert text.startswith(f'{file}, row 1, {{') and message in text and '\n' not in text


def test_a_file_of_no_known_layout_is_refused(tmp_path, root):
    rows = {
        'a.json': [{'image': 'a.jpg', 'caption': 'x'}],
        'b.json': [ROWS['choices'] | ROWS['order']],
        'c.json': {'info': {}, 'images': []},
        'd.json': {'images': []},
        'e.json': [3],
    }
    for name, content in rows.items():
        with pytest.raises(InputError, match=f'{name}: its first row, .*; the layouts are sugarcrepe .*--layout'):
            read_choices(write(tmp_path / name, content), str(root))
    with pytest.raises(InputError, match='f.json, row 1, .*: is a int, where every row must be'):
        read_choices(write(tmp_path / 'f.json', [ROWS['choices'], 3]), str(root))
    with pytest.raises(MissingFileError, match='gone.json does not exist'):
        read_choices(str(tmp_path / 'gone.json'), str(root))
    for name, text in (('g.json', '[{"image":'), ('h.json', '{"0": {"filename"'), ('i.json', '')):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name):
            read_choices(str(tmp_path / name), str(root))


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_missing_image_is_named_with_its_row(tmp_path, root, layout):
    row = ROWS[layout]
    key = next(key for key in ('filename', 'image', 'image_1', 'image_id') if key in row)
    gone = row | {key: 99 if layout == 'aro' else 'gone.png'}
    file = write(tmp_path / 'rows.json', [row, gone])
    with pytest.raises(MissingFileError) as error:
        read_choices(file, str(root))
    name = '99.jpg' if layout == 'aro' else 'gone.png'
    assert str(error.value).startswith(f'{file}, row 1: there is no image {root}/{name}; set --image_root to')
    assert len(read_choices(file, str(root), limit=1)) == 1  # what is not evaluated need not exist
