"""Training images with known duplicates: what a group shows, and which captions are true of which image."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
from PIL import Image

from dataset.annotations import load_annotations
from dataset.shapes import __main__ as command
from dataset.shapes import build, make_dataset
from dataset.shapes.captions import all_captions
from dataset.shapes.choices import choice_rows
from dataset.shapes.duplicates import GROUP, draw_group, duplicated, group_count, other_images
from dataset.shapes.sampling import draw_scenes, partners
from dataset.shapes.scene import RELATIONS, SIZES, Item, Scene, pick, rand_below, rand_between, shuffled
from tests.dataset.shapes.test_images import cells, check_places, look, meaning
from tests.dataset.shapes.tools import SCENE_COUNTS, as_list, parse_caption, read
from utils.errors import InputError

GROUPS = 3  # of the fixture: 0.5 x 60 images / 10


@pytest.fixture(scope='module')
def seen(with_duplicates):
    """{image path: (items, relation, related pair)} of the training images, from their pixels."""
    shown = {}
    for path in sorted(with_duplicates.glob('images/train/*.jpg')):
        with Image.open(path) as image:
            shown[str(path.relative_to(with_duplicates))] = meaning(look(image))
    return shown


@pytest.fixture(scope='module')
def groups(with_duplicates):
    """The groups of the folder, each a list of ten rows: no other two training scenes have the same captions."""
    rows = defaultdict(list)
    for row in read(with_duplicates / 'pretrain.json'):
        rows[parse_caption(as_list(row['caption'])[0])].append(row)
    assert Counter(map(len, rows.values())) == {GROUP: GROUPS, 1: SCENE_COUNTS['train'] - GROUP * GROUPS}
    return [group for group in rows.values() if len(group) > 1]


def is_true(caption, shown):
    items, relation, pair = parse_caption(caption)
    return items <= shown[0] and (relation, pair) == shown[1:]


def test_truth_is_exact(with_duplicates, seen):
    """Every caption is compared with the pixels of every training image."""
    found = 0
    for row in read(with_duplicates / 'pretrain.json'):
        for caption in as_list(row['caption']):
            truth = [image for image, shown in seen.items() if is_true(caption, shown)]
            assert row['image'] in truth
            assert [image for image in truth if image != row['image']] == row.get('also_true_of', [])
        assert row.get('also_true_of') != []
        found += len(row.get('also_true_of', ()))
    assert found >= GROUPS * GROUP * (GROUP - 1)


def test_a_group_shows_what_its_captions_name(groups, seen, with_duplicates):
    for rows in groups:
        images = {row['image'] for row in rows}
        assert all(images <= {row['image'], *row['also_true_of']} for row in rows)
        assert len({(with_duplicates / image).read_bytes() for image in images}) == GROUP
        named, relation, pair = parse_caption(as_list(rows[0]['caption'])[0])
        more = Counter(len(seen[image][0] - named) for image in images)
        assert more == ({0: 10} if len(named) == 4 else {0: 6, 1: 4})
        assert all(seen[image][0] >= named and seen[image][1:] == (relation, pair) for image in images)


def test_truth_beyond_the_groups_is_found():
    """Exhaustive, of scenes of few kinds of items: many show all that the caption of another scene says, and more."""
    rng, scenes = Random(0), []
    kinds = [('red', 'star'), ('blue', 'ring'), ('pink', 'heart'), ('black', 'cross')]
    for _ in range(200):
        items = [Item(pick(rng, SIZES), *kind) for kind in shuffled(rng, kinds)[: rand_between(rng, 2, 4)]]
        scenes.append(Scene(tuple(items), pick(rng, RELATIONS), unnamed=rand_below(rng, len(items) - 1)))
    said = [parse_caption(pick(rng, all_captions(scene))) for scene in scenes]
    shown = [parse_caption(pick(rng, all_captions(replace(scene, unnamed=0)))) for scene in scenes]
    truth = [
        [i for i in range(200) if i != number and items <= shown[i][0] and (relation, pair) == shown[i][1:]]
        for number, (items, relation, pair) in enumerate(said)
    ]
    assert other_images(scenes, range(200)) == truth
    one_way = sum(number not in truth[other] for number in range(200) for other in truth[number])
    both_ways = sum(number in truth[other] for number in range(200) for other in truth[number])
    assert one_way > 100 and both_ways > 100 and truth.count([]) > 20


def test_groups_of_many_scenes():
    sizes = Counter()
    for seed, base in enumerate(draw_scenes('train', 120, 3)):
        group = draw_group(Random(seed), base)
        kinds = {item.kind for item in base.items}
        may_have_more = len(base.items) < 4 and any(kinds <= mates for mates in partners('train').values())
        assert group[0] == base and [scene.unnamed for scene in group].count(1) == 4 * may_have_more
        assert len({scene.places[: len(base.items)] for scene in group}) == len(group) == GROUP
        for scene in group:
            assert scene.named == base.items and scene.meaning == base.meaning and scene.relation == base.relation
            assert len(scene.items) == len(base.items) + scene.unnamed
            assert all(b.kind in partners('train')[a.kind] for a, b in combinations(scene.items, 2))
            check_places(scene)
            found = cells(scene)
            assert all(a[0] != b[0] and a[1] != b[1] for a, b in list(combinations(found, 2))[1:])
        sizes[len(base.items)] += may_have_more
    assert sizes[2] and sizes[3] and not sizes[4]


@pytest.mark.parametrize(
    ('count', 'share', 'groups'),
    [(60, 0.5, 3), (100, 0.24, 2), (100, 0.26, 3), (15, 1, 1), (28, 1, 2), (30, 1, 3), (9, 1, 0), (50, 0, 0)],
)
def test_the_number_of_groups(count, share, groups):
    assert group_count(count, share) == groups
    scenes = duplicated(count, 7, share)
    meanings = Counter(scene.meaning for scene in scenes)
    assert len(scenes) == count and sum(number == GROUP for number in meanings.values()) == groups
    ordinary = {scene.meaning for scene in draw_scenes('train', count - 9 * groups, 7)}
    assert meanings.keys() == ordinary


def test_duplicates_are_anywhere_in_the_files():
    scenes = duplicated(2000, 0, 0.5)
    meanings = Counter(scene.meaning for scene in scenes)
    where = [number for number, scene in enumerate(scenes) if meanings[scene.meaning] > 1]
    assert len(where) == 1000
    assert sum(number < 1000 for number in where) == pytest.approx(500, abs=80)
    assert sum(number % 4 == 0 for number in where) == pytest.approx(250, abs=60)


def files_of(folder):
    """The names of the dataset's files; other tests leave hidden ones, the caches of annotations."""
    paths = [path.relative_to(folder) for path in folder.rglob('*') if path.is_file() and path.name[0] != '.']
    return {str(path) for path in paths}


