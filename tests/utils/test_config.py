"""The configuration: one table of keys, one clear error for every mistake."""

import math
import os

import pytest

from tests.processes import run_python
from utils.config import apply_overrides, read_bert_config, resolve
from utils.config_checks import boolean, boolean_or_names
from utils.config_differences import differences
from utils.config_files import find_file, read_yaml, write_yaml
from utils.config_keys import BERT, KEYS, MOST_WORKERS, SECTIONS
from utils.errors import InputError
from utils.files import read_json

BASE = 'configs/shapes/Pretrain.yaml'


def resolved(*overrides, task='pretrain'):
    return resolve(task, apply_overrides(read_yaml(BASE), overrides), BASE)


def test_defaults_are_filled_in_and_nothing_is_lost(tmp_path):
    config, unused = resolved()
    assert unused == []
    assert config['consistency_weight'] == 0.2 and config['precision'] == 'fp32'
    assert config['clip_grad_norm'] is None and config['on_bad_image'] == 'skip'
    assert set(config) == {name for name, key in KEYS.items() if key.read_by('pretrain')}
    given = {name: value for name, value in read_yaml(BASE).items() if name not in (*SECTIONS, 'bert_config')}
    assert {name: config[name] for name in given} == given
    assert config['schedular']['lr'] == config['optimizer']['lr']
    write_yaml(config, tmp_path / 'config.yaml')
    assert resolve('pretrain', read_yaml(tmp_path / 'config.yaml'), 'again')[0] == config


@pytest.mark.parametrize(
    'override, message',
    [
        ('bach_size=8', 'unknown key bach_size; the nearest known key is batch_size'),
        ('optimizer.lrr=1', 'unknown key optimizer.lrr; the nearest known key is optimizer.lr'),
        ('vit.dept=2', 'unknown key vit.dept; the nearest known key is vit.depth'),
        ('batch_size=eight', "batch_size must be an integer of at least 1, not 'eight'"),
        ('batch_size=1', 'batch_size must be at least 2'),
        ('itm_negatives=easy', "must be one of uniform, sampled, hard, auto, or a schedule of them .*, not 'easy'"),
        ('itm_negatives={0: easy}', 'must be one of uniform, sampled, hard, auto'),
        ('itm_negatives={2: hard}', 'itm_negatives must name a policy for epoch 0'),
        ('itm_negatives={0: hard, late: auto}', 'itm_negatives must name epochs from 0 on'),
        ('itm_negatives={}', 'itm_negatives must name a policy for epoch 0'),
        ('itm_target_accuracy=0.6', 'itm_target_accuracy must be a number between 0.667 and 1'),
        ('grit_from_epoch=auto', 'grit_from_epoch: auto needs itm_negatives: auto'),
        ('hard_negatives_from_epoch=2', 'is no longer known; write itm_negatives: {0: sampled, EPOCH: hard} instead'),
        ('grit_from_epoch=-1', 'grit_from_epoch must be an integer of at least 0, or auto'),
        ('queue_size=1000', 'queue_size 1000 must be a multiple of search_space 640; take 640 or 1280'),
        ('search_space=100', 'must be a multiple of'),
        ('vision_width=32', 'vision_width 32 must equal vit.embed_dim 64'),
        ('bert_config.encoder_width=32', 'bert_config.encoder_width 32 must equal the width of the image encoder'),
        ('bert_config=nowhere.json', 'there is no file nowhere.json'),
        ('bert_config.hiden_size=1', 'unknown key bert_config.hiden_size; the nearest known key is bert_config.hidden'),
        ('bert_config.hidden_size=abc', "bert_config.hidden_size must be an integer of at least 1, not 'abc'"),
        ('bert_config.num_attention_heads=0', 'bert_config.num_attention_heads must be an integer of at least 1'),
        ('bert_config.num_hidden_layers=1.5', 'bert_config.num_hidden_layers must be an integer'),
        ('bert_config.hidden_dropout_prob=1', 'bert_config.hidden_dropout_prob must be a number from 0 to below 1'),
        ('bert_config.num_hidden_layers=1001', 'bert_config.num_hidden_layers must be at most 1000, not 1001'),
        ('bert_config={base: [1]}', 'bert_config.base must be a path, not [1]'),
        ("bert_config={base: ''}", "bert_config.base must be a path, not ''"),
        ('vit.mlp_ratio=1.0e30', 'vit.mlp_ratio must be a number above 0, at most 1000'),
        ('batch_size=2147483648', 'batch_size must be at most 2147483647'),
        ('num_workers=10000', f'num_workers must be at most {MOST_WORKERS}, not 10000'),
        ('temp=0', 'temp must be a finite number above 0, not 0'),
        ('schedular.epochs=0', 'schedular.epochs must be an integer of at least 1, not 0'),
        ('train_file="a\\0b"', 'train_file must be a path or a list of paths'),
        ('image_res=2020-13-45', "--set image_res=2020-13-45: '2020-13-45' is not a YAML value"),
        ('flip=!!bool x', 'is not a YAML value'),
        ('image_res=' + '[' * 800, 'is not a YAML value'),
        ('bert_config.hidden_act=relu', 'bert_config.hidden_act must be one of gelu'),
        ('=5', '--set =5: write it as key=value'),
        ('.x=5', '--set .x=5: write it as key=value'),
        ('precision=fp16', 'precision must be one of fp32, bf16'),
        ('crop_scale=[0.9, 0.2]', 'crop_scale must be two numbers'),
        ('image_res', 'write it as key=value'),
        ('image_res.x=1', 'image_res is not a section'),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace('[', r'\[')):
        resolved(override)


EVERY_KEY = [(name, key) for keys in (KEYS, BERT, *SECTIONS.values()) for name, key in keys.items()]


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, -(10**400)])
def test_no_key_takes_a_number_that_is_not_finite(value):
    for name, key in EVERY_KEY:
        with pytest.raises(ValueError, match='must be'):
            pytest.fail(f'{name} takes {key.check(value)}')


