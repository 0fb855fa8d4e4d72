"""How often a model prefers the true caption of a picture to a slightly wrong one: SugarCrepe, ARO, Winoground.

    python -m reports.choose_caption output/pretrain/checkpoint_19.pth sugarcrepe/swap_att.json \\
        sugarcrepe/swap_obj.json --image_root coco/val2017

ITC and ITM choose side by side, in percent. `dataset/choices.py` lists the layouts of files, docs/choices.md the
commands of the benchmarks.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dataset.choices import LAYOUTS, WORDS, Choice, Picture, read_choices
from dataset.text import pre_caption
from utils.arguments import Parser, add_own_arguments, positive_int
from utils.entry import run_main
from utils.errors import InputError
from utils.files import atomic_write, check_output

if TYPE_CHECKING:
    from inference import Predictor

Scores = list[list[list[float]]]  # of each row and picture those of the captions


def itc_scores(model: 'Predictor', rows: Sequence[Choice], batch_size: int) -> Scores:
    """The cosine of every picture and caption of a row; each picture and each cleaned caption is encoded once."""
    import torch

    pictures = list(dict.fromkeys(picture for row in rows for picture in row.pictures))
    texts = list(dict.fromkeys(cleaned(caption) for row in rows for caption in row.captions))
    parts = []
    for some in _batches(pictures, batch_size, 'ITC, images'):
        with _naming_rows(some, rows):
            parts.append(model.encode_image(_load(some), batch_size))
    image_feat = dict(zip(pictures, torch.cat(parts), strict=True))
    text_feat = dict(zip(texts, model.encode_text(texts, batch_size), strict=True))
    return scores_of(rows, lambda picture, text: float(image_feat[picture] @ text_feat[text]))


def itm_scores(model: 'Predictor', rows: Sequence[Choice], batch_size: int) -> Scores:
    """How much more likely ITM finds "match" than "no match", as a difference of logits: it never rounds to 1.

    Each picture and cleaned caption is scored once, so equal captions of a picture are a tie.
    """
    pairs = {(picture, cleaned(caption)) for row in rows for picture in row.pictures for caption in row.captions}
    ordered = sorted(pairs, key=lambda pair: (pair[0].path, pair[0].box or (), pair[1]))  # a picture is encoded once
    found: dict[tuple[Picture, str], float] = {}
    for some in _batches(ordered, batch_size, 'ITM, pairs'):
        pictures = [picture for picture, _ in some]
        with _naming_rows(pictures, rows):
            logits = model.match_logits(_load(pictures), [text for _, text in some], batch_size)
        found |= zip(some, (logits[:, 1] - logits[:, 0]).tolist(), strict=True)
    return scores_of(rows, lambda picture, text: found[picture, text])


def scores_of(rows: Sequence[Choice], score: Callable[[Picture, str], float]) -> Scores:
    """The scores of every picture and cleaned caption of each row."""
    return [
        [[score(picture, cleaned(caption)) for caption in row.captions] for picture in row.pictures] for row in rows
    ]


def cleaned(caption: str) -> str:
    """A caption as the model reads it."""
    return pre_caption(caption, WORDS)


def _batches(items: list, size: int, title: str) -> Iterator[list]:
    from dataset.prepare.common import progress_bar

    starts = range(0, len(items), size)
    return (items[start : start + size] for start in progress_bar(starts, title, len(starts)))


def _load(pictures: Sequence[Picture]) -> list[Any]:
    """Pictures as a model takes them: paths, or what is in the box. Equal ones are one object."""
    images = {picture: cropped(picture) if picture.box else picture.path for picture in dict.fromkeys(pictures)}
    return [images[picture] for picture in pictures]


def cropped(picture: Picture) -> Any:
    """The Pillow image in the box of a picture, black beyond its edges. BadImage if the box is of another picture."""
    from PIL import Image

    from dataset.images import bad_image, read_image

    image = Image.fromarray(read_image(picture.path))
    if picture.box:
        left, top, right, bottom = picture.box
        width, height = image.size
        outside = right <= 0 or bottom <= 0 or left >= width or top >= height
        if outside or right - left > 2 * width or bottom - top > 2 * height:
            raise bad_image(picture.path, f'it has {width} x {height} pixels, and its box is {list(picture.box)}')
        image = image.crop(picture.box)
    return image


@contextmanager
def _naming_rows(pictures: Sequence[Picture], rows: Sequence[Choice]) -> Iterator[None]:
    """An error about one of these pictures names the first row that shows it."""
    from dataset.images import BadImage

    try:
        yield
    except BadImage:
        for picture in pictures:
            try:
                cropped(picture)
            except BadImage as error:
                row = next(row for row in rows if picture in row.pictures)
                raise InputError(f'{row.place}: {error}; repair the image, or drop the row') from None
        raise


def measure(itc: Scores, itm: Scores, rows: Sequence[Choice]) -> dict[str, dict[str, Any]]:
    """{name: {itc: metrics, itm: metrics}}: Winoground's three scores, or one, `choice`."""
    from evaluation.choices import choice_metrics, pair_metrics

    kinds = [row.kind for row in rows]
    if len(rows[0].pictures) == 2:
        by_score = {'itc': pair_metrics(itc, kinds), 'itm': pair_metrics(itm, kinds)}
        return {name: {score: by_score[score][name] for score in by_score} for name in by_score['itc']}
    one = {'itc': [scores for (scores,) in itc], 'itm': [scores for (scores,) in itm]}
    return {'choice': {name: choice_metrics(scores, kinds) for name, scores in one.items()}}


