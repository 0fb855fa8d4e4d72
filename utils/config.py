"""The YAML configuration: read, changed by --set, and checked against the known keys before any work is done.

python -m utils.config    prints the table of keys
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from utils.arguments import Parser
from utils.config_checks import LISTS, NULLABLE, TEXT, boolean_or_names, boolean_or_path, path_or_mapping
from utils.config_files import NO_YAML, find_beside, read_yaml
from utils.config_keys import (
    BASE,
    BERT,
    BERT_IGNORED,
    FORMER,
    KEYS,
    REQUIRED,
    SECTIONS,
    Key,
    key_of,
    key_table,
)
from utils.entry import run_main
from utils.errors import InputError, MissingFileError
from utils.files import read_json

Config = dict[str, Any]
RATES = ('optimizer.lr', 'schedular.lr')
# What shapes a model and only matters in training, or for what only training has; the rest shapes its predictions, too.
ONLY_TRAINING = {
    *('mlm_probability', 'consistency_weight', 'itm_negatives', 'itm_target_accuracy', 'exclude_equal_negatives'),
    *('use_momentum', 'momentum', 'distill', 'grad_checkpointing', 'queue_size', 'itc_queue_size', 'itc_smoothing'),
}
PREDICTION = (
    *(name for name, key in KEYS.items() if key.shapes_model and name not in ONLY_TRAINING),
    *('reduced_decode', 'precision', 'k_test', 'eos'),
)


def apply_overrides(config: Mapping[str, Any], overrides: Iterable[str]) -> Config:
    """Set `a.b=value` (as given to --set) in a copy of the configuration.

    A value is read as YAML, but paths and names are taken as they are written. An override of one of optimizer.lr and
    schedular.lr, which must be equal, moves the other.
    """
    config, rates = dict(config), {}
    for item in overrides:
        name, equals, value = item.partition('=')
        if not equals or not all(name.split('.')):
            raise InputError(f'--set {item}: write it as key=value or section.key=value')
        *sections, last = name.split('.')
        place = config
        for section in sections:
            place[section] = dict(_as_mapping(place.get(section, {}), section, item))
            place = place[section]
        place[last] = value = _override_value(item, name, value)
        if name in RATES:
            rates[name.split('.')[0]] = value
        elif f'{name}.lr' in RATES and isinstance(value, dict) and 'lr' in value:
            rates[name] = value['lr']
    if len(rates) == 1:
        _move_other_rate(config, *rates.items())
    return config


def _override_value(item: str, name: str, text: str) -> Any:
    """The value of an override: as it is written where the key takes a path or a name, else as YAML.

    Quotes around all of it are YAML's in any case; so are lists, mappings, true, false and null where the key takes
    them.
    """
    check = key.check if (key := key_of(name)) else None
    text = text.strip() if check in LISTS else text
    if check in TEXT and text in ('~', 'null', 'Null', 'NULL') or check in NULLABLE and not text:
        return None
    if check not in TEXT or text[:1] + text[1:][-1:] in ('""', "''"):
        return _read_value(item, text)
    if text.startswith('[') and text.endswith(']') and check in LISTS:
        if re.search(r'[\[,]\s*[!&*@%|>`{#]', text):
            raise InputError(f"""--set {item}: put names that begin with a special character in quotes: ["#1.json"]""")
        return _read_value(item, text, 'base')  # every item is a string, as it is written
    if check is path_or_mapping and text[:1] + text[-1:] in ('{}', '[]'):
        return _read_value(item, text)
    if check in (boolean_or_path, boolean_or_names) and text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    return text


def _read_value(item: str, text: str, typ: str = 'safe') -> Any:
    try:
        return YAML(typ=typ).load(text)
    except NO_YAML:
        raise InputError(
            f'--set {item}: {text!r} is not a YAML value; put names with special characters in quotes'
        ) from None


def _move_other_rate(config: Config, override: tuple[str, Any]) -> None:
    """Give the other of optimizer.lr and schedular.lr the value of the one that was overridden, if it has one."""
    name, rate = override
    other = 'schedular' if name == 'optimizer' else 'optimizer'
    section = config.get(other)
    if isinstance(section, dict) and section.get('lr') is not None and isinstance(rate, int | float):
        config[other] = section | {'lr': rate}


def _as_mapping(value: Any, section: str, item: str) -> Mapping[str, Any]:
    if isinstance(value, str) and section == 'bert_config':  # a path: a key of its content is to be changed
        return {'base': value}
    if not isinstance(value, dict):
        raise InputError(f'--set {item}: {section} is not a section')
    return value


def resolve(task: str, config: Mapping[str, Any], source: str = 'config') -> tuple[Config, list[str]]:
    """The complete configuration of a run: every key known and checked, defaults filled in.

    Returns (resolved configuration, unused keys): a key that only another task reads stays and is listed as unused.
    InputError names the file, the key and the nearest known key.
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
        raise InputError(f'{source}: batch_size must be at least 3: a caption is shown with two images of other pairs')
    if task == 'vqa' and resolved['k_test'] < 1:
        raise InputError(
            f'{source}: k_test must be at least 1: the number of answers that are ranked by all their tokens'
        )
    if task == 'nlvr' and resolved['eval_ema'] and not resolved['distill']:
        raise InputError(f'{source}: eval_ema: true needs the momentum copy: set distill: true, or eval_ema: false')
    unused = [name for name in config if not KEYS[name].read_by(task)]
    return resolved, unused


