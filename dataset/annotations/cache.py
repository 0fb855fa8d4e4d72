"""Annotation files of every task, read through a memory-mapped cache that all processes share.

As Python dicts four million pairs take gigabytes, again in every DataLoader worker of every rank. Here each JSON file
is converted once into an Arrow file beside it, which every process maps: it is read through the page cache of the
system, and nothing is copied. The cache is named after the contents of the JSON file and ends with a checksum of its
own, so it is never out of date, and a damaged one is rebuilt. See `schema.py` for the kinds of rows.
"""

import glob
import hashlib
import json
import operator
import os
import sys
import tempfile
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from dataset.annotations.json_reader import open_annotations, read_rows
from dataset.annotations.paths import may_leave
from dataset.annotations.schema import OPTIONAL, REQUIRED, checked_rows
from dataset.files import open_regular
from utils.errors import InputError
from utils.files import atomic_write

VERSION = '5'  # of the format of caches and of the checks of rows; a new one rebuilds every cache
DIGEST = 16  # letters
ROWS_PER_BATCH = 1 << 16
ABSENT = object()

TEXT = pa.large_string()
TEXTS = pa.large_list(pa.large_string())
JSON = pa.large_binary()  # fields of any other form, and optional ones: as JSON; empty where the row has none
COLUMNS = {'image': TEXT, 'question': TEXT, 'sentence': TEXT, 'dataset': TEXT, 'images': TEXTS}
CAPTIONS = {'pretrain': TEXTS, 'retrieval_eval': TEXTS, 'retrieval_train': TEXT}


def load_annotations(files: str | list[str], kind: str, cache_dir: str | None = None) -> 'Annotations':
    """The rows of one or several annotation files, in order, without holding them in memory.

    files: path of a JSON list or `.jsonl` file, or a list of such paths. kind: `pretrain`, `retrieval_train`,
    `retrieval_eval`, `nlvr` or `vqa`: which fields a row has. cache_dir: folder of the caches; by default each is
    beside its file. If that folder is not writable, a folder of the user under the system's temporary folder is used,
    with a warning.

    Any number of processes may call this at the same time. The first call reads and checks every row: for a missing,
    empty, truncated or otherwise bad file InputError names the file, the row (counted from 0) and the remedy.
    """
    if kind not in REQUIRED:
        raise InputError(f"unknown kind of annotations '{kind}': it must be one of {', '.join(REQUIRED)}")
    files = [os.fspath(files)] if isinstance(files, str | os.PathLike) else [os.fspath(file) for file in files]
    if not files:
        raise InputError(f'no annotation file given for {kind}: name at least one')
    for file in files:  # check all before reading the first, which may take a minute
        with open_annotations(file):
            pass
    return Annotations(files, kind, [_cached(file, kind, cache_dir) for file in files])


