"""`python -m dataset.shapes --out FOLDER --seed S`: write the synthetic dataset, or reuse it if it is there."""

import time

from dataset.shapes.build import SCENES, make_dataset
from dataset.shapes.duplicates import GROUP, group_count
from utils.arguments import Parser
from utils.entry import run_main


def create_parser() -> Parser:
    parser = Parser(prog='python -m dataset.shapes', description='Write the synthetic dataset of colored shapes.')
    parser.add_argument('--out', required=True, help='folder for images, annotation files and vocabulary')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other scenes (default 0)')
    parser.add_argument('--scenes', type=int, default=SCENES['train'], help='training scenes (default %(default)s)')
    parser.add_argument('--val_scenes', type=int, default=SCENES['val'], help='validation scenes (default %(default)s)')
    parser.add_argument('--test_scenes', type=int, default=SCENES['test'], help='test scenes (default %(default)s)')
    parser.add_argument(
        '--duplicates',
        type=float,
        metavar='P',
        help='share of the training images, 0 to 1, that come in groups of ten of which the same captions are true, '
        'with the truth in pretrain.json (default: none, and no truth)',
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = create_parser().parse_args(argv)
    sizes = {'train': args.scenes, 'val': args.val_scenes, 'test': args.test_scenes}
    start = time.perf_counter()
    dataset = make_dataset(args.out, args.seed, sizes, args.duplicates)
    scenes = ', '.join(f'{count} {split}' for split, count in dataset['scenes'].items())
    done = 'reused' if dataset['reused'] else f'made in {time.perf_counter() - start:.1f} s'
    groups = group_count(args.scenes, args.duplicates or 0)
    duplicates = '' if args.duplicates is None else f', {groups} groups of {GROUP} duplicates'
    print(f'{args.out}: {done}, seed {args.seed}, scenes: {scenes}{duplicates}')


if __name__ == '__main__':
    run_main(main)
