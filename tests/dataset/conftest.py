"""The fixture of the tests of worker processes."""

import multiprocessing
import os

import pytest

from tests.dataset.groups import CONTEXT


@pytest.fixture
def start():
    """A function that runs another, with a connection to the test, in a process with a group of its own."""
    children = []

    def start(function, *args):
        ours, theirs = multiprocessing.Pipe()

        def main():
            os.setsid()
            function(theirs, *args)

        children.append(CONTEXT.Process(target=main))
        children[-1].start()
        return children[-1], ours

    yield start
    for child in children:
        child.kill()
        child.join()
