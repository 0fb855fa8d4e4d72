"""VQA v2, OK-VQA and VizWiz (questions and answers), the questions of Visual Genome, and the list of answers."""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from dataset.annotations.json_reader import short
from dataset.prepare.arguments import add_command, add_output_arguments
from dataset.prepare.common import Summary, add_prefix, clean_caption, load_json, progress_bar, stream_json, write_rows
from dataset.prepare.entries import Entry, entries
from dataset.prepare.exclude import Exclusions
from dataset.prepare.releases.answers import add_length_argument, most_common_answer, write_answers
from dataset.prepare.releases.vg import Image, read_images
from evaluation.vqa import normalize_answer
from utils.errors import InputError

COCO_FILES = {  # VQA v2 and OK-VQA
    'train2014': 'vqa_train.json',
    'val2014': 'vqa_val.json',
    'test2015': 'vqa_test.json',
    'test-dev2015': 'vqa_test_dev.json',
}
FILES = COCO_FILES | {split: f'vqa_{split}.json' for split in ('train', 'val', 'test')}  # the others: VizWiz
LAYOUTS = ('VQA v2', 'OK-VQA', 'VizWiz')
VIZWIZ_NAME = re.compile(r'VizWiz_(train|val|test)_[0-9]+\.[A-Za-z]+')


class Question(NamedTuple):
    question_id: int | str
    text: str  # '' if it is null or blank
    image: str


class Annotation(NamedTuple):
    answers: tuple[str, ...]  # as the annotators gave them
    common: str  # the normalized answer that counts for the answer list, '' if there is none
    types: tuple[tuple[str, str], ...]  # answer_type and question_type, those that it has
    image_id: int | None  # of COCO
    path: str  # of its file


class Release:
    """The questions and annotations of all files, by question id; the ids 1 and "1" are the same."""

    def __init__(self, summary: Summary):
        self.summary, self.layouts = summary, LAYOUTS
        self.questions: dict[str, dict[str, Question]] = {}  # by split
        self.annotations: dict[str, Annotation] = {}

    def require_layout(self, layouts: tuple[str, ...], path: str) -> None:
        """Keep those of the possible layouts that the file may have; InputError if there is none."""
        common = tuple(layout for layout in self.layouts if layout in layouts)
        if not common:
            raise InputError(
                f'{path} is a file of {" or ".join(layouts)}, but the files before it are of '
                f'{" or ".join(self.layouts)}: give each dataset a command and a folder of its own'
            )
        self.layouts = common

    def add_question(self, split: str, question: Question, entry: Entry) -> None:
        """A question again is dropped; InputError if another one has its id."""
        self.summary.read[f'questions of {split}'] += 1
        known = self.questions[split].setdefault(str(question.question_id), question)
        if known[1:] != question[1:]:
            raise InputError(
                f'{entry.path}: {entry.place} has question_id {short(question.question_id, 60)} of another question '
                f'of {split}: give every question an id of its own'
            )
        if known is not question:
            self.summary.drop('question that is there twice', f'{entry.path}, {entry.place}')

    def add_annotation(self, question_id: int | str, entry: Entry) -> None:
        """An annotation again is dropped; InputError if it differs from another one of the question."""
        self.summary.read['annotations'] += 1
        place = f'{entry.path}, {entry.place}'
        answers = read_answers(entry, self.summary)
        if not answers:
            self.summary.drop('annotation without an answer', place)
            return
        chosen = optional_text(entry, 'multiple_choice_answer')
        if not chosen and self.layouts == ('VQA v2',):
            self.summary.note('annotation without multiple_choice_answer, its most common answer is counted', place)
        types = [(key, optional_text(entry, key)) for key in ('answer_type', 'question_type')]
        annotation = Annotation(
            answers,
            sys.intern(most_common_answer([chosen] if chosen else answers)),
            tuple((key, sys.intern(value)) for key, value in types if value),
            entry.integer('image_id') if 'image_id' in entry else None,
            entry.path,
        )
        known = self.annotations.setdefault(str(question_id), annotation)
        if known[:-1] != annotation[:-1]:
            raise InputError(
                f'{entry.path}: {entry.place}, of question {short(question_id, 60)}, differs from the one in '
                f'{known.path}: give one annotation of each question'
            )
        if known is not annotation:
            self.summary.drop('annotation that is there twice', place)

    def refuse_other_images(self) -> None:
        """InputError if a question and its annotation are about different images."""
        for questions in self.questions.values():
            for key, question in questions.items():
                annotation = self.annotations.get(key)
                number = annotation and annotation.image_id
                if number is not None and not question.image.endswith(f'_{number:012d}.jpg'):
                    raise InputError(
                        f'{annotation.path}: the annotation of question {short(question.question_id, 60)} is about '
                        f'image {number}, the question about {question.image}: give the files of one release'
                    )

    def note_unused(self) -> None:
        """Count the annotations whose question is in none of the files."""
        for question_id in self.annotations:
            if not any(question_id in questions for questions in self.questions.values()):
                self.summary.note(
                    'annotation of a question that is not in the files, used for the answer list only',
                    f'question_id {short(question_id, 60)}',
                )


