"""Questions about images: VQA v2's with ten annotators' answers, Visual Genome's with one, and questions to be answered.

Legend: B questions, N answers of all questions of a batch, S question tokens, L answer tokens, R image resolution.
"""

import json
import os
from collections import Counter

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.annotations import load_annotations
from dataset.images import BadImage
from dataset.text import pre_question
from dataset.training_set import TrainingSet, collate_common, require_images, tokenize, tokenize_whole
from dataset.transforms import eval_transform, train_transform

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

    def __init__(self, config, tokenizer, seed):
        table = load_annotations(config['train_file'], 'vqa', config['annotation_cache'])
        super().__init__(table, seed, config['on_bad_image'])
        self.roots, self.tokenizer, self.eos = image_roots(config), tokenizer, config['eos']
        self.positions = config['bert_config'].get('max_position_embeddings', 512)
        self.transform = train_transform(config)
        has_answer = table.holding('answer')
        if not has_answer.all():
            file, row = table.source(int(has_answer.argmin()))
            raise ValueError(f'{file}: row {row} has no answer, and {(~has_answer).sum()} of {len(table)} training rows lack '
                             'one; take them out, or name another file in train_file')
        require_roots(table, self.roots)

    def example(self, index, rng):
        row = self.table[index]
        answers = weighted_answers(row)
        return {'image': self.transform(image_path(row, self.roots), rng),
                'question': pre_question(row['question'], TRAIN_WORDS),
                'answers': [answer + self.eos for answer in answers], 'weights': list(answers.values())}

    def collate(self, examples):
        answers = [answer for example in examples for answer in example['answers']]
        return collate_common(examples) | {
            'question': tokenize(self.tokenizer, [example['question'] for example in examples], TRAIN_TOKENS),
            'answer': tokenize_whole(self.tokenizer, answers, self.positions),
            'k': torch.tensor([len(example['answers']) for example in examples]),
            'weights': torch.tensor([weight for example in examples for weight in example['weights']])}


def weighted_answers(row):
    """{distinct answer: its weight}: the share of the annotators who gave it; of Visual Genome's answer one half."""
    answers = row['answer'] if isinstance(row['answer'], list) else [row['answer']]
    whole = VG_WEIGHT if row['dataset'] == 'vg' else 1.
    return {answer: whole * count / len(answers) for answer, count in Counter(answers).items()}


class QuestionSet(Dataset):
    """The questions of a split, each to be answered once. `question_ids`: those of all rows; `annotated`: the numbers of the
    rows that have answers.

    A batch: image [B, 3, R, R] float32, question (`Text`, [B, S]), index [B] int64, and `notes` about what is not as it
    should be. An image that cannot be read is an error, or, with on_bad_image 'skip', replaced by a blank one: the question
    is answered all the same.
    """

    def __init__(self, config, split, tokenizer):
        self.split = split
        self.table = load_annotations(config[f'{split}_file'], 'vqa', config['annotation_cache'])
        self.roots, self.tokenizer, self.on_bad_image = image_roots(config), tokenizer, config['on_bad_image']
        self.resolution, self.transform = config['image_res'], eval_transform(config)
        self.positions = config['bert_config'].get('max_position_embeddings', 512)
        self.annotated = self.table.holding('answer').nonzero()[0].tolist()
        self.question_ids = np.asarray(self.table.column('question_id'), dtype=object).tolist()
        require_roots(self.table, self.roots)
        require_distinct(self.question_ids, self.table)

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        row, notes = self.table[index], []
        try:
            image = self.transform(image_path(row, self.roots))
        except BadImage as error:
            file, number = self.table.source(index)
            if self.on_bad_image == 'error':
                raise ValueError(f'{file}, row {number}: {error}; repair the image, or set on_bad_image: skip to answer from '
                                 'the question alone') from None
            notes.append(f'answered without its image: {file}, row {number}: {error}')
            image = torch.zeros(3, self.resolution, self.resolution)
        return {'image': image, 'question': pre_question(row['question'], TEST_WORDS), 'index': index, 'notes': notes}

    def collate(self, examples):
        texts = [example['question'] for example in examples]
        return {'image': torch.stack([example['image'] for example in examples]),
                'question': tokenize_whole(self.tokenizer, texts, self.positions),
                'index': torch.tensor([example['index'] for example in examples]),
                'notes': [note for example in examples for note in example['notes']]}

    def annotated_rows(self):
        """The rows that have answers; ValueError for one that cannot be scored."""
        rows = []
        for index in self.annotated:
            row = self.table[index]
            count = len(row['answer']) if isinstance(row['answer'], list) else 1
            if count < FEWEST_ANSWERS:
                file, number = self.table.source(index)
                raise ValueError(f'{file}: row {number} has {count} answer(s), with which the official accuracy cannot reach '
                                 '100 %; give it ten, the same one ten times where there is but one')
            rows.append(row)
        return rows


def image_roots(config):
    """{value of `dataset`: folder that its images' paths start from}."""
    return {name: config[key] for name, key in ROOTS.items()}


def image_path(row, roots):
    return os.path.join(roots[row['dataset']], row['image'])


def require_roots(table, roots):
    """FileNotFoundError where none of a sample of VQA's images, or of Visual Genome's, exists."""
    for name, key in ROOTS.items():
        require_images(table, lambda row, name=name: [image_path(row, roots)] if row['dataset'] == name else [], key)


def require_distinct(question_ids, table):
    """ValueError where two rows have the same question_id: the official server takes one answer a question."""
    seen = {}
    for index, question_id in enumerate(question_ids):
        if question_id in seen:
            (file, row), (other, before) = table.source(index), table.source(seen[question_id])
            raise ValueError(f'{file}: row {row} has question_id {question_id!r}, as row {before} of {other} has; every '
                             'question is answered once, so take one of them out or number it anew')
        seen[question_id] = index


def read_answer_list(path):
    """The list of answers to choose from: a JSON list of texts. FileNotFoundError or ValueError with the remedy."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'answer_list: there is no file {path}; `python -m dataset.prepare vqa` makes one')
    try:
        with open(path, encoding='utf-8-sig') as file:
            answers = json.load(file)
    except ValueError as error:
        raise ValueError(f'answer_list: {path} is not valid JSON: {error}') from None
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f'answer_list: {path} must hold a list of texts, one or more')
    return answers


def tokenize_answers(tokenizer, answers, eos):
    """The answer list as a `Text` [A, L], each answer ended by `eos`; ValueError where that is not one token."""
    tokens = tokenizer(eos, add_special_tokens=False).input_ids
    if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
        raise ValueError(f'eos {eos!r} must be one token of the vocabulary, such as {tokenizer.sep_token!r}')
    return tokenize(tokenizer, [answer + eos for answer in answers])
