"""Signals are noted while something is in progress, and stop the process elsewhere."""

import os
import signal
import threading
import time

import pytest

from utils import interrupts
from utils.entry import run_main
from utils.interrupts import SIGNALS, Stopped, handle_signals


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_is_noted_until_it_may_stop_the_process(number):
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped) as caught, handle_signals():
        interrupts.defer()
        send(number)
        assert interrupts.requested() == number
        interrupts.allow()
    assert caught.value.exit_code == 128 + number and interrupts.requested() == 0
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


def test_a_signal_stops_at_once_where_nothing_is_in_progress():
    with pytest.raises(Stopped, match='stopped by SIGTERM; --resume continues'), handle_signals():
        send(signal.SIGTERM)
        pytest.fail('not reached')


def test_only_a_second_ctrl_c_does_not_wait():
    with handle_signals():
        interrupts.defer()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            send(number)
    with pytest.raises(Stopped), handle_signals():
        interrupts.defer()
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail('not reached')


def in_a_program(body):
    """Run in a forked process as a program -> (exit code, stderr)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 2)
        run_main(body)
    os.close(write)
    with open(read) as file:
        printed = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), printed


def test_a_signal_is_not_lost_where_exceptions_are():
    """In `__del__`, and in a library's `finally` that fails."""

    class Deleted:
        def __del__(self):
            send(signal.SIGTERM)

    def delete():
        with handle_signals():
            Deleted()
            time.sleep(5)

    def finish_badly():
        with handle_signals():
            try:
                send(signal.SIGTERM)
            finally:
                raise AttributeError

    for body in (delete, finish_badly):
        words = 'stopped by SIGTERM; --resume continues from the last checkpoint\n'
        assert in_a_program(body) == (143, words)


def test_a_child_process_leaves_the_signals_of_its_parent_alone():
    """Until it has handlers of its own."""

    def fork():
        with handle_signals():
            pid = os.fork()
            if pid == 0:
                send(signal.SIGTERM)
                os._exit(7)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    assert in_a_program(fork) == (7, '')


def test_other_threads_leave_signals_alone():
    seen = []

    def run():
        with handle_signals(), interrupts.end_at_once():
            seen.extend(signal.getsignal(each) for each in SIGNALS)

    before = [signal.getsignal(each) for each in SIGNALS]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == before
