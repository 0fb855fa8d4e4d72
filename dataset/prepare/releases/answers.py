"""The list of answers that VQA ranks: the most frequent ones of one's own annotation files, or of a release."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dataset.annotations.schema import checked_rows
from dataset.prepare.arguments import add_command, json_file, positive
from dataset.prepare.common import Summary, progress_bar, stream_json, write_json
from evaluation.vqa import normalize_answer
from utils.arguments import Parser
from utils.errors import InputError

OFFICIAL_LENGTH = 3128  # of the list for VQA v2


def add_answers(commands: Any) -> None:
    parser = add_command(commands, 'answers', run_answers)
    parser.add_argument('files', nargs='+', metavar='F.json', help='annotation files of VQA, usually those of training')
    add_length_argument(parser)
    parser.add_argument(
        '--out', required=True, type=json_file, metavar='answer_list.json', help='answer list to write, a JSON list'
    )


def add_length_argument(parser: Parser) -> None:
    parser.add_argument(
        '--num-answers',
        type=positive,
        default=OFFICIAL_LENGTH,
        metavar='N',
        help='length of the answer list, shorter if there are fewer answers (default %(default)s)',
    )


def run_answers(args: argparse.Namespace) -> Summary:
    """the answer list of your own annotation files of VQA

    Each row counts for its most common answer, normalized as in the official evaluation.
    """
    summary = Summary('Answer list')
    write_answers(args.out, common_answers(args.files, summary), args.num_answers, summary)
    return summary


def common_answers(files: Iterable[str], summary: Summary) -> Iterator[str]:
    """The most common answer of each row that has answers."""
    for path in files:
        for number, row in enumerate(checked_rows(progress_bar(stream_json(path), 'rows'), path, 'vqa')):
            summary.read['rows'] += 1
            answers = [row['answer']] if isinstance(row.get('answer'), str) else row.get('answer', [])
            if any(answer.strip() for answer in answers):
                yield most_common_answer(answers)
            else:
                summary.note('row without an answer, not counted', f'{path}, row {number}')


def most_common_answer(answers: Sequence[str]) -> str:
    """The answer that most annotators gave, normalized; of several equally common ones the first.

    '' if every answer consists of punctuation and articles. Half an emoji has no UTF-8 form, as a vocabulary needs it,
    and counts as a question mark, as in training.
    """
    counts: Counter = Counter()
    for answer, count in Counter(answers).items():
        counts[normalize_answer(answer.encode('utf-8', 'replace').decode())] += count
    counts.pop('', None)
    return counts.most_common(1)[0][0] if counts else ''


def write_answers(path: str, common: Iterable[str], count: int, summary: Summary) -> None:
    """Write the `count` most frequent answers; ties alphabetically.

    common: the most common answer of each question that has answers.
    """
    seen = Counter(common)
    total = seen.total()
    summary.note(
        'question whose answers consist of punctuation and articles, which no answer of the list can match',
        count=seen.pop('', 0),
    )
    if not seen:
        summary.print()
        raise InputError(f'no answer is left to write to {path}: the summary says what was read and dropped')
    answers = sorted(seen, key=lambda answer: (-seen[answer], answer))[:count]
    write_json(path, answers)
    covered = sum(seen[answer] for answer in answers) / total
    summary.written.append(
        f'{path}: {len(answers):,} of {len(seen):,} answers, each the most common one of at least '
        f'{seen[answers[-1]]:,} questions; together of {covered:.1%} of the {total:,} questions with answers'
    )
