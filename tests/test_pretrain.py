"""Pretrain.py end to end on a small world: what it writes, its options, and what it says of bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import Pretrain
from dataset.caption_dataset import PretrainDataset
from models.tokenization_bert import create_tokenizer
from tests.tiny import arguments
from utils.config import apply_overrides, read_yaml, resolve


def records(folder):
    return [json.loads(line) for line in Path(folder, 'log.txt').read_text().splitlines()]


def weights(path):
    return torch.load(path, weights_only=True)['model']


def equal(one, two):
    return all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_leaves_what_it_should(pretrained, world):
    folder = pretrained.parent
    assert {path.name for path in folder.iterdir()} >= {
        'checkpoint_00.pth',
        'checkpoint_01.pth',
        'config.yaml',
        'log.txt',
    }
    content = torch.load(pretrained, weights_only=True)
    assert content['epoch'] == 1 and content['config'] == read_yaml(folder / 'config.yaml')
    assert {'model', 'optimizer', 'lr_scheduler', 'config', 'epoch'} <= content.keys()
    plan = content['ranks'][0]['plan']
    assert sorted(torch.cat([plan['order'], plan['left_out']]).tolist()) == list(range(62))
    for number, record in enumerate(records(folder)):
        assert record['epoch'] == number
        assert 0 <= record['train_itm_acc'] <= 1 and 0.001 <= record['train_temp'] <= 0.5
        assert -1 <= record['train_sim_random'] <= 1 and -1 <= record['train_sim_neighbour'] <= 1


def test_the_same_command_gives_the_same_run_with_any_number_of_workers(pretrained, world, tmp_path):
    Pretrain.main(arguments('pretrain', world, tmp_path, 'num_workers=2'))
    assert equal(weights(tmp_path / 'checkpoint_01.pth'), weights(pretrained))
    assert records(tmp_path) == records(pretrained.parent)


def test_a_fresh_run_in_a_used_folder_keeps_the_earlier_log(world, tmp_path):
    argv = arguments('pretrain', world, tmp_path, 'train_epochs=1')
    Pretrain.main(argv)
    first = records(tmp_path)
    Pretrain.main([*argv, '--seed', '7'])
    assert (tmp_path / 'log.1.txt').read_text() == ''.join(json.dumps(record) + '\n' for record in first)
    assert records(tmp_path) != first
    Pretrain.main([*argv, '--seed', '7', '--resume', '--set', 'train_epochs=2'])  # goes on from the second run
    assert [record['epoch'] for record in records(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    'setting',
    [
        'consistency_weight=0',
        'itm_negatives=sampled',
        'mlm_probability=0.15',
        'hard_negatives_from_epoch=1',
        'clip_grad_norm=1.0',
        'precision=bf16',
    ],
)
def test_every_ablation_and_option_is_one_setting(world, tmp_path, pretrained, setting):
    Pretrain.main(arguments('pretrain', world, tmp_path, 'train_epochs=1', setting))
    assert records(tmp_path)[0] != records(pretrained.parent)[0]


@pytest.mark.parametrize('setting', ['grad_checkpointing=true', 'grit_from_epoch=1', 'sampler=random'])
def test_what_changes_no_number_of_the_first_epoch(world, tmp_path, pretrained, setting):
    """Recomputed activations are the same numbers, dropout included; before its first order GRIT is random sampling."""
    Pretrain.main(arguments('pretrain', world, tmp_path, 'train_epochs=1', setting))
    assert records(tmp_path)[0] == records(pretrained.parent)[0]


def test_a_warm_up_before_mining_changes_the_epochs_it_should(world, tmp_path):
    """Random batches before grit_from_epoch are those of the random sampler; sampled negatives before hard ones
    likewise.
    """

    def run(name, *settings):
        Pretrain.main(arguments('pretrain', world, tmp_path / name, *settings))
        content = torch.load(tmp_path / name / 'checkpoint_00.pth', weights_only=True)
        return records(tmp_path / name), content['ranks'][0]['plan']

    grit, grit_plan = run('grit')
    later, later_plan = run('later', 'grit_from_epoch=2')
    never, never_plan = run('random', 'sampler=random')
    assert torch.equal(later_plan['order'], never_plan['order']) and not torch.equal(
        grit_plan['order'], later_plan['order']
    )
    assert later == never and grit[0] == never[0] and grit[1] != never[1]
    sampled, _ = run('sampled', 'itm_negatives=sampled')
    soft_start, _ = run('soft start', 'hard_negatives_from_epoch=1')
    assert soft_start[0] == sampled[0] != grit[0] and soft_start[1] != sampled[1]


def test_warm_start_plays_the_order_that_was_kept(world, tmp_path, pretrained, monkeypatch):
    played = []
    original = Pretrain.EpochBatches.play
    monkeypatch.setattr(
        Pretrain.EpochBatches,
        'play',
        lambda self, epoch, batches: (
            played.append([i for batch in batches for i in batch]),
            original(self, epoch, batches),
        )[1],
    )
    content = torch.load(pretrained, weights_only=True)
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'checkpoint_01.pth').write_bytes(pretrained.read_bytes())
    Pretrain.main(arguments('pretrain', world, tmp_path / 'own', 'train_epochs=1', flags=['--index_warmstart']))
    assert played[0] == content['ranks'][0]['plan']['order'].tolist()

    from scipy.io import savemat

    (tmp_path / 'official').mkdir()
    order = list(range(61, -1, -1)) + [5, 6]  # the official sampler's padding repeats examples
    savemat(tmp_path / 'official' / 'total_indices.mat', {'total_indices': order})
    Pretrain.main(arguments('pretrain', world, tmp_path / 'official', 'train_epochs=1', flags=['--index_warmstart']))
    assert played[1] == order[:60]

    with pytest.raises(FileNotFoundError, match='--index_warmstart: .* keeps no order'):
        Pretrain.main(arguments('pretrain', world, tmp_path / 'empty', flags=['--index_warmstart']))


def test_resume_takes_a_checkpoint_only_where_the_folder_has_none(world, tmp_path, pretrained):
    """--resume with --checkpoint: a run's own file is resumed, other weights are only the start."""
    Pretrain.main(
        arguments(
            'pretrain', world, tmp_path / 'go on', 'train_epochs=3', flags=['--resume', '--checkpoint', str(pretrained)]
        )
    )
    assert [record['epoch'] for record in records(tmp_path / 'go on')] == [0, 1, 2]
    bare = tmp_path / 'bare.pth'
    torch.save(weights(pretrained), bare)
    Pretrain.main(
        arguments(
            'pretrain', world, tmp_path / 'start', 'train_epochs=1', flags=['--resume', '--checkpoint', str(bare)]
        )
    )
    assert [record['epoch'] for record in records(tmp_path / 'start')] == [0]
    assert not equal(torch.load(bare), weights(tmp_path / 'start' / 'checkpoint_00.pth'))


