"""The demo: make the synthetic dataset, pre-train on it with GRIT, retrieve unseen scenes. `make demo` calls it.

Every step is one command of this repository, printed before it runs; an interrupted step continues at the next call.
"""

import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules load prints no traceback

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset.shapes.build import VERSION
from evaluation.log_table import read_log
from evaluation.masked_words import masked_word_lines
from utils.arguments import Parser
from utils.config_files import ROOT
from utils.entry import run_main
from utils.errors import InputError
from utils.files import atomic_write

DATA, OUTPUT = Path('output/shapes'), Path('output/demo')
CONFIGS = 'configs/shapes'
GRIT_FROM = 4
SHORTER = (
    *('train_epochs=6', 'schedular.epochs=6', f'grit_from_epoch={GRIT_FROM}'),
    *('itm_negatives=auto', 'itm_target_accuracy=0.92'),
    'batch_size=20',  # more steps in the same time
)
MAJORITY_ACCURACY = 2 / 3  # of ITM that always predicts "no match"
KEYS = ('txt_r1', 'txt_r5', 'txt_r10', 'img_r1', 'img_r5', 'img_r10')


def step(title: str, *commands: Sequence[str]) -> float:
    """Run commands of the repository, several at the same time. Returns the seconds it took."""
    print(f'\n=== {title}')
    for command in commands:
        print(f'$ {shlex.join(["python", *command])}', flush=True)
    started = time.perf_counter()
    pipe = subprocess.PIPE if len(commands) > 1 else None
    running = [subprocess.Popen([sys.executable, *command], stdout=pipe, text=True) for command in commands]
    for process in running:
        out, _ = process.communicate()
        print(out or '', end='', flush=True)
    failed = [process.returncode for process in running if process.returncode]
    if failed:
        raise InputError(
            f'this step failed (exit code {failed[0]}), see above; `make demo` tries it again, and without the folder '
            f'{OUTPUT} the demo starts anew'
        )
    return time.perf_counter() - started


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


def closing_words(report: Mapping[str, Any]) -> Iterator[str]:
    """What the metrics say, in sentences."""
    record, itc, reranked = report['last_epoch'], report['itc']['r_mean'], report['reranked']['r_mean']
    neighbor, random_pair = record['train_sim_neighbour'], record['train_sim_random']
    yield (
        f'From epoch {GRIT_FROM} on GRIT made the mini-batches: in the last epoch neighbors have a similarity of '
        f'{neighbor:.2f}, random pairs {random_pair:.2f}.'
    )
    accuracy = record['train_itm_acc']
    yield (
        f'ITM is right for {accuracy:.0%} of the pairs of that epoch; "no match" for every pair would be right for '
        f'{MAJORITY_ACCURACY:.0%}.'
    )
    if accuracy < MAJORITY_ACCURACY + 0.01:
        yield 'So ITM has learned nothing yet.'
    verb = 'raises' if reranked > itc else 'does not raise'
    yield f'Re-ranking by ITM {verb} the mean recall of ITC: {itc:.1f} before, {reranked:.1f} after.'
    lowest = min(report[name][key] / report['chance'][key] for name in ('itc', 'reranked') for key in KEYS[::3])
    yield f'R@1 is at least {lowest:.0f} times that of a random ranking.'


def evaluate_checkpoints(pretrain: Path, common: Sequence[str]) -> tuple[list[Path], float]:
    """Zero-shot retrieval before GRIT began and at the end, with a page -> (output folders, seconds it took)."""
    from utils.checkpoint_files import epoch_files  # imports torch, which the steps import in processes of their own

    paths = epoch_files(pretrain)
    folders, commands = [], []
    for path in (paths[GRIT_FROM - 1], paths[-1]):
        folder = OUTPUT / 'zero_shot' / path.stem
        (folder / 'log.txt').unlink(missing_ok=True)  # an interrupted demo evaluates again
        page = ['--page', str(OUTPUT / 'retrieval.html')] if path == paths[-1] else []
        command = ['Retrieval.py', '--config', f'{CONFIGS}/Retrieval.yaml', '--evaluate', '--output_dir', str(folder)]
        commands.append([*command, '--checkpoint', str(path), '--set', 'val_file=null', *page, *common])
        folders.append(folder)
    epochs = f'{GRIT_FROM} and {len(paths)} epochs trained'
    return folders, step(f'Zero-shot retrieval on unseen scenes, {epochs}', *commands)


