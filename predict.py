"""Use a trained checkpoint, from Python or from the command line.

    from predict import load_model
    model = load_model('examples/shapes_model')      # a checkpoint of any task, a folder, or a hub name
    model.similarity(images, texts), model.match(images, texts), model.heatmap(image, text)

    python predict.py features --images PICTURES --out features.parquet
    python predict.py retrieve --images PICTURES --text "a small red star" --out found.html
    python predict.py match --image a.jpg --text "a small red star" --text "a large blue ring"
    python predict.py heatmap --image a.jpg --text "a small red star" --out heatmap.png
    python predict.py answer --checkpoint output/vqa/checkpoint_07.pth --image a.jpg --question "what color is the cat?"
    python predict.py verify --checkpoint output/NLVR/checkpoint_best.pth --image a.jpg b.jpg --statement "both are red"

Without --checkpoint the commands use the small weights of the synthetic dataset in examples/shapes_model.
Configuration, answers and vocabulary are the checkpoint's own, unless --config or --text_encoder name others.
"""

import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules load prints no traceback

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet
from torch import Tensor

from dataset.images import BadImage
from dataset.prepare.common import Summary, progress_bar
from dataset.prepare.images import files_under, has_image_extension, is_utf8
from dataset.sources import batches, paired
from inference import BATCH_SIZE, Predictor, load_model
from models.gradcam import GRADCAM, METHODS
from reports.heatmaps import draw_heatmaps
from reports.retrieval_page import write_found_page
from utils.arguments import Parser, add_own_arguments, positive_int
from utils.entry import run_main
from utils.errors import InputError
from utils.files import atomic_write, check_output

__all__ = ['Predictor', 'load_model']
EXAMPLE = str(Path(__file__).parent / 'examples' / 'shapes_model')
SHOWN = 5  # answers to a question


def run_features(args: argparse.Namespace) -> None:
    """write the features of all pictures of a folder"""
    if not args.out.endswith(('.parquet', '.npz')):
        raise InputError(f'--out {args.out}: the name must end in .parquet or .npz')
    check_output(args.out)
    paths = pictures_in(args.images)
    model = loaded(args)
    if args.out.endswith('.npz'):
        parts = list(encoded(model, args.images, paths, args.batch_size))
        names = [name for some, _ in parts for name in some]
        with atomic_write(args.out, 'wb') as file:
            np.savez(file, path=np.array(names), feature=torch.cat([features for _, features in parts]).numpy())
    else:
        names = []
        size = model.config['embed_dim']
        schema = pyarrow.schema([('path', pyarrow.string()), ('feature', pyarrow.list_(pyarrow.float32(), size))])
        with atomic_write(args.out, 'wb') as file, parquet.ParquetWriter(file, schema) as writer:
            for some, features in encoded(model, args.images, paths, args.batch_size):
                column = pyarrow.FixedSizeListArray.from_arrays(features.numpy().ravel(), size)
                writer.write_table(pyarrow.table([some, column], schema=schema))
                names += some
    print(f'{args.out}: features of {len(names)} pictures, {model.config["embed_dim"]} numbers each')


def run_retrieve(args: argparse.Namespace) -> None:
    """find the best pictures of a folder for each text"""
    if not args.out.endswith('.html'):
        raise InputError(f'--out {args.out}: the name must end in .html')
    check_output(args.out)
    paths = pictures_in(args.images)
    model = loaded(args)
    texts = model.encode_text(args.text)
    parts = list(encoded(model, args.images, paths, args.batch_size))
    names = [name for some, _ in parts for name in some]
    sims = texts @ torch.cat([features for _, features in parts]).t()  # [texts, pictures]
    kind = "ITM's logit of a match" if args.rerank else 'ITC cosine'
    found = []
    for text, sim in zip(args.text, sims, strict=True):
        best = sim.argsort(descending=True, stable=True)[: max(args.rerank, args.top)]
        scores = sim[best]
        if args.rerank:
            candidates = [os.path.join(args.images, names[number]) for number in best.tolist()]
            scores = model.match_logits(candidates, text, args.batch_size)[:, 1]  # as Retrieval.py re-ranks
        order = scores.argsort(descending=True, stable=True)[: args.top]
        found.append([(names[best[i]], float(scores[i])) for i in order.tolist()])
    write_found_page(args.out, args.text, found, args.images, kind)
    for text, pictures in zip(args.text, found, strict=True):
        print(f'{text}\n' + '\n'.join(f'{score:10.4f}  {name}' for name, score in pictures))
    print(f'{args.out}: the best {len(found[0])} of {len(names)} pictures by {kind}')


def run_match(args: argparse.Namespace) -> None:
    """say how well texts fit pictures: cosine of ITC, probability of ITM"""
    images, texts = paired(args.image, args.text)
    model = loaded(args)
    sims = (model.encode_image(images) * model.encode_text(texts)).sum(dim=1)
    print('   ITC cosine   ITM probability')
    for image, text, sim, probability in zip(images, texts, sims, model.match(images, texts), strict=True):
        print(f'{sim:13.4f} {probability:17.4f}  {image}  {text}')


def run_heatmap(args: argparse.Namespace) -> None:
    """draw where the model finds each word of a text in a picture"""
    out = args.out or f'{os.path.splitext(args.image)[0]}_heatmap.png'
    if not out.endswith('.png'):
        raise InputError(f'--out {out}: the name must end in .png')
    check_output(out, [args.image])
    maps = loaded(args).heatmap(args.image, args.text, args.layer, args.method)
    draw_heatmaps(args.image, maps, out)
    print(f'{out}: heat maps of {max(1, len(maps) - 1)} words and of the whole text')