def test_no_boolean_is_a_word():
    booleans = [key for _, key in EVERY_KEY if key.check in (boolean, boolean_or_names)]
    assert len(booleans) > 10
    for key in booleans:
        for word in ('true', 'no', 1, ''):
            with pytest.raises(ValueError, match='must be true'):
                key.check(word)


def test_a_sane_number_of_workers_is_never_refused():
    for workers in (0, 1, 16, 64, 8 * os.cpu_count()):
        assert resolved(f'num_workers={workers}')[0]['num_workers'] == workers


def test_keys_of_other_tasks_are_kept_and_named():
    config, unused = resolved('k_test=4', 'eval_ema=true')
    assert unused == ['k_test', 'eval_ema']
    assert config['k_test'] == 4 and config['eval_ema'] is True


def test_random_batches_need_no_queues():
    assert resolved('sampler=random', 'queue_size=1000')[0]['queue_size'] == 1000


def test_overrides_reach_into_sections_and_files():
    config, _ = resolved('optimizer.lr=1e-4', 'schedular.lr=1e-4', 'vit.depth=2', 'init_deit=weights.pth')
    assert config['optimizer']['lr'] == 1e-4 and config['vit']['depth'] == 2 and config['vit']['num_heads'] == 4
    overridden = apply_overrides(read_yaml('configs/Pretrain.yaml'), ['bert_config.fusion_layer=3'])
    config, _ = resolve('pretrain', overridden, '')
    assert config['bert_config']['fusion_layer'] == 3 and config['bert_config']['hidden_size'] == 768


@pytest.mark.parametrize('overrides', [['optimizer.lr=5e-5'], ['schedular.lr=5e-5'], ['optimizer={lr: 5e-5}']])
def test_an_override_of_one_learning_rate_moves_the_other(overrides):
    for task, name in (('pretrain', 'Pretrain'), ('retrieval', 'Retrieval_coco'), ('vqa', 'shapes/VQA')):
        config = apply_overrides(read_yaml(f'configs/{name}.yaml'), overrides)
        found, _ = resolve(task, config, name)
        assert found['optimizer']['lr'] == found['schedular']['lr'] == 5e-5


def test_two_learning_rates_are_refused_wherever_both_are_given():
    differ = 'schedular.lr 2 differs from optimizer.lr 1'
    with pytest.raises(InputError, match=differ):
        resolved('schedular.lr=2', 'optimizer.lr=1')
    given = read_yaml(BASE)
    given['optimizer'] |= {'lr': 1}
    given['schedular'] |= {'lr': 2}
    with pytest.raises(InputError, match=differ):
        resolve('pretrain', apply_overrides(given, ['batch_size=8']), BASE)
    assert resolved('optimizer.lr=1', 'schedular.lr=null')[0]['schedular']['lr'] == 1


