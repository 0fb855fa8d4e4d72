"""Retrieval.py end to end on the small synthetic dataset: what it writes, that the number of processes changes nothing,
what it refuses.
"""

import sys
from types import SimpleNamespace

import pytest
import torch

import Retrieval
from engine import TrainingRun
from evaluation import retrieval_recall
from tests.evaluation.test_eccv import StandIn
from tests.helpers import differing, read_log, read_pth, read_rows, weights, write_rows
from tests.processes import KILLED, DieAt, check_run, run, tail
from tests.reference import load_reference
from tests.tiny import arguments
from utils import distributed
from utils.errors import InputError
from utils.setup import unwrap

RECALL = list(load_reference('recall')['result'])
STEPS = 62 * 2 // 8  # 62 scenes of two captions each, in batches of 8
ONE_STEP = ('batch_size_train=100', 'schedular.epochs=1')


def evaluating(shapes, output, checkpoint, *settings, flags=()):
    """The argv of an evaluation of a checkpoint."""
    flags = ['--evaluate', '--checkpoint', str(checkpoint), *flags]
    return arguments('retrieval', shapes, output, *settings, flags=flags)


@pytest.fixture(scope='module')
def fine_tuned(shapes, pretrained, tmp_path_factory):
    """The folder of two tiny epochs from a pre-training checkpoint."""
    folder = tmp_path_factory.mktemp('fine_tuned')
    Retrieval.main(arguments('retrieval', shapes, folder, flags=['--checkpoint', str(pretrained)]))
    return folder


@pytest.fixture(scope='module')
def best(fine_tuned):
    return fine_tuned / 'checkpoint_best.pth'


def test_what_a_run_writes(fine_tuned, best):
    names = {path.name for path in fine_tuned.iterdir()} - {'.lock'}
    assert names == {'checkpoint_00.pth', 'checkpoint_01.pth', 'checkpoint_best.pth', 'config.yaml', 'log.txt'}
    log = read_log(fine_tuned)
    assert [record['epoch'] for record in log] == [0, 1]
    metrics = [f'{split}_{scores}{key}' for split in ('val', 'test') for scores in ('', 'itc_') for key in RECALL]
    trained = {'train_loss_itc', 'train_loss_itm', 'train_itm_acc', 'train_no_negative'}
    for record in log:
        assert [key for key in record if key.startswith(('val_', 'test_'))] == metrics
        assert set(record) - set(metrics) == {'epoch', 'train_lr'} | trained
    number = max(log, key=lambda record: record['val_r_mean'])['epoch']
    assert best.read_bytes() == (fine_tuned / f'checkpoint_{number:02d}.pth').read_bytes()
    last = read_pth(fine_tuned / 'checkpoint_01.pth')
    assert last['epoch'] == 1 and last['model']['queue_ptr'].item() == 2 * STEPS * 8


def test_momentum_encoders_start_as_they_should(shapes, pretrained, tmp_path, capsys):
    """From a pre-training checkpoint of this kind they start at random, with a message; --copy_init copies the
    weights.
    """
    flags = ['--checkpoint', str(pretrained)]
    settings = (*ONE_STEP, 'schedular.warmup_lr=0')
    key = 'visual_encoder_m.patch_embed.proj.weight'
    online = weights(pretrained)['visual_encoder.patch_embed.proj.weight']
    Retrieval.main(arguments('retrieval', shapes, tmp_path / 'random', *settings, flags=flags))
    assert 'momentum encoders: not in a checkpoint' in capsys.readouterr().out
    assert not torch.allclose(weights(tmp_path / 'random' / 'checkpoint_00.pth')[key], online, atol=1e-3)
    Retrieval.main(arguments('retrieval', shapes, tmp_path / 'copied', *settings, flags=[*flags, '--copy_init']))
    assert 'momentum encoders: copies of the loaded weights' in capsys.readouterr().out
    torch.testing.assert_close(weights(tmp_path / 'copied' / 'checkpoint_00.pth')[key], online)


def test_the_best_checkpoint_can_be_chosen_on_the_test_split(shapes, tmp_path, monkeypatch):
    """Metrics that fall on validation and rise on test choose the first or the last epoch."""
    metrics = iter([9.0, 1.0, 8.0, 2.0, 9.0, 1.0, 8.0, 2.0])  # val and test of each epoch
    monkeypatch.setattr(
        Retrieval,
        'retrieval_recall',
        lambda scores, *rest: dict.fromkeys(RECALL, next(metrics) if scores.min() == -100 else 0.0),
    )
    for flags, name in (([], 'checkpoint_00.pth'), (['--select_on', 'test'], 'checkpoint_01.pth')):
        folder = tmp_path / name[:-4]
        Retrieval.main(arguments('retrieval', shapes, folder, 'batch_size_train=100', flags=flags))
        assert (folder / 'checkpoint_best.pth').read_bytes() == (folder / name).read_bytes()
    assert not list(metrics)  # all were used


