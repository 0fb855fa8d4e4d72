"""A trained model with everything that predictions need: read from any checkpoint, saved to a folder, shared on a hub.

A folder contains `model.safetensors` with the official names, `config.json` and the vocabulary. It is also a
`--checkpoint` of the five scripts, and a `--text_encoder` that has a vocabulary and no BERT weights.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from models import create_model
from models.tokenization_bert import (
    create_tokenizer,
    first_sentence,
    local_folder,
    pack_tokenizer,
    unpack_tokenizer,
)
from models.weight_files import MODEL_TYPE, State, model_state, read_checkpoint
from models.weights import COPY, MOMENTUM, load_nlvr, load_retrieval, load_text_assignment, load_vqa
from utils.config import apply_overrides, prediction_settings, refuse_unknown_keys
from utils.config_files import find_file, find_path, read_yaml
from utils.config_keys import TASKS
from utils.errors import InputError, MissingFileError
from utils.files import WEIGHTS_FILE, atomic_write, read_json, read_text

WEIGHTS, CONFIG, TOKENIZER, SPECIAL = FILES = (
    WEIGHTS_FILE,
    'config.json',
    'tokenizer.json',
    'special_tokens_map.json',
)
OPTION = 'checkpoint'  # what names a source in messages
HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*(/[\w.-]+)?')
FILE_NAME = re.compile(r'\.(pth?|ckpt|bin|safetensors)$', re.IGNORECASE)
# How a task is known by the names of its weights, the first that fits.
HEADS = {
    'vqa': 'text_decoder.',
    'nlvr': 'cls_head.',
    'nlvr_pretrain': 'ta_head.',
    'pretrain': 'text_encoder.cls.',
    'retrieval': 'itm_head.',
}
CARD = """---
tags: [image-text-retrieval, vision-language, grit-vlp, albef]
---
Weights of GRIT-VLP (arXiv 2208.04060), task `{task}`. With the repository of GRIT-VLP:

```python
from predict import load_model

model = load_model('{name}')
```
"""


class IncompleteError(InputError):
    """A checkpoint has no configuration, or no vocabulary, and none was given."""


@dataclass(frozen=True)
class Pretrained:
    """A trained model.

    task: as for `create_model`. config: the keys that predictions depend on. state: the weights, with the official
    names, without momentum copies and queues. answers: those that VQA chooses from. source: where it was read.
    """

    task: str
    config: Mapping[str, Any]
    tokenizer: Any
    state: State
    answers: list[str] = field(default_factory=list)
    source: str = ''


# ---- reading ----


def read_pretrained(
    source: str | os.PathLike,
    config: Mapping[str, Any] | str | os.PathLike | None = None,
    text_encoder: str | None = None,
    overrides: Sequence[str] = (),
) -> Pretrained:
    """Read a checkpoint file of any task (ours, ALBEF's, GRIT-VLP's), a folder of `save_pretrained`, or a hub name.

    config: a mapping or a YAML file; text_encoder: a hub name or a folder with a vocabulary. Both are needed only where
    the source has none. overrides: `key=value`, as for --set. InputError says what is missing.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputError(f'{OPTION}: {type(source).__name__} is no name; give a file, a folder or a hub name')
    source = os.fspath(source)
    path = find_path(source)
    path = path if os.path.exists(path) else _download(source)
    content = _read_folder(path) if os.path.isdir(path) else read_checkpoint(path, OPTION)
    state = model_state(content, source, OPTION)
    task = content['task'] if content.get('task') in TASKS else task_of(state, source)
    given = _given_config(config)
    own = content['config'] if isinstance(content.get('config'), dict) else None
    if given is None and own is None:
        raise IncompleteError(
            f'{OPTION} {source}: it has no configuration; give that of its training with config= or --config, such as '
            'configs/Pretrain.yaml'
        )
    changed = apply_overrides(own if given is None else given, overrides)
    if given is not None or overrides:  # the checkpoint's own may be of another program
        refuse_unknown_keys({name: value for name, value in changed.items() if name not in (own or {})}, 'config')
    settings = prediction_settings(task, changed)
    tokenizer = _tokenizer(content, source, text_encoder, settings)
    answers = []
    if task == 'vqa':
        named = changed.get('answer_list')
        is_given = given is not None or named != own.get('answer_list')
        answers = _answers(content, named if is_given else None, source)
    return Pretrained(
        task, settings, tokenizer, own_weights(state, task == 'nlvr' and bool(changed.get('eval_ema'))), answers, source
    )