def test_evaluation_adds_a_record_and_trains_nothing(world, tmp_path, pretrained):
    argv = arguments('pretrain', world, tmp_path, flags=['--evaluate', '--checkpoint', str(pretrained)])
    Pretrain.main(argv)
    Pretrain.main(argv)
    first, second = records(tmp_path)
    assert first.keys() == {'val_loss_mlm', 'val_loss_itc', 'val_loss_itm', 'val_itm_acc'}
    assert first == second and not list(tmp_path.glob('*.pth'))


def dataset_of(world, rows, tmp_path, *settings):
    (tmp_path / 'rows.json').write_text(json.dumps(rows))
    overrides = [f'train_file={tmp_path}/rows.json', f'image_root={world}', *settings]
    config, _ = resolve('pretrain', apply_overrides(read_yaml('configs/shapes/Pretrain.yaml'), overrides))
    return PretrainDataset(config, create_tokenizer(f'{world}/vocab'), seed=0)


def test_examples_are_drawn_from_seed_epoch_and_index(world, tmp_path):
    rows = json.loads((world / 'pretrain.json').read_text())
    rows[3]['caption'] = ['a circle', 'a square', 'a star']
    data = dataset_of(world, rows, tmp_path)
    captions = {data[epoch, 3]['caption'] for epoch in range(20)}
    assert captions == {'a circle', 'a square', 'a star'}
    assert torch.equal(data[4, 3]['image'], data[4, 3]['image']) and not torch.equal(
        data[4, 3]['image'], data[5, 3]['image']
    )
    batch = data.collate([data[0, i] for i in range(4)])
    assert batch['image'].shape == (4, 3, 64, 64) and batch['index'].tolist() == [0, 1, 2, 3]
    assert batch['text'].input_ids.shape == batch['text'].attention_mask.shape and not batch['bad']


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda rows: rows[5].update(caption=7), 'row 5'),
        (lambda rows: rows[5].update(caption=['a', 7]), 'row 5'),
        (lambda rows: rows[5].pop('image'), 'row 5'),
        (lambda rows: rows.clear(), 'rows.json'),
    ],
)
def test_bad_annotations_are_named_before_training(world, tmp_path, change, message):
    rows = json.loads((world / 'pretrain.json').read_text())
    change(rows)
    with pytest.raises(ValueError, match=message):
        dataset_of(world, rows, tmp_path)


