"""NLVR2: train.json, dev.json and test1.json of its release, each JSON Lines."""

import argparse
import os
from collections.abc import Iterator

from dataset.prepare.common import Summary, add_common, clean_caption, join, need, progress, stream_json, write_rows
from dataset.prepare.exclude import Exclusions
from utils.errors import InputError

FILES = {'train': 'nlvr_train.json', 'dev': 'nlvr_dev.json', 'test1': 'nlvr_test.json', 'test2': 'nlvr_test2.json'}


def add_nlvr2(commands) -> None:
    parser = commands.add_parser(
        'nlvr2',
        help='NLVR2: train.json, dev.json, test1.json',
        description='Writes nlvr_train.json, nlvr_dev.json and nlvr_test.json. Images are expected where the release '
        'puts them: images/train/DIRECTORY/, dev/, test1/.',
    )
    parser.add_argument('files', nargs='+', metavar='JSON')
    add_common(parser, 'FOLDER to write to')
    parser.set_defaults(run=run_nlvr2)


def run_nlvr2(args: argparse.Namespace) -> Summary:
    summary, exclusions = Summary('NLVR2'), Exclusions(args.exclude)
    for path in args.files:
        rows = list(statement_rows(path, args.image_prefix, exclusions, summary))
        splits = {split for split, _ in rows}
        if len(splits) > 1:
            raise InputError(f'{path} mixes the splits {", ".join(sorted(splits))}: name the files of the release')
        for split in splits:
            write_rows(os.path.join(args.out, FILES[split]), (row for _, row in rows), summary)
    return summary


def statement_rows(path: str, prefix: str, exclusions: Exclusions, summary: Summary) -> Iterator[tuple[str, dict]]:
    """(split, row); train-10171-0-1 identifies the second statement over the images train-10171-0-img0 and -img1."""
    for item in progress(stream_json(path, lines=True), os.path.basename(path)):
        identifier = need(item, 'identifier', path, 'a line of NLVR2')
        sentence, label = need(item, 'sentence', path, 'a line of NLVR2'), need(item, 'label', path, 'a line of NLVR2')
        split, stem = identifier.split('-')[0], identifier.rpartition('-')[0]
        if split not in FILES:
            raise InputError(f"{path}: identifier '{identifier}' starts with none of {', '.join(FILES)}: is it NLVR2?")
        folder = split
        if split == 'train':
            folder = f'images/train/{need(item, "directory", path, "a line of train.json")}'
        images = [join(prefix, folder, f'{stem}-img{side}.png') for side in (0, 1)]
        summary.read[f'statements of {split}'] += 1
        if str(label) not in ('True', 'False'):
            summary.dropped['label that is neither True nor False'] += 1
        elif any(map(exclusions.names, images)):
            summary.excluded.update(image for image in images if exclusions.names(image))
        elif (clean := clean_caption(sentence, summary)) is not None:
            yield split, {'images': images, 'sentence': clean, 'label': str(label), 'identifier': identifier}
