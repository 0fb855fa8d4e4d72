"""Annotation files: which fields a row has, how the JSON is read, and the memory-mapped cache that all processes "
"share."""

from dataset.annotations.cache import Annotations, load_annotations

__all__ = ['Annotations', 'load_annotations']
