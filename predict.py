"""Use a trained checkpoint: answer a question about one image.

    python predict.py answer --checkpoint output/vqa/checkpoint_07.pth --image a.jpg --question "what color is the cat?"

Configuration, answers and vocabulary are the checkpoint's own, unless --config or --text_encoder name others.
"""

import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules load prints no traceback

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dataset.text import pre_question
from dataset.tokens import tokenize_untruncated
from dataset.transforms import eval_transform
from dataset.vqa_dataset import TEST_WORDS, AnswerList, read_answer_list
from models import create_model
from models.tokenization_bert import create_tokenizer, unpack_tokenizer
from models.weight_files import model_state, read_checkpoint
from models.weights import is_vqa, load_vqa
from utils import distributed
from utils.arguments import Parser
from utils.config import apply_overrides, resolve
from utils.config_files import find_file, read_yaml
from utils.entry import run_main
from utils.errors import InputError
from utils.setup import autocast

SHOWN = 5  # answers to a question


@torch.no_grad()
def answer(args: argparse.Namespace) -> None:
    """Print the best answers to the questions of the command line, with their probabilities."""
    checkpoint = read_checkpoint(args.checkpoint)
    state = model_state(checkpoint, args.checkpoint)
    if not is_vqa(state):
        raise InputError(f'--checkpoint {args.checkpoint}: it has no answer decoder; give one that VQA.py wrote')
    own = isinstance(checkpoint.get('config'), dict) and not args.config
    if not own and not args.config:
        raise InputError(f'--checkpoint {args.checkpoint}: it has no configuration; give one with --config')
    source = args.checkpoint if own else find_file(args.config)
    config = checkpoint['config'] if own else read_yaml(source)
    changed = apply_overrides(config, args.set) | {'num_workers': 0}  # that of a larger machine may be refused here
    config = resolve('vqa', changed, source)[0] | {'distill': False}
    saved = saved_answers(checkpoint)
    if args.text_encoder:
        tokenizer = create_tokenizer(args.text_encoder, config['bert_config']['vocab_size'])
    elif saved:
        tokenizer = unpack_tokenizer(saved['tokenizer'])
    else:
        raise InputError(
            f'--checkpoint {args.checkpoint}: it has no answers and no vocabulary; give the vocabulary with '
            '--text_encoder and the answers with --set answer_list=FILE'
        )
    texts = saved['texts'] if saved and own else read_answer_list(config['answer_list'])
    answers = AnswerList(texts, tokenizer, config['eos'])
    questions = [pre_question(question, TEST_WORDS) for question in args.question]
    for question, words in zip(args.question, questions, strict=True):
        if not words.strip():
            raise InputError(f'--question {question!r}: there is no word in it')

    device = distributed.choose_device(args.device)
    model = create_model('vqa', config, tokenizer).eval()
    load_vqa(model, state, args.checkpoint)
    model.to(device)
    image = eval_transform(config)(args.image)[None].to(device)
    positions = config['bert_config'].get('max_position_embeddings', 512)
    for question, words in zip(args.question, questions, strict=True):
        text = tokenize_untruncated(tokenizer, [words], positions).to(device)
        with autocast(device, config):
            ids, probabilities = model.rank_answers(image, text, answers.tokens.to(device), config['k_test'])
        print(question)
        for number, probability in list(zip(ids[0].tolist(), probabilities[0].tolist(), strict=True))[:SHOWN]:
            print(f'{100 * probability:7.2f} %  {answers.texts[number]}')


def saved_answers(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The answers in a checkpoint of VQA.py, as `AnswerList.state_dict` makes them; None if it has none."""
    try:
        saved = checkpoint['ranks'][0]['answers']
        return saved if saved['texts'] and saved['tokenizer'] else None
    except (KeyError, IndexError, TypeError):
        return None


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    ask = commands.add_parser('answer', help='answer questions about one image')
    ask.add_argument('--checkpoint', required=True, help='a checkpoint that VQA.py wrote')
    ask.add_argument('--image', required=True, help='the image file')
    ask.add_argument('--question', required=True, action='append', help='a question about the image; may be repeated')
    ask.add_argument('--config', help="a YAML configuration (default: the checkpoint's own)")
    ask.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='set a key of the configuration')
    ask.add_argument(
        '--text_encoder', help="a hub name or a folder with tokenizer files (default: the checkpoint's own)"
    )
    ask.add_argument('--device', default='cuda', help='cuda (the CPU if there is no GPU) or cpu')
    answer(parser.parse_args(argv))


if __name__ == '__main__':
    run_main(main)
