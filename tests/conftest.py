"""Fixtures of several test files: the ids of the tiny reference models, the small synthetic dataset, a checkpoint that
was pre-trained on it.
"""

import os
from types import SimpleNamespace

import pytest
import torch

os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(1)


@pytest.fixture(scope='session')
def tiny_tokenizer():
    """The ids that the tiny reference models were made with; `create_model` reads nothing else of a tokenizer."""
    return SimpleNamespace(pad_token_id=0, cls_token_id=2, mask_token_id=3)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """The folder of a small synthetic dataset: 62 training scenes, so that batches never divide them."""
    from dataset.shapes import make_dataset

    folder = tmp_path_factory.mktemp('shapes')
    make_dataset(folder, 0, {'train': 62, 'val': 12, 'test': 13})
    return folder


@pytest.fixture(scope='session')
def tokenizer(shapes):
    """The tokenizer of the synthetic dataset."""
    from models.tokenization_bert import create_tokenizer

    return create_tokenizer(f'{shapes}/vocab')


@pytest.fixture(scope='session')
def pretrained(shapes, tmp_path_factory):
    """The path of a checkpoint that Pretrain.py wrote after two tiny epochs."""
    import Pretrain
    from tests.tiny import arguments

    output = tmp_path_factory.mktemp('pretrained')
    Pretrain.main(arguments('pretrain', shapes, output))
    return output / 'checkpoint_01.pth'
