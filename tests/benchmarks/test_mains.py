"""Each benchmark from its arguments to its file, with tiny sizes; it refuses wrong arguments and measures nothing that
is computed wrongly.
"""

import functools
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import bench_grouping, bench_loader, bench_rerank, bench_step, bench_vqa_ranking, report
from benchmarks.counting import TOKENIZER, count_flops, training_flops
from benchmarks.plain_steps import STEPS
from benchmarks.report import Report
from benchmarks.step_tasks import Step, our_losses, peak_memory, random_inputs
from models import create_model
from models.answer_ranking import rank_answers
from models.bert_layers import BertConfig
from models.xbert import create_bert
from optim import create_optimizer
from tests.tiny import CONFIGS, MODEL, resolved
from utils.errors import InputError

RERANK = ['--images', '3', '--captions', '2', '--k', '2', '--image_res', '32', '--device', 'cpu']
RANKING = ['--width', '64', '--layers', '1', '--answers', '40', '--k', '10', '--rounds', '1', '--device', 'cpu']
LOADER = ['--images', '2', '--rounds', '1', '--resolutions', '32', '--width', '80', '--height', '60']
FILES = {'pretrain': 'Pretrain', 'retrieval': 'Retrieval', 'nlvr': 'NLVR', 'vqa': 'VQA'}


@pytest.fixture(autouse=True)
def small_peak(monkeypatch):
    monkeypatch.setattr(report, 'PEAK_SIZE', {'cpu': 64, 'cuda': 64})


def step_arguments(task, path, *more, settings=()):
    overrides = [word for item in (*MODEL[:-2], *settings) for word in ('--set', item)]
    config = str(CONFIGS / f'{FILES[task]}.yaml')
    return ['--task', task, '--config', config, *overrides, '--out', str(path), '--device', 'cpu', *more]


def run(main, argv, path):
    """The content of the file that a benchmark writes."""
    main([*argv, '--out', str(path)] if '--out' not in argv else argv)
    return json.loads(path.read_text())


SETTINGS = {
    'pretrain': ['itm_negatives=hard'],
    'retrieval': ['use_momentum=true', 'queue_size=16', 'embed_dim=16'],
    'nlvr': [],
    'vqa': [],
}


@pytest.mark.parametrize('task', FILES)
def test_step(task, tmp_path, capsys):
    path = tmp_path / 'step.json'
    more = ['--variants', 'fp32', 'bf16+checkpointing', '--profile'] if task == 'pretrain' else []
    content = run(bench_step.main, step_arguments(task, path, *more, '--rounds', '1', settings=SETTINGS[task]), path)
    row = content['rows'][0]
    assert content['complete'] and len(content['rows']) == (2 if task == 'pretrain' else 1)
    assert row['ratio'] == row['plain ms'] / row['ms'] > 0 and row['loss difference'] <= 1e-5
    assert row['of peak'] == pytest.approx(row['TFLOP/s'] / content['peak TFLOP/s, fp32'])
    assert 100 < row['ops'] < row['plain ops'] and row['GiB'] is None
    assert row['operators that wait']['ours'] <= row['operators that wait']['plain'] + 1
    out = capsys.readouterr().out
    assert task in out.splitlines()[-2] and ('aten::addmm' in out) == (task == 'pretrain')
    if task == 'pretrain':
        recomputed = content['rows'][1]
        assert recomputed['ops'] > row['ops'] and 0 < recomputed['bf16 difference'] <= 0.01 and recomputed['items'] > 0


