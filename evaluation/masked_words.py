"""Accuracy of masked words by their kind: what a pre-trained model reads from the image, and not from the text alone.

A kind is a set of words that could replace one another, such as the colors. A model that ignores the image can at best
learn how frequent each word is, so beside the accuracy stands that of always answering the most frequent word.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

KindMetrics = dict[str, float]


def masked_word_metrics(predictions: Iterable[tuple[str, str, str | None]]) -> dict[str, KindMetrics]:
    """Return {kind: {accuracy, count, most_frequent}}, kinds by first appearance.

    predictions: (kind, true word, predicted word) of each masked word. accuracy: in percent. count: the number of
    masked words. most_frequent: the accuracy, in percent, of always answering the kind's most frequent true word.
    """
    words: dict[str, Counter] = {}
    correct: Counter = Counter()
    for kind, true, predicted in predictions:
        words.setdefault(kind, Counter())[true] += 1
        correct[kind] += predicted == true
    return {
        kind: {
            'accuracy': 100 * correct[kind] / counts.total(),
            'count': counts.total(),
            'most_frequent': 100 * max(counts.values()) / counts.total(),
        }
        for kind, counts in words.items()
    }


def masked_word_lines(metrics: Mapping[str, KindMetrics]) -> list[str]:
    """The metrics as lines of a text table, one for each kind, below a header."""
    width = max(map(len, ('kind', *metrics)))
    lines = [f'{"kind":{width}}  accuracy  most frequent word  masked words']
    for kind, values in metrics.items():
        accuracy, most_frequent = f'{values["accuracy"]:.1f} %', f'{values["most_frequent"]:.1f} %'
        lines.append(f'{kind:{width}}  {accuracy:>8}  {most_frequent:>18}  {values["count"]:>12}')
    return lines
