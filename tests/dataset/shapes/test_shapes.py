"""The demo world: the same for the same seed, true in every word, and with nothing of one split in another."""

import hashlib
import json
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from dataset.annotations import load_annotations
from dataset.shapes import make_world, vocabulary, world
from dataset.shapes.captions import all_captions, one_word_apart
from dataset.shapes.drawing import draw
from dataset.shapes.sampling import Distinct, draw_scenes, partners
from dataset.shapes.scene import COLOURS, CONVERSE, SHAPES, SIZES, SPLITS
from dataset.shapes.vqa import ANSWERS
from dataset.text import pre_caption, pre_question
from utils.config import read_yaml, resolve

SIZES_OF_WORLD = {'train': 60, 'val': 20, 'test': 40}
NLVR = ('nlvr_train.json', 'nlvr_dev.json', 'nlvr_test.json')
VQA = ('vqa_train.json', 'vqa_val.json', 'vqa_test_annotated.json')
ITEM = re.compile(rf'a ({"|".join(SIZES)}) ({"|".join(COLOURS)}) ({"|".join(SHAPES)})')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp('world')
    make_world(out, seed=0, sizes=SIZES_OF_WORLD)
    return out


@pytest.fixture(scope='module')
def scenes():
    return {split: draw_scenes(split, 300, seed=0) for split in SPLITS}


def read(path):
    return json.loads(Path(path).read_text())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# ---- the folder ----


def test_same_seed_same_bytes(folder, tmp_path):
    make_world(tmp_path / 'again', seed=0, sizes=SIZES_OF_WORLD)
    make_world(tmp_path / 'other', seed=1, sizes=SIZES_OF_WORLD)
    ours = {name: data for name, data in contents(folder).items() if not name.endswith('.arrow')}
    assert contents(tmp_path / 'again') == ours
    assert read(tmp_path / 'other/pretrain.json') != read(folder / 'pretrain.json')


def test_texts_of_a_seed_never_change(folder):
    """Nothing but Python's stable generator is behind them. A change of this digest is a new `world.VERSION`."""
    digest = hashlib.sha256()
    for name in sorted(path.name for path in folder.glob('*.json')):
        digest.update((folder / name).read_bytes())
    digest.update((folder / 'vocab/vocab.txt').read_bytes())
    assert (world.VERSION, digest.hexdigest()[:16]) == (1, '59a2b139074c7a8f')


def test_pixels_of_a_seed_never_change(scenes):
    """The bytes of the JPEG files are left to the encoder; what it is given is not."""
    digest = hashlib.sha256(b''.join(draw(scene).tobytes() for scene in scenes['test'][:60]))
    assert (world.VERSION, digest.hexdigest()[:16]) == (1, '5c905a515dbac9f5')


def test_a_smaller_world_is_the_beginning_of_a_larger_one(scenes):
    for split in SPLITS:
        assert draw_scenes(split, 25, seed=0) == scenes[split][:25]


def test_reuse_refusal_and_repair(tmp_path, monkeypatch):
    sizes = {'train': 30, 'val': 20, 'test': 20}
    write, written = world.write, []

    def fail(path, data):
        if len(written) == 40:
            raise OSError('disk full')
        written.append(path)
        write(path, data)

    monkeypatch.setattr(world, 'write', fail)
    with pytest.raises(OSError, match='disk full'):
        make_world(tmp_path / 'w', 3, sizes)
    assert not (tmp_path / 'w/world.json').exists()
    monkeypatch.setattr(world, 'write', write)
    assert not make_world(tmp_path / 'w', 3, sizes)['reused']
    make_world(tmp_path / 'straight', 3, sizes)
    assert contents(tmp_path / 'w') == contents(tmp_path / 'straight')

    monkeypatch.setattr(world, 'write', lambda path, data: pytest.fail(f'{path} written again'))
    assert make_world(tmp_path / 'w', 3, sizes)['reused']
    with pytest.raises(ValueError, match=r'world.json is of another world \(version 1, seed 3.*remove'):
        make_world(tmp_path / 'w', 4, sizes)

    monkeypatch.setattr(world, 'write', write)
    (tmp_path / 'w/images/val/00007.jpg').unlink()
    assert not make_world(tmp_path / 'w', 3, sizes)['reused']
    assert contents(tmp_path / 'w') == contents(tmp_path / 'straight')


