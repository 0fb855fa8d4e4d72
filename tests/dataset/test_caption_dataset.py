"""`PretrainDataset`: what an example depends on, and bad input."""

import pytest
import torch

from dataset.caption_dataset import PretrainDataset
from tests.helpers import read_rows, write_rows
from tests.tiny import resolved


@pytest.fixture
def dataset_of(shapes, tokenizer, tmp_path):
    """A function from rows to their training set."""

    def dataset_of(rows):
        file = write_rows(tmp_path / 'rows.json', rows)
        settings = (f'train_file={file}', 'crop_scale=[0.2, 1.0]')
        return PretrainDataset(resolved('pretrain', shapes, *settings), tokenizer, seed=0)

    return dataset_of


def test_examples_are_drawn_from_seed_epoch_and_index(shapes, dataset_of):
    rows = read_rows(shapes, 'pretrain')
    rows[3]['caption'] = ['a circle', 'a square', 'a star']
    data = dataset_of(rows)
    captions = {data[epoch, 3]['caption'] for epoch in range(20)}
    assert captions == {'a circle', 'a square', 'a star'}
    assert torch.equal(data[4, 3]['image'], data[4, 3]['image'])
    assert not torch.equal(data[4, 3]['image'], data[5, 3]['image'])
    batch = data.collate([data[0, i] for i in range(4)])
    assert batch['image'].shape == (4, 3, 32, 32) and batch['index'].tolist() == [0, 1, 2, 3]
    assert batch['text'].input_ids.shape == batch['text'].attention_mask.shape and not batch['bad']


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda rows: rows[5].update(caption=7), 'row 5'),
        (lambda rows: rows[5].update(caption=['a', 7]), 'row 5'),
        (lambda rows: rows[5].pop('image'), 'row 5'),
        (lambda rows: rows.clear(), 'rows.json'),
    ],
)
def test_bad_annotations_are_named_before_training(shapes, dataset_of, change, message):
    rows = read_rows(shapes, 'pretrain')
    change(rows)
    with pytest.raises(ValueError, match=message):
        dataset_of(rows)


def test_an_incorrect_image_root_is_named_before_training(shapes, dataset_of):
    with pytest.raises(FileNotFoundError, match='set image_root'):
        dataset_of([row | {'image': f'nowhere/{row["image"]}'} for row in read_rows(shapes, 'pretrain')])