def test_flops_are_those_of_our_step(tmp_path):
    path = tmp_path / 'step.json'
    config = resolved('vqa', '.')
    content = run(bench_step.main, step_arguments('vqa', path, '--batch', '3', '--tokens', '9'), path)
    torch.manual_seed(0)
    model, inputs = (
        create_model('vqa', config, TOKENIZER).eval(),
        random_inputs('vqa', config, 3, 9, torch.device('cpu')),
    )
    ours, plain = (
        training_flops(count_flops(functools.partial(losses, *inputs)))
        for losses in (model, functools.partial(STEPS['vqa'], model))
    )
    assert content['rows'][0]['GFLOP'] * 1e9 == pytest.approx(ours) and ours < plain


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--variants', 'fp16'], '--variants fp16: must be fp32 or bf16'),
        (['--variants', 'bf16+fast'], r'--variants bf16\+fast: must be'),
        (['--config', 'x.yaml'], '--config x.yaml: is of one task'),
        (['--batch', '1'], '--batch 1: must be at least 2'),
        (['--tokens', '2'], '--tokens 2: must be at least 3'),
        (['--peak', 'nan'], '--peak nan: must be above 0'),
        (['--largest', '--device', 'cpu'], '--largest: needs a GPU'),
        (['--task', 'vqa', '--config', 'nowhere.yaml', '--device', 'cpu'], 'nowhere.yaml'),
    ],
)
def test_arguments_of_step(argv, message, tmp_path):
    with pytest.raises(InputError, match=message):
        bench_step.main([*argv, '--out', str(tmp_path / 'x.json')])


def test_losses_in_bf16_that_are_wrong_are_refused(monkeypatch):
    results = iter([{'loss': 1.0}, {'loss': 1.02}])
    monkeypatch.setattr(bench_step, 'losses_and_gradients', lambda *args: (next(results), {}))
    with pytest.raises(InputError, match='differ by 2.0% from fp32'):
        bench_step.bf16_difference(None, ())


def test_the_largest_batches(tmp_path, monkeypatch):
    """A row for each resolution, with and without checkpointing; two real steps decide, here on the CPU."""
    report, sizes = Report('step', SimpleNamespace(out=str(tmp_path / 'x.json'), device='cpu'), []), []

    def fits(train):
        train()
        return sizes[-1][0] <= 9

    def create(task, config, batch, args, device):
        sizes.append((batch, config['image_res'], config['grad_checkpointing']))
        return made(task, config | {'image_res': 32}, 2, args, device)  # a small one in its place

    made = bench_step.create
    monkeypatch.setattr(bench_step, 'create', create)
    monkeypatch.setattr(bench_step, 'fits_memory', fits)
    bench_step.search_largest(resolved('pretrain', '.'), SimpleNamespace(tokens=8), report)
    assert [row['batch'] for row in report.rows] == [9, 9, 9, 9] and report.details[0] == {'complete': True}
    assert {size[1:] for size in sizes} == {(256, False), (256, True), (384, False), (384, True)}


def test_memory_is_that_of_one_optimizer(monkeypatch):
    for name in ('reset_peak_memory_stats', 'synchronize'):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: 3 * 2**30)
    config = resolved('vqa', '.')
    model, inputs = create_model('vqa', config, TOKENIZER), random_inputs('vqa', config, 2, 9, torch.device('cpu'))
    step = Step(model, inputs, our_losses, create_optimizer(config['optimizer'], model), 'fp32')
    assert peak_memory(step, torch.device('cpu')) is None
    assert peak_memory(step, torch.device('cuda')) == 3 and not step.optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


class TinyItmModel(torch.nn.Module):
    """As `ItmModel`, with two layers."""

    def __init__(self):
        super().__init__()
        self.text_encoder = create_bert(
            BertConfig(num_hidden_layers=2, fusion_layer=1, intermediate_size=64, vocab_size=8)
        )
        self.itm_head = torch.nn.Linear(768, 2)


def test_rerank(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_rerank, 'ItmModel', TinyItmModel)
    row = run(bench_rerank.main, RERANK, tmp_path / 'rerank.json')['rows'][0]
    assert (row['images'], row['texts'], row['pairs']) == (3, 6, 3 * 2 + 6 * 2)
    assert row['ratio'] == row['plain s'] / row['s'] > 0 and row['FLOP ratio'] > 1
    assert row['difference'] <= 1e-4 and row['difference of all scores'] <= 1e-4
    counted = run(bench_rerank.main, [*RERANK, '--count_only'], tmp_path / 'count.json')['rows'][0]
    assert counted == {name: row[name] for name in counted} and 'ratio' not in counted


