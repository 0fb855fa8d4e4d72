"""`PretrainDataset`: what an example depends on, and bad input."""

import pytest
import torch

from dataset.caption_dataset import PretrainDataset
from dataset.loader import move_batch
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


def test_batches_name_the_images_of_which_a_text_is_true(shapes, dataset_of):
    rows = read_rows(shapes, 'pretrain')[:12]
    rows[1]['also_true_of'] = [rows[i]['image'] for i in (5, 0, 7)]
    rows[4]['also_true_of'] = [rows[9]['image']]
    rows[6]['also_true_of'] = []
    data = dataset_of(rows)
    for listed, longest in (([0, 1, 4, 6], 4), ([4, 2], 2), ([0, 6, 2], 1)):
        batch = move_batch(data.collate([data[0, i] for i in listed]), torch.device('cpu'))
        assert batch['true_of'].shape == (len(listed), longest) and batch['true_of'].dtype == torch.int64
        for i, own, keys in zip(listed, batch['image_key'].tolist(), batch['true_of'].tolist(), strict=True):
            others = [data.key(path) for path in rows[i].get('also_true_of', [])]
            assert keys == [own, *others, *[own] * (longest - 1 - len(others))]


def test_an_image_has_one_key_however_its_path_is_written(shapes, dataset_of):
    row = read_rows(shapes, 'pretrain')[0]
    keys = dataset_of([row]).key
    path = row['image']
    assert keys(path) == keys(f'./{path}') == keys(f'images/../{path}') == keys(f'{shapes}/{path}') != keys('other.jpg')


def test_batches_without_truth_have_no_such_key(shapes, dataset_of):
    rows = read_rows(shapes, 'pretrain')[:4]
    rows[0]['caption'] = '"also_true_of"'
    rows[1]['also_true_of'] = None
    data = dataset_of(rows)
    assert 'true_of' not in data[0, 0] and 'true_of' not in data.collate([data[0, i] for i in range(4)])


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda rows: rows[5].update(caption=7), 'row 5'),
        (lambda rows: rows[5].update(caption=['a', 7]), 'row 5'),
        (lambda rows: rows[5].pop('image'), 'row 5'),
        (lambda rows: rows[5].update(also_true_of=['']), "row 5, .*: 'also_true_of' must be a list of the paths"),
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
