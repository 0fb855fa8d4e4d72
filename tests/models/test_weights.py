"""Weights from files: every key is loaded or reported, or the file is refused."""

import argparse
import math
import os
import shutil

import numpy as np
import pytest
import torch

from models import create_model
from models.bert_layers import BertConfig
from models.vit import create_vit, interpolate_pos_embed
from models.weight_files import model_state, read_checkpoint
from models.weights import load_bert, load_deit, load_pretrain, load_state
from models.xbert import create_bert
from tests.helpers import albef_state, reference_model, reference_state, tensor
from tests.reference import load_reference
from utils.errors import InputError


def test_position_embeddings_are_resized_as_officially():
    reference = load_reference('pos_embed')
    for grid in (24, 16, 7):
        encoder = create_vit(grid * 16, {'embed_dim': 12, 'depth': 1, 'num_heads': 2})
        resized = interpolate_pos_embed(tensor(reference['checkpoint']), encoder)
        torch.testing.assert_close(resized, tensor(reference[f'to_{grid}']), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match='not a square grid'):
        interpolate_pos_embed(torch.zeros(1, 12, 12), encoder)


def test_checkpoints_of_albef_and_of_another_resolution_load(tiny_tokenizer, tmp_path):
    """Momentum copies and queues of 65,536 features are not loaded but reported; position embeddings are resized."""
    state, albef = reference_state('pretrain'), albef_state()
    del albef['text_encoder.bert.embeddings.position_ids']  # as newer libraries save
    torch.save({'model': albef, 'epoch': 29}, tmp_path / 'albef.pth')
    config = load_reference('pretrain')['config'] | {'image_res': 96}
    other = create_model('pretrain', config, tiny_tokenizer)
    report = load_pretrain(other, model_state(read_checkpoint(tmp_path / 'albef.pth'), 'albef.pth'), 'albef.pth')
    assert report.resized == ['visual_encoder.pos_embed'] and report.missing == []
    assert 'image_queue' in report.unexpected and 'visual_encoder_m' in str(report)
    loaded = other.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state if key != 'visual_encoder.pos_embed')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda state: state.pop('itm_head.weight'), 'f.pth does not fit this model: missing keys: itm_head.weight'),
        (lambda state: state.update({'cls_head.0.weight': torch.zeros(2)}), 'unexpected keys: cls_head.0.weight'),
        (
            lambda state: state.update({'vision_proj.weight': torch.zeros(3, 4)}),
            r'other shapes: vision_proj.weight \(3, 4\) instead of',
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_keys(tiny_tokenizer, change, message):
    model, _ = reference_model('pretrain', 'pretrain', tiny_tokenizer)
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        load_pretrain(model, state, 'f.pth')


def test_other_content_of_official_files_is_read(tmp_path):
    torch.save(
        {'model': {'w': torch.ones(2)}, 'lr_scheduler': {'rate': np.float64(0.1)}, 'args': argparse.Namespace(seed=1)},
        tmp_path / 'official.pth',
    )
    assert read_checkpoint(tmp_path / 'official.pth')['lr_scheduler'] == {'rate': 0.1}


def test_files_without_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no such file'):
        read_checkpoint(tmp_path / 'none.pth')
    with pytest.raises(InputError, match='it is a folder without model.safetensors; give a file in it'):
        read_checkpoint(tmp_path)
    torch.save({'model': {'w': torch.ones(100)}}, tmp_path / 'whole.pth')
    whole = (tmp_path / 'whole.pth').read_bytes()
    for content in (b'PK\x03\x04 half a file', whole[: len(whole) // 2], whole[:-9], b'hello\n' * 9, b'{"a": 1}'):
        (tmp_path / 'half.pth').write_bytes(content)
        message = r'half.pth: not a readable checkpoint \(damaged, incomplete, or of another kind\); copy or download'
        with pytest.raises(InputError, match=message):
            read_checkpoint(tmp_path / 'half.pth')
    (tmp_path / 'half.pth').write_bytes(b'')
    with pytest.raises(InputError, match='half.pth: it is empty; copy or download'):
        read_checkpoint(tmp_path / 'half.pth')
    for content in ({'epoch': 3}, {'model': {}}, {'model': {1: torch.ones(2)}}, {'model': {'a': 3}}, [1], None):
        with pytest.raises(InputError, match='has no model weights'):
            model_state(content, 'f.pth')


def test_python_objects_in_a_file_are_named(tmp_path):
    torch.save({'model': {'w': torch.ones(2)}, 'hook': os.system}, tmp_path / 'a.pth')
    with pytest.raises(InputError, match='a.pth: it contains the Python object (posix|nt).system.*; if you trust'):
        read_checkpoint(tmp_path / 'a.pth')


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path):
    weight = torch.arange(500.0)
    torch.save({'model': {'w': weight}}, tmp_path / 'a.pth')
    content = bytearray((tmp_path / 'a.pth').read_bytes())
    content[content.index(weight.numpy().tobytes()) + 1001] ^= 4
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(InputError, match=r'a.pth: the file is damaged \(the checksum of .* is wrong\); copy'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(dtype, value):
    state = {name: torch.ones(2, 3, dtype=dtype) for name in 'abc'} | {'ids': torch.arange(3)}
    assert model_state({'model': state}, 'f.pth').keys() == state.keys()
    state['b'][1, 2] = state['c'][0, 0] = value
    with pytest.raises(InputError, match='--checkpoint f.pth: 2 of 4 tensors are not finite, the first is b; '):
        model_state({'model': state}, 'f.pth')


SMALL = {
    'vocab_size': 60,
    'hidden_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'intermediate_size': 64,
    'max_position_embeddings': 16,
}


@pytest.fixture(scope='module')
def bert_folder(tmp_path_factory):
    """A folder with a small random BERT as Hugging Face saves it: two layers, no head."""
    from transformers import BertConfig as TheirConfig
    from transformers import BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('bert')
    BertModel(TheirConfig(**SMALL, initializer_range=0.2)).save_pretrained(folder)
    return folder


def test_text_layers_equal_those_of_transformers(bert_folder):
    """With Hugging Face weights the text mode of our encoder gives their states; layers that only we have are
    reported.
    """
    from transformers import BertModel

    shape = SMALL | {'num_hidden_layers': 3}
    ours = create_bert(BertConfig(**shape, fusion_layer=2, encoder_width=8), head=True)
    report = load_bert(ours, str(bert_folder))
    assert any('crossattention' in key for key in report.missing)
    assert any(key.startswith('cls.') for key in report.missing)
    assert 'layers loaded: 2 of 3' in str(report)
    theirs = BertModel.from_pretrained(bert_folder, attn_implementation='eager').eval()
    ids = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[2, 2:] = 0
    expected = theirs(ids, attention_mask=mask).last_hidden_state
    found = ours.eval().bert(ids, mask, mode='text')
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def test_damaged_bert_weights_are_refused(bert_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    file, encoder = tmp_path / 'model.safetensors', create_bert(BertConfig(**SMALL, fusion_layer=1, encoder_width=8))
    state = load_file(file)
    state['encoder.layer.0.output.dense.bias'][3] = math.nan
    save_file(state, file, {'format': 'pt'})
    message = r'1 of \d+ tensors are not finite, the first is bert.encoder.layer.0.output.dense.bias'
    with pytest.raises(InputError, match=message):
        load_bert(encoder, str(tmp_path))
    file.write_bytes(b'half a file')
    with pytest.raises(InputError, match='--text_encoder .*: its weights cannot be read .*; copy or download'):
        load_bert(encoder, str(tmp_path))
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(InputError, match='--text_encoder .*: its config.json is not that of a model'):
        load_bert(encoder, str(tmp_path))


def test_bert_of_another_width_is_refused(bert_folder):
    other = create_bert(BertConfig(**SMALL | {'hidden_size': 16}, fusion_layer=1, encoder_width=8))
    with pytest.raises(ValueError, match='embeddings.word_embeddings.weight .* instead of'):
        load_bert(other, str(bert_folder))


def test_deit_weights_from_a_file(tmp_path):
    shape = {'patch_size': 16, 'embed_dim': 12, 'depth': 1, 'num_heads': 2, 'mlp_ratio': 4}
    source, target = create_vit(64, shape), create_vit(96, shape)
    state = dict(source.state_dict()) | {'head.weight': torch.zeros(1000, 12), 'head.bias': torch.zeros(1000)}
    torch.save({'model': state}, tmp_path / 'deit.pth')
    report = load_deit(target, str(tmp_path / 'deit.pth'), shape)
    assert report.resized == ['visual_encoder.pos_embed'] and len(report.unexpected) == 2
    assert torch.equal(target.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert 'image encoder: random weights' in load_deit(target, True, shape)
    with pytest.raises(FileNotFoundError, match='init_deit none.pth: there is no such file'):
        load_deit(target, 'none.pth', shape)


def test_deit_without_a_network_names_the_remedy(monkeypatch):
    import timm

    from models.vit import VIT_B_16

    def offline(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(FileNotFoundError, match='init_deit=PATH'):
        load_deit(None, True, VIT_B_16)


def test_an_expected_missing_key_is_reported(tiny_tokenizer):
    model, _ = reference_model('pretrain', 'pretrain', tiny_tokenizer)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith('itm_head')}
    report = load_state(model, state, 'f.pth', missing=('itm_head',))
    assert report.missing == ['itm_head.weight', 'itm_head.bias'] and 'itm_head (2 tensors)' in str(report)
