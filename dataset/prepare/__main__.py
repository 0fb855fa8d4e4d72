"""python -m dataset.prepare COMMAND: annotation files from what each data set is released with; see docs/data.md."""

import argparse
import sys

from dataset.prepare.check import add_check
from dataset.prepare.folder import add_folder
from dataset.prepare.karpathy import add_coco, add_flickr30k
from dataset.prepare.nlvr2 import add_nlvr2
from dataset.prepare.vg import add_vg
from dataset.prepare.vqa import add_vqa
from dataset.prepare.web import add_web


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog='python -m dataset.prepare', description=__doc__.partition(': ')[2])
    commands = result.add_subparsers(required=True, metavar='COMMAND', dest='command')
    for add in (add_coco, add_vg, add_web, add_flickr30k, add_nlvr2, add_vqa, add_folder, add_check):
        add(commands)
    return result


def main(argv: list[str] | None = None) -> None:
    """Run a command and print its summary; bad input ends the program with one sentence."""
    args = parser().parse_args(argv)
    try:
        args.run(args).print()
    except (ValueError, OSError) as error:
        message = f'{error.filename}: {error.strerror}' if isinstance(error, OSError) and error.filename else error
        sys.exit(f'error: {message}')
    except KeyError as error:  # of an entry deep in a release's file; what a whole file must have is checked by name
        sys.exit(f'error: an entry of the {args.command} files has no {error}: download them again')
    except KeyboardInterrupt:
        sys.exit('interrupted')


if __name__ == '__main__':
    main()
