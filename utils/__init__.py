"""Plumbing that the scripts share: arguments, configuration, processes, seeds, log, checkpoints, errors."""
