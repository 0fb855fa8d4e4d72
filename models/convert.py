"""Convert a checkpoint: to a folder with safetensors that can be shared, or to a file in ALBEF's or GRIT-VLP's layout.

    python -m models.convert output/Pretrain/checkpoint_19.pth my_model                 # a folder: load_model, the hub
    python -m models.convert my_model albef.pth                                         # for ALBEF's own scripts
    python -m models.convert my_model grit.pth --layout grit                            # for GRIT-VLP's
    python -m models.convert ALBEF_4M.pth albef_4m --config configs/Pretrain.yaml --text_encoder bert-base-uncased

The names and shapes of the weights are the same everywhere. ALBEF's scripts also look for momentum copies and a queue.
Those of a checkpoint that has them are kept; else the copies are those of the weights, the queue is that of a new run.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.model_nlvr import NLVRModel
from models.model_vqa import VQAModel
from models.momentum import QueueModel
from models.pretrained import (
    FILE_NAME,
    Pretrained,
    build,
    momentum_state,
    read_pretrained,
    refuse_foreign_files,
    save_pretrained,
)
from models.tokenization_bert import pack_tokenizer
from models.weights import COPY
from utils.arguments import Parser, add_own_arguments, positive_int
from utils.entry import run_main
from utils.errors import InputError
from utils.files import atomic_write

QUEUE_SIZE = 65536  # of ALBEF's pre-training
# The parts of which ALBEF has momentum copies, by task; those of pre-training and retrieval also fill a queue.
COPIED = {
    'pretrain': QueueModel.COPIED,
    'retrieval': QueueModel.COPIED,
    'nlvr_pretrain': (),
    'nlvr': NLVRModel.COPIED,
    'vqa': VQAModel.COPIED,
}


def albef_state(
    pretrained: Pretrained, queue_size: int | None = None, own: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The weights as ALBEF's scripts write them: with momentum copies and queue.

    own: the copies and the queue that the checkpoint has, see `momentum_state`. Else the copies are those of the
    weights, and the queue is that of a new run, also with `queue_size`: random normalized features [E, Q], 65,536 by
    default, which in retrieval belong to no image (-100).
    """
    own = dict(own or {})
    if queue_size is not None:
        own = {key: value for key, value in own.items() if re.match(COPY, key)}
    state = dict(pretrained.state)
    parts = COPIED[pretrained.task]
    for key, value in pretrained.state.items():
        part, _, rest = key.partition('.')
        if part in parts:
            state[f'{part}_m.{rest}'] = value.clone()
    if parts is QueueModel.COPIED and 'image_queue' not in own:
        size, generator = queue_size or QUEUE_SIZE, torch.Generator().manual_seed(0)
        for name in ('image_queue', 'text_queue'):
            noise = torch.randn(pretrained.config['embed_dim'], size, generator=generator)
            state[name] = F.normalize(noise, dim=0)
        state['queue_ptr'] = torch.zeros(1, dtype=torch.int64)
        if pretrained.task == 'retrieval':
            state['idx_queue'] = torch.full((1, size), -100)
    return state | own


def write_file(
    pretrained: Pretrained,
    path: str,
    layout: str,
    queue_size: int | None = None,
    own: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint file that torch.load reads, in the layout albef or grit, with all that predictions need.

    queue_size, own: see `albef_state`.
    """
    content: dict[str, Any] = {
        'model': albef_state(pretrained, queue_size, own) if layout == 'albef' else dict(pretrained.state),
        'config': dict(pretrained.config),
        'task': pretrained.task,
        'tokenizer': pack_tokenizer(pretrained.tokenizer),
        'answers': list(pretrained.answers),
    }
    with atomic_write(path, 'wb') as file:
        torch.save(content, file)


def create_parser() -> Parser:
    parser = Parser(prog='python -m models.convert', description='Convert a checkpoint.')
    parser.add_argument('source', help='a checkpoint file of any task, a folder of save_pretrained, or a hub name')
    parser.add_argument('target', help='a new folder, or a file NAME.pth')
    parser.add_argument(
        '--layout', choices=('albef', 'grit'), default='albef', help='of a file NAME.pth (default: %(default)s)'
    )
    add_own_arguments(parser)
    parser.add_argument(
        '--queue_size',
        type=positive_int,
        help=f"of a new queue (default: the checkpoint's own queue, else {QUEUE_SIZE})",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = create_parser().parse_args(argv)
    is_file = args.target.lower().endswith('.pth')
    if not is_file and FILE_NAME.search(args.target):
        raise InputError(f'{args.target}: give the name of a folder, or of a file that ends in .pth')
    if not is_file:
        refuse_foreign_files(args.target)
    elif os.path.exists(args.target):
        raise InputError(
            f'{args.target} exists, and may be a run that could be resumed; give another name, or remove it'
        )
    pretrained = read_pretrained(args.source, args.config, args.text_encoder)
    build(pretrained)  # all weights are there, and fit the configuration
    if is_file:
        write_file(pretrained, args.target, args.layout, args.queue_size, momentum_state(args.source))
    else:
        save_pretrained(pretrained, args.target)
    words = f"a file in {'ALBEF' if args.layout == 'albef' else 'GRIT-VLP'}'s layout" if is_file else 'a folder'
    print(f'{args.target}: {words}, task {pretrained.task}, {len(pretrained.state)} tensors')


if __name__ == '__main__':
    run_main(main)