# ---- evaluation ----


def saving_scores(folder):
    """A main for `run` that saves the scores of each split, to the bit, as rank 0 has them."""

    def main(argv):
        original = Retrieval.score

        def score(model, dataset, *rest):
            scores = original(model, dataset, *rest)
            if distributed.is_main():
                torch.save(tuple(scores), folder / f'{dataset.split}.pt')
            return scores

        Retrieval.score = score
        Retrieval.main(argv)

    return main


@pytest.mark.slow
def test_evaluation_is_the_same_to_the_bit_in_any_number_of_processes(shapes, best, tmp_path, monkeypatch):
    """13 images in batches of 4: of five processes the fifth has nothing; texts are in batches of 16."""
    monkeypatch.setattr(Retrieval, 'TEXTS_PER_BATCH', 16)
    found = {}
    for processes in (1, 2, 3, 5):
        folder = tmp_path / str(processes)
        folder.mkdir()
        flags = ['--page', str(folder / 'page.html')]
        argv = evaluating(shapes, folder, best, 'batch_size_test=4', 'k_test=5', flags=flags)
        check_run(saving_scores(folder), argv, tmp_path / 'log', processes)
        found[processes] = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != '.lock'}
    assert found[1].keys() == {'val.pt', 'test.pt', 'log.txt', 'page.html'}
    assert found[1] == found[2] == found[3] == found[5]
    sim, i2t, t2i = read_pth(tmp_path / '1' / 'test.pt')
    assert sim.shape == i2t.shape == t2i.t().shape == (13, 39)
    assert (i2t > -100).sum(dim=1).eq(5).all() and (t2i > -100).sum(dim=1).eq(5).all()


def test_two_processes_give_the_metrics_of_one(shapes, best, tmp_path):
    """The single process may use more threads, which must not matter."""
    folders = tmp_path / 'one', tmp_path / 'two'
    argvs = [evaluating(shapes, folder, best, 'batch_size_test=4') for folder in folders]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    Retrieval.main(argvs[0])
    torch.set_num_threads(threads)
    check_run(Retrieval.main, argvs[1], tmp_path / 'log', 2)
    assert read_log(folders[0]) == read_log(folders[1]) and len(read_log(folders[0])) == 1


def test_zero_shot_and_itc_only(shapes, pretrained, tmp_path, capsys):
    """A pre-training checkpoint is evaluated as it is; without re-ranking both groups of metrics are those of ITC."""
    argv = evaluating(shapes, tmp_path, pretrained)
    Retrieval.main(argv)
    assert 'top 4 re-ranked' in capsys.readouterr().out
    Retrieval.main([*argv, '--set', 'k_test=0'])
    assert 're-ranked' not in capsys.readouterr().out
    Retrieval.main([*argv, '--set', 'k_test=1000', '--set', 'val_file=null'])  # more than there are candidates
    full, itc, everything = read_log(tmp_path)
    assert all(
        full[f'{split}_itc_{key}'] == itc[f'{split}_{key}'] == itc[f'{split}_itc_{key}']
        for split in ('val', 'test')
        for key in RECALL
    )
    assert everything['test_itc_r_mean'] == full['test_itc_r_mean'] and 'val_r_mean' not in everything
    assert not list(tmp_path.glob('*.pth'))


def test_recall_is_that_of_the_scores(shapes, best, tmp_path):
    check_run(saving_scores(tmp_path), evaluating(shapes, tmp_path, best), tmp_path / 'log')
    rows = read_rows(shapes, 'retrieval_test')
    txt2img = dict(enumerate(i for i, row in enumerate(rows) for _ in row['caption']))
    img2txt = {image: [text for text in txt2img if txt2img[text] == image] for image in range(len(rows))}
    sim, i2t, t2i = read_pth(tmp_path / 'test.pt')
    record = read_log(tmp_path)[0]
    for prefix, scores in (('test_', (i2t, t2i)), ('test_itc_', (sim, sim.t()))):
        expected = retrieval_recall(*scores, txt2img, img2txt)
        assert {key: record[prefix + key] for key in RECALL} == expected