@pytest.mark.parametrize('count', [0, 1])
def test_wrong_scores_are_not_timed(tmp_path, monkeypatch, count):
    """The fault is in the scores of the check, or only in those of the timed run."""
    monkeypatch.setattr(bench_rerank, 'ItmModel', TinyItmModel)
    right, calls = bench_rerank.rerank, []

    def wrong(*args):
        calls.append(args)
        i2t, t2i = right(*args)
        return (i2t + 0.1 if len(calls) > count else i2t), t2i

    monkeypatch.setattr(bench_rerank, 'rerank', wrong)
    with pytest.raises(InputError, match='scores of pair by pair and image by image differ by 1.0e-01'):
        bench_rerank.main([*RERANK, '--out', str(tmp_path / 'x.json')])
    assert not (tmp_path / 'x.json').exists()


def test_on_a_cpu_all_scores_are_exact(tmp_path, monkeypatch):
    """The fault, in the timed run only, is one that TF32 could make."""
    monkeypatch.setattr(bench_rerank, 'ItmModel', TinyItmModel)
    monkeypatch.setattr(bench_rerank, 'compare', lambda *args: 0.0)
    right = bench_rerank.rerank
    monkeypatch.setattr(bench_rerank, 'rerank', lambda *args: tuple(part + 0.01 for part in right(*args)))
    with pytest.raises(InputError, match='differ by 1.0e-02'):
        bench_rerank.main([*RERANK, '--out', str(tmp_path / 'x.json')])


def test_vqa_ranking(tmp_path):
    row = run(bench_vqa_ranking.main, RANKING, tmp_path / 'x.json')['rows'][0]
    assert row['ratio'] == row['plain s'] / row['s'] and row['FLOP ratio'] > 1.5
    assert (row['k'], row['answers']) == (10, 40) and row['difference'] <= 1e-4


@pytest.mark.parametrize('fault', ['probabilities', 'answers'])
def test_a_wrong_ranking_is_not_timed(tmp_path, monkeypatch, fault):
    def wrong(*args):
        if fault == 'probabilities':
            return rank_answers(*args, first_token_once=True)
        ids, probabilities = rank_answers(*args)
        return ids.roll(1, dims=1), probabilities

    monkeypatch.setattr(bench_vqa_ranking, 'rank_answers', wrong)
    with pytest.raises(InputError, match='probabilities of ours and of the plain way differ'):
        bench_vqa_ranking.main([*RANKING, '--out', str(tmp_path / 'x.json')])
    assert not (tmp_path / 'x.json').exists()


def test_random_answers_have_the_given_lengths():
    answers = bench_vqa_ranking.random_answers(1000, (0.7, 0.2, 0.1), 500)
    lengths = answers.attention_mask.sum(dim=1) - 2
    assert lengths.bincount().tolist() == [0, 700, 200, 100] and answers.input_ids.shape == (1000, 5)
    assert ((answers.input_ids == 102).sum(dim=1) == 1).all() and (answers.input_ids[:, 0] == 101).all()
    ends = answers.input_ids.gather(1, lengths[:, None] + 1)
    assert (ends == 102).all() and lengths[:100].unique().numel() == 3  # not sorted


def test_loader(tmp_path):
    rows = run(bench_loader.main, LOADER, tmp_path / 'x.json')['rows']
    assert [(row['transform'], row['px']) for row in rows] == [('train', 32), ('eval', 32)]
    assert all(row['ratio'] == row['images/s'] / row['plain images/s'] for row in rows)
    assert rows[0]['levels'] is None and rows[1]['levels'] < 1


