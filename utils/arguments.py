"""The command lines of the five scripts: the official flags, and those that every script shares."""

import argparse
import os
import sys
from typing import NoReturn

CONFIGS = {
    'pretrain': 'Pretrain',
    'retrieval': 'Retrieval_flickr',
    'nlvr_pretrain': 'NLVR_pretrain',
    'nlvr': 'NLVR',
    'vqa': 'VQA',
}
OUTPUTS = {
    'pretrain': 'Pretrain/',
    'retrieval': 'output/Retrieval_flickr',
    'nlvr_pretrain': 'output/NLVR_pretrain',
    'nlvr': 'output/NLVR',
    'vqa': 'output/vqa',
}

MOST_SEED = 2**63 - 1  # torch takes less than 2**64, and each process adds its rank


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, `error: ...`, with exit code 2; every parser takes `--debug`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_argument('--debug', action='store_true', help='show the traceback of an error')

    def error(self, message: str) -> NoReturn:
        if os.environ.get('LOCAL_RANK', '0') == '0':  # several processes read the same command line
            print(f'error: {message}; --help lists the arguments', file=sys.stderr)
        sys.exit(2)


def boolean(word: str) -> bool:
    """A flag's value: true/false, yes/no, 1/0, in any case."""
    lower = word.lower()
    if lower in ('true', 'yes', '1'):
        return True
    if lower in ('false', 'no', '0'):
        return False
    raise argparse.ArgumentTypeError(f'{word!r} is neither true nor false')


def boolean_or_folder(word: str) -> bool | str:
    """A flag's value, or the path of a folder."""
    try:
        return boolean(word)
    except argparse.ArgumentTypeError:
        return word


def seed(word: str) -> int:
    """An integer that can seed a random generator."""
    if not word.isdecimal() or int(word) > MOST_SEED:
        raise argparse.ArgumentTypeError(f'{word!r} is not an integer from 0 to {MOST_SEED}')
    return int(word)


def positive_int(word: str) -> int:
    """An integer of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f'{word!r} is not an integer of at least 1')
    return int(word)


def add_flag(parser: argparse.ArgumentParser, name: str, default: bool, help: str) -> None:
    """Add a boolean flag that works bare (true) and with a value."""
    parser.add_argument(name, nargs='?', const=True, default=default, type=boolean, metavar='true|false', help=help)


def add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what replaces a checkpoint's own configuration and vocabulary."""
    parser.add_argument('--config', help="a YAML configuration (default: the checkpoint's own)")
    parser.add_argument(
        '--text_encoder', help="a hub name or a folder with tokenizer files (default: the checkpoint's own)"
    )


def create_parser(task: str, description: str) -> Parser:
    """The parser of one task's script with all flags that every script takes."""
    shapes = CONFIGS[task].removesuffix('_flickr')
    parser = Parser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.epilog = (
        'On the synthetic dataset: `python -m dataset.shapes --out output/shapes`, then '
        f'`python {parser.prog} --config configs/shapes/{shapes}.yaml --output_dir output/shapes_{task} '
        '--text_encoder output/shapes/vocab`'
        + ('' if task == 'pretrain' else ', with --checkpoint of a pre-training run')
        + '. `python -m utils.config` prints all keys of the configuration.'
    )
    parser.add_argument('--config', default=f'./configs/{CONFIGS[task]}.yaml', help='the YAML configuration')
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='set a key of the configuration, also in a section: optimizer.lr=1e-5; paths and names are taken as they '
        'are written, other values as YAML; may be repeated',
    )
    parser.add_argument('--checkpoint', default='', help='weights to start from')
    parser.add_argument('--output_dir', default=OUTPUTS[task], help='folder for checkpoints, log.txt and results')
    add_flag(
        parser,
        '--resume',
        False,
        'continue from the newest complete checkpoint in output_dir; if there is none, start as without this flag',
    )
    add_flag(
        parser, '--elastic', False, 'with --resume: continue with another number of processes, from the end of an epoch'
    )
    add_flag(parser, '--force', False, 'with --resume: continue although seed, vocabulary or data are not the same')
    add_flag(parser, '--evaluate', False, 'evaluate and stop, without training')
    parser.add_argument(
        '--text_encoder',
        default='bert-base-uncased',
        help='a hub name, or a folder with tokenizer files and optionally BERT weights',
    )
    parser.add_argument('--device', default='cuda', help='cuda (the CPU if there is no GPU) or cpu')
    parser.add_argument('--seed', type=seed, default=42 if task == 'pretrain' else 0, help='each process adds its rank')
    add_flag(parser, '--distributed', True, 'join the process group that a launcher started')
    parser.add_argument('--world_size', type=int, default=1, help='ignored: the launcher sets it')
    parser.add_argument('--dist_url', default='env://', help='where the processes meet')
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)  # launchers without --use_env
    return parser
