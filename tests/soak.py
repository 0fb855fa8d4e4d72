"""Kill runs of the five scripts at random, for as long as you like: resumed, they must end as uninterrupted ones.

    python -m tests.soak --kills 40 --seed 0

Each run is killed up to three times, at a random moment, by SIGKILL, SIGTERM, SIGINT or SIGUSR1 to a random process,
and then resumed to its end. Weights, optimizer, orders, generators and log must equal those of a run that nobody
killed, to the bit, and no temporary file may be left.
"""

import importlib
import random
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

from dataset.shapes import make_dataset
from tests.helpers import differing, read_log, state_of_run
from tests.processes import SignalAfter, run_script
from tests.tiny import SCRIPTS, arguments
from utils.arguments import Parser, positive_int, seed
from utils.entry import run_main
from utils.errors import InputError

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LONGEST_WAIT = 20
SETTINGS = {
    'pretrain': ('save_every=4', 'itm_negatives=auto', 'use_momentum=true', 'grit_quantile=auto'),
    'retrieval': ('batch_size_train=16', 'save_every=3', 'use_momentum=true', 'distill=true', 'queue_size=64'),
    'nlvr_pretrain': ('save_every=3',),
    'nlvr': ('batch_size=32', 'save_every=3', 'distill=true', 'alpha=0.4'),
    'vqa': ('batch_size_train=32', 'save_every=3', 'keep_checkpoints=1'),
}


class Soak:
    """Runs on the small synthetic dataset, in a folder. references: {(task, processes): (folder, seconds)}."""

    def __init__(self, folder):
        self.folder, self.shapes, self.references = folder, folder / 'shapes', {}
        make_dataset(self.shapes, 0, {'train': 62, 'val': 12, 'test': 13})
        for name in SCRIPTS.values():  # forked processes need not import them
            importlib.import_module(name)

    def run(self, task, output, processes, num_workers=0, faults=None):
        """Run a script -> [exit code of each process, what they printed on stderr]."""
        argv = arguments(task, self.shapes, output, *SETTINGS[task], f'num_workers={num_workers}', flags=['--resume'])
        # As a launcher does, end processes that wait for one that was killed before they met.
        seconds = LONGEST_WAIT if faults else 120
        outcomes = run_script(f'{SCRIPTS[task]}.py', argv, self.folder, processes, seconds, faults)
        return [code for code, _, _ in outcomes], ''.join(err for _, _, err in outcomes)

    def reference(self, task, processes):
        """The folder of a run that nobody killed, and the seconds that it took."""
        if (task, processes) not in self.references:
            output, started = self.folder / f'{task} {processes}', time.monotonic()
            codes, printed = self.run(task, output, processes)
            assert codes == [0] * processes, printed
            self.references[task, processes] = output, time.monotonic() - started
        return self.references[task, processes]

    def kill_and_compare(self, draw):
        """One run, killed as `draw` says, and then resumed -> (number of kills, what differs, in words)."""
        task, processes = draw.choice(list(SCRIPTS)), draw.choice((1, 1, 2, 3))
        expected, seconds = self.reference(task, processes)
        output, kills, words = self.folder / 'run', 0, [task, f'{processes} process(es)']
        shutil.rmtree(output, ignore_errors=True)
        for _ in range(draw.randint(1, 3)):
            number, rank = draw.choice(SIGNALS), draw.randrange(processes)
            after, workers = draw.uniform(0, seconds), draw.choice((0, 0, 1, 2))
            codes, printed = self.run(task, output, processes, workers, {rank: SignalAfter(after, number)})
            if not any(codes):
                break  # it ended before the signal came
            kills += 1
            words.append(f'{signal.Signals(number).name} to rank {rank} after {after:.2f} s')
            assert 'Traceback' not in printed, ', '.join(words) + '\n' + printed
        codes, printed = self.run(task, output, processes)
        assert codes == [0] * processes, ', '.join(words) + '\n' + printed
        return kills, [', '.join(words), *compare(output, expected)]


def compare(output, expected):
    """What differs between two finished runs, in words."""
    faults = []
    # A run that was killed before its first checkpoint leaves its config.yaml, which may have had other num_workers.
    superfluous = re.compile(r'\.lock|config\.\d+\.yaml')
    files = [
        sorted(path.name for path in folder.iterdir() if not superfluous.fullmatch(path.name))
        for folder in (output, expected)
    ]
    if files[0] != files[1]:
        faults.append(f'files {files[0]} instead of {files[1]}')
    if read_log(output) != read_log(expected):
        faults.append('log.txt differs')
    states = [state_of_run(folder / 'checkpoint_01.pth') for folder in (output, expected)]
    if names := differing(*states):
        faults.append(f'{len(names)} tensors differ, such as {names[0]}')
    return faults


def main(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=positive_int, default=40, help='how many')
    parser.add_argument('--seed', type=seed, default=0, help='of all random choices')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix='soak-') as folder:
        soak, draw = Soak(Path(folder)), random.Random(args.seed)
        kills, runs, faulty = 0, 0, 0
        while kills < args.kills:
            more, (words, *faults) = soak.kill_and_compare(draw)
            kills, runs, faulty = kills + more, runs + 1, faulty + bool(faults)
            print(f'{kills:4} kills: {words}: ' + ('; '.join(faults) or 'equal'), flush=True)
    if faulty:
        raise InputError(f'{faulty} of {runs} runs with {kills} kills differ from uninterrupted ones')
    print(f'{runs} runs with {kills} kills equal uninterrupted ones to the bit')


if __name__ == '__main__':
    run_main(main)
