"""Ways to pre-train, compared on the synthetic dataset: the runs and the tables of docs/experiments.md.

    python benchmarks/compare_pretraining.py --arms random grit --seeds 0 1 2
    python benchmarks/compare_pretraining.py --arms random albef grit mafa --data output/shapes_half --duplicates 0.5 \\
        --out output/experiments_half

An arm is a configuration of configs/shapes with some keys changed. Every run is `Pretrain.py` with one thread and then
`Retrieval.py --evaluate` on the unseen scenes of the test split. All arms of one seed start from the same weights and
are the same run, to the bit, as long as their settings agree; so those that agree in the first START epochs continue
one run. A second call continues interrupted runs, skips finished ones and prints the table again.
"""

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from evaluation.log_table import read_log  # noqa: E402
from utils.arguments import Parser, positive_int  # noqa: E402
from utils.entry import run_main  # noqa: E402
from utils.errors import InputError  # noqa: E402
from utils.files import atomic_write  # noqa: E402

ROOT = Path(__file__).parent.parent
SAMPLED = 'itm_negatives={0: uniform, 2: sampled}'
AUTO = 'itm_negatives=auto'
START = 4  # epochs; in the next one GRIT collects what it orders then
LAST = 4  # epochs whose seconds are averaged


class Arm(NamedTuple):
    """words: what it is. changed: the changed keys. shares: it agrees with the configuration for START epochs."""

    words: str
    changed: list[str]
    shares: bool = False
    config: str = 'Pretrain'


def epochs(count: int) -> list[str]:
    return [f'train_epochs={count}', f'schedular.epochs={count}']


# The configuration itself has 8 epochs. GRIT and the hardest negative begin with epoch 5.
SMOOTHED = 'itc_smoothing={0: 0, 5: 0.5}'
FILTER = 'false_negative_filter=examples/shapes_model'
ARMS = {
    'random': Arm('random batches; sampled negatives from epoch 2', ['sampler=random', SAMPLED], True),
    'random-12': Arm('the same, 12 epochs', ['sampler=random', SAMPLED, *epochs(12)]),
    'random-16': Arm('the same, 16 epochs', ['sampler=random', SAMPLED, *epochs(16)]),
    'albef': Arm('ALBEF', [], config='Pretrain_ALBEF'),
    'grit': Arm('GRIT and the hardest negative from epoch 5', [], True),
    'grit-sampled': Arm('GRIT from epoch 5; sampled negatives from epoch 2', [SAMPLED], True),
    'grit-smoothed': Arm('GRIT + smoothed ITC from epoch 5', [SMOOTHED], True),
    'grit-quantile': Arm('GRIT + `grit_quantile: 0.99`', ['grit_quantile=0.99'], True),
    'quantile-auto': Arm('GRIT + `grit_quantile: auto`', ['grit_quantile=auto'], True),
    'grit-filter': Arm('GRIT + the filter of MAFA from epoch 4', [FILTER], True),
    'mafa': Arm('MAFA: GRIT + smoothed ITC, and its filter from epoch 4', [SMOOTHED, FILTER], True),
    'gcbs': Arm('`grit_grouping: cuthill_mckee`', ['grit_grouping=cuthill_mckee'], True),
    'grit-auto': Arm('`itm_negatives: auto`, GRIT from epoch 3', [AUTO, 'grit_from_epoch=3']),
    'auto': Arm('`itm_negatives: auto`, `grit_from_epoch: auto`', [AUTO, 'grit_from_epoch=auto']),
    'official': Arm('GRIT and the hardest negative from the start', ['itm_negatives=hard', 'grit_from_epoch=0']),
}
BEGINNING = Arm('what the arms share', [f'train_epochs={START}'])
METRICS = {
    'ITC mean': 'test_itc_r_mean',
    'TR@1': 'test_itc_txt_r1',
    'IR@1': 'test_itc_img_r1',
    're-ranked mean': 'test_r_mean',
    're-ranked TR@1': 'test_txt_r1',
    're-ranked IR@1': 'test_img_r1',
}
OTHERS = ('ITM accuracy', 'false negatives', 'seconds')  # of the last epoch; per epoch, of the last four
lock = threading.Lock()


def run_script(command: Sequence[str], log: Path) -> None:
    """Run one script with one thread; its output goes to a file. InputError with its last lines if it fails."""
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    with open(log, 'a', encoding='utf-8') as file:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file)
    if done.returncode:
        last = ' '.join(log.read_text(encoding='utf-8').splitlines()[-3:])
        raise InputError(f'{shlex.join(["python", *command])} failed (exit code {done.returncode}): {last}; see {log}')


def refuse_other_settings(folder: Path, arm: Arm, data: str) -> None:
    """InputError if the folder is of other settings or another dataset; else it is marked with these."""
    path, world = folder / 'settings.json', json.loads(Path(data, 'world.json').read_text())
    config = (ROOT / f'configs/shapes/{arm.config}.yaml').read_text()
    dataset = [world[key] for key in ('version', 'seed', 'duplicates') if key in world]
    settings = {'arm': arm.changed, 'configuration': config, 'dataset': dataset}
    found = json.loads(path.read_text()) if path.is_file() else None
    if folder.exists() and found != settings:
        raise InputError(f'{folder} is of other settings: remove it, or give another --out')
    with atomic_write(path) as file:
        json.dump(settings, file, indent=1)


