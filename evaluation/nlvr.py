"""Metrics of NLVR2: accuracy, also by kind of statement, and consistency."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.errors import InputError


def nlvr_metrics(
    labels: np.ndarray, predicted: np.ndarray, kinds: Sequence[Any], identifiers: Sequence[Any]
) -> dict[str, float]:
    """Accuracy as fractions: {acc, acc_KIND: ..., consistency}.

    labels, predicted: [n] bool, whether each statement is true and is predicted to be true. kinds: [n], None for a row
    without a kind. identifiers: [n]; consistency is given only if all rows have NLVR2's identifiers.
    """
    correct = predicted == labels
    metrics = {'acc': float(correct.mean())}
    for kind in sorted({kind for kind in kinds if kind is not None}, key=str):
        metrics[f'acc_{kind}'] = float(correct[[other == kind for other in kinds]].mean())
    if all(isinstance(name, str) and name.count('-') == 3 for name in identifiers):
        metrics['consistency'] = nlvr_consistency(identifiers, correct)
    return metrics


def nlvr_consistency(identifiers: Sequence[str], correct: Sequence[bool]) -> float:
    """Return the share of sentences that are predicted correctly on all their pairs of images (0 to 1).

    identifiers: NLVR2's `split-set-pair-sentence`; rows that differ only in the pair share their sentence.
    correct: whether the prediction of each row is correct.
    """
    if len(identifiers) != len(correct) or not len(identifiers):
        raise InputError(f'{len(identifiers)} identifiers for {len(correct)} predictions; give one for each row')
    sentences: dict[tuple[str, str, str], bool] = {}
    for identifier, is_correct in zip(identifiers, correct, strict=True):
        parts = identifier.split('-')
        if len(parts) != 4:
            raise InputError(f"identifier {identifier!r} is not 'split-set-pair-sentence', such as 'dev-850-0-0'")
        sentence = (parts[0], parts[1], parts[3])
        sentences[sentence] = sentences.get(sentence, True) and bool(is_correct)
    return sum(sentences.values()) / len(sentences)
