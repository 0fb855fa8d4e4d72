"""How often the heat map of a word points to what the word describes (pointing game), on the synthetic dataset.

    python -m dataset.shapes --out output/shapes
    python -m reports.pointing_game examples/shapes_model --data output/shapes

The scenes of the test split are known. For each word of a caption that is true of exactly one shape of its picture (a
size, a color or a shape), the patch where its heat map is highest must overlap the square around that shape (Zhang et
al., ECCV 2016, with a patch instead of a point). Chance is the share of patches that do.

Legend: S patches of a side.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from dataset.shapes.build import require_marker
from dataset.shapes.drawing import IMAGE_SIDE
from dataset.shapes.sampling import draw_scenes
from dataset.shapes.scene import SIZES, Item, Place, Scene
from dataset.sources import batches
from inference import BATCH_SIZE, Predictor, load_model
from models.gradcam import GRADCAM, METHODS
from utils.arguments import Parser, add_own_arguments, positive_int
from utils.entry import run_main
from utils.errors import InputError
from utils.files import atomic_write, read_json

KINDS = Item._fields  # size, color, shape: in this order in a caption


def described_items(words: Sequence[str], scene: Scene) -> Iterator[tuple[int, str, Place]]:
    """(position in the caption, kind, place of the shape) of every word that is true of one shape of the scene only."""
    for start, word in enumerate(words):
        if word in SIZES:
            item = Item(*words[start : start + len(KINDS)])
            place = scene.places[scene.items.index(item)]
            for offset, kind in enumerate(KINDS):
                if sum(getattr(other, kind) == item[offset] for other in scene.items) == 1:
                    yield start + offset, kind, place


def overlapping(place: Place, side: int) -> list[int]:
    """The patches that overlap the square around a shape: [row x S + column, ...]."""
    width = IMAGE_SIDE / side  # pixels of a patch

    def span(center: int) -> range:
        return range(int((center - place.radius) // width), int((center + place.radius) // width) + 1)

    return [row * side + column for row in span(place.y) for column in span(place.x)]


def score_words(found: Sequence[tuple[str, Tensor]], scene: Scene) -> Iterator[tuple[str, bool, float]]:
    """(kind, whether the heat map points to the shape, chance) of the words of one caption.

    found: [(word, [S, S]), ...] in the order of the caption, see `Predictor.word_maps`.
    """
    for position, kind, place in described_items([word for word, _ in found], scene):
        heat = found[position][1]
        right = overlapping(place, len(heat))
        yield kind, int(heat.argmax()) in right, len(right) / heat.numel()


def pointing_game(
    model: Predictor, data: str, limit: int | None = None, layer: int | None = None, method: str = GRADCAM
) -> dict[str, dict[str, float]]:
    """{kind: {words, hits, chance}} over the first captions of the test pictures, hits and chance in percent.

    Kinds: size, color, shape, all. data: the folder of the synthetic dataset. limit: of the pictures. layer,
    method: see `Predictor.heatmap`.
    """
    marker = require_marker(data)
    rows = read_json(os.path.join(data, 'retrieval_test.json'), '--data')[:limit]
    scenes = draw_scenes('test', marker['scenes']['test'], marker['seed'])[:limit]
    scores: dict[str, list[tuple[bool, float]]] = {kind: [] for kind in (*KINDS, 'all')}
    for some in batches([*zip(rows, scenes, strict=True)], BATCH_SIZE):
        paths = [os.path.join(data, row['image']) for row, _ in some]
        maps = model.word_maps(paths, [row['caption'][0] for row, _ in some], layer, method)
        for (_, scene), found in zip(some, maps, strict=True):
            for kind, *score in score_words(found, scene):
                scores[kind].append(score)
                scores['all'].append(score)
    return {kind: summary(some) for kind, some in scores.items() if some}


def summary(scores: Sequence[tuple[bool, float]]) -> dict[str, float]:
    hits, chances = zip(*scores, strict=True)
    return {
        'words': len(scores),
        'hits': round(100 * sum(hits) / len(scores), 2),
        'chance': round(100 * sum(chances) / len(scores), 2),
    }


def table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    lines = ['| kind | words | points to its shape, % | chance, % |', '|---|---:|---:|---:|']
    lines += [f'| {kind} | {m["words"]:,} | {m["hits"]:.1f} | {m["chance"]:.1f} |' for kind, m in metrics.items()]
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog='python -m reports.pointing_game', description='Do heat maps point to what words describe?')
    parser.add_argument('source', help='a checkpoint file, a folder of save_pretrained, or a hub name')
    parser.add_argument('--data', required=True, help='the folder of the synthetic dataset')
    parser.add_argument('--layer', type=positive_int, help='fusion layer (default: the third, or the last but one)')
    parser.add_argument('--method', choices=METHODS, default=GRADCAM, help='(default %(default)s)')
    parser.add_argument('--limit', type=positive_int, help='of the pictures (default: all)')
    parser.add_argument('--out', help='a JSON file for the metrics')
    add_own_arguments(parser)
    parser.add_argument('--device', default='cuda', help='cuda (the CPU if there is no GPU) or cpu')
    args = parser.parse_args(argv)
    require_marker(args.data)
    model = load_model(args.source, args.config, args.text_encoder, args.device)
    metrics = pointing_game(model, args.data, args.limit, args.layer, args.method)
    if not metrics:
        raise InputError(
            f'--data {args.data}: no caption has a word that is true of one shape only; take more pictures'
        )
    print(table(metrics))
    if args.out:
        with atomic_write(args.out) as file:
            json.dump(metrics, file, indent=1)


if __name__ == '__main__':
    run_main(main)
