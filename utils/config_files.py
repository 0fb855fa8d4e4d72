"""The files of a configuration: where they are, from any working directory, and YAML."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from utils.errors import InputError, MissingFileError
from utils.files import atomic_write, read_text

ROOT = Path(__file__).resolve().parent.parent  # of the repository
NO_YAML = (YAMLError, ValueError, KeyError, RecursionError)  # the last three: !!int x, 2020-99-99; !!bool x; [[[[...


def find_file(path: str, *folders: str | os.PathLike) -> str:
    """The file that a path means: from the working directory, else from one of the folders, else from the repository.

    Returns the path as it is given if the file is in the working directory, or nowhere.
    """
    candidates = [os.path.normpath(os.path.join(folder, path)) for folder in (*folders, ROOT)]
    return next((found for found in (path, *candidates) if os.path.isfile(found)), path)


def find_path(path: str) -> str:
    """The file or folder that a path means: from the working directory, else from the repository; else the path."""
    return next((found for found in (path, os.path.join(ROOT, path)) if os.path.exists(found)), path)


def find_beside(path: str, source: str) -> str:
    """The file that a path in a configuration file means; `source` is that file.

    A configuration of the repository means the file of the repository, whatever is in the working directory.
    """
    folder = Path(source).resolve().parent
    inside = folder.is_relative_to(ROOT) and Path(ROOT, path).is_file()
    return str(Path(ROOT, path)) if inside else find_file(path, folder)


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping in a YAML file. InputError if there is none."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f'{path} is a folder, not a YAML file; give the file in it')
    if not path.is_file():
        raise MissingFileError(f'{path}: there is no such configuration file; give one with --config')
    try:
        value = YAML(typ='safe').load(read_text(path))
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    except NO_YAML as error:
        reason = str(error).replace('in "<unicode string>", ', '')
        raise InputError(f'{path}: not valid YAML: {" ".join(reason.split())}') from None
    if not isinstance(value, dict):
        raise InputError(f'{path}: must contain a mapping of keys to values')
    return value


def holds_yaml(path: str | os.PathLike, config: Mapping[str, Any]) -> bool:
    """Whether a file has a mapping, as `write_yaml` writes it."""
    try:
        return read_yaml(path) == config
    except InputError:
        return False


def write_yaml(config: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a mapping as YAML, atomically."""
    yaml = YAML()
    yaml.width = 120
    with atomic_write(path) as file:
        yaml.dump(config, file)