def model_settings(task: str, config: Mapping[str, Any]) -> Config:
    """The keys that shape a model, defaults filled in; `config` may lack all others, and is not changed."""
    keys = {name: key for name, key in KEYS.items() if key.shapes_model}
    settings = _fill(task, {name: value for name, value in config.items() if name in keys}, keys, 'config', '')
    _refuse_unknown(settings['vit'], SECTIONS['vit'], 'config', 'vit.')
    settings['vit'] = _fill(task, settings['vit'], SECTIONS['vit'], 'config', 'vit.')
    _complete_model(settings, 'config')
    if task == 'retrieval':
        check_retrieval(settings)
    return settings


def refuse_unknown_keys(config: Mapping[str, Any], source: str) -> None:
    """InputError for a key that no task knows, also in a section, with the nearest known one."""
    _refuse_unknown(config, KEYS, source, '')
    for name, section in SECTIONS.items():
        if isinstance(config.get(name), dict):
            _refuse_unknown(config[name], section, source, f'{name}.')


def prediction_settings(task: str, config: Mapping[str, Any]) -> Config:
    """The keys that a prediction depends on, defaults filled in; `config` may lack all others, and is not changed."""
    model = model_settings(task, config)
    keys = {name: KEYS[name] for name in PREDICTION if not KEYS[name].shapes_model}
    others = _fill(task, {name: value for name, value in config.items() if name in keys}, keys, 'config', '')
    return {name: value for name, value in (model | others).items() if name in PREDICTION and KEYS[name].read_by(task)}


def _refuse_unknown(config: Mapping[str, Any], known: Mapping[str, Key], source: str, prefix: str) -> None:
    for name in config:
        if known is KEYS and name in FORMER:
            raise InputError(f'{source}: the key {name} is no longer known; write {FORMER[name]} instead')
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0)[0]
            raise InputError(f'{source}: unknown key {prefix}{name}; the nearest known key is {prefix}{nearest}')


def _fill(task: str, config: Mapping[str, Any], known: Mapping[str, Key], source: str, prefix: str) -> Config:
    checked = _check_values(config, known, source, prefix)
    filled = {}
    for name, key in known.items():
        if name in checked:
            filled[name] = checked[name]
        elif key.read_by(task):
            if key.default is REQUIRED:
                raise InputError(f'{source}: the key {prefix}{name} is missing')
            filled[name] = key.default_for(task)
    return filled


def _check_values(config: Mapping[str, Any], known: Mapping[str, Key], source: str, prefix: str) -> Config:
    checked = {}
    for name in config:
        try:
            checked[name] = known[name].check(config[name])
        except ValueError as error:
            raise InputError(f'{source}: {prefix}{name} {error}, not {config[name]!r}') from None
    return checked


