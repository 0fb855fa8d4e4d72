"""NLVR2: train.json, dev.json and test1.json of the release, each JSON Lines."""

import argparse
import os
from collections.abc import Iterator
from typing import Any

from dataset.prepare.arguments import add_command, add_output_arguments
from dataset.prepare.common import (
    Summary,
    add_prefix,
    clean_caption,
    progress_bar,
    require_key,
    stream_json,
    write_rows,
)
from dataset.prepare.exclude import Exclusions
from utils.errors import InputError

FILES = {'train': 'nlvr_train.json', 'dev': 'nlvr_dev.json', 'test1': 'nlvr_test.json', 'test2': 'nlvr_test2.json'}


def add_nlvr2(commands: Any) -> None:
    parser = add_command(commands, 'nlvr2', run_nlvr2)
    parser.add_argument('files', nargs='+', metavar='JSON')
    add_output_arguments(parser, 'FOLDER')


def run_nlvr2(args: argparse.Namespace) -> Summary:
    """NLVR2: train.json, dev.json, test1.json

    Writes nlvr_train.json, nlvr_dev.json and nlvr_test.json. Images are expected in the folders of the release:
    images/train/DIRECTORY/, dev/, test1/.
    """
    summary, exclusions = Summary('NLVR2'), Exclusions(args.exclude)
    for path in args.files:
        rows = list(statement_rows(path, args.image_prefix, exclusions, summary))
        splits = {split for split, _ in rows}
        if len(splits) > 1:
            raise InputError(f'{path} mixes the splits {", ".join(sorted(splits))}: give the files of the release')
        for split in splits:
            write_rows(os.path.join(args.out, FILES[split]), (row for _, row in rows), summary)
    return summary


def statement_rows(path: str, prefix: str, exclusions: Exclusions, summary: Summary) -> Iterator[tuple[str, dict]]:
    """(split, row); train-10171-0-1 identifies the second statement about train-10171-0-img0 and train-10171-0-img1."""
    for number, item in enumerate(progress_bar(stream_json(path, lines=True), os.path.basename(path))):
        identifier, sentence, label = (
            require_key(item, key, path, f'row {number}') for key in ('identifier', 'sentence', 'label')
        )
        split, stem = identifier.split('-')[0], identifier.rpartition('-')[0]
        if split not in FILES:
            raise InputError(
                f"{path}: identifier '{identifier}' does not start with {', '.join(FILES)}: give a file of NLVR2"
            )
        folder = split
        if split == 'train':
            folder = f'images/train/{require_key(item, "directory", path, f"row {number}")}'
        images = [add_prefix(prefix, folder, f'{stem}-img{side}.png') for side in (0, 1)]
        summary.read[f'statements of {split}'] += 1
        if str(label) not in ('True', 'False'):
            summary.dropped['label that is neither True nor False'] += 1
        elif any(map(exclusions.contains, images)):
            summary.excluded.update(image for image in images if exclusions.contains(image))
        elif (clean := clean_caption(sentence, summary)) is not None:
            yield split, {'images': images, 'sentence': clean, 'label': str(label), 'identifier': identifier}
