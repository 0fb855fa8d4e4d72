"""The demo: make the synthetic dataset, pre-train on it with GRIT, retrieve unseen scenes. `make demo` calls it.

Every step is one command of this repository, printed before it runs; an interrupted step continues at the next call.
"""

import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.arguments import Parser
from utils.entry import run_main
from utils.errors import InputError
from utils.files import atomic_write

DATA, OUTPUT = Path('output/shapes'), Path('output/demo')
CONFIGS = 'configs/shapes'
MAJORITY_LOSS = 0.6365  # of ITM that always predicts "no match"
KEYS = ('txt_r1', 'txt_r5', 'txt_r10', 'img_r1', 'img_r5', 'img_r10')


def step(title: str, command: Sequence[str]) -> float:
    """Run one command of the repository. Returns the seconds it took."""
    print(f'\n=== {title}\n$ {shlex.join(["python", *command])}', flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command])
    if done.returncode:
        raise InputError(
            f'this step failed (exit code {done.returncode}); see above; `make demo` continues where it stopped'
        )
    return time.perf_counter() - started


def last_record(folder: Path) -> dict[str, Any]:
    """The last record of a folder's log.txt."""
    return json.loads(Path(folder, 'log.txt').read_text().splitlines()[-1])


def chance_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Recall in percent of a random ranking: {key: percent}, for rows with a list of captions each."""
    texts = sum(len(row['caption']) for row in rows)
    chance = {}
    for k in (1, 5, 10):
        misses = [math.comb(texts - len(row['caption']), k) / math.comb(texts, min(k, texts)) for row in rows]
        chance[f'txt_r{k}'] = 100 * (1 - sum(misses) / len(rows))
        chance[f'img_r{k}'] = 100 * min(k, len(rows)) / len(rows)
    return chance


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The metrics as lines: ITC only, re-ranked, chance."""
    yield f'{"recall on unseen scenes, %":28}' + ''.join(f'{key.replace("_r", " R@"):>9}' for key in KEYS)
    for name, words in (('itc', 'ITC only'), ('reranked', 're-ranked by ITM'), ('chance', 'chance')):
        yield f'{words:28}' + ''.join(f'{report[name][key]:9.1f}' for key in KEYS)


def pretrain_and_retrieve(seconds: float) -> dict[str, Any]:
    """Pre-train, retrieve, draw the mini-batches -> the report. seconds: what the earlier steps took."""
    pretrain, zero_shot = OUTPUT / 'pretrain', OUTPUT / 'zero_shot'
    common = ['--text_encoder', str(DATA / 'vocab'), '--device', 'cpu']
    command = ['Pretrain.py', '--config', f'{CONFIGS}/Pretrain.yaml', '--output_dir', str(pretrain), '--resume']
    seconds += step('Pre-training with GRIT', [*command, *common])
    newest = max(pretrain.glob('checkpoint_[0-9]*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    command = ['Retrieval.py', '--config', f'{CONFIGS}/Retrieval.yaml', '--evaluate', '--checkpoint', str(newest)]
    command += ['--output_dir', str(zero_shot), '--set', 'val_file=null', '--page', str(OUTPUT / 'retrieval.html')]
    seconds += step('Zero-shot retrieval on unseen scenes', [*command, *common])
    command = ['-m', 'reports.batch_grid', str(pretrain), '--out', str(OUTPUT / 'hard_batches.png')]
    seconds += step('A picture of the mini-batches', command)
    found = last_record(zero_shot)
    return {
        'itc': {key: found[f'test_itc_{key}'] for key in KEYS},
        'reranked': {key: found[f'test_{key}'] for key in KEYS},
        'chance': chance_of(json.loads((DATA / 'retrieval_test.json').read_text())),
        'loss_itm': last_record(pretrain)['train_loss_itm'],
        'seconds': round(seconds, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--setup_seconds', type=float, default=0, help='seconds of the set-up, shown with the run time')
    args = parser.parse_args(argv)
    report_path = OUTPUT / 'report.json'
    report = json.loads(report_path.read_text()) if report_path.exists() else {}
    reused = bool(report)

    seconds = step('The synthetic dataset: colored shapes with captions', ['-m', 'dataset.shapes', '--out', str(DATA)])
    if not reused:
        report = pretrain_and_retrieve(seconds)
        with atomic_write(report_path) as file:
            json.dump(report, file, indent=1)

    print('\n=== Results' + (' of the finished run, reused (remove output/demo for a new one)' if reused else ''))
    print(f'set-up {args.setup_seconds:.0f} s, run {report["seconds"]:.0f} s\n')
    print('\n'.join(table(report)))
    itm = report['loss_itm']
    print(f'\nITM loss {itm:.4f}; predicting "no match" for every pair gives {MAJORITY_LOSS}')
    if itm > MAJORITY_LOSS - 0.01:
        print('ITM predicts "no match" for every pair: it has learned nothing yet, so re-ranking by it does not help.')
    print(
        f"\nGRIT's mini-batches beside random ones: {OUTPUT}/hard_batches.png\n"
        f'queries and what the model found:      {OUTPUT}/retrieval.html\n'
        f'metrics:                               {report_path}'
    )


if __name__ == '__main__':
    run_main(main)