def test_wrong_pixels_are_not_timed(tmp_path, monkeypatch):
    ours = bench_loader.our_transform
    monkeypatch.setattr(bench_loader, 'our_transform', lambda *args: lambda path: ours(*args)(path).flip(2))
    with pytest.raises(InputError, match='pixels of both ways at 32 px differ by'):
        bench_loader.main([*LOADER, '--out', str(tmp_path / 'x.json')])
    assert not (tmp_path / 'x.json').exists()


@pytest.mark.parametrize(
    ('main', 'argv', 'message'),
    [
        (bench_rerank.main, ['--image_res', '40'], '--image_res 40: must be a multiple of 16'),
        (bench_vqa_ranking.main, ['--lengths', '0'], '--lengths 0.0: must be shares'),
        (bench_vqa_ranking.main, ['--width', '100'], '--width 100: must be a multiple of 64'),
    ],
)
def test_arguments_of_the_others(main, argv, message):
    with pytest.raises(InputError, match=message):
        main(argv)


def test_grouping(tmp_path):
    argv = ['--length', '64', '--search_space', '16', '--width', '8', '--rounds', '2', '--device', 'cpu']
    (row,) = run(bench_grouping.main, argv, tmp_path / 'grouping.json')['rows']
    assert row['ratio'] == row['step by step, s'] / row['ours, s'] > 0 and row['equal positions'] == 1
    (row,) = run(bench_grouping.main, [*argv, '--quantile', '0.5'], tmp_path / 'quantile.json')['rows']
    assert "GRIT's chains, s" in row and row['equal positions'] < 1


def test_memory_is_measured_before_the_check_and_the_baseline_runs_only_for_times(tmp_path, monkeypatch):
    calls, baseline = [], bench_grouping.group_queue_step_by_step
    check, extra = bench_grouping.check_equal, bench_grouping.extra_bytes

    def noted(name, call):
        return lambda *args: calls.append(name) or call(*args)

    monkeypatch.setattr(bench_grouping, 'group_queue_step_by_step', noted('baseline', baseline))
    monkeypatch.setattr(bench_grouping, 'check_equal', noted('check', check))
    monkeypatch.setattr(bench_grouping, 'extra_bytes', noted('memory', extra))
    argv = ['--length', '64', '--search_space', '16', '--width', '8', '--rounds', '2', '--device', 'cpu']
    run(bench_grouping.main, argv, tmp_path / 'grouping.json')
    assert calls == ['memory', 'check', 'baseline', 'baseline', 'baseline']  # one of them in the check


def test_memory_of_a_gpu_is_what_comes_on_top(monkeypatch):
    calls = []
    for name, value in (('reset_peak_memory_stats', None), ('memory_allocated', 70), ('synchronize', None)):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name, value=value: calls.append(name) or value)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device: 100)
    assert bench_grouping.extra_bytes(lambda: calls.append('call'), torch.device('cuda')) == 30
    assert calls == ['reset_peak_memory_stats', 'memory_allocated', 'call', 'synchronize']


def test_the_plan_of_an_epoch(tmp_path):
    rows = run(bench_grouping.main, ['--pairs', '6000', '--ranks', '3'], tmp_path / 'plan.json')['rows']
    batches = 6000 // (3 * bench_grouping.BATCH_SIZE)
    assert [row['epoch'] for row in rows] == ['random', 'grouped']
    assert all(row['stored MiB'] * 2**20 == 8 * batches * bench_grouping.BATCH_SIZE for row in rows)


def test_no_grouping_is_timed_if_the_orders_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_grouping, 'group_step_by_step', lambda image, text, start: list(range(len(image))))
    monkeypatch.setattr(bench_grouping, 'take_turns', lambda *args, **options: pytest.fail('timed'))
    with pytest.raises(InputError, match='different orders'):
        bench_grouping.main(['--length', '64', '--search_space', '16', '--out', str(tmp_path / 'x.json')])
