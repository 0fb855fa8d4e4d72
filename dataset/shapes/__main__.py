"""`python -m dataset.shapes --out DIR --seed S`: make the demo world, or find it made."""

import argparse
import time

from dataset.shapes.world import SCENES, make_world


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog='python -m dataset.shapes', description='Make the demo world of coloured shapes.'
    )
    parser.add_argument('--out', required=True, help='folder for pictures, annotation files and vocabulary')
    parser.add_argument('--seed', type=int, default=0, help='another seed gives another world (default 0)')
    parser.add_argument('--scenes', type=int, default=SCENES['train'], help='training scenes (default %(default)s)')
    parser.add_argument('--val_scenes', type=int, default=SCENES['val'], help='validation scenes (default %(default)s)')
    parser.add_argument('--test_scenes', type=int, default=SCENES['test'], help='test scenes (default %(default)s)')
    args = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        world = make_world(
            args.out, args.seed, {'train': args.scenes, 'val': args.val_scenes, 'test': args.test_scenes}
        )
    except ValueError as error:
        parser.error(str(error))
    scenes = ', '.join(f'{count} {split}' for split, count in world['scenes'].items())
    if world['reused']:
        print(f'{args.out}: reused, seed {args.seed}, scenes: {scenes}')
    else:
        print(f'{args.out}: made in {time.perf_counter() - start:.1f} s, seed {args.seed}, scenes: {scenes}')


if __name__ == '__main__':
    main()
