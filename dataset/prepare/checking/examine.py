"""Decode many image files in several processes; no file can make it fail."""

import hashlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from PIL import Image

from dataset.images import BadImage, EncodedImage, open_image
from dataset.loader import compute_in_one_thread, die_with_parent
from dataset.prepare.checking.findings import TRUNCATED, Verdict

PER_TASK = 16  # files that a process gets at a time
MAX_PIXELS = 500_000_000  # 1.5 GB decoded; several of them at a time fill the memory of a training machine
ORIENTATION = 0x0112  # EXIF tag


def examine(path: str) -> Verdict:
    """Open and decode one file. It never raises: an unforeseen error becomes the reason of the verdict."""
    reason, notes, digest = None, (), None
    try:
        image = open_image(path, allow_truncated=False)
        digest = hashlib.blake2b(image.data, digest_size=12).hexdigest()
        notes = conversions(image.header)
        width, height = image.size
        if width * height > MAX_PIXELS:
            reason = f'more than {MAX_PIXELS // 1_000_000} million pixels'
        else:
            notes += decode_fully(image)
    except BadImage as error:
        reason = str(error).rpartition(f'{path!r}: ')[2]
    except Exception as error:
        reason = f'{type(error).__name__} {error}'
    return Verdict(path, reason, notes, digest)


def decode_fully(image: EncodedImage) -> tuple[str, ...]:
    """Decode an image. A note if only its beginning can be decoded; BadImage if not even that is possible."""
    try:
        image.decode()
        return ()
    except BadImage:
        image.allow_truncated = True
        image.decode()
        return (TRUNCATED,)


def conversions(header: Image.Image) -> tuple[str, ...]:
    """Notes on what training does to an image that is not plain RGB. header: Pillow's image, not decoded."""
    found = {
        'CMYK, converted': header.mode == 'CMYK',
        'more than 8 bits a value, reduced': header.mode.startswith('I') or header.mode == 'F',
        'transparency, ignored': 'transparency' in header.info or header.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa'),
        'EXIF rotation, ignored': _false_on_error(lambda: header.getexif().get(ORIENTATION, 1) != 1),
        'animated, first frame taken': _false_on_error(lambda: getattr(header, 'is_animated', False)),
    }
    return tuple(note for note, applies in found.items() if applies)


def _false_on_error(condition: Callable[[], bool]) -> bool:
    """Broken metadata does not make an image bad, because training does not read it."""
    try:
        return condition()
    except Exception:
        return False


def examine_all(paths: list[str], workers: int) -> Iterator[Verdict]:
    """`examine` each path, in any order. A file that kills its process is identified and reported as bad."""
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
                yield from map(_examine_in_own_process, suspects)


def _examine_each(paths: list[str]) -> list[Verdict]:
    return [examine(path) for path in paths]


def _examine_in_own_process(path: str) -> Verdict:
    try:
        with _pool(1) as pool:
            return pool.submit(examine, path).result()
    except BrokenProcessPool:
        return Verdict(path, 'reading it kills the process')


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context('fork'), _start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which waits for running tasks
    compute_in_one_thread()
    die_with_parent()
