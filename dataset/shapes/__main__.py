"""`python -m dataset.shapes --out FOLDER --seed S`: write the synthetic dataset, or reuse it if it is there."""

import time

from dataset.shapes.build import SCENES, make_dataset
from utils.arguments import Parser
from utils.entry import run_main


def create_parser() -> Parser:
    parser = Parser(prog='python -m dataset.shapes', description='Write the synthetic dataset of colored shapes.')
    parser.add_argument('--out', required=True, help='folder for images, annotation files and vocabulary')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives other scenes (default 0)')
    parser.add_argument('--scenes', type=int, default=SCENES['train'], help='training scenes (default %(default)s)')
    parser.add_argument('--val_scenes', type=int, default=SCENES['val'], help='validation scenes (default %(default)s)')
    parser.add_argument('--test_scenes', type=int, default=SCENES['test'], help='test scenes (default %(default)s)')
    return parser


def main(argv: list[str] | None = None) -> None:
    args = create_parser().parse_args(argv)
    sizes = {'train': args.scenes, 'val': args.val_scenes, 'test': args.test_scenes}
    start = time.perf_counter()
    dataset = make_dataset(args.out, args.seed, sizes)
    scenes = ', '.join(f'{count} {split}' for split, count in dataset['scenes'].items())
    done = 'reused' if dataset['reused'] else f'made in {time.perf_counter() - start:.1f} s'
    print(f'{args.out}: {done}, seed {args.seed}, scenes: {scenes}')


if __name__ == '__main__':
    run_main(main)
