"""Results of visual question answering: the file for the official server, and the metrics of log.txt."""

import json
import os

import pytest

from dataset.vqa_dataset import read_answer_list
from evaluation.vqa_results import accuracy_metrics, accuracy_table, check_results, write_results
from tests.helpers import read_rows
from tests.reference import load_json


def test_the_accuracy_is_the_official_one():
    reference = load_json('vqa_accuracy')
    metrics = accuracy_metrics(reference['results'], reference['annotations'])
    assert metrics['overall'] == reference['accuracy']['overall']
    for part, name in (('answer_type', 'perAnswerType'), ('question_type', 'perQuestionType')):
        ours = {key.removeprefix(f'{part}_'): value for key, value in metrics.items() if key.startswith(f'{part}_')}
        assert ours == reference['accuracy'][name]


def test_the_table_shows_the_most_frequent_answer(shapes):
    rows = read_rows(shapes, 'vqa_val')
    correct = [row | {'answer': max(row['answer'], key=row['answer'].count)} for row in rows]
    metrics, lines = accuracy_metrics(correct, rows), list(accuracy_table(correct, rows))
    assert metrics['kind_colour'] > 95 and metrics['overall'] > 95
    shown = {line[:12].strip(): line.split() for line in lines[1:]}
    assert shown.keys() == {'colour', 'shape', 'count', 'relation', 'yes/no', 'all'}
    colours = [row['answer'] for row in rows if row['kind'] == 'colour']
    most = max(
        sum(max(answers, key=answers.count) == colour for answers in colours)
        for colour in read_answer_list(shapes / 'answer_list.json')
    )
    assert float(shown['colour'][3]) == pytest.approx(100 * most / len(colours), abs=100 / len(colours))


@pytest.mark.parametrize(
    'results, fault',
    [
        ([(1, 'a'), (2, 'b')], 'without an answer: [3]'),
        ([(1, 'a'), (2, 'b'), (3, 'c'), (2, 'b')], 'with several: [2]'),
        ([(1, 'a'), (2, None), (3, 'c')], 'string `answer`'),
        ([(1, 'a'), (True, 'b'), (3, 'c')], '`question_id`'),
        ([(1, 'a'), (3, 'b'), (2, 'c')], 'with several: []'),
    ],
)
def test_results_that_the_server_would_refuse(results, fault):
    with pytest.raises(ValueError, match='results: ') as error:
        check_results([{'question_id': question, 'answer': answer} for question, answer in results], [1, 2, 3])
    assert fault in str(error.value)


def test_results_are_written_in_the_format_of_the_server(tmp_path):
    results = [{'question_id': 1, 'answer': 'dark green'}, {'question_id': 'b', 'answer': ''}]
    write_results(tmp_path / 'result' / 'r.json', results)
    assert json.loads((tmp_path / 'result' / 'r.json').read_text()) == results


def test_results_are_written_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'result' / 'r.json'
    write_results(path, [{'question_id': 1, 'answer': 'old'}])

    def fail(*_):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='no space left'):
        write_results(path, [{'question_id': 1, 'answer': 'new'}])
    assert json.loads(path.read_text()) == [{'question_id': 1, 'answer': 'old'}]
