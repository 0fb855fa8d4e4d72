"""The six official configurations: exactly the official keys and values, each headed by what it is."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from scheduler import learning_rate
from tests.reference import load_json

CONFIGS = Path(__file__).parent.parent.parent / 'configs'
SCRIPTS = {
    'Pretrain': 'Pretrain.py', 'NLVR_pretrain': 'Pretrain_nlvr.py', 'NLVR': 'NLVR.py', 'VQA': 'VQA.py',
    'Retrieval_coco': 'Retrieval.py', 'Retrieval_flickr': 'Retrieval.py',
}  # fmt: skip


@pytest.mark.parametrize('name', SCRIPTS)
def test_values_are_official(name):
    config = YAML(typ='safe').load(CONFIGS / f'{name}.yaml')
    assert config == load_json('official_configs')[name]
    assert learning_rate(config['schedular'], 0, 0) == 1e-5


def test_bert_config_is_official():
    assert json.loads((CONFIGS / 'config_bert.json').read_text()) == load_json('official_configs')['config_bert']


@pytest.mark.filterwarnings('error')  # ruamel.yaml only warns of 1e-5, which other YAML 1.1 readers take for a word
@pytest.mark.parametrize('name', SCRIPTS)
def test_numbers_are_numbers_to_yaml_1_1_readers(name):
    reader = YAML(typ='safe', pure=True)
    reader.version = (1, 1)
    assert reader.load(CONFIGS / f'{name}.yaml') == load_json('official_configs')[name]


@pytest.mark.parametrize('name', SCRIPTS)
def test_the_header_gives_command_hardware_and_published_result(name):
    lines = (CONFIGS / f'{name}.yaml').read_text().splitlines()
    header = '\n'.join(lines[: lines.index('')])
    assert all(line.startswith('#') for line in header.splitlines())
    assert f'{SCRIPTS[name]} --config ./configs/{name}.yaml --output_dir output/' in header
    assert '# Hardware: 4 GPUs' in header and '# Published, not run by us: ' in header
