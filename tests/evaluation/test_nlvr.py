"""Accuracy and consistency of NLVR2, and clear errors."""

import numpy as np
import pytest
import torch

from evaluation.nlvr import nlvr_consistency, nlvr_metrics


def test_consistency_counts_sentences():
    identifiers = ['dev-1-0-0', 'dev-1-1-0', 'dev-1-0-1', 'dev-2-0-0', 'test1-1-0-0']
    assert nlvr_consistency(identifiers, [True, False, True, True, True]) == 3 / 4
    assert nlvr_consistency(identifiers, torch.ones(5, dtype=torch.bool)) == 1.0


def test_bad_consistency_input():
    with pytest.raises(ValueError, match='identifier .dev-1-0. is not'):
        nlvr_consistency(['dev-1-0'], [True])
    with pytest.raises(ValueError, match='1 identifiers for 2 predictions'):
        nlvr_consistency(['dev-1-0-0'], [True, False])


LABELS, PREDICTED = np.array([True, True, False, False]), np.array([True, False, False, False])


def test_accuracy_by_kind_and_consistency():
    identifiers = ['dev-1-0-0', 'dev-1-1-0', 'dev-2-0-0', 'dev-3-0-0']
    metrics = nlvr_metrics(LABELS, PREDICTED, ['count', None, 'count', 3], identifiers)
    assert metrics == {'acc': 0.75, 'acc_3': 1.0, 'acc_count': 1.0, 'consistency': 2 / 3}


@pytest.mark.parametrize('identifier', [None, 17, 'dev-1-0'])
def test_consistency_needs_identifiers_in_all_rows(identifier):
    metrics = nlvr_metrics(LABELS, PREDICTED, [None] * 4, ['dev-1-0-0', 'dev-1-1-0', 'dev-2-0-0', identifier])
    assert metrics == {'acc': 0.75}