def test_a_wrong_image_root_is_named_before_training(world, tmp_path):
    rows = json.loads((world / 'pretrain.json').read_text())
    with pytest.raises(FileNotFoundError, match='set image_root'):
        dataset_of(world, [row | {'image': f'nowhere/{row["image"]}'} for row in rows], tmp_path)


@pytest.fixture
def broken_world(world, tmp_path):
    """The world with some unreadable images: a function of their rows -> overrides for the command line."""

    def break_images(indices):
        rows = json.loads((world / 'pretrain.json').read_text())
        for index in indices:
            (tmp_path / f'broken{index}.jpg').write_text('<html>not found</html>')
            rows[index]['image'] = str(tmp_path / f'broken{index}.jpg')
        (tmp_path / 'broken.json').write_text(json.dumps(rows))
        return f'train_file=[{tmp_path}/broken.json]'

    return break_images


def test_a_bad_image_is_skipped_counted_and_never_mistaken(world, tmp_path, broken_world):
    output = tmp_path / 'out'
    Pretrain.main(arguments('pretrain', world, output, broken_world([7])))
    listed = [json.loads(line) for line in (output / 'bad_images.jsonl').read_text().splitlines()]
    assert [item['index'] for item in listed] == [7] and 'broken7.jpg' in listed[0]['reason']
    plan = torch.load(output / 'checkpoint_01.pth', weights_only=True)['ranks'][0]['plan']
    assert sorted(torch.cat([plan['order'], plan['left_out']]).tolist()) == list(
        range(62)
    )  # it keeps its place in the order


def test_many_bad_images_stop_the_run(world, tmp_path, broken_world):
    with pytest.raises(ValueError, match='2 of about 62 images cannot be read, more than 1%.*check'):
        Pretrain.main(arguments('pretrain', world, tmp_path / 'out', broken_world([7, 9])))
    assert len((tmp_path / 'out' / 'bad_images.rank0.jsonl').read_text().splitlines()) == 2


def test_bad_images_can_be_errors(world, tmp_path, broken_world):
    with pytest.raises(ValueError, match=r'row 7: .*broken7.jpg.*on_bad_image: skip'):
        Pretrain.main(arguments('pretrain', world, tmp_path / 'out', broken_world([7]), 'on_bad_image=error'))


@pytest.mark.parametrize(
    'settings, message',
    [
        (['train_file=[nowhere.json]'], 'nowhere.json'),
        (['batch_size=64', 'queue_size=128', 'search_space=64'], 'batch_size 64 on 1 process'),
        (['bert_config.vocab_size=20'], 'set bert_config.vocab_size='),
    ],
)
def test_what_cannot_work_is_said_before_training(world, tmp_path, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Pretrain.main(arguments('pretrain', world, tmp_path, *settings))


def test_divergence_is_noticed_and_nothing_of_it_is_saved(world, tmp_path):
    with pytest.raises(ValueError, match='no longer finite'):
        Pretrain.main(
            arguments(
                'pretrain',
                world,
                tmp_path,
                'optimizer.lr=1e30',
                'schedular.lr=1e30',
                'schedular.warmup_lr=1e30',
                'save_every=100',
            )
        )
    assert not list(tmp_path.glob('*.pth'))


def test_the_official_command_line_works_with_a_launcher(world, tmp_path):
    """Two processes, plain launch: the same ranks' work as the log of one epoch shows, mini-batches shuffled across
    ranks.
    """
    argv = arguments('pretrain', world, tmp_path, flags=['--mini_batch_shuffle_across_gpu', '--resume', 'False'])
    command = [
        sys.executable,
        '-m',
        'torch.distributed.launch',
        '--nproc_per_node=2',
        '--use_env',
        'Pretrain.py',
        *argv,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('2 process(es) on cpu') == 1
    content = torch.load(tmp_path / 'checkpoint_01.pth', weights_only=True)
    plans = [rank['plan'] for rank in content['ranks']]
    assert sorted(torch.cat([part for plan in plans for part in (plan['order'], plan['left_out'])]).tolist()) == list(
        range(62)
    )
    assert [record['epoch'] for record in records(tmp_path)] == [0, 1]
