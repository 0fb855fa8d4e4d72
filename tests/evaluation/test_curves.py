"""The picture of training curves: what is drawn is what log.txt says."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

import evaluation
from evaluation import retrieval, vqa
from evaluation.__main__ import main
from evaluation.curves import COLORS, draw_curves, read_runs
from tests.helpers import read_log
from tests.processes import run_python
from utils.errors import InputError


def write_log(folder, *records):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'log.txt').write_text(''.join(json.dumps(record) + '\n' for record in records))
    return str(folder)


def lines_of(figure):
    """{panel's title: {label: line}} of the curves; a second axis belongs to the panel before it."""
    panels, title = {}, None
    for axes in figure.axes:
        title = axes.get_title(loc='left') or title
        curves = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith('_')}
        panels[title] = panels.get(title, {}) | curves
    return panels


def points_of(figure):
    """{panel's title: {label: [(x, y), ...]}}"""
    return {
        title: {label: list(zip(*line.get_data(), strict=True)) for label, line in lines.items()}
        for title, lines in lines_of(figure).items()
    }


def axes_of(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc='left') == title)


def test_the_curves_of_a_real_run(pretrained, tmp_path, capsys):
    out = tmp_path / 'new' / 'curves.png'
    main(['plot', str(pretrained.parent), '--out', str(out)])
    with Image.open(out) as picture:
        assert picture.format == 'PNG' and picture.width == 1600
        assert picture.convert('RGB').getpixel((0, 0)) == (255, 255, 255) and len(picture.getcolors(1 << 24)) > 50
    name = pretrained.parent.name
    assert capsys.readouterr().out == f'{out}: training curves of {name}\n'

    drawn, records = points_of(draw_curves(read_runs([str(pretrained.parent)]))), read_log(pretrained.parent)
    assert list(drawn) == ['ITC loss', 'MLM loss', 'ITM accuracy', 'ITM loss', 'Similarity of examples']
    keys = {'train_loss_itc', 'train_loss_mlm', 'train_itm_acc', 'train_loss_itm', 'train_sim_neighbour'}
    assert {label for lines in drawn.values() for label in lines} >= {f'{name} {key}' for key in keys}
    for lines in drawn.values():
        for label, points in lines.items():
            key = label.split()[-1]
            assert points == [(1, records[0][key]), (2, records[1][key])]


@pytest.mark.parametrize('record, titles', [
    ({'train_loss': 0.7, 'val_acc': 0.5, 'test_acc': 0.6}, ['Training loss', 'NLVR2 accuracy']),
    ({'train_loss': 0.7, 'test_overall': 60.0}, ['Training loss', 'VQA accuracy (%)']),
    ({'train_loss': 0.7}, ['Training loss']),
    ({'train_loss_itc': 1.0, 'train_loss_itm': 0.5, 'val_r_mean': 40.0, 'val_itc_r_mean': 30.0, 'test_r_mean': 41.0},
     ['ITC loss', 'ITM loss', 'Mean of R@1, 5, 10 on val (%)', 'Mean of R@1, 5, 10 on test (%)']),
])  # fmt: skip
def test_a_panel_without_data_is_absent(record, titles):
    drawn = points_of(draw_curves({'run': [{'epoch': 4, 'train_lr': 1e-5, **record}]}))
    assert list(drawn) == titles
    expected = {f'run {key}': [(5, value)] for key, value in record.items()}
    assert {label: points for lines in drawn.values() for label, points in lines.items()} == expected


