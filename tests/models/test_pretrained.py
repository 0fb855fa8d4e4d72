"""Trained models from and to files: checkpoints of any task and origin, folders, the hub, other layouts."""

import json
import shutil

import pytest
import torch

import models.convert
from models import create_model
from models.pretrained import Pretrained, build, own_weights, push_to_hub, read_pretrained, save_pretrained, task_of
from models.tokenization_bert import create_tokenizer
from models.weights import load_bert
from tests.helpers import albef_state, reference_state, weights
from tests.reference import load_reference
from tests.tiny import arguments
from utils.errors import InputError


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope='module')
def trained(pretrained):
    return read_pretrained(pretrained)


def test_a_checkpoint_is_enough(trained, pretrained, tokenizer):
    """Task, configuration and vocabulary are its own."""
    assert trained.task == 'pretrain' and trained.answers == [] and trained.source == str(pretrained)
    assert equal(trained.state, weights(pretrained))
    texts = ['a small red star', 'zebra', '']
    assert [trained.tokenizer(some).input_ids for some in texts] == [tokenizer(some).input_ids for some in texts]
    assert not {'train_file', 'optimizer', 'image_root'} & trained.config.keys()


def test_a_folder_is_read_as_it_was_saved(trained, pretrained, tmp_path):
    folder = tmp_path / 'some.model'
    save_pretrained(trained, folder)
    again = read_pretrained(folder)
    assert (again.task, again.config, again.answers) == (trained.task, dict(trained.config), [])
    assert equal(again.state, trained.state) and 'some.model' in (folder / 'README.md').read_text()
    words = 'a large blue ring'
    assert again.tokenizer(words).input_ids == trained.tokenizer(words).input_ids
    assert create_tokenizer(str(folder))(words).input_ids == trained.tokenizer(words).input_ids  # as --text_encoder
    save_pretrained(again, folder)  # once more
    assert equal(read_pretrained(folder).state, trained.state)
    (folder / 'thesis.tex').touch()
    with pytest.raises(InputError, match='holds thesis.tex; give a new folder'):
        save_pretrained(again, folder)


