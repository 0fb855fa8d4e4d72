"""A main process with a process group of its own, and what is left of the group after its end."""

import multiprocessing
import os
import signal
import time

CONTEXT = multiprocessing.get_context('fork')


def members(group):
    """The processes of a group that run."""
    found = []
    for name in filter(str.isdecimal, os.listdir('/proc')):
        try:
            with open(f'/proc/{name}/stat') as file:
                state, _, of_group = file.read().rpartition(')')[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state != 'Z':
            found.append(int(name))
    return found


def check_gone(group, seconds):
    deadline = time.monotonic() + seconds
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.01)
    left = members(group)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
