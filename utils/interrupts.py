"""Signals that ask a run to stop: SIGTERM (preemption), SIGINT (Ctrl-C) and SIGUSR1 (Slurm's warning).

While something is in progress that must not be torn, such as a step, a signal is only noted. Everywhere else it ends
the process at once: an exception could be lost in a library's `finally` or `__del__`. Only where other Python code has
called a script's `main`, and must continue, `Stopped` is raised.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
is_program = False  # whether the process is ours to end; `run_main` says so
_requested = 0  # the number of the signal that was noted
_deferred = False
_owner = 0  # the process that handles signals; its children inherit the handler for a moment


class Stopped(BaseException):
    """A signal stopped the run. message: one line for the user. Not an `Exception`: nothing may swallow it."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + number


def name_of(number: int) -> str:
    return signal.Signals(number).name


@contextmanager
def handle_signals() -> Iterator[None]:
    """Handle the signals inside the block, in the main thread; elsewhere they act as before."""
    global _requested, _deferred, _owner
    _requested, _deferred, _owner = 0, False, os.getpid()
    with _handled_by(_note):
        try:
            yield
        finally:
            _requested, _deferred = 0, False


@contextmanager
def end_at_once() -> Iterator[None]:
    """Inside the block a signal ends the process at once, without a line: for calls that wait without Python's help."""
    with _handled_by(signal.SIG_DFL):
        yield


@contextmanager
def _handled_by(handler: Callable | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def requested() -> int:
    """The number of the signal that asks to stop, 0 if there was none."""
    return _requested


def defer() -> None:
    """From here on a signal is only noted: the caller asks `requested` where it can stop."""
    global _deferred
    _deferred = True


def allow() -> None:
    """From here on a signal stops the run at once, also one that was noted before."""
    global _deferred
    _deferred = False
    if _requested:
        _stop(_requested)


def _note(number: int, frame: FrameType | None) -> None:
    """The handler. A second Ctrl-C stops at once, whatever is in progress."""
    global _requested
    if os.getpid() != _owner:
        return
    impatient = number == signal.SIGINT == _requested
    _requested = _requested or number
    if _deferred and not impatient:
        return
    if not is_program:
        _stop(number)
    if os.environ.get('RANK', '0') == '0':  # of several processes, which are signaled together
        os.write(2, f'{_words(number)}\n'.encode())  # print may be what was interrupted
    leave(128 + number)


def _stop(number: int) -> NoReturn:
    raise Stopped(number, _words(number))


def _words(number: int) -> str:
    return f'stopped by {name_of(number)}; --resume continues from the last checkpoint'


def leave(code: int) -> NoReturn:
    """End this process and its children without closing anything."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    with contextlib.suppress(Exception):
        for child in multiprocessing.active_children():  # they share the sockets, which would stay open for seconds
            child.kill()
    os._exit(code)
