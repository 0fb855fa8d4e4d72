"""Captions of the synthetic dataset with one word swapped, to choose between: size, color, shape or relation.

    python -m dataset.shapes.choices --data output/shapes --out output/shapes/choices_test.json
    python -m reports.choose_caption output/shapes_checkpoint/checkpoint_15.pth output/shapes/choices_test.json \\
        --image_root output/shapes

Four rows for each scene of a split, {image, captions: [true, false], kind}. Everything follows from the seed of the
dataset, whose files stay as they are.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from dataset.shapes.build import MARKER, as_json, image_name, require_marker
from dataset.shapes.captions import WORDINGS, all_captions
from dataset.shapes.duplicates import scenes_of
from dataset.shapes.scene import COLORS, RELATION_WORDS, SHAPES, SIZES, SPLITS, Scene, pick, rand_below
from utils.arguments import Parser
from utils.entry import run_main
from utils.files import atomic_write, check_output

FIELDS = {'size': SIZES, 'color': COLORS, 'shape': SHAPES}
KINDS = (*FIELDS, 'relation')


def choice_rows(scenes: Sequence[Scene], split: str, seed: int) -> list[dict]:
    """Four rows of each scene of a split, one of each kind."""
    rng = Random(f'{seed} {split} choices')
    rows = []
    for number, scene in enumerate(scenes):
        for kind in KINDS:
            captions = swap_relation(rng, scene) if kind == 'relation' else swap_word(rng, scene, kind)
            rows.append({'image': image_name(split, number), 'captions': captions, 'kind': kind})
    return rows


def swap_word(rng: Random, scene: Scene, field: str) -> list[str]:
    """[a caption, the same with another size, color or shape of one item], so that no such item is in the picture."""
    wording = rand_below(rng, len(WORDINGS))
    i = rand_below(rng, len(scene.named))
    others = [scene.items[i]._replace(**{field: value}) for value in FIELDS[field]]
    swapped = pick(rng, [item for item in others if item not in scene.items])
    changed = replace(scene, items=(*scene.items[:i], swapped, *scene.items[i + 1 :]))
    return [all_captions(scene)[wording], all_captions(changed)[wording]]


def swap_relation(rng: Random, scene: Scene) -> list[str]:
    """[a caption, the same with another relation]: two items are in one relation only, so any other is false."""
    words = pick(rng, all_captions(scene)).split()
    (place,) = (i for i, word in enumerate(words) if word in RELATION_WORDS)
    swapped = pick(rng, [word for word in RELATION_WORDS if word != words[place]])
    return [' '.join(words), ' '.join([*words[:place], swapped, *words[place + 1 :]])]


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog='python -m dataset.shapes.choices', description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, help='folder that `python -m dataset.shapes` wrote')
    parser.add_argument('--out', required=True, help='JSON file to write')
    parser.add_argument('--split', choices=SPLITS, default='test', help='whose scenes (default %(default)s)')
    args = parser.parse_args(argv)
    marker = require_marker(args.data)
    check_output(args.out, [Path(args.data, name) for name in (*marker['rows'], MARKER, 'word_kinds.json')])
    rows = choice_rows(scenes_of(marker, args.split), args.split, marker['seed'])
    with atomic_write(args.out) as file:
        file.write(as_json(rows))
    print(f'{args.out}: {len(rows)} rows of {len(rows) // len(KINDS)} scenes, {len(KINDS)} kinds of swapped words')


if __name__ == '__main__':
    run_main(main)
