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
    stream_json,
    write_rows,
)
from dataset.prepare.entries import entries
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
    images/train/DIRECTORY/, dev/, test1/. A file without labels gives rows without labels, to be predicted.
    """
    summary = Summary('NLVR2')
    exclusions = Exclusions.of(args, summary)
    written: dict[str, list[dict]] = {}
    for path in args.files:
        rows = list(statement_rows(path, args.image_prefix, exclusions, summary))
        splits = {split for split, _ in rows}
        if len(splits) > 1:
            raise InputError(f'{path} mixes the splits {", ".join(sorted(splits))}: give the files of the release')
        if not rows:
            summary.print()
            raise InputError(f'no row of {path} is left to write: the summary says what was dropped or excluded')
        if splits & written.keys():
            raise InputError(f'{path} is another file of the split {splits.pop()}: give one file of each')
        written[splits.pop()] = [row for _, row in rows]
    exclusions.report(summary)
    for split, rows in written.items():
        write_rows(os.path.join(args.out, FILES[split]), rows, summary)
    return summary


def statement_rows(path: str, prefix: str, exclusions: Exclusions, summary: Summary) -> Iterator[tuple[str, dict]]:
    """(split, row); train-10171-0-1 identifies the second statement about train-10171-0-img0 and train-10171-0-img1."""
    labels: dict[str, Any] = {}
    for item in entries(progress_bar(stream_json(path, lines=True), os.path.basename(path)), path, 'row'):
        identifier = item.text('identifier')
        split, stem = identifier.split('-')[0], identifier.rpartition('-')[0]
        if split not in FILES:
            raise InputError(
                f"{path}: identifier '{identifier}' does not start with {', '.join(FILES)}: give a file of NLVR2"
            )
        folder = split if split != 'train' else f'images/train/{item.identity("directory")}'
        images = [add_prefix(prefix, folder, f'{stem}-img{side}.png') for side in (0, 1)]
        summary.read[f'statements of {split}'] += 1
        if identifier in labels:
            if labels[identifier] != (item.get('sentence'), str(item.get('label'))):
                raise InputError(
                    f"{path}: {item.place} has the identifier '{identifier}' of another statement: correct it"
                )
            summary.drop('statement that is there twice', f'{path}, {item.place}')
            continue
        labels[identifier] = item.get('sentence'), str(item.get('label'))
        excluded = [image for image in images if exclusions.contains(image)]
        if 'label' in item and str(item.get('label')) not in ('True', 'False'):
            summary.drop('label that is neither True nor False', f'{path}, {item.place}: {item.get("label")!r}')
        elif 'label' not in item and split == 'train':
            summary.drop('training statement without a label', f'{path}, {item.place}')
        elif excluded:
            summary.excluded.update(excluded)
        elif (clean := clean_caption(item.get('sentence'), summary)) is not None:
            row = {'images': images, 'sentence': clean, 'identifier': identifier}
            if 'label' in item:
                row['label'] = str(item.get('label'))
            else:
                summary.note(f'statement of {split} without a label')
            yield split, row
