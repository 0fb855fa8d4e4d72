"""Signals that ask a run to stop: SIGTERM (preemption), SIGINT (Ctrl-C) and SIGUSR1 (Slurm's warning).

While something is in progress that must not be torn, such as a step, a signal is only noted; everywhere else it raises
`Stopped` at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN = 0.05  # seconds
_requested = 0  # the number of the signal that was noted
_deferred = False


class Stopped(BaseException):
    """A signal stopped the run. message: one line for the user. Not an `Exception`: nothing may swallow it."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number, self.exit_code = number, 128 + number


def name_of(number: int) -> str:
    return signal.Signals(number).name


@contextmanager
def handle_signals() -> Iterator[None]:
    """Handle the signals inside the block, in the main thread; elsewhere they act as before."""
    global _requested, _deferred
    _requested, _deferred = 0, False
    hook = sys.unraisablehook
    with _handled_by(_note):
        sys.unraisablehook = partial(_send_again, hook)
        try:
            yield
        finally:
            sys.unraisablehook = hook
            _requested, _deferred = 0, False


def _send_again(hook: Callable, ignored: 'sys.UnraisableHookArgs') -> None:
    """Where Python ignores exceptions, as in `__del__`, a signal must come once more, a moment later."""
    if isinstance(ignored.exc_value, Stopped):
        threading.Timer(AGAIN, os.kill, (os.getpid(), ignored.exc_value.number)).start()
    else:
        hook(ignored)


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
    impatient = number == signal.SIGINT == _requested
    _requested = _requested or number
    if impatient or not _deferred:
        _stop(number)


def _stop(number: int) -> None:
    raise Stopped(number, f'stopped by {name_of(number)}; --resume continues from the last checkpoint')
