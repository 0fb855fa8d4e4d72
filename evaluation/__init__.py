"""Metrics as pure functions of predictions, and what runs logged, as a table and as curves.

Imports neither `dataset` nor `models`. A metric is imported when it is used: torch takes seconds, for which
`python -m evaluation --help` does not wait.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.retrieval import retrieval_recall
    from evaluation.vqa import vqa_accuracy

__all__ = ['retrieval_recall', 'vqa_accuracy']
_MODULES = {'retrieval_recall': 'evaluation.retrieval', 'vqa_accuracy': 'evaluation.vqa'}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_MODULES[name]), name)
