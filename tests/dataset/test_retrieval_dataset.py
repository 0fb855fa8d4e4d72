"""The datasets of retrieval: how images and captions are numbered, and how captions are cut."""

import json

import pytest

from dataset.retrieval_dataset import RetrievalEvalDataset, RetrievalTrainDataset
from tests.helpers import read_rows, write_rows
from tests.tiny import resolved


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
    rows = [{'image': image, 'caption': 'A Red circle!'}, {'image': image, 'caption': ['a blue star', 'red ' * 50]}]
    file = write_rows(tmp_path / 'rows.json', rows)
    data = RetrievalEvalDataset(resolved('retrieval', shapes, f'test_file={file}'), 'test', tokenizer)
    assert data.texts == ['a red circle', 'a blue star', ' '.join(['red'] * 30)]
    assert data.img2txt == {0: [0], 1: [1, 2]} and data.txt2img == {0: 0, 1: 1, 2: 1}
    assert data.tokens([0, 2]).attention_mask.sum(dim=1).tolist() == [4, 30]