def task_of(state: State, source: str) -> str:
    """The task of weights by their names. InputError if they are of no model of this repository."""
    for task, prefix in HEADS.items():
        if any(key.startswith(prefix) for key in state):
            return task
    raise InputError(
        f'{OPTION} {source}: its weights, such as {next(iter(state))}, are not those of ALBEF or GRIT-VLP; give a '
        'checkpoint with an ITM head, an answer decoder or a classifier'
    )


def own_weights(state: State, momentum: bool = False) -> dict[str, Tensor]:
    """Weights without queues and momentum copies; with `momentum`, the copies in place of what they are copies of."""
    own = {key: value for key, value in state.items() if not any(re.match(pattern, key) for pattern in MOMENTUM)}
    copies = {re.sub(r'_m\.', '.', key, count=1): value for key, value in state.items() if re.match(COPY, key)}
    return own | copies if momentum else own


def momentum_state(source: str | os.PathLike) -> dict[str, Tensor]:
    """The momentum copies and queues of a checkpoint file, as `read_pretrained` leaves them out; {} if it has none."""
    path = find_path(os.fspath(source))
    if not os.path.isfile(path):
        return {}
    state = model_state(read_checkpoint(path, OPTION), os.fspath(source), OPTION)
    return {key: value for key, value in state.items() if any(re.match(pattern, key) for pattern in MOMENTUM)}


def _download(name: str) -> str:
    """The local copy of a folder on the hub. MissingFileError if there is none."""
    if FILE_NAME.search(name) or not HUB_NAME.fullmatch(name) or os.path.islink(name):
        raise MissingFileError(f'{OPTION} {name}: there is no such file; correct the path')
    return local_folder(name, 'model', FILES, OPTION)