def run_answer(args: argparse.Namespace) -> None:
    """answer questions about a picture (a checkpoint of VQA.py)"""
    model = loaded(args)
    for question in args.question:
        found = model.answer(args.image, question, SHOWN)
        print(question + ''.join(f'\n{100 * probability:7.2f} %  {text}' for text, probability in found))


def run_verify(args: argparse.Namespace) -> None:
    """say whether a statement about two pictures is true (a checkpoint of NLVR.py)"""
    model = loaded(args)
    for statement in args.statement:
        print(f'{100 * model.verify(*args.image, statement):7.2f} % true  {statement}')


def loaded(args: argparse.Namespace) -> Predictor:
    return load_model(args.checkpoint, args.config, args.text_encoder, args.device, args.set)


def pictures_in(folder: str) -> list[str]:
    """Sorted paths of all pictures under a folder, relative to it. InputError if there is none."""
    summary = Summary(folder)
    found = [path for path in files_under(folder, summary) if has_image_extension(path)]
    for path in filter(lambda path: not is_utf8(path), found):
        summary.drop('name that is not UTF-8', path.encode('utf-8', 'backslashreplace').decode())
    found = [*filter(is_utf8, found)]
    for reason in summary.dropped:
        print(f'left out: {reason}, the first: {summary.first[reason]}', file=sys.stderr)
    if not found:
        raise InputError(f'--images {folder}: there is no picture in it; give the folder of the pictures')
    return found


def encoded(model: Predictor, folder: str, names: list[str], batch_size: int) -> Iterator[tuple[list[str], Tensor]]:
    """(names, features [n, E]) of batches of pictures, with a progress bar; unreadable ones are named and left out."""
    left_out = []
    for some in progress_bar([*batches(names, batch_size)], f'batches of {batch_size} pictures'):
        paths = [os.path.join(folder, name) for name in some]
        try:
            yield some, model.encode_image(paths, batch_size)
        except BadImage:
            faults = [fault_of(model, path) for path in paths]
            left_out += filter(None, faults)
            readable = [name for name, fault in zip(some, faults, strict=True) if not fault]
            yield readable, model.encode_image([os.path.join(folder, name) for name in readable], batch_size)
    for fault in left_out:
        print(f'left out: {fault}', file=sys.stderr)
    if len(left_out) == len(names):
        raise InputError(f'--images {folder}: none of its {len(names)} pictures can be read, see above')


def fault_of(model: Predictor, path: str) -> str | None:
    """Why a picture cannot be read, None if it can."""
    try:
        model.transform(path)
    except BadImage as error:
        return str(error)
    return None


def create_parser() -> Parser:
    parser = Parser(description='Use a trained checkpoint.')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=run.__doc__.splitlines()[0])
        command.set_defaults(run=run)
        command.add_argument(
            '--checkpoint',
            default=EXAMPLE,
            help='a checkpoint file, a folder of save_pretrained, or a hub name (default: examples/shapes_model)',
        )
        add_own_arguments(command)
        command.add_argument(
            '--set', action='append', default=[], metavar='KEY=VALUE', help='set a key of the configuration'
        )
        command.add_argument('--device', default='cuda', help='cuda (the CPU if there is no GPU) or cpu')
        return command

    def add_folder(
        name: str, run: Callable[[argparse.Namespace], None], out: dict[str, Any]
    ) -> argparse.ArgumentParser:
        command = add(name, run)
        command.add_argument('--images', required=True, metavar='FOLDER', help='the folder of the pictures')
        command.add_argument('--batch_size', type=positive_int, default=BATCH_SIZE, help='(default %(default)s)')
        command.add_argument('--out', **out)
        return command

    add_folder('features', run_features, {'required': True, 'help': 'the .parquet or .npz file to write'})
    command = add_folder('retrieve', run_retrieve, {'default': 'found.html', 'help': 'the page (default %(default)s)'})
    command.add_argument('--text', required=True, action='append', help='what to look for; may be repeated')
    command.add_argument('--top', type=positive_int, default=10, help='pictures to show (default %(default)s)')
    command.add_argument(
        '--rerank',
        type=int,
        default=64,
        help='of the best by ITC so many are re-ranked by ITM, 0 for none (default 64)',
    )
    command = add('match', run_match)
    command.add_argument('--image', required=True, action='append', help='an image file; may be repeated')
    command.add_argument('--text', required=True, action='append', help='a text for it, or for each image')
    command = add('heatmap', run_heatmap)
    command.add_argument('--image', required=True, help='the image file')
    command.add_argument('--text', required=True, help='the text')
    command.add_argument('--layer', type=positive_int, help='fusion layer (default: the third, or the last but one)')
    command.add_argument('--method', choices=METHODS, default=GRADCAM, help='(default %(default)s)')
    command.add_argument('--out', help='the PNG file to write (default: IMAGE_heatmap.png beside the image)')
    command = add('answer', run_answer)
    command.add_argument('--image', required=True, help='the image file')
    command.add_argument('--question', required=True, action='append', help='a question about it; may be repeated')
    command = add('verify', run_verify)
    command.add_argument('--image', required=True, nargs=2, metavar=('LEFT', 'RIGHT'), help='the two image files')
    command.add_argument('--statement', required=True, action='append', help='a statement; may be repeated')
    return parser


def show_warning(message: Warning | str, *_: Any) -> None:
    print(f'warning: {message}', file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    args = create_parser().parse_args(argv)
    if getattr(args, 'rerank', 0) < 0:
        raise InputError(f'--rerank {args.rerank}: must be at least 0')
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        args.run(args)


if __name__ == '__main__':
    run_main(main)
