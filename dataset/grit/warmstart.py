"""The order that `--index_warmstart` starts with, saved in the output folder by an earlier run."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import torch

from utils.checkpoint import find_run
from utils.checkpoint_files import open_run
from utils.checkpoint_shards import all_states
from utils.errors import InputError, MissingFileError

READER = """
import sys, warnings
import numpy, scipy.io
warnings.simplefilter('ignore')
arrays = [value for name, value in scipy.io.loadmat(sys.argv[1]).items() if not name.startswith('__')]
if len(arrays) != 1 or not isinstance(arrays[0], numpy.ndarray) or arrays[0].dtype.kind not in 'iuf':
    sys.exit('it must contain exactly one array of numbers')
order = arrays[0].ravel()
if not len(order) or not (order.astype('int64') == order).all():
    sys.exit('it must contain integers')
sys.stdout.buffer.write(order.astype('int64').tobytes())
"""


def saved_order(folder: str) -> torch.Tensor:
    """The order of all ranks in a folder, [n] int64: of the newest checkpoint, or an official total_indices.mat.

    InputError if the folder has neither.
    """
    newest = find_run(folder, 'pretrain')
    if newest:
        plans = [rank['plan'] for rank in all_states(newest, open_run(newest, 'pretrain'))]
        return torch.cat([plan['order'] for plan in plans] + [plan['left_out'] for plan in plans])
    path = os.path.join(folder, 'total_indices.mat')
    if os.path.isfile(path):
        return read_mat(path)
    raise MissingFileError(
        f'--index_warmstart: {folder} has no saved order: neither a checkpoint of Pretrain.py nor a total_indices.mat; '
        'drop the flag, or give the --output_dir of the run whose order is meant'
    )


def read_mat(path: str) -> torch.Tensor:
    """The one array of integers in a MATLAB file, flattened to int64.

    A process of its own reads it, because a damaged file may crash SciPy.
    """
    if importlib.util.find_spec('scipy') is None:
        raise InputError(f'{path}: reading it needs SciPy; pip install scipy, or drop --index_warmstart')
    done = subprocess.run([sys.executable, '-c', READER, path], capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors='replace').split('\n')
        reason = next((line for line in reversed(lines) if line.strip()), 'damaged')[:200]
        raise InputError(
            f'{path}: not a readable order of examples ({reason}); copy it again or drop --index_warmstart'
        )
    return torch.from_numpy(np.frombuffer(done.stdout, np.int64).copy())