def test_impossible_sizes_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='2 scenes are too few'):
        make_world(tmp_path, 0, {'train': 2})
    monkeypatch.setattr(Distinct, 'accepts', lambda self, scene: False)
    with pytest.raises(ValueError, match=r'1 val scenes are more than can be told apart \(0 found\): ask for fewer'):
        draw_scenes('val', 1, seed=0)


def test_command(tmp_path):
    command = [sys.executable, '-m', 'dataset.shapes', '--out', str(tmp_path / 'w'), '--seed', '5', '--scenes', '20']
    command += ['--val_scenes', '20', '--test_scenes', '20']
    said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert 'made in' in said[0] and 'reused' in said[1]
    command[6] = '6'
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and 'another world' in refused.stderr and 'Traceback' not in refused.stderr


def test_annotations_load(folder):
    """Every file is what the datasets of its task accept, and names pictures that are there, of its own split."""
    kinds = {
        'pretrain': ['pretrain'],
        'retrieval_train': ['retrieval_train'],
        'retrieval_eval': ['retrieval_val', 'retrieval_test'],
        'nlvr': ['nlvr_train', 'nlvr_dev', 'nlvr_test'],
        'vqa': ['vqa_train', 'vqa_val', 'vqa_test', 'vqa_test_annotated'],
    }
    assert {f'{name}.json' for names in kinds.values() for name in names} | {'answer_list.json', 'world.json'} == {
        path.name for path in folder.glob('*.json')
    }
    for kind, names in kinds.items():
        for name in names:
            rows = load_annotations(folder / f'{name}.json', kind)
            split = 'val' if name.endswith(('val', 'dev')) else 'test' if '_test' in name else 'train'
            images = {image for row in rows for image in (row['images'] if kind == 'nlvr' else [row['image']])}
            assert all(image.startswith(f'images/{split}/') and (folder / image).is_file() for image in images)
            assert len(rows) == read(folder / 'world.json')['rows'][f'{name}.json']


def test_vocabulary_knows_every_word(folder):
    texts = [pre_caption(text, 30) for row in read(folder / 'pretrain.json') for text in as_list(row['caption'])]
    texts += [pre_caption(row['sentence'], 30) for name in NLVR for row in read(folder / name)]
    texts += [pre_question(row['question'], 30) for name in VQA for row in read(folder / name)]
    words = vocabulary()
    assert (folder / 'vocab/vocab.txt').read_text().split('\n') == [*words, '']
    assert len(words) == len(set(words)) and words[:5] == ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    assert {word for text in [*texts, *ANSWERS] for word in text.split()} <= set(words)
    assert max(len(text.split()) for text in texts) <= 24  # with [CLS] not cut at 25
    for answer in ('flower', '2', 'dark green'):
        assert answer in ANSWERS and answer in read(folder / 'answer_list.json')


def as_list(caption):
    return caption if isinstance(caption, list) else [caption]


# ---- what the splits share, and what they do not ----


def kind_pairs(caption):
    return {frozenset(pair) for pair in combinations([item[1:] for item in ITEM.findall(caption)], 2)}


def test_splits_share_no_combination(folder, tmp_path):
    """From the files: no two (colour, shape) that meet in a picture of one split meet in another, in any world."""
    make_world(tmp_path, seed=9, sizes=SIZES_OF_WORLD)
    pairs = defaultdict(set)
    for place in (folder, tmp_path):
        for split, name in zip(SPLITS, ('pretrain', 'retrieval_val', 'retrieval_test'), strict=True):
            for row in read(place / f'{name}.json'):
                pairs[split] |= kind_pairs(as_list(row['caption'])[0])
    assert all(pairs.values())
    assert not (pairs['train'] & pairs['val'] or pairs['train'] & pairs['test'] or pairs['val'] & pairs['test'])


