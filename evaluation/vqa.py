"""The official VQA v2 accuracy (https://visualqa.org/evaluation.html).

An answer is worth min(1, matches / 3) against nine of the ten annotators, averaged over the ten ways to leave one out.
Predicted answers are normalized first; the annotators' answers only lose punctuation, and only where they differ.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.errors import InputError

PLACES = 4  # of the mean percentages
ARTICLES = {'a', 'an', 'the'}
DIGITS = {'none': '0', 'zero': '0', 'one': '1', 'two': '2', 'three': '3', 'four': '4', 'five': '5', 'six': '6',
          'seven': '7', 'eight': '8', 'nine': '9', 'ten': '10'}  # fmt: skip
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r'\d,\d')
LONE_PERIOD = re.compile(r'\.(?!\d)')

# A word that misses exactly one apostrophe of one of these gets it back: dont, couldn'tve, couldnt've; not couldntve.
# Words come in lower case, so the official entries with a capital I never apply and are not here.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()


def _contraction_table() -> dict[str, str]:
    table = {}
    for word in CONTRACTIONS:
        for place, character in enumerate(word):
            if character == "'":
                table[word[:place] + word[place + 1 :]] = word
    table["somebody'd"] = 'somebodyd'  # the one entry that officially goes the other way
    return table


CONTRACTION_OF = _contraction_table()


@functools.lru_cache(maxsize=1 << 16)  # millions of answers, few of them distinct
def strip_punctuation(text: str) -> str:
    """Delete a mark that touches a space somewhere in `text` (every mark, if a comma is between digits).

    Other marks become spaces. Periods are deleted unless a digit follows.
    """
    delete_all = DIGIT_COMMA.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        delete = delete_all or f'{mark} ' in text or f' {mark}' in text
        result = result.replace(mark, '' if delete else ' ')
    return LONE_PERIOD.sub('', result)


def normalize_answer(text: str) -> str:
    """Bring a prediction to the form that is compared: punctuation, case, number words, articles, contractions."""
    text = strip_punctuation(text.replace('\n', ' ').replace('\t', ' ').strip())
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return ' '.join(CONTRACTION_OF.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy_per_question(
    results: Iterable[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]
) -> dict[Any, float]:
    """Return {question id: accuracy in percent}, in the order of the annotations.

    results: rows {question_id, answer}. annotations: rows {question_id, answers}, where answers are strings or mappings
    with `answer`, as in the official files; an annotation file's rows with a list under `answer` do as well.

    InputError if the two do not have the same question ids, each once.
    """
    predicted = _by_question(results, 'results')
    annotated = _by_question(annotations, 'annotations')
    _check_same(predicted, annotated)
    return {
        question: 100 * _accuracy(_prediction(predicted[question]), _answers(row))
        for question, row in annotated.items()
    }


def vqa_accuracy(results: Iterable[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the official accuracy in percent: {overall, perAnswerType: {...}, perQuestionType: {...}}.

    Arguments and errors are those of `vqa_accuracy_per_question`. Annotations without `answer_type` or `question_type`
    count in `overall` only. Means are rounded to 4 decimal places.
    """
    annotations = list(annotations)
    accuracy = vqa_accuracy_per_question(results, annotations)
    if not accuracy:
        raise InputError('annotations: there is no question to score')
    return {
        'overall': _mean(accuracy.values()),
        'perAnswerType': _mean_by('answer_type', annotations, accuracy),
        'perQuestionType': _mean_by('question_type', annotations, accuracy),
    }


def _accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Of n annotators m agree: without one of the m, m - 1 agree; without one of the others, m agree."""
    if len(set(answers)) > 1:
        answers = [strip_punctuation(answer) for answer in answers]
    prediction = normalize_answer(prediction)
    total, agree = len(answers), sum(answer == prediction for answer in answers)
    return (agree * min(1, (agree - 1) / 3) + (total - agree) * min(1, agree / 3)) / total


def _by_question(rows: Iterable[Mapping[str, Any]], name: str) -> dict[Any, Mapping[str, Any]]:
    by_question = {}
    for number, row in enumerate(rows):
        if 'question_id' not in row:
            raise InputError(f'{name}: row {number} has no question_id')
        if row['question_id'] in by_question:
            raise InputError(f'{name}: question {row["question_id"]!r} is there twice (again in row {number})')
        by_question[row['question_id']] = row
    return by_question


def _check_same(predicted: Mapping[Any, Any], annotated: Mapping[Any, Any]) -> None:
    missing = [question for question in annotated if question not in predicted]
    if missing:
        raise InputError(f'results: {len(missing)} annotated questions have no answer, first question {missing[0]!r}')
    unknown = [question for question in predicted if question not in annotated]
    if unknown:
        raise InputError(f'results: {len(unknown)} questions are not annotated, first question {unknown[0]!r}')


def _prediction(row: Mapping[str, Any]) -> str:
    if not isinstance(row.get('answer'), str):
        raise InputError(f'results: the answer to question {row["question_id"]!r} must be a string')
    return row['answer']


def _answers(row: Mapping[str, Any]) -> list[str]:
    answers = row.get('answers', row.get('answer'))
    if isinstance(answers, (list, tuple)) and answers:
        answers = [answer['answer'] if isinstance(answer, Mapping) else answer for answer in answers]
        if all(isinstance(answer, str) for answer in answers):
            return answers
    raise InputError(f'annotations: question {row["question_id"]!r} needs a list of answers')


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return round(sum(values) / len(values), PLACES)


def _mean_by(key: str, annotations: Iterable[Mapping[str, Any]], accuracy: Mapping[Any, float]) -> dict[str, float]:
    groups = defaultdict(list)
    for row in annotations:
        if row.get(key) is not None:
            groups[row[key]].append(accuracy[row['question_id']])
    return {name: _mean(values) for name, values in groups.items()}
