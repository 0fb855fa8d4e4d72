"""Annotation files: the fields of a row, reading of JSON, and the memory-mapped cache that all processes share."""

from dataset.annotations.cache import Annotations, load_annotations

__all__ = ['Annotations', 'load_annotations']
