"""From the files that each data set is released with to annotation files: `python -m dataset.prepare --help`."""
