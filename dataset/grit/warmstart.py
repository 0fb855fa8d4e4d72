"""The order that `--index_warmstart` starts with, saved in the output folder by an earlier run."""

import os

import torch

from utils.checkpoint import find_run, open_run
from utils.errors import InputError, MissingFileError


def saved_order(folder: str) -> torch.Tensor:
    """The order of all ranks in a folder, [n] int64: of the newest checkpoint, or an official total_indices.mat.

    InputError if the folder has neither.
    """
    newest = find_run(folder, 'pretrain')
    if newest:
        plans = [rank['plan'] for rank in open_run(newest, 'pretrain')['ranks']]
        return torch.cat([plan['order'] for plan in plans] + [plan['left_out'] for plan in plans])
    path = os.path.join(folder, 'total_indices.mat')
    if os.path.isfile(path):
        return read_mat(path)
    raise MissingFileError(
        f'--index_warmstart: {folder} has no saved order: neither a checkpoint of Pretrain.py nor a total_indices.mat; '
        'drop the flag, or give the --output_dir of the run whose order is meant'
    )


def read_mat(path: str) -> torch.Tensor:
    """The one numeric array in a MATLAB file, flattened to int64."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(f'{path}: reading it needs SciPy; pip install scipy') from None
    try:
        content = loadmat(path)
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{path}: not a readable MATLAB file ({reason}); copy it again or drop the flag') from None
    arrays = [value for name, value in content.items() if not name.startswith('__')]
    if len(arrays) != 1 or arrays[0].dtype.kind not in 'iuf':
        raise InputError(f'{path}: must contain exactly one array of numbers, the order of examples')
    return torch.from_numpy(arrays[0].astype('int64').ravel())
