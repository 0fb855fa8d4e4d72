"""The dataset of the PyPI package easy-vqa as annotation files for VQA.py.

    pip install easy-vqa
    python examples/convert_easy_vqa.py --out output/easy_vqa
    python VQA.py --config configs/shapes/VQA.yaml --output_dir output/easy_vqa/run \\
        --text_encoder output/easy_vqa/vocab \\
        --set train_file=output/easy_vqa/vqa_train.json --set val_file=null \\
        --set test_file=output/easy_vqa/vqa_test.json --set answer_list=output/easy_vqa/answer_list.json

easy-VQA has 64 x 64 images of one colored shape, and one correct answer per question. It is written ten times, as if
ten annotators agreed, so that the official accuracy is the share of correct answers.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from utils.arguments import Parser  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402
from utils.files import atomic_write  # noqa: E402

try:
    import easy_vqa
except ModuleNotFoundError:
    easy_vqa = None

SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']


def kind(answer: str) -> str:
    if answer in ('yes', 'no'):
        return 'yes/no'
    return 'shape' if answer in ('circle', 'rectangle', 'triangle') else 'colour'


def vqa_rows(questions: tuple[list, list, list], images: dict[int, str]) -> Iterator[dict]:
    """VQA rows of a split; the images stay in the folder of the package."""
    for number, (question, answer, image) in enumerate(zip(*questions, strict=True)):
        yield {
            'question_id': number,
            'question': question,
            'image': os.path.abspath(images[image]),
            'dataset': 'vqa',
            'answer': [answer] * 10,
            'kind': kind(answer),
            'answer_type': 'yes/no' if kind(answer) == 'yes/no' else 'other',
        }


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description='Write easy-VQA as annotation files.')
    parser.add_argument('--out', default='output/easy_vqa', help='folder to write to (default %(default)s)')
    out = Path(parser.parse_args(argv).out)
    if easy_vqa is None:
        raise InputError('the package easy-vqa is missing: pip install easy-vqa')
    splits = {
        'train': (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        'test': (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    files = {'answer_list.json': json.dumps(easy_vqa.get_answers())}
    words = set(easy_vqa.get_answers())
    for split, (questions, images) in splits.items():
        rows = list(vqa_rows(questions, images))
        words.update(word for row in rows for word in re.findall('[a-z]+', row['question'].lower()))
        files[f'vqa_{split}.json'] = json.dumps(rows)
        print(f'{out}/vqa_{split}.json: {len(rows)} questions')
    files['vocab/vocab.txt'] = '\n'.join([*SPECIAL, *sorted(words)]) + '\n'
    for name, text in files.items():
        if (out / name).exists() and (out / name).read_bytes() != text.encode():
            raise InputError(f'{out / name} is another file: remove it, or give another --out')
    for name, text in files.items():
        with atomic_write(out / name) as file:
            file.write(text)
    print(f'{out}/vocab: {len(SPECIAL) + len(words)} words')


if __name__ == '__main__':
    run_main(main)
