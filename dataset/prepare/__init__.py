"""Converts the files of each dataset's release to annotation files: `python -m dataset.prepare --help`."""