class Annotations:
    """A read-only sequence of rows, each a plain dict. It pickles as paths, so that workers map the same caches."""

    def __init__(self, files: list[str], kind: str, caches: list[str]):
        self.files, self.kind, self._caches = files, kind, caches
        self._chunks: list[list[tuple[str, Callable]]] = []  # of each record batch, its columns' names and readers
        self._starts: list[int] = []  # number of the first row of each chunk
        self._file_starts: list[int] = []
        rows = 0
        for file, cache in zip(files, caches, strict=True):
            self._file_starts.append(rows)
            try:
                batches = _open_cache(cache, kind)
            except (OSError, ValueError) as error:
                raise InputError(
                    f'the annotation cache {cache} of {file} was removed or damaged while in use ({error}): start the '
                    f'run again to rebuild it'
                ) from None
            for batch in batches:
                self._chunks.append([(name, _reader(batch.column(name))) for name in batch.schema.names])
                self._starts.append(rows)
                rows += batch.num_rows
        self._length = rows

    def __reduce__(self) -> tuple:
        return Annotations, (self.files, self.kind, self._caches)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        index = self._position(index)
        chunk = bisect_right(self._starts, index) - 1
        index -= self._starts[chunk]
        row = {}
        for name, read in self._chunks[chunk]:
            value = read(index)
            if value is not ABSENT:
                row[name] = value
        return row

    def __iter__(self) -> Iterator[dict]:
        return (self[index] for index in range(self._length))

    def source(self, index: int) -> tuple[str, int]:
        """The file of row `index` and the row's number in it, counted from 0."""
        index = self._position(index)
        file = bisect_right(self._file_starts, index) - 1
        return self.files[file], index - self._file_starts[file]

    def fingerprint(self) -> str:
        """The number of rows and a digest of the contents of the files, in words."""
        digests = ''.join(os.path.basename(cache).split('.')[-3] for cache in self._caches)
        return f'{len(self)} rows with digest {digests if len(self._caches) == 1 else _hash(digests.encode())}'

    def column(self, name: str) -> np.ndarray | list:
        """All values of one field: an int64 or bool array if all are integers or booleans, else a list.

        A list has None for a row without the field, and takes the memory of its Python objects.
        """
        names = [name for name, _ in self._chunks[0]]
        if name not in names:
            raise InputError(f"annotations of kind {self.kind} have no column '{name}': they have {', '.join(names)}")
        ends = [*self._starts[1:], self._length]
        values = []
        for chunk, start, end in zip(self._chunks, self._starts, ends, strict=True):
            read = dict(chunk)[name]
            values.extend(read(index) for index in range(end - start))
        values = [None if value is ABSENT else value for value in values]
        types = {type(value) for value in values}
        if types == {bool} or types == {int} and all(-(2**63) <= value < 2**63 for value in values):
            return np.array(values, dtype=np.bool_ if types == {bool} else np.int64)
        return values

    def holding(self, name: str) -> np.ndarray:
        """Which rows have an optional field: [rows] bool, without reading the rows."""
        return np.concatenate([np.diff(_ends(batch, name)) > 0 for batch in self._batches()])

    def has(self, name: str) -> bool:
        """Whether any row has an optional field, without reading the rows."""
        return any(_ends(batch, name)[-1] > 0 for batch in self._batches())

    def may_leave(self, name: str, root: str) -> np.ndarray:
        """Which rows have a path in the field `name` that may lead out of the folder `root`, without reading the rows.

        [rows] bool; True for every path that leads out of it and for few others. See `paths.leaves`.
        """
        return np.concatenate([may_leave(batch.column(name), root) for batch in self._batches()])

    def _batches(self) -> Iterator[pa.RecordBatch]:
        return (batch for cache in self._caches for batch in _open_cache(cache, self.kind))

    def _position(self, index: int) -> int:
        index = operator.index(index)
        if not -self._length <= index < self._length:
            raise IndexError(f'row {index} of annotations with {self._length} rows')
        return index % self._length


# --- reading: plain views over the map; a row takes a few microseconds without calling pyarrow ---


def _reader(array: pa.Array) -> Callable[[int], object]:
    if array.type == TEXTS:
        _, lists, _, offsets, data = array.buffers()
        lists, read = _int64(lists), _text_reader(offsets, data)
        return lambda i: [read(j) for j in range(lists[i], lists[i + 1])]
    read = _text_reader(*array.buffers()[1:])
    if array.type == TEXT:
        return read
    decode = json.loads

    def read_json(i: int) -> object:
        text = read(i)
        return decode(text) if text else ABSENT

    return read_json


def _text_reader(offsets: pa.Buffer, data: pa.Buffer | None) -> Callable[[int], str]:
    offsets, data = _int64(offsets), memoryview(data or b'').cast('B')
    return lambda i: str(data[offsets[i] : offsets[i + 1]], 'utf-8')


def _int64(buffer: pa.Buffer) -> memoryview:
    return memoryview(buffer).cast('B').cast('q')


def _ends(batch: pa.RecordBatch, name: str) -> memoryview:
    """[rows + 1] int64, where the values of an optional field end in its column."""
    return _int64(batch.column(name).buffers()[1])[: batch.num_rows + 1]


# --- the cache ---


def _cached(file: str, kind: str, cache_dir: str | None) -> str:
    """Path of the cache of `file`, which is built if it is absent or damaged."""
    with open_annotations(file) as handle:
        key = f'{_digest(handle, os.path.getsize(file))}.{VERSION}'
        fallback = os.path.join(tempfile.gettempdir(), f'grit-vlp-annotations-{os.getuid()}')
        beside = f'.{os.path.basename(file)}.{kind}.'
        # In a common folder, files of the same name from several folders need different names.
        apart = f'.{os.path.basename(file)[:100]}.{_hash(os.path.abspath(file).encode())}.{kind}.'
        first = os.path.join(cache_dir, apart) if cache_dir else os.path.join(os.path.dirname(file), beside)
        prefixes = [first, os.path.join(fallback, apart)]
        for prefix in prefixes:
            if _is_usable(f'{prefix}{key}.arrow', kind):
                return f'{prefix}{key}.arrow'
        for prefix in prefixes:
            try:
                return _build(handle, file, kind, prefix, key)
            except OSError as error:
                reason = error
                if prefix == first:
                    folder = os.path.dirname(first) or '.'
                    warnings.warn(
                        f'no annotation cache can be written in {folder} ({error.strerror}): it is written to '
                        f'{fallback}',
                        stacklevel=3,
                    )
    raise InputError(
        f'the annotation cache of {file} can be written neither beside it nor in {fallback} ({reason}): give a cache '
        f'folder with room in it'
    )


