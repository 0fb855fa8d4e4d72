"""What all commands share: reading releases, cleaning captions, writing rows, and the summary at the end."""

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from dataset.annotations.json_reader import LINES_ENDINGS, open_annotations, read_rows
from utils.errors import InputError
from utils.files import atomic_write, refuse_input

MAX_WORDS = 200  # training reads the first 30; a web page stored as a caption would only take memory
CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+')
MISSING = {'NA', 'N/A', 'NaN', 'nan', 'NULL', 'null', 'None', '\\N', '<NA>'}  # as pandas, R and databases write it
EMOJI = re.compile('[\u2600-\u27bf\U0001f000-\U0001faff]')


class Inputs:
    """The files that a command reads, which it must not overwrite."""

    files: frozenset[str] = frozenset()

    @classmethod
    def protect(cls, args: argparse.Namespace) -> None:
        """Protect every file that an argument other than --out names. InputError if --out names one of them."""
        given = [value for name, value in vars(args).items() if name != 'out']
        words = [word for value in given for word in (value if isinstance(value, list) else [value])]
        cls.files = frozenset(word for word in words if isinstance(word, str) and os.path.isfile(word))
        cls.refuse(args.out)

    @classmethod
    def refuse(cls, path: str) -> None:
        """InputError if a file to be written is an input."""
        refuse_input(path, cls.files)


class Summary:
    """Counts of one command. `print` shows those that are not 0."""

    def __init__(self, title: str):
        self.title = title
        self.read: Counter = Counter()  # what was read
        self.excluded: set[str] = set()  # paths of images that --exclude names
        self.dropped: Counter = Counter()  # by reason
        self.changed: Counter = Counter()  # written with changes
        self.noted: Counter = Counter()  # written without changes, but remarkable
        self.first: dict[str, str] = {}  # the first example of what was dropped, changed or noted
        self.written: list[str] = []

    def drop(self, reason: str, example: str | None = None, count: int = 1) -> None:
        """Count what is dropped; the first example of a reason is shown."""
        self.dropped[reason] += count
        if example is not None and count:
            self.first.setdefault(reason, example)

    def note(self, what: str, example: str | None = None, count: int = 1) -> None:
        """Count what is remarkable; the first example is shown."""
        self.noted[what] += count
        if example is not None and count:
            self.first.setdefault(what, example)

    def print(self) -> None:
        lines = [('read', f'{count:,} {what}') for what, count in self.read.items()]
        if self.excluded:
            lines.append(('excluded', f'{len(self.excluded):,} images named by --exclude'))
        for name in ('dropped', 'changed', 'noted'):
            for what, count in getattr(self, name).most_common():
                example = f', the first: {self.first[what]}' if what in self.first else ''
                lines += [(name, f'{count:,} x {what}{example}')] * (count > 0)
        lines += [('written', what) for what in self.written]
        text = '\n'.join([self.title, *(f'  {name:9} {what}' for name, what in lines)])
        print(text.encode(errors='backslashreplace').decode())  # Linux allows any bytes in the names of files


def progress_bar(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """A progress bar: on a terminal after one second; otherwise, as in a log file, one line per minute."""
    pause = {'delay': 1} if sys.stderr.isatty() else {'delay': 60, 'mininterval': 60}
    return tqdm(items, what, total, leave=False, smoothing=0.1, **pause)


def load_json(path: str) -> Any:
    """The content of a release's JSON file; InputError if it cannot be read."""
    with open_annotations(path) as handle:
        try:
            return json.loads(handle.readall().decode('utf-8-sig'))
        except json.JSONDecodeError as error:
            raise InputError(
                f'{path} is not complete JSON (line {error.lineno}, column {error.colno}: {error.msg}): '
                f'download it again'
            ) from None
        except UnicodeDecodeError as error:
            raise InputError(f'{path} is not UTF-8 text ({error.reason}): download it again') from None
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits, a thousand levels
            raise InputError(f'{path} cannot be read ({error}): download it again') from None


def stream_json(path: str, lines: bool = False) -> Iterator[Any]:
    """The items of a JSON list or of JSON Lines, one at a time."""
    with open_annotations(path) as handle:
        yield from read_rows(handle, path, lines)


def clean_caption(text: Any, summary: Summary) -> str | None:
    """The caption in one line of at most MAX_WORDS words; None, which is counted, if it is empty or not a string.

    Line breaks, NUL, other control characters and halves of surrogate pairs become spaces. Emoji and every script stay.
    """
    if not isinstance(text, str):
        summary.dropped['caption that is not a string'] += 1
        return None
    if CONTROL.search(text.strip()):
        text = ' '.join(CONTROL.sub(' ', text).split())
        summary.changed['caption with line breaks or control characters, now spaces'] += bool(text)
    text = text.strip(' \t\r\n\0')
    if not text:
        summary.dropped['empty caption'] += 1
        return None
    if text in MISSING:
        summary.dropped[f'caption {text!r}, the mark of a missing value'] += 1
        return None
    words = text.split(maxsplit=MAX_WORDS)
    if len(words) > MAX_WORDS:
        text = ' '.join(words[:MAX_WORDS])
        summary.changed[f'caption cut at {MAX_WORDS} words'] += 1
    if '\ufffd' in text:
        summary.note('caption with U+FFFD, which an earlier wrong decoding left, kept', text[:60])
    if EMOJI.search(text):
        summary.noted['caption with emoji, kept'] += 1
    return text


def caption_rows(images: Iterable[tuple[str, list]], per_image: bool, summary: Summary) -> Iterator[dict]:
    """Pre-training rows of (path, captions): one row per image, or one per caption."""
    for path, captions in images:
        captions = [clean for caption in captions if (clean := clean_caption(caption, summary)) is not None]
        if not captions:
            summary.dropped['image without a caption'] += 1
        elif per_image:
            yield {'image': path, 'caption': captions}
        else:
            yield from ({'image': path, 'caption': caption} for caption in captions)


def write_rows(path: str, rows: Iterable[dict], summary: Summary) -> None:
    """Write rows atomically: as JSON Lines if the name says so, else as a JSON list, one row per line.

    InputError if there is no row.
    """
    Inputs.refuse(path)
    count, texts, images = 0, 0, set()
    start, between, end = ('', '\n', '\n') if path.lower().endswith(LINES_ENDINGS) else ('[\n', ',\n', '\n]\n')
    with atomic_write(path) as out:
        for row in rows:
            out.write((between if count else start) + json.dumps(row))
            count += 1
            texts += len(row['caption']) if isinstance(row.get('caption'), list) else 1
            images.update(row['images'] if 'images' in row else [row['image']])
        out.write(end)
        if not count:
            summary.print()
            raise InputError(f'no row is left to write to {path}: the summary says what was dropped or excluded')
    summary.written.append(f'{path}: {count:,} rows, {texts:,} texts, {len(images):,} images')


def write_json(path: str, value: Any) -> None:
    """Write a JSON file atomically."""
    Inputs.refuse(path)
    with atomic_write(path) as out:
        json.dump(value, out, indent=1)


def add_prefix(prefix: str, *parts: str) -> str:
    """The path of an image as it is written: the parts with forward slashes, after `--image-prefix`.

    InputError if there is a prefix and the path is absolute.
    """
    if prefix and os.path.isabs(parts[0]):
        raise InputError(f'--image-prefix {prefix}: the path {parts[0]} is absolute: leave the prefix out')
    return '/'.join([prefix.rstrip('/') or '/', *parts] if prefix else parts)
