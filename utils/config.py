"""The YAML configuration: one table of known keys for all five scripts, checked before any work is done."""

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

TASKS = ('pretrain', 'retrieval', 'nlvr_pretrain', 'nlvr', 'vqa')
MODEL, LOOP = 'model', 'loop'
REQUIRED = object()


# ---- what a value may be: each returns the value to use, or raises ValueError with the words "must be ..." ----

def _check(test, words):
    def check(value):
        if not test(value):
            raise ValueError(f'must be {words}')
        return value
    return check


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one_of(*choices):
    return _check(lambda value: value in choices, 'one of ' + ', '.join(map(str, choices)))


def optional(check):
    return lambda value: None if value is None else check(value)


count = _check(lambda v: _is_int(v) and v >= 1, 'a whole number of at least 1')
count0 = _check(lambda v: _is_int(v) and v >= 0, 'a whole number of at least 0')
positive = _check(lambda v: _is_number(v) and v > 0, 'a number above 0')
nonnegative = _check(lambda v: _is_number(v) and v >= 0, 'a number of at least 0')
fraction = _check(lambda v: _is_number(v) and 0 <= v <= 1, 'a number from 0 to 1')
flag = _check(lambda v: isinstance(v, bool), 'true or false')
text = _check(lambda v: isinstance(v, str), 'a text')
path_or_mapping = _check(lambda v: isinstance(v, (str, dict)), 'a path or a mapping')
flag_or_path = _check(lambda v: isinstance(v, (bool, str)), 'true, false or a path')
flag_or_names = _check(lambda v: isinstance(v, bool) or isinstance(v, list) and v and all(isinstance(x, str) for x in v),
                       'true, false or a list of names')
scale = _check(lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_number, v)) and 0 < v[0] <= v[1] <= 1,
               'two numbers [low, high] with 0 < low <= high <= 1')
betas = _check(lambda v: isinstance(v, list) and len(v) == 2 and all(_is_number(x) and 0 <= x < 1 for x in v),
               'two numbers from 0 to below 1')
names = _check(lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v), 'a list of names')
mapping = _check(lambda v: isinstance(v, dict), 'a mapping')


