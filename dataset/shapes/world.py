"""The demo world on disk: pictures, annotation files of every task in the official formats, and a vocabulary.

Everything follows from the seed and the numbers of scenes. `world.json` is written last: a folder without it is
unfinished and is written again from the start, a folder with it is reused.
"""

import io
import json
import os
import string
from collections.abc import Sequence
from pathlib import Path
from random import Random

from dataset.shapes.captions import one_word_apart, plural, some_captions
from dataset.shapes.drawing import draw
from dataset.shapes.nlvr import FORMS, NUMBER_WORDS, statements
from dataset.shapes.sampling import draw_scenes
from dataset.shapes.scene import COLOURS, CONVERSE, SHAPES, SIZES, SPLITS, Scene
from dataset.shapes.vqa import ANSWERS, questions
from utils.errors import InputError

VERSION = 1  # of what a seed gives; raise it with every change of a picture or a row
SCENES = {'train': 5000, 'val': 300, 'test': 500}
MARKER = 'world.json'
JPEG = {'quality': 90, 'subsampling': 0}  # colours are not averaged over neighbouring pixels
SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
OTHER_WORDS = (
    *(
        'a',
        'an',
        'the',
        'is',
        'are',
        'there',
        'of',
        'and',
        'or',
        'with',
        'what',
        'which',
        'how',
        'many',
        'color',
        'colour',
    ),
    *('shape', 'shapes', 'object', 'objects', 'another', 'exactly', 'inside'),
)


def make_world(out: str | Path, seed: int = 0, sizes: dict[str, int] | None = None) -> dict:
    """Make the world in the folder `out`, or find it made.

    sizes: numbers of scenes by split, `SCENES` where not given. Returns what `world.json` holds, and `reused`.
    ValueError when the folder holds a world of another seed, size or version, or when a number of scenes cannot be had.
    """
    out, sizes = Path(out), SCENES | (sizes or {})
    wanted = {'version': VERSION, 'seed': seed, 'scenes': sizes}
    found = read_marker(out)
    if found and {key: found.get(key) for key in wanted} != wanted:
        raise InputError(
            f'{out / MARKER} is of another world ({_describe(found)}): remove {out} or choose another folder'
        )
    if found and is_whole(out, found):
        return found | {'reused': True}
    files = {}
    for split in SPLITS:
        scenes = draw_scenes(split, sizes[split], seed)
        images = [f'images/{split}/{number:05d}.jpg' for number in range(len(scenes))]
        files |= annotations(split, scenes, images, seed)
        for scene, image in zip(scenes, images, strict=True):
            write(out / image, jpeg(scene))
    files['answer_list.json'] = list(ANSWERS)
    for name, rows in files.items():
        write(out / name, ('[\n' + ',\n'.join(map(json.dumps, rows)) + '\n]\n').encode())
    write(out / 'vocab' / 'vocab.txt', ('\n'.join(vocabulary()) + '\n').encode())
    test = [(caption, i) for i, row in enumerate(files['retrieval_test.json']) for caption in row['caption']]
    made = wanted | {
        'rows': {name: len(rows) for name, rows in files.items()},
        'vocabulary': len(vocabulary()),
        'test_captions_one_word_apart': round(one_word_apart(*zip(*test, strict=True)), 4),
    }
    write(out / MARKER, (json.dumps(made, indent=1) + '\n').encode())
    return made | {'reused': False}


def annotations(split: str, scenes: Sequence[Scene], images: Sequence[str], seed: int) -> dict[str, list]:
    """{file name: rows} of one split."""
    captions, sentences, asked = (Random(f'{seed} {split} {what}') for what in ('captions', 'statements', 'questions'))
    pictures = list(zip(scenes, images, strict=True))
    sets = max(3, len(scenes) // 2)
    nlvr = statements(sentences, 'dev' if split == 'val' else split, scenes, images, sets)
    first = 10**7 * SPLITS.index(split)
    vqa = [row for i, (scene, image) in enumerate(pictures) for row in questions(asked, scene, image, first + 10 * i)]
    if split != 'train':
        ranked = [{'image': image, 'caption': some_captions(captions, scene, 3)} for scene, image in pictures]
        files = {f'retrieval_{split}.json': ranked, f'nlvr_{"dev" if split == "val" else split}.json': nlvr}
        if split == 'val':
            return files | {'vqa_val.json': vqa}
        asked_only = [{key: row[key] for key in ('question_id', 'question', 'image', 'dataset')} for row in vqa]
        return files | {'vqa_test.json': asked_only, 'vqa_test_annotated.json': vqa}
    pretrain, retrieval = [], []
    for i, (scene, image) in enumerate(pictures):
        texts = some_captions(captions, scene, 3)
        pretrain.append({'image': image, 'caption': texts if i % 4 else texts[0]})
        retrieval += [{'image': image, 'caption': text, 'image_id': f'train_{i}'} for text in texts[:2]]
    return {
        'pretrain.json': pretrain,
        'retrieval_train.json': retrieval,
        'nlvr_train.json': nlvr,
        'vqa_train.json': vqa,
    }


def vocabulary() -> list[str]:
    """The WordPiece vocabulary: every word that this world's texts can hold, and single characters for all others."""
    sentences = ' '.join(FORMS).replace('{sight}', '').replace('{verb}', '')
    words = {
        *(*SIZES, *COLOURS, *SHAPES, *map(plural, SHAPES), *CONVERSE, *CONVERSE.values(), *NUMBER_WORDS.values()),
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


def write(path: Path, data: bytes) -> None:
    """Write beside the place and move there, so that no reader meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    temporary.write_bytes(data)
    os.replace(temporary, path)


def read_marker(out: Path) -> dict | None:
    """What `world.json` holds; None where there is none."""
    path = out / MARKER
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except ValueError:
        raise InputError(
            f'{path} is not what this program writes there: remove {out} or choose another folder'
        ) from None


def is_whole(out: Path, marker: dict) -> bool:
    """Whether the files that the marker speaks of are still there."""
    names = [*marker['rows'], 'vocab/vocab.txt']
    names += [
        f'images/{split}/{number:05d}.jpg' for split, count in marker['scenes'].items() for number in range(count)
    ]
    return all((out / name).is_file() for name in names)


def _describe(marker: dict) -> str:
    return f'version {marker.get("version")}, seed {marker.get("seed")}, scenes {marker.get("scenes")}'
