"""python -m evaluation table OUTPUT_DIR ...    prints the key metrics of finished runs side by side"""

from collections.abc import Sequence

from evaluation.log_table import log_table
from utils.arguments import Parser
from utils.entry import run_main


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog='python -m evaluation', description='Metrics of finished runs.')
    commands = parser.add_subparsers(dest='command', required=True)
    table = commands.add_parser('table', help='print a Markdown table of the key metrics of output folders')
    table.add_argument('output_dir', nargs='+', help='a folder with the log.txt of a run')
    print(log_table(parser.parse_args(argv).output_dir))


if __name__ == '__main__':
    run_main(main)