def test_the_two_learning_rates_of_a_changed_run_are_both_named():
    before, now = resolved()[0], resolved('optimizer.lr=1e-3')[0]
    assert differences(before, now).keys() == {'optimizer.lr', 'schedular.lr'}


def test_a_key_that_an_older_version_lacks_has_its_default():
    now, older = resolved('report_to=wandb')[0], resolved()[0]
    for name in ('report_to', 'on_bad_image'):
        del older[name]
    assert differences(older, now) == {'report_to': "report_to was None and is now 'wandb'"}
    assert differences(older, resolved()[0]) == {}


@pytest.mark.parametrize(
    'value', ['set #1', '2014', 'yes', '1e3', 'a: b', '2014-01-01', '- x', '[1].json', "it's", '&a']
)
def test_paths_and_names_are_taken_as_they_are_written(value):
    names = ['train_file', 'val_file', 'image_root', 'vqa_root', 'annotation_cache', 'answer_list', 'eos', 'init_deit']
    for name in [*names, 'bert_config', 'bert_config.base', 'optimizer.opt', 'optimizer.no_decay']:
        changed = apply_overrides({'bert_config': {}} if '.' in name else {}, [f'{name}={value}'])
        for part in name.split('.'):
            changed = changed[part]
        assert changed == value, name


def test_null_lists_booleans_and_quotes_keep_their_meaning():
    def read(item):
        return apply_overrides({}, [item])[item.partition('=')[0]]

    for word in ('null', '~', ''):
        assert read(f'val_file={word}') is None and read(f'annotation_cache={word}') is None
        assert read(f'image_root={word}') == ('' if word == '' else None)  # which the key then refuses
    assert read('train_file=[2014, yes, "a, b.json"]') == ['2014', 'yes', 'a, b.json']
    assert read('randaugment=[Identity, Sharpness]') == ['Identity', 'Sharpness']
    assert read('randaugment=false') is False and read('init_deit=true') is True
    assert read('eos=[SEP]') == read("eos='[SEP]'") == '[SEP]'
    assert read("image_root=''") == '' and read('image_root="a b"') == 'a b'
    assert read('bert_config={hidden_size: 64}') == {'hidden_size': 64}


@pytest.mark.parametrize('text', ['[!x y]', '[&a b]', '[a.json, #1.json]', '[@x.json]', '[*x]'])
def test_lists_of_names_with_special_characters_need_quotes(text):
    with pytest.raises(InputError, match='put names that begin with a special character in quotes'):
        apply_overrides({}, [f'train_file={text}'])
    with pytest.raises(InputError, match='put names with special characters in quotes'):
        apply_overrides({}, ['train_file=[a{1}.json]'])
    quoted = apply_overrides({}, ['train_file=["#1.json", b.json] '])
    assert quoted == {'train_file': ['#1.json', 'b.json']}


def test_a_configuration_of_the_repository_has_the_model_of_the_repository(tmp_path, monkeypatch):
    expected = resolved()[0]
    path = find_file('configs/shapes/Pretrain.yaml')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs' / 'shapes').mkdir(parents=True)
    (tmp_path / 'configs' / 'shapes' / 'bert.yaml').write_text('hidden_size: 16')
    found = find_file(path)
    assert resolve('pretrain', read_yaml(found), found)[0] == expected
    (tmp_path / 'configs' / 'shapes' / 'Pretrain.yaml').mkdir()  # a folder of that name is not the file
    assert os.path.isfile(find_file(path))


def test_files_are_found_from_any_working_directory(tmp_path, monkeypatch):
    """A configuration: here, else in the repository; its bert_config: here, else beside it, else in the repository."""
    expected = resolved()[0]
    monkeypatch.chdir(tmp_path)
    path = find_file('./configs/shapes/Pretrain.yaml')
    assert os.path.isabs(path) and resolve('pretrain', read_yaml(path), path)[0] == expected
    assert find_file('configs/none.yaml') == 'configs/none.yaml'
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'own.yaml').write_text('bert_config: {base: small.json}')
    (tmp_path / 'mine' / 'small.json').write_text('{"hidden_size": 32}')
    own = read_yaml(path) | read_yaml('mine/own.yaml')
    assert resolve('pretrain', own, 'mine/own.yaml')[0]['bert_config']['hidden_size'] == 32
    (tmp_path / 'small.json').write_text('{"hidden_size": 48}')
    assert resolve('pretrain', own, 'mine/own.yaml')[0]['bert_config']['hidden_size'] == 48
    (tmp_path / 'configs' / 'shapes').mkdir(parents=True)
    (tmp_path / 'configs' / 'shapes' / 'Pretrain.yaml').write_text('a: 1')
    assert find_file('configs/shapes/Pretrain.yaml') == 'configs/shapes/Pretrain.yaml'


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32'])
def test_files_with_a_byte_order_mark_are_read(tmp_path, encoding):
    (tmp_path / 'a.yaml').write_text('image_root: bücher\n', encoding)
    assert read_yaml(tmp_path / 'a.yaml') == {'image_root': 'bücher'}
    (tmp_path / 'a.json').write_text('{"name": "bücher"}', encoding)
    assert read_json(tmp_path / 'a.json', 'a key') == {'name': 'bücher'}


