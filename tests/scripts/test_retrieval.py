"""Retrieval.py end to end on the small synthetic dataset: what it writes, that processes do not change it, what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dataset.metrics import retrieval_recall

import Retrieval
from dataset.retrieval_dataset import RetrievalEvalDataset, RetrievalTrainDataset
from models.tokenization_bert import create_tokenizer
from tests.processes import KILLED, DieAt, free_port, run, tail
from tests.reference import load_reference
from tests.tiny import arguments
from utils.config import apply_overrides, read_yaml, resolve

RECALL = list(load_reference('recall')['result'])


def records(folder):
    return [json.loads(line) for line in Path(folder, 'log.txt').read_text().splitlines()]


def weights(path):
    return torch.load(path, weights_only=True)['model']


@pytest.fixture(scope='module')
def fine_tuned(shapes, pretrained, tmp_path_factory):
    """The folder of two tiny epochs from a pre-training checkpoint, and what was printed."""
    folder = tmp_path_factory.mktemp('fine_tuned')
    Retrieval.main(arguments('retrieval', shapes, folder, flags=['--checkpoint', str(pretrained)]))
    return folder


def test_a_run_leaves_what_it_should(fine_tuned):
    names = {path.name for path in fine_tuned.iterdir()}
    assert names == {'checkpoint_00.pth', 'checkpoint_01.pth', 'checkpoint_best.pth', 'config.yaml', 'log.txt'}
    assert [record['epoch'] for record in records(fine_tuned)] == [0, 1]
    figures = [f'{split}_{scores}{key}' for split in ('val', 'test') for scores in ('', 'itc_') for key in RECALL]
    for record in records(fine_tuned):
        assert [key for key in record if key.startswith(('val_', 'test_'))] == figures
        assert set(record) - set(figures) == {
            'epoch',
            'train_lr',
            'train_loss_itc',
            'train_loss_itm',
            'train_itm_acc',
            'train_no_negative',
        }
    best = max(records(fine_tuned), key=lambda record: record['val_r_mean'])['epoch']
    assert (fine_tuned / 'checkpoint_best.pth').read_bytes() == (fine_tuned / f'checkpoint_{best:02d}.pth').read_bytes()
    last = torch.load(fine_tuned / 'checkpoint_01.pth', weights_only=True)
    assert last['epoch'] == 1 and last['model']['queue_ptr'].item() == 2 * STEPS * 8


STEPS = 62 * 2 // 8  # 62 scenes of two captions each, in batches of 8
ONE_STEP = ('batch_size_train=100', 'schedular.epochs=1')


def test_momentum_copies_start_where_they_should(shapes, pretrained, fine_tuned, tmp_path, capsys):
    """From a pre-training checkpoint of this kind the copies start at random, which is said; --copy_init copies the
    weights.
    """
    argv = arguments(
        'retrieval', shapes, tmp_path, *ONE_STEP, 'schedular.warmup_lr=0', flags=['--checkpoint', str(pretrained)]
    )
    key, online = (
        'visual_encoder_m.patch_embed.proj.weight',
        weights(pretrained)['visual_encoder.patch_embed.proj.weight'],
    )
    Retrieval.main(argv)
    assert 'momentum copies: not in a checkpoint' in capsys.readouterr().out
    assert not torch.allclose(weights(tmp_path / 'checkpoint_00.pth')[key], online, atol=1e-3)
    Retrieval.main([*argv, '--copy_init'])
    assert 'momentum copies: of the weights after loading' in capsys.readouterr().out
    torch.testing.assert_close(weights(tmp_path / 'checkpoint_00.pth')[key], online)


def test_the_best_checkpoint_can_be_chosen_on_the_test_split(shapes, fine_tuned, tmp_path, monkeypatch):
    """Figures that fall on validation and rise on test choose the first or the last epoch."""
    figures = iter([9.0, 1.0, 8.0, 2.0, 9.0, 1.0, 8.0, 2.0])  # val and test of each epoch
    monkeypatch.setattr(
        Retrieval,
        'retrieval_recall',
        lambda scores, *rest: dict.fromkeys(RECALL, next(figures) if scores.min() == -100 else 0.0),
    )
    for flags, best in (([], 'checkpoint_00.pth'), (['--select_on', 'test'], 'checkpoint_01.pth')):
        Retrieval.main(arguments('retrieval', shapes, tmp_path, 'batch_size_train=100', flags=flags))
        assert (tmp_path / 'checkpoint_best.pth').read_bytes() == (tmp_path / best).read_bytes()


# ---- evaluation


def evaluating(folder):
    """A main for `run` that keeps the score matrices of each split, to the bit, as rank 0 has them."""

    def main(argv):
        original = Retrieval.score

        def score(model, name, *rest):
            scores = original(model, name, *rest)
            if Retrieval.distributed.is_main():
                torch.save(scores, folder / f'{name}.pt')
            return scores

        Retrieval.score = score
        Retrieval.main(argv)

    return main


def test_evaluation_is_the_same_to_the_bit_in_any_number_of_processes(shapes, fine_tuned, tmp_path, monkeypatch):
    """13 images in batches of 4: of five processes the fifth has nothing; texts are in batches of 16."""
    monkeypatch.setattr(Retrieval, 'TEXTS_PER_BATCH', 16)
    found = {}
    for processes in (1, 2, 3, 5):
        folder = tmp_path / str(processes)
        folder.mkdir()
        argv = arguments(
            'retrieval',
            shapes,
            folder,
            'batch_size_test=4',
            'k_test=5',
            flags=[
                '--evaluate',
                '--checkpoint',
                str(fine_tuned / 'checkpoint_best.pth'),
                '--page',
                str(folder / 'page.html'),
            ],
        )
        assert run(evaluating(folder), argv, tmp_path / 'log', processes) == [0] * processes, tail(tmp_path / 'log')
        found[processes] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found[1].keys() == {'val.pt', 'test.pt', 'log.txt', 'page.html'}
    assert found[1] == found[2] == found[3] == found[5]
    sim, i2t, t2i = torch.load(tmp_path / '1' / 'test.pt')
    assert sim.shape == i2t.shape == t2i.t().shape == (13, 39)
    assert (i2t > -100).sum(dim=1).eq(5).all() and (t2i > -100).sum(dim=1).eq(5).all()


def test_a_launcher_gives_the_figures_of_one_process(shapes, fine_tuned, tmp_path):
    """The README's way to start; the single process may use more threads, which must not matter."""
    folders = tmp_path / 'one', tmp_path / 'two'
    argvs = [
        arguments(
            'retrieval',
            shapes,
            folder,
            'batch_size_test=4',
            flags=['--evaluate', '--checkpoint', str(fine_tuned / 'checkpoint_best.pth')],
        )
        for folder in folders
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    Retrieval.main(argvs[0])
    torch.set_num_threads(threads)
    environment = {key: value for key, value in os.environ.items() if key != 'OMP_NUM_THREADS'}
    command = [
        sys.executable,
        '-m',
        'torch.distributed.launch',
        '--nproc_per_node=2',
        f'--master_port={free_port()}',
        '--use_env',
        'Retrieval.py',
        *argvs[1],
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[:4000]
    assert records(folders[0]) == records(folders[1]) and len(records(folders[0])) == 1


def test_zero_shot_and_contrast_only(shapes, pretrained, tmp_path, capsys):
    """A pre-training checkpoint is ranked as it is; without re-ranking both sets of figures are those of contrast."""
    argv = arguments('retrieval', shapes, tmp_path, flags=['--evaluate', '--checkpoint', str(pretrained)])
    Retrieval.main(argv)
    assert 'best 4 re-ranked' in capsys.readouterr().out
    Retrieval.main([*argv, '--set', 'k_test=0'])
    assert 're-ranked' not in capsys.readouterr().out
    Retrieval.main([*argv, '--set', 'k_test=1000', '--set', 'val_file=null'])  # more than there are candidates
    full, contrast, everything = records(tmp_path)
    assert all(
        full[f'{split}_itc_{key}'] == contrast[f'{split}_{key}'] == contrast[f'{split}_itc_{key}']
        for split in ('val', 'test')
        for key in RECALL
    )
    assert everything['test_itc_r_mean'] == full['test_itc_r_mean'] and 'val_r_mean' not in everything
    assert not list(tmp_path.glob('*.pth'))


def test_recall_is_that_of_the_scores(shapes, fine_tuned, tmp_path):
    argv = arguments(
        'retrieval', shapes, tmp_path, flags=['--evaluate', '--checkpoint', str(fine_tuned / 'checkpoint_best.pth')]
    )
    assert run(evaluating(tmp_path), argv, tmp_path / 'log') == [0], tail(tmp_path / 'log')
    rows = json.loads((shapes / 'retrieval_test.json').read_text())
    txt2img = {text: image for text, image in enumerate(i for i, row in enumerate(rows) for _ in row['caption'])}
    img2txt = {image: [text for text in txt2img if txt2img[text] == image] for image in range(len(rows))}
    sim, i2t, t2i = torch.load(tmp_path / 'test.pt')
    record = records(tmp_path)[0]
    for prefix, scores in (('test_', (i2t, t2i)), ('test_itc_', (sim, sim.t()))):
        expected = retrieval_recall(*scores, txt2img, img2txt)
        assert {key: record[prefix + key] for key in RECALL} == expected


def test_evaluation_inside_a_run_is_that_of_its_checkpoint(shapes, fine_tuned, tmp_path):
    Retrieval.main(
        arguments(
            'retrieval', shapes, tmp_path, flags=['--evaluate', '--checkpoint', str(fine_tuned / 'checkpoint_01.pth')]
        )
    )
    (record,), of_run = records(tmp_path), records(fine_tuned)[1]
    assert record == {key: of_run[key] for key in record}


def test_the_page_shows_queries_with_the_right_ones_marked(shapes, fine_tuned, tmp_path):
    page = tmp_path / 'pages' / 'page.html'
    Retrieval.main(
        arguments(
            'retrieval',
            shapes,
            tmp_path,
            'k_test=39',
            flags=['--evaluate', '--checkpoint', str(fine_tuned / 'checkpoint_best.pth'), '--page', str(page)],
        )
    )
    html = page.read_text()
    rows = json.loads((shapes / 'retrieval_test.json').read_text())
    assert html.count('class="query"') == 13 + 39 and html.count('<li') == 13 * 5 and html.count('<figure') == 39 * 5
    assert all(Path(row['image']).name in html for row in rows) and not re.search(r'src="(?!data:)', html)
    record = records(tmp_path)[0]
    found = len(re.findall('<figure class="right">', html))
    assert found == round(39 * record['test_img_r5'] / 100)
    missed = html.split('Images for texts')[0].count('the first right one has place')
    assert missed == 13 - round(13 * record['test_txt_r5'] / 100)


# ---- resuming


DEATHS = {
    1: [DieAt(torch.optim.AdamW, 'step', 5), DieAt(Retrieval, 'retrieval_recall', 2)],
    2: [DieAt(torch.optim.AdamW, 'step', 5), DieAt(Retrieval, 'complete_epoch', 1, after=True)],
}


def keeping_every_rank(folder):
    """A main for `run` that keeps each rank's own weights, copies and queue at the end of an epoch."""

    def main(argv):
        original = Retrieval.complete_epoch

        def complete_epoch(output, task, run, record, model, *rest):
            torch.save(
                Retrieval.unwrap(model).state_dict(), folder / f'{record["epoch"]}.{Retrieval.distributed.rank()}.pt'
            )
            return original(output, task, run, record, model, *rest)

        Retrieval.complete_epoch = complete_epoch
        Retrieval.main(argv)

    return main


@pytest.mark.parametrize('processes', [1, 2])
def test_killed_and_resumed_equals_uninterrupted(shapes, pretrained, tmp_path, processes):
    """Killed inside an epoch and at its end: the same weights, momentum copies, queue and log as without, on every
    rank.
    """

    def argv(folder):
        return arguments(
            'retrieval',
            shapes,
            tmp_path / folder,
            f'batch_size_train={16 // processes}',
            'save_every=3',
            'queue_size=150',
            'distill=true',
            'alpha=0.4',
            flags=['--resume', '--checkpoint', str(pretrained)],
        )

    log = tmp_path / 'log'
    assert run(keeping_every_rank(tmp_path), argv('whole'), log, processes) == [0] * processes, tail(log)
    for epoch in (0, 1):
        first, *others = (torch.load(tmp_path / f'{epoch}.{rank}.pt') for rank in range(processes))
        assert all(torch.equal(first[key], other[key]) for other in others for key in first)
    for death in DEATHS[processes]:
        assert run(Retrieval.main, argv('killed'), log, processes, death)[0] == KILLED, tail(log)
    assert run(Retrieval.main, argv('killed'), log, processes) == [0] * processes, tail(log)
    whole, killed = (weights(tmp_path / folder / 'checkpoint_01.pth') for folder in ('whole', 'killed'))
    assert [key for key in whole if not torch.equal(whole[key], killed[key])] == []
    assert (tmp_path / 'whole' / 'log.txt').read_text() == (tmp_path / 'killed' / 'log.txt').read_text()
    assert (
        whole['queue_ptr'].item() == 2 * 7 * 16 % 150 and (whole['idx_queue'] >= 0).all()
    )  # what all ranks saw goes round


# ---- data, and what is refused


def configuration(shapes, *settings):
    settings = [f'train_file={shapes}/retrieval_train.json', f'image_root={shapes}', *settings]
    return resolve('retrieval', apply_overrides(read_yaml('configs/shapes/Retrieval.yaml'), settings))[0]


def write(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


def test_images_are_numbered_by_first_appearance_over_all_files(shapes, tmp_path):
    image = json.loads((shapes / 'retrieval_train.json').read_text())[0]['image']
    files = [
        write(tmp_path / f'{n}.json', [{'image': image, 'caption': 'A red circle.', 'image_id': i} for i in ids])
        for n, ids in enumerate([['b', 'a', 'b', 7], [7, 'c', '7']])
    ]
    data = RetrievalTrainDataset(
        configuration(shapes, f'train_file={json.dumps(files)}'), create_tokenizer(f'{shapes}/vocab'), 0
    )
    assert data.idx.tolist() == [0, 1, 0, 2, 2, 3, 4]
    batch = data.collate([data[0, i] for i in (5, 2)])
    assert batch['idx'].tolist() == [3, 0] and batch['image'].shape == (2, 3, 64, 64)
    assert batch['text'].input_ids.shape == (2, 4)  # [CLS] a red circle


def test_captions_of_a_split(shapes, tmp_path):
    """A string is one caption; long texts are cut at 30 words and 30 tokens."""
    image = json.loads((shapes / 'retrieval_test.json').read_text())[0]['image']
    rows = [{'image': image, 'caption': 'A Red circle!'}, {'image': image, 'caption': ['a blue star', 'red ' * 50]}]
    data = RetrievalEvalDataset(
        configuration(shapes), [write(tmp_path / 'rows.json', rows)], create_tokenizer(f'{shapes}/vocab')
    )
    assert data.texts == ['a red circle', 'a blue star', ' '.join(['red'] * 30)]
    assert data.img2txt == {0: [0], 1: [1, 2]} and data.txt2img == {0: 0, 1: 1, 2: 1}
    assert data.tokens([0, 2]).attention_mask.sum(dim=1).tolist() == [4, 30]


def test_one_caption_an_image_and_a_bad_image(shapes, pretrained, tmp_path):
    """Strings as captions, two images, one of them unreadable: ranked with a blank one, or refused with its row."""
    rows = [
        row | {'caption': row['caption'][0]} for row in json.loads((shapes / 'retrieval_test.json').read_text())[:2]
    ]
    (tmp_path / 'broken.jpg').write_text('<html>not found</html>')
    rows[1]['image'] = str(tmp_path / 'broken.jpg')
    settings = (f'test_file={write(tmp_path / "rows.json", rows)}', 'val_file=null')
    flags = ['--evaluate', '--checkpoint', str(pretrained), '--page', str(tmp_path / 'page.html')]
    Retrieval.main(arguments('retrieval', shapes, tmp_path, *settings, flags=flags))
    assert records(tmp_path)[0]['test_txt_r5'] == 100
    assert 'broken.jpg cannot be read' in (tmp_path / 'page.html').read_text()
    with pytest.raises(ValueError, match='rows.json, row 1: .*broken.jpg'):
        Retrieval.main(arguments('retrieval', shapes, tmp_path, *settings, 'on_bad_image=error', flags=flags))


@pytest.mark.parametrize(
    'settings, flags, message',
    [
        (['use_momentum=false'], ['--copy_init'], '--copy_init: there is no momentum model'),
        (['use_momentum=false', 'distill=true'], [], 'Retrieval.yaml: distill: true needs the momentum model'),
        ([], ['--evaluate'], '--evaluate: nothing to evaluate'),
        ([], ['--page', 'page.html'], '--page: pictures are made with --evaluate only'),
        (['val_file=null', 'test_file=null'], ['--evaluate'], 'neither val_file nor test_file'),
        (
            ['val_file=null'],
            [],
            'val_file is missing, on which the best checkpoint is chosen; give one, or --select_on test',
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
    message = 'other.pth does not fit this model: it lacks itm_head.weight; nothing here takes its cls_head'
    with pytest.raises(ValueError, match=message):
        Retrieval.main(arguments('retrieval', shapes, tmp_path, flags=['--checkpoint', str(tmp_path / 'other.pth')]))


def test_training_without_momentum_and_in_bf16(shapes, pretrained, tmp_path):
    """The plain model has no copies and no queue; both ways the losses are finite and something is learned."""
    Retrieval.main(
        arguments(
            'retrieval',
            shapes,
            tmp_path,
            'use_momentum=false',
            'precision=bf16',
            'grad_checkpointing=true',
            *ONE_STEP,
            flags=['--checkpoint', str(pretrained)],
        )
    )
    state = weights(tmp_path / 'checkpoint_00.pth')
    assert not [key for key in state if '_m.' in key or 'queue' in key]
    assert 0 < records(tmp_path)[0]['train_loss_itc'] < 10
