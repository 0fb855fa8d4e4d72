"""What works in a fresh clone without a network: the weights in examples/, README's lines, the notebook."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

import predict
import Retrieval
from dataset.shapes import make_dataset
from inference import load_model
from reports.pointing_game import pointing_game
from tests.helpers import read_log
from utils.config import apply_overrides, prediction_settings, resolve
from utils.config_files import read_yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / 'examples' / 'shapes_model'
README = (ROOT / 'README.md').read_text()
NOTEBOOK = json.loads((ROOT / 'examples' / 'quickstart.ipynb').read_text())


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The working directory is like the repository, and writable."""
    (tmp_path / 'examples').symlink_to(ROOT / 'examples')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_blocks(text, language):
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def recipe():
    """The arguments of Pretrain.py in `make shapes-model`."""
    printed = subprocess.check_output(['make', '-n', '-C', str(ROOT), 'shapes-model'], text=True)
    line = next(line for line in printed.splitlines() if 'Pretrain.py' in line)
    return shlex.split(line.split('Pretrain.py')[1])


def test_the_weights_are_small_and_of_the_documented_command():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6
    argv = recipe()
    overrides = [argv[i + 1] for i, word in enumerate(argv) if word == '--set']
    config = apply_overrides(read_yaml(argv[argv.index('--config') + 1]), overrides)
    expected = prediction_settings('pretrain', resolve('pretrain', config)[0])
    assert json.loads((FOLDER / 'config.json').read_text())['config'] == expected


def test_the_metrics_of_the_weights_are_those_of_the_docs(tmp_path):
    """Retrieval of the 500 unseen scenes, zero-shot, and the pointing game: docs/predict.md has the same figures."""
    data = tmp_path / 'shapes'
    make_dataset(data, 0, {'train': 60, 'val': 20})
    argv = ['--config', 'configs/shapes/Retrieval.yaml', '--output_dir', str(tmp_path / 'run'), '--evaluate']
    settings = [f'test_file={data}/retrieval_test.json', 'val_file=null', f'image_root={data}', 'k_test=16']
    settings += ['bert_config.num_hidden_layers=6', 'num_workers=0']
    argv += ['--checkpoint', str(FOLDER), '--text_encoder', str(FOLDER), '--device', 'cpu']
    Retrieval.main([*argv, *(word for setting in settings for word in ('--set', setting))])
    record = read_log(tmp_path / 'run')[0]
    documented = dict(re.findall(r'\| `(\w+)` \| ([\d.]+) \|', (ROOT / 'docs' / 'predict.md').read_text()))
    hits = {f'points_{kind}': found['hits'] for kind, found in pointing_game(load_model(FOLDER), str(data)).items()}
    names = ['test_itc_txt_r1', 'test_itc_img_r1', 'test_txt_r1', 'test_img_r1', *hits]
    measured = {name: (record | hits)[name] for name in names}
    assert measured == pytest.approx({name: float(documented[name]) for name in names}, abs=0.5)


@pytest.mark.parametrize('path', ['README.md', *(f'docs/{page.name}' for page in sorted((ROOT / 'docs').glob('*.md')))])
def test_every_linked_file_exists(path):
    page = ROOT / path
    links = re.findall(r'\]\(([^)#\s]+)(?:#[^)]*)?\)', page.read_text())
    missing = [link for link in links if '://' not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_lines_of_the_readme(clone):
    """The first Python block, and every command of predict.py before the first training."""
    (block, *_) = code_blocks(README, 'python')
    names = {}
    exec(block, names)
    pictures, texts = names['pictures'], names['texts']
    model = names['model']
    assert model.encode_image(pictures).shape == (2, 64) and model.match(pictures, texts).min() > 0.5
    assert torch.equal(model.similarity(pictures, texts).argmax(dim=0), torch.tensor([0, 1]))
    commands = [line for line in README.splitlines() if line.startswith('python predict.py ')]
    assert len(commands) >= 4
    for line in commands:
        predict.main(shlex.split(line, comments=True)[2:])
    assert {'heatmap.png', 'found.html', 'features.parquet'} <= {*os.listdir(clone / 'output')}


def numbers_and_words(text):
    number = r'-?\d+\.\d*'
    return [float(found) for found in re.findall(number, text)], re.sub(number, '', text).split()


def test_the_cells_of_the_notebook(clone, monkeypatch):
    """They run one after another and print what is shown beneath them; the last removes what they wrote."""
    os.symlink(ROOT / 'predict.py', clone / 'predict.py')
    names, cells = {}, [cell for cell in NOTEBOOK['cells'] if cell['cell_type'] == 'code']
    assert len(cells) > 5 and all(cell['outputs'] for cell in cells[2:-1])
    for cell in cells:
        shown = ''.join(''.join(output.get('text', '')) for output in cell['outputs'])
        printed = []
        names['print'] = lambda *words, end='\n', printed=printed: printed.append(' '.join(map(str, words)) + end)
        exec(''.join(cell['source']), names)
        (before, words), (after, same_words) = map(numbers_and_words, (shown, ''.join(printed)))
        assert after == pytest.approx(before, abs=0.05) and same_words == words
    assert 'heatmap.png' not in os.listdir(clone)


def test_the_pictures_are_scenes_of_the_test_split(tmp_path):
    make_dataset(tmp_path / 'shapes', 0, {'train': 60, 'val': 20, 'test': 24})
    expected = json.loads((tmp_path / 'shapes' / 'retrieval_test.json').read_text())
    rows = json.loads((ROOT / 'examples' / 'pictures' / 'captions.json').read_text())
    assert [row['caption'] for row in rows] == [row['caption'] for row in expected]
    assert all((ROOT / 'examples' / 'pictures' / row['image']).exists() for row in rows)
