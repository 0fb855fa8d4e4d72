"""Shards for the tests of packed images: tars, Parquet files, and what is unpacked from them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from dataset.prepare.common import Summary
from dataset.prepare.own import packed
from dataset.prepare.own.splits import Splits
from utils.errors import InputError

POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n'


def image(seed: int = 0, kind: str = 'JPEG') -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def tar(path: Path, members: list[tuple[str, bytes | str | dict | tarfile.TarInfo]]) -> str:
    """Write a tar of (name, bytes, text, value as JSON, or header without data); returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w:gz' if path.suffix in ('.gz', '.tgz') else 'w') as out:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                data.name = name
                out.addfile(data)
                continue
            data = json.dumps(data) if isinstance(data, dict | list) else data
            data = data.encode() if isinstance(data, str) else data
            header = tarfile.TarInfo(name)
            header.size = len(data)
            out.addfile(header, io.BytesIO(data))
    return str(path)


def table(path: Path, columns: dict[str, list], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, **options)
    return str(path)


def unpack(
    source: object, out: Path, columns: list[str] | None = None, encoding: str | None = None, split: tuple = ()
) -> tuple[dict[str, list], Summary]:
    """The rows as {path: captions}, and the summary."""
    summary = Summary('')
    splits = Splits(str(source), list(split), summary)
    rows = list(splits.checked(packed.unpack(str(source), str(out), columns, encoding, splits, summary)))
    assert len(dict(rows)) == len(rows) and all((out / name).is_file() for name, _ in rows)
    return dict(rows), summary


def refusal(source: object, out: Path, columns: list[str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        unpack(source, out, columns)
    message = str(caught.value)
    assert '\n' not in message
    return message


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
