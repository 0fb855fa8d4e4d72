"""predict.py: a checkpoint that is used without anything else, by each command."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import predict
from dataset.vqa_dataset import read_answer_list
from predict import load_model
from tests.helpers import read_pth, read_rows
from utils.errors import InputError


@pytest.fixture
def pictures(shapes, tmp_path):
    """A folder with nine pictures in two folders, a text, and a damaged picture; [(name, caption)]."""
    found = []
    for number, row in enumerate(read_rows(shapes, 'retrieval_test')[:9]):
        name = f'{"sub/" if number > 4 else ""}{number}.jpg'
        (tmp_path / 'pictures' / 'sub').mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / row['image'], tmp_path / 'pictures' / name)
        found.append((name, row['caption'][0]))
    (tmp_path / 'pictures' / 'notes.txt').write_text('no picture')
    (tmp_path / 'pictures' / 'sub' / '55.jpg').write_bytes(b'damaged')
    Path(os.fsdecode(os.fsencode(tmp_path) + b'/pictures/caf\xe9.jpg')).write_bytes(b'any')
    return tmp_path / 'pictures', found


# ---- features, retrieve, match, heatmap: with the weights in examples/ ----


def test_features_of_a_folder(pictures, tmp_path, capsys):
    folder, found = pictures
    files = [str(tmp_path / name) for name in ('f.parquet', 'f.npz')]
    for file in files:
        predict.main(['features', '--images', str(folder), '--out', file, '--batch_size', '4'])
        out, err = capsys.readouterr()
        assert f'{file}: features of 9 pictures, 64 numbers each' in out
        assert err.count('left out') == 2 and re.search(r"left out: cannot read the image '.*sub/55.jpg'", err)
        assert 'left out: name that is not UTF-8, the first: caf' in err
    table, arrays = parquet.read_table(files[0]), np.load(files[1])
    names = [name for name, _ in found]
    assert table['path'].to_pylist() == arrays['path'].tolist() == names
    expected = load_model(predict.EXAMPLE).encode_image([str(folder / name) for name in names])
    features = table['feature'].combine_chunks().flatten().to_numpy().reshape(-1, 64)
    assert features.dtype == np.float32 and np.array_equal(features, arrays['feature'])
    torch.testing.assert_close(torch.tensor(features), expected, atol=1e-5, rtol=0)


def test_pictures_are_found_for_texts(pictures, tmp_path, capsys):
    """Re-ranked by ITM, the picture of each caption comes first for most; without, they are ordered by ITC."""
    folder, found = pictures
    page, texts = tmp_path / 'found.html', [caption for _, caption in found]
    flags = ['--images', str(folder), *(word for text in texts for word in ('--text', text)), '--out', str(page)]
    model, names = load_model(predict.EXAMPLE), [name for name, _ in found]
    sims = model.similarity([str(folder / name) for name in names], texts)
    for rerank, kind in (('64', "ITM's logit of a match"), ('0', 'ITC cosine')):
        predict.main(['retrieve', *flags, '--top', '3', '--rerank', rerank])
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == f'{page}: the best 3 of 9 pictures by {kind}'
        first = [lines[4 * number + 1].split()[1] for number in range(9)]
        assert [lines[4 * number] for number in range(9)] == texts
        if rerank == '0':
            assert first == [names[number] for number in sims.argmax(dim=0).tolist()]
        assert sum(one == name for one, name in zip(first, names, strict=True)) >= 7
        html = page.read_text()
        assert (
            html.count('class="query"') == 9
            and html.count('<figure>') == 27
            and kind.replace("'", '&#x27;') in html
            or kind in html
        )
        assert all(text in html for text in texts) and not re.search(r'src="(?!data:)', html)


def test_pairs_are_matched(pictures, capsys):
    folder, found = pictures
    (name, caption), (_, other) = found[0], found[-1]
    predict.main(['match', '--image', str(folder / name), '--text', caption, '--text', other])
    lines = capsys.readouterr().out.splitlines()
    model = load_model(predict.EXAMPLE)
    probability = model.match(str(folder / name), [caption, other])
    assert [float(line.split()[1]) for line in lines[1:]] == pytest.approx(probability.tolist(), abs=1e-4)
    sims = model.similarity(str(folder / name), [caption, other])[0]
    assert [float(line.split()[0]) for line in lines[1:]] == pytest.approx(sims.tolist(), abs=1e-4)
    assert probability[0] > 0.5 > probability[1]


def test_a_heat_map_is_drawn(pictures, capsys):
    folder, found = pictures
    name, caption = found[0]
    predict.main(['heatmap', '--image', str(folder / name), '--text', caption])
    out = folder / '0_heatmap.png'
    assert capsys.readouterr().out == f'{out}: heat maps of {len(caption.split())} words and of the whole text\n'
    with Image.open(out) as image:
        assert image.size[0] > 600 and len(np.unique(np.asarray(image.convert('RGB')).reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    'argv, message',
    [
        (['features', '--images', '{f}', '--out', 'x.csv'], '--out x.csv: the name must end in .parquet or .npz'),
        (['features', '--images', '{f}/none', '--out', 'x.npz'], 'the folder .*none does not exist'),
        (['features', '--images', '{f}/..', '--out', 'x.npz', '--checkpoint', 'c.pth'], 'c.pth: there is no such file'),
        (['retrieve', '--images', '{e}', '--text', 'a ring'], 'there is no picture in it'),
        (['retrieve', '--images', '{f}', '--text', '?'], "the text '\\?' has no word in it"),
        (['retrieve', '--images', '{f}', '--text', 'a', '--rerank', '-1'], '--rerank -1: must be at least 0'),
        (
            ['match', '--image', 'a', '--image', 'b', '--text', 'c', '--text', 'd', '--text', 'e'],
            '2 images and 3 texts',
        ),
        (['heatmap', '--image', '{f}/0.jpg', '--text', 'a', '--out', 'x.jpg'], 'the name must end in .png'),
        (['heatmap', '--image', '{f}/0.jpg', '--text', 'a', '--layer', '9'], 'fusion layer 9: heat maps are of'),
        (['answer', '--image', '{f}/0.jpg', '--question', 'what?'], 'trained for pre-training, and answer needs'),
        (
            ['verify', '--image', '{f}/0.jpg', '{f}/1.jpg', '--statement', 'a ring'],
            'verify needs a checkpoint of NLVR2',
        ),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(pictures, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    for name in ('empty', 'folder.npz'):
        (tmp_path / name).mkdir()
    with pytest.raises((InputError, FileNotFoundError), match=message):
        predict.main([word.format(f='pictures', e='empty') for word in argv])
    assert not [*tmp_path.glob('x.*'), *tmp_path.glob('*.html')]


def test_a_folder_without_readable_pictures_writes_nothing(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'damaged')
    with pytest.raises(InputError, match='none of its 1 pictures can be read'):
        predict.main(['features', '--images', str(tmp_path), '--out', str(tmp_path / 'x.parquet')])
    assert os.listdir(tmp_path) == ['a.jpg']


def test_words_that_the_vocabulary_lacks_are_one_line(pictures, capsys):
    predict.main(['match', '--image', str(pictures[0] / '0.jpg'), '--text', '猫'])
    err = capsys.readouterr().err
    assert err.startswith('warning: 1 of 1 tokens are [UNK]') and err.count('\n') == 1


# ---- answer ----


@pytest.mark.parametrize('is_old', [False, True])
def test_questions_are_answered_with_only_the_checkpoint(shapes, vqa_run, tmp_path, monkeypatch, capsys, is_old):
    """Answers, vocabulary and configuration are the checkpoint's, wherever it is; also where it was kept before."""
    content = read_pth(vqa_run / 'checkpoint_01.pth')
    if is_old:
        content['ranks'][0]['answers']['tokenizer'] = content.pop('tokenizer')
    torch.save(content, tmp_path / 'c.pth')
    Image.open(shapes / read_rows(shapes, 'vqa_test')[0]['image']).save(tmp_path / 'a.png')
    monkeypatch.chdir(tmp_path)
    questions = 'What color is the circle?', 'how many objects are there?'
    flags = [word for question in questions for word in ('--question', question)]
    predict.main(['answer', '--checkpoint', 'c.pth', '--image', 'a.png', *flags])
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[6]) == questions and len(lines) == 12
    answers = read_answer_list(shapes / 'answer_list.json')
    probabilities = [float(line.split('%')[0]) for line in lines[1:6]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(100, abs=0.05)
    assert all(line.split('%')[1].strip() in answers for line in lines[1:6])
    assert sorted(os.listdir(tmp_path)) == ['a.png', 'c.pth']


def test_another_list_of_answers(shapes, vqa_run, tmp_path, capsys):
    (tmp_path / 'list.json').write_text(json.dumps(['red', 'blue']))
    argv = ['answer', '--checkpoint', str(vqa_run / 'checkpoint_01.pth'), '--question', 'what color is the circle?']
    image = str(shapes / 'images' / 'test' / '00000.jpg')
    predict.main([*argv, '--image', image, '--set', f'answer_list={tmp_path / "list.json"}'])
    assert sorted(line.split('%')[1].strip() for line in capsys.readouterr().out.splitlines()[1:]) == ['blue', 'red']


def test_what_is_missing_is_named(pretrained, vqa_run, capsys):
    checkpoint = str(vqa_run / 'checkpoint_01.pth')

    def answer(checkpoint, *flags):
        predict.main(['answer', '--checkpoint', checkpoint, '--image', 'a.png', *flags])

    with pytest.raises(SystemExit) as error:
        answer(checkpoint)
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith('error: the following arguments are required: --question')
    with pytest.raises(InputError, match='trained for pre-training, and answer needs a checkpoint of VQA'):
        answer(str(pretrained), '--question', 'what?')
    with pytest.raises(FileNotFoundError, match='checkpoint none.pth: there is no such file'):
        answer('none.pth', '--question', 'what?')
    with pytest.raises(InputError, match="cannot read the image 'a.png'"):
        answer(checkpoint, '--question', 'what?')


def test_a_folder_with_fewer_pictures_than_wanted(pictures, tmp_path, capsys):
    flags = ['--images', str(pictures[0]), '--text', 'a red ring', '--out', str(tmp_path / 'p.html')]
    for top, rerank, shown in (('100', '2', 9), ('5', '2', 5)):
        predict.main(['retrieve', *flags, '--top', top, '--rerank', rerank])
        lines = capsys.readouterr().out.splitlines()
        assert f'the best {shown} of 9 pictures' in lines[-1] and len(lines) == 2 + shown