def test_only_the_training_split_changes(folder, with_duplicates):
    names = files_of(folder)
    assert names == files_of(with_duplicates)
    changed = {name for name in names if (folder / name).read_bytes() != (with_duplicates / name).read_bytes()}
    texts = {name for name in changed if not name.startswith('images/train/')}
    assert texts == {'pretrain.json', 'retrieval_train.json', 'nlvr_train.json', 'vqa_train.json', 'world.json'}
    plain, marker = read(folder / 'world.json'), read(with_duplicates / 'world.json')
    assert 'duplicates' not in plain and marker.pop('duplicates') == 0.5
    assert {name for name in plain if plain[name] != marker[name]} == {'rows'} and [*plain] == [*marker]
    assert not any('also_true_of' in row for row in read(folder / 'pretrain.json'))


def test_the_rows_of_a_seed_never_change(with_duplicates):
    """Raise `build.VERSION` if this digest changes."""
    names = ('pretrain.json', 'retrieval_train.json', 'nlvr_train.json', 'vqa_train.json')
    digest = hashlib.sha256(b''.join((with_duplicates / name).read_bytes() for name in names))
    assert (build.VERSION, digest.hexdigest()[:16]) == (2, '76504ffbdf51725a')


def test_annotations_with_truth_load(with_duplicates, tmp_path):
    table = load_annotations(with_duplicates / 'pretrain.json', 'pretrain', str(tmp_path))
    rows = read(with_duplicates / 'pretrain.json')
    assert [row.get('also_true_of') for row in table] == [row.get('also_true_of') for row in rows]


def test_swapped_words_are_false_of_the_whole_picture(with_duplicates, seen):
    scenes = build.scenes_of(read(with_duplicates / 'world.json'), 'train')
    assert any(scene.unnamed for scene in scenes)
    for row in choice_rows(scenes, 'train', 0):
        assert [is_true(caption, seen[row['image']]) for caption in row['captions']] == [True, False], row


@pytest.mark.parametrize('share', [-0.1, 1.01, float('nan'), float('inf')])
def test_a_share_out_of_range_is_refused(tmp_path, share):
    with pytest.raises(InputError, match=f'^--duplicates {share} is not a share .*: give a number from 0 to 1$'):
        command.main(['--out', str(tmp_path / 'w'), f'--duplicates={share}'])
    assert not (tmp_path / 'w').exists()


def test_a_folder_with_another_share_is_refused(folder, with_duplicates):
    assert make_dataset(folder, 0, SCENE_COUNTS)['reused']
    assert make_dataset(with_duplicates, 0, SCENE_COUNTS, duplicates=0.5)['reused']
    assert build.require_marker(str(with_duplicates))['duplicates'] == 0.5
    for out, share in (
        (folder, 0.5),
        (folder, 0),
        (with_duplicates, 0),
        (with_duplicates, None),
        (with_duplicates, 0.2),
    ):
        with pytest.raises(InputError, match='world.json is of another dataset .*: remove'):
            make_dataset(out, 0, SCENE_COUNTS, duplicates=share)
    with pytest.raises(InputError, match=r"'test': 40}, duplicates 0.5\): remove"):
        make_dataset(with_duplicates, 0, SCENE_COUNTS)


def test_command_with_duplicates(tmp_path, with_duplicates, capsys):
    words = ['--out', str(tmp_path / 'w'), '--scenes', '60', '--val_scenes', '20', '--test_scenes', '40']
    command.main([*words, '--duplicates', '0.5'])
    assert '60 train, 20 val, 40 test, 3 groups of 10 duplicates\n' in capsys.readouterr().out
    for path in (path for path in with_duplicates.rglob('*') if path.is_file() and not path.name.startswith('.')):
        assert path.read_bytes() == (tmp_path / 'w' / path.relative_to(with_duplicates)).read_bytes(), path


def test_a_share_of_0_only_adds_the_truth(folder, tmp_path):
    make_dataset(tmp_path, 0, SCENE_COUNTS, duplicates=0)
    changed = {name for name in files_of(folder) if (folder / name).read_bytes() != (tmp_path / name).read_bytes()}
    assert changed == {'pretrain.json', 'world.json'}
    rows = read(tmp_path / 'pretrain.json')
    assert [{key: row[key] for key in ('image', 'caption')} for row in rows] == read(folder / 'pretrain.json')
    assert read(tmp_path / 'world.json')['duplicates'] == 0
