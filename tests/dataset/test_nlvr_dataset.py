"""The datasets of NLVR2: augmentation, batches, labels, long statements."""

import os

import pytest
import torch

from dataset.nlvr_dataset import NLVRDataset, NLVREvalDataset
from tests.helpers import read_rows, write_rows
from tests.tiny import resolved
from utils.errors import InputError


@pytest.fixture
def settings_of(shapes, tokenizer, tmp_path):
    """A function from rows and settings to (configuration that trains and validates on them, tokenizer)."""

    def settings_of(rows, *settings):
        file = write_rows(tmp_path / 'rows.json', rows)
        return resolved('nlvr', shapes, f'train_file={file}', f'val_file={file}', *settings), tokenizer

    return settings_of


@pytest.fixture
def rows(shapes):
    return read_rows(shapes, 'nlvr_train')[:3]


def test_both_images_are_augmented_independently(rows, settings_of):
    rows[0]['images'][1] = rows[0]['images'][0]
    config, tokenizer = settings_of(rows, 'crop_scale=[0.2, 1.0]')
    data = NLVRDataset(config, tokenizer, seed=0)
    left, right = data[0, 0]['image']
    assert not torch.equal(left, right)
    assert torch.equal(data[0, 0]['image'], data[0, 0]['image'])
    assert not torch.equal(data[0, 0]['image'], data[1, 0]['image'])


def test_a_batch_is_the_left_images_then_the_right_ones(shapes, rows, settings_of):
    for row, label in zip(rows, ('True', False, True), strict=True):
        row['label'] = label
    config, tokenizer = settings_of(rows, 'crop_scale=[1, 1]', 'flip=false', 'randaugment=false')
    data = NLVRDataset(config, tokenizer, seed=0)
    batch = data.collate([data[0, i] for i in range(3)])
    assert batch['targets'].tolist() == [1, 0, 1] and batch['images'].shape == (6, 3, 32, 32)
    evaluated = NLVREvalDataset(config, 'val', tokenizer)
    other = evaluated.collate([evaluated[i] for i in range(3)])
    for i in range(3):
        for side in (0, 1):
            image = evaluated.transform(os.path.join(shapes, rows[i]['images'][side]))
            assert torch.equal(other['images'][3 * side + i], image)


@pytest.mark.parametrize('label', ['true', 1, '', 'Yes', 'TRUE'])
def test_any_other_label_is_refused_with_its_row(rows, settings_of, label):
    rows[2]['label'] = label
    message = r"""rows.json: row 2, .*: 'label' must be "True", "False" or a JSON boolean"""
    with pytest.raises(ValueError, match=message):
        NLVRDataset(*settings_of(rows), seed=0)


def test_training_rows_without_a_label_are_refused(rows, settings_of):
    rows[1]['label'] = None
    del rows[2]['label']
    message = 'rows.json: row 1 has no label, and 2 of 3 training rows have none; remove them'
    with pytest.raises(InputError, match=message):
        NLVRDataset(*settings_of(rows), seed=0)
    config, tokenizer = settings_of(rows)
    assert NLVREvalDataset(config, 'val', tokenizer).labelled.tolist() == [0]


def test_statements_keep_30_words_and_are_cut_in_tokens_only_at_the_last_position_embedding(rows, settings_of, capsys):
    rows[0]['sentence'] = ' '.join(['circle'] * 40)
    data = NLVRDataset(*settings_of(rows), seed=0)
    assert data.collate([data[0, 0]])['text'].input_ids.shape == (1, 31)  # [CLS] and 30 words
    rows[0]['sentence'] = ' '.join(['zzzzzzz'] * 40)  # a word of seven pieces
    data = NLVRDataset(*settings_of(rows, 'bert_config.max_position_embeddings=61'), seed=0)
    for _ in range(2):
        text = data.collate([data[0, 0]])['text']
        assert text.input_ids.shape == text.attention_mask.shape == (1, 61)
    assert capsys.readouterr().out.count('texts longer than 61 tokens are cut') == 1
