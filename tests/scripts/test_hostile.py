"""Evaluation whose images are gone, and checkpoints that contain code: both end with one line and leave nothing."""

import os
import pickle
import re

import pytest
import torch

import NLVR
import predict
import Pretrain
import Retrieval
import VQA
from dataset.grit.warmstart import saved_order
from reports import batch_grid, masked_words
from tests.helpers import read_rows, write_rows
from tests.processes import run_script
from tests.tiny import arguments
from utils.errors import InputError

# ---- images that are gone ----

SPLITS = {
    'retrieval': (Retrieval, 'retrieval_val', 'batch_size_test', 1),
    'nlvr': (NLVR, 'nlvr_dev', 'batch_size', 2),
    'vqa': (VQA, 'vqa_val', 'batch_size_test', 1),
}  # script, annotation file, the key of its batches, images per row


@pytest.fixture(scope='module')
def checkpoints(shapes, pretrained, vqa_run, tmp_path_factory):
    """{task: a checkpoint to evaluate}"""
    folder = tmp_path_factory.mktemp('tuned')
    flags = ['--checkpoint', str(pretrained)]
    NLVR.main(arguments('nlvr', shapes, folder, 'schedular.epochs=1', 'val_file=null', 'test_file=null', flags=flags))
    return {'retrieval': pretrained, 'nlvr': folder / 'checkpoint_00.pth', 'vqa': vqa_run / 'checkpoint_01.pth'}


def broken_rows(shapes, name, numbers):
    """The rows of a split; the last image of each of some is gone."""
    rows = read_rows(shapes, name)
    for number in numbers:
        if 'images' in rows[number]:
            rows[number]['images'][1] = f'images/gone{number}.jpg'
        else:
            rows[number]['image'] = f'images/gone{number}.jpg'
    return rows


def evaluation_of(task, shapes, tmp_path, checkpoints, numbers, *settings):
    """The argv of an evaluation of a split some of whose images are gone."""
    file = write_rows(tmp_path / 'rows.json', broken_rows(shapes, SPLITS[task][1], numbers))
    flags = ['--evaluate', '--checkpoint', str(checkpoints[task])]
    return arguments(task, shapes, tmp_path / 'out', f'val_file={file}', 'test_file=null', *settings, flags=flags)


@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('task', SPLITS)
def test_an_evaluation_without_its_images_stops(shapes, tmp_path, checkpoints, task, processes):
    """The images of the first and of the last batch: with two processes each has only one, which is allowed."""
    script, name, batch_size, images_per_row = SPLITS[task]
    rows = len(read_rows(shapes, name))
    argv = evaluation_of(task, shapes, tmp_path, checkpoints, [0, rows - 1], f'{batch_size}={-(-rows // 2)}')
    outcomes = run_script(f'{script.__name__}.py', argv, tmp_path, processes)
    [line] = [line for _, _, err in outcomes for line in err.splitlines()]
    words = rf'2 of the {rows * images_per_row} images that the rows of val_file name cannot be read, more than 1%, '
    first = r'the first: .*rows.json, row 0: cannot read the image .*gone\d+.jpg.*; restore the images, or evaluate'
    assert re.match(f'error: (at least )?{words}{first}', line)
    assert [code for code, _, _ in outcomes] == [2] * processes
    written = {path.name for path in (tmp_path / 'out').rglob('*') if path.is_file()}
    assert not {name for name in written if name.endswith(('.json', '.jsonl', '.pth')) or name == 'log.txt'}


@pytest.mark.parametrize('task', SPLITS)
def test_one_missing_image_is_evaluated_blank(shapes, tmp_path, checkpoints, task, capsys):
    SPLITS[task][0].main(evaluation_of(task, shapes, tmp_path, checkpoints, [3]))
    assert capsys.readouterr().out.count('evaluated with a blank image: ') == 1
    assert (tmp_path / 'out' / 'log.txt').read_text().count('\n') == 1


