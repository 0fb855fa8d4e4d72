"""Errors that a user can correct.

Everything that a configuration, an argument, a file or data can cause is an `InputError`: one line that names the file,
key or row and the remedy. `utils.entry.run_main` prints it as `error: ...`. Any other exception is a bug.
"""


class InputError(ValueError):
    """Something that the user can correct; the message is one line with the remedy."""


class MissingFileError(InputError, FileNotFoundError):
    """An `InputError` about a file or folder that does not exist."""
