"""Files with weights: every layout that programs write is read, and what cannot be used is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast

from models.bert_layers import BertConfig
from models.tokenization_bert import create_tokenizer
from models.vit import create_vit
from models.weight_files import model_state, read_bert, read_checkpoint, read_weights, weights_folder
from models.weights import load_bert, load_deit
from models.xbert import create_bert
from tests.models.test_weights import SMALL
from utils.errors import InputError

POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'a' * 64 + b'\nsize 440473133\n'
VOCABULARY = '[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n'

# ---- BERT's folders ----


@pytest.fixture(scope='module')
def theirs():
    from transformers import BertConfig as TheirConfig
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    return BertForMaskedLM(TheirConfig(**SMALL, initializer_range=0.2))


@pytest.fixture
def bert(theirs, tmp_path):
    """A folder with a small BERT as Hugging Face saves it."""
    theirs.save_pretrained(tmp_path / 'bert')
    return tmp_path / 'bert'


def refused(folder, message):
    for load in (read_bert, lambda name: load_bert(None, name, 'answer decoder', '--text_decoder')):
        with pytest.raises(InputError, match=f'--text_(en|de)coder {folder}: .*{message}') as error:
            load(str(folder))
        assert '\n' not in str(error.value)


def test_weights_without_a_configuration_are_refused(bert):
    (bert / 'config.json').unlink()
    refused(bert, 'model.safetensors has no config.json beside it; add that of the same model')
    (bert / 'model.safetensors').rename(bert / 'pytorch_model.bin')
    refused(bert, 'pytorch_model.bin has no config.json')


@pytest.mark.parametrize('kind', ['distilbert', 'roberta', 'albert'])
def test_another_model_is_refused(bert, kind):
    config = json.loads((bert / 'config.json').read_text())
    (bert / 'config.json').write_text(json.dumps(config | {'model_type': kind}))
    refused(bert, f'config.json is that of a {kind}, whose weights do not fit a BERT; give a BERT')


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin', 'config.json'])
@pytest.mark.parametrize('content, message', [(POINTER, 'it is a pointer of git-lfs'), (b'', 'it is empty')])
def test_pointers_and_empty_files_are_named(bert, file, content, message):
    if file == 'pytorch_model.bin':
        (bert / 'model.safetensors').unlink()
    (bert / file).write_bytes(content)
    refused(bert, f'{file}: {message}.*download')


@pytest.mark.parametrize(
    'file',
    [
        *('tf_model.h5', 'flax_model.msgpack', 'rust_model.ot', 'model.onnx', 'model.safetensors.part'),
        *('bert_model.ckpt.data-00000-of-00001', 'pytorch_model-00001-of-00002.bin', 'bert.pth'),
    ],
)
@pytest.mark.parametrize('has_config', [True, False])
def test_weights_of_another_kind_are_named(bert, file, has_config):
    (bert / 'model.safetensors').rename(bert / file)
    if not has_config:
        (bert / 'config.json').unlink()
    refused(bert, f'{file} is not used, and there is no model.safetensors or pytorch_model.bin; add it, or')


def test_a_configuration_without_weights_is_not_a_bare_vocabulary(bert):
    (bert / 'model.safetensors').unlink()
    refused(bert, 'there is a config.json, and there is no model.safetensors or pytorch_model.bin')


def test_only_a_bare_vocabulary_starts_at_random(tmp_path):
    for file in ('vocab.txt', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'README.md'):
        (tmp_path / file).write_text(VOCABULARY)
    assert weights_folder(str(tmp_path)) is None and read_bert(str(tmp_path)) is None
    assert load_bert(None, str(tmp_path)) == f'text encoder: {tmp_path} has no BERT weights, they are random'


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_every_layout_of_the_library_gives_the_same_weights(bert, theirs, tmp_path):
    """In one file or in several, with TensorFlow's beside it, with an early release's configuration."""
    expected = read_bert(str(bert))
    assert torch.equal(
        expected['bert.embeddings.word_embeddings.weight'], theirs.bert.embeddings.word_embeddings.weight
    )
    theirs.save_pretrained(tmp_path / 'sharded', max_shard_size='50KB')
    assert len(list((tmp_path / 'sharded').glob('model-*.safetensors'))) > 1
    assert same(read_bert(str(tmp_path / 'sharded')), expected)
    (bert / 'tf_model.h5').write_bytes(b'not read')
    config = json.loads((bert / 'config.json').read_text())
    del config['model_type']
    (bert / 'config.json').write_text(json.dumps(config))
    assert same(read_bert(str(bert)), expected)
    shutil.copytree(bert, tmp_path / 'bin')
    (tmp_path / 'bin' / 'model.safetensors').unlink()
    torch.save(theirs.state_dict(), tmp_path / 'bin' / 'pytorch_model.bin')
    assert same(read_bert(str(tmp_path / 'bin')), expected)


def test_a_shard_that_is_missing_or_a_pointer_is_named(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size='50KB')
    shard = sorted(tmp_path.glob('model-*.safetensors'))[1]
    shard.write_bytes(POINTER)
    refused(tmp_path, f'{shard.name}: it is a pointer of git-lfs')
    shard.unlink()
    refused(tmp_path, f'model.safetensors.index.json names {shard.name}, which is missing')


def test_a_bert_of_another_shape_is_named_with_its_flag(bert):
    encoder = create_bert(BertConfig(**SMALL | {'hidden_size': 16}, fusion_layer=1, encoder_width=8))
    with pytest.raises(InputError, match=f'--text_decoder {bert} does not fit this model: other shapes: .*bert_config'):
        load_bert(encoder, str(bert), 'answer decoder', '--text_decoder')


# ---- tokenizer files ----


@pytest.mark.parametrize(
    'content, message',
    [
        (VOCABULARY.encode('utf-8-sig'), 'it begins with a byte order mark; save it as UTF-8 without one'),
        (VOCABULARY.encode('utf-16'), 'it begins with a byte order mark'),
        ((VOCABULARY + 'über\n').encode('latin-1'), r'it is not UTF-8 text \(line 7: .*\); save it as UTF-8'),
        (POINTER, 'it is a pointer of git-lfs'),
    ],
)
@pytest.mark.parametrize('file', ['vocab.txt', 'tokenizer.json'])
def test_a_vocabulary_in_another_encoding_is_named(tmp_path, file, content, message):
    (tmp_path / 'vocab.txt').write_text(VOCABULARY)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=rf'--text_encoder {tmp_path}: .*\({file}: {message}'):
        create_tokenizer(str(tmp_path))


# ---- checkpoints ----

STATE = {'blocks.0.w': torch.ones(2), 'norm.w': torch.zeros(3)}


def prefixed(prefix, value=0.0):
    return {f'{prefix}{key}': tensor + value for key, tensor in STATE.items()}


@pytest.mark.parametrize(
    'content',
    [
        STATE,
        {'model': STATE, 'epoch': 3},
        {'state_dict': prefixed('model.'), 'pytorch-lightning_version': '2.1', 'epoch': 3},
        {'state_dict': prefixed('model._orig_mod.'), 'loops': {}},
        {'arch': 'deit', 'state_dict': prefixed('module.'), 'state_dict_ema': prefixed('module.', 1), 'version': 2},
        {'arch': 'deit', 'state_dict_ema': prefixed('')},
        {'model_state_dict': prefixed('module.module.')},
        {'model': 'vit', 'state_dict': STATE},
    ],
)
def test_the_layouts_of_other_programs_are_read(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    for option in ('--checkpoint', 'init_deit'):
        assert same(read_weights(tmp_path / 'a.pth', option), STATE)


def test_which_of_two_models_is_used_is_printed(capsys):
    assert same(model_state({'model': STATE, 'model_ema': prefixed('', 1)}, 'a.pth'), STATE)
    assert capsys.readouterr().out == '--checkpoint a.pth: the weights are those under model, not model_ema\n'
    with pytest.raises(InputError, match='init_deit a.pth: has the weights of several models; save one of them'):
        model_state(prefixed('model.') | STATE, 'a.pth', 'init_deit')


def test_safetensors_files_are_read(tmp_path):
    save_file(STATE, tmp_path / 'a.safetensors')
    assert same(read_weights(tmp_path / 'a.safetensors', 'init_deit'), STATE)
    (tmp_path / 'a.safetensors').write_bytes(b'half a file')
    with pytest.raises(InputError, match='init_deit .*a.safetensors: not a readable checkpoint'):
        read_weights(tmp_path / 'a.safetensors', 'init_deit')


@pytest.mark.parametrize('option', ['--checkpoint', 'init_deit'])
def test_a_checkpoint_that_is_a_pointer_is_named(tmp_path, option):
    (tmp_path / 'a.pth').write_bytes(POINTER)
    with pytest.raises(InputError, match=f'{option} .*a.pth: it is a pointer of git-lfs, not the file itself; fetch'):
        read_checkpoint(tmp_path / 'a.pth', option)


# ---- DeiT ----

SHAPE = {'patch_size': 16, 'embed_dim': 12, 'depth': 1, 'num_heads': 2, 'mlp_ratio': 4}


def distilled(state):
    """The weights of a DeiT with its second token."""
    position = state['pos_embed']
    return state | {
        'pos_embed': torch.cat([position[:, :1], torch.full((1, 1, 12), 9.0), position[:, 1:]], dim=1),
        'dist_token': torch.ones(1, 1, 12),
        'head_dist.weight': torch.zeros(1000, 12),
        'head_dist.bias': torch.zeros(1000),
    }


@pytest.mark.parametrize('resolution', [64, 96])
def test_a_distilled_deit_loads_as_one_without_its_second_token(tmp_path, resolution):
    source = dict(create_vit(64, SHAPE).state_dict())
    loaded = []
    for state in (source, distilled(source)):
        target = create_vit(resolution, SHAPE)
        torch.save({'model': state}, tmp_path / 'deit.pth')
        report = load_deit(target, str(tmp_path / 'deit.pth'), SHAPE)
        assert report.missing == [] and ('a distilled DeiT' in str(report)) == ('dist_token' in state)
        loaded.append(target.state_dict())
    assert same(*loaded)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda state: state.update(pos_embed=torch.zeros(1, 13, 12)),
            'does not fit this model: 13 position embeddings',
        ),
        (lambda state: state.update(pos_embed=torch.zeros(12)), 'does not fit this model: other shapes: .*pos_embed'),
        (
            lambda state: state.update(cls_token=torch.zeros(1, 1, 8)),
            'does not fit this model: other shapes: .*cls_token',
        ),
        (lambda state: state.pop('norm.bias'), 'does not fit this model: missing keys: visual_encoder.norm.bias'),
        (lambda state: state['norm.bias'].fill_(torch.nan), 'tensors are not finite, the first is norm.bias'),
    ],
)
def test_messages_about_deit_name_its_key_and_its_file(tmp_path, change, message):
    state = {key: value.clone() for key, value in create_vit(64, SHAPE).state_dict().items()}
    change(state)
    torch.save(state, tmp_path / 'deit.pth')
    with pytest.raises(InputError, match=f'^init_deit .*{message}') as error:
        load_deit(create_vit(64, SHAPE), str(tmp_path / 'deit.pth'), SHAPE)
    assert str(error.value).startswith(f'init_deit {tmp_path}/deit.pth') and '--checkpoint' not in str(error.value)


def test_a_name_of_the_hub_without_weights_does_not_start_at_random(tmp_path, monkeypatch):
    """An earlier run that needed only the tokenizer leaves its files in the cache of the hub."""
    (tmp_path / 'vocab.txt').write_text(VOCABULARY)
    monkeypatch.setattr('models.weight_files.local_folder', lambda name, what, files, option: str(tmp_path))
    with pytest.raises(InputError, match='--text_encoder some/bert: no such folder, and neither model.safetensors nor'):
        read_bert('some/bert')
    assert read_bert(str(tmp_path)) is None


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_links_to_files_that_are_not_there_are_named(theirs, tmp_path, name):
    theirs.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / 'absent')
    with pytest.raises(InputError, match=f'{name} is a link to a file that is not there'):
        read_bert(str(tmp_path))


@pytest.mark.parametrize('part', ['embeddings', 'encoder.layer.1.attention.self', 'encoder.layer.0'])
def test_weights_that_lack_a_part_of_the_model_are_refused(theirs, tmp_path, part):
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / 'model.safetensors')
    kept = {key: value for key, value in state.items() if part not in key}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(InputError, match=f'its weights lack bert.{part}.* others of the model of its config.json'):
        read_bert(str(tmp_path))


def test_the_content_says_what_kind_of_file_weights_are_in(tmp_path):
    state = {'a': torch.ones(2)}
    torch.save(state, tmp_path / 'a.safetensors')
    save_file(state, tmp_path / 'b.pth')
    for name in ('a.safetensors', 'b.pth'):
        assert torch.equal(read_weights(str(tmp_path / name))['a'], state['a'])


@pytest.mark.parametrize('lowercase', [True, False])
def test_a_tokenizer_file_says_its_case(tmp_path, lowercase):
    (tmp_path / 'vocab.txt').write_text(f'{VOCABULARY}A\n')
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path, do_lower_case=lowercase)
    (tmp_path / 'own').mkdir()
    tokenizer.backend_tokenizer.save(str(tmp_path / 'own/tokenizer.json'))
    assert create_tokenizer(str(tmp_path / 'own')).tokenize('A') == (['a'] if lowercase else ['A'])
