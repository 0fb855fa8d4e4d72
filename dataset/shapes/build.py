"""The synthetic dataset on disk: images, annotation files of every task in the official formats, and a vocabulary.

Everything follows from the seed and the numbers of scenes. `world.json`, the marker, is written last, and an empty file
`.unfinished` first: a folder with `world.json` is reused, one with `.unfinished` only is written again from the start.
A folder that holds files and neither of the two is not of this program, and is refused.
"""

import io
import json
import os
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from dataset.shapes.captions import one_word_apart, plural, some_captions
from dataset.shapes.drawing import draw
from dataset.shapes.duplicates import check_share, other_images, scenes_of
from dataset.shapes.nlvr import FORMS, NUMBER_WORDS, statements
from dataset.shapes.scene import COLORS, CONVERSE, RELATION_WORDS, SHAPES, SIZES, SPLITS, Scene
from dataset.shapes.vqa import ANSWERS, questions
from utils.errors import InputError
from utils.files import atomic_write
from utils.ownership import own_folder, release_folder

VERSION = 2  # of what a seed gives; raise it with every change of an image or a row
SCENES = {'train': 10000, 'val': 300, 'test': 500}
MARKER, UNFINISHED = 'world.json', '.unfinished'
PARAMETERS = ('version', 'seed', 'scenes', 'duplicates')  # of the marker; the last only if it is given
JPEG = {'quality': 90, 'subsampling': 0}  # no chroma subsampling: colors are not averaged over neighboring pixels
WORD_KINDS = {'color': COLORS, 'size': SIZES, 'shape': SHAPES, 'relation': RELATION_WORDS}
SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
OTHER_WORDS = (
    *('a', 'an', 'the', 'is', 'are', 'there', 'of', 'and', 'or', 'with', 'what', 'which', 'how', 'many', 'color'),
    *('colour', 'shape', 'shapes', 'object', 'objects', 'another', 'other', 'exactly', 'each'),
)


def make_dataset(
    out: str | Path, seed: int = 0, sizes: Mapping[str, int] | None = None, duplicates: float | None = None
) -> dict:
    """Write the dataset to the folder `out`, or reuse it if it is there.

    sizes: numbers of scenes by split, by default `SCENES`. duplicates: a share of the training images, see
    `dataset.shapes.duplicates`; with None there are none, and rows do not tell which other images they are true of.
    Returns the content of `world.json`, and `reused`. InputError if the folder contains a dataset of another seed,
    size, version or share of duplicates, or files of another program, or if a number of scenes or the share is too
    large or too small.
    """
    check_share(duplicates or 0)
    out = Path(out)
    wanted = {'version': VERSION, 'seed': seed, 'scenes': SCENES | dict(sizes or {})}
    wanted |= {} if duplicates is None else {'duplicates': float(duplicates)}
    found = read_marker(out)
    if found and {key: found[key] for key in PARAMETERS if key in found} != wanted:
        raise InputError(
            f'{out / MARKER} is of another dataset ({_describe(found)}): remove {out} or choose another folder'
        )
    if found and is_complete(out, found):
        return found | {'reused': True}
    if not found:
        refuse_foreign_files(out)
    scenes = {split: scenes_of(wanted, split) for split in SPLITS}
    rows = {}
    for split in SPLITS:
        rows |= annotations(split, scenes[split], seed, with_truth=duplicates is not None)
    rows['answer_list.json'] = list(ANSWERS)
    marker = wanted | {
        'rows': {name: len(rows[name]) for name in rows},
        'vocabulary': len(vocabulary()),
        'test_captions_one_word_apart': share_one_word_apart(rows['retrieval_test.json']),
    }
    out.mkdir(parents=True, exist_ok=True)
    own_folder(out, '--out')
    try:
        if read_marker(out) != found:  # another process wrote it meanwhile
            return make_dataset(out, seed, sizes, duplicates)
        (out / UNFINISHED).touch()
        for name, content in encoded_files(scenes, rows, marker):
            with atomic_write(out / name, 'wb') as file:
                file.write(content)
        (out / UNFINISHED).unlink()
    finally:
        release_folder()
    return marker | {'reused': False}


def image_name(split: str, number: int) -> str:
    return f'images/{split}/{number:05d}.jpg'


