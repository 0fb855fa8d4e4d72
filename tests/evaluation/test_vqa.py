"""The VQA accuracy against the official one and the mean over annotators, and clear errors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.vqa import normalize_answer, strip_punctuation, vqa_accuracy, vqa_accuracy_per_question
from tests.reference import load_json


def test_official_vqa_accuracy():
    reference = load_json('vqa_accuracy')
    results, annotations = reference['results'], reference['annotations']
    assert vqa_accuracy(results, annotations) == reference['accuracy']
    per_question = vqa_accuracy_per_question(results, annotations)
    assert {str(question): round(value, 4) for question, value in per_question.items()} == reference['per_question']
    shuffled = results[::-1]
    assert vqa_accuracy(shuffled, annotations) == reference['accuracy']


@pytest.mark.parametrize('text, expected', [
    ('The Dog', 'dog'), ('a an the', ''), ('none', '0'), ('Ten', '10'), ('twenty two', 'twenty 2'),
    ('dont', "don't"), ("couldn'tve", "couldn't've"), ("couldnt've", "couldn't've"), ('couldntve', 'couldntve'),
    ("y'alld've", "y'all'd've"), ("let's", "let's"), ("somebody'd", 'somebodyd'), ('Im', 'im'), ('its', 'its'),
    ('1,000', '1000'), ('10.5', '10.5'), ('5.', '5'), ('u.s.', 'us'), ('.5', '.5'),
    ('dark-red', 'dark red'), ('left / right', 'left right'), ('left/right', 'left right'),
    ('red, (dark)', 'red dark'), ('1,000-2', '10002'), (' yes\n', 'yes'), ('one\ttwo', '1 2'),
])  # fmt: skip
def test_normalization(text, expected):
    assert normalize_answer(text) == expected


def test_punctuation_becomes_a_space_only_between_words():
    assert strip_punctuation('apple,') == 'apple '  # officially not stripped: such an annotator agrees with nobody
    assert strip_punctuation('apple, pear,') == 'apple pear'


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(['cat', 'dog', 'The cat', 'cat!', '2']), min_size=2, max_size=12),
       st.sampled_from(['cat', 'a cat', 'two', 'fish']))  # fmt: skip
def test_accuracy_is_the_mean_over_leaving_one_annotator_out(answers, prediction):
    compared = answers if len(set(answers)) == 1 else [strip_punctuation(answer) for answer in answers]
    parts = []
    for left_out in range(len(compared)):
        others = compared[:left_out] + compared[left_out + 1 :]
        parts.append(min(1, others.count(normalize_answer(prediction)) / 3))
    expected = 100 * sum(parts) / len(parts)
    accuracy = vqa_accuracy([{'question_id': 'q', 'answer': prediction}], [{'question_id': 'q', 'answers': answers}])
    assert accuracy['overall'] == pytest.approx(expected, abs=1e-4)


def test_rows_of_an_annotation_file_are_scored_too():
    rows = [{'question_id': 'a', 'answer': ['red'] * 10, 'answer_type': 'other'},
            {'question_id': 7, 'answer': ['2'] * 10}]  # fmt: skip
    results = [{'question_id': 7, 'answer': 'two'}, {'question_id': 'a', 'answer': 'blue'}]
    accuracy = vqa_accuracy(results, rows)
    assert accuracy == {'overall': 50.0, 'perAnswerType': {'other': 0.0}, 'perQuestionType': {}}


ROW = {'question_id': 1, 'answers': [{'answer': 'red'}] * 10}


@pytest.mark.parametrize('results, annotations, message', [
    ([], [ROW], 'results: 1 annotated questions have no answer, first question 1'),
    ([{'question_id': 1, 'answer': 'x'}] * 2, [ROW], r'results: question 1 is there twice \(again in row 1\)'),
    ([{'question_id': 1, 'answer': 'x'}], [ROW, ROW], 'annotations: question 1 is there twice'),
    ([{'question_id': i, 'answer': 'x'} for i in (1, 2)], [ROW], 'results: 1 questions are not annotated'),
    ([{'question_id': 1, 'answer': 3}], [ROW], 'results: the answer to question 1 must be a string'),
    ([{'answer': 'x'}], [ROW], 'results: row 0 has no question_id'),
    ([{'question_id': 1, 'answer': 'x'}], [{'question_id': 1, 'answer': 'x'}], 'question 1 needs a list of answers'),
    ([], [], 'there is no question to score'),
])  # fmt: skip
def test_bad_vqa_input(results, annotations, message):
    with pytest.raises(ValueError, match=message):
        vqa_accuracy(results, annotations)