def test_evaluation_inside_a_run_is_that_of_its_checkpoint(shapes, fine_tuned, tmp_path):
    Retrieval.main(evaluating(shapes, tmp_path, fine_tuned / 'checkpoint_01.pth'))
    (record,), of_run = read_log(tmp_path), read_log(fine_tuned)[1]
    assert record.pop('checkpoint') == str(fine_tuned / 'checkpoint_01.pth')
    assert record == {key: value for key, value in of_run.items() if key.startswith(('val_', 'test_'))}


def test_eccv_caption_adds_its_metrics_of_the_test_split(shapes, pretrained, tmp_path, monkeypatch, capsys):
    """Of re-ranked and of ITC's scores, with annotations by which exactly COCO's own pairs are correct."""
    monkeypatch.setitem(sys.modules, 'eccv_caption', SimpleNamespace(Metrics=StandIn))
    rows = read_rows(shapes, 'retrieval_test')
    for number, row in enumerate(rows):
        row |= {'image_id': 500 - number, 'caption_ids': [10 * number + i for i in range(len(row['caption']))]}
    truth = {
        'i2t': {row['image_id']: row['caption_ids'] for row in rows},
        't2i': {caption: [row['image_id']] for row in rows for caption in row['caption_ids']},
    }
    monkeypatch.setattr(StandIn.__init__, '__defaults__', (truth, truth))
    settings = (f'test_file={write_rows(tmp_path / "rows.json", rows)}', 'eccv_caption=true')
    Retrieval.main(evaluating(shapes, tmp_path, pretrained, *settings))
    (record,) = read_log(tmp_path)
    assert capsys.readouterr().out.count('CxC in %') == 1
    for prefix in ('test_', 'test_itc_'):
        cxc = {key: record[f'{prefix}cxc_{key}'] for key in RECALL if not key.endswith('mean')}
        assert cxc == pytest.approx({key: record[prefix + key] for key in cxc})
        assert record[f'{prefix}eccv_txt_r1'] == pytest.approx(record[f'{prefix}txt_r1'])
    assert sum('eccv' in key or 'cxc' in key for key in record) == 24 and record['test_cxc_img_r5'] not in (0, 100)
    Retrieval.main(evaluating(shapes, tmp_path / 'without', pretrained, settings[0]))
    without = read_log(tmp_path / 'without')[0]
    assert without == {key: value for key, value in record.items() if 'eccv' not in key and 'cxc' not in key}


def test_eccv_caption_is_refused_before_any_work(shapes, tmp_path, monkeypatch):
    """Without ids, without the package, without a test split, and with a part of the test split."""
    rows = [row | {'image_id': 1, 'caption_ids': [1, 2, 3]} for row in read_rows(shapes, 'retrieval_test')[:1]]
    with_ids = f'test_file={write_rows(tmp_path / "rows.json", rows)}'
    for package, setting, message in (
        (SimpleNamespace(Metrics=StandIn), 'k_test=4', "retrieval_test.json, row 0: it lacks COCO's ids"),
        (None, with_ids, 'pip install eccv-caption'),
        (SimpleNamespace(Metrics=StandIn), 'test_file=null', 'eccv_caption: it evaluates test_file, which is missing'),
        (SimpleNamespace(Metrics=StandIn), with_ids, 'eccv_caption: test_file lacks'),
    ):
        monkeypatch.setitem(sys.modules, 'eccv_caption', package)
        with pytest.raises(InputError, match=message):
            Retrieval.main(arguments('retrieval', shapes, tmp_path / 'out', 'eccv_caption=true', setting))
    assert not list((tmp_path / 'out').glob('*.pth'))


# ---- resumption ----


POINTS = {
    1: [DieAt(torch.optim.AdamW, 'step', 5), DieAt(Retrieval, 'retrieval_recall', 2)],
    2: [DieAt(torch.optim.AdamW, 'step', 5), DieAt(TrainingRun, 'end_epoch', 1, after=True)],
}


