"""The demo: make a world, pre-train on it with GRIT, and look for unseen scenes. `make demo` calls it.

Every step is one command of this repository, printed before it runs, and each goes on where it was interrupted.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

WORLD, OUTPUT = Path('output/shapes'), Path('output/demo')
CONFIGS = 'configs/shapes'
MAJORITY_LOSS = 0.6365  # of image-text matching that always answers "no match"
KEYS = ('txt_r1', 'txt_r5', 'txt_r10', 'img_r1', 'img_r5', 'img_r10')


def step(title, command):
    """Run one command of the repository and say what it is. Returns the seconds it took."""
    print(f'\n=== {title}\n$ {shlex.join(["python", *command])}', flush=True)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command])
    if done.returncode:
        sys.exit(
            f'demo: this step failed (exit code {done.returncode}); the command above can be run alone, and `make '
            'demo` goes on where it stopped'
        )
    return time.perf_counter() - began


def last_record(folder):
    return json.loads(Path(folder, 'log.txt').read_text().splitlines()[-1])


def chance_of(rows):
    """Recall in percent of a random ranking: {key: percent}, for rows with a list of captions each."""
    texts = sum(len(row['caption']) for row in rows)
    chance = {}
    for k in (1, 5, 10):
        misses = [math.comb(texts - len(row['caption']), k) / math.comb(texts, min(k, texts)) for row in rows]
        chance[f'txt_r{k}'] = 100 * (1 - sum(misses) / len(rows))
        chance[f'img_r{k}'] = 100 * min(k, len(rows)) / len(rows)
    return chance


def table(report):
    """The figures as lines: contrast alone, re-ranked, chance."""
    yield f'{"recall on unseen scenes, %":28}' + ''.join(f'{key.replace("_r", " R@"):>9}' for key in KEYS)
    for name, words in (('itc', 'contrast alone'), ('reranked', 're-ranked by matching'), ('chance', 'chance')):
        yield f'{words:28}' + ''.join(f'{report[name][key]:9.1f}' for key in KEYS)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--setup_seconds', type=float, default=0, help='what the set-up took, to be told beside the run time'
    )
    args = parser.parse_args(argv)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    report_path = OUTPUT / 'report.json'
    report = json.loads(report_path.read_text()) if report_path.exists() else {}
    reused = bool(report)

    seconds = step('The world: coloured shapes with captions', ['-m', 'dataset.shapes', '--out', str(WORLD)])
    if not reused:
        pretrain, zero_shot = OUTPUT / 'pretrain', OUTPUT / 'zero_shot'
        common = ['--text_encoder', str(WORLD / 'vocab'), '--device', 'cpu']
        seconds += step(
            'Pre-training with GRIT',
            ['Pretrain.py', '--config', f'{CONFIGS}/Pretrain.yaml', '--output_dir', str(pretrain), '--resume', *common],
        )
        newest = max(pretrain.glob('checkpoint_[0-9]*.pth'), key=lambda path: int(path.stem.split('_')[1]))
        seconds += step(
            'Zero-shot retrieval on unseen scenes',
            [
                'Retrieval.py',
                '--config',
                f'{CONFIGS}/Retrieval.yaml',
                '--evaluate',
                '--checkpoint',
                str(newest),
                '--output_dir',
                str(zero_shot),
                '--set',
                'val_file=null',
                '--page',
                str(OUTPUT / 'retrieval.html'),
                *common,
            ],
        )
        seconds += step(
            'A picture of the mini-batches',
            ['-m', 'reports.batch_grid', str(pretrain), '--out', str(OUTPUT / 'hard_batches.png')],
        )
        found = last_record(zero_shot)
        rows = json.loads((WORLD / 'retrieval_test.json').read_text())
        report = {
            'itc': {key: found[f'test_itc_{key}'] for key in KEYS},
            'reranked': {key: found[f'test_{key}'] for key in KEYS},
            'chance': chance_of(rows),
            'loss_itm': last_record(pretrain)['train_loss_itm'],
            'seconds': round(seconds, 1),
        }
        temporary = report_path.with_suffix('.tmp')
        temporary.write_text(json.dumps(report, indent=1))
        os.replace(temporary, report_path)

    print('\n=== What came out' + (' of the finished run, reused (remove output/demo for a new one)' if reused else ''))
    print(f'set-up {args.setup_seconds:.0f} s, run {report["seconds"]:.0f} s\n')
    print('\n'.join(table(report)))
    itm = report['loss_itm']
    print(f'\nmatching loss (ITM) {itm:.4f}; always answering "no match" gives {MAJORITY_LOSS}')
    if itm > MAJORITY_LOSS - 0.01:
        print('In these few minutes matching has learned nothing beyond "no match", so re-ranking by it does not help.')
    print(
        f"\nGRIT's mini-batches beside random ones: {OUTPUT}/hard_batches.png\n"
        f'queries with what they found:            {OUTPUT}/retrieval.html\n'
        f'figures:                                 {report_path}'
    )


if __name__ == '__main__':
    main()
