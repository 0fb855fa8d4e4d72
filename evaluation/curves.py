"""A picture of training curves: one run, or several to compare.

    python -m evaluation plot OUTPUT_DIR [OUTPUT_DIR ...] --out curves.png
    python -m evaluation plot output/Pretrain --evaluations output/zero_shot --out curves.png

It reads the log.txt of each run; the five scripts share one table of panels. The log of a pre-training run has no
recall: it comes from `Retrieval.py --evaluate` on the run's checkpoints, whose records name the checkpoint.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.log_table import read_log
from utils.errors import InputError
from utils.files import atomic_write

if TYPE_CHECKING:  # matplotlib and torch take seconds to import, for which --help must not wait
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = Sequence[Mapping[str, Any]]  # records of log.txt, each with `epoch`

WIDTH, DPI = 1600, 150  # pixels
INK, GREY, PALE = '#222226', '#8c8c94', '#ebebee'
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#7a4ea3', '#8c564b')  # one per run
AROUND = 0.03  # what a panel shows at least above and below its level, so that noise does not look like a trend
MANY = 25  # markers from left to right; a curve whose points are closer has none


class Panel(NamedTuple):
    """One panel of the picture.

    curves: {key of log.txt: words}, the first drawn solid, the second dashed. level: (height, words) to compare with.
    right: {key: words}, drawn dotted on a second, logarithmic axis.
    """

    title: str
    curves: Mapping[str, str]
    level: tuple[float, str] | None = None
    right: Mapping[str, str] = {}


PANELS = (
    Panel('Training loss', {'train_loss': 'loss'}),
    Panel('ITC loss', {'train_loss_itc': 'loss'}),
    Panel('MLM loss', {'train_loss_mlm': 'loss'}),
    Panel('ITM accuracy', {'train_itm_acc': 'accuracy'}, (2 / 3, 'always "no match"'), {'train_itm_beta': 'beta'}),
    Panel('ITM loss', {'train_loss_itm': 'loss'}, (0.6365, 'always "no match"')),
    Panel('Similarity of examples', {'train_sim_neighbour': 'neighbors', 'train_sim_random': 'random pairs'}),
    Panel('Mean of R@1, 5, 10 on val (%)', {'val_r_mean': 're-ranked by ITM', 'val_itc_r_mean': 'ITC only'}),
    Panel('Mean of R@1, 5, 10 on test (%)', {'test_r_mean': 're-ranked by ITM', 'test_itc_r_mean': 'ITC only'}),
    Panel('NLVR2 accuracy', {'val_acc': 'val', 'test_acc': 'test'}),
    Panel('VQA accuracy (%)', {'val_overall': 'val', 'test_overall': 'test'}),
)


def draw_curves(runs: Mapping[str, Run]) -> 'Figure':
    """Draw every panel for which a run has data. At least one must have some, and at most `len(COLORS)` runs fit.

    runs: {name: records}. The points of a curve are (epoch + 1, value).
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = [panel for panel in PANELS if _has_data(runs, panel.curves)]
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    width = WIDTH / DPI
    height = 0.4 + rows * min(0.8 * width / columns, 4.4)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor='white', layout='constrained')
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    for number, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, number), panel, runs)
    colors = [Line2D([], [], color=color, linewidth=2.5) for color, _ in zip(COLORS, runs, strict=False)]
    across = 140 // (max(map(len, runs)) + 9)  # 140 characters, of which color and gap take 9 per name
    place = {'loc': 'outside upper center', 'ncols': max(1, min(len(runs), across)), 'frameon': False}
    for text in figure.legend(colors, list(runs), labelcolor=INK, fontsize=10, **place).get_texts():
        text.set_parse_math(False)  # the name of a folder may contain a $
    return figure


