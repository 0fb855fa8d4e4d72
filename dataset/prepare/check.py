"""Open every image and read every caption of an annotation file; write the usable rows and a report of the others."""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dataset.annotations.json_reader import short
from dataset.annotations.schema import BadRow, clean_row
from dataset.prepare.arguments import add_command
from dataset.prepare.common import Summary, clean_caption, progress_bar, stream_json, write_json, write_rows
from dataset.prepare.findings import TRUNCATED, Repeats, Verdict, count_same_bytes, most_repeated
from dataset.prepare.folder import is_utf8
from utils.errors import InputError

TEXT_FIELDS = {'nlvr': 'sentence', 'vqa': 'question'}  # 'caption' for the other kinds


def add_check(commands: Any) -> None:
    parser = add_command(commands, 'check', run_check)
    parser.add_argument('file', metavar='F.json', help='annotation file of any task')
    parser.add_argument('--image-root', default='', metavar='R', help='joined to relative paths, as in training')
    parser.add_argument('--vg-root', metavar='R', help='the same for Visual Genome rows of VQA (default: --image-root)')
    parser.add_argument('--out', required=True, metavar='G.json', help='clean file to write')
    parser.add_argument(
        '--rebase',
        action='append',
        default=[],
        metavar='OLD=NEW',
        help='replace OLD at the start of paths by NEW; may be repeated, the first that fits is used',
    )
    parser.add_argument(
        '--keep-truncated',
        action='store_true',
        help='keep images that end early, as the official training does (their missing part is gray)',
    )
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count(), metavar='N', help='processes (default: one per core)'
    )
    parser.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> Summary:
    """open every image, read every caption, write the usable rows and a report

    Writes a clean annotation file, and next to it G.report.json, which names each dropped row and the reason. If it was
    interrupted, the same command continues; delete G.progress.jsonl to start again.
    """
    if os.path.realpath(args.file) == os.path.realpath(args.out):
        raise InputError(f'--out {args.out} is the file to check: give another file')
    summary, rebase = Summary(f'Check of {args.file}'), Rebase(args.rebase)
    vg_root = args.image_root if args.vg_root is None else args.vg_root
    base = args.out.removesuffix('.json')

    def full_paths(row: dict) -> list[str]:
        root = vg_root if row.get('dataset') == 'vg' else args.image_root
        return [os.path.join(root, path) for path in image_paths(row)]

    def rebased_rows() -> Iterator:
        return map(rebase.rebase_row, progress_bar(stream_json(args.file), 'rows'))

    kind, paths = find_kind_and_images(rebased_rows(), full_paths)
    if kind is None:
        raise InputError(f'{args.file} contains no JSON object: give an annotation file')
    rebase.refuse_unused()
    verdicts = examine_resumably(paths, f'{base}.progress.jsonl', max(1, args.workers))
    count_images(verdicts, args.keep_truncated, summary)
    bad_rows: list[dict] = []
    repeats = Repeats()
    rows = usable_rows(rebased_rows(), kind, full_paths, verdicts, args.keep_truncated, bad_rows, summary)
    try:
        write_rows(args.out, (repeats.count_row(row, image_paths(row)) for row in rows), summary)
    finally:  # also if no row is left
        repeats.count['image with the same bytes as another'] = count_same_bytes(verdicts)
        summary.noted.update(repeats.count)
        write_json(
            f'{base}.report.json',
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
                'dropped rows': bad_rows,
            },
        )
    os.remove(f'{base}.progress.jsonl')
    summary.written.append(f'{base}.report.json: {len(bad_rows):,} dropped rows, each with its reason')
    return summary


class Rebase:
    """Rewrites the start of paths."""

    def __init__(self, rules: list[str]):
        if any('=' not in rule for rule in rules):
            raise InputError(f'--rebase {" ".join(rules)}: give OLD=NEW')
        self.rules = [tuple(rule.split('=', 1)) for rule in rules]
        self.unused = {old for old, _ in self.rules}

    def rebase_path(self, path: object) -> object:
        for old, new in self.rules:
            if isinstance(path, str) and path.startswith(old):
                self.unused.discard(old)
                return new + path[len(old) :]
        return path

    def rebase_row(self, row: object) -> object:
        if not self.rules or not isinstance(row, dict):
            return row
        row = dict(row)
        if 'image' in row:
            row['image'] = self.rebase_path(row['image'])
        if isinstance(row.get('images'), list):
            row['images'] = [self.rebase_path(path) for path in row['images']]
        return row

    def refuse_unused(self) -> None:
        for old in self.unused:
            raise InputError(f'--rebase {old}=...: no path starts with {old}, correct it or leave it out')


def find_kind_and_images(rows: Iterable, full_paths: Callable[[dict], list[str]]) -> tuple[str | None, list[str]]:
    """The kind of annotations, from the first object, and the distinct paths of images in order."""
    kind, paths = None, {}
    for row in rows:
        if isinstance(row, dict):
            kind = kind or kind_of(row)
            paths.update((path, None) for path in full_paths(row) if is_utf8(path))
    return kind, list(paths)


def kind_of(row: dict) -> str:
    for field, kind in (('images', 'nlvr'), ('question', 'vqa')):
        if field in row:
            return kind
    return 'retrieval_train' if 'image_id' in row and isinstance(row.get('caption'), str) else 'pretrain'


def image_paths(row: dict) -> list[str]:
    paths = row['images'] if isinstance(row.get('images'), list) else [row.get('image')]
    return [path for path in paths if isinstance(path, str) and path]


def examine_resumably(paths: list[str], journal: str, workers: int) -> dict[str, Verdict]:
    """The verdict on each path.

    Verdicts are appended to the file `journal` at once. Those of an interrupted run are reused, but bad images are
    examined again, because they may have been downloaded again.
    """
    os.makedirs(os.path.dirname(journal) or '.', exist_ok=True)
    from dataset.prepare.examine import examine_all  # here, because it imports torch, which no other command needs

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


def usable_rows(
    rows: Iterable,
    kind: str,
    full_paths: Callable[[dict], list[str]],
    verdicts: dict[str, Verdict],
    keep_truncated: bool,
    bad_rows: list,
    summary: Summary,
) -> Iterator[dict]:
    """The rows that training can use, with cleaned captions; the others are added to `bad_rows` with the reason."""
    field = TEXT_FIELDS.get(kind, 'caption')
    for number, row in enumerate(rows):
        summary.read['rows'] += 1
        try:
            clean = clean_row(row, kind)
            for path in full_paths(row):
                if reason := drop_reason(verdicts.get(path), keep_truncated):
                    raise BadRow(reason)
            texts = [clean[field]] if isinstance(clean[field], str) else clean[field]
            texts = [text for text in (clean_caption(text, summary) for text in texts) if text is not None]
            if not texts:
                raise BadRow(f'{field}: nothing but blanks')
        except BadRow as error:
            summary.dropped[f'row: {error}'] += 1
            bad_rows.append({'row': number, 'reason': str(error), 'content': short(row, 300)})
            continue
        yield row | {field: texts if isinstance(row[field], list) else texts[0]}


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