def test_a_run_has_one_color_and_random_pairs_are_dashed(tmp_path):
    records = [{'epoch': epoch, 'train_sim_neighbour': 0.5, 'train_sim_random': 0.1} for epoch in range(3)]
    mlm = [record | {'train_loss_mlm': 2.0} for record in records[:2]]
    folders = [write_log(tmp_path / 'grit', *records), write_log(tmp_path / 'random', *mlm)]
    figure = draw_curves(read_runs(folders))
    panels = lines_of(figure)
    assert list(panels['MLM loss']) == ['random train_loss_mlm']
    looks = {
        label: (line.get_color(), line.get_linestyle()) for label, line in panels['Similarity of examples'].items()
    }
    assert looks == {
        'grit train_sim_neighbour': (COLORS[0], '-'), 'grit train_sim_random': (COLORS[0], '--'),
        'random train_sim_neighbour': (COLORS[1], '-'), 'random train_sim_random': (COLORS[1], '--'),
    }  # fmt: skip
    assert panels['MLM loss']['random train_loss_mlm'].get_color() == COLORS[1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['grit', 'random']
    assert [line.get_color() for line in figure.legends[0].get_lines()] == list(COLORS[:2])
    words = axes_of(figure, 'Similarity of examples').get_legend().get_texts()
    assert [text.get_text() for text in words] == ['neighbors', 'random pairs']
    limits = {axes.get_xlim() for axes in figure.axes}
    assert limits == {(0.75, 3.25)}  # the same epochs in all panels
    assert all(tick == int(tick) for axes in figure.axes for tick in axes.get_xticks())


def test_itm_accuracy_beside_its_level_and_beta():
    records = [{'epoch': epoch, 'train_itm_acc': 0.667, 'train_itm_beta': 10.0**epoch} for epoch in range(3)]
    figure = draw_curves({'adaptive': records, 'plain': [{'epoch': 0, 'train_itm_acc': 0.667}]})
    left, right = figure.axes
    level = next(line for line in left.get_lines() if line.get_label().startswith('_'))
    assert list(level.get_ydata()) == pytest.approx([2 / 3, 2 / 3]) and level.get_linestyle() == '--'
    low, high = left.get_ylim()
    assert high - low > 0.05  # so that noise around the level is no trend
    (beta,) = right.get_lines()
    assert right.get_yscale() == 'log' and left.get_yscale() == 'linear' and beta.get_linestyle() == ':'
    assert list(beta.get_ydata()) == [1, 10, 100] and beta.get_color() == COLORS[0]
    words = [text.get_text() for text in left.get_legend().get_texts()]
    assert words == ['always "no match"', 'beta (right axis)']


def test_markers_tell_single_points_apart_and_never_crowd():
    def records(epochs):
        return [{'epoch': epoch, 'train_sim_neighbour': 0.5, 'train_sim_random': 0.1} for epoch in epochs]

    def markers(**runs):
        lines = lines_of(draw_curves(runs))['Similarity of examples']
        return {label.split()[0]: line.get_marker() for label, line in lines.items()}

    lines = lines_of(draw_curves({'one': records([0])}))['Similarity of examples']
    assert [line.get_markerfacecolor() for line in lines.values()] == [COLORS[0], 'white']
    assert [line.get_marker() for line in lines.values()] == ['o', 'o']
    assert markers(short=records(range(20))) == {'short': 'o'}
    assert markers(short=records(range(20)), long=records(range(60)), sparse=records([3, 30, 59])) == {
        'short': '', 'long': '', 'sparse': 'o',
    }  # fmt: skip


def test_recall_of_evaluated_checkpoints(tmp_path, capsys):
    records = [{'epoch': epoch, 'train_loss_itc': 2.0} for epoch in range(3)]
    grit, random = write_log(tmp_path / 'grit', *records), write_log(tmp_path / 'random', *records)

    def evaluation(checkpoint, recall):
        return {'checkpoint': str(checkpoint), 'test_r_mean': recall, 'test_itc_r_mean': recall - 1}

    first = write_log(
        tmp_path / 'first',
        evaluation(f'{grit}/checkpoint_02.pth', 7.0),
        evaluation(f'{grit}/checkpoint_00.pth', 4.0),
        evaluation(os.path.relpath(f'{random}/checkpoint_01.pth'), 5.0),
        evaluation(f'{grit}/checkpoint_00.pth', 3.0),  # again: the last line counts
        evaluation(f'{grit}/checkpoint_best.pth', 9.0),
        {'test_r_mean': 8.0},
    )
    moved = write_log(tmp_path / 'second', evaluation('/elsewhere/random/checkpoint_02.pth', 6.0))
    main(['plot', grit, random, '--out', f'{tmp_path}/curves.png', '--evaluations', first, moved])
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        f'left out {first}/log.txt, line 5: {grit}/checkpoint_best.pth is no checkpoint_XX.pth of the runs',
        f'left out {first}/log.txt, line 6: names no checkpoint',
    ]
    figure = draw_curves(read_runs([grit, random], [first, moved]))
    title = 'Mean of R@1, 5, 10 on test (%)'
    assert points_of(figure)[title] == {
        'grit test_r_mean': [(1, 3.0), (3, 7.0)], 'grit test_itc_r_mean': [(1, 2.0), (3, 6.0)],
        'random test_r_mean': [(2, 5.0), (3, 6.0)], 'random test_itc_r_mean': [(2, 4.0), (3, 5.0)],
    }  # fmt: skip
    assert points_of(figure)['ITC loss']['grit train_loss_itc'] == [(1, 2.0), (2, 2.0), (3, 2.0)]
    assert [text.get_text() for text in axes_of(figure, title).get_legend().get_texts()] == [
        're-ranked by ITM',
        'ITC only',
    ]


