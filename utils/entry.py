"""How every script and tool ends: one line for an error that the user can correct, a traceback for a bug."""

import errno
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from utils import interrupts
from utils.errors import InputError
from utils.interrupts import Stopped, leave

EXIT_CODE = 2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDIES = {
    errno.ENOENT: 'correct the path',
    errno.EEXIST: 'a file has this name; give another path',
    errno.ENOTDIR: 'a file is where a folder must be; give another path',
    errno.EISDIR: 'give the name of a file',
    errno.EACCES: 'change its permissions or give another path',
    errno.EPERM: 'change its permissions or give another path',
    errno.EROFS: 'give a path that you can write to',
}


def run_main(main: Callable[[], object]) -> NoReturn:
    """Run a script's `main` and exit: code 0, or 2 with one line on stderr if the user can correct the error.

    A signal ends with one line, too, and with its own code: 143 for SIGTERM, 130 for Ctrl-C. Of several processes only
    the first that fails prints. `--debug` on the command line keeps the traceback.
    """
    debug = '--debug' in sys.argv
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as the scripts set it while they load
        signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.is_program = True
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # a terminal that lacks a letter is no reason to stop
    try:
        code = main()
        sys.stdout.flush()
    except (Stopped, KeyboardInterrupt) as stop:
        end_by_signal(stop)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            code = 128 + signal.SIGPIPE
            sys.exit(code) if 'torch' not in sys.modules else exit_now(code)
        if debug:
            raise
        from utils import distributed  # imports torch, which the help of a tool does not need

        message = user_message(error) or distributed.failure_of_others(error)
        is_first = distributed.claim_failure()
        if message is None and (is_first or not distributed.has_store()):
            raise
        if is_first:
            distributed.print_failure(f'error: {message}')
        else:
            distributed.await_printing()
        exit_now(EXIT_CODE)  # if not the first, likely a consequence of the error that another process printed
    finally:
        interrupts.is_program = False
    sys.exit(code if isinstance(code, int) else 0)


def reader_left() -> bool:
    """Whether nobody reads what is printed any more, such as `head`, which has enough. Then nothing is printed."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        left = any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, AttributeError):  # no file, or a system without poll
        return False
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def end_by_signal(stop: Stopped | KeyboardInterrupt) -> NoReturn:
    """Exit at once with one line, and with the code that a shell gives a process that a signal ended."""
    code = stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT
    message = str(stop) if isinstance(stop, Stopped) else 'stopped by SIGINT'
    if 'torch' not in sys.modules:  # a tool that does not need it
        print(message, file=sys.stderr)
        sys.exit(code)
    from utils import distributed

    if distributed.claim_failure():
        distributed.print_failure(message)
    else:
        distributed.await_printing()
    leave(code)


def exit_now(code: int) -> NoReturn:
    """Exit. One of several processes exits at once: the others may never answer when the group is closed."""
    from utils import distributed

    if distributed.is_initialized():
        leave(code)
    sys.exit(code)


def user_message(error: BaseException) -> str | None:
    """The line to print for an error that the user can correct; None for a bug."""
    if isinstance(error, InputError):
        text = str(error)
        if text.startswith('Caught '):  # from a DataLoader worker: its traceback comes before the message
            text = re.split(rf'^(?:\w+\.)*{type(error).__name__}: ', text, maxsplit=1, flags=re.MULTILINE)[-1]
        return ' '.join(text.split())
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        path = f'{os.fsdecode(error.filename)}: ' if error.filename is not None else ''
        return f'{path}{error.strerror}: make room and start again with --resume'
    if isinstance(error, OSError) and error.filename is not None:
        path = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
        remedy = REMEDIES.get(error.errno)
        return f'{path}: {error.strerror}' + (f'; {remedy}' if remedy else '')
    if isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError':  # the second is torch's
        what = 'the memory' if isinstance(error, MemoryError) else "the GPU's memory"
        return f'{what} is not enough; set a smaller batch size or grad_checkpointing: true, and continue with --resume'
    if isinstance(error, RuntimeError) and (
        match := re.search(r'DataLoader worker .*killed by signal: (.*)', str(error))
    ):
        return (
            f'a loader process was ended by a signal ({match[1].strip()}), perhaps for its memory; set fewer '
            'num_workers and continue with --resume'
        )
    return None
