"""Answers to the questions of a split: the file for the official server, and the accuracy where true answers are
known."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.vqa import vqa_accuracy
from utils.errors import InputError
from utils.files import atomic_write

Row = Mapping[str, Any]


def check_results(results: Sequence[Row], question_ids: Sequence[int | str]) -> None:
    """InputError unless every question has exactly one answer, a string, in order, as the official server requires.

    results: [{question_id, answer}]. question_ids: those of the split.
    """
    for row in results:
        is_id = type(row.get('question_id')) in (int, str)
        if set(row) != {'question_id', 'answer'} or not is_id or not isinstance(row['answer'], str):
            raise InputError(f'results: {row} is not an integer or string `question_id` and a string `answer`')
    answered = [row['question_id'] for row in results]
    if answered != list(question_ids):
        counts = Counter(answered)
        repeated = [question for question, count in counts.items() if count > 1]
        missing = [question for question in question_ids if question not in counts]
        raise InputError(
            f'results: {len(answered)} answers to {len(question_ids)} questions; without an answer: {missing[:3]}, '
            f'with several: {repeated[:3]}'
        )


def write_results(path: str | os.PathLike, results: Sequence[Row]) -> None:
    """Write the results in the format of the official server, atomically."""
    with atomic_write(path) as file:
        json.dump(results, file)


def accuracy_metrics(results: Sequence[Row], rows: Sequence[Row]) -> dict[str, float]:
    """The official accuracy in percent: {overall, answer_type_*, question_type_*, kind_*}.

    results: [{question_id, answer}], one for each of the annotated rows.
    """
    accuracy = vqa_accuracy(results, rows)
    by_kind = vqa_accuracy(results, [{**row, 'question_type': row.get('kind')} for row in rows])['perQuestionType']
    groups = {'answer_type': accuracy['perAnswerType'], 'question_type': accuracy['perQuestionType'], 'kind': by_kind}
    metrics = {'overall': accuracy['overall']}
    for group, values in groups.items():
        metrics |= {f'{group}_{name}': value for name, value in values.items()}
    return metrics


def accuracy_table(results: Sequence[Row], rows: Sequence[Row]) -> Iterator[str]:
    """Lines to read: the accuracy by kind (else answer type), beside that of the group's most frequent answer."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        group = row.get('kind', row.get('answer_type'))
        if group is not None:
            groups[str(group)].append(row)
    predicted = {row['question_id']: row for row in results}
    yield f'{"":12}{"questions":>10}{"accuracy":>10}   most frequent answer'
    for name, members in [*groups.items(), ('all', list(rows))]:
        ours = vqa_accuracy([predicted[row['question_id']] for row in members], members)['overall']
        answer = Counter(_majority(row) for row in members).most_common(1)[0][0]
        constant = vqa_accuracy([{'question_id': row['question_id'], 'answer': answer} for row in members], members)[
            'overall'
        ]
        yield f'{name:12}{len(members):10d}{ours:10.2f}   {constant:6.2f} ({answer})'


def _majority(row: Row) -> str:
    return Counter(row['answer']).most_common(1)[0][0]