def pretrain_and_retrieve(seconds: float) -> dict[str, Any]:
    """Pre-train, retrieve, draw mini-batches and curves -> the report. seconds: what the earlier steps took."""
    pretrain, words = OUTPUT / 'pretrain', OUTPUT / 'masked_words.json'
    common = ['--text_encoder', str(DATA / 'vocab'), '--device', 'cpu']
    command = ['Pretrain.py', '--config', f'{CONFIGS}/Pretrain.yaml', '--output_dir', str(pretrain), '--resume']
    workers = f'num_workers={0 if (os.cpu_count() or 1) < 4 else 1}'  # of few cores training needs all
    changes = [word for change in (*SHORTER, workers) for word in ('--set', change)]
    seconds += step('Pre-training with GRIT', [*command, *common, *changes])
    folders, took = evaluate_checkpoints(pretrain, common)
    seconds += took
    masked = ['-m', 'reports.masked_words', str(pretrain), '--annotations', str(DATA / 'retrieval_test.json')]
    masked += ['--words', str(DATA / 'word_kinds.json'), '--image_root', str(DATA), '--limit', '200']
    grid = ['-m', 'reports.batch_grid', str(pretrain), '--out', str(OUTPUT / 'hard_batches.png')]
    curves = ['-m', 'evaluation', 'plot', str(pretrain), '--evaluations', *map(str, folders)]
    seconds += step(
        'Masked words of unseen scenes, pictures of mini-batches and of curves',
        [*masked, '--out', str(words), *common],
        grid,
        [*curves, '--out', str(OUTPUT / 'curves.png')],
    )
    found = read_log(folders[-1] / 'log.txt')[-1]
    return {
        'itc': {key: found[f'test_itc_{key}'] for key in (*KEYS, 'r_mean')},
        'reranked': {key: found[f'test_{key}'] for key in (*KEYS, 'r_mean')},
        'chance': chance_of(json.loads((DATA / 'retrieval_test.json').read_text())),
        'masked_words': json.loads(words.read_text())['kinds'],
        'last_epoch': read_log(pretrain / 'log.txt')[-1],
        'seconds': round(seconds, 1),
    }


def refuse_other_version() -> None:
    """InputError if `OUTPUT` was begun with other settings; else it is marked with these."""
    path = OUTPUT / 'settings.json'
    settings = {'dataset': VERSION, 'pretrain': list(SHORTER)}
    found = json.loads(path.read_text()) if path.exists() else None
    if OUTPUT.exists() and found != settings:
        raise InputError(f'{OUTPUT} is of another version of the demo: remove it')
    with atomic_write(path) as file:
        json.dump(settings, file)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--setup_seconds', type=float, default=0, help='seconds of the set-up, shown with the run time')
    args = parser.parse_args(argv)
    os.chdir(ROOT)  # every step is a command of the repository, and `output` is there
    refuse_other_version()
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
    print()
    print('masked words of unseen scenes that the model finds')
    print('\n'.join(masked_word_lines(report['masked_words'])))
    print()
    print('\n'.join(closing_words(report)))
    print(
        f"\nGRIT's mini-batches beside random ones: {OUTPUT}/hard_batches.png\n"
        f'losses, similarities and recall:        {OUTPUT}/curves.png\n'
        f'queries and what the model found:       {OUTPUT}/retrieval.html\n'
        f'metrics:                                {report_path}'
    )


if __name__ == '__main__':
    run_main(main)
