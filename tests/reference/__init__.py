"""Numbers of the official programs with tiny random models, float32 on a CPU, eval mode.

The archives contain only numbers. To stay small, an array that several archives share is stored in one of them; the
entry `same` of the others says where: {key: "archive:key"}.
"""

import functools
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


@functools.cache
def _archive(name):
    with np.load(FOLDER / f'{name}.npz') as archive:
        return {key: archive[key] for key in archive.files}


@functools.cache
def load_reference(name):
    """All entries of one archive: NumPy arrays, and JSON texts (`config`, `result`) decoded."""
    own = dict(_archive(name))
    for key, place in json.loads(str(own.pop('same'))).items():
        archive, other = place.split(':')
        own[key] = _archive(archive)[other]
    return {key: json.loads(str(value)) if value.dtype.kind == 'U' else value for key, value in own.items()}


def load_json(name):
    return json.loads((FOLDER / f'{name}.json').read_text())
