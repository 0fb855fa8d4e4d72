"""Plumbing that the five scripts share: arguments, configuration, processes, seeds, log, checkpoints."""
