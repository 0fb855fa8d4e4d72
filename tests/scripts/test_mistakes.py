"""Mistaken command lines: each is an `InputError`, in every script where it can be made."""

import importlib
import json
import os
import pickle
import shutil

import pytest
import torch

import predict
from reports import masked_words
from tests.helpers import read_pth
from tests.processes import run_script
from tests.scripts.test_errors import check_one_line
from tests.tiny import SCRIPTS, arguments
from utils.entry import run_main
from utils.errors import InputError

MAINS = {task: importlib.import_module(name).main for task, name in SCRIPTS.items()}


def refused(task, shapes, folder, *settings, flags=(), match=None):
    """The task's script ends with an InputError of one line."""
    with pytest.raises(InputError, match=match) as error:
        MAINS[task](arguments(task, shapes, folder, *settings, flags=flags))
    assert '\n' not in str(error.value)


# ---- configurations ----


@pytest.mark.parametrize('task', SCRIPTS)
@pytest.mark.parametrize(
    'setting, message',
    [
        ('bert_config=[1]', r'bert_config must be a path or a mapping, not \[1\]'),
        ('bert_config=5', 'bert_config: there is no file 5'),
        ("bert_config=''", "bert_config must be a path or a mapping, not ''"),
        ('bert_config.num_attention_heads=3', 'hidden_size 32 must be a multiple of num_attention_heads 3'),
        ('bert_config.fusion_layer=7', 'fusion_layer 7 must be between 0 and num_hidden_layers 2'),
        ('bert_config.vocab_size=10', r'its vocabulary has \d+ words, bert_config.vocab_size is 10'),
        ('vit.num_heads=3', 'vit.embed_dim 32 must be a multiple of vit.num_heads 3'),
        ('vit.mlp_ratio=0.001', 'vit.mlp_ratio 0.001 leaves the MLP without width'),
        ('image_res=17', 'image_res 17 must be a multiple of vit.patch_size 16'),
        ('image_res=2147483632', 'the model does not fit into the memory'),
        ('num_workers=10000', r'num_workers must be at most \d+, not 10000'),
        ('train_file=[]', r'train_file must be a path or a list of paths, not \[\]'),
        ("train_file=['']", 'train_file must be a path or a list of paths'),
        ('optimizer.lr=.nan', 'optimizer.lr must be a finite number above 0, not nan'),
        ('flip="true"', "flip must be true or false, not 'true'"),
    ],
)
def test_a_mistaken_configuration_is_named(shapes, tmp_path, task, setting, message):
    refused(task, shapes, tmp_path / 'out', setting, match=message)


@pytest.mark.parametrize(
    'task, setting, message',
    [
        ('retrieval', 'val_file={shapes}', 'is a folder, not an annotation file'),
        ('retrieval', 'batch_size_train=99999999', 'needs 99999999 examples per step'),
        ('nlvr', 'batch_size=99999999', 'needs 99999999 examples per step'),
        ('nlvr', 'batch_size=9999999999', 'batch_size must be at most 2147483647'),
        ('pretrain', 'init_deit={shapes}/pretrain.json', 'init_deit .*not a readable checkpoint'),
        ('pretrain', "init_deit=''", 'init_deit must be true, false or a path'),
        ('vqa', 'answer_list={shapes}', 'answer_list: there is no file'),
        ('vqa', 'bert_config.fusion_layer=2', 'fusion_layer must be below num_hidden_layers'),
    ],
)
def test_a_mistaken_configuration_of_one_task_is_named(shapes, tmp_path, task, setting, message):
    refused(task, shapes, tmp_path / 'out', setting.format(shapes=shapes), match=message)


@pytest.mark.parametrize('content', ['', '[]', '["yes", 1]', '{"yes": 1}', 'yes', '["yes"'])
def test_a_mistaken_answer_list_is_named(shapes, tmp_path, content):
    (tmp_path / 'answers.json').write_text(content)
    setting = f'answer_list={tmp_path}/answers.json'
    refused('vqa', shapes, tmp_path / 'out', setting, match='answer_list: .*answers.json')


