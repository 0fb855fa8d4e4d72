"""What runs logged, from the log.txt of their output folders.

python -m evaluation table OUTPUT_DIR ...                    prints the key metrics of runs side by side
python -m evaluation plot OUTPUT_DIR ... --out curves.png    draws the curves of one or several runs
"""

from collections.abc import Sequence

from evaluation.curves import plot_runs
from evaluation.log_table import log_table
from utils.arguments import Parser
from utils.entry import run_main


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog='python -m evaluation', description='The metrics of runs, from their log.txt.')
    commands = parser.add_subparsers(dest='command', required=True)
    folders = {'nargs': '+', 'help': 'a folder with the log.txt of a run'}
    table = commands.add_parser('table', help='print a Markdown table of the key metrics of output folders')
    table.add_argument('output_dir', **folders)
    plot = commands.add_parser('plot', help='draw the training curves of one or several runs as a PNG file')
    plot.add_argument('output_dir', **folders)
    plot.add_argument('--out', default='curves.png', help='the PNG file to write (default: %(default)s)')
    help_evaluations = 'output folders of Retrieval.py --evaluate on checkpoints of these runs: adds their recall'
    plot.add_argument('--evaluations', nargs='+', default=[], metavar='FOLDER', help=help_evaluations)
    args = parser.parse_args(argv)
    if args.command == 'table':
        print(log_table(args.output_dir))
    else:
        plot_runs(args.output_dir, args.out, args.evaluations)


if __name__ == '__main__':
    run_main(main)