def _draw_panel(axes: 'Axes', panel: Panel, runs: Mapping[str, Run]) -> None:
    """Draw a panel; the legend of its line styles is a line between the title and the axes, where no curve is."""
    from matplotlib.lines import Line2D

    legend = _draw_keys(axes, panel.curves, ('-', '--'), runs)
    if len(panel.curves) == 1:
        legend.clear()  # the title says what it is
    if panel.level:
        height, words = panel.level
        axes.axhline(height, color=GREY, linestyle='--', linewidth=1, zorder=1)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, height - AROUND), max(high, height + AROUND))
        legend[words] = Line2D([], [], color=GREY, linestyle='--', linewidth=1)
    if _has_data(runs, panel.right):
        right = axes.twinx()
        right.set_yscale('log', nonpositive='mask')
        dotted = _draw_keys(right, panel.right, (':',), runs)
        right.tick_params(which='both', labelsize=8.5, color=GREY, labelcolor=INK)
        right.spines[['top', 'left', 'bottom']].set_visible(False)
        right.spines['right'].set_color(GREY)
        legend |= {f'{words} (right axis)': line for words, line in dotted.items()}
    if legend:
        look = {'fontsize': 8.5, 'labelcolor': INK, 'handlelength': 2.2, 'columnspacing': 1.4, 'frameon': False}
        place = {'loc': 'lower left', 'bbox_to_anchor': (0, 1.03), 'borderaxespad': 0, 'borderpad': 0, 'ncols': 3}
        axes.legend(legend.values(), legend, **look, **place).set_in_layout(False)
    _style(axes, panel.title, [record['epoch'] + 1 for run in runs.values() for record in run])