def test_other_encodings_are_named_with_their_line(tmp_path):
    (tmp_path / 'a.yaml').write_text('a: 1\nb: bücher\n', 'latin-1')
    with pytest.raises(InputError, match=r'a.yaml: it is not UTF-8 text \(line 2: .*\); save it as UTF-8'):
        read_yaml(tmp_path / 'a.yaml')
    (tmp_path / 'a.json').write_text('["ä"]', 'utf-16-le')
    with pytest.raises(InputError, match='answer_list: .*a.json'):
        read_json(tmp_path / 'a.json', 'answer_list')
    (tmp_path / 'a.yaml').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n')
    with pytest.raises(InputError, match='a.yaml: it is a pointer of git-lfs'):
        read_yaml(tmp_path / 'a.yaml')


def test_a_bert_config_may_change_a_base(tmp_path):
    changed = apply_overrides(read_yaml(BASE), ['bert_config={base: configs/config_bert.json, encoder_width: 64}'])
    expected = read_bert_config('configs/config_bert.json') | {'encoder_width': 64}
    assert resolve('pretrain', changed, '')[0]['bert_config'] == expected
    (tmp_path / 'bert.json').write_text('{"hidden_size": 64}')
    config, _ = resolved(f'bert_config={tmp_path}/bert.json')
    assert config['bert_config'] == {'hidden_size': 64, 'encoder_width': 64, 'vocab_size': 30522}
    (tmp_path / 'list.json').write_text('[1]')
    with pytest.raises(ValueError, match='list.json must contain a mapping'):
        resolved(f'bert_config={tmp_path}/list.json')


def test_vqa_ranks_at_least_one_answer():
    with pytest.raises(ValueError, match='k_test must be at least 1'):
        resolve('vqa', read_yaml('configs/shapes/VQA.yaml') | {'k_test': 0}, 'VQA.yaml')


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such configuration file'):
        read_yaml(tmp_path / 'none.yaml')
    for content, message in (
        (b'a: [1, 2', 'not valid YAML'),
        (b'- a\n', 'mapping'),
        (b'a: caf\xe9\n', 'it is not UTF-8 text'),
        (b'a: 2020-13-45\n', 'not valid YAML'),
        (b'[' * 800, 'not valid YAML'),
        (b'', 'mapping'),
    ):
        (tmp_path / 'some.yaml').write_bytes(content)
        with pytest.raises(ValueError, match=f'some.yaml: .*{message}'):
            read_yaml(tmp_path / 'some.yaml')


def test_eval_ema_needs_distillation():
    config = read_yaml('configs/shapes/NLVR.yaml')
    with pytest.raises(ValueError, match='NLVR.yaml: eval_ema: true needs the momentum copy: set distill: true'):
        resolve('nlvr', config | {'eval_ema': True, 'distill': False}, 'NLVR.yaml')
    assert resolve('nlvr', config | {'eval_ema': True, 'distill': True}, 'NLVR.yaml')[0]['eval_ema'] is True


def test_the_module_prints_a_table_of_every_key():
    code, out, err = run_python(['-m', 'utils.config'])
    assert (code, err) == (0, '')
    header, _, *rows = out.splitlines()
    assert header == '| key | meaning | default | tasks |'
    names = [row.split('|')[1].strip(' `') for row in rows]
    sections = [f'{section}.{name}' for section, keys in (SECTIONS | {'bert_config': BERT}).items() for name in keys]
    assert sorted(names) == sorted([*KEYS, *sections])
    assert all(row.count('|') == 5 and all(cell.strip() for cell in row.split('|')[1:-1]) for row in rows)