def test_images_that_vanish_during_a_run_choose_no_checkpoint(shapes, tmp_path, checkpoints):
    """The evaluation after the first epoch fails; nothing is validated with blank images."""
    file = write_rows(tmp_path / 'rows.json', broken_rows(shapes, 'retrieval_val', [2, 3]))
    flags = ['--checkpoint', str(checkpoints['retrieval'])]
    argv = arguments('retrieval', shapes, tmp_path / 'out', f'val_file={file}', 'test_file=null', flags=flags)
    with pytest.raises(InputError, match='2 of the 12 images'):
        Retrieval.main(argv)
    assert not list((tmp_path / 'out').glob('checkpoint_best.pth'))


# ---- checkpoints that contain code ----


class Code:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mknod, (self.path,)


@pytest.fixture
def folder(tmp_path, vqa_run, pretrained):
    """A folder with checkpoints of two tasks to which code was added; the file that it makes is `proof`."""
    for name, source in {'vqa.pth': vqa_run / 'checkpoint_01.pth', 'checkpoint_00.pth': pretrained}.items():
        content = torch.load(source, weights_only=True)
        torch.save(content | {'extra': Code(tmp_path / 'proof')}, tmp_path / name)
    return tmp_path


def ask(folder, shapes):
    predict.main(['answer', '--checkpoint', f'{folder}/vqa.pth', '--image', 'a.jpg', '--question', 'what?'])


def fill_in(checkpoint, folder, shapes):
    words = ['--annotations', f'{shapes}/retrieval_test.json', '--words', f'{shapes}/word_kinds.json']
    masked_words.main([str(checkpoint), '--text_encoder', f'{shapes}/vocab', *words])


READERS = {
    'pretrain --checkpoint': lambda folder, shapes: Pretrain.main(
        arguments('pretrain', shapes, folder / 'new', flags=['--checkpoint', f'{folder}/checkpoint_00.pth'])
    ),
    'retrieval --checkpoint': lambda folder, shapes: Retrieval.main(
        arguments('retrieval', shapes, folder / 'new', flags=['--checkpoint', f'{folder}/checkpoint_00.pth'])
    ),
    'nlvr --checkpoint': lambda folder, shapes: NLVR.main(
        arguments('nlvr', shapes, folder / 'new', flags=['--checkpoint', f'{folder}/checkpoint_00.pth'])
    ),
    'vqa --checkpoint': lambda folder, shapes: VQA.main(
        arguments('vqa', shapes, folder / 'new', flags=['--checkpoint', f'{folder}/vqa.pth'])
    ),
    'init_deit': lambda folder, shapes: Pretrain.main(
        arguments('pretrain', shapes, folder / 'new', f'init_deit={folder}/vqa.pth')
    ),
    'resume': lambda folder, shapes: Pretrain.main(arguments('pretrain', shapes, folder, flags=['--resume'])),
    'warm start': lambda folder, shapes: saved_order(str(folder)),
    'predict': ask,
    'masked words of a file': lambda folder, shapes: fill_in(folder / 'checkpoint_00.pth', folder, shapes),
    'masked words of a folder': lambda folder, shapes: fill_in(folder, folder, shapes),
    'batch grid': lambda folder, shapes: batch_grid.main([str(folder), '--out', f'{folder}/grid.png']),
}


@pytest.mark.parametrize('reader', READERS)
def test_code_in_a_checkpoint_never_runs(folder, shapes, reader):
    with pytest.raises(InputError, match=r'(checkpoint_00|vqa)\.pth'):
        READERS[reader](folder, shapes)
    assert not (folder / 'proof').exists()


def test_the_code_would_run(folder):
    with open(folder / 'direct', 'wb') as file:
        pickle.dump(Code(folder / 'proof'), file)
    with open(folder / 'direct', 'rb') as file:
        pickle.load(file)
    assert (folder / 'proof').exists()