# ---- flags ----


@pytest.mark.parametrize('seed', ['-1', '99999999999999999999', '1.5', ''])
def test_a_mistaken_seed_is_one_line(shapes, tmp_path, capsys, seed):
    with pytest.raises(SystemExit) as end:
        MAINS['nlvr'](arguments('nlvr', shapes, tmp_path / 'out', flags=['--seed', seed]))
    assert end.value.code == 2 and capsys.readouterr().err.startswith(f'error: argument --seed: {seed!r} is not an int')


@pytest.mark.parametrize('flags', [[], ['--resume']])
@pytest.mark.parametrize('task', SCRIPTS)
def test_there_must_be_something_to_evaluate(shapes, tmp_path, task, flags):
    refused(task, shapes, tmp_path, flags=['--evaluate', *flags], match='--evaluate: nothing to evaluate')


@pytest.mark.parametrize('name', ['file', 'file/folder'])
@pytest.mark.parametrize('task', SCRIPTS)
def test_an_output_folder_that_cannot_be_is_named(shapes, tmp_path, task, name):
    (tmp_path / 'file').touch()
    refused(task, shapes, tmp_path / name, match=f"--output_dir '{tmp_path / name}' cannot be")


def test_an_output_folder_without_permission_is_named(shapes, tmp_path, monkeypatch):
    def makedirs(path, **options):
        raise PermissionError(13, 'Permission denied', path)

    monkeypatch.setattr(os, 'makedirs', makedirs)
    refused('nlvr', shapes, tmp_path / 'out', match=r'--output_dir .*out.*\(Permission denied\)')


# ---- vocabularies ----


@pytest.mark.parametrize('task', SCRIPTS)
def test_a_vocabulary_without_special_tokens_is_refused(shapes, tmp_path, task):
    (tmp_path / 'vocab.txt').write_text('a\nb\n')
    message = r'its vocabulary lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]'
    refused(task, shapes, tmp_path / 'out', flags=['--text_encoder', str(tmp_path)], match=message)


