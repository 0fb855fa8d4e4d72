"""Accuracy of masked words by kind, and its table."""

import pytest

from evaluation.masked_words import masked_word_lines, masked_word_metrics

PREDICTIONS = [
    ('size', 'large', 'small'),
    ('color', 'red', 'red'),
    ('color', 'blue', 'red'),
    ('color', 'red', 'large'),
    ('color', 'blue', 'blue'),
    ('size', 'large', None),  # no word of the vocabulary
    ('color', 'blue', 'blue'),
]


def test_accuracy_count_and_most_frequent_word_by_kind():
    metrics = masked_word_metrics(iter(PREDICTIONS))
    assert list(metrics) == ['size', 'color']
    assert metrics['size'] == {'accuracy': 0, 'count': 2, 'most_frequent': 100}
    assert metrics['color'] == {'accuracy': pytest.approx(60), 'count': 5, 'most_frequent': pytest.approx(60)}
    assert masked_word_metrics([('color', 'red', 'red'), *PREDICTIONS])['color'] == {
        'accuracy': pytest.approx(100 * 4 / 6),
        'count': 6,
        'most_frequent': 50,
    }


def test_the_table_has_a_line_for_each_kind():
    assert masked_word_lines(masked_word_metrics([*PREDICTIONS, ('relation', 'above', 'above')])) == [
        'kind      accuracy  most frequent word  masked words',
        'size         0.0 %             100.0 %             2',
        'color       60.0 %              60.0 %             5',
        'relation   100.0 %             100.0 %             1',
    ]
