"""Questions about images: VQA v2's with ten annotators' answers, Visual Genome's with one, and unanswered ones to
predict.

Legend: B questions, N answers of all questions of a batch, S question tokens, L answer tokens, R image resolution,
A answers in the list.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dataset.annotations import Annotations, load_annotations
from dataset.base import EvalSet, TrainingSet, collate_common
from dataset.image_roots import require_images
from dataset.text import pre_question
from dataset.tokens import Text, tokenize, tokenize_untruncated
from dataset.transforms import train_transform
from utils.errors import InputError, MissingFileError
from utils.files import digest_of, read_json

TRAIN_WORDS, TEST_WORDS = 30, 50
TRAIN_TOKENS = 25  # [CLS] included
VG_WEIGHT = 0.5  # of the one answer to a question of Visual Genome
ROOTS = {'vqa': 'vqa_root', 'vg': 'vg_root'}
FEWEST_ANSWERS = 4  # of annotators who agree, for the official accuracy to reach 100 %


class VQATrainingSet(TrainingSet):
    """Rows {question, image, dataset, question_id, answer}.

    A batch: image [B, 3, R, R] float32, question (`Text`, [B, S]), answer (`Text`, [N, L]), k [B] int64, the number of
    distinct answers of each question, and weights [N] float32.
    """

    unit = 'questions'

    def __init__(self, config: Mapping[str, Any], tokenizer, seed: int):
        table = load_annotations(config['train_file'], 'vqa', config['annotation_cache'])
        super().__init__(table, seed, config['on_bad_image'])
        self.roots, self.tokenizer, self.eos = image_roots(config), tokenizer, config['eos']
        self.positions = config['bert_config'].get('max_position_embeddings', 512)
        self.transform = train_transform(config, len(table))
        has_answer = table.holding('answer')
        if not has_answer.all():
            file, row = table.source(int(has_answer.argmin()))
            raise InputError(
                f'{file}: row {row} has no answer, and {(~has_answer).sum()} of {len(table)} training rows have none; '
                'remove them, or name another file in train_file'
            )
        require_roots(table, config)

    def texts_at(self, index: int) -> list[str]:
        row = self.table[index]
        return [pre_question(row['question'], TRAIN_WORDS), *weighted_answers(row)]

    def example(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        row = self.table[index]
        answers = weighted_answers(row)
        return {
            'image': self.transform(image_path(row, self.roots), rng),
            'question': pre_question(row['question'], TRAIN_WORDS),
            'answers': [answer + self.eos for answer in answers],
            'weights': list(answers.values()),
        }

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        answers = [answer for example in examples for answer in example['answers']]
        return collate_common(examples) | {
            'question': tokenize(self.tokenizer, [example['question'] for example in examples], TRAIN_TOKENS),
            'answer': tokenize_untruncated(self.tokenizer, answers, self.positions),
            'k': torch.tensor([len(example['answers']) for example in examples]),
            'weights': torch.tensor([weight for example in examples for weight in example['weights']]),
        }


def weighted_answers(row: Mapping[str, Any]) -> dict[str, float]:
    """{distinct answer: its weight}: the fraction of the annotators who gave it; half of that for Visual Genome."""
    answers = row['answer'] if isinstance(row['answer'], list) else [row['answer']]
    total = VG_WEIGHT if row['dataset'] == 'vg' else 1.0
    return {answer: total * count / len(answers) for answer, count in Counter(answers).items()}


class VQAEvalDataset(EvalSet):
    """The questions of a split. question_ids: those of all rows. annotated: the numbers of the rows that have answers.

    A batch: image [B, 3, R, R] float32, question (`Text`, [B, S]), index [B] int64, bad.
    """

    unit = 'questions'

    def __init__(self, config: Mapping[str, Any], split: str, tokenizer):
        super().__init__(config, split, 'vqa')
        self.roots, self.tokenizer = image_roots(config), tokenizer
        self.annotated: list[int] = self.table.holding('answer').nonzero()[0].tolist()
        self.question_ids = np.asarray(self.table.column('question_id'), dtype=object).tolist()
        require_roots(self.table, config)
        require_distinct(self.question_ids, self.table)

    def texts_at(self, index: int) -> list[str]:
        return [pre_question(self.table[index]['question'], TEST_WORDS)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, bad = self.table[index], []
        image = self.read_image(index, image_path(row, self.roots), bad)
        return {'image': image, 'question': pre_question(row['question'], TEST_WORDS), 'index': index, 'bad': bad}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        questions = [example['question'] for example in examples]
        return super().collate(examples) | {'question': tokenize_untruncated(self.tokenizer, questions, self.positions)}

    def annotated_rows(self) -> list[dict[str, Any]]:
        """The rows that have answers."""
        return [self.table[index] for index in self.annotated]

    def check_annotated(self) -> None:
        """InputError for a row with answers that cannot be scored."""
        for index in self.annotated:
            row = self.table[index]
            count = len(row['answer']) if isinstance(row['answer'], list) else 1
            if count < FEWEST_ANSWERS:
                file, number = self.table.source(index)
                raise InputError(
                    f'{file}: row {number} has {count} answer(s), with which the official accuracy cannot reach 100 %; '
                    'give it ten, or repeat a single answer ten times'
                )


def image_roots(config: Mapping[str, Any]) -> dict[str, str]:
    """{value of `dataset`: folder that its images' paths start from}."""
    return {name: config[key] for name, key in ROOTS.items()}


def image_path(row: Mapping[str, Any], roots: Mapping[str, str]) -> str:
    return os.path.join(roots[row['dataset']], row['image'])


def require_roots(table: Annotations, config: Mapping[str, Any]) -> None:
    """`require_images` for VQA's images and for Visual Genome's."""
    for name, key in ROOTS.items():
        require_images(table, lambda row: [row['image']], config, key, name)


def require_distinct(question_ids: Sequence[int | str], table: Annotations) -> None:
    """InputError if two rows have the same question_id: the official server takes one answer per question."""
    seen: dict[int | str, int] = {}
    for index, question_id in enumerate(question_ids):
        if question_id in seen:
            (file, row), (other, before) = table.source(index), table.source(seen[question_id])
            raise InputError(
                f'{file}: row {row} has question_id {question_id!r}, and so has row {before} of {other}; every '
                'question is answered once, so remove one of them or give it a new number'
            )
        seen[question_id] = index


def read_answer_list(path: str) -> list[str]:
    """The list of answers to choose from: a JSON list of strings. InputError with the remedy."""
    if not os.path.isfile(path):
        raise MissingFileError(f'answer_list: there is no file {path}; `python -m dataset.prepare vqa` makes one')
    answers = read_json(path, 'answer_list')
    if not isinstance(answers, list) or not answers or not all(map(is_text, answers)):
        raise InputError(f'answer_list: {path} must contain a list of strings, one or more')
    return answers


def is_text(value: Any) -> bool:
    """Whether a value of JSON is a string that has a UTF-8 form: half an emoji has none."""
    return isinstance(value, str) and not re.search('[\ud800-\udfff]', value)


def tokenize_answers(tokenizer, answers: Sequence[str], eos: str) -> Text:
    """The answer list as a `Text` [A, L], each answer ended by `eos`. InputError if `eos` is not one token."""
    tokens = tokenizer(eos, add_special_tokens=False).input_ids
    if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
        raise InputError(f'eos {eos!r} must be one token of the vocabulary, such as {tokenizer.sep_token!r}')
    return tokenize(tokenizer, [answer + eos for answer in answers])


class AnswerList:
    """The answers to choose from, as texts and as tokens.

    The texts are part of a checkpoint, so that a question can be answered with the checkpoint alone.
    """

    def __init__(self, texts: Sequence[str], tokenizer, eos: str):
        self.texts = list(texts)
        self.tokens = tokenize_answers(tokenizer, self.texts, eos)

    def state_dict(self) -> dict[str, Any]:
        return {'texts': list(self.texts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The list is that of the configuration, which the identity of the run compares."""

    def fingerprint(self) -> str:
        """The number of answers and a digest, in words."""
        return f'{len(self.texts)} answers with digest {digest_of(self.texts)}'
