"""VQA v2 (questions and annotations), Visual Genome's questions, and the list of answers."""

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator

from dataset.prepare.common import (
    Summary,
    add_common,
    clean_caption,
    join,
    load_json,
    need,
    progress,
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


def add_vqa(commands) -> None:
    parser = commands.add_parser(
        'vqa',
        help='VQA v2 questions and annotations, Visual Genome question_answers.json',
        description='Writes vqa_train, vqa_val and vqa_test.json, vg_qa.json if --vg is given, and answer_list.json: '
        'the most frequent answers of all annotations given, normalised as the official scoring does.',
    )
    parser.add_argument('files', nargs='+', metavar='JSON', help='v2_*_questions.json and v2_*_annotations.json')
    parser.add_argument(
        '--vg',
        nargs=2,
        metavar=('question_answers.json', 'image_data.json'),
        help="Visual Genome's questions, and the file that says where its images lie",
    )
    parser.add_argument('--vg-image-prefix', default='', metavar='DIR', help='as --image-prefix, for Visual Genome')
    parser.add_argument('--num-answers', type=int, default=3128, metavar='N', help='of the answer list (default 3128)')
    add_common(parser, 'FOLDER to write to')
    parser.set_defaults(run=run_vqa)


def run_vqa(args: argparse.Namespace) -> Summary:
    summary, exclusions = Summary('VQA v2'), Exclusions(args.exclude)
    questions, annotations = read_files(args.files)
    for path, data in progress(questions, 'questions'):
        split = need(data, 'data_subtype', path, 'a questions file')
        if split not in FILES:
            raise InputError(f"{path}: data_subtype '{split}' is none of {', '.join(FILES)}: name the files of VQA v2")
        need_all(data['questions'], ('question', 'question_id', 'image_id'), path)
        rows = question_rows(data['questions'], split, annotations, args.image_prefix, exclusions, summary)
        write_rows(os.path.join(args.out, FILES[split]), rows, summary)
    if args.vg:
        rows = vg_rows(*args.vg, args.vg_image_prefix, exclusions, summary)
        write_rows(os.path.join(args.out, 'vg_qa.json'), rows, summary)
    if annotations:
        write_answers(os.path.join(args.out, 'answer_list.json'), annotations.values(), args.num_answers, summary)
    return summary


def read_files(paths: list[str]) -> tuple[list[tuple[str, dict]], dict[int, dict]]:
    """Question files with their paths, and annotations by question id."""
    questions, annotations = [], {}
    for path in progress(paths, 'reading'):
        data = load_json(path)
        if isinstance(data, dict) and 'questions' in data:
            questions.append((path, data))
        else:
            rows = need(data, 'annotations', path, 'a questions or annotations file of VQA v2')
            need_all(rows, ('question_id', 'answers', 'multiple_choice_answer'), path)
            annotations.update((row['question_id'], row) for row in rows)
    return questions, annotations


def need_all(rows: list[dict], keys: Iterable[str], path: str) -> None:
    """Whether the first row has what those of VQA v2 have: another release is told from it early."""
    for row in rows[:1]:
        for key in keys:
            need(row, key, path, 'VQA v2')


def question_rows(
    questions: Iterable[dict], split: str, annotations: dict, prefix: str, exclusions: Exclusions, summary: Summary
) -> Iterator[dict]:
    folder = 'test2015' if split.startswith('test') else split
    for question in questions:
        summary.read[f'questions of {split}'] += 1
        row = {
            'question': clean_caption(question['question'], summary),
            'image': join(prefix, folder, f'COCO_{folder}_{question["image_id"]:012d}.jpg'),
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
        elif exclusions.names(row['image']):
            summary.excluded.add(row['image'])
        else:
            yield row


def vg_rows(path: str, image_data: str, prefix: str, exclusions: Exclusions, summary: Summary) -> Iterator[dict]:
    """One row a question, its answer normalised ("In the sky." -> "in sky"), as the answer list is."""
    images = read_images(image_data, prefix)
    for item in progress(stream_json(path), 'Visual Genome', len(images)):
        image = images.get(item.get('id', item.get('image_id')))
        pairs = need(item, 'qas', path, 'an image of question_answers.json')
        summary.read['questions of Visual Genome'] += len(pairs)
        if image is None:
            summary.dropped['image that image_data.json does not know'] += 1
            continue
        if exclusions.names(image.path, image.coco_id, image.flickr_id):
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
    """The `count` most frequent answers on which annotators agreed most; among equals in the order of the alphabet."""
    seen = Counter(normalize_answer(annotation['multiple_choice_answer']) for annotation in annotations)
    seen.pop('', None)
    answers = sorted(seen, key=lambda answer: (-seen[answer], answer))[:count]
    write_json(path, answers)
    covered = sum(seen[answer] for answer in answers) / sum(seen.values())
    summary.written.append(
        f'{path}: {len(answers):,} answers, each given at least {seen[answers[-1]]} times; '
        f'the right one to {covered:.1%} of the questions'
    )
