"""An output folder belongs to one run at a time, also after crashes, and on file systems without flock."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time

import pytest

from utils import ownership
from utils.errors import InputError
from utils.files import temporary_name
from utils.ownership import own_folder, release_folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(ownership, 'WAIT', 0.2)
    yield
    release_folder()


@pytest.fixture(params=[None, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def file_system(request, monkeypatch):
    number = request.param
    if number is not None:

        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, 'flock', refuse)
    return number


def owner(folder, ready):
    own_folder(folder)
    ready.set()
    time.sleep(100)


@pytest.fixture
def another_owner(tmp_path, file_system):
    """A process that owns the folder."""
    context = multiprocessing.get_context('fork')
    ready = context.Event()
    process = context.Process(target=owner, args=(tmp_path, ready))
    process.start()
    assert ready.wait(10)
    yield process
    process.kill()
    process.join()


def test_a_second_owner_is_refused(tmp_path, another_owner):
    with pytest.raises(InputError, match='another run is using this folder; give another --output_dir'):
        own_folder(tmp_path)


def test_a_lock_ends_with_its_owner(tmp_path, another_owner):
    os.kill(another_owner.pid, signal.SIGKILL)
    another_owner.join()
    own_folder(tmp_path)


def test_a_folder_can_be_owned_again(tmp_path, file_system):
    own_folder(tmp_path)
    own_folder(tmp_path)
    release_folder()
    own_folder(tmp_path)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path, file_system):
    temporary_name(tmp_path / 'checkpoint_00.pth').write_bytes(b'half')
    (tmp_path / 'checkpoint_00.pth').touch()
    (tmp_path / 'result').mkdir()
    temporary_name(tmp_path / 'result' / 'nlvr_val.jsonl').touch()
    own_folder(tmp_path)
    assert not list(tmp_path.rglob('*.tmp')) and (tmp_path / 'checkpoint_00.pth').exists()
