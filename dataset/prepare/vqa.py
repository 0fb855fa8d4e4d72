"""VQA v2 (questions and annotations), the questions of Visual Genome, and the list of answers."""

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from dataset.prepare.arguments import add_command, add_output_arguments, positive
from dataset.prepare.common import (
    Summary,
    add_prefix,
    clean_caption,
    load_json,
    progress_bar,
    require_key,
    stream_json,
    write_json,
    write_rows,
)
from dataset.prepare.exclude import Exclusions
from dataset.prepare.vg import read_images
from evaluation.vqa import normalize_answer
from utils.errors import InputError

FILES = {
    'train2014': 'vqa_train.json',
    'val2014': 'vqa_val.json',
    'test2015': 'vqa_test.json',
    'test-dev2015': 'vqa_test_dev.json',
}


def add_vqa(commands: Any) -> None:
    parser = add_command(commands, 'vqa', run_vqa)
    parser.add_argument('files', nargs='+', metavar='JSON', help='v2_*_questions.json and v2_*_annotations.json')
    parser.add_argument(
        '--vg',
        nargs=2,
        metavar=('question_answers.json', 'image_data.json'),
        help='the questions of Visual Genome, and the file with the paths of its images',
    )
    parser.add_argument('--vg-image-prefix', default='', metavar='DIR', help='as --image-prefix, for Visual Genome')
    parser.add_argument(
        '--num-answers', type=positive, default=3128, metavar='N', help='length of the answer list (default 3128)'
    )
    add_output_arguments(parser, 'FOLDER')


def run_vqa(args: argparse.Namespace) -> Summary:
    """VQA v2 questions and annotations, Visual Genome question_answers.json

    Writes vqa_train, vqa_val and vqa_test.json, vg_qa.json if --vg is given, and answer_list.json: the most frequent
    answers of all given annotations, normalized as in the official evaluation.
    """
    summary, exclusions = Summary('VQA v2'), Exclusions(args.exclude)
    questions, annotations = read_files(args.files)
    for path, data in progress_bar(questions, 'questions'):
        split = require_key(data, 'data_subtype', path, 'its top level')
        if split not in FILES:
            raise InputError(f"{path}: data_subtype '{split}' is not {', '.join(FILES)}: give the files of VQA v2")
        check_first_row(data['questions'], ('question', 'question_id', 'image_id'), path)
        rows = question_rows(data['questions'], split, annotations, args.image_prefix, exclusions, summary)
        write_rows(os.path.join(args.out, FILES[split]), rows, summary)
    if args.vg:
        rows = vg_rows(*args.vg, args.vg_image_prefix, exclusions, summary)
        write_rows(os.path.join(args.out, 'vg_qa.json'), rows, summary)
    if annotations:
        write_answers(os.path.join(args.out, 'answer_list.json'), annotations.values(), args.num_answers, summary)
    return summary


def read_files(paths: list[str]) -> tuple[list[tuple[str, dict]], dict[int, dict]]:
    """(path, content) of each question file, and annotations by question id."""
    questions, annotations = [], {}
    for path in progress_bar(paths, 'reading'):
        data = load_json(path)
        if isinstance(data, dict) and 'questions' in data:
            questions.append((path, data))
        else:
            rows = require_key(data, 'annotations', path, 'its top level')
            check_first_row(rows, ('question_id', 'answers', 'multiple_choice_answer'), path)
            annotations.update((row['question_id'], row) for row in rows)
    return questions, annotations


def check_first_row(rows: list[dict], keys: Iterable[str], path: str) -> None:
    """InputError if the first row lacks a key of VQA v2, so that a file of another release is refused early."""
    for row in rows[:1]:
        for key in keys:
            require_key(row, key, path, 'row 0')


def question_rows(
    questions: Iterable[dict], split: str, annotations: dict, prefix: str, exclusions: Exclusions, summary: Summary
) -> Iterator[dict]:
    """VQA rows of one split, with answers if there are annotations."""
    folder = 'test2015' if split.startswith('test') else split
    for question in questions:
        summary.read[f'questions of {split}'] += 1
        row = {
            'question': clean_caption(question['question'], summary),
            'image': add_prefix(prefix, folder, f'COCO_{folder}_{question["image_id"]:012d}.jpg'),
            'dataset': 'vqa',
            'question_id': question['question_id'],
        }
        annotation = annotations.get(question['question_id'])
        if annotation:
            row['answer'] = [answer['answer'] for answer in annotation['answers']]
            row |= {key: annotation[key] for key in ('answer_type', 'question_type') if key in annotation}
        if row['question'] is None:
            continue
        if not annotation and not split.startswith('test'):
            summary.dropped[f'question of {split} without an annotation'] += 1
        elif exclusions.contains(row['image']):
            summary.excluded.add(row['image'])
        else:
            yield row


def vg_rows(path: str, image_data: str, prefix: str, exclusions: Exclusions, summary: Summary) -> Iterator[dict]:
    """One row per question, its answer normalized like the answer list ("In the sky." -> "in sky")."""
    images = read_images(image_data, prefix)
    for item in progress_bar(stream_json(path), 'Visual Genome', len(images)):
        pairs = require_key(item, 'qas', path, 'an image')
        image = images.get(item.get('id', item.get('image_id')))
        summary.read['questions of Visual Genome'] += len(pairs)
        if image is None:
            summary.dropped['image that is not in image_data.json'] += 1
            continue
        if exclusions.contains(image.path, image.coco_id, image.flickr_id):
            summary.excluded.add(image.path)
            continue
        for pair in pairs:
            question, answer = clean_caption(pair['question'], summary), normalize_answer(pair['answer'])
            if question and answer:
                yield {
                    'question': question,
                    'image': image.path,
                    'dataset': 'vg',
                    'question_id': pair['qa_id'],
                    'answer': answer,
                }
            elif question:
                summary.dropped['empty answer'] += 1


def write_answers(path: str, annotations: Iterable[dict], count: int, summary: Summary) -> None:
    """Write the `count` most frequent answers, where a question counts for its most common one; ties alphabetically."""
    seen = Counter(normalize_answer(annotation['multiple_choice_answer']) for annotation in annotations)
    seen.pop('', None)
    if not seen:
        raise InputError(f'no answer is left to write to {path}: give the annotations of VQA v2')
    answers = sorted(seen, key=lambda answer: (-seen[answer], answer))[:count]
    write_json(path, answers)
    covered = sum(seen[answer] for answer in answers) / sum(seen.values())
    summary.written.append(
        f'{path}: {len(answers):,} answers, each given at least {seen[answers[-1]]} times; '
        f'the correct one of {covered:.1%} of the questions'
    )
