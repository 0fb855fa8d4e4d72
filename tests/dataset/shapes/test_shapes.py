"""The synthetic dataset: determined by the seed, with unambiguous captions, and with no combination in two splits."""

import hashlib
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from dataset.annotations import load_annotations
from dataset.shapes import build, make_dataset, vocabulary
from dataset.shapes.captions import all_captions
from dataset.shapes.drawing import draw
from dataset.shapes.sampling import Distinct, draw_scenes, partners
from dataset.shapes.scene import COLORS, SHAPES, SIZES, SPLITS
from dataset.shapes.vqa import ANSWERS
from dataset.text import pre_caption, pre_question
from models.tokenization_bert import create_tokenizer
from tests.dataset.shapes.tools import ITEM, SCENE_COUNTS, VQA, as_list, parse_caption, read
from utils.config import read_yaml, resolve
from utils.errors import InputError

NLVR = ('nlvr_train.json', 'nlvr_dev.json', 'nlvr_test.json')


@pytest.fixture(scope='module')
def scenes():
    return {split: draw_scenes(split, 300, seed=0) for split in SPLITS}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# ---- the folder ----


def test_same_seed_same_bytes(folder, tmp_path):
    make_dataset(tmp_path / 'again', seed=0, sizes=SCENE_COUNTS)
    make_dataset(tmp_path / 'other', seed=1, sizes=SCENE_COUNTS)
    ours = {name: data for name, data in contents(folder).items() if not name.endswith('.arrow')}
    assert contents(tmp_path / 'again') == ours
    assert read(tmp_path / 'other/pretrain.json') != read(folder / 'pretrain.json')


def test_texts_of_a_seed_never_change(folder):
    """They depend on nothing but Python's stable generator. Raise `build.VERSION` if this digest changes."""
    digest = hashlib.sha256()
    for name in sorted(path.name for path in folder.glob('*.json')):
        digest.update((folder / name).read_bytes())
    digest.update((folder / 'vocab/vocab.txt').read_bytes())
    assert (build.VERSION, digest.hexdigest()[:16]) == (2, 'abe38fd56e8d3377')


def test_pixels_of_a_seed_never_change(scenes):
    """The bytes of the JPEG files depend on the encoder; its input does not."""
    digest = hashlib.sha256(b''.join(draw(scene).tobytes() for scene in scenes['test'][:60]))
    assert (build.VERSION, digest.hexdigest()[:16]) == (2, 'c57c879efeed2a0e')


def test_a_smaller_dataset_is_the_beginning_of_a_larger_one(scenes):
    for split in SPLITS:
        assert draw_scenes(split, 25, seed=0) == scenes[split][:25]


def test_reuse_refusal_and_repair(tmp_path, monkeypatch):
    sizes = {'train': 30, 'val': 20, 'test': 20}
    atomic_write, written = build.atomic_write, []

    @contextmanager
    def fail_at_40(path, *args, **options):
        if len(written) == 40:
            raise OSError('disk full')
        written.append(path)
        with atomic_write(path, *args, **options) as file:
            yield file

    monkeypatch.setattr(build, 'atomic_write', fail_at_40)
    with pytest.raises(OSError, match='disk full'):
        make_dataset(tmp_path / 'w', 3, sizes)
    assert not (tmp_path / 'w/world.json').exists()
    monkeypatch.setattr(build, 'atomic_write', atomic_write)
    assert not make_dataset(tmp_path / 'w', 3, sizes)['reused']
    make_dataset(tmp_path / 'straight', 3, sizes)
    assert contents(tmp_path / 'w') == contents(tmp_path / 'straight')

    monkeypatch.setattr(build, 'atomic_write', lambda path, *_, **__: pytest.fail(f'{path} written again'))
    assert make_dataset(tmp_path / 'w', 3, sizes)['reused']
    with pytest.raises(InputError, match=r'world.json is of another dataset \(version 2, seed 3.*remove'):
        make_dataset(tmp_path / 'w', 4, sizes)

    monkeypatch.setattr(build, 'atomic_write', atomic_write)
    for name in ('images/val/00007.jpg', 'nlvr_dev.json', 'word_kinds.json', 'vocab/vocab.txt'):
        (tmp_path / 'w' / name).unlink()
        assert not make_dataset(tmp_path / 'w', 3, sizes)['reused']
    assert contents(tmp_path / 'w') == contents(tmp_path / 'straight')


