"""Masked words by kind: the batched prediction against one pair at a time, and the command."""

import json

import pytest
import torch

import dataset.shapes.scene as scene
from dataset.transforms import eval_transform
from models import create_model
from reports import masked_words
from tests.helpers import read_pth, read_rows, write_rows
from tests.tiny import resolved
from utils.errors import InputError

KINDS = {'color': list(scene.COLORS), 'size': list(scene.SIZES), 'shape': list(scene.SHAPES)}
WORDS = {word: kind for kind, words in KINDS.items() for word in words}


@pytest.fixture(scope='module')
def model(shapes, tokenizer):
    """Random weights, so large that predictions depend on the text and the image; in training mode, with dropout."""
    torch.manual_seed(0)
    config = resolved('pretrain', shapes)
    model = create_model('pretrain', config, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(16)
    return model.train()


@torch.no_grad()
def one_pair_at_a_time(model, tokenizer, rows, root, transform):
    """(kind, true word, predicted word) of every masked word: [MASK] is written into the caption."""
    found = []
    for row in rows:
        memory = model.text_encoder.bert.project(model.visual_encoder(transform(root / row['image'])[None]))
        for caption in row['caption']:
            words = caption.split()
            for place, word in enumerate(words):
                if word in WORDS:
                    text = tokenizer(' '.join([*words[:place], '[MASK]', *words[place + 1 :]]), return_tensors='pt')
                    fused = model.text_encoder.bert(text.input_ids, text.attention_mask, memory=memory)
                    logits = model.text_encoder.cls(fused)[0, text.input_ids[0] == tokenizer.mask_token_id]
                    found.append((WORDS[word], word, tokenizer.convert_ids_to_tokens(int(logits.argmax()))))
    return found


def test_batches_predict_what_one_pair_at_a_time_predicts(shapes, tokenizer, model, monkeypatch):
    """Also with several batches of images, several passes in a batch, captions of different lengths."""
    rows, transform = read_rows(shapes, 'retrieval_test')[:5], eval_transform(resolved('pretrain', shapes))
    rows.insert(1, {'image': 'no such image', 'caption': ['nothing but ж', '']})  # it is not read
    rows[-1]['caption'].append('ж')  # not in the vocabulary: skipped
    rows[2]['caption'][0] = ' '.join(rows[2]['caption'][0].split()[:4])
    predictions = []
    monkeypatch.setattr(masked_words, 'masked_word_metrics', lambda found: predictions.extend(found) or {})
    monkeypatch.setattr(masked_words, 'IMAGES_AT_ONCE', 4)
    monkeypatch.setattr(masked_words, 'TEXTS_AT_ONCE', 17)
    kinds = KINDS | {'letter': ['ж']}
    result = masked_words.masked_word_accuracy(
        model, tokenizer, rows, str(shapes), kinds, torch.device('cpu'), transform
    )
    assert model.training and result == {'kinds': {}, 'images': 5, 'skipped': 2}

    model.eval()
    del rows[1]
    expected = one_pair_at_a_time(model, tokenizer, rows, shapes, transform)
    swapped = [row | {'image': rows[i - 1]['image']} for i, row in enumerate(rows)]
    others = one_pair_at_a_time(model, tokenizer, swapped, shapes, transform)
    changed = sum(one != other for one, other in zip(expected, others, strict=True))
    assert changed > len(expected) / 5 and len({predicted for *_, predicted in expected}) > 3  # the image matters
    assert len(expected) > 2 * 17
    assert predictions == expected


def test_words_of_several_tokens_or_beyond_the_cut_are_skipped(tokenizer):
    kinds = {'color': ['red', 'ж'], 'shape': ['star', 'stars']}
    tokens = masked_words.word_tokens(tokenizer, kinds)
    red, star, mask = tokenizer.convert_tokens_to_ids(['red', 'star', tokenizer.mask_token])
    assert tokens['red'] == ('color', red) and tokens['star'] == ('shape', star) and tokens['ж'] == ('color', None)
    ids = tokenizer('a red star').input_ids
    caption = 'A red, star: ж star'
    texts, skipped = masked_words.mask_words(tokenizer, caption, tokens, 4)
    assert texts == [([*ids[:2], mask, ids[3]], 2, red, 'color'), ([*ids[:3], mask], 3, star, 'shape')]
    assert skipped == 2  # one is not in the vocabulary, one is cut off
    texts, skipped = masked_words.mask_words(tokenizer, caption, tokens, 25)
    assert [text.token for text in texts] == [red, star, star] and skipped == 1
    # A word of two tokens is skipped even if the cut leaves one of them, and it moves the words behind it.
    two = 'redq'
    assert tokenizer.tokenize(two) == ['red', '##q']
    tokens = masked_words.word_tokens(tokenizer, {'color': ['red', two]})
    assert masked_words.mask_words(tokenizer, f'a {two}', tokens, 3) == ([], 1)
    texts, _ = masked_words.mask_words(tokenizer, f'a {two} red', tokens, 25)
    assert [(text.position, text.token) for text in texts] == [(4, red)]


def arguments(shapes, checkpoint, words, *flags):
    data = ['--annotations', f'{shapes}/retrieval_test.json', '--image_root', str(shapes), '--words', str(words)]
    return [str(checkpoint), '--text_encoder', f'{shapes}/vocab', '--device', 'cpu', *data, *flags]


def test_the_command_prints_a_table_and_writes_json(shapes, pretrained, tokenizer, tmp_path, capsys):
    """On the newest checkpoint of a folder."""
    words, out = write_rows(tmp_path / 'words.json', KINDS | {'animal': ['dog']}), tmp_path / 'result' / 'out.json'
    masked_words.main(arguments(shapes, pretrained.parent, words, '--out', str(out), '--limit', '6'))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'{pretrained}: 6 images') and lines[-1] == 'kinds without a masked word: animal'
    result = json.loads(out.read_text())
    assert result['checkpoint'] == str(pretrained) and result['images'] == 6 and result['skipped'] == 0

    config = resolved('pretrain', shapes)
    model = create_model('pretrain', config, tokenizer).eval()
    model.load_state_dict(read_pth(pretrained)['model'])
    rows = read_rows(shapes, 'retrieval_test')[:6]
    expected = one_pair_at_a_time(model, tokenizer, rows, shapes, eval_transform(config))
    for line, (kind, metrics) in zip(lines[2:5], result['kinds'].items(), strict=True):
        pairs = [(true, predicted) for name, true, predicted in expected if name == kind]
        correct = sum(true == predicted for true, predicted in pairs)
        assert metrics['count'] == len(pairs) and metrics['accuracy'] == pytest.approx(100 * correct / len(pairs))
        assert line.split() == [
            kind, f'{metrics["accuracy"]:.1f}', '%', f'{metrics["most_frequent"]:.1f}', '%', str(len(pairs))
        ]  # fmt: skip
    assert list(result['kinds']) == list(KINDS)


