"""How a run grows: the line of memory against counts, what the processes exchange against what real ones do, the sizes
of checkpoints against real files.
"""

import functools

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost, counting, growth
from benchmarks.counting import FakeStep, backward_flops, count_flops
from benchmarks.step_tasks import our_losses, random_inputs
from dataset.grit.collector import GritCollector
from dataset.grit.epoch_plan import EpochPlan
from dataset.grit.grouping import generator_for, group_queue
from models import create_model
from optim import create_optimizer
from tests.helpers import read_pth
from tests.tiny import resolved
from utils import distributed
from utils.checkpoint import RunParts, Status, save_run
from utils.errors import InputError
from utils.setup import to_device, unwrap

MOMENTUM = {
    'pretrain': ['use_momentum=true', 'itc_queue_size=64'],
    'retrieval': ['use_momentum=true', 'queue_size=64'],
}


def config_of(task):
    return resolved(task, '.', *MOMENTUM.get(task, []))


# ---- the largest batch ----


@pytest.mark.parametrize(('precision', 'recompute'), [('fp32', False), ('bf16', True)])
def test_memory_is_a_line(precision, recompute):
    """Up to the similarities of all images and texts of a batch, a few numbers for each pair, at any size of a model.

    The largest batch fits, but no larger one.
    """
    step = FakeStep('pretrain', config_of('pretrain'))
    line = growth.MemoryLine.count(step, precision, recompute)
    real = sum(step.weights) + step.activation_bytes(256, precision, recompute)
    square = (256 - growth.BATCHES[0]) * (256 - growth.BATCHES[1])  # 0 at what was counted
    assert 16 <= (real - line.fixed - line.slope * 256) / square <= 48
    assert line.largest(line.fixed + 24.5 * line.slope) == 24 and line.largest(line.fixed + 1.5 * line.slope) == 0


def test_what_is_left_free():
    assert growth.usable(80, 0.1, 1) == 71e9


def test_the_answers_of_a_question_are_those_of_the_datasets():
    counts = cost.DATA['VQA v2 train and val'], cost.DATA['VG questions']
    assert pytest.approx((3 * counts[0] + counts[1]) / sum(counts), abs=0.005) == counting.ANSWERS


def test_backward_flops_are_those_of_a_real_backward_pass():
    """Less the gradients of the pixels, which nobody needs."""
    torch.manual_seed(0)
    config = config_of('retrieval')
    model = create_model('retrieval', config, counting.TOKENIZER).train()
    inputs = random_inputs('retrieval', config, 4, 9, torch.device('cpu'))
    expected = backward_flops(count_flops(functools.partial(model, *inputs)))
    pixels = 2 * 4 * 4 * 3 * 16 * 16 * 32  # four patches of four images
    loss = sum(our_losses(model, *inputs).values())
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert counter.get_total_flops() == pytest.approx(expected - pixels, rel=0.015)


# ---- communication ----


class Collectives(TorchDispatchMode):
    """Notes the bytes that this process gives to each collective, also to those that DDP begins."""

    def __init__(self):
        super().__init__()
        self.given = {'allreduce_': [], 'allgather_': []}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == 'c10d':
            name = function._schema.name.split('::')[1]
            inputs = args[1] if name == 'allgather_' else args[0]
            self.given.setdefault(name, []).append(sum(part.nbytes for part in tree_leaves(inputs)))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def one_process(monkeypatch):
    """A group of this process alone, through which everything goes that goes through a group of many."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(distributed, '_hosts', dist.new_group(backend='gloo'))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('task', ['pretrain', 'retrieval', 'nlvr', 'vqa'])
def test_a_step_exchanges_what_is_counted(task, one_process, monkeypatch):
    """Several buckets of gradients, the features of the queue, ITM's accuracy and the hosts' integer; nothing else."""
    monkeypatch.setattr(dist, '_DEFAULT_FIRST_BUCKET_BYTES', 20_000)
    config = config_of(task) | ({'itm_negatives': {0: 'auto'}} if task == 'pretrain' else {})
    model = to_device(create_model(task, config, counting.TOKENIZER), torch.device('cpu'), config).train()
    inputs = random_inputs(task, config, 4, 9, torch.device('cpu'))
    expected = growth.bucket_bytes(FakeStep(task, config_of(task)).model)
    for _ in range(2):  # DDP arranges its buckets before the first
        with Collectives() as seen:
            out = model(*inputs)
            (out if torch.is_tensor(out) else sum(value for name, value in out.items() if 'loss' in name)).backward()
            if task == 'pretrain':
                unwrap(model).negatives.adapt(out['itm_acc'], torch.tensor(True))
            distributed.largest(0)
    assert seen.given.pop('allreduce_') == [*expected, *([4] if task == 'pretrain' else []), 8]
    assert sum(seen.given.pop('allgather_')) == growth.gathered_bytes(task, config, 4)
    assert not seen.given and len(expected) > 1
    assert sum(expected) == counting.weight_bytes(unwrap(model)).gradients


def test_large_buckets_are_those_of_ddp(one_process):
    """The first is full at 1 MiB, the others at 25 MiB: 13 MB, then three of them."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1800, 1800) for _ in range(4)))
    expected = growth.bucket_bytes(model)
    assert expected == [1801 * 1800 * 4, 3 * 1801 * 1800 * 4]
    wrapped = to_device(model, torch.device('cpu'), {'compile': False})
    with Collectives() as seen:
        wrapped(torch.ones(1, 1800)).sum().backward()
    assert seen.given['allreduce_'] == expected
    assert wrapped._get_ddp_logging_data()['bucket_cap_bytes'] == 25 * growth.MIB


