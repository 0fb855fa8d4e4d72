"""Open every image and read every caption of an annotation file; write the usable rows and a report of the others."""

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from dataset.annotations.json_reader import short
from dataset.annotations.schema import BadRow, clean_row
from dataset.prepare.arguments import add_command, annotation_file, positive
from dataset.prepare.checking.find import find_by_name
from dataset.prepare.checking.findings import TRUNCATED, Duplicates, Repeats, Verdict, count_same_bytes, most_repeated
from dataset.prepare.checking.rebase import ImagePaths, Paths, image_paths, parse_rules, rebase_paths
from dataset.prepare.common import Inputs, Summary, clean_caption, progress_bar, stream_json, write_json, write_rows
from dataset.prepare.images import is_utf8
from utils.errors import InputError, MissingFileError

TEXT_FIELDS = {'nlvr': 'sentence', 'vqa': 'question'}  # 'caption' for the other kinds


def add_check(commands: Any) -> None:
    parser = add_command(commands, 'check', run_check)
    parser.add_argument('file', metavar='F.json', help='annotation file of any task')
    parser.add_argument('--image-root', default='', metavar='R', help='joined to relative paths, as in training')
    parser.add_argument('--vg-root', metavar='R', help='the same for Visual Genome rows of VQA (default: --image-root)')
    parser.add_argument(
        '--out',
        required=True,
        type=annotation_file,
        metavar='G.json',
        help='clean file to write; JSON Lines if it ends in .jsonl',
    )
    parser.add_argument(
        '--rebase',
        action='append',
        default=[],
        metavar='OLD=NEW',
        help='replace OLD at the start of paths by NEW; may be repeated: of several that fit a path, the first whose '
        'result exists is used',
    )
    parser.add_argument(
        '--find',
        action='append',
        default=[],
        metavar='FOLDER',
        help='find images that are not where their paths say by their names under FOLDER, if it is certain which file '
        'is meant: also in another case, with another extension, and COCO images by number; may be repeated',
    )
    parser.add_argument(
        '--drop-duplicates',
        action='store_true',
        help='drop rows whose images and texts, and label or answer, equal those of an earlier row (default: count '
        'them)',
    )
    parser.add_argument(
        '--keep-truncated',
        action='store_true',
        help='keep images that end early, as the official training does (their missing part is gray)',
    )
    parser.add_argument(
        '--workers', type=positive, default=os.cpu_count() or 1, metavar='N', help='processes (default: one per core)'
    )


def run_check(args: argparse.Namespace) -> Summary:
    """open every image, read every caption, write the usable rows and a report

    Writes a clean annotation file, and next to it G.report.json, which names each dropped row and the reason. If it was
    interrupted, the same command continues; delete G.progress.jsonl to start again.
    """
    report, journal = name_outputs(args.out)
    rules = parse_rules(args.rebase)
    summary = Summary(f'Check of {args.file}')
    images = ImagePaths(args.image_root, args.image_root if args.vg_root is None else args.vg_root)
    kind, paths = find_kind_and_images(progress_bar(stream_json(args.file), 'rows'), images)
    if kind is None:
        raise InputError(f'{args.file} contains no JSON object: give an annotation file')
    rebase_paths(paths, rules, summary)
    find_by_name(paths, args.find, summary)
    images.replace(paths)
    files = files_to_examine(paths)
    del paths  # of millions of images
    verdicts = examine_resumably(files, journal, args.workers)
    count_images(verdicts, args.keep_truncated, summary)
    rows = map(images.move_row, progress_bar(stream_json(args.file), 'rows'))
    usable = UsableRows(kind, images, verdicts, args.keep_truncated, args.drop_duplicates, summary)
    repeats = Repeats()
    try:
        write_rows(args.out, (repeats.count_row(row, image_paths(row)) for row in usable.select(rows)), summary)
    finally:  # also if no row is left
        repeats.count['image with the same bytes as another'] = count_same_bytes(verdicts)
        summary.noted.update(repeats.count)
        write_json(
            report,
            {
                'input': args.file,
                'output': args.out,
                'kind': kind,
                'read': summary.read,
                'dropped': summary.dropped,
                'changed': summary.changed,
                'noted': summary.noted,
                'duplicates': repeats.count,
                'most repeated images': most_repeated(verdicts),
                'dropped rows': usable.dropped,
            },
        )
    os.remove(journal)
    summary.written.append(f'{report}: {len(usable.dropped):,} dropped rows, each with its reason')
    return summary


def name_outputs(out: str) -> tuple[str, str]:
    """The names of the report and of the progress file. InputError if one of them is an input."""
    if os.path.isdir(out):
        raise InputError(f'--out {out} is a folder: give the name of a file')
    base = os.path.splitext(out)[0]
    report, journal = f'{base}.report.json', f'{base}.progress.jsonl'
    for name in (report, journal):
        Inputs.refuse(name)
    return report, journal


def find_kind_and_images(rows: Iterable, images: ImagePaths) -> tuple[str | None, Paths]:
    """The kind of annotations, from the first object, and the distinct paths of images in order."""
    kind, paths = None, {}
    for row in rows:
        if isinstance(row, dict):
            kind = kind or kind_of(row)
            known = paths.setdefault(images.root_of(row), {})
            known.update((path, path) for path in image_paths(row))
    return kind, paths