def test_lines_without_training_are_no_epochs(tmp_path):
    log = write_log(
        tmp_path / 'vqa', {'epoch': 0, 'train_loss': 3.0}, {'epoch': 0, 'val_overall': 1.0}, {'val_loss': 1}
    )
    assert read_runs([log]) == {'vqa': [{'epoch': 0, 'train_loss': 3.0}]}


def test_runs_in_folders_of_the_same_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ('a/pretrain', 'b/pretrain', 'c'):
        write_log(Path(folder), {'epoch': 0, 'train_loss': 1.0})
    runs = read_runs(['a/pretrain', 'b/pretrain', 'c/'])
    assert list(runs) == ['a/pretrain', 'b/pretrain', 'c']
    moved = write_log(tmp_path / 'moved', {'checkpoint': '/old/pretrain/checkpoint_00.pth', 'test_r_mean': 1.0})
    with pytest.raises(InputError, match='no line is an evaluation'):  # of which of the two?
        read_runs(['a/pretrain', 'b/pretrain'], [moved])
    monkeypatch.chdir(tmp_path / 'c')
    assert list(read_runs(['.'])) == ['c']


@pytest.mark.parametrize('records, message', [
    (None, 'log.txt does not exist; give the output folder of a run'),
    ([{'epoch': 0, 'loss': 1.0}], 'run/log.txt has no curve: .*train_loss_itc.*give the output folder of a train'),
    ([{'test_r_mean': 50.0}], 'no curve: .* those of Retrieval.py --evaluate after --evaluations'),
    ([{'epoch': 0, 'train_loss': 'low'}, {'epoch': 1, 'train_loss': None}], 'has no curve'),
])  # fmt: skip
def test_a_log_without_curves_is_named(tmp_path, records, message):
    if records is not None:
        write_log(tmp_path / 'run', *records)
    with pytest.raises(InputError, match=message):
        main(['plot', str(tmp_path / 'run'), '--out', str(tmp_path / 'curves.png')])
    assert not (tmp_path / 'curves.png').exists()


def test_a_run_in_its_first_epoch_is_named(tmp_path):
    done, new = write_log(tmp_path / 'done', {'epoch': 0, 'train_loss': 1.0}), write_log(tmp_path / 'new')
    with pytest.raises(InputError, match=f'^{new}/log.txt is empty: no epoch is finished yet; try again after the fi'):
        main(['plot', done, new, '--out', f'{tmp_path}/curves.png'])
    assert not (tmp_path / 'curves.png').exists()


def test_wrong_arguments_are_named(tmp_path):
    run = write_log(tmp_path / 'run', {'epoch': 0, 'train_loss': 1.0})
    with pytest.raises(InputError, match=r'--out curves.pdf: the name must end in .png'):
        main(['plot', run, '--out', 'curves.pdf'])
    with pytest.raises(InputError, match='given twice'):
        read_runs([run, f'{run}/'])
    with pytest.raises(InputError, match=f'9 runs are too many for one picture; give at most {len(COLORS)}'):
        read_runs([f'{run}/{number}' for number in range(9)])
    with pytest.raises(InputError, match='run/log.txt: no line is an evaluation of a checkpoint_XX.pth of '):
        read_runs([run], [run])


def test_help_waits_for_neither_matplotlib_nor_torch():
    code = 'import sys, evaluation.__main__; sys.exit(bool({"matplotlib", "torch", "numpy"} & {*sys.modules}))'
    assert run_python(['-c', code]) == (0, '', '')


def test_the_package_has_the_metrics_and_nothing_else():
    assert evaluation.retrieval_recall is retrieval.retrieval_recall
    assert evaluation.vqa_accuracy is vqa.vqa_accuracy
    with pytest.raises(ImportError, match="cannot import name 'recall' from 'evaluation'"):
        from evaluation import recall  # noqa: F401
