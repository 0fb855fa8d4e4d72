"""Checkpoints inside an epoch of several processes: every moment of a save, mixed and damaged shards, leftovers."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from models.weight_files import read_checkpoint
from tests.helpers import read_pth
from tests.processes import SmallFiles, run_function, tail
from utils import distributed
from utils.checkpoint import RunParts, Status, find_run, prune_checkpoints, refuse_earlier_run, resume_run, save_run
from utils.checkpoint_files import run_files
from utils.checkpoint_shards import all_states, remove_old_shards, shard_files, shards_of
from utils.errors import InputError

PROCESSES, STARTED = 3, 1.5
pytestmark = pytest.mark.slow


class Own:
    """A state that differs between ranks and between versions of the run. values: [5000]."""

    def __init__(self, version):
        self.values = torch.full((5000,), 10.0 * version + distributed.rank())

    def state_dict(self):
        return {'values': self.values}

    def load_state_dict(self, state):
        self.values = state['values']


def parts_of(version):
    """The parts of a run whose weights and states are those of a version."""
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, version)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return RunParts('pretrain', model, optimizer, {'schedular': {}}, {'own': Own(version)}, {}, {})


def save(folder, version, position=(1, 4), started=STARTED, name='checkpoint_step.pth'):
    save_run(folder / name, parts_of(version), Status(*position, started=started))


def check(function, folder, processes=PROCESSES):
    assert run_function(function, folder, processes) == [0] * processes, tail(folder / 'log')


def version_of(folder):
    """The version that a run continues from; weights and the states of all ranks must be of the same."""
    path = find_run(folder, 'pretrain')
    content = read_pth(path)
    version = content['model']['weight'][0, 0].item()
    values = [state['own']['values'] for state in all_states(path, content)]
    assert [value.unique().tolist() for value in values] == [[10 * version + rank] for rank in range(PROCESSES)]
    return version


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """A folder with the checkpoint after epoch 0, version 0, and one inside epoch 1, version 1, by three processes."""
    folder = tmp_path_factory.mktemp('original')

    def write():
        save(folder, 0, (1, 0), name='checkpoint_00.pth')
        save(folder, 1)

    check(write, folder)
    return folder


@pytest.fixture
def saved(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / 'saved'))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith('log.'))


def content_of(folder):
    return {name: (folder / name).read_bytes() for name in names(folder)}


# ---- what is written and read ----


def test_each_rank_writes_its_state_and_loads_it_again(saved):
    content = read_pth(saved / 'checkpoint_step.pth')
    run_and_save = content['shards']['save']
    assert names(saved) == [
        'checkpoint_00.pth',
        f'checkpoint_step.e1s4.{run_and_save}.rank1.pth',
        f'checkpoint_step.e1s4.{run_and_save}.rank2.pth',
        'checkpoint_step.pth',
    ]
    assert len(content['ranks']) == 1 and (saved / 'checkpoint_step.pth').stat().st_size < 2 * 4 * 5000
    assert [path.name for path in run_files(saved)] == ['checkpoint_00.pth', 'checkpoint_step.pth']

    def resume():
        torch.manual_seed(99)
        parts = parts_of(7)
        status = resume_run(find_run(saved, 'pretrain'), parts)
        torch.save(
            (status.step, parts.model.weight[0, 0].item(), parts.state['own'].values, torch.get_rng_state()),
            saved / f'log.{distributed.rank()}.pth',
        )

    check(resume, saved)
    for rank, state in enumerate(all_states(saved / 'checkpoint_step.pth', content)):
        step, weight, values, generator = torch.load(saved / f'log.{rank}.pth')
        assert (step, weight) == (4, 1.0) and values.unique().tolist() == [10 + rank]
        assert torch.equal(generator, state['rng']['torch'])


def test_a_checkpoint_after_an_epoch_is_one_file(saved):
    content = read_pth(saved / 'checkpoint_00.pth')
    assert 'shards' not in content
    assert [state['own']['values'][0] for state in content['ranks']] == [0, 1, 2]


def test_a_file_of_an_earlier_version_has_all_states(saved):
    path = saved / 'checkpoint_step.pth'
    content = read_pth(path)
    content['ranks'] = all_states(path, content)
    del content['shards']
    for shard in shard_files(saved):
        shard.unlink()
    torch.save(content, path)
    assert version_of(saved) == 1

    def resume():
        parts = parts_of(7)
        resume_run(str(path), parts)
        assert parts.state['own'].values.unique().tolist() == [10 + distributed.rank()]

    check(resume, saved)


def test_another_number_of_processes(saved):
    with pytest.raises(InputError, match='was written by 3 process.*there are 1 now'):
        resume_run(find_run(saved, 'pretrain'), parts_of(7))
    assert find_run(saved, 'pretrain', elastic=True) == str(saved / 'checkpoint_00.pth')


def test_one_process_writes_one_file(tmp_path):
    save(tmp_path, 1)
    assert names(tmp_path) == ['checkpoint_step.pth'] and len(read_pth(tmp_path / 'checkpoint_step.pth')['ranks']) == 1


def test_a_shard_is_no_checkpoint(saved):
    shard = shard_files(saved)[0]
    with pytest.raises(InputError, match=f'--checkpoint {shard}: it is a shard .* give the checkpoint_step.pth beside'):
        read_checkpoint(str(shard))
    (saved / 'checkpoint_00.pth').unlink()
    (saved / 'checkpoint_step.pth').unlink()
    assert find_run(saved, 'pretrain') is None
    with pytest.raises(InputError, match=r'holds checkpoint_step.e1s4.*rank2.pth of an earlier run; --resume'):
        refuse_earlier_run(str(saved))


# ---- every moment of a save ----


def snapshot(folder, target):
    """The files of a folder at this moment, as links; none is changed later, only replaced or deleted."""
    target.mkdir()
    for name in os.listdir(folder):
        if name.startswith('checkpoint_'):
            os.link(folder / name, target / name)


class Snapshots:
    """Before and after every call by which a save changes the folder, in all processes: what a kill there leaves."""

    CALLS = ((os, 'fsync'), (os, 'replace'), (Path, 'unlink'))

    def __init__(self, folder, target):
        self.folder, self.target, self.taken = folder, target, 0

    def install(self):
        for owner, name in self.CALLS:
            setattr(owner, name, self.taking(getattr(owner, name), name))

    def taking(self, function, name):
        def calling(*args, **kwargs):
            self.take(f'before {name}')
            result = function(*args, **kwargs)
            self.take(f'after {name}')
            return result

        return calling

    def take(self, moment):
        self.taken += 1
        snapshot(self.folder, self.target / f'{distributed.rank()} {self.taken} {moment}')


@pytest.mark.parametrize('position', [(1, 4), (1, 6)])
def test_a_kill_at_any_moment_of_a_save_leaves_a_complete_checkpoint(saved, tmp_path, position):
    """The second save of a run is at the same position, or at a later one."""
    target = tmp_path / 'snapshots'
    target.mkdir()

    def write():
        Snapshots(saved, target).install()
        save(saved, 2, position)

    check(write, saved)
    versions = {path.name: version_of(path) for path in target.iterdir()}
    assert len(versions) > 20 and set(versions.values()) == {1, 2}, versions
    for folder in target.iterdir():  # and the next save removes what is superfluous
        remove_old_shards(folder, STARTED)
        path = folder / 'checkpoint_step.pth'
        assert shard_files(folder) == sorted(shards_of(path, read_pth(path)))
    assert version_of(saved) == 2 and len(shard_files(saved)) == 2


@pytest.mark.parametrize('rank', [0, 1])
def test_a_full_disk_of_one_rank_fails_on_all_and_changes_nothing(saved, rank):
    before = content_of(saved)

    def write():
        if distributed.rank() == rank:
            SmallFiles(10_000).install()
        try:
            save(saved, 2)
        except OSError as error:
            Path(saved, f'log.error.{distributed.rank()}').write_text(f'{error.filename}: {error.strerror}')

    check(write, saved)
    lines = {path.read_text() for path in saved.glob('log.error.*')}
    assert len(list(saved.glob('log.error.*'))) == PROCESSES and len(lines) == 1
    assert ('.rank1.pth: File too large' if rank else 'checkpoint_step.pth: File too large') in lines.pop()
    assert content_of(saved) == before


# ---- shards that do not belong together ----


def missing(shard, others):
    shard.unlink()


def of_another_save(shard, others):
    shutil.copyfile(others[0], shard)


def of_another_rank(shard, others):
    shutil.copyfile(shard.with_name(shard.name.replace('rank2', 'rank1')), shard)


def flip_a_bit(shard, others):
    content = bytearray(shard.read_bytes())
    content[content.index(torch.full((5,), 12.0).numpy().tobytes()) + 900] ^= 4
    shard.write_bytes(content)


def truncate(shard, others):
    shard.write_bytes(shard.read_bytes()[:-2000])


def another_file(shard, others):
    torch.save({'model': {}}, shard)


FAULTS = {
    missing: 'is missing',
    of_another_save: r'it is of rank 2 in save \w+-\w+, not of rank 2 in save',
    of_another_rank: 'it is of rank 1 in save .*, not of rank 2',
    flip_a_bit: 'cannot be used: the checksum of .* is wrong',
    truncate: 'cannot be used: it is not a shard',
    another_file: 'cannot be used: it is not a shard',
}


@pytest.fixture(scope='module')
def other_shards(original, tmp_path_factory):
    """The shards of another save, at the same position of the same run."""
    folder = tmp_path_factory.mktemp('other')
    check(lambda: save(folder, 2), folder)
    return shard_files(folder)[::-1]


@pytest.mark.parametrize('fault, words', FAULTS.items())
def test_a_checkpoint_with_such_a_shard_is_skipped(saved, other_shards, capsys, fault, words):
    shard = shard_files(saved)[1]
    fault(shard, other_shards)
    assert find_run(saved, 'pretrain') == str(saved / 'checkpoint_00.pth')
    printed = capsys.readouterr().out
    assert f'skipped {saved}/checkpoint_step.pth: its shard {shard.name} ' in printed and printed.count('\n') == 1
    (saved / 'checkpoint_00.pth').unlink()
    with pytest.raises(
        InputError, match=f'can be resumed, such as .*checkpoint_step.pth: its shard .* {words}.*; copy'
    ):
        find_run(saved, 'pretrain')
    if fault is not flip_a_bit:  # which only the checksums show
        with pytest.raises(InputError, match=f'{shard}: .*; all processes need the same folder'):
            all_states(saved / 'checkpoint_step.pth', read_pth(saved / 'checkpoint_step.pth'))


@pytest.mark.parametrize('shards', [[], {}, 7, {'save': 'a', 'files': ['../x.pth']}, {'save': 'a', 'files': [3]}])
def test_a_checkpoint_with_other_words_about_its_shards_is_none(saved, shards):
    path = saved / 'checkpoint_step.pth'
    torch.save(read_pth(path) | {'shards': shards}, path)
    assert find_run(saved, 'pretrain') == str(saved / 'checkpoint_00.pth')
    remove_old_shards(saved, STARTED)
    assert len(shard_files(saved)) == 2


# ---- leftovers ----


def test_only_superfluous_shards_of_the_run_are_removed(saved, other_shards):
    named = [path.name for path in shard_files(saved)]
    leftovers = [Path(shutil.copy(path, saved)) for path in other_shards]
    others = ['checkpoint_step.e1s4.00000000-00000000.rank1.pth', 'checkpoint_step.e1s4.rank1.pth', 'my.rank1.pth']
    for name in others:
        (saved / name).touch()
    remove_old_shards(saved, STARTED)
    assert not any(path.exists() for path in leftovers)
    assert names(saved) == sorted(['checkpoint_00.pth', 'checkpoint_step.pth', *named, *others])


def test_nothing_is_removed_beside_a_checkpoint_that_cannot_be_opened(saved):
    truncate(saved / 'checkpoint_step.pth', [])
    before = content_of(saved)
    remove_old_shards(saved, STARTED)
    assert content_of(saved) == before


def test_a_run_that_was_killed_in_its_first_save_leaves_nothing_for_the_next(saved, capsys):
    (saved / 'checkpoint_step.pth').unlink()
    remove_old_shards(saved, 2.5)
    assert len(shard_files(saved)) == 2  # there is a checkpoint of the run
    (saved / 'checkpoint_00.pth').unlink()
    remove_old_shards(saved, 2.5)
    assert names(saved) == [] and 'of a checkpoint that was never complete' in capsys.readouterr().out


def test_shards_end_with_their_epoch(saved):
    prune_checkpoints(saved, Status(1, 4, started=STARTED), None)
    assert version_of(saved) == 1
    prune_checkpoints(saved, Status(2, 0, started=STARTED), None)
    assert names(saved) == ['checkpoint_00.pth']
