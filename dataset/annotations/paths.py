"""Paths of images that lead out of the folder they should start from: absolute ones, and those with `..`.

Only the words of a path count, not links in the file system.
"""

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UPWARDS = r'(^|/)\.\.(/|$)'


def leaves(path: str, root: str) -> bool:
    """Whether a path that is joined to `root` names something outside it. With an empty root nothing is outside."""
    if not root:
        return False
    root = os.path.abspath(root)
    return os.path.commonpath([root, os.path.abspath(os.path.join(root, path))]) != root


def may_leave(paths: pa.Array, root: str) -> np.ndarray:
    """Which rows may have a path that leaves `root`: strings or lists of strings [rows] -> [rows] bool."""
    is_list = pa.types.is_large_list(paths.type)
    words = paths.flatten() if is_list else paths
    inside = os.path.join(os.path.abspath(root), '')
    absolute = pc.and_not(pc.starts_with(words, '/'), pc.starts_with(words, inside))
    found = np.asarray(pc.or_(absolute, pc.match_substring_regex(words, UPWARDS)))
    if not is_list:
        return found
    rows = np.zeros(len(paths), np.bool_)
    rows[np.asarray(pc.list_parent_indices(paths))[found]] = True
    return rows
