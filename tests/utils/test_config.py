"""The configuration: one table of keys, one clear error for what is wrong."""

import pytest

from utils.config import apply_overrides, read_yaml, resolve, write_yaml

BASE = 'configs/shapes/Pretrain.yaml'


def resolved(*overrides, task='pretrain'):
    return resolve(task, apply_overrides(read_yaml(BASE), overrides), BASE)


def test_defaults_are_filled_and_nothing_is_lost(tmp_path):
    config, unused = resolved()
    assert unused == []
    assert (
        config['consistency_weight'] == 0.2 and config['precision'] == 'fp32' and config['momentum'] == 0.995
        if 'momentum' in config
        else True
    )
    assert config['schedular']['lr'] == config['optimizer']['lr']
    write_yaml(config, tmp_path / 'config.yaml')
    assert resolve('pretrain', read_yaml(tmp_path / 'config.yaml'), 'again')[0] == config


@pytest.mark.parametrize(
    'override, message',
    [
        ('bach_size=8', 'unknown key bach_size; the nearest known key is batch_size'),
        ('optimizer.lrr=1', 'unknown key optimizer.lrr; the nearest known key is optimizer.lr'),
        ('vit.dept=2', 'unknown key vit.dept; the nearest known key is vit.depth'),
        ('batch_size=eight', "batch_size must be a whole number of at least 1, not 'eight'"),
        ('batch_size=1', 'batch_size must be at least 2'),
        ('queue_size=1000', 'queue_size 1000 must be a multiple of search_space 640; take 640 or 1280'),
        ('search_space=100', 'must be a multiple of'),
        ('schedular.lr=1', 'schedular.lr 1 differs from optimizer.lr'),
        ('vision_width=32', 'vision_width 32 must equal vit.embed_dim 64'),
        ('bert_config.encoder_width=32', 'bert_config.encoder_width 32 must equal the width of the image encoder'),
        ('bert_config=nowhere.json', 'there is no file nowhere.json'),
        ('precision=fp16', 'precision must be one of fp32, bf16'),
        ('crop_scale=[0.9, 0.2]', 'crop_scale must be two numbers'),
        ('image_res', 'write it as key=value'),
        ('image_res.x=1', 'image_res is not a section'),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace('[', r'\[')):
        resolved(override)


def test_keys_of_other_tasks_are_kept_and_named():
    config, unused = resolved('k_test=4', 'use_momentum=true')
    assert unused == ['k_test', 'use_momentum']


def test_random_batches_need_no_queues():
    assert resolved('sampler=random', 'queue_size=1000')[0]['queue_size'] == 1000


def test_overrides_reach_into_sections_and_files(tmp_path):
    config, _ = resolved('optimizer.lr=1e-4', 'schedular.lr=1e-4', 'vit.depth=2', 'init_deit=weights.pth')
    assert config['optimizer']['lr'] == 1e-4 and config['vit']['depth'] == 2 and config['vit']['patch_size'] == 8
    config, _ = resolve(
        'pretrain', apply_overrides(read_yaml('configs/Pretrain.yaml'), ['bert_config.fusion_layer=3']), ''
    )
    assert config['bert_config']['fusion_layer'] == 3 and config['bert_config']['hidden_size'] == 768


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such configuration file'):
        read_yaml(tmp_path / 'none.yaml')
    (tmp_path / 'broken.yaml').write_text('a: [1, 2')
    with pytest.raises(ValueError, match='broken.yaml: not valid YAML'):
        read_yaml(tmp_path / 'broken.yaml')
    (tmp_path / 'list.yaml').write_text('- a\n')
    with pytest.raises(ValueError, match='must hold a mapping'):
        read_yaml(tmp_path / 'list.yaml')
