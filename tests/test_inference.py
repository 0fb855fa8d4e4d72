"""`Predictor`: against the models and pair by pair, for everything that counts as an image or a text."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.nlvr_dataset import StatementTokenizer
from dataset.retrieval_dataset import RetrievalEvalDataset
from dataset.sources import paired
from inference import Predictor, load_model
from models.rerank import score_split
from tests.helpers import read_rows
from tests.tiny import arguments, resolved
from utils.errors import InputError


@pytest.fixture(scope='module')
def model(pretrained):
    return load_model(pretrained)


@pytest.fixture(scope='module')
def pictures(shapes):
    return [str(shapes / row['image']) for row in read_rows(shapes, 'retrieval_test')]


@pytest.fixture(scope='module')
def captions(shapes):
    return [row['caption'][0] for row in read_rows(shapes, 'retrieval_test')]


def test_scores_are_those_of_the_evaluation_of_retrieval(model, shapes, tokenizer):
    """The same cosines, and the same logits of "match"."""
    dataset = RetrievalEvalDataset(resolved('retrieval', shapes), 'test', tokenizer)
    pixels = torch.stack([dataset[number]['image'] for number in range(len(dataset))])
    numbers = range(len(dataset.texts))
    scores = score_split(model.model, [pixels], [dataset.tokens(numbers)], k=100)
    paths = [dataset.path(number) for number in range(len(dataset))]
    sims = model.similarity(paths, dataset.texts, batch_size=5)
    torch.testing.assert_close(sims, scores.sim_i2t, atol=1e-6, rtol=0)
    features = model.encode_image(paths)
    assert features.dtype == torch.float32 and features.shape == (13, 16)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(13))
    assert (scores.i2t != -100).all()
    for image in (0, 7):
        itm = model.match_logits(paths[image], dataset.texts, batch_size=7)
        torch.testing.assert_close(itm[:, 1], scores.i2t[image], atol=1e-6, rtol=0)
        torch.testing.assert_close(itm, logits(model, pixels[image], dataset, numbers), atol=1e-6, rtol=0)
        torch.testing.assert_close(model.match(paths[image], dataset.texts), itm.softmax(dim=1)[:, 1])
        one_by_one = torch.cat([model.match_logits(paths[image], text) for text in dataset.texts[:3]])
        torch.testing.assert_close(itm[:3], one_by_one, atol=1e-6, rtol=0)
    assert not any(parameter.requires_grad for parameter in model.model.parameters()) and not model.model.training


def logits(model, pixels, dataset, numbers):
    """ITM's logits, each pair in a forward pass of its own: [n, 2]."""
    found = []
    for number in numbers:
        tokens = dataset.tokens([number])
        encoder = model.model.text_encoder
        memory = encoder.project(model.model.visual_encoder(pixels[None]))
        hidden = encoder(tokens.input_ids, tokens.attention_mask, memory=memory)
        found.append(model.model.itm_head(hidden[:, 0])[0])
    return torch.stack(found)


