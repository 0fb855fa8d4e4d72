"""The report of a benchmark: its file, its table, and how times and the peak of a device are measured."""

import json
import time
from argparse import Namespace

import pytest
import torch

from benchmarks import report
from benchmarks.report import Report
from utils.arguments import Parser
from utils.errors import InputError

CPU = torch.device('cpu')


def arguments(path, **others):
    return Namespace(out=str(path), device='cpu', **others)


def test_the_file_has_all_rows_and_how_they_were_made(tmp_path, capsys):
    path = tmp_path / 'folder' / 'x.json'
    made = Report('x', arguments(path), ['--batch', '4', '--config', 'a b'])
    made.facts['peak'] = 1.5
    made.add({'task': 'vqa', 'ratio': 2.0}, seconds=[0.5, 0.25])
    first = json.loads(path.read_text())
    assert not first['complete'] and len(first['rows']) == 1
    made.add({'task': 'nlvr', 'ratio': None})
    made.finish()
    content = json.loads(path.read_text())
    assert content.pop('rows') == [
        {'task': 'vqa', 'ratio': 2.0, 'seconds': [0.5, 0.25]},
        {'task': 'nlvr', 'ratio': None},
    ]
    assert content['complete'] and content['peak'] == 1.5 and content['threads'] == torch.get_num_threads()
    assert content['command'] == "python benchmarks/bench_x.py --batch 4 --config 'a b'"
    assert content['device']['type'] == 'cpu' and content['device']['name'] and content['tf32'] is False
    assert content['versions'].keys() == {'python', 'torch', 'timm', 'transformers'}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('x: ') and lines[1] == 'peak: 1.5'
    assert lines[2:5] == ['task  ratio', 'vqa       2', 'nlvr      -'] and lines[5].endswith('x.json')


def test_the_file_has_no_date(tmp_path):
    """The same measurement is the same file."""
    for name in 'ab':
        Report('x', arguments(tmp_path / name), []).finish()
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_a_folder_and_a_missing_gpu_are_refused_before_the_work(tmp_path):
    with pytest.raises(InputError, match='is a folder'):
        Report('x', arguments(tmp_path), [])
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match='--device cuda: there is no GPU here'):
            report.require_device('cuda')


def test_arguments():
    parser, on_cpu = Parser(), Parser()
    report.add_arguments(parser, 'x')
    report.add_arguments(on_cpu, 'x', cpu_only=True)
    assert vars(parser.parse_args([])) == {'out': 'output/benchmarks/x.json', 'device': None, 'debug': False}
    assert on_cpu.parse_args([]).device == 'cpu'
    with pytest.raises(SystemExit):
        on_cpu.parse_args(['--device', 'cpu'])


def test_seconds_are_those_of_calls_that_take_turns():
    """The ways take turns, and the round that warms up does not count."""
    now, calls = [0.0], []
    lengths = {'a': iter([9, 1, 2]), 'b': iter([9, 5, 3])}

    def way(name):
        def call():
            calls.append(name)
            now[0] += next(lengths[name])

        return call

    seconds = report.take_turns({name: way(name) for name in 'ab'}, 2, CPU, warmup=1, clock=lambda: now[0])
    assert seconds == {'a': [1, 2], 'b': [5, 3]} and calls == list('ababab')


def test_the_peak_is_that_of_the_best_product(monkeypatch):
    multiplied = []

    def take_turns(ways, rounds, device, warmup, clock):
        multiplied.append((ways['product'](), clock))
        return {'product': [2.0, 0.5, 1.0]}

    monkeypatch.setattr(report, 'take_turns', take_turns)
    assert report.matrix_peak(CPU, torch.bfloat16, size=64) == 2 * 64**3 / 0.5 and len(multiplied) == 1
    report.matrix_peak(CPU, torch.float32, size=64, clock=time.process_time)
    assert [clock for _, clock in multiplied] == [time.perf_counter, time.process_time]


def test_products_are_exact_inside_the_block_only():
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    try:
        report.set_tf32(torch.device('cuda'), True)
        with pytest.raises(KeyError), report.exact_products(torch.device('cuda')):
            assert not matmul.allow_tf32 and not convolution.allow_tf32
            raise KeyError
        assert matmul.allow_tf32 and convolution.allow_tf32
        with report.exact_products(CPU):
            assert matmul.allow_tf32
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (None, '-'),
        (12345, '12,345'),
        (12345.6, '12,346'),
        (12.3456, '12.35'),
        (0.123456, '0.123'),
        ('a', 'a'),
        (7, '7'),
    ],
)
def test_values_are_short(value, text):
    assert report.shown(value) == text


def test_a_table_has_the_columns_of_all_rows():
    rows = [{'task': 'a', 'x': 1}, {'task': 'long', 'x': 100, 'note': 'no'}]
    assert report.table(rows).splitlines() == ['task    x  note', 'a       1  -', 'long  100  no']