def files(value):
    """A path or a list of paths -> a list of paths."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
        raise ValueError('must be a path or a list of paths')
    return value


@dataclass(frozen=True)
class Key:
    """One known key: the tasks that read it (all when empty), what it may be, its default, and who needs it."""

    check: Any
    default: Any = REQUIRED
    tasks: tuple = ()
    part: str = LOOP

    def read_by(self, task):
        return not self.tasks or task in self.tasks


def _key(check, default=REQUIRED, tasks='', part=LOOP):
    short = {'P': 'pretrain', 'R': 'retrieval', 'T': 'nlvr_pretrain', 'N': 'nlvr', 'V': 'vqa'}
    return Key(check, default, tuple(short[letter] for letter in tasks), part)


# Tasks by letter: P pre-training, R retrieval, T text assignment (NLVR pre-training), N NLVR, V VQA. A default may depend on
# the task: a mapping {letter(s): value} is written as a function of the task.
def _by_task(**values):
    return lambda task: values.get(task, values.get('other'))


KEYS = {
    # model
    'image_res': _key(count, REQUIRED, part=MODEL),
    'vit': _key(mapping, dict, part=MODEL),
    'bert_config': _key(path_or_mapping, REQUIRED, part=MODEL),
    'vision_width': _key(optional(count), None, part=MODEL),
    'embed_dim': _key(count, 256, 'PRT', MODEL),
    'temp': _key(positive, 0.07, 'PR', MODEL),
    'mlm_probability': _key(fraction, 0.5, 'P', MODEL),
    'consistency_weight': _key(nonnegative, 0.2, 'P', MODEL),
    'itm_negatives': _key(one_of('hard', 'sampled'), 'hard', 'P', MODEL),
    'exclude_equal_negatives': _key(flag, False, 'PT', MODEL),
    'use_momentum': _key(flag, False, 'R', MODEL),
    'momentum': _key(fraction, 0.995, 'RNV', MODEL),
    'distill': _key(flag, False, 'RNV', MODEL),
    'rank_first_token_once': _key(flag, False, 'V', MODEL),
    'grad_checkpointing': _key(flag, False, part=MODEL),
    'queue_size': _key(count, _by_task(pretrain=48000, retrieval=65280), 'PR', MODEL),
    # data
    'train_file': _key(files),
    'val_file': _key(optional(files), None, 'RNV'),
    'test_file': _key(optional(files), None, 'RNV'),
    'image_root': _key(text, '', 'PRTN'),
    'vqa_root': _key(text, '', 'V'),
    'vg_root': _key(text, '', 'V'),
    'answer_list': _key(text, REQUIRED, 'V'),
    'eos': _key(text, '[SEP]', 'V'),
    'annotation_cache': _key(optional(text), None),
    'crop_scale': _key(scale, _by_task(pretrain=[0.2, 1.0], nlvr_pretrain=[0.2, 1.0], other=[0.5, 1.0])),
    'flip': _key(flag, True),
    'randaugment': _key(flag_or_names, True),
    'reduced_decode': _key(flag, True),
    'num_workers': _key(count0, 4),
    'on_bad_image': _key(one_of('skip', 'error'), 'skip'),
    # batches
    'batch_size': _key(count, REQUIRED, 'PTN'),
    'batch_size_train': _key(count, REQUIRED, 'RV'),
    'batch_size_test': _key(count, REQUIRED, 'RV'),
    'sampler': _key(one_of('grit', 'random'), 'grit', 'P'),
    'search_space': _key(count, 1920, 'P'),
    'grit_from_epoch': _key(count0, 0, 'P'),
    'hard_negatives_from_epoch': _key(count0, 0, 'P'),
    # optimisation
    'optimizer': _key(mapping),
    'schedular': _key(mapping),
    'train_epochs': _key(optional(count), None, 'P'),
    'precision': _key(one_of('fp32', 'bf16'), 'fp32'),
    'compile': _key(flag, False),
    'clip_grad_norm': _key(optional(positive), None),
    'alpha': _key(nonnegative, 0, 'RNV'),
    'warm_up': _key(flag, True, 'RNV'),
    'eval_ema': _key(flag, False, 'N'),
    'init_deit': _key(flag_or_path, True, 'P'),
    # evaluation
    'k_test': _key(count0, _by_task(retrieval=128, vqa=128), 'RV'),
    'keep_embeds': _key(one_of('device', 'cpu'), 'device', 'R'),
    # output
    'print_freq': _key(count, 50),
    'save_every': _key(optional(count), None),
    'keep_checkpoints': _key(optional(count), None),
}

SECTIONS = {
    'optimizer': {
        'opt': _key(text, 'adamW'), 'lr': _key(positive), 'weight_decay': _key(nonnegative, 0.02),
        'betas': _key(betas, lambda task: [0.9, 0.999]), 'eps': _key(positive, 1e-8), 'no_decay': _key(names, lambda task: []),
    },
    'schedular': {
        'sched': _key(one_of('cosine'), 'cosine'), 'lr': _key(optional(positive), None), 'epochs': _key(count),
        'min_lr': _key(nonnegative), 'decay_rate': _key(one_of(1), 1), 'warmup_lr': _key(nonnegative),
        'warmup_epochs': _key(count0, 0), 'cooldown_epochs': _key(count0, 0),
    },
    'vit': {
        'patch_size': _key(count, 16), 'embed_dim': _key(count, 768), 'depth': _key(count, 12),
        'num_heads': _key(count, 12), 'mlp_ratio': _key(positive, 4),
    },
}


def read_yaml(path):
    """The mapping in a YAML file; one clear error where there is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: there is no such configuration file; give one with --config')
    try:
        value = YAML(typ='safe').load(path)
    except YAMLError as error:
        raise ValueError(f'{path}: not valid YAML: {" ".join(str(error).split())}') from None
    if not isinstance(value, dict):
        raise ValueError(f'{path}: must hold a mapping of keys to values')
    return value


def apply_overrides(config, overrides):
    """Set `a.b=value` (as given to --set) in a copy of the configuration; values are read as YAML."""
    config = dict(config)
    for item in overrides:
        name, equals, value = item.partition('=')
        if not equals:
            raise ValueError(f'--set {item}: write it as key=value or section.key=value')
        try:
            value = YAML(typ='safe').load(value)
        except YAMLError:
            raise ValueError(f'--set {item}: {value!r} is not a YAML value') from None
        *sections, last = name.split('.')
        place = config
        for section in sections:
            place[section] = dict(_as_mapping(place.get(section, {}), section, item))
            place = place[section]
        place[last] = value
    return config


def _as_mapping(value, section, item):
    if isinstance(value, str) and section == 'bert_config':  # a path: its content is being changed
        return read_bert_config(value)
    if not isinstance(value, dict):
        raise ValueError(f'--set {item}: {section} is not a section')
    return value


def resolve(task, config, source='config'):
    """The whole configuration of a run: every key known and checked, defaults filled in.

    Returns (resolved mapping, unused keys). A key that only another task reads is kept and listed as unused.
    Raises ValueError that names the file, the key and the nearest known key.
    """
    _refuse_unknown(config, KEYS, source, '')
    resolved = _fill(task, config, KEYS, source, '')
    for name, section in SECTIONS.items():
        _refuse_unknown(resolved[name], section, source, f'{name}.')
        resolved[name] = _fill(task, resolved[name], section, source, f'{name}.')
    _check_rates(resolved, source)
    _complete_model(resolved, source)
    if task == 'pretrain':
        resolved['train_epochs'] = resolved['train_epochs'] or resolved['schedular']['epochs']
        check_pretrain(resolved, source)
    if task == 'retrieval':
        check_retrieval(resolved, source)
    if task == 'nlvr_pretrain' and resolved['batch_size'] < 3:
        raise ValueError(f'{source}: batch_size must be at least 3: a text is shown with two images of other pairs')
    unused = [name for name in config if not KEYS[name].read_by(task)]
    return resolved, unused