def test_pairs_are_those_of_equal_position(model, pictures, captions):
    together = model.match(pictures, captions, batch_size=4)
    alone = torch.cat([model.match(*pair) for pair in zip(pictures, captions, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.match(pictures, captions[0])[:1], alone[:1], atol=1e-6, rtol=0)
    with pytest.raises(InputError, match='2 images and 3 texts are no pairs; give as many, or one of a kind'):
        model.match(pictures[:2], captions[:3])
    assert model.match([], []).shape == model.match([], 'a').shape == (0,) and model.encode_image([]).shape == (0, 16)
    assert model.similarity([], captions).shape == (0, 13) and paired([1], []) == ([], [])


def test_images_are_paths_pillow_images_or_arrays(pretrained, pictures):
    model = load_model(pretrained, overrides=['reduced_decode=false'])  # a file that is decoded smaller differs a bit
    pillow = Image.open(pictures[0])
    array = np.asarray(pillow)
    expected = model.encode_image(pictures[0])
    assert expected.shape == (1, 16)
    for same in (Path(pictures[0]), pillow, array, [array], array[None]):
        assert torch.equal(model.encode_image(same), expected)
    gray = model.encode_image(pillow.convert('L'))
    assert torch.equal(model.encode_image(np.asarray(pillow.convert('L'))), gray) and not torch.equal(gray, expected)
    mixed = model.encode_image([pictures[0], pillow, array])
    torch.testing.assert_close(mixed, expected.expand(3, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    'image, message',
    [
        (np.zeros((4, 4, 3)), r'an array of float64 \[4, 4, 3\] is no image; give uint8'),
        (np.zeros((3, 4, 4), np.uint8), r'an array of uint8 \[3, 4, 4\] is no image'),
        (np.zeros((0, 4, 3), np.uint8), r'an array of uint8 \[0, 4, 3\] is no image'),
        ([None], 'NoneType is no image; give a path, a Pillow image or an array'),
        (None, 'NoneType is no image and no text; give one, or a list of them'),
        (b'abc', 'bytes is no image and no text'),
        (['none.jpg'], "cannot read the image 'none.jpg'"),
    ],
)
def test_what_is_no_image_is_named(model, image, message):
    with pytest.raises(InputError, match=message):
        model.encode_image(image)


def test_what_is_no_text_is_named(model, pictures):
    for method in (model.encode_text, lambda texts: model.match(pictures[0], texts)):
        with pytest.raises(InputError, match='int is no text; give a string, or a list of them'):
            method([1])
        with pytest.raises(InputError, match='list is no text'):
            method([['a']])
        assert torch.equal(method(np.array(['a ring', 'a star'])), method(('a ring', 'a star')))
    for size in (0, -1, 1.5):
        with pytest.raises(InputError, match=f'batch_size {size}: must be an integer of at least 1'):
            model.encode_text('a ring', size)


@pytest.mark.parametrize('text', ['', '  ', '?!', ['a ring', '...']])
def test_a_text_without_a_word_is_named(model, pictures, text):
    for method in (model.encode_text, lambda texts: model.match(pictures[0], texts)):
        with pytest.raises(InputError, match='has no word in it'):
            method(text)


def test_texts_are_cleaned_and_cut_as_in_the_evaluation(model):
    assert torch.equal(model.encode_text('A small, RED star!'), model.encode_text('a small red star'))
    words = 'red ' * 40
    assert torch.equal(model.encode_text(words), model.encode_text('red ' * 29))


def test_words_that_the_vocabulary_lacks_are_warned_of(model):
    with pytest.warns(UserWarning, match=r'1 of 2 tokens are \[UNK\], which stands for any word'):
        model.encode_text('red 猫')


# ---- other tasks ----


def test_a_method_of_another_task_says_what_it_needs(model, vqa_checkpoint, pictures):
    with pytest.raises(
        InputError, match=r'checkpoint_01.pth: it was trained for pre-training, and answer needs .* VQA'
    ):
        model.answer(pictures[0], 'what color is the ring?')
    with pytest.raises(InputError, match='and verify needs a checkpoint of NLVR2'):
        model.verify(*pictures[:2], 'a ring')
    with pytest.raises(InputError, match='and assign needs a checkpoint of text assignment'):
        model.assign(*pictures[:2], 'a ring')
    other = load_model(vqa_checkpoint)
    for name in ('encode_text', 'encode_image'):
        with pytest.raises(InputError, match=f'trained for VQA, and {name} needs .* pre-training or retrieval'):
            getattr(other, name)(pictures[0])
    with pytest.raises(InputError, match='heatmap needs'):
        other.heatmap(pictures[0], 'a ring')


@pytest.fixture(scope='module')
def vqa_checkpoint(shapes, pretrained, tmp_path_factory):
    """An epoch of VQA.py."""
    import VQA

    folder = tmp_path_factory.mktemp('vqa_one')
    argv = arguments('vqa', shapes, folder, 'schedular.epochs=1', 'val_file=null', 'test_file=null')
    VQA.main([*argv, '--checkpoint', str(pretrained)])
    return folder / 'checkpoint_00.pth'


def test_answers_are_those_of_the_model_and_survive_a_folder(vqa_checkpoint, pictures, shapes, tokenizer, tmp_path):
    model = load_model(vqa_checkpoint)
    found = model.answer(pictures[0], 'What color is the ring?', k=3)
    assert [type(part) for part in found[0]] == [str, float] and len(found) == 3
    ids, probabilities = model.model.rank_answers(
        model.transform(pictures[0])[None],
        tokenizer(['what color is the ring'], return_tensors='pt'),
        model.answers.tokens,
        4,
    )
    texts = [model.answers.texts[number] for number in ids[0].tolist()]
    assert found == list(zip(texts, probabilities[0].tolist(), strict=True))[:3]
    assert len(model.answer(pictures[0], 'what color?', k=9)) == 9  # more than k_test
    with pytest.raises(InputError, match='-1 answers: give a number of at least 1'):
        model.answer(pictures[0], 'what color?', k=-1)
    model.save_pretrained(tmp_path / 'vqa')
    assert Predictor.from_pretrained(tmp_path / 'vqa').answer(pictures[0], 'What color is the ring?', 3) == found


def test_two_images_and_a_statement(shapes, pretrained, pictures, tokenizer, tmp_path):
    import NLVR
    import Pretrain_nlvr

    settings = ['schedular.epochs=1', 'val_file=null', 'test_file=null']
    flags = ['--checkpoint', str(pretrained)]
    Pretrain_nlvr.main(arguments('nlvr_pretrain', shapes, tmp_path / 'a', 'schedular.epochs=1', flags=flags))
    NLVR.main(arguments('nlvr', shapes, tmp_path / 'b', *settings, 'distill=true', 'eval_ema=true', flags=flags))
    statement = 'There is a red star in the left image.'

    assigner = load_model(tmp_path / 'a' / 'checkpoint_00.pth')
    found = assigner.assign(*pictures[:2], statement)
    assert list(found) == ['first', 'second', 'neither'] and sum(found.values()) == pytest.approx(1)
    assert found != assigner.assign(*pictures[1::-1], statement)

    checkpoint = tmp_path / 'b' / 'checkpoint_00.pth'
    model, config = load_model(checkpoint), resolved('nlvr', shapes)
    images = torch.stack([model.transform(path) for path in pictures[:2]])
    logits = model.model(images, StatementTokenizer(config, tokenizer)([statement]))
    assert model.verify(*pictures[:2], statement) == pytest.approx(float(logits.softmax(dim=1)[0, 1]), abs=1e-6)
    state, name = torch.load(checkpoint, weights_only=True)['model'], 'cls_head.0.weight'
    copy = state[name.replace('cls_head', 'cls_head_m')]
    assert torch.equal(model.pretrained.state[name], copy) and not torch.equal(state[name], copy)
    with pytest.raises(InputError, match='has no word in it'):
        model.verify(*pictures[:2], '.')