def test_two_processes_do_not_mix_two_datasets(tmp_path):
    """The second finds the dataset of the first, and refuses its own seed."""
    command = [sys.executable, '-m', 'dataset.shapes', '--out', str(tmp_path), '--scenes', '62']
    command += ['--val_scenes', '20', '--test_scenes', '20', '--seed']
    started = [subprocess.Popen([*command, seed], stderr=subprocess.PIPE, text=True) for seed in ('1', '2')]
    errors = [process.communicate()[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 2], errors
    assert 'is of another dataset' in ''.join(errors)
    kept = 1 + [process.returncode for process in started].index(0)
    make_dataset(tmp_path / 'alone', kept, {'train': 62, 'val': 20, 'test': 20})
    for path in (path for path in (tmp_path / 'alone').rglob('*') if path.is_file() and path.name != '.lock'):
        assert path.read_bytes() == (tmp_path / path.relative_to(tmp_path / 'alone')).read_bytes(), path


@pytest.mark.parametrize('content', ['', 'no JSON', '[1]', '5'])
def test_a_marker_of_another_program_is_refused(tmp_path, content):
    (tmp_path / 'world.json').write_text(content)
    with pytest.raises(InputError, match='was not written by this program: remove'):
        make_dataset(tmp_path)


@pytest.mark.parametrize('name', ['nlvr_train.json', 'vocab/vocab.txt', 'images/holiday.jpg', 'notes/a/b.md'])
def test_a_folder_with_foreign_files_is_refused(tmp_path, name):
    (tmp_path / 'w' / name).parent.mkdir(parents=True)
    (tmp_path / 'w' / name).write_text('mine')
    with pytest.raises(InputError, match=f'w holds {tmp_path}/w/{name}, which may not be of this program'):
        make_dataset(tmp_path / 'w', 3, {'train': 30, 'val': 20, 'test': 20})
    assert [path for path in (tmp_path / 'w').rglob('*') if path.is_file()] == [tmp_path / 'w' / name]
    assert (tmp_path / 'w' / name).read_text() == 'mine'


def test_a_folder_with_hidden_files_or_none_is_used(tmp_path):
    (tmp_path / '.git').mkdir()
    (tmp_path / 'images').mkdir()
    for name in ('.DS_Store', '.git/HEAD'):
        (tmp_path / name).touch()
    assert not make_dataset(tmp_path, 3, {'train': 20, 'val': 20, 'test': 20})['reused']


@pytest.mark.parametrize('number', [0, 1, 40, 60, -1])
def test_a_killed_program_continues_in_its_folder(tmp_path, monkeypatch, number):
    """Killed as it writes a file, -1: the marker; files that a power failure emptied are written again."""
    sizes, written, atomic_write = {'train': 20, 'val': 20, 'test': 20}, [], build.atomic_write

    def killed(path, *args, **options):
        if len(written) == number or number < 0 and path.name == 'world.json':
            raise KeyboardInterrupt
        written.append(path)
        return atomic_write(path, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, 'atomic_write', killed)
        make_dataset(tmp_path / 'w', 3, sizes)
    for path in written[-3:]:
        path.write_bytes(b'')
    assert not make_dataset(tmp_path / 'w', 3, sizes)['reused']
    make_dataset(tmp_path / 'straight', 3, sizes)
    assert contents(tmp_path / 'w') == contents(tmp_path / 'straight')
    assert not (tmp_path / 'w' / '.unfinished').exists()


def test_impossible_sizes_are_refused(tmp_path, monkeypatch):
    for split, named in (('train', 'train'), ('val', 'dev'), ('test', 'test')):
        for count in (3, 0, -1):
            with pytest.raises(InputError, match=rf"^\d {named} scenes are too few for statements of kind '\w+': ask"):
                make_dataset(tmp_path, 0, SCENE_COUNTS | {split: count})
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Distinct, 'accepts', lambda self, scene: False)
    with pytest.raises(InputError, match='only 0 of 1 val scenes can be told apart: ask for fewer'):
        draw_scenes('val', 1, seed=0)


