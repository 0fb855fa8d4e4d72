"""The command lines of the five scripts: the official flags, and those that every script shares."""

import argparse

CONFIGS = {'pretrain': 'Pretrain', 'retrieval': 'Retrieval_flickr', 'nlvr_pretrain': 'NLVR_pretrain', 'nlvr': 'NLVR',
           'vqa': 'VQA'}
OUTPUTS = {'pretrain': 'Pretrain/', 'retrieval': 'output/Retrieval_flickr', 'nlvr_pretrain': 'output/NLVR_pretrain',
           'nlvr': 'output/NLVR', 'vqa': 'output/vqa'}


def boolean(word):
    """A flag's value: true/false, yes/no, 1/0, in any case."""
    lower = word.lower()
    if lower in ('true', 'yes', '1'):
        return True
    if lower in ('false', 'no', '0'):
        return False
    raise argparse.ArgumentTypeError(f'{word!r} is neither true nor false')


def add_flag(parser, name, default, help):
    """A boolean flag that works bare (true) and with a value."""
    parser.add_argument(name, nargs='?', const=True, default=default, type=boolean, metavar='true|false', help=help)


def create_parser(task, description):
    """The parser of one task's script with all flags that every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--config', default=f'./configs/{CONFIGS[task]}.yaml', help='the YAML configuration')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='set a key of the configuration, also of a section: optimizer.lr=1e-5; may be repeated')
    parser.add_argument('--checkpoint', default='', help='weights to start from')
    parser.add_argument('--output_dir', default=OUTPUTS[task], help='where checkpoints, log.txt and results go')
    add_flag(parser, '--resume', False,
             'go on from the newest complete checkpoint in output_dir; where there is none, as without')
    add_flag(parser, '--evaluate', False, 'evaluate and stop, without training')
    parser.add_argument('--text_encoder', default='bert-base-uncased',
                        help='a hub name, or a folder with tokenizer files and, perhaps, BERT weights')
    parser.add_argument('--device', default='cuda', help='cuda (the CPU where there is no GPU) or cpu')
    parser.add_argument('--seed', type=int, default=42 if task == 'pretrain' else 0, help='each process adds its rank')
    add_flag(parser, '--distributed', True, 'take part in the group that a launcher started')
    parser.add_argument('--world_size', type=int, default=1, help='read from the launcher; kept for old command lines')
    parser.add_argument('--dist_url', default='env://', help='where the processes meet')
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)  # launchers without --use_env
    return parser