def test_damaged_bert_weights_are_named(shapes, tmp_path):
    shutil.copy(shapes / 'vocab' / 'vocab.txt', tmp_path)
    flags = ['--text_encoder', str(tmp_path)]
    (tmp_path / 'pytorch_model.bin').write_bytes(b'half a file')
    for content in ('{', '{}', '[]'):
        (tmp_path / 'config.json').write_text(content)
        refused('vqa', shapes, tmp_path / 'out', flags=flags, match='its config.json is not that of a model')
    (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    refused('vqa', shapes, tmp_path / 'out', flags=flags, match='its weights cannot be read')


# ---- checkpoints ----


def changed(path, source, change):
    """A copy of a checkpoint whose content is changed -> its path as a string."""
    content = read_pth(source)
    change(content)
    torch.save(content, path)
    return str(path)


def nan_in(name):
    def change(content):
        content['model'][name].view(-1)[7] = float('nan')

    return change


def flip_bit(path, source, name):
    """A copy of a checkpoint with one bit of a weight flipped -> its path as a string."""
    content, weight = bytearray(source.read_bytes()), read_pth(source)['model'][name].numpy().tobytes()
    content[content.index(weight) + len(weight) // 2] ^= 16
    path.write_bytes(content)
    return str(path)


WEIGHT = 'visual_encoder.blocks.0.attn.qkv.weight'
NOT_FINITE = rf'1 of \d+ tensors are not finite, the first is {WEIGHT}'


@pytest.mark.parametrize('task', SCRIPTS)
def test_weights_that_are_not_finite_or_damaged_are_refused(shapes, pretrained, tmp_path, task):
    nan = changed(tmp_path / 'nan.pth', pretrained, nan_in(WEIGHT))
    refused(task, shapes, tmp_path / 'out', flags=['--checkpoint', nan], match=rf'nan.pth: {NOT_FINITE}')
    flipped = flip_bit(tmp_path / 'flipped.pth', pretrained, WEIGHT)
    refused(task, shapes, tmp_path / 'out', flags=['--checkpoint', flipped], match='flipped.pth: the file is damaged')


@pytest.mark.parametrize('task', SCRIPTS)
@pytest.mark.parametrize(
    'settings, key',
    [
        (['vit.depth=2'], 'visual_encoder.blocks.1'),
        (['vit.embed_dim=16', 'vision_width=16', 'bert_config.encoder_width=16'], 'visual_encoder.cls_token'),
        (['bert_config.hidden_size=16'], 'embeddings.word_embeddings.weight'),
        (['bert_config.vocab_size=300'], 'embeddings.word_embeddings.weight'),
        (['bert_config.num_hidden_layers=3'], 'encoder.layer'),
    ],
)
def test_a_checkpoint_of_another_shape_is_named(shapes, pretrained, tmp_path, task, settings, key):
    flags, message = ['--checkpoint', str(pretrained)], rf'checkpoint_01.pth does not fit this model: .*{key}'
    refused(task, shapes, tmp_path, *settings, flags=flags, match=message)


@pytest.mark.parametrize('task', ['pretrain', 'retrieval', 'nlvr_pretrain'])
def test_a_checkpoint_of_another_embed_dim_is_named(shapes, pretrained, tmp_path, task):
    flags, message = ['--checkpoint', str(pretrained)], r'vision_proj.weight \(16, 32\) instead of \(8, 32\)'
    refused(task, shapes, tmp_path, 'embed_dim=8', flags=flags, match=message)


@pytest.mark.parametrize('task', ['nlvr_pretrain', 'nlvr', 'vqa'])
def test_a_checkpoint_without_the_head_is_not_evaluated(shapes, pretrained, tmp_path, task):
    flags = ['--evaluate', '--checkpoint', str(pretrained)]
    refused(task, shapes, tmp_path, flags=flags, match='missing keys: (ta|cls)_head|has no answer decoder')


def test_layers_that_are_doubled_are_not_doubled_again(shapes, pretrained, tmp_path):
    """A text assignment checkpoint of two layers has three, as a pre-training one of three layers has."""
    flags = ['--checkpoint', str(pretrained)]
    MAINS['nlvr_pretrain'](arguments('nlvr_pretrain', shapes, tmp_path / 'a', 'schedular.epochs=1', flags=flags))
    flags = ['--checkpoint', str(tmp_path / 'a' / 'checkpoint_00.pth')]
    refused('nlvr', shapes, tmp_path / 'b', 'bert_config.num_hidden_layers=3', flags=flags, match='does not fit')


@pytest.mark.parametrize('epoch', ['last', None, float('nan')])
def test_an_odd_epoch_in_a_vqa_checkpoint_counts_as_zero(shapes, vqa_run, tmp_path, epoch):
    checkpoint = changed(tmp_path / 'c.pth', vqa_run / 'checkpoint_01.pth', lambda content: content.update(epoch=epoch))
    flags = ['--evaluate', '--checkpoint', checkpoint]
    MAINS['vqa'](arguments('vqa', shapes, tmp_path, 'test_file=null', flags=flags))
    assert json.loads((tmp_path / 'log.txt').read_text())['epoch'] == 0


# ---- predict.py and the reports ----


def answer(checkpoint, image, question='what?', *flags):
    argv = ['answer', '--checkpoint', str(checkpoint), '--image', str(image), '--question', question, *flags]
    predict.main([*argv, '--device', 'cpu'])


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: content.pop('ranks'), 'there is no list of answers to choose from'),
        (lambda content: content.update(ranks=[]), 'there is no list of answers to choose from'),
        (lambda content: content['ranks'][0].pop('answers'), 'there is no list of answers to choose from'),
        (lambda content: content['ranks'][0]['answers'].update(texts=[]), 'there is no list of answers to choose from'),
        (lambda content: content.pop('tokenizer'), 'it has no vocabulary; give that of its training'),
        (lambda content: content['tokenizer'].update(json='{'), 'the tokenizer in the checkpoint cannot be read'),
        (lambda content: content.update(config=None), 'it has no configuration; give that of its training'),
        (lambda content: content['config'].update(image_res=17), 'image_res 17 must be a multiple'),
        (nan_in(WEIGHT), NOT_FINITE),
    ],
)
def test_predict_names_what_a_checkpoint_lacks(shapes, vqa_run, tmp_path, change, message):
    checkpoint = changed(tmp_path / 'c.pth', vqa_run / 'checkpoint_01.pth', change)
    with pytest.raises(InputError, match=message):
        answer(checkpoint, shapes / 'images' / 'test' / '00000.jpg')