def read_files(files: Sequence[str], image_root: str, layout: str | None, limit: int | None) -> list[list[Choice]]:
    """The rows of each file. InputError if some have one picture and others two."""
    found = [read_choices(file, image_root, layout, limit) for file in files]
    if len({len(row.pictures) for rows in found for row in rows}) > 1:
        raise InputError(
            'files of Winoground have two pictures in a row, others one; give them in commands of their own'
        )
    return found


def print_tables(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    from evaluation.choices import choice_lines

    for name, of_scores in metrics.items():
        if len(metrics) > 1:
            print(f'{name} score')
        print('\n'.join(choice_lines(of_scores['itc'], of_scores['itm'])))


def write_result(path: str, head: Mapping[str, Any], rows: Sequence[Choice], itc: Scores, itm: Scores) -> None:
    """Write metrics and the scores of every row. A row with one picture has its scores as [captions]."""
    listed = []
    for row, of_itc, of_itm in zip(rows, itc, itm, strict=True):
        scores = {'itc': of_itc, 'itm': of_itm} if len(of_itc) > 1 else {'itc': of_itc[0], 'itm': of_itm[0]}
        images = [picture.path for picture in row.pictures]
        listed.append(
            {'file': row.file, 'row': row.row, 'kind': row.kind, 'images': images, 'captions': row.captions} | scores
        )
    with atomic_write(path) as file:
        json.dump({**head, 'rows': listed}, file, indent=1)


def parse_arguments(argv: Sequence[str] | None) -> Any:
    parser = Parser(prog='python -m reports.choose_caption', description=__doc__.splitlines()[0])
    parser.add_argument('source', help='a checkpoint of pre-training or retrieval, a folder or a hub name of a model')
    parser.add_argument('files', nargs='+', metavar='FILE', help='files of a benchmark')
    parser.add_argument('--image_root', required=True, help='folder that the paths of the images start from')
    parser.add_argument('--layout', choices=list(LAYOUTS), help='layout of the files (default: by their content)')
    parser.add_argument('--limit', type=positive_int, help='read only so many rows of each file')
    parser.add_argument('--batch_size', type=positive_int, default=64, help='images, texts or pairs (default 64)')
    parser.add_argument('--device', default='cuda', help='cuda (the CPU if there is no GPU) or cpu')
    add_own_arguments(parser)
    parser.add_argument('--out', help='a JSON file for metrics and the scores of every row')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.out:
        check_output(args.out, args.files)
    found = read_files(args.files, args.image_root, args.layout, args.limit)

    from inference import load_model

    model = load_model(args.source, config=args.config, text_encoder=args.text_encoder, device=args.device)
    itc: Scores = []
    itm: Scores = []
    for file, rows in zip(args.files, found, strict=True):
        itc += itc_scores(model, rows, args.batch_size)
        itm += itm_scores(model, rows, args.batch_size)
        print(f'{file}: {len(rows)} rows')
    rows = [row for some in found for row in some]
    metrics = measure(itc, itm, rows)
    print_tables(metrics)
    if args.out:
        head = {'model': args.source, 'files': args.files, 'image_root': args.image_root, 'limit': args.limit}
        write_result(args.out, head | {'metrics': metrics}, rows, itc, itm)


if __name__ == '__main__':
    run_main(main)