def test_bytes_of_a_ring():
    """Of W parts a rank sends W - 1 to be added, and W - 1 that are added."""
    assert growth.sent_bytes(800, 4) == 2 * 3 * 200 and growth.sent_bytes(800, 2) == 800


# ---- the dataset ----


def test_grouping_costs_the_same_for_each_pair():
    for length in (64, 320):
        features = torch.nn.functional.normalize(torch.randn(2, length, 16), dim=2)
        call = functools.partial(group_queue, *features, 32, generator_for('x'))
        config = {'search_space': 32, 'embed_dim': 16}
        assert count_products(call) == length * growth.grouping_flops(config)


def count_products(call):
    """FLOPs of `torch.mm` with `out`, which torch's counter does not know."""

    class Products(TorchDispatchMode):
        flops = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.mm.out:
                self.flops += 2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[1]
            return function(*args, **(kwargs or {}))

    with Products() as products:
        call()
    return products.flops


@pytest.fixture
def trained():
    """(model, optimizer with moments, configuration)"""
    config = config_of('pretrain')
    model = create_model('pretrain', config, counting.TOKENIZER)
    optimizer = create_optimizer(config['optimizer'], model)
    sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad).backward()
    optimizer.step()
    return model, optimizer, config


def test_checkpoints_have_the_computed_size(trained, tmp_path):
    """At the end of an epoch, and one batch before GRIT's queue is full for the second and last time."""
    model, optimizer, config = trained
    pairs, batch, width = 2 * config['queue_size'], config['batch_size'], config['embed_dim']
    plan, collector = EpochPlan(pairs, batch), GritCollector(config['queue_size'], config['search_space'], 0)
    plan.set_random_order(0)
    parts = RunParts('pretrain', model, optimizer, config, {'plan': plan, 'collector': collector}, {}, {})
    computed = growth.Growth.of(counting.weight_bytes(model), config, pairs, 1)
    counters = 4 * len(optimizer.state)  # steps of AdamW
    save_run(tmp_path / 'epoch.pth', parts, Status(1, 0))
    assert stored_bytes(tmp_path / 'epoch.pth') - counters == computed.epoch_file
    for index in plan.order.split(batch)[:-1]:
        collector.add(index, torch.zeros(batch, width), torch.zeros(batch, width))
    save_run(tmp_path / 'step.pth', parts, Status(1, plan.steps - 1))
    missing = batch * (8 + 8 * width)  # of one batch: its indices and features
    assert stored_bytes(tmp_path / 'step.pth') - counters == computed.step_file - missing
    assert computed.shard == 2 * computed.order + computed.queue


def stored_bytes(path):
    """Bytes of all tensors in a checkpoint but the states of the random generators, those with two names once."""
    content = read_pth(path)
    del content['ranks'][0]['rng']
    storages = {part.untyped_storage().data_ptr(): part for part in tree_leaves(content) if torch.is_tensor(part)}
    return sum(part.untyped_storage().nbytes() for part in storages.values() if part.numel())


def test_orders_of_all_ranks_are_the_dataset():
    pairs, processes = 4 * 13 * 5 + 3, 5
    plans = [EpochPlan(pairs, 4, rank, processes, gather=lambda part: [part] * processes) for rank in range(processes)]
    sizes = []
    for plan in plans:
        plan.set_random_order(0)
        sizes.append(plan.order.nbytes + plan.left_out.nbytes)
    computed = growth.Growth.of(counting.Weights(0, 0, 0, 0, 0), config_of('pretrain'), pairs, processes)
    assert sum(sizes) == pytest.approx(computed.order * processes) and max(sizes) < computed.order + 8
    assert computed.epoch_file == pytest.approx(8 * pairs)


# ---- the command ----


def test_all_tables(monkeypatch, capsys):
    monkeypatch.setattr(growth, 'read_config', lambda name: config_of(growth.STEPS[name][0]))
    monkeypatch.setattr(growth, 'RESOLUTIONS', {'retrieval': (32,)})
    monkeypatch.setattr(growth, 'SETTINGS', growth.SETTINGS[:1])
    monkeypatch.setattr(growth, 'STEPS', {name: growth.STEPS[name] for name in ('pre-training', 'retrieval', 'VQA')})
    growth.main(['--gpus', '2', '16', '--reserve', '0.2'])
    out = capsys.readouterr().out
    assert out.startswith('Computed, not measured: GPUs of 312 TFLOP/s, of which 40% are used; 20% of their memory')
    assert out.count('| retrieval | 32 | ') == 1 and out.count('\n| VQA | ') == 2 and '| GB/s, W = 16 |' in out
    assert '\n| 400 M, 128 |' in out
    row = next(line for line in out.splitlines() if line.startswith('| retrieval | 8 |')).split(' | ')
    assert float(row[-1].rstrip(' |')) == pytest.approx(float(row[-2]) * (15 / 16) / (1 / 2), abs=0.2)


@pytest.mark.parametrize('argv', [['--gpus', '1'], ['--reserve', '1'], ['--context', 'nan'], ['--utilization', '0']])
def test_impossible_values_are_refused(argv):
    with pytest.raises(InputError, match=f'{argv[0]} .*: must be'):
        growth.main(argv)