def test_predict_names_a_mistaken_question_image_or_checkpoint(shapes, vqa_run, tmp_path):
    checkpoint, image = vqa_run / 'checkpoint_01.pth', shapes / 'images' / 'test' / '00000.jpg'
    for question in ('', '  ', '?!'):
        with pytest.raises(InputError, match='has no word in it'):
            answer(checkpoint, image, question)
    for path in ('nowhere.jpg', shapes, shapes / 'vocab' / 'vocab.txt'):
        with pytest.raises(InputError, match=f"cannot read the image '{path}'"):
            answer(checkpoint, path)
    with pytest.raises(InputError, match='the file is damaged'):
        answer(flip_bit(tmp_path / 'flipped.pth', checkpoint, WEIGHT), image)


def test_predict_takes_a_checkpoint_of_a_larger_machine(shapes, vqa_run, tmp_path, capsys):
    checkpoint = changed(
        tmp_path / 'c.pth',
        vqa_run / 'checkpoint_01.pth',
        lambda content: content['config'].update(num_workers=5000),
    )
    answer(checkpoint, shapes / 'images' / 'test' / '00000.jpg')
    assert capsys.readouterr().out.startswith('what?\n')


@pytest.mark.parametrize(
    'change, message',
    [
        (nan_in(WEIGHT), f'CHECKPOINT .*c.pth: {NOT_FINITE}'),
        (lambda content: content.update(config=None), 'c.pth: it has no configuration'),
    ],
)
def test_masked_words_names_what_is_wrong_with_a_checkpoint(shapes, pretrained, tmp_path, change, message):
    checkpoint = changed(tmp_path / 'c.pth', pretrained, change)
    flags = {
        '--text_encoder': f'{shapes}/vocab',
        '--annotations': f'{shapes}/retrieval_test.json',
        '--words': f'{shapes}/word_kinds.json',
    }
    with pytest.raises(InputError, match=message):
        masked_words.main([checkpoint, *(word for flag in flags.items() for word in flag)])


# ---- as programs ----


@pytest.mark.parametrize(
    'script, task, flags, message',
    [
        ('Pretrain.py', 'pretrain', ['--evaluate'], 'nothing to evaluate'),
        ('Pretrain_nlvr.py', 'nlvr_pretrain', ['--evaluate'], 'nothing to evaluate'),
        ('VQA.py', 'vqa', ['--checkpoint', '{folder}/2.pth'], 'it contains the Python object posix.system'),
        ('NLVR.py', 'nlvr', ['--checkpoint', '{folder}/4.pth'], 'not a readable checkpoint'),
        ('Retrieval.py', 'retrieval', ['--text_encoder', '{folder}/2.pth'], 'it is a file; give the folder'),
    ],
)
def test_a_mistake_is_one_line(shapes, tmp_path, script, task, flags, message):
    for protocol in (2, 4):
        (tmp_path / f'{protocol}.pth').write_bytes(pickle.dumps(os.system, protocol))
    argv = arguments(task, shapes, tmp_path / 'out', flags=[flag.format(folder=tmp_path) for flag in flags])
    check_one_line(run_script(script, argv, tmp_path), message)


def test_an_unknown_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        run_main(lambda: predict.main(['guess']))
    assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