def encoded_files(scenes: dict[str, list[Scene]], rows: dict[str, list], marker: dict) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file of the dataset, the marker last."""
    for split in SPLITS:
        for number, scene in enumerate(scenes[split]):
            yield image_name(split, number), jpeg(scene)
    for name, listed in rows.items():
        yield name, as_json(listed).encode()
    yield 'word_kinds.json', (json.dumps(WORD_KINDS, indent=1) + '\n').encode()
    yield 'vocab/vocab.txt', ('\n'.join(vocabulary()) + '\n').encode()
    yield MARKER, (json.dumps(marker, indent=1) + '\n').encode()


def annotations(split: str, scenes: Sequence[Scene], seed: int, with_truth: bool = False) -> dict[str, list[dict]]:
    """{file name: rows} of one split. with_truth: a row of pre-training names the other images it is true of."""
    caption_rng, statement_rng, question_rng = (
        Random(f'{seed} {split} {what}') for what in ('captions', 'statements', 'questions')
    )
    images = [image_name(split, number) for number in range(len(scenes))]
    nlvr_split = 'dev' if split == 'val' else split
    nlvr = statements(statement_rng, nlvr_split, scenes, images, sets=len(scenes))
    first_id = 10**7 * SPLITS.index(split)
    vqa = [
        row
        for number, (scene, image) in enumerate(zip(scenes, images, strict=True))
        for row in questions(question_rng, scene, image, first_id + 10 * number)
    ]
    captions = {image: some_captions(caption_rng, scene, 3) for scene, image in zip(scenes, images, strict=True)}
    files = training_captions(captions) if split == 'train' else evaluation_captions(split, captions)
    if with_truth and split == 'train':
        for row, others in zip(files['pretrain.json'], other_images(scenes, images), strict=True):
            row.update({'also_true_of': others} if others else {})
    files |= {f'nlvr_{nlvr_split}.json': nlvr}
    if split != 'test':
        return files | {f'vqa_{split}.json': vqa}
    without_answers = [{key: row[key] for key in ('question_id', 'question', 'image', 'dataset')} for row in vqa]
    return files | {'vqa_test.json': without_answers, 'vqa_test_annotated.json': vqa}


def training_captions(captions: dict[str, list[str]]) -> dict[str, list[dict]]:
    """Rows of pre-training, every fourth with a single string as its caption, and of retrieval."""
    pretrain, retrieval = [], []
    for number, (image, texts) in enumerate(captions.items()):
        pretrain.append({'image': image, 'caption': texts if number % 4 else texts[0]})
        retrieval += [{'image': image, 'caption': text, 'image_id': f'train_{number}'} for text in texts[:2]]
    return {'pretrain.json': pretrain, 'retrieval_train.json': retrieval}


def evaluation_captions(split: str, captions: dict[str, list[str]]) -> dict[str, list[dict]]:
    """Rows of retrieval in the evaluation format: one per image, with all its captions."""
    return {f'retrieval_{split}.json': [{'image': image, 'caption': texts} for image, texts in captions.items()]}


def share_one_word_apart(rows: Sequence[dict]) -> float:
    """Share of the captions in retrieval rows that differ in one word from a caption of another row, to 4 decimals."""
    captions = [(caption, number) for number, row in enumerate(rows) for caption in row['caption']]
    return round(one_word_apart(*zip(*captions, strict=True)), 4)


def vocabulary() -> list[str]:
    """The WordPiece vocabulary: every word that the texts may contain, and single characters for all other words."""
    sentences = ' '.join(FORMS).replace('{sight}', '').replace('{verb}', '')
    words = {
        *(*SIZES, *COLORS, *SHAPES, *map(plural, SHAPES), *CONVERSE, *CONVERSE.values(), *NUMBER_WORDS.values()),
        *(word for answer in ANSWERS for word in answer.split()),
        *OTHER_WORDS,
        *sentences.split(),
    }
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *string.punctuation, *(f'##{letter}' for letter in letters)]
    return [*SPECIAL, *pieces, *sorted(words.difference(pieces))]


def jpeg(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    draw(scene).save(buffer, 'JPEG', **JPEG)
    return buffer.getvalue()


def read_marker(out: Path) -> dict | None:
    """The content of `world.json`; None if there is none."""
    path = out / MARKER
    if not path.is_file():
        return None
    try:
        marker = json.loads(path.read_text())
    except (ValueError, RecursionError):
        marker = None
    if not isinstance(marker, dict):
        raise InputError(f'{path} was not written by this program: remove {out} or choose another folder')
    return marker


def require_marker(data: str) -> dict:
    """The content of `world.json` of a dataset that this version wrote. InputError if there is none."""
    marker = read_marker(Path(data))
    if marker is None or marker.get('version') != VERSION:
        raise InputError(
            f'--data {data}: there is no {MARKER} of version {VERSION} in it; give a folder that `python -m '
            'dataset.shapes --out FOLDER` wrote'
        )
    return marker


def as_json(rows: Sequence[object]) -> str:
    """Rows as a JSON list, one row per line."""
    return '[\n' + ',\n'.join(map(json.dumps, rows)) + '\n]\n'


def refuse_foreign_files(out: Path) -> None:
    """InputError if the folder holds files that this program did not write; hidden ones do not count."""
    if any((out / name).is_file() for name in (UNFINISHED, MARKER)):  # in this order: another process may be writing
        return
    if out.exists() and not out.is_dir():
        raise InputError(f'{out} is a file; give the name of a folder')
    for folder, folders, files in os.walk(out):
        folders[:] = [name for name in folders if not name.startswith('.')]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        visible = sorted(name for name in [*files, *links] if not name.startswith('.'))
        if visible and not (out / UNFINISHED).is_file() and not (out / MARKER).is_file():  # another process began now
            raise InputError(
                f'--out {out} holds {Path(folder, visible[0])}, which may not be of this program and could be '
                'overwritten: give another folder, or empty this one'
            )


def is_complete(out: Path, marker: dict) -> bool:
    """Whether all files of the dataset are still there."""
    images = [image_name(split, number) for split, count in marker['scenes'].items() for number in range(count)]
    return all(
        (out / name).is_file() for name in [*marker.get('rows', ()), 'word_kinds.json', 'vocab/vocab.txt', *images]
    )


def _describe(marker: dict) -> str:
    duplicates = f', duplicates {marker["duplicates"]}' if 'duplicates' in marker else ''
    return f'version {marker.get("version")}, seed {marker.get("seed")}, scenes {marker.get("scenes")}{duplicates}'
