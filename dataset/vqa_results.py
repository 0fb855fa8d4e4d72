"""Answers to a split's questions: the file for the official server, and the accuracy where the true answers are known."""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

from dataset.vqa_eval import vqa_accuracy


def check_results(results, question_ids):
    """ValueError unless every question is answered exactly once, in order, by a text, as the official server demands.

    results: [{question_id, answer}]; question_ids: those of the split.
    """
    for row in results:
        if set(row) != {'question_id', 'answer'} or type(row['question_id']) not in (int, str) \
                or not isinstance(row['answer'], str):
            raise ValueError(f'results: {row} is not an integer or text `question_id` and a text `answer`')
    answered = [row['question_id'] for row in results]
    if answered != list(question_ids):
        counts = Counter(answered)
        twice = [question for question, count in counts.items() if count > 1]
        missing = [question for question in question_ids if question not in counts]
        raise ValueError(f'results: {len(answered)} answers to {len(question_ids)} questions; without an answer: '
                         f'{missing[:3]}, with several: {twice[:3]}')


def write_results(path, results):
    """Write the results as the official server takes them, beside the place first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_text(json.dumps(results))
    os.replace(temporary, path)


def accuracy_figures(results, rows):
    """The official accuracy in percent: {overall, answer_type_*, question_type_*, kind_*}.

    results: [{question_id, answer}], one for each of the annotated rows.
    """
    accuracy = vqa_accuracy(results, rows)
    by_kind = vqa_accuracy(results, [row | {'question_type': row.get('kind')} for row in rows])['perQuestionType']
    parts = (('answer_type', accuracy['perAnswerType']), ('question_type', accuracy['perQuestionType']), ('kind', by_kind))
    return {'overall': accuracy['overall'],
            **{f'{part}_{name}': value for part, values in parts for name, value in values.items()}}


def accuracy_table(results, rows):
    """Lines for people: the accuracy by kind (else answer type) beside that of the group's most frequent answer."""
    groups = defaultdict(list)
    for row in rows:
        groups['all'].append(row)
        group = row.get('kind', row.get('answer_type'))
        if group is not None:
            groups[str(group)].append(row)
    given = {row['question_id']: row for row in results}
    lines = [f'{"":12}{"questions":>10}{"accuracy":>10}   most frequent answer']
    for name, members in [*((name, groups[name]) for name in groups if name != 'all'), ('all', groups['all'])]:
        ours = vqa_accuracy([given[row['question_id']] for row in members], members)['overall']
        answer = Counter(_majority(row) for row in members).most_common(1)[0][0]
        constant = vqa_accuracy([{'question_id': row['question_id'], 'answer': answer} for row in members], members)['overall']
        lines.append(f'{name:12}{len(members):10d}{ours:10.2f}   {constant:6.2f} ({answer})')
    return lines


def _majority(row):
    return Counter(row['answer']).most_common(1)[0][0]