def test_each_kind_of_thing_is_in_every_split():
    for split in SPLITS:
        assert len(partners(split)) == len(COLOURS) * len(SHAPES) and all(map(len, partners(split).values()))


def test_training_shows_every_value(scenes):
    shown = {value for scene in scenes['train'] for item in scene.items for value in item}
    assert shown == {*SIZES, *COLOURS, *SHAPES}
    assert {scene.relation for scene in scenes['train']} == set(CONVERSE)
    assert {len(scene.items) for scene in scenes['train']} == {2, 3, 4}


def says(caption):
    """(items, related pair, relation) of a caption, read from its words alone."""
    items = ITEM.findall(caption)
    relation = re.search(r'(above|below|inside|around|touching)', caption).group()
    forward = {word: (name, True) for name, word in CONVERSE.items()} | {name: (name, False) for name in CONVERSE}
    name, turned = forward[relation]
    pair = items[1::-1] if turned else items[:2]
    return set(items), frozenset(pair) if name == 'touching' else tuple(pair), name


@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_caption_is_true_of_one_picture(scenes, split):
    """Slow oracle: of another picture with at least these items, the very same pair is plainly related otherwise."""
    captions = [all_captions(scene) for scene in scenes[split]]
    assert len({caption for row in captions for caption in row}) == 4 * len(captions)
    meanings = [says(row[0]) for row in captions]
    for row, meaning in zip(captions, meanings, strict=True):
        assert all(says(caption) == meaning for caption in row)
    for (items, pair, relation), (others, other_pair, other_relation) in combinations(meanings, 2):
        if items <= others or items >= others:
            assert items == others and set(pair) == set(other_pair)
            assert relation != other_relation or tuple(pair) != tuple(other_pair)


def test_distinct_refuses_what_a_caption_would_not_tell_apart(scenes):
    scene = next(scene for scene in scenes['test'] if len(scene.items) == 4 and scene.relation == 'above')
    register = Distinct()
    assert register.accepts(scene)
    assert not register.accepts(scene)
    assert not register.accepts(replace(scene, items=scene.items[:3]))  # true of the first as well
    assert not register.accepts(replace(scene, items=scene.items[::-1]))  # the same items, another pair
    assert register.accepts(replace(scene, items=(scene.items[1], scene.items[0], *scene.items[2:])))


def test_many_test_captions_are_one_word_apart(folder):
    rows = read(folder / 'retrieval_test.json')
    captions = [(caption.split(), i) for i, row in enumerate(rows) for caption in row['caption']]

    def near(words, owner):
        return any(
            owner != other
            and len(words) == len(theirs)
            and sum(a != b for a, b in zip(words, theirs, strict=True)) == 1
            for theirs, other in captions
        )

    share = sum(near(*caption) for caption in captions) / len(captions)
    assert share > 0.5
    assert one_word_apart([' '.join(words) for words, _ in captions], [i for _, i in captions]) == share
    assert read(folder / 'world.json')['test_captions_one_word_apart'] == round(share, 4)


# ---- the configurations ----

CONFIGS = {
    'Pretrain': 'pretrain',
    'Retrieval': 'retrieval',
    'NLVR_pretrain': 'nlvr_pretrain',
    'NLVR': 'nlvr',
    'VQA': 'vqa',
}


@pytest.mark.parametrize('name', CONFIGS)
def test_configurations_fit_the_world(folder, name):
    config, unused = resolve(CONFIGS[name], read_yaml(f'configs/shapes/{name}.yaml'), name)
    assert not unused and config['bert_config']['vocab_size'] == len(vocabulary())
    files = [file for key in ('train_file', 'val_file', 'test_file') for file in config.get(key) or []]
    files += [config['answer_list']] if name == 'VQA' else []
    assert all(Path(file).parent == Path('output/shapes') and (folder / Path(file).name).is_file() for file in files)
    assert config['vqa_root' if name == 'VQA' else 'image_root'] == 'output/shapes'