def test_command(tmp_path):
    command = [sys.executable, '-m', 'dataset.shapes', '--out', str(tmp_path / 'w'), '--seed', '5', '--scenes', '20']
    command += ['--val_scenes', '20', '--test_scenes', '20']
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert 'made in' in outputs[0] and 'reused' in outputs[1]
    command[6] = '6'
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and 'is of another dataset' in refused.stderr
    assert refused.stderr.startswith('error: ') and refused.stderr.count('\n') == 1
    debugged = subprocess.run([*command, '--debug'], capture_output=True, text=True)
    assert debugged.returncode != 0 and 'Traceback' in debugged.stderr and 'is of another dataset' in debugged.stderr


def test_annotations_load(folder):
    """The dataset of each task accepts its files, which name existing images of their own split."""
    kinds = {
        'pretrain': ['pretrain'],
        'retrieval_train': ['retrieval_train'],
        'retrieval_eval': ['retrieval_val', 'retrieval_test'],
        'nlvr': ['nlvr_train', 'nlvr_dev', 'nlvr_test'],
        'vqa': ['vqa_train', 'vqa_val', 'vqa_test', 'vqa_test_annotated'],
    }
    assert {f'{name}.json' for names in kinds.values() for name in names} | {
        *('answer_list.json', 'word_kinds.json', 'world.json')
    } == {path.name for path in folder.glob('*.json')}
    for kind, names in kinds.items():
        for name in names:
            rows = load_annotations(folder / f'{name}.json', kind)
            split = 'val' if name.endswith(('val', 'dev')) else 'test' if '_test' in name else 'train'
            images = {image for row in rows for image in (row['images'] if kind == 'nlvr' else [row['image']])}
            assert all(image.startswith(f'images/{split}/') and (folder / image).is_file() for image in images)
            assert len(rows) == read(folder / 'world.json')['rows'][f'{name}.json']


def test_vocabulary_contains_every_word(folder):
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


def test_word_kinds_partition_what_a_caption_states(folder):
    """Each word is one token and of one kind; a caption has a size, a color and a shape per item, and a relation."""
    kinds = read(folder / 'word_kinds.json')
    assert list(kinds) == ['color', 'size', 'shape', 'relation']
    words = [word for listed in kinds.values() for word in listed]
    assert len(words) == len(set(words)) == len(COLORS) + len(SIZES) + len(SHAPES) + 3
    tokenizer = create_tokenizer(str(folder / 'vocab'))
    assert [tokenizer.tokenize(word) for word in words] == [[word] for word in words]
    shown = set()
    for row in read(folder / 'pretrain.json'):
        for caption in as_list(row['caption']):
            items, tokens = len(ITEM.findall(caption)), tokenizer.tokenize(pre_caption(caption, 30))
            found = {kind: [token for token in tokens if token in kinds[kind]] for kind in kinds}
            assert {kind: len(found[kind]) for kind in kinds} == {**dict.fromkeys(kinds, items), 'relation': 1}
            shown.update(*found.values())
    assert shown == set(words)


# ---- combinations of items in the splits ----


def kind_pairs(caption):
    return {frozenset(pair) for pair in combinations([item[1:] for item in ITEM.findall(caption)], 2)}


def test_splits_share_no_combination(folder, tmp_path):
    """No two (color, shape) in one image of a split are in one image of another split, with any seed."""
    make_dataset(tmp_path, seed=9, sizes=SCENE_COUNTS)
    pairs = defaultdict(set)
    for out in (folder, tmp_path):
        for split, name in zip(SPLITS, ('pretrain', 'retrieval_val', 'retrieval_test'), strict=True):
            for row in read(out / f'{name}.json'):
                pairs[split] |= kind_pairs(as_list(row['caption'])[0])
    assert all(pairs.values())
    assert not (pairs['train'] & pairs['val'] or pairs['train'] & pairs['test'] or pairs['val'] & pairs['test'])