def add_vqa(commands: Any) -> None:
    parser = add_command(commands, 'vqa', run_vqa)
    parser.add_argument(
        'files', nargs='+', metavar='JSON', help='the files of questions and of annotations; those of VizWiz have both'
    )
    parser.add_argument(
        '--vg',
        nargs=2,
        metavar=('question_answers.json', 'image_data.json'),
        help='the questions of Visual Genome, and the file with the paths of its images',
    )
    parser.add_argument('--vg-image-prefix', default='', metavar='DIR', help='as --image-prefix, for Visual Genome')
    add_length_argument(parser)
    add_output_arguments(parser, 'FOLDER')


def run_vqa(args: argparse.Namespace) -> Summary:
    """VQA v2, OK-VQA or VizWiz questions and annotations, Visual Genome question_answers.json

    Writes vqa_train, vqa_val and vqa_test.json, vg_qa.json if --vg is given, and answer_list.json: the most frequent
    answers of all given annotations, normalized as in the official evaluation. The content of the files says which
    dataset they are of.
    """
    summary = Summary('VQA')
    exclusions = Exclusions.of(args, summary)
    release = Release(summary)
    for path in progress_bar(args.files, 'reading'):
        read_file(path, args.image_prefix, release)
    summary.title = ' or '.join(release.layouts)
    if not release.questions and not summary.read['annotations']:
        raise InputError(f'{" ".join(args.files)}: no question and no annotation is there: give the files of a release')
    release.refuse_other_images()
    release.note_unused()
    vg_images = read_images(args.vg[1], args.vg_image_prefix) if args.vg else {}
    find_excluded(release.questions.values(), vg_images.values(), exclusions, summary)
    if args.vg:  # first, because a fault of its file is found while it is written
        write_rows(os.path.join(args.out, 'vg_qa.json'), vg_rows(args.vg[0], vg_images, summary), summary)
    for split, questions in release.questions.items():
        rows = question_rows(split, questions, release.annotations, summary)
        write_rows(os.path.join(args.out, FILES[split]), rows, summary)
    if summary.read['annotations']:
        common = (annotation.common for annotation in release.annotations.values())
        write_answers(os.path.join(args.out, 'answer_list.json'), common, args.num_answers, summary)
    return summary


def find_excluded(
    questions: Iterable[dict[str, Question]], vg_images: Iterable[Image], exclusions: Exclusions, summary: Summary
) -> None:
    """Find the images that --exclude names, before anything is written: an entry that matches none may be an error."""
    for some in questions:
        summary.excluded.update(question.image for question in some.values() if exclusions.contains(question.image))
    for image in vg_images:
        if exclusions.contains(image.path, image.coco_id, image.flickr_id):
            summary.excluded.add(image.path)
    exclusions.report(summary)


def read_file(path: str, prefix: str, release: Release) -> None:
    """Add the questions and annotations of a file in any of the layouts."""
    data = load_json(path)
    if isinstance(data, list):
        release.require_layout(('VizWiz',), path)
        read_vizwiz(entries(data, path, 'question'), prefix, release)
        return
    top = Entry(data, path)
    if 'questions' not in top and 'annotations' not in top:
        raise InputError(
            f"{path} has no 'questions' and no 'annotations' in its top level: give the file of the release"
        )
    release.require_layout(('VQA v2', 'OK-VQA'), path)
    if 'questions' in top:
        read_coco_questions(top, prefix, release)
    if 'annotations' in top:
        for first in top.list('annotations')[:1]:
            has_choice = isinstance(first, dict) and 'multiple_choice_answer' in first
            release.require_layout(('VQA v2',) if has_choice else ('OK-VQA',), path)
        for entry in top.entries('annotations', 'annotation'):
            release.add_annotation(entry.identity('question_id'), entry)


