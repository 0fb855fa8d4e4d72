"""Choosing captions: scores in batches against one pair at a time, crops, Winoground, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from dataset.choices import read_choices
from dataset.images import read_image
from dataset.shapes.choices import choice_rows
from dataset.shapes.sampling import draw_scenes
from evaluation.choices import choice_metrics, pair_metrics
from reports import choose_caption
from tests.helpers import write_rows
from utils.errors import InputError


@pytest.fixture
def file(shapes, tmp_path):
    """Eight rows: two scenes of the small synthetic dataset, each with four kinds of swapped words."""
    return write_rows(tmp_path / 'choices.json', choice_rows(draw_scenes('test', 13, 0), 'test', 0)[:8])


class ColorModel:
    """A stand-in: the feature of a picture is its mean color, that of a caption the colors it names, in order."""

    COLORS = {'red': 0, 'green': 1, 'blue': 2}

    def __init__(self):
        self.images, self.texts, self.pairs = [], [], []

    @staticmethod
    def mean_color(image):
        pixels = read_image(image) if isinstance(image, str) else np.asarray(image)
        return pixels.reshape(-1, 3).mean(axis=0) / 255

    def encode_image(self, images, batch_size=64):
        self.images += images
        return torch.tensor(np.stack([self.mean_color(image) for image in images]), dtype=torch.float32)

    def encode_text(self, texts, batch_size=64):
        self.texts += texts
        weights = torch.zeros(len(texts), 3)
        for row, text in zip(weights, texts, strict=True):
            for place, word in enumerate(word for word in text.split() if word in self.COLORS):
                row[self.COLORS[word]] += 1 / (1 + place)
        return weights

    def match_logits(self, images, texts, batch_size=64):
        assert len(images) == len(texts) <= batch_size
        self.pairs += texts
        itc = (self.encode_image(images) * self.encode_text(texts)).sum(dim=1)
        return torch.stack([itc, -itc], dim=1)  # ITC's opposite


def paint(path, *colors):
    """A picture of equal columns of these colors, 10 x 10 pixels each."""
    columns = [np.full((10, 10, 3), color, np.uint8) for color in colors]
    Image.fromarray(np.concatenate(columns, axis=1)).save(path)


RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 255


def test_scores_are_those_of_one_pair_at_a_time(shapes, pretrained, file, tmp_path, capsys):
    out, vocabulary = tmp_path / 'result' / 'out.json', f'{shapes}/vocab'
    flags = ['--image_root', str(shapes), '--text_encoder', vocabulary, '--device', 'cpu', '--batch_size', '3']
    choose_caption.main([str(pretrained), file, *flags, '--out', str(out)])
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(out.read_text())
    model = inference.load_model(str(pretrained), text_encoder=vocabulary, device='cpu')
    rows = json.loads((tmp_path / 'choices.json').read_text())
    for number, (found, row) in enumerate(zip(result['rows'], rows, strict=True)):
        path = f'{shapes}/{row["image"]}'
        assert (found['file'], found['row'], found['kind']) == (file, str(number), row['kind'])
        assert (found['images'], found['captions']) == ([path], row['captions'])
        for caption, itc, itm in zip(row['captions'], found['itc'], found['itm'], strict=True):
            assert itc == pytest.approx(float(model.similarity(path, caption)), abs=1e-5)
            assert itm == pytest.approx(float(model.match_logits(path, caption).diff()), abs=1e-5)
    kinds = [row['kind'] for row in rows]
    for name in ('itc', 'itm'):
        assert result['metrics']['choice'][name] == choice_metrics([row[name] for row in result['rows']], kinds)
    assert lines[0] == f'{file}: 8 rows'
    assert [line.split()[0] for line in lines[1:]][:7] == ['kind', 'size', 'color', 'shape', 'relation', 'all', 'mean']
    itc, itm = (result['metrics']['choice'][name]['all']['accuracy'] for name in ('itc', 'itm'))
    assert lines[6].split() == ['all', '8', f'{itc:.2f}', f'{itm:.2f}', '50.00']


def test_each_image_and_text_is_encoded_once(shapes, file):
    model, rows = ColorModel(), read_choices(file, str(shapes))
    choose_caption.itc_scores(model, rows, 3)
    assert model.images == [f'{shapes}/images/test/0000{i}.jpg' for i in (0, 1)]
    assert len(model.texts) == len({*model.texts}) and {*model.texts} == {c for row in rows for c in row.captions}


def test_captions_that_are_equal_once_cleaned_are_ties(shapes, pretrained, file, tmp_path):
    """In whatever batch they would be, beside captions of other lengths."""
    long = {'captions': ['a red ring ' * 8, 'a ring'], 'kind': 'x'}
    rows = json.loads(Path(file).read_text())
    rows = [row | {'captions': [row['captions'][0], f' {row["captions"][0].upper()}!']} for row in rows]
    rows = [row | change for row in rows for change in ({}, long)]
    found = read_choices(write_rows(tmp_path / 'equal.json', rows), str(shapes))
    model = inference.load_model(str(pretrained), device='cpu')
    for scores in (choose_caption.itc_scores, choose_caption.itm_scores):
        assert all(one == two for ((one, two),) in scores(model, found[::2], 3))
        assert all(one == two for ((one, two),) in scores(model, found, 5)[::2])


def test_aro_is_cropped_to_its_box(tmp_path):
    """Of a picture that is red at its left and blue at its right; the wrong caption fits the rest of it."""
    paint(tmp_path / '1.png', RED, GREEN, BLUE)
    row = {'image_path': '1.png', 'bbox_y': 0, 'bbox_w': 10, 'bbox_h': 10}
    captions = {'true_caption': 'a blue cup', 'false_caption': 'a red cup', 'relation_name': 'x'}
    rows = [row | captions | {'bbox_x': x} for x in (20, 0, 20)]
    found = read_choices(write_rows(tmp_path / 'aro.json', rows), str(tmp_path))
    model = ColorModel()
    itc, itm = (scores(model, found, 2) for scores in (choose_caption.itc_scores, choose_caption.itm_scores))
    assert itc == [[[1, 0]], [[0, 1]], [[1, 0]]]
    assert model.images[0].size == (10, 10)
    metrics = choose_caption.measure(itc, itm, found)['choice']
    assert metrics['itc']['all']['accuracy'] == pytest.approx(200 / 3)
    assert metrics['itm']['all']['accuracy'] == pytest.approx(100 / 3)


@pytest.mark.parametrize('box', [(30, 0, 10, 10), (0, -20, 10, 10), (0, 0, 100000, 10), (0, 0, 10, 21)])
def test_a_box_of_another_picture_is_named(tmp_path, box):
    paint(tmp_path / '1.png', RED, GREEN, BLUE)
    row = {'image_path': '1.png', 'true_caption': 'a blue cup', 'false_caption': 'a red cup', 'relation_name': 'x'}
    row |= dict(zip(('bbox_x', 'bbox_y', 'bbox_w', 'bbox_h'), box, strict=True))
    good = row | {'bbox_x': 5, 'bbox_y': -5, 'bbox_w': 60, 'bbox_h': 20}  # partly outside
    found = read_choices(write_rows(tmp_path / 'aro.json', [good, row]), str(tmp_path))
    for scores in (choose_caption.itc_scores, choose_caption.itm_scores):
        with pytest.raises(InputError, match=r'aro.json, row 1: .* 30 x 10 pixels, and its box is \[.*; repair the im'):
            scores(ColorModel(), found, 2)
        assert len(scores(ColorModel(), found[:1], 2)) == 1


def winoground(folder):
    """Two rows: one that a bag of colors solves, one whose pictures differ in the order of colors only."""
    for name, colors in {'p': [RED], 'q': [GREEN], 'r': [RED, RED, BLUE], 's': [RED, BLUE, BLUE]}.items():
        paint(folder / f'{name}.png', *colors)
    rows = [
        {
            'image_0': 'p',
            'image_1': 'q',
            'caption_0': 'a red cup',
            'caption_1': 'a green cup',
            'collapsed_tag': 'Object',
        },
        {
            'image_0': 's',
            'image_1': 'r',
            'caption_0': 'red beside blue',
            'caption_1': 'blue beside red',
            'collapsed_tag': 'Relation',
        },
    ]
    return write_rows(folder / 'examples.json', rows)


def test_winoground_has_three_scores(tmp_path, monkeypatch, capsys):
    file, out = winoground(tmp_path), tmp_path / 'out.json'
    monkeypatch.setattr(inference, 'load_model', lambda source, **settings: ColorModel())
    choose_caption.main(['x.pth', file, '--image_root', str(tmp_path), '--batch_size', '3', '--out', str(out)])
    result = json.loads(out.read_text())
    assert result['rows'][0]['itc'] == [[1, 0], [0, 1]] and np.shape(result['rows'][1]['itm']) == (2, 2)
    assert result['metrics']['text']['itc']['kinds']['Object']['accuracy'] == 100
    assert result['metrics']['group']['itc']['kinds']['Relation']['accuracy'] == 0
    kinds = ['Object', 'Relation']
    for name in ('itc', 'itm'):
        expected = pair_metrics([row[name] for row in result['rows']], kinds)
        assert {metric: result['metrics'][metric][name] for metric in result['metrics']} == expected
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith('score')] == ['text score', 'image score', 'group score']
    assert [line.split()[-1] for line in lines if line.startswith('all ')] == ['25.00', '25.00', '16.67']


def test_a_broken_image_is_named_with_its_row(shapes, file, tmp_path):
    (tmp_path / 'broken.jpg').write_text('<html>not found</html>')
    rows = json.loads((tmp_path / 'choices.json').read_text())
    rows = [row | {'image': f'{shapes}/{row["image"]}'} for row in rows]
    broken = rows[5] | {'image': str(tmp_path / 'broken.jpg')}
    found = read_choices(write_rows(tmp_path / 'rows.json', [*rows[:5], broken, *rows[6:], broken]), '')
    for scores in (choose_caption.itc_scores, choose_caption.itm_scores):
        with pytest.raises(
            InputError, match=r'rows.json, row 5: cannot read the image .*broken.jpg.*; repair the image'
        ):
            scores(ColorModel(), found, 4)


def test_what_cannot_work_is_refused_before_the_model_is_loaded(shapes, file, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, 'load_model', None)
    pairs = winoground(tmp_path)
    (tmp_path / 'images').symlink_to(shapes / 'images')
    root = ['--image_root', str(tmp_path)]
    for argv, message in (
        (['x.pth', file, pairs, *root], 'files of Winoground have two pictures'),
        (['x.pth', file, *root, '--out', str(tmp_path)], 'is a folder; give the name of a file'),
        (['x.pth', file, '--image_root', str(tmp_path / 'gone')], 'row 0: there is no image .*; set --image_root'),
    ):
        with pytest.raises(InputError, match=message):
            choose_caption.main(argv)