def saving_every_rank(folder):
    """A main for `run` that saves each rank's own weights, copies and queue at the end of an epoch."""

    def main(argv):
        original = TrainingRun.end_epoch

        def end_epoch(run, record, metric=None):
            torch.save(unwrap(run.model).state_dict(), folder / f'{record["epoch"]}.{distributed.rank()}.pt')
            original(run, record, metric)

        TrainingRun.end_epoch = end_epoch
        Retrieval.main(argv)

    return main


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_killed_and_resumed_equals_uninterrupted(shapes, pretrained, tmp_path, processes):
    """Killed inside an epoch and at its end: the same weights, momentum copies, queue and log as without, on every
    rank.
    """
    settings = (f'batch_size_train={16 // processes}', 'save_every=3', 'queue_size=150', 'distill=true', 'alpha=0.4')
    flags = ['--resume', '--checkpoint', str(pretrained)]

    def argv(folder):
        return arguments('retrieval', shapes, tmp_path / folder, *settings, flags=flags)

    log = tmp_path / 'log'
    check_run(saving_every_rank(tmp_path), argv('uninterrupted'), log, processes)
    for epoch in (0, 1):
        first, *others = (read_pth(tmp_path / f'{epoch}.{rank}.pt') for rank in range(processes))
        assert all(differing(first, other) == [] for other in others)
    for death in POINTS[processes]:
        assert run(Retrieval.main, argv('killed'), log, processes, death)[0] == KILLED, tail(log)
    check_run(Retrieval.main, argv('killed'), log, processes)
    folders = tmp_path / 'uninterrupted', tmp_path / 'killed'
    uninterrupted, killed = (weights(folder / 'checkpoint_01.pth') for folder in folders)
    assert differing(uninterrupted, killed) == []
    assert (folders[0] / 'log.txt').read_text() == (folders[1] / 'log.txt').read_text()
    assert uninterrupted['queue_ptr'].item() == 2 * 7 * 16 % 150  # the features of all ranks, one after another
    assert (uninterrupted['idx_queue'] >= 0).all()


# ---- bad input, and other settings ----


def test_one_caption_per_image_and_a_bad_image(shapes, pretrained, tmp_path):
    """Strings as captions, two images, one of them unreadable: ranked with a blank one, or refused with its row."""
    rows = [row | {'caption': row['caption'][0]} for row in read_rows(shapes, 'retrieval_test')[:2]]
    (tmp_path / 'broken.jpg').write_text('<html>not found</html>')
    rows[1]['image'] = str(tmp_path / 'broken.jpg')
    settings = (f'test_file={write_rows(tmp_path / "rows.json", rows)}', 'val_file=null', 'images_outside_root=true')
    flags = ['--page', str(tmp_path / 'page.html')]
    Retrieval.main(evaluating(shapes, tmp_path, pretrained, *settings, flags=flags))
    assert read_log(tmp_path)[0]['test_txt_r5'] == 100
    assert 'broken.jpg cannot be read' in (tmp_path / 'page.html').read_text()
    with pytest.raises(ValueError, match='rows.json, row 1: .*broken.jpg'):
        Retrieval.main(evaluating(shapes, tmp_path, pretrained, *settings, 'on_bad_image=error', flags=flags))


@pytest.mark.parametrize(
    'settings, flags, message',
    [
        (['use_momentum=false'], ['--copy_init'], '--copy_init: there is no momentum model'),
        (['use_momentum=false', 'distill=true'], [], 'Retrieval.yaml: distill: true needs the momentum model'),
        ([], ['--evaluate'], '--evaluate: nothing to evaluate'),
        ([], ['--page', 'page.html'], '--page page.html: needs --evaluate'),
        (['val_file=null', 'test_file=null'], ['--evaluate'], 'neither val_file nor test_file'),
        (
            ['val_file=null'],
            [],
            'val_file is missing, which chooses the best checkpoint; give one, or --select_on test',
        ),
        (['batch_size_train=300'], [], 'batch_size 300 on 1 process'),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(shapes, tmp_path, settings, flags, message):
    with pytest.raises(ValueError, match=message):
        Retrieval.main(arguments('retrieval', shapes, tmp_path, *settings, flags=flags))


def test_a_checkpoint_of_another_task_is_refused_with_file_and_keys(shapes, pretrained, tmp_path):
    state = weights(pretrained)
    del state['itm_head.weight']
    state['cls_head.0.weight'] = torch.zeros(2)
    torch.save({'model': state}, tmp_path / 'other.pth')
    message = 'other.pth does not fit this model: missing keys: itm_head.weight; unexpected keys: cls_head'
    with pytest.raises(ValueError, match=message):
        Retrieval.main(arguments('retrieval', shapes, tmp_path, flags=['--checkpoint', str(tmp_path / 'other.pth')]))


def test_training_without_momentum_and_in_bf16(shapes, pretrained, tmp_path):
    """The plain model has no copies and no queue, and its loss is finite."""
    settings = ('use_momentum=false', 'precision=bf16', 'grad_checkpointing=true', *ONE_STEP)
    Retrieval.main(arguments('retrieval', shapes, tmp_path, *settings, flags=['--checkpoint', str(pretrained)]))
    state = weights(tmp_path / 'checkpoint_00.pth')
    assert not [key for key in state if '_m.' in key or 'queue' in key]
    assert 0 < read_log(tmp_path)[0]['train_loss_itc'] < 10