def read_coco_questions(top: Entry, prefix: str, release: Release) -> None:
    """Add the questions of VQA v2 or OK-VQA, which are about images of COCO."""
    split = top.text('data_subtype')
    if split not in COCO_FILES:
        raise InputError(
            f'{top.path}: data_subtype {short(split, 40)} is not {", ".join(COCO_FILES)}: give the files of VQA v2 or '
            'OK-VQA; docs/vqa.md says how questions of your own are written'
        )
    folder = 'test2015' if split.startswith('test') else split
    release.questions.setdefault(split, {})
    for entry in top.entries('questions', 'question'):
        image = add_prefix(prefix, folder, f'COCO_{folder}_{entry.integer("image_id"):012d}.jpg')
        question = Question(entry.identity('question_id'), optional_text(entry, 'question'), image)
        release.add_question(split, question, entry)


def read_vizwiz(questions: Iterable[Entry], prefix: str, release: Release) -> None:
    """Add the questions and answers of VizWiz, one for each image, whose name identifies it and says the split."""
    for entry in questions:
        name = entry.text('image')
        match = VIZWIZ_NAME.fullmatch(name)
        if match is None:
            raise InputError(
                f"{entry.path}: 'image' in {entry.place} is {short(name, 60)}, not a name such as "
                'VizWiz_train_00000000.jpg: give the files of VizWiz; rows of your own need no conversion (docs/vqa.md)'
            )
        release.questions.setdefault(match[1], {})
        question = Question(name, optional_text(entry, 'question'), add_prefix(prefix, match[1], name))
        release.add_question(match[1], question, entry)
        if entry.get('answers') not in (None, []):
            release.add_annotation(name, entry)


def read_answers(entry: Entry, summary: Summary) -> tuple[str, ...]:
    """The answers of the annotators as they gave them, blank ones too; () if all are blank."""
    values = entry.list('answers')
    answers = [value.get('answer') if isinstance(value, dict) else None for value in values]
    for number, answer in enumerate(answers):  # an Entry only for a wrong one: a release has 6.5 million answers
        if not isinstance(answer, str):
            Entry(values[number], entry.path, f'answer {number}', entry).text('answer')  # InputError
    blank = list(map(str.strip, answers)).count('')
    if blank == len(answers):
        return ()
    summary.note('blank answer of an annotator, kept', f'{entry.path}, {entry.place}', blank)
    return tuple(map(sys.intern, answers))


def optional_text(entry: Entry, key: str) -> str:
    """A string; '' if it is absent, null or blank. InputError for another type."""
    value = entry.get(key)
    return '' if value is None or isinstance(value, str) and not value.strip() else entry.text(key)


def clean_question(text: str, place: str, summary: Summary) -> str | None:
    """The question in one line; None, which is counted, if it is empty."""
    if not text:
        summary.drop('question without a text', place)
        return None
    return clean_caption(text, summary)


def question_rows(
    split: str, questions: dict[str, Question], annotations: dict[str, Annotation], summary: Summary
) -> Iterator[dict]:
    """VQA rows of one split, with answers if there are annotations."""
    for key, question in progress_bar(questions.items(), split):
        annotation, place = annotations.get(key), f'question_id {short(question.question_id, 60)}'
        text = clean_question(question.text, place, summary)
        if text is None:
            continue
        if annotation is None and not split.startswith('test'):
            summary.drop(f'question of {split} without an annotation', place)
        elif question.image not in summary.excluded:
            row = {'question': text, 'image': question.image, 'dataset': 'vqa', 'question_id': question.question_id}
            yield row | ({'answer': annotation.answers, **dict(annotation.types)} if annotation else {})


def vg_rows(path: str, images: dict[int, Image], summary: Summary) -> Iterator[dict]:
    """One row per question, its answer normalized like the answer list ("In the sky." -> "in sky")."""
    for item in entries(progress_bar(stream_json(path), 'Visual Genome', len(images)), path, 'image'):
        pairs = list(item.entries('qas', 'question'))
        image = images.get(item.integer('id', 'image_id'))
        summary.read['questions of Visual Genome'] += len(pairs)
        if image is None:
            summary.drop('question about an image that is not in image_data.json', f'{path}, {item.place}', len(pairs))
        elif image.path not in summary.excluded:
            for pair in pairs:
                place = f'{path}, {pair.place}'
                text = clean_question(optional_text(pair, 'question'), place, summary)
                answer = normalize_answer(optional_text(pair, 'answer'))
                row = {'question': text, 'image': image.path, 'dataset': 'vg', 'question_id': pair.identity('qa_id')}
                if text and answer:
                    yield row | {'answer': answer}
                elif text:
                    summary.drop('empty answer', place)
