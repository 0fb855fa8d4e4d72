"""The converter of easy-VQA, with a small package of the same name; the Slurm script, with stand-ins for `srun` and
`scontrol`; and the commands of docs/cluster.md.
"""

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import run as torchrun

from tests.tiny import SCRIPTS
from utils.arguments import create_parser
from utils.errors import InputError

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / 'examples' / 'convert_easy_vqa.py'
SLURM = ROOT / 'examples' / 'slurm.sh'
CLUSTER = (ROOT / 'docs' / 'cluster.md').read_text()


def convert(monkeypatch, tmp_path, argv, package):
    """Run the converter's main in another working directory, with `package` as easy_vqa."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'easy_vqa', package)
    monkeypatch.setattr(sys, 'path', [str(SCRIPT.parent), *sys.path])
    runpy.run_path(str(SCRIPT), run_name='examples.convert_easy_vqa')['main'](argv)


def easy_vqa(answer):
    questions = lambda: (['is there a circle?'], [answer], [0])  # noqa: E731
    images = lambda: {0: 'a.png'}  # noqa: E731
    names = ('get_train_questions', 'get_test_questions', 'get_train_image_paths', 'get_test_image_paths')
    package = dict(zip(names, (questions, questions, images, images), strict=True))
    return SimpleNamespace(get_answers=lambda: ['yes', 'no'], **package)


def test_help_needs_no_package(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        convert(monkeypatch, tmp_path, ['--help'], None)  # None: importing it fails
    assert end.value.code == 0 and '--out' in capsys.readouterr().out
    with pytest.raises(InputError, match='the package easy-vqa is missing: pip install easy-vqa'):
        convert(monkeypatch, tmp_path, [], None)


@pytest.mark.parametrize('name', ['answer_list.json', 'vocab/vocab.txt', 'vqa_test.json'])
def test_files_of_others_are_not_overwritten(monkeypatch, tmp_path, name):
    for _ in range(2):  # the second time its own files are there
        convert(monkeypatch, tmp_path, ['--out', 'out'], easy_vqa('yes'))
    assert json.loads((tmp_path / 'out' / 'vqa_train.json').read_text())[0]['answer'] == ['yes'] * 10
    (tmp_path / 'out' / name).write_text('mine')
    before = {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    with pytest.raises(InputError, match=f'out/{name} is another file: remove it, or give another --out'):
        convert(monkeypatch, tmp_path, ['--out', 'out'], easy_vqa('yes'))
    assert {path: path.read_bytes() for path in before} == before


# ---- Slurm ----

# Two nodes with a task each. Like Slurm it sends the warning to the tasks, and ends with the highest of their codes.
SRUN = """
    import os, signal, subprocess, sys

    assert sys.argv[1:3] == ['--kill-on-bad-exit=0', '--wait=60'], sys.argv
    tasks = []
    signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
    for rank in '01':
        own = {'SLURM_PROCID': rank, 'SLURM_LOCALID': '0', 'SLURM_NTASKS': '2'}
        tasks.append(subprocess.Popen(sys.argv[3:], env=os.environ | own))
    open('srun.new', 'w').write(str(os.getpid()))
    os.rename('srun.new', 'srun.pid')
    codes = [task.wait() for task in tasks]
    sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
# Says where the processes meet, and notes that it was asked to requeue the job.
SCONTROL = """
    import sys

    if sys.argv[1:3] == ['show', 'hostnames']:
        print('127.0.0.1', 'second', sep='\\n')
    else:
        open('scontrol.log', 'a').write(' '.join(sys.argv[1:]) + chr(10))
"""


def start_slurm(tmp_path, *argv, srun=SRUN, **environment):
    """Start examples/slurm.sh as the batch script of a job."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, program in (('srun', srun), ('scontrol', SCONTROL)):
        (folder / name).write_text(f'#!{sys.executable}\n{textwrap.dedent(program)}')
        (folder / name).chmod(0o755)
    job = {'SLURM_JOB_ID': '4711', 'SLURM_JOB_NODELIST': 'n[1-2]', 'PYTHON': sys.executable}
    job |= {'PATH': f'{folder}:{os.environ["PATH"]}', 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(
        ['bash', str(SLURM), *map(str, argv)],
        cwd=tmp_path,
        env=os.environ | job | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def requeued(tmp_path):
    path = tmp_path / 'scontrol.log'
    return path.read_text().splitlines() if path.exists() else []


def test_the_syntax_of_the_slurm_script():
    subprocess.run(['bash', '-n', str(SLURM)], check=True)
    lines = SLURM.read_text().splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith('#SBATCH')]
    commands = [number for number, line in enumerate(lines) if line and not line.startswith('#')]
    assert len(options) == 10 and max(options) < min(commands)  # Slurm reads no further
    assert '#SBATCH --signal=USR1@90' in lines and '#SBATCH --requeue' in lines


# What a training script does with signals, without the seconds that its modules take to load;
# tests/scripts/test_signals.py has two real processes.
PROGRAM = """
    import os, time
    from utils import interrupts
    from utils.entry import run_main

    def main():
        with interrupts.handle_signals():
            interrupts.defer()
            open('ready' + os.environ['RANK'], 'w').close()
            end = time.monotonic() + 20
            while not interrupts.requested():
                assert time.monotonic() < end, 'no signal'
                time.sleep(0.01)
            open('saved' + os.environ['RANK'], 'w').close()
            raise interrupts.Stopped(interrupts.requested(), 'stopped')

    run_main(main)