def _read_folder(folder: str) -> dict[str, Any]:
    """The content of a folder of `save_pretrained`, as that of a checkpoint file."""
    missing = [name for name in (WEIGHTS, CONFIG) if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        checkpoints = sorted(name for name in os.listdir(folder) if name.endswith('.pth'))
        remedy = f'give {os.path.join(folder, checkpoints[-1])}' if checkpoints else 'give a folder of save_pretrained'
        raise InputError(f'{OPTION} {folder}: there is no {missing[0]} in it; {remedy}')
    config = read_json(os.path.join(folder, CONFIG), OPTION)
    if not isinstance(config, dict) or config.get('model_type') != MODEL_TYPE or config.get('task') not in TASKS:
        raise InputError(
            f'{OPTION} {folder}: {CONFIG} was not written by save_pretrained of this repository; give a checkpoint '
            'file, with config= if it has none'
        )
    content = config | {'model': read_checkpoint(folder, OPTION)}
    files = [os.path.join(folder, name) for name in (TOKENIZER, SPECIAL)]
    if all(map(os.path.isfile, files)):
        content['tokenizer'] = {'json': read_text(files[0]), 'special_tokens': read_json(files[1], OPTION)}
    return content


def _given_config(config: Mapping[str, Any] | str | os.PathLike | None) -> Mapping[str, Any] | None:
    if not isinstance(config, Mapping | str | os.PathLike | None):
        raise InputError(f'config: {type(config).__name__} is no configuration; give a mapping or a YAML file')
    if isinstance(config, str | os.PathLike):
        config = read_yaml(find_file(os.fspath(config)))  # JSON is YAML
    return config['config'] if config and config.get('model_type') == MODEL_TYPE else config


def _tokenizer(content: Mapping[str, Any], source: str, text_encoder: str | None, settings: Mapping[str, Any]) -> Any:
    """The tokenizer of `text_encoder`, else that in the checkpoint, also where VQA kept it before all tasks had one."""
    if text_encoder:
        return create_tokenizer(text_encoder, settings['bert_config']['vocab_size'])
    packed = content.get('tokenizer') or _saved_answers(content).get('tokenizer')
    if not packed:
        raise IncompleteError(
            f'{OPTION} {source}: it has no vocabulary; give that of its training with text_encoder= or --text_encoder, '
            'such as bert-base-uncased'
        )
    return unpack_tokenizer(packed)


def _answers(content: Mapping[str, Any], named: str | None, source: str) -> list[str]:
    """The answers of a VQA model: those of the file `named`, else the checkpoint's own. InputError without any."""
    own = read_json(named, 'answer_list') if named else content.get('answers') or _saved_answers(content).get('texts')
    if not isinstance(own, list) or not own or not all(isinstance(text, str) for text in own):
        raise InputError(
            f'{named or f"{OPTION} {source}"}: there is no list of answers to choose from; give one with --set '
            'answer_list=FILE, or in config='
        )
    return own


def _saved_answers(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the state of a VQA run has about its answers, {} if it has nothing."""
    try:
        return dict(content['ranks'][0]['answers'])
    except (KeyError, IndexError, TypeError, ValueError):
        return {}


# ---- models ----


def build(pretrained: Pretrained) -> nn.Module:
    """The model in eval mode, without gradients: retrieval's for `pretrain` and `retrieval`, else the task's own."""
    task, source = pretrained.task, f'{OPTION} {pretrained.source}'
    model = create_model('retrieval' if task == 'pretrain' else task, pretrained.config, pretrained.tokenizer)
    if task in ('pretrain', 'retrieval'):
        load_retrieval(model, pretrained.state, source)
    elif task == 'vqa':
        load_vqa(model, pretrained.state, source)
    elif task == 'nlvr':
        load_nlvr(model, pretrained.state, source, head=True)
    else:
        load_text_assignment(model, pretrained.state, source, head=True)
    return model.eval().requires_grad_(False)


# ---- saving ----


def save_pretrained(pretrained: Pretrained, folder: str | os.PathLike, name: str | None = None) -> None:
    """Write a folder that `read_pretrained` reads. InputError if the folder has files of something else.

    name: that the model will have, for its README.md.
    """
    folder = Path(folder)
    refuse_foreign_files(folder)
    packed = pack_tokenizer(pretrained.tokenizer)
    content = {'model_type': MODEL_TYPE, 'task': pretrained.task, 'config': dict(pretrained.config)}
    content |= {'answers': pretrained.answers} if pretrained.answers else {}
    # A tensor that has two names, such as the word embeddings, is written twice: other programs look for both.
    state = {
        key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in pretrained.state.items()
    }
    texts = {
        TOKENIZER: packed['json'],
        SPECIAL: json.dumps(packed['special_tokens'], indent=1),
        'README.md': CARD.format(task=pretrained.task, name=name or folder.name),
        CONFIG: json.dumps(content, indent=1),
    }
    with atomic_write(folder / WEIGHTS, 'wb') as file:
        file.write(save(state, {'format': 'pt'}))
    for name, text in texts.items():  # the configuration last: without it the folder is not complete
        with atomic_write(folder / name) as file:
            file.write(text)


def refuse_foreign_files(folder: str | os.PathLike) -> None:
    """InputError unless `save_pretrained` can write to a folder: it is not there, empty, or was written by it."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f'{folder} is a file; give the name of a folder')
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if name not in (*FILES, 'README.md', '.gitattributes') and name[0] != '.']
    if foreign:
        raise InputError(f'{folder} holds {foreign[0]}; give a new folder for the weights')


def push_to_hub(pretrained: Pretrained, name: str, private: bool = False, token: str | None = None) -> str:
    """Upload the folder of `save_pretrained` to the Hugging Face hub -> its address.

    name: USER/MODEL. token: the account's, by default that of `hf auth login`. InputError if it does not work.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(pretrained, folder, name)
        try:
            api = HfApi(token=token)
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder)
        except Exception as error:  # no network, no account, not a possible name: each has its own exception
            raise InputError(
                f'{name}: it could not be uploaded to the Hugging Face hub ({first_sentence(error)}); log in with `hf '
                'auth login`, or write a folder with save_pretrained and upload it on a machine with a network'
            ) from None
    return str(address)
