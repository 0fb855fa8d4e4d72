"""python -m dataset.prepare COMMAND: write annotation files from the files of a dataset's release; see docs/data.md."""

import sys

from dataset.prepare.checking.check import add_check
from dataset.prepare.common import Inputs
from dataset.prepare.own.folder import add_folder
from dataset.prepare.releases.answers import add_answers
from dataset.prepare.releases.karpathy import add_coco, add_flickr30k
from dataset.prepare.releases.nlvr2 import add_nlvr2
from dataset.prepare.releases.vg import add_vg
from dataset.prepare.releases.vqa import add_vqa
from dataset.prepare.releases.web import add_cc3m, add_sbu
from utils.arguments import Parser
from utils.entry import run_main


def create_parser() -> Parser:
    parser = Parser(prog='python -m dataset.prepare', description=__doc__.partition(': ')[2])
    commands = parser.add_subparsers(required=True, metavar='COMMAND', dest='command')
    releases = (add_coco, add_vg, add_cc3m, add_sbu, add_flickr30k, add_nlvr2, add_vqa)
    for add in (*releases, add_answers, add_folder, add_check):
        add(commands)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command and print its summary."""
    args = create_parser().parse_args(argv)
    Inputs.protect(args)
    try:
        args.run(args).print()
    except KeyboardInterrupt:
        sys.exit('interrupted')


if __name__ == '__main__':
    run_main(main)