def model_settings(task, config):
    """The keys that shape a model, defaults filled in; `config` may lack all others, and is not changed."""
    settings = _fill(task, {k: v for k, v in config.items() if k in KEYS and KEYS[k].part == MODEL},
                     {k: v for k, v in KEYS.items() if v.part == MODEL}, 'config', '')
    _refuse_unknown(settings['vit'], SECTIONS['vit'], 'config', 'vit.')
    settings['vit'] = _fill(task, settings['vit'], SECTIONS['vit'], 'config', 'vit.')
    _complete_model(settings, 'config')
    if task == 'retrieval':
        check_retrieval(settings)
    return settings


def _refuse_unknown(config, known, source, prefix):
    for name in config:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0)
            raise ValueError(f'{source}: unknown key {prefix}{name}; the nearest known key is {prefix}{near[0]}')


def _fill(task, config, known, source, prefix):
    filled = {}
    for name, key in known.items():
        if name in config:
            try:
                filled[name] = key.check(config[name])
            except ValueError as error:
                raise ValueError(f'{source}: {prefix}{name} {error}, not {config[name]!r}') from None
        elif key.read_by(task):
            if key.default is REQUIRED:
                raise ValueError(f'{source}: the key {prefix}{name} is missing')
            default = key.default
            filled[name] = (default() if default is dict else default(task)) if callable(default) else default
    return filled


def _check_rates(config, source):
    peak, other = config['optimizer']['lr'], config['schedular']['lr']
    if other is not None and other != peak:
        raise ValueError(f'{source}: schedular.lr {other} differs from optimizer.lr {peak}; the peak is optimizer.lr, so '
                         'drop schedular.lr or make them equal')
    config['schedular']['lr'] = peak


def read_bert_config(path):
    """A BERT configuration file (JSON, or YAML) as a mapping."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'bert_config: there is no file {path}')
    if str(path).endswith(('.yaml', '.yml')):
        return read_yaml(path)
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'bert_config: {path} is not valid JSON: {error}') from None


def _complete_model(config, source):
    """Read bert_config where it is a path, and check that the image encoder's width is said alike everywhere."""
    if isinstance(config['bert_config'], str):
        config['bert_config'] = read_bert_config(config['bert_config'])
    config['bert_config'] = dict(config['bert_config'])
    width = config['vit']['embed_dim']
    if config['vision_width'] not in (None, width):
        raise ValueError(f'{source}: vision_width {config["vision_width"]} must equal vit.embed_dim {width} '
                         '(768 where no vit section is given)')
    config['vision_width'] = width
    encoder_width = config['bert_config'].setdefault('encoder_width', width)
    if encoder_width != width:
        raise ValueError(f'{source}: bert_config.encoder_width {encoder_width} must equal the width of the image encoder, '
                         f'vit.embed_dim {width}')


def check_pretrain(config, source='config'):
    """The sizes of pre-training: a batch has negatives, and queue, search space and batch divide one another."""
    batch, space, queue = config['batch_size'], config['search_space'], config['queue_size']
    if batch < 2:
        raise ValueError(f'{source}: batch_size must be at least 2: image-text matching needs another pair as a negative')
    if config['sampler'] == 'random':
        return
    for large, small, remedy in (('queue_size', 'search_space', space), ('queue_size', 'batch_size', batch),
                                 ('search_space', 'batch_size', batch)):
        if config[large] % config[small]:
            below = config[large] // config[small] * config[small]
            near = f'{below} or {below + remedy}' if below else f'{remedy}'
            raise ValueError(f'{source}: {large} {config[large]} must be a multiple of {small} {config[small]}; take {near} '
                             f'(queue_size {queue}, search_space {space} and batch_size {batch} are per process)')


def check_retrieval(config, source='config'):
    """Distillation needs the momentum copies: they are its teachers."""
    if config['distill'] and not config['use_momentum']:
        raise ValueError(f'{source}: distill: true needs the momentum model: set use_momentum: true, or distill: false')


def require_files(paths):
    """FileNotFoundError for the first (key, path) whose path does not exist; None and '' are passed over."""
    for key, path in paths:
        if path and not os.path.exists(path):
            raise FileNotFoundError(f'{key}: there is no {path}; correct the path in the configuration or with --set {key}=...')


def write_yaml(config, path):
    """Write a mapping as YAML, beside its place first."""
    yaml = YAML()
    yaml.width = 120
    temporary = f'{path}.tmp'
    with open(temporary, 'w', encoding='utf-8') as file:
        yaml.dump(config, file)
    os.replace(temporary, path)