def kind_of(row: dict) -> str:
    for field, kind in (('images', 'nlvr'), ('question', 'vqa')):
        if field in row:
            return kind
    return 'retrieval_train' if 'image_id' in row and isinstance(row.get('caption'), str) else 'pretrain'


def files_to_examine(paths: Paths) -> list[str]:
    """The distinct files that rows will name. InputError if none of them exists: the root is wrong."""
    joined = (os.path.join(root, path) for root, known in paths.items() for path in known.values())
    files = list(dict.fromkeys(path for path in joined if is_utf8(path)))
    if files and not any(map(os.path.exists, files)):
        raise MissingFileError(
            f'no image exists: {len(files):,} were looked for, the first is {files[0]!r}: give --image-root DIR, '
            'replace the start of paths with --rebase OLD=NEW, or find the images by name with --find FOLDER'
        )
    return files


def examine_resumably(paths: list[str], journal: str, workers: int) -> dict[str, Verdict]:
    """The verdict on each path.

    Verdicts are appended to the file `journal` at once. Those of an interrupted run are reused, but bad images are
    examined again, because they may have been downloaded again.
    """
    os.makedirs(os.path.dirname(journal) or '.', exist_ok=True)
    from dataset.prepare.checking.examine import examine_all  # not above: it imports torch

    wanted = set(paths)
    verdicts = {old.image: old for old in read_journal(journal) if old.reason is None and old.image in wanted}
    rest = [path for path in paths if path not in verdicts]
    with open(journal, 'a', encoding='utf-8', buffering=1) as out:
        out.write('\n')  # a killed run may have left an incomplete line
        for verdict in progress_bar(examine_all(rest, workers), 'images', len(rest)):
            verdicts[verdict.image] = verdict
            out.write(json.dumps(verdict) + '\n')
    return {path: verdicts[path] for path in paths}


def read_journal(path: str) -> Iterator[Verdict]:
    """The verdicts of an interrupted run."""
    if not os.path.exists(path):
        return
    with open(path, encoding='utf-8', errors='replace') as lines:
        for line in lines:
            try:
                image, reason, notes, digest = json.loads(line)
            except ValueError:  # a blank or incomplete line: that image is examined again
                continue
            yield Verdict(image, reason, tuple(notes), digest)


class Dropped(Exception):
    """A row that training cannot use. example: for the summary; details: for the report."""

    def __init__(self, reason: str, example: str, **details: Any):
        super().__init__(reason)
        self.reason, self.example, self.details = reason, example, details


class UsableRows:
    """Selects the rows that training can use, and cleans their captions. `dropped` names the others, for the report."""

    def __init__(
        self,
        kind: str,
        images: ImagePaths,
        verdicts: dict[str, Verdict],
        keep_truncated: bool,
        drop_duplicates: bool,
        summary: Summary,
    ):
        self.kind, self.images, self.verdicts, self.keep_truncated = kind, images, verdicts, keep_truncated
        self.field = TEXT_FIELDS.get(kind, 'caption')
        self.duplicates = Duplicates() if drop_duplicates else None
        self.summary = summary
        self.dropped: list[dict] = []

    def select(self, rows: Iterable) -> Iterator[dict]:
        for number, row in enumerate(rows):
            self.summary.read['rows'] += 1
            try:
                yield self._clean(row, number)
            except Dropped as drop:
                self.summary.drop(f'row: {drop.reason}', drop.example)
                entry = {'row': number, 'reason': drop.reason, **drop.details, 'content': short(row, 300)}
                self.dropped.append(entry)

    def _clean(self, row: object, number: int) -> dict:
        try:
            clean = clean_row(row, self.kind)
        except BadRow as error:
            raise Dropped(str(error), f'row {number}') from None
        files = self.images.full_paths(row)
        for file in files:
            if reason := drop_reason(self.verdicts.get(file), self.keep_truncated):
                raise Dropped(reason, repr(file), image=file)
        texts = [clean[self.field]] if isinstance(clean[self.field], str) else clean[self.field]
        texts = [text for text in (clean_caption(text, self.summary) for text in texts) if text is not None]
        if not texts:
            raise Dropped(f'{self.field}: nothing but blanks', f'row {number}')
        if self.duplicates is not None:
            first = self.duplicates.add(number, (*files, *texts, clean.get('label'), str(clean.get('answer'))))
            if first is not None:
                reason = 'the same images and texts as an earlier row'
                raise Dropped(reason, f'row {number}, as row {first}', **{'earlier row': first})
        return row | {self.field: texts if isinstance(row[self.field], list) else texts[0]}


def drop_reason(verdict: Verdict | None, keep_truncated: bool) -> str | None:
    """Why rows with this image are dropped, or None."""
    if verdict is None:
        return 'image: its path is not UTF-8'
    if TRUNCATED in verdict.notes and not keep_truncated:
        return 'image: it ends early (--keep-truncated keeps it)'
    return verdict.reason and f'image: {verdict.reason}'


def count_images(verdicts: dict[str, Verdict], keep_truncated: bool, summary: Summary) -> None:
    summary.read['images'] = len(verdicts)
    for verdict in verdicts.values():
        if drop_reason(verdict, keep_truncated):
            summary.dropped['bad image'] += 1
        else:
            summary.noted.update(f'image: {note}' for note in verdict.notes)
