"""Compare a git revision with the working tree: all five scripts must write the same checkpoints, logs and results.

    python -m tests.same_numbers REVISION
    python -m tests.same_numbers REVISION --tolerance 1e-4    # after a change of the order of additions

A refactoring changes no number. Both trees run the same command lines on the synthetic dataset, with tiny models: two
or three epochs in one process and in two, with momentum copies and without. Every checkpoint is then compared entry
for entry and to the bit, log.txt and the result files letter for letter. Only times differ. With a tolerance, numbers
may differ by so much of the largest entry of their tensor, or of themselves. It takes four to five minutes on two
cores.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from ruamel.yaml import YAML

TIMES = {'started', 'grouping_seconds'}  # entries of a checkpoint that a clock decides
MODEL = (
    'image_res=32 vit.patch_size=16 vit.embed_dim=32 vit.depth=1 vit.num_heads=2 vision_width=32 '
    'bert_config.hidden_size=32 '
    'bert_config.num_hidden_layers=2 bert_config.fusion_layer=1 bert_config.num_attention_heads=2 '
    'bert_config.intermediate_size=64 bert_config.encoder_width=32 num_workers=1 print_freq=5 save_every=4'
)
GRIT = 'queue_size=16 search_space=8 grit_from_epoch=0 itm_negatives=hard'
PRETRAIN = f'embed_dim=16 batch_size=4 train_epochs=3 {GRIT}'
ALBEF = 'embed_dim=16 batch_size=4 train_epochs=2 itc_queue_size=32'
RETRIEVAL = 'embed_dim=16 batch_size_train=8 batch_size_test=8 k_test=4 schedular.epochs=2 queue_size=32'
NLVR = 'batch_size=16 schedular.epochs=2'
VQA = 'batch_size_train=16 batch_size_test=8 k_test=4 schedular.epochs=2'
MOMENTUM = 'distill=true alpha=0.4'

# name of a run: (script, configuration, run whose last checkpoint it starts from, settings)
RUNS = {
    'pretrain': ('Pretrain', 'Pretrain', None, PRETRAIN),
    'pretrain_albef': ('Pretrain', 'Pretrain_ALBEF', None, ALBEF),
    'retrieval': ('Retrieval', 'Retrieval', 'pretrain', f'{RETRIEVAL} use_momentum=false distill=false'),
    'retrieval_momentum': ('Retrieval', 'Retrieval', 'pretrain', f'{RETRIEVAL} use_momentum=true {MOMENTUM}'),
    'nlvr_pretrain': ('Pretrain_nlvr', 'NLVR_pretrain', 'pretrain', 'embed_dim=16 batch_size=8 schedular.epochs=2'),
    'nlvr': ('NLVR', 'NLVR', 'nlvr_pretrain', NLVR),
    'nlvr_momentum': ('NLVR', 'NLVR', 'nlvr_pretrain', f'{NLVR} {MOMENTUM}'),
    'vqa': ('VQA', 'VQA', 'pretrain', VQA),
    'vqa_momentum': ('VQA', 'VQA', 'pretrain', f'{VQA} {MOMENTUM}'),
}
SCENES = ['--scenes', '62', '--val_scenes', '12', '--test_scenes', '13']


def run_all(tree, data, output, processes):
    """Run the five scripts of a tree; the synthetic dataset of `data` is linked to where their configurations look for
    it.
    """
    (tree / 'output').mkdir(exist_ok=True)
    link = tree / 'output' / 'shapes'
    if not link.exists():
        link.symlink_to(data)
    launcher = (
        ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}', '--master_port=29641'] if processes > 1 else []
    )
    for name, (script, config, start, settings) in RUNS.items():
        if not (tree / f'configs/shapes/{config}.yaml').is_file():
            print(f'{tree}: has no configuration of {name}', flush=True)
            continue
        checkpoint = ['--checkpoint', str(last_checkpoint(output / start))] if start else []
        command = [
            sys.executable,
            *launcher,
            f'{script}.py',
            '--config',
            f'configs/shapes/{config}.yaml',
            *checkpoint,
            '--output_dir',
            str(output / name),
            '--text_encoder',
            'output/shapes/vocab',
            '--device',
            'cpu',
        ]
        for setting in f'{MODEL} {settings}'.split():
            command += ['--set', setting]
        environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': ''}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f'error: {name} in {tree} ended with {done.returncode}:\n{done.stderr[-3000:]}')
        print(f'{tree}: {name}, {processes} process(es)', flush=True)


def last_checkpoint(folder):
    return max(folder.glob('checkpoint_[0-9]*.pth'))


def is_close(before, after, tolerance):
    """Whether two floating tensors, or numbers, of one shape are equal up to `tolerance` of the largest entry."""
    before, after = torch.as_tensor(before).double(), torch.as_tensor(after).double()
    return before.shape == after.shape and bool((before - after).abs().max() <= tolerance * before.abs().max())


def differences(before, after, place, tolerance=0.0):
    """Yield the places where two values differ: tensors to the bit, mappings and lists entry for entry."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after} - TIMES, key=str):
            if key in before and key in after:
                yield from differences(before[key], after[key], f'{place}/{key}', tolerance)
            else:
                yield f'{place}/{key}: only {"before" if key in before else "after"}'
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f'{place}/{number}', tolerance)
    elif torch.is_tensor(before) and torch.is_tensor(after):
        close = tolerance and before.is_floating_point() and before.numel() and is_close(before, after, tolerance)
        if before.dtype != after.dtype or not (torch.equal(before, after) or close):
            yield f'{place}: tensors differ'
    elif tolerance and isinstance(before, float) and isinstance(after, float) and is_close(before, after, tolerance):
        return
    elif before != after and not (isinstance(before, float) and math.isnan(before) and math.isnan(after)):
        yield f'{place}: {str(before)[:60]} became {str(after)[:60]}'