def test_a_checkpoint_with_a_key_of_training_that_no_longer_exists_is_read(shapes, pretrained, tmp_path, capsys):
    content = read_pth(pretrained)
    torch.save(content | {'config': content['config'] | {'a_former_key': 1}}, tmp_path / 'older.pth')
    words = write_rows(tmp_path / 'words.json', KINDS)
    masked_words.main(arguments(shapes, tmp_path / 'older.pth', words, '--limit', '1'))
    assert 'older.pth: 1 images' in capsys.readouterr().out


@pytest.mark.parametrize('content, message', [
    ('{"color": ["red"', 'words.json is not valid JSON'),
    ('["red"]', r'words.json must contain \{kind: \[word, ...\]\}'),
    ('{}', r'words.json must contain \{kind: \[word, ...\]\}'),
    ('{"color": "red"}', "'color' must have a list of words"),
    ('{"color": []}', "'color' must have a list of words"),
    ('{"color": ["red", 3]}', "'color' must have a list of words"),
    ('{"relation": ["left-of"]}', "'left-of' of 'relation' is not one word"),
    ('{"color": ["orange"], "fruit": ["pear", "Orange"]}', "'Orange' is in 'color' and in 'fruit'"),
])  # fmt: skip
def test_a_bad_file_of_words_is_named(tmp_path, content, message):
    (tmp_path / 'words.json').write_text(content)
    with pytest.raises(InputError, match=message):
        masked_words.read_word_kinds(str(tmp_path / 'words.json'))


def test_words_are_cleaned_as_captions_are(tmp_path):
    path = write_rows(tmp_path / 'words.json', {'color': ['Red', 'red', 'blue!']})
    assert masked_words.read_word_kinds(path) == {'color': ['red', 'red', 'blue']}


def test_what_is_missing_or_does_not_fit_is_named(shapes, pretrained, tmp_path):
    words = write_rows(tmp_path / 'words.json', KINDS)

    def fails(error, message, checkpoint, words, *flags):
        with pytest.raises(error, match=message):
            masked_words.main(arguments(shapes, checkpoint, words, *flags))

    fails(FileNotFoundError, '--words none.json: there is no such file', pretrained, 'none.json')
    fails(FileNotFoundError, 'CHECKPOINT none.pth: there is no such file', 'none.pth', words)
    fails(FileNotFoundError, 'no checkpoint of Pretrain.py in it', tmp_path, words)
    torch.save(read_pth(pretrained) | {'task': 'vqa'}, tmp_path / 'vqa.pth')
    fails(InputError, 'vqa.pth: it is a checkpoint of task vqa', tmp_path / 'vqa.pth', words)
    torch.save(read_pth(pretrained)['model'], tmp_path / 'state.pth')
    fails(InputError, 'state.pth: it is a checkpoint of another program', tmp_path / 'state.pth', words)
    fails(FileNotFoundError, 'none.json does not exist', pretrained, words, '--annotations', 'none.json')
    fails(InputError, r'cannot read the image .*correct --image_root', pretrained, words, '--image_root', 'elsewhere')
    dogs = write_rows(tmp_path / 'dogs.json', {'animal': ['dog']})
    fails(InputError, 'no word of --words .*dogs.json could be masked', pretrained, dogs)
