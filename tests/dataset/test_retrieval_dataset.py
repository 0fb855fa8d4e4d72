"""The datasets of retrieval: how images and captions are numbered, and how captions are cut."""

import json

import pytest
import torch

from dataset.retrieval_dataset import RetrievalEvalDataset, RetrievalTrainDataset
from tests.helpers import read_rows, write_rows
from tests.tiny import resolved
from utils.errors import InputError


@pytest.fixture
def image(shapes):
    return read_rows(shapes, 'retrieval_test')[0]['image']


def test_images_are_numbered_by_first_appearance_over_all_files(shapes, tokenizer, image, tmp_path):
    files = [
        write_rows(tmp_path / f'{n}.json', [{'image': image, 'caption': 'A red circle.', 'image_id': i} for i in ids])
        for n, ids in enumerate([['b', 'a', 'b', 7], [7, 'c', '7']])
    ]
    data = RetrievalTrainDataset(resolved('retrieval', shapes, f'train_file={json.dumps(files)}'), tokenizer, 0)
    assert data.idx.tolist() == [0, 1, 0, 2, 2, 3, 4]
    batch = data.collate([data[0, i] for i in (5, 2)])
    assert batch['idx'].tolist() == [3, 0] and batch['image'].shape == (2, 3, 32, 32)
    assert batch['text'].input_ids.shape == (2, 4)  # [CLS] a red circle


def test_captions_of_a_split(shapes, tokenizer, image, tmp_path):
    """A string is one caption; long texts are cut at 30 words and 30 tokens."""
    other = read_rows(shapes, 'retrieval_test')[1]['image']
    rows = [{'image': image, 'caption': 'A Red circle!'}, {'image': other, 'caption': ['a blue star', 'red ' * 50]}]
    file = write_rows(tmp_path / 'rows.json', rows)
    data = RetrievalEvalDataset(resolved('retrieval', shapes, f'test_file={file}'), 'test', tokenizer)
    assert data.texts == ['a red circle', 'a blue star', ' '.join(['red'] * 30)]
    assert data.img2txt == {0: [0], 1: [1, 2]} and data.txt2img == {0: 0, 1: 1, 2: 1}
    assert data.tokens([0, 2]).attention_mask.sum(dim=1).tolist() == [4, 30]


def test_rows_of_one_image_are_one_image(shapes, tokenizer, tmp_path, capsys):
    """Where its first row is, with the captions of all, equal ones included; however its path is written."""
    paths = [row['image'] for row in read_rows(shapes, 'retrieval_test')[:3]]
    order = [paths[1], paths[0], f'./{paths[1]}', paths[2], paths[0], f'{shapes}/images/../{paths[1]}']
    rows = [{'image': path, 'caption': text} for path, text in zip(order, 'abcdbc', strict=True)]
    rows[4]['caption'] = ['b', 'e']
    files = [write_rows(tmp_path / 'one.json', rows[:2]), write_rows(tmp_path / 'two.json', rows[2:])]
    config = resolved('retrieval', shapes, f'test_file={json.dumps(files)}', 'on_bad_image=error')
    data = RetrievalEvalDataset(config, 'test', tokenizer)
    assert capsys.readouterr().out == 'test_file: 6 rows name 3 images; those of one image are merged\n'
    assert len(data) == 3 and [data.path(i) for i in range(3)] == [f'{shapes}/{paths[i]}' for i in (1, 0, 2)]
    assert data.texts == ['a', 'c', 'c', 'b', 'b', 'e', 'd']
    assert data.img2txt == {0: [0, 1, 2], 1: [3, 4, 5], 2: [6]}
    assert data.txt2img == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 2}
    assert [data[i]['index'] for i in range(3)] == [0, 1, 2]
    assert torch.equal(data[2]['image'], data.transform(f'{shapes}/{paths[2]}'))
    rows[3]['image'] = 'images/gone.jpg'
    write_rows(tmp_path / 'two.json', rows[2:])
    with pytest.raises(InputError, match='two.json, row 1: .*gone.jpg'):
        RetrievalEvalDataset(config, 'test', tokenizer)[2]


def test_a_file_with_one_row_for_each_image_is_as_it_was(shapes, tokenizer, capsys):
    rows = read_rows(shapes, 'retrieval_test')
    data = RetrievalEvalDataset(resolved('retrieval', shapes), 'test', tokenizer)
    assert capsys.readouterr().out == '' and len(data) == len(rows)
    assert data.rows == list(range(len(rows)))
    assert data.img2txt == {i: [3 * i, 3 * i + 1, 3 * i + 2] for i in range(len(rows))}


def test_coco_ids_follow_images_and_texts(shapes, tokenizer, tmp_path):
    """Also if rows of an image are apart; the first row without them is named."""
    one, two = (row['image'] for row in read_rows(shapes, 'retrieval_test')[:2])
    rows = [
        {'image': one, 'caption': ['a', 'b'], 'image_id': 50, 'caption_ids': [9, 7]},
        {'image': two, 'caption': 'c', 'image_id': 40, 'caption_ids': [8]},
        {'image': f'./{one}', 'caption': ['d'], 'image_id': 50, 'caption_ids': [3]},
    ]

    def ids(rows):
        config = resolved('retrieval', shapes, f'test_file={write_rows(tmp_path / "rows.json", rows)}')
        data = RetrievalEvalDataset(config, 'test', tokenizer)
        return data.texts, data.coco_ids()

    assert ids(rows) == (['a', 'b', 'd', 'c'], ([50, 40], [9, 7, 3, 8]))
    for change in ({'caption_ids': [3, 4]}, {'caption_ids': None}, {'image_id': None}, {'image_id': 'coco_50'}):
        with pytest.raises(InputError, match="rows.json, row 2: it lacks COCO's ids .*`python -m dataset.prepare coco"):
            ids([*rows[:2], rows[2] | change])