def compare(before, after, tolerance=0.0):
    """Compare two output folders -> (number of files compared, list of differences)."""
    found, count = [], 0
    files = [{path.relative_to(folder) for path in folder.rglob('*') if path.is_file()} for folder in (before, after)]
    found += [f'{path}: only in one of the two' for path in sorted(files[0] ^ files[1])]
    for path in sorted(files[0] & files[1]):
        count += 1
        if path.suffix == '.pth':
            contents = [torch.load(folder / path, weights_only=True) for folder in (before, after)]
        elif path.suffix == '.yaml':
            contents = [YAML(typ='safe').load(folder / path) for folder in (before, after)]
        else:
            contents = [
                [json.loads(line) for line in (folder / path).read_text().splitlines()] for folder in (before, after)
            ]
        found += differences(*contents, str(path), tolerance)
    return count, found


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m tests.same_numbers', description=__doc__.splitlines()[0])
    parser.add_argument('revision', help='the git revision to compare the working tree with')
    parser.add_argument('--tolerance', type=float, default=0.0, help='(default: equal to the bit)')
    args = parser.parse_args(argv)
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ('before', 'after'):
            (folder / name).mkdir()
        archive = subprocess.run(['git', 'archive', args.revision], cwd=here, check=True, capture_output=True).stdout
        subprocess.run(['tar', 'x', '-C', folder / 'before'], input=archive, check=True)
        listed = subprocess.run(
            ['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=here, check=True, capture_output=True
        )
        names = [name for name in listed.stdout.decode().split('\0') if name and (here / name).is_file()]
        archive = subprocess.run(['tar', 'c', *names], cwd=here, check=True, capture_output=True).stdout
        subprocess.run(['tar', 'x', '-C', folder / 'after'], input=archive, check=True)
        data = folder / 'shapes'
        command = [sys.executable, '-m', 'dataset.shapes', '--out', str(data), *SCENES]
        subprocess.run(command, cwd=folder / 'before', check=True)
        compared, found = 0, []
        for processes in (1, 2):
            outputs = [folder / f'{name}_{processes}' for name in ('before', 'after')]
            for name, output in zip(('before', 'after'), outputs, strict=True):
                run_all(folder / name, data, output, processes)
            count, differing = compare(*outputs, args.tolerance)
            compared += count
            found += [f'{processes} process(es): {line}' for line in differing]
    found.sort(key=lambda line: ': only ' in line)  # other numbers first, then new keys and files
    print('\n'.join(found[:50]))
    print(f'{compared} files compared, {len(found)} differences')
    return 1 if found or not compared else 0


if __name__ == '__main__':
    sys.exit(main())
