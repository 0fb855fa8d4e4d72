"""python -m dataset.prepare COMMAND: write annotation files from the files of a dataset's release; see docs/data.md."""

import sys

from dataset.prepare.check import add_check
from dataset.prepare.folder import add_folder
from dataset.prepare.karpathy import add_coco, add_flickr30k
from dataset.prepare.nlvr2 import add_nlvr2
from dataset.prepare.vg import add_vg
from dataset.prepare.vqa import add_vqa
from dataset.prepare.web import add_cc3m, add_sbu
from utils.arguments import Parser
from utils.entry import run_main
from utils.errors import InputError


def create_parser() -> Parser:
    parser = Parser(prog='python -m dataset.prepare', description=__doc__.partition(': ')[2])
    commands = parser.add_subparsers(required=True, metavar='COMMAND', dest='command')
    for add in (add_coco, add_vg, add_cc3m, add_sbu, add_flickr30k, add_nlvr2, add_vqa, add_folder, add_check):
        add(commands)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command and print its summary."""
    args = create_parser().parse_args(argv)
    try:
        args.run(args).print()
    except KeyError as error:  # of an entry deep in a release's file; `require_key` checks the upper levels
        raise InputError(f'an entry of the {args.command} files has no {error}: download the files again') from error
    except (TypeError, AttributeError) as error:
        raise InputError(
            f'an entry of the {args.command} files does not have the form of the release ({error}): download the files '
            'again, or show where with --debug'
        ) from error
    except KeyboardInterrupt:
        sys.exit('interrupted')


if __name__ == '__main__':
    run_main(main)