def _check_rates(config: Config, source: str) -> None:
    peak, other = config['optimizer']['lr'], config['schedular']['lr']
    if other is not None and other != peak:
        raise InputError(
            f'{source}: schedular.lr {other} differs from optimizer.lr {peak}; optimizer.lr is the peak, so drop '
            'schedular.lr or make them equal'
        )
    config['schedular']['lr'] = peak


def read_bert_config(path: str, source: str = '') -> Config:
    """A BERT configuration file (JSON, or YAML) as a mapping. source: the configuration file that names it."""
    found = find_beside(path, source)
    if not os.path.isfile(found):
        raise MissingFileError(f'bert_config: there is no file {path}')
    if found.endswith(('.yaml', '.yml')):
        return read_yaml(found)
    value = read_json(found, 'bert_config')
    if not isinstance(value, dict):
        raise InputError(f'bert_config: {found} must contain a mapping of keys to values')
    return value


def _complete_model(config: Config, source: str) -> None:
    """Read bert_config if it names a file, and check that every key gives the same width of the image encoder."""
    bert = config['bert_config']
    bert = {'base': bert} if isinstance(bert, str) else dict(bert)
    base = _check_values({'base': bert.pop('base', None)}, BASE, source, 'bert_config.')['base']
    config['bert_config'] = bert = ({} if base is None else read_bert_config(base, source)) | bert
    known = {name: value for name, value in bert.items() if name not in BERT_IGNORED}
    _refuse_unknown(known, BERT, source, 'bert_config.')
    _check_values(known, BERT, source, 'bert_config.')
    bert.setdefault('vocab_size', BERT['vocab_size'].default)
    width = config['vit']['embed_dim']
    if config['vision_width'] not in (None, width):
        raise InputError(
            f'{source}: vision_width {config["vision_width"]} must equal vit.embed_dim {width} (768 if there is no vit '
            'section)'
        )
    config['vision_width'] = width
    encoder_width = bert.setdefault('encoder_width', width)
    if encoder_width != width:
        raise InputError(
            f'{source}: bert_config.encoder_width {encoder_width} must equal the width of the image encoder, '
            f'vit.embed_dim {width}'
        )


def check_pretrain(config: Mapping[str, Any], source: str = 'config') -> None:
    """The sizes of pre-training: a batch has negatives; queue, search space and batch divide one another."""
    batch, space, queue = config['batch_size'], config['search_space'], config['queue_size']
    if batch < 2:
        raise InputError(
            f'{source}: batch_size must be at least 2: image-text matching needs another pair as a negative'
        )
    if config['sampler'] == 'random':
        return
    if config['grit_grouping'] != 'chain' and config['grit_quantile'] != 1:
        raise InputError(
            f'{source}: grit_quantile {config["grit_quantile"]} is of chains, and grit_grouping is '
            f'{config["grit_grouping"]}; drop one of them'
        )
    if config['grit_from_epoch'] == 'auto' and 'auto' not in config['itm_negatives'].values():
        raise InputError(
            f'{source}: grit_from_epoch: auto needs itm_negatives: auto, whose beta says when ITM is ready; set it, or '
            'give the first epoch of GRIT'
        )
    for large, small in (('queue_size', 'search_space'), ('queue_size', 'batch_size'), ('search_space', 'batch_size')):
        if config[large] % config[small]:
            unit = config[small]
            below = config[large] // unit * unit
            nearest = f'{below} or {below + unit}' if below else f'{unit}'
            raise InputError(
                f'{source}: {large} {config[large]} must be a multiple of {small} {unit}; take {nearest} '
                f'(queue_size {queue}, search_space {space} and batch_size {batch} are per process)'
            )


def check_retrieval(config: Mapping[str, Any], source: str = 'config') -> None:
    """Distillation needs the momentum encoders: they make its targets."""
    if config['distill'] and not config['use_momentum']:
        raise InputError(f'{source}: distill: true needs the momentum model: set use_momentum: true, or distill: false')


def main(argv: Sequence[str] | None = None) -> None:
    Parser(prog='python -m utils.config', description='Print the table of configuration keys.').parse_args(argv)
    print(key_table())


if __name__ == '__main__':
    run_main(main)
