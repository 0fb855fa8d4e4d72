"""Look at many image files in several processes, whatever is in them."""

import hashlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from dataset.images import BadImage, open_image, worker_init
from dataset.prepare.findings import TRUNCATED, Verdict

PER_TASK = 16  # files handed to a process at a time
MAX_PIXELS = 500_000_000  # 1.5 GB decoded, several of which at a time fill a training machine
ORIENTATION = 0x0112  # EXIF tag


def examine(path: str) -> Verdict:
    """Open and decode one file. Never raises: an error that nobody thought of is a reason too."""
    reason, notes, digest = None, (), None
    try:
        image = open_image(path, allow_truncated=False)
        digest = hashlib.blake2b(image.data, digest_size=12).hexdigest()
        notes = notes_of(image.header)
        width, height = image.size
        if width * height > MAX_PIXELS:
            reason = f'more than {MAX_PIXELS // 1_000_000} million pixels'
        else:
            notes += decode(image)
    except BadImage as error:
        reason = str(error).rpartition(f'{path!r}: ')[2]
    except Exception as error:
        reason = f'{type(error).__name__} {error}'
    return Verdict(path, reason, notes, digest)


def decode(image: Any) -> tuple[str, ...]:
    """Decode an opened image, wholly or, noting it, as far as it goes; BadImage if not even that can be done."""
    try:
        image.decode()
        return ()
    except BadImage:
        image.allow_truncated = True
        image.decode()
        return (TRUNCATED,)


def notes_of(header: Any) -> tuple[str, ...]:
    """What training does to an image that is not plain RGB; `header` is Pillow's image, not yet decoded."""
    found = {
        'CMYK, converted': header.mode == 'CMYK',
        'more than 8 bits a value, reduced': header.mode.startswith('I') or header.mode == 'F',
        'transparency, ignored': 'transparency' in header.info or header.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa'),
        'EXIF rotation, ignored': _guarded(lambda: header.getexif().get(ORIENTATION, 1) != 1),
        'animated, first frame taken': _guarded(lambda: getattr(header, 'is_animated', False)),
    }
    return tuple(note for note, is_so in found.items() if is_so)


def _guarded(look: Callable[[], bool]) -> bool:
    """Broken metadata does not make an image bad: training reads none of it."""
    try:
        return look()
    except Exception:
        return False


def examine_all(paths: list[str], workers: int) -> Iterator[Verdict]:
    """`examine` of each path, in no order. A file that kills a process is found out and reported as bad."""
    waiting = deque(paths[i : i + PER_TASK] for i in range(0, len(paths), PER_TASK))
    while waiting:
        running: dict = {}
        try:
            with _pool(workers) as pool:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        future = pool.submit(_examine_each, waiting[0])
                        running[future] = waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        verdicts = future.result()
                        del running[future]
                        yield from verdicts
        except BrokenProcessPool:
            for suspects in running.values():
                yield from map(_examine_alone, suspects)


def _examine_each(paths: list[str]) -> list[Verdict]:
    return [examine(path) for path in paths]


def _examine_alone(path: str) -> Verdict:
    try:
        with _pool(1) as pool:
            return pool.submit(examine, path).result()
    except BrokenProcessPool:
        return Verdict(path, 'reading it kills the process')


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context('fork'), _start)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which waits for what is under way
    worker_init(0)
