"""`[CLS] X` without `[SEP]`, as the official tokenizer emits it."""

import json
import pickle

import huggingface_hub.constants
import pytest
import torch

from models.tokenization_bert import create_tokenizer, pack_tokenizer, unpack_tokenizer
from models.weight_files import weights_folder
from tests.reference import load_json
from utils.errors import InputError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """bert-base-uncased's vocabulary as far as the reference texts need it: the other lines are words that never
    occur."""
    words = [f'[never{i}]' for i in range(30522)]
    for word, i in load_json('vocabulary').items():
        words[i] = word
    folder = tmp_path_factory.mktemp('vocabulary')
    (folder / 'vocab.txt').write_text('\n'.join(words) + '\n', encoding='utf-8')
    return folder


def test_ids_are_the_official_ones(folder):
    tokenizer = create_tokenizer(str(folder))
    for row in load_json('tokens'):
        assert tokenizer(row['text'], max_length=25, truncation=True).input_ids == row['ids'], row['text']


def test_batches_are_padded_without_a_network(folder):
    tokenizer = pickle.loads(pickle.dumps(create_tokenizer(str(folder))))  # as a spawned worker gets it
    tokens = tokenizer(['a car', 'bus', ''], padding='longest', return_tensors='pt')
    assert tokens.input_ids[:, 0].tolist() == [101] * 3
    assert torch.equal(tokens.attention_mask.sum(dim=1), torch.tensor([3, 2, 1]))
    assert tokenizer.pad_token_id == 0 and (tokens.input_ids[tokens.attention_mask == 0] == 0).all()
    assert weights_folder(str(folder)) is None


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='it has neither vocab.txt nor tokenizer.json'):
        create_tokenizer(str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(
        FileNotFoundError, match='--text_encoder no/such-model: no such folder, and the tokenizer could'
    ):
        create_tokenizer('no/such-model')


@pytest.mark.parametrize(
    'files, message',
    [
        ({'vocab.txt': b''}, r'lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]; give the vocabulary of a BERT'),
        ({'vocab.txt': b'[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n'}, r'its vocabulary lacks \[MASK\]'),
        ({'vocab.txt': b'[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n'}, 'line 6 of vocab.txt occurs again'),
        ({'vocab.txt': bytes(range(256))}, r'its tokenizer files cannot be read \(.*UTF-8'),
        ({'tokenizer.json': b'{"a": '}, 'its tokenizer files cannot be read'),
        ({'tokenizer.json': b'{}'}, 'its tokenizer files cannot be read'),
        ({'tokenizer.json': b'[1]', 'vocab.txt': b'[PAD]\n'}, 'its tokenizer files cannot be read'),
        ({'tokenizer_config.json': b'{', 'vocab.txt': b'[PAD]\n'}, 'its tokenizer files cannot be read'),
        ({}, 'it has neither vocab.txt nor tokenizer.json'),
    ],
)
def test_a_damaged_vocabulary_is_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f'--text_encoder {tmp_path}: .*{message}'):
        create_tokenizer(str(tmp_path))


def test_a_file_or_a_folder_instead_of_a_vocabulary_is_named(tmp_path):
    (tmp_path / 'vocab.txt').mkdir()
    with pytest.raises(InputError, match='it has neither vocab.txt nor tokenizer.json'):
        create_tokenizer(str(tmp_path))
    (tmp_path / 'a.txt').touch()
    with pytest.raises(InputError, match='a.txt: it is a file; give the folder with the tokenizer files'):
        create_tokenizer(str(tmp_path / 'a.txt'))


def test_a_packed_tokenizer_is_the_same(tokenizer):
    packed = json.loads(json.dumps(pack_tokenizer(tokenizer)))
    texts = ['what color is the red star', 'dark green[SEP]', 'Zebra é', '']
    for max_length in (None, 5):
        arguments = dict(padding='longest', truncation=max_length is not None, max_length=max_length)
        ours, theirs = (some(texts, **arguments) for some in (unpack_tokenizer(packed), tokenizer))
        assert ours.input_ids == theirs.input_ids and ours.attention_mask == theirs.attention_mask