"""


def test_the_warning_reaches_every_task_and_the_job_is_requeued(tmp_path):
    (tmp_path / 'program.py').write_text(textwrap.dedent(PROGRAM))
    job = start_slurm(tmp_path, 'program.py')
    deadline = time.monotonic() + 15
    while not all((tmp_path / name).exists() for name in ('ready0', 'ready1', 'srun.pid')):
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.02)
    os.kill(int((tmp_path / 'srun.pid').read_text()), signal.SIGUSR1)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 138 and sorted(err) == sorted('stopped\n' * 2)  # two processes write at the same time
    assert (tmp_path / 'saved0').exists() and (tmp_path / 'saved1').exists()
    assert requeued(tmp_path) == ['requeue 4711']


def test_our_launcher_passes_slurms_warning_on(tmp_path):
    """SIGUSR1 to the launcher alone, which ends torchrun and reaches none of its processes."""
    (tmp_path / 'program.py').write_text(textwrap.dedent(PROGRAM))
    argv = [sys.executable, '-m', 'utils.launch', '--standalone', '--nproc_per_node=1', 'program.py']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    job = subprocess.Popen(argv, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / 'ready0').exists():
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert 'stopped' in job.communicate(timeout=60)[1] and job.returncode == 138
    assert (tmp_path / 'saved0').exists()


@pytest.mark.parametrize(
    'code, restarts, again',
    [(138, '', True), (138, '99', True), (138, '100', False), (0, '', False), (2, '', False), (143, '3', False)],
)
def test_only_a_warned_job_is_requeued(tmp_path, code, restarts, again):
    """Not one that finished, failed or was canceled, and none without end."""
    restarts = {'SLURM_RESTART_COUNT': restarts} if restarts else {}
    job = start_slurm(tmp_path, 'x.py', srun=f'raise SystemExit({code})', **restarts)
    _, err = job.communicate(timeout=60)
    assert job.returncode == code and requeued(tmp_path) == ['requeue 4711'] * again
    assert ('not again' in err) == (restarts.get('SLURM_RESTART_COUNT') == '100')


def test_a_task_gets_what_the_program_reads(tmp_path):
    """Its rank, its place on the node, where to meet, and all arguments as they are."""
    program = tmp_path / 'a program.py'
    names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'SRUN_CPUS_PER_TASK')
    seen = f'[os.environ[name] for name in {names}], sys.argv[1:]'
    program.write_text(f'import json, os, sys\njson.dump([{seen}], open(os.environ["RANK"], "w"))')
    job = start_slurm(tmp_path, program, '--set', "itm_negatives={0: 'hard'}", SLURM_CPUS_PER_TASK='6')
    _, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    for rank in '01':
        values, argv = json.loads((tmp_path / rank).read_text())
        assert values == [rank, '0', '2', '127.0.0.1', '6']
        assert argv == ['--set', "itm_negatives={0: 'hard'}", '--resume']
    assert requeued(tmp_path) == []


def test_a_job_without_a_command_says_how(tmp_path):
    job = start_slurm(tmp_path)
    assert 'usage: sbatch examples/slurm.sh' in job.communicate(timeout=60)[1] and job.returncode == 2


# ---- the commands of docs/cluster.md ----


def launched():
    """The commands of the page that start a launcher: (its arguments, the words of the line)."""
    text = re.sub(r'\\\\\n\s*', ' ', '\n'.join(re.findall(r'```bash\n(.*?)```', CLUSTER, re.DOTALL)))
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        for start in (['torchrun'], ['python', '-m', 'utils.launch'], ['python3', '-m', 'torch.distributed.launch']):
            if words[: len(start)] == start:
                yield [word for word in words[len(start) :] if word != '--use_env'], line


@pytest.mark.parametrize('argv', [argv for argv, _ in launched()], ids=[str(i) for i, _ in enumerate(launched())])
def test_the_launchers_understand_the_page(argv):
    args = torchrun.get_args_parser().parse_args(argv)
    task = {f'{name}.py': task for task, name in SCRIPTS.items()}[args.training_script]
    parsed = create_parser(task, '').parse_args(args.training_script_args)
    assert parsed.resume and (ROOT / parsed.config).exists()


def test_the_page_shows_every_launcher_and_all_lines_of_the_example():
    lines = [line for _, line in launched()]
    assert len(lines) >= 5 and any('--rdzv_backend=c10d' in line for line in lines)
    for option in re.findall(r'^#SBATCH (--[a-z-]+)', SLURM.read_text(), re.MULTILINE):
        assert f'`{option}' in CLUSTER or option in ('--job-name', '--output'), option
