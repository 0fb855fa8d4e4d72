"""The data set of the PyPI package easy-vqa as annotation files for VQA.py.

    pip install easy-vqa
    python examples/convert_easy_vqa.py --out output/easy_vqa
    python VQA.py --config configs/shapes/VQA.yaml --output_dir output/easy_vqa/run \\
        --text_encoder output/easy_vqa/vocab \\
        --set train_file=output/easy_vqa/vqa_train.json --set val_file=null \\
        --set test_file=output/easy_vqa/vqa_test.json --set answer_list=output/easy_vqa/answer_list.json

easy-VQA has 64 x 64 pictures of one coloured shape, and one true answer to each question, which is written ten times,
as if ten annotators agreed: the official accuracy then is the share of right answers.
"""

import argparse
import json
import os
import re
from pathlib import Path

import easy_vqa

SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
SPLITS = {
    'train': (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
    'test': (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
}


def kind(answer):
    if answer in ('yes', 'no'):
        return 'yes/no'
    return 'shape' if answer in ('circle', 'rectangle', 'triangle') else 'colour'


def rows_of(split):
    """VQA rows of a split; the pictures stay where the package has them."""
    get_questions, get_images = SPLITS[split]
    images = get_images()
    for number, (question, answer, image) in enumerate(zip(*get_questions(), strict=True)):
        yield {
            'question_id': number,
            'question': question,
            'image': os.path.abspath(images[image]),
            'dataset': 'vqa',
            'answer': [answer] * 10,
            'kind': kind(answer),
            'answer_type': 'yes/no' if kind(answer) == 'yes/no' else 'other',
        }


def main(argv=None):
    parser = argparse.ArgumentParser(description='Write easy-VQA as annotation files.')
    parser.add_argument('--out', default='output/easy_vqa')
    out = Path(parser.parse_args(argv).out)
    (out / 'vocab').mkdir(parents=True, exist_ok=True)
    words = set(easy_vqa.get_answers())
    for split in SPLITS:
        rows = list(rows_of(split))
        words.update(word for row in rows for word in re.findall('[a-z]+', row['question'].lower()))
        (out / f'vqa_{split}.json').write_text(json.dumps(rows))
        print(f'{out}/vqa_{split}.json: {len(rows)} questions')
    (out / 'answer_list.json').write_text(json.dumps(easy_vqa.get_answers()))
    (out / 'vocab' / 'vocab.txt').write_text('\n'.join([*SPECIAL, *sorted(words)]) + '\n')
    print(f'{out}/vocab: {len(SPECIAL) + len(words)} words')


if __name__ == '__main__':
    main()
