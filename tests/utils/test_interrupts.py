"""Signals are noted while something is in progress, and stop the process elsewhere."""

import os
import signal
import threading
import time

import pytest

from utils import interrupts
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


def test_a_signal_is_not_lost_where_exceptions_are_ignored(capsys):
    class Deleted:
        def __del__(self):
            send(signal.SIGTERM)

    with pytest.raises(Stopped), handle_signals():
        Deleted()
        time.sleep(5)
        pytest.fail('not reached')
    assert capsys.readouterr().err == ''


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