def test_each_kind_of_item_is_in_every_split():
    for split in SPLITS:
        assert len(partners(split)) == len(COLORS) * len(SHAPES) and all(map(len, partners(split).values()))


def test_training_shows_every_value(scenes):
    shown = {value for scene in scenes['train'] for item in scene.items for value in item}
    assert shown == {*SIZES, *COLORS, *SHAPES}
    assert {scene.relation for scene in scenes['train']} == {'above', 'beside'}
    assert {len(scene.items) for scene in scenes['train']} == {2, 3, 4}


@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_caption_is_true_of_one_image(scenes, split):
    """Exhaustive check: in another image with at least these items, the same pair has another relation."""
    captions = [all_captions(scene) for scene in scenes[split]]
    assert len({caption for row in captions for caption in row}) == 4 * len(captions)
    meanings = [parse_caption(row[0]) for row in captions]
    for row, meaning in zip(captions, meanings, strict=True):
        assert all(parse_caption(caption) == meaning for caption in row)
    for (items, relation, pair), (others, other_relation, other_pair) in combinations(meanings, 2):
        if items <= others or items >= others:
            assert items == others and set(pair) == set(other_pair) and (relation, pair) != (other_relation, other_pair)


@pytest.mark.parametrize('relation', ['above', 'beside'])
def test_distinct_refuses_scenes_that_captions_do_not_distinguish(scenes, relation):
    scene = next(scene for scene in scenes['test'] if len(scene.items) == 4 and scene.relation == relation)
    swapped = replace(scene, items=(scene.items[1], scene.items[0], *scene.items[2:]))
    register = Distinct()
    assert register.accepts(scene)
    assert not register.accepts(scene)
    assert not register.accepts(replace(scene, items=scene.items[:3]))  # true of the first as well
    assert not register.accepts(replace(scene, items=scene.items[::-1]))  # the same items, another pair
    assert register.accepts(swapped) == (relation == 'above')  # beside is symmetric
    assert register.accepts(replace(scene, relation='beside' if relation == 'above' else 'above'))


# ---- the configurations ----

CONFIGS = {
    'Pretrain': 'pretrain',
    'Retrieval': 'retrieval',
    'NLVR_pretrain': 'nlvr_pretrain',
    'NLVR': 'nlvr',
    'VQA': 'vqa',
}


@pytest.mark.parametrize('name', CONFIGS)
def test_configurations_fit_the_dataset(folder, name):
    config, unused = resolve(CONFIGS[name], read_yaml(f'configs/shapes/{name}.yaml'), name)
    assert not unused and config['bert_config']['vocab_size'] == len(vocabulary())
    assert config['image_res'] == 4 * config['vit']['patch_size']  # a patch is a cell,
    assert config['crop_scale'] == [1, 1]  # and stays one
    files = [file for key in ('train_file', 'val_file', 'test_file') for file in config.get(key) or []]
    files += [config['answer_list']] if name == 'VQA' else []
    assert all(Path(file).parent == Path('output/shapes') and (folder / Path(file).name).is_file() for file in files)
    assert config['vqa_root' if name == 'VQA' else 'image_root'] == 'output/shapes'


def test_files_behind_a_linked_folder_are_not_overwritten(tmp_path):
    (tmp_path / 'precious/train').mkdir(parents=True)
    (tmp_path / 'precious/train/00000.jpg').write_text('precious')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/images').symlink_to(tmp_path / 'precious')
    with pytest.raises(InputError, match='holds .*images, which may not be of this program'):
        make_dataset(tmp_path / 'out', sizes={'train': 20, 'val': 20, 'test': 20})
    assert (tmp_path / 'precious/train/00000.jpg').read_text() == 'precious'