def _digest(handle: BinaryIO, length: int) -> str:
    """A digest of the first `length` bytes of a file, in 16 letters."""
    digest = hashlib.blake2b(digest_size=DIGEST // 2)
    handle.seek(0)
    while length and (block := handle.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest()


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=DIGEST // 2).hexdigest()


def _open_cache(path: str, kind: str) -> list[pa.RecordBatch]:
    """Views over the mapped file; OSError or ValueError (as pyarrow's are) if it is not a cache of this kind."""
    with pa.memory_map(path) as source:
        reader = pa.ipc.open_file(pa.BufferReader(source.read_buffer(source.size() - DIGEST)))
    if reader.schema != _schema(kind):
        raise InputError('its columns are not those of this kind')
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    for batch in batches:
        batch.validate()  # the buffers are inside the file and as long as the row count says
    return batches


def _is_usable(path: str, kind: str) -> bool:
    """Whether the cache exists and is complete; reads it once, which takes a second per gigabyte."""
    try:
        with open_regular(path) as handle:
            length = os.path.getsize(path) - DIGEST
            expected = _digest(handle, length).encode()
            return handle.read() == expected and bool(_open_cache(path, kind))
    except (OSError, ValueError):
        return False


def _schema(kind: str) -> pa.Schema:
    columns = COLUMNS | ({'caption': CAPTIONS[kind]} if kind in CAPTIONS else {})
    return pa.schema([(name, columns.get(name, JSON)) for name in [*REQUIRED[kind], *OPTIONAL.get(kind, {})]])


def _build(handle: BinaryIO, file: str, kind: str, prefix: str, key: str) -> str:
    """Write the cache atomically; several processes may do so at the same time."""
    target = f'{prefix}{key}.arrow'
    size = os.fstat(handle.fileno()).st_size
    if size > 1 << 26:
        print(f'Building the annotation cache of {file} ({size >> 20} MiB), once', file=sys.stderr, flush=True)
    with atomic_write(target, 'w+b', sync=True) as out:
        _write(checked_rows(read_rows(handle, file), file, kind), out, _schema(kind))
        out.write(_digest(out, out.tell()).encode())
    _remove_stale(prefix, target)
    return target


def _write(rows: Iterable[dict], out: BinaryIO, schema: pa.Schema) -> None:
    rows = iter(rows)
    with pa.ipc.new_file(out, schema) as writer:
        while batch := list(islice(rows, ROWS_PER_BATCH)):
            writer.write_batch(pa.record_batch([_array(batch, field) for field in schema], schema=schema))


def _array(rows: list[dict], field: pa.Field) -> pa.Array:
    name = field.name
    if field.type == JSON:
        return pa.array([_json(row[name]) if name in row else b'' for row in rows], JSON)
    values = [row[name] for row in rows]
    try:
        return pa.array(values, field.type)
    except UnicodeEncodeError:  # half an emoji: legal in JSON, but not UTF-8, which tokenizers need
        return pa.array([_encodable(value) for value in values], field.type)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode('utf-8', 'replace')  # 'replace': as in `_encodable`


def _encodable(value: str | list[str]) -> str | list[str]:
    if isinstance(value, list):
        return [_encodable(text) for text in value]
    return value.encode('utf-8', 'replace').decode()


def _remove_stale(prefix: str, current: str) -> None:
    """Remove caches of earlier contents of the file, and temporary files of builds killed more than an hour ago."""
    for path in glob.glob(f'{glob.escape(prefix)}{"[0-9a-f]" * DIGEST}.*arrow*'):
        try:
            if path != current and (path.endswith('.arrow') or time.time() - os.path.getmtime(path) > 3600):
                os.remove(path)
        except OSError:
            pass  # another process did, or the user may not remove it