def test_a_folder_is_a_checkpoint_of_the_scripts(trained, pretrained, shapes, tmp_path):
    import Retrieval

    save_pretrained(trained, tmp_path / 'model')
    logs = []
    for source in (pretrained, tmp_path / 'model'):
        out = tmp_path / source.name.split('.')[0]
        flags = ['--evaluate', '--checkpoint', str(source)]
        Retrieval.main(arguments('retrieval', shapes, out / 'run', 'test_file=null', flags=flags))
        logs.append(json.loads((out / 'run' / 'log.txt').read_text()))
        del logs[-1]['checkpoint']
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda folder: (folder / 'config.json').unlink(), 'there is no config.json in it; give a folder of save_pre'),
        (
            lambda folder: (folder / 'config.json').write_text('{"model_type": "bert"}'),
            'config.json was not written by',
        ),
        (lambda folder: (folder / 'config.json').write_text('{'), 'is not valid JSON'),
        (lambda folder: (folder / 'tokenizer.json').unlink(), 'it has no vocabulary; give that of its training'),
        (lambda folder: (folder / 'tokenizer.json').write_text('{}'), 'the tokenizer in the checkpoint cannot be read'),
        (lambda folder: (folder / 'model.safetensors').write_bytes(b'0' * 99), 'not a readable checkpoint'),
        (
            lambda folder: (folder / 'model.safetensors').rename(folder / 'x.pth'),
            'no model.safetensors in it; give .*x.p',
        ),
    ],
)
def test_a_damaged_folder_is_named(trained, tmp_path, damage, message):
    save_pretrained(trained, tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        read_pretrained(tmp_path)


def test_checkpoints_of_albef_need_a_configuration_and_a_vocabulary(shapes, tmp_path):
    path, vocabulary = tmp_path / 'ALBEF.pth', f'{shapes}/vocab'
    config = load_reference('pretrain')['config']
    torch.save({'model': albef_state()}, path)
    with pytest.raises(InputError, match='it has no configuration; give that of its training with config='):
        read_pretrained(path, text_encoder=vocabulary)
    with pytest.raises(InputError, match='it has no vocabulary; give that of its training with text_encoder='):
        read_pretrained(path, config)
    with pytest.raises(InputError, match='vocabulary has 199 words, bert_config.vocab_size is 130'):
        read_pretrained(path, config, vocabulary)
    config = config | {'bert_config': config['bert_config'] | {'vocab_size': 199}}
    with pytest.raises(InputError, match='other shapes: text_encoder.embeddings.word_embeddings.weight'):
        build(read_pretrained(path, config, vocabulary))
    state = albef_state()
    for name in ('bert.embeddings.word_embeddings.weight', 'cls.predictions.decoder.weight'):
        state[f'text_encoder.{name}'] = torch.zeros(199, 32)
    for name in ('cls.predictions.decoder.bias', 'cls.predictions.bias'):
        state[f'text_encoder.{name}'] = torch.zeros(199)
    torch.save({'model': state}, path)
    found = read_pretrained(path, config, vocabulary)
    assert found.task == 'pretrain' and equal(found.state, own_weights(state))
    assert not any('_m.' in key or 'queue' in key for key in found.state)
    loaded = build(found).state_dict()
    assert torch.equal(loaded['text_encoder.encoder.layer.0.output.dense.bias'],
                       state['text_encoder.bert.encoder.layer.0.output.dense.bias'])  # fmt: skip


@pytest.mark.parametrize('task, reference', [
    ('pretrain', 'pretrain'), ('retrieval', 'retrieval_momentum'), ('nlvr_pretrain', 'nlvr_pretrain'),
    ('nlvr', 'nlvr_distill'), ('vqa', 'vqa_distill'),
])  # fmt: skip
def test_the_task_is_known_by_the_names_of_the_weights(task, reference):
    assert task_of(reference_state(reference), 'c.pth') == task


def test_weights_of_another_model_are_named():
    with pytest.raises(InputError, match='c.pth: its weights, such as fc.weight, are not those of ALBEF or GRIT-VLP'):
        task_of({'fc.weight': torch.zeros(1)}, 'c.pth')


def test_momentum_copies_replace_the_weights_if_they_were_evaluated():
    state = reference_state('nlvr_distill')
    own, copies = own_weights(state), own_weights(state, momentum=True)
    assert own.keys() == copies.keys() and not any('_m.' in key for key in own)
    assert torch.equal(copies['cls_head.0.weight'], state['cls_head_m.0.weight'])
    assert not torch.equal(own['cls_head.0.weight'], copies['cls_head.0.weight'])


# ---- layouts ----


def test_conversion_to_albef_and_back_changes_nothing(trained, pretrained, tmp_path, capsys):
    folder, file, again = (str(tmp_path / name) for name in ('folder', 'albef.pth', 'again'))
    models.convert.main([str(pretrained), folder])
    models.convert.main([folder, file, '--queue_size', '64'])
    models.convert.main([file, again])
    names = ['model.safetensors', 'config.json', 'tokenizer.json', 'special_tokens_map.json']
    assert all((tmp_path / 'folder' / name).read_bytes() == (tmp_path / 'again' / name).read_bytes() for name in names)
    assert "albef.pth: a file in ALBEF's layout, task pretrain" in capsys.readouterr().out
    models.convert.main([folder, str(tmp_path / 'grit.pth'), '--layout', 'grit'])
    assert equal(weights(tmp_path / 'grit.pth'), trained.state)


@pytest.mark.parametrize('task, reference', [('pretrain', 'pretrain_albef'), ('retrieval', 'retrieval_momentum')])
def test_albefs_layout_has_the_names_of_its_checkpoints(tiny_tokenizer, task, reference):
    """Names, shapes and types are those of the official models with momentum copies and queue, of as many features."""
    official, config = reference_state(reference), load_reference(reference)['config']
    trained = Pretrained(task, config, tiny_tokenizer, own_weights(official))
    state = models.convert.albef_state(trained, 24)
    described = [{key: (value.shape, value.dtype) for key, value in some.items()} for some in (state, official)]
    assert described[0] == described[1]
    torch.testing.assert_close(state['image_queue'].norm(dim=0), torch.ones(24))
    assert torch.equal(state['visual_encoder_m.cls_token'], official['visual_encoder.cls_token'])
    create_model(task, config, tiny_tokenizer).load_state_dict(state)  # strictly
    assert equal(own_weights(state), trained.state)


def test_albefs_layout_keeps_the_copies_and_the_queue_of_a_checkpoint(shapes, tmp_path):
    official, config = reference_state('pretrain_albef'), load_reference('pretrain_albef')['config']
    config |= {'bert_config': config['bert_config'] | {'vocab_size': 130}}
    words = [*(shapes / 'vocab' / 'vocab.txt').read_text().split('\n')[:130]]
    (tmp_path / 'vocab').mkdir()
    (tmp_path / 'vocab' / 'vocab.txt').write_text('\n'.join(words))
    torch.save({'model': official, 'config': config}, tmp_path / 'trained.pth')
    command = [str(tmp_path / 'trained.pth'), str(tmp_path / 'kept.pth'), '--text_encoder', str(tmp_path / 'vocab')]
    models.convert.main(command)
    assert equal(weights(tmp_path / 'kept.pth'), official)
    models.convert.main([command[0], str(tmp_path / 'new.pth'), *command[2:], '--queue_size', '40'])
    state = weights(tmp_path / 'new.pth')
    assert state['image_queue'].shape == (16, 40) and state['queue_ptr'].tolist() == [0]
    assert torch.equal(state['vision_proj_m.weight'], official['vision_proj_m.weight'])


def test_momentum_copies_are_used_only_by_the_task_that_reads_the_key(shapes, tmp_path):
    """Other scripts accept eval_ema and do not use it."""
    state = reference_state('retrieval_momentum')
    config = load_reference('retrieval_momentum')['config'] | {'eval_ema': True}
    config |= {'bert_config': config['bert_config'] | {'vocab_size': 199}}
    torch.save({'model': state, 'config': config}, tmp_path / 'c.pth')
    found = read_pretrained(tmp_path / 'c.pth', text_encoder=f'{shapes}/vocab')
    assert torch.equal(found.state['text_proj.weight'], state['text_proj.weight'])


def test_examples_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_pretrained('examples/shapes_model').task == 'pretrain'
    (tmp_path / 'link').symlink_to('nowhere')
    with pytest.raises(FileNotFoundError, match='checkpoint link: there is no such file; correct the path'):
        read_pretrained('link')
    for source in (None, 3):
        with pytest.raises(InputError, match='is no name; give a file, a folder or a hub name'):
            read_pretrained(source)


def test_weights_alone_with_the_configuration_of_their_folder(trained, shapes, tmp_path):
    save_pretrained(trained, tmp_path / 'f')
    found = read_pretrained(tmp_path / 'f' / 'model.safetensors', tmp_path / 'f' / 'config.json', f'{shapes}/vocab')
    assert found.config == trained.config and equal(found.state, trained.state)
    with pytest.raises(InputError, match='config: list is no configuration; give a mapping or a YAML file'):
        read_pretrained(tmp_path / 'f', [1])


def test_a_folder_is_a_vocabulary_for_a_text_encoder(trained, tmp_path):
    """Not a BERT: with it, as with a bare vocabulary, a text encoder starts at random."""
    save_pretrained(trained, tmp_path)
    model = build(trained)
    before = {key: value.clone() for key, value in model.text_encoder.state_dict().items()}
    assert 'has no BERT weights, they are random' in load_bert(model.text_encoder, str(tmp_path))
    assert equal(model.text_encoder.state_dict(), before)


@pytest.mark.parametrize('setting', ['imge_res=32', 'presision=bf16', 'vit.depht=2'])
def test_a_mistyped_key_is_named(pretrained, setting):
    key = setting.split('=')[0]
    with pytest.raises(InputError, match=f'unknown key {key}; the nearest known key is'):
        read_pretrained(pretrained, overrides=[setting])
    config = load_reference('pretrain')['config'] | {'imge_res': 32}
    with pytest.raises(InputError, match='unknown key imge_res; the nearest known key is image_res'):
        read_pretrained(pretrained, config)


@pytest.mark.parametrize('target', ['model.pt', 'model.safetensors', 'model.bin'])
def test_convert_refuses_a_name_that_it_does_not_write(pretrained, tmp_path, target):
    with pytest.raises(InputError, match='give the name of a folder, or of a file that ends in .pth'):
        models.convert.main([str(pretrained), str(tmp_path / target)])
    assert not list(tmp_path.iterdir())


def test_convert_overwrites_no_run(pretrained):
    before = pretrained.read_bytes()
    with pytest.raises(InputError, match='checkpoint_01.pth exists, and may be a run that could be resumed; give'):
        models.convert.main([str(pretrained), str(pretrained)])
    with pytest.raises(InputError, match='holds .*; give a new folder for the weights'):
        models.convert.main([str(pretrained), str(pretrained.parent)])
    assert pretrained.read_bytes() == before


# ---- the hub ----


def test_without_a_network_a_hub_name_says_so(tmp_path, monkeypatch, trained):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
    monkeypatch.setattr(huggingface_hub.HfApi, 'create_repo', fail)
    with pytest.raises(FileNotFoundError, match='checkpoint someone/model: no such folder, .*no route to host'):
        read_pretrained('someone/model')
    with pytest.raises(InputError, match='someone/model: it could not be uploaded .*no route to host.*hf auth login'):
        push_to_hub(trained, 'someone/model')
    for name in ('none.pth', 'a/b/c', '/none'):  # no names of the hub
        with pytest.raises(FileNotFoundError, match=f'checkpoint {name}: there is no such file'):
            read_pretrained(name)


def test_what_is_pushed_is_what_a_hub_name_gives(trained, tmp_path, monkeypatch):
    import huggingface_hub

    hub, created = tmp_path / 'hub', []

    def create(self, name, private, exist_ok):
        created.append((name, private, exist_ok))
        return f'hub:{name}'

    def upload(self, repo_id, folder_path):
        shutil.copytree(folder_path, hub / repo_id)

    def download(name, allow_patterns):
        local = tmp_path / 'cache'
        shutil.copytree(hub / name, local, ignore=lambda _, names: {*names} - {*allow_patterns})
        return str(local)

    monkeypatch.setattr(huggingface_hub.HfApi, 'create_repo', create)
    monkeypatch.setattr(huggingface_hub.HfApi, 'upload_folder', upload)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert push_to_hub(trained, 'someone/shapes', private=True) == 'hub:someone/shapes'
    assert created == [('someone/shapes', True, True)]
    assert "load_model('someone/shapes')" in (hub / 'someone/shapes/README.md').read_text()
    again = read_pretrained('someone/shapes')
    assert equal(again.state, trained.state) and again.config == trained.config