def pretrain(arm: Arm, seed: int, data: str, folder: Path) -> dict:
    """Pre-train, or continue, in the folder `pretrain` -> the record of the last epoch."""
    settings = [f'image_root={data}', f'train_file={data}/pretrain.json', *arm.changed]
    command = ['Pretrain.py', '--config', f'configs/shapes/{arm.config}.yaml', '--output_dir', f'{folder}/pretrain']
    command += ['--seed', str(seed), '--resume', '--text_encoder', f'{data}/vocab', '--device', 'cpu']
    run_script(command + [word for item in settings for word in ('--set', item)], folder / 'output.txt')
    return read_log(folder / 'pretrain' / 'log.txt')[-1]


def train_shared_epochs(seed: int, data: str, out: Path) -> Path:
    """The checkpoint after the epochs that arms share, trained if it is not there."""
    folder = out / f'beginning-seed{seed}'
    refuse_other_settings(folder, BEGINNING, data)
    checkpoint = folder / 'pretrain' / f'checkpoint_{START - 1:02d}.pth'
    if not checkpoint.is_file():
        pretrain(BEGINNING, seed, data, folder)
    return checkpoint


def run_arm(name: str, seed: int, data: str, out: Path, beginning: Future | None = None) -> None:
    """Pre-train one arm with one seed and evaluate its last checkpoint; result.json is written last."""
    arm, folder = ARMS[name], out / f'{name}-seed{seed}'
    refuse_other_settings(folder, arm, data)
    if (folder / 'result.json').is_file():
        return
    if beginning is not None and not any((folder / 'pretrain').glob('checkpoint_*.pth')):
        checkpoint = beginning.result()
        (folder / 'pretrain').mkdir(exist_ok=True)
        with atomic_write(folder / 'pretrain' / checkpoint.name, 'wb') as file:
            file.write(checkpoint.read_bytes())
    trained = pretrain(arm, seed, data, folder)
    seconds = re.findall(r'^epoch \d+ took ([\d.]+) s$', (folder / 'output.txt').read_text(), re.MULTILINE)[-LAST:]
    command = ['Retrieval.py', '--config', 'configs/shapes/Retrieval.yaml', '--output_dir', f'{folder}/zero_shot']
    command += ['--evaluate', '--checkpoint', f'{folder}/pretrain/checkpoint_{trained["epoch"]:02d}.pth']
    command += ['--text_encoder', f'{data}/vocab', '--device', 'cpu', '--set', f'image_root={data}']
    command += ['--set', 'val_file=null', '--set', f'test_file={data}/retrieval_test.json']
    run_script(command, folder / 'output.txt')
    found = read_log(folder / 'zero_shot' / 'log.txt')[-1]
    result = {metric: found[key] for metric, key in METRICS.items()}
    false = 100 * trained['train_false_negative_rate'] if 'train_false_negative_rate' in trained else None
    mean_seconds = statistics.mean(map(float, seconds))
    result |= dict(zip(OTHERS, (trained['train_itm_acc'], false, mean_seconds), strict=True))
    with atomic_write(folder / 'result.json') as file:
        json.dump(result, file, indent=1)
    with lock:
        print(
            f'{name}, seed {seed}: {json.dumps({key: value and round(value, 2) for key, value in result.items()})}',
            flush=True,
        )


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """{arm: a result for each seed} -> a Markdown table of means, with the lowest and the highest seed."""
    names = [*METRICS, *OTHERS]
    lines = [['arm', 'seeds', *names], ['---', '---:', *['---:'] * len(names)]]
    for arm, of_seeds in results.items():
        cells = [ARMS[arm].words, str(len(of_seeds))]
        for name in names:
            values = [result.get(name) for result in of_seeds]
            if None in values:  # the dataset does not tell, or an earlier version did not
                cells.append('-')
                continue
            digits = 2 if name == 'ITM accuracy' else 1
            cell = f'{statistics.mean(values):.{digits}f}'
            if len(values) > 1 and name in METRICS:
                cell += f' ({min(values):.{digits}f} to {max(values):.{digits}f})'
            cells.append(cell)
        lines.append(cells)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--arms', nargs='+', choices=ARMS, default=['random', 'grit'], metavar='ARM', help=', '.join(ARMS)
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--data', default='output/shapes', help='the synthetic dataset, made if it is not there')
    parser.add_argument('--duplicates', type=float, metavar='P', help='share of duplicates in a synthetic dataset')
    parser.add_argument('--out', default='output/experiments', help='folder of the runs')
    parser.add_argument('--jobs', type=positive_int, default=2, help='runs at a time, one thread each')
    args = parser.parse_args(argv)
    data, out = os.path.abspath(args.data), Path(args.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    share = [] if args.duplicates is None else ['--duplicates', str(args.duplicates)]
    run_script(['-m', 'dataset.shapes', '--out', data, *share], out / 'dataset.txt')
    args.arms, args.seeds = ([*dict.fromkeys(names)] for names in (args.arms, args.seeds))
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = []
        for seed in args.seeds:
            open_arms = [arm for arm in args.arms if not (out / f'{arm}-seed{seed}' / 'result.json').is_file()]
            shared = any(ARMS[arm].shares for arm in open_arms)
            beginning = pool.submit(train_shared_epochs, seed, data, out) if shared else None
            for arm in args.arms:
                runs.append(pool.submit(run_arm, arm, seed, data, out, beginning if ARMS[arm].shares else None))
        try:
            for run in as_completed(runs):
                run.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that run end; no other begins
            raise
    results = {
        arm: [json.loads((out / f'{arm}-seed{seed}' / 'result.json').read_text()) for seed in args.seeds]
        for arm in args.arms
    }
    print(f'\n{table(results)}')


if __name__ == '__main__':
    run_main(main)