def _style(axes: 'Axes', title: str, epochs: Sequence[int]) -> None:
    """Title, ticks and limits; all panels have the same epochs on the x axis."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc='left', pad=22, fontsize=10.5, fontweight='bold', color=INK)
    axes.set_xlabel('epochs trained', fontsize=9, color=INK)
    margin = max(0.25, 0.03 * (max(epochs) - min(epochs)))
    axes.set_xlim(min(epochs) - margin, max(epochs) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(labelsize=8.5, color=GREY, labelcolor=INK)
    axes.grid(axis='y', color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(GREY)


def _draw_keys(axes: 'Axes', keys: Mapping[str, str], styles: Sequence[str], runs: Mapping[str, Run]) -> dict[str, Any]:
    """Draw each key of each run that has it, labeled `RUN KEY` -> {words: line for the panel's legend}."""
    from matplotlib.lines import Line2D

    legend = {}
    epochs = [record['epoch'] for run in runs.values() for record in run]
    nearest = (max(epochs) - min(epochs)) / MANY
    for (key, words), style in zip(keys.items(), styles, strict=False):
        for (name, run), color in zip(runs.items(), COLORS, strict=False):
            points = _points(run, key)
            if points:
                distance = (points[-1][0] - points[0][0]) / max(1, len(points) - 1)
                marker = 'o' if len(points) == 1 or distance >= nearest else ''
                look = {'linestyle': style, 'marker': marker, 'markersize': 3.5}
                face = {} if style == '-' else {'markerfacecolor': 'white'}  # single points have no line
                label = f'{name} {key}'
                axes.plot(*zip(*points, strict=True), color=color, linewidth=1.6, label=label, **look, **face)
                legend[words] = Line2D([], [], color=INK, linewidth=1.4, **look, **face)
    return legend


def _has_data(runs: Mapping[str, Run], keys: Iterable[str]) -> bool:
    return any(_points(run, key) for run in runs.values() for key in keys)


def _points(run: Run, key: str) -> list[tuple[int, float]]:
    """[(epochs trained, value)] of the records that have a number for the key."""
    found = [(record['epoch'] + 1, record.get(key)) for record in run]
    return [(x, y) for x, y in found if isinstance(y, int | float) and math.isfinite(y)]


def read_runs(folders: Sequence[str], evaluations: Sequence[str] = ()) -> dict[str, Run]:
    """The records of each run: {name: [{epoch, key: value}, ...]}, ascending epochs.

    evaluations: folders of `Retrieval.py --evaluate` on checkpoints of these runs. The record of an evaluation is added
    to that of the epoch after which its checkpoint was written. A run's name is that of its folder if no other has it.
    """
    if len({*map(_resolved, folders)}) < len(folders):
        raise InputError('an output folder is given twice; give each run once')
    if len(folders) > len(COLORS):
        raise InputError(f'{len(folders)} runs are too many for one picture; give at most {len(COLORS)}')
    runs = {folder: _training_records(folder, read_log(Path(folder, 'log.txt'))) for folder in folders}
    for folder in evaluations:
        path = Path(folder, 'log.txt')
        if not _add_evaluations(path, read_log(path), runs):
            raise InputError(
                f'{path}: no line is an evaluation of a checkpoint_XX.pth of {", ".join(folders)}; give the '
                '--output_dir of Retrieval.py --evaluate --checkpoint OUTPUT_DIR/checkpoint_XX.pth'
            )
    names = [_resolved(folder).name for folder in folders]
    return {
        name if names.count(name) == 1 else folder: [runs[folder][epoch] for epoch in sorted(runs[folder])]
        for name, folder in zip(names, folders, strict=True)
    }


def _resolved(folder: str) -> Path:
    return Path(folder).resolve()


def _training_records(folder: str, records: Run) -> dict[int, dict[str, Any]]:
    """{epoch: record}, without the lines that --evaluate may have added to the log. InputError if there is no curve."""
    trained = {
        record['epoch']: dict(record)
        for record in records
        if isinstance(record.get('epoch'), int) and any(key.startswith('train_') for key in record)
    }
    if not _has_data({folder: [*trained.values()]}, (key for panel in PANELS for key in panel.curves)):
        known = ', '.join(key for panel in PANELS for key in panel.curves if key.startswith('train_'))
        raise InputError(
            f'{folder}/log.txt has no curve: no line has `epoch` and one of {known}; give the output folder of a '
            'training run, and those of Retrieval.py --evaluate after --evaluations'
        )
    return trained


def _add_evaluations(path: Path, records: Run, runs: Mapping[str, dict[int, dict[str, Any]]]) -> int:
    """Add evaluations to the records of their runs -> how many. It prints which lines are left out."""
    added = 0
    for number, record in enumerate(records, start=1):
        checkpoint = Path(str(record.get('checkpoint') or ''))
        epoch = re.fullmatch(r'checkpoint_(\d+)\.pth', checkpoint.name)
        folder = _folder_of(checkpoint, [*runs])
        recall = {key: value for key, value in record.items() if key.startswith(('val_', 'test_'))}
        reason = ''
        if not checkpoint.name:
            reason = 'names no checkpoint'
        elif not (epoch and folder):
            reason = f'{checkpoint} is no checkpoint_XX.pth of the runs'
        elif not any(key.endswith('r_mean') for key in recall):
            reason = 'has no recall'
        if reason:
            print(f'left out {path}, line {number}: {reason}')
        else:
            epoch = int(epoch[1])
            runs[folder][epoch] = runs[folder].get(epoch, {'epoch': epoch}) | recall
            added += 1
    return added


def _folder_of(checkpoint: Path, folders: Sequence[str]) -> str | None:
    """The folder with a checkpoint; a run that was moved is known by its folder's name, if only one has it."""
    parent = checkpoint.resolve().parent
    same = [folder for folder in folders if _resolved(folder) == parent]
    same = same or [folder for folder in folders if _resolved(folder).name == parent.name]
    return same[0] if len(same) == 1 else None


def plot_runs(folders: Sequence[str], out: str, evaluations: Sequence[str] = ()) -> None:
    """Draw the curves of runs, by their output folders, and write them to `out`, a PNG file; see `read_runs`."""
    if not out.endswith('.png'):
        raise InputError(f'--out {out}: the name must end in .png')
    runs = read_runs(folders, evaluations)
    figure = draw_curves(runs)
    with atomic_write(out, 'wb') as file:
        figure.savefig(file, format='png')
    print(f'{out}: training curves of {", ".join(runs)}')
