"""torch's launcher without its tracebacks: one line for an error, and the exit code of the processes.

    python -m utils.launch --nproc_per_node=4 Pretrain.py --config ./configs/Pretrain.yaml --resume

It takes the arguments of `torchrun`, also --nnodes, --max-restarts and the others. A preempted or interrupted run ends
with 143, 138 or 130, an error of the user with 2; `torch.distributed.launch` ends with 1 and a traceback of its own.
"""

import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the modules load prints no traceback

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from utils.entry import run_main
from utils.errors import InputError

# Passed on to the processes; torchrun's default lacks the last, Slurm's warning.
SIGNALS = 'SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1'


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes and wait for their end -> the exit code."""
    parser = run.get_args_parser()
    parser.error = refuse
    parser.set_defaults(signals_to_handle=SIGNALS)
    args = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)  # the launcher's own account of a failure, tens of lines
    try:
        run.run(args)
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        return report(*error.get_first_failure())
    except (ValueError, AssertionError, RuntimeError, OSError) as error:
        refuse(' '.join(str(error).split())[:200] or 'the processes cannot be started')
    return 0


def refuse(message: str) -> NoReturn:
    raise InputError(f'{message}; --help lists the arguments of the launcher')


def report(rank: int, failure: ProcessFailure) -> int:
    """Name the process that failed first, unless it printed its error itself -> the exit code."""
    if failure.exitcode >= 0:
        return failure.exitcode
    name = signal.Signals(-failure.exitcode).name
    cause = ', perhaps for its memory (see the system log)' if name == 'SIGKILL' else ''
    print(f'error: rank {rank} was ended by {name}{cause}; --resume continues the run', file=sys.stderr)
    return 128 - failure.exitcode


if __name__ == '__main__':
    run_main(main)
