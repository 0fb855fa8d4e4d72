"""All loading of weights: read a file, rename its keys, load them into a model, report what was loaded.

Nothing is loaded silently: every parameter is loaded, reported as missing or unexpected for a known reason, or the file
is refused with its name and the keys.
"""

import argparse
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.vit import VIT_B_16, interpolate_pos_embed
from models.xbert import BertConfig
from utils.errors import InputError, MissingFileError
from utils.files import archive_fault
from utils.finite import not_finite

State = Mapping[str, Tensor]

# What official checkpoints contain besides tensors and plain values; NumPy's scalars have two names in NumPy 1 and 2.
_scalar = np.float64(0).__reduce__()[0]
HARMLESS = [
    OrderedDict,
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ('float64', 'float32', 'int64')),
    (_scalar, 'numpy.core.multiarray.scalar'),
    (_scalar, 'numpy._core.multiarray.scalar'),
]


@dataclass
class Report:
    """What was loaded into a model: keys loaded, missing in the file, unexpected in the file, and resized."""

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        groups = {
            'resized': self.resized,
            'missing in the file, not changed': self.missing,
            'only in the file, not used': self.unexpected,
        }
        lines = [f'{self.source}: loaded {len(self.loaded)} tensors']
        lines += [f'  {words}: {summarize(keys)}' for words, keys in groups.items() if keys]
        return '\n'.join(lines + [f'  {note}' for note in self.notes])


def summarize(keys: Iterable[str], most: int = 6) -> str:
    """A short text for many keys: the number of tensors under each first name."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.split('.')[0], []).append(key)
    words = [f'{name} ({len(members)} tensors)' if len(members) > 1 else members[0] for name, members in groups.items()]
    return ', '.join(words[:most]) + (f' and {len(words) - most} more' if len(words) > most else '')


def read_checkpoint(path: str, option: str = '--checkpoint') -> dict[str, Any]:
    """Everything in a checkpoint file, on the CPU. InputError for a missing file, a damaged file, unsafe content.

    option: the flag or key that names the file, for messages.
    """
    if os.path.isdir(path):
        raise InputError(f'{option} {path}: it is a folder; give a file in it')
    if not os.path.isfile(path):
        raise MissingFileError(f'{option} {path}: there is no such file')
    fault = archive_fault(path)
    if fault:
        raise InputError(f'{option} {path}: the file is damaged ({fault}); copy or download it again')
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about pickle and TorchScript files, before their error
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises almost any exception for a file of another kind
        unsafe = re.search(r'GLOBAL (\S+)', str(error))
        if unsafe:
            raise InputError(
                f'{option} {path}: it contains the Python object {unsafe[1]}, which may run code, and is not loaded; '
                'if you trust the file, save only its model and load that'
            ) from None
        reason = 'damaged, incomplete, or of another kind' if os.path.getsize(path) else 'it is empty'
        raise InputError(f'{option} {path}: not a readable checkpoint ({reason}); copy or download it again') from None


def read_weights(path: str, option: str = '--checkpoint') -> dict[str, Tensor]:
    """The model weights in a checkpoint file."""
    return model_state(read_checkpoint(path, option), path, option)


def model_state(checkpoint: Any, path: str, option: str = '--checkpoint') -> dict[str, Tensor]:
    """The weights in what `read_checkpoint` returned: under `model`, or the file is the state dict itself.

    InputError if there are none, or if a tensor is not finite.
    """
    state = checkpoint.get('model', checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not state or not all(map(_is_weight, state.items())):
        raise InputError(
            f'{option} {path}: has no model weights (a mapping of names to tensors, or such a mapping under `model`)'
        )
    refuse_not_finite(state, f'{option} {path}')
    return {key.removeprefix('module.'): value for key, value in state.items()}


def _is_weight(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and torch.is_tensor(item[1])


def refuse_not_finite(state: State, source: str) -> None:
    """InputError if a tensor has an entry that is NaN or infinite."""
    names = not_finite(state)
    if names:
        raise InputError(
            f'{source}: {len(names)} of {len(state)} tensors are not finite, the first is {names[0]}; '
            'the training that wrote them diverged, so give an earlier checkpoint'
        )


def strip_bert(state: State) -> dict[str, Tensor]:
    """The names of a text encoder without a head: `text_encoder(_m).bert.*` -> `text_encoder(_m).*`."""
    return {re.sub(r'^(text_encoder(?:_m)?)\.bert\.', r'\1.', key): value for key, value in state.items()}


def resize_pos_embeds(state: State, model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Resize position embeddings of another resolution. Returns (state, names of those resized)."""
    state, resized = dict(state), []
    for name in ('visual_encoder', 'visual_encoder_m'):
        key, encoder = f'{name}.pos_embed', getattr(model, name, None)
        if (
            key in state
            and encoder is not None
            and state[key].shape[1] != encoder.pos_embed.shape[1]
            and state[key].shape[2] == encoder.pos_embed.shape[2]
        ):
            state[key] = interpolate_pos_embed(state[key], encoder)
            resized.append(key)
    return state, resized


def load_state(
    model: nn.Module, state: State, source: str, missing: Sequence[str] = (), unexpected: Sequence[str] = ()
) -> Report:
    """Load a state dict (already renamed) into a model and report.

    missing, unexpected: patterns (matched at the start of a key) of keys that may be only in the model, or only in the
    file. InputError names the file and the keys that no pattern allows, or whose shape differs.
    """
    state, resized = resize_pos_embeds(state, model)
    wanted = model.state_dict()
    missing = [*missing, r'.*position_ids$']  # a constant that newer libraries do not store
    loaded = [key for key in wanted if key in state]
    absent = [key for key in wanted if key not in state]
    surplus = [key for key in state if key not in wanted]
    shapes = [
        f'{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}'
        for key in loaded
        if state[key].shape != wanted[key].shape
    ]
    faults = {
        'missing keys': [key for key in absent if not _matches(key, missing)],
        'unexpected keys': [key for key in surplus if not _matches(key, unexpected)],
        'other shapes': shapes,
    }
    faults_text = '; '.join(f'{name}: {_first(keys)}' for name, keys in faults.items() if keys)
    if faults_text:
        raise InputError(
            f'{source} does not fit this model: {faults_text}. Is it a checkpoint of this task, with the same vit and '
            'bert_config?'
        )
    model.load_state_dict({key: state[key] for key in loaded}, strict=False)
    absent = [key for key in absent if not key.endswith('position_ids')]
    return Report(source, loaded, absent, surplus, resized)


def _first(keys: Sequence[str], most: int = 4) -> str:
    return ', '.join(keys[:most]) + (f' and {len(keys) - most} more' if len(keys) > most else '')


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(re.match(pattern, key) for pattern in patterns)


# Momentum copies and queues of ALBEF's pre-training; GRIT-VLP has none.
QUEUE = (r'(image|text|idx)_queue$', r'queue_ptr$', r'ptr_queue$')
COPY = r'[a-z_]+_m\.'
MOMENTUM = (COPY, *QUEUE)


def load_pretrain(model: nn.Module, state: State, source: str) -> Report:
    """A pre-training checkpoint of ours, of GRIT-VLP or of ALBEF into the pre-training model."""
    return load_state(model, state, source, unexpected=MOMENTUM)


def load_retrieval(model: nn.Module, state: State, source: str) -> Report:
    """Weights of pre-training (ours, GRIT-VLP's, ALBEF's), or of retrieval itself, into the retrieval model.

    A queue in the file is dropped: it may have another length, and its indices are those of another dataset's images.
    """
    queue = {key: value for key, value in state.items() if _matches(key, QUEUE)}
    state = strip_bert({key: value for key, value in state.items() if key not in queue})
    report = load_state(model, state, source, missing=MOMENTUM, unexpected=(*MOMENTUM, r'text_encoder(_m)?\.cls\.'))
    report.unexpected += queue
    if 'image_queue' in queue and model.use_momentum:
        report.notes.append(
            f'the queue of the file, {queue["image_queue"].shape[1]} features, is dropped; a new one has '
            f'{model.image_queue.shape[1]}'
        )
    return report


def double_fusion_layers(state: State, fusion_layer: int, layers: int) -> State:
    """Rename layers for two images: with F = fusion_layer, layer l >= F becomes F + 2 (l - F) and the next.

    state: names without `bert.`. layers: how many there are once doubled. A state that has as many already, or cannot
    have as many, is returned as it is.
    """

    def layer(key: str) -> int:
        match = re.match(r'text_encoder\.encoder\.layer\.(\d+)\.', key)
        return int(match.group(1)) if match else -1

    have = 1 + max(map(layer, state), default=-1)
    if have == layers or fusion_layer + 2 * (have - fusion_layer) != layers:
        return state
    doubled = {}
    for key, value in state.items():
        old = layer(key)
        first = fusion_layer + 2 * (old - fusion_layer)
        for new in (first, first + 1) if old >= fusion_layer else (old,):
            doubled[key.replace(f'.layer.{old}.', f'.layer.{new}.', 1)] = value
    return doubled


def load_two_images(model: nn.Module, state: State, source: str, missing: Sequence[str] = ()) -> Report:
    """A pre-training checkpoint, its fusion layers doubled, or one with doubled layers into a model of two images.

    Other tasks' heads and momentum copies are not used. missing: see `load_state`.
    """
    config = model.text_encoder.config
    momentum = [key for key in state if _matches(key, MOMENTUM)]
    state = strip_bert({key: value for key, value in state.items() if key not in momentum})
    has_two_images = any(re.match(r'(ta|cls)_head\.', key) for key in state)  # layers that are doubled already
    doubled = state if has_two_images else double_fusion_layers(state, config.fusion_layer, config.num_hidden_layers)
    heads = (r'text_encoder\.cls\.', r'(itm|ta|cls)_head\.', r'temp$', r'(text|vision)_proj\.')
    report = load_state(model, doubled, source, missing, heads)
    report.unexpected += momentum
    if doubled is not state:
        report.notes.append(f'each fusion layer, from {config.fusion_layer} on, is loaded twice: once per image')
    return report


def load_text_assignment(model: nn.Module, state: State, source: str, head: bool = False) -> Report:
    """Weights of pre-training (ours, GRIT-VLP's, ALBEF's), or of text assignment, into the text assignment model.

    head: the file must have the classifier.
    """
    return load_two_images(model, state, source, missing=() if head else (r'ta_head\.',))


def load_nlvr(model: nn.Module, state: State, source: str, head: bool = False, momentum: bool = False) -> Report:
    """Weights of text assignment, of pre-training or of NLVR2 itself into the NLVR2 model.

    head: the file must have the classifier. momentum: it must have the momentum copy, which is loaded; otherwise the
    momentum copy of a model with `distill` becomes a copy of the loaded weights.
    """
    report = load_two_images(model, state, source, missing=(*MOMENTUM, *(() if head else (r'cls_head\.',))))
    if momentum:
        copies = {key: value for key, value in state.items() if re.match(COPY, key)}
        if not copies:
            raise InputError(f'{source} has no momentum copy to evaluate; set eval_ema: false')
        loaded = load_state(model, copies, f'{source}, momentum copy', missing=(rf'(?!{COPY})',)).loaded
        report.loaded += loaded
        report.missing, report.unexpected = (
            [key for key in keys if key not in loaded] for keys in (report.missing, report.unexpected)
        )
    elif model.distill:
        model.copy_momentum()
        report.missing = [key for key in report.missing if not _matches(key, MOMENTUM)]
        report.notes.append('momentum copies: copies of the loaded weights')
    return report


# Keys of other tasks that a VQA model does not use.
UNUSED = (
    r'(vision|text)_proj(_m)?\.',
    r'itm_head(_m)?\.',
    r'temp$',
    r'(image|text|idx)_queue$',
    r'queue_ptr$',
    r'ptr_queue$',
)
PARTS_M = r'(visual_encoder|text_encoder|text_decoder)_m\.'


def is_vqa(state: State) -> bool:
    """Whether a state dict is a VQA model's: it has an answer decoder."""
    return any(key.startswith('text_decoder.') for key in state)


def load_vqa(model: nn.Module, state: State, source: str) -> Report:
    """Starting weights from a VQA checkpoint, or from a pre-training one of ours, of GRIT-VLP or of ALBEF.

    Momentum copies are loaded if the file has them, and are otherwise copies of the weights just loaded.
    """
    missing, unexpected, notes = [], list(UNUSED), []
    if not is_vqa(state):
        state = with_decoder(state, model.bert_config)
        first, last = model.bert_config.fusion_layer, model.bert_config.num_hidden_layers - 1
        notes.append(f"answer decoder: the text encoder's layers {first} to {last}, its embeddings, and the MLM head")
        if model.bert_config.encoder_width != model.bert_config.hidden_size:
            missing.append(r'text_decoder(_m)?\..*crossattention\.self\.(key|value)\.')
            notes.append('its keys and values of the question are random: the widths of question and image differ')
    copied = model.distill and not any(key.startswith('visual_encoder_m.') for key in state)
    if copied:
        missing.append(PARTS_M)
        notes.append('momentum copies: copies of the weights just loaded')
    if not model.distill:
        unexpected.append(PARTS_M)
    report = load_state(model, state, source, missing, unexpected)
    if copied:
        model.copy_momentum()
    report.notes += notes
    return report


def with_decoder(state: State, bert_config: BertConfig) -> dict[str, Tensor]:
    """Names of pre-training -> names of the VQA model.

    Fusion layer l is also decoder layer l - `fusion_layer`; the decoder starts with the text encoder's embeddings (a
    copy, not tied) and with the MLM head.
    """
    renamed = {}
    for key, value in strip_bert(state).items():
        decoder = re.sub(r'^text_encoder(_m)?\.', r'text_decoder\1.bert.', key)
        if re.match(r'text_encoder(_m)?\.cls\.', key):
            renamed[decoder.replace('.bert.cls.', '.cls.')] = value
            continue
        renamed[key] = value
        layer = re.match(r'(text_decoder(?:_m)?\.bert\.encoder\.layer\.)(\d+)(\..*)', decoder)
        if layer and int(layer[2]) >= bert_config.fusion_layer:
            if bert_config.encoder_width == bert_config.hidden_size or not re.search(
                r'crossattention\.self\.(key|value)', key
            ):
                renamed[f'{layer[1]}{int(layer[2]) - bert_config.fusion_layer}{layer[3]}'] = value
        elif '.bert.embeddings.' in decoder:
            renamed[decoder] = value
    return renamed


def load_bert(
    text_encoder: nn.Module, name: str, part: str = 'text encoder', option: str = '--text_encoder'
) -> Report | str:
    """Hugging Face BERT weights (hub name or folder) into a BertModel or BertWithHead.

    Returns a Report, or a sentence if a folder has only a vocabulary and the weights stay random. Layers that only this
    model has (cross-attention, fusion layers beyond the file's) stay random and are reported.
    part: its name in the report. option: the flag that gives `name`, for messages.
    """
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    from models.tokenization_bert import first_sentence, weights_folder

    folder = weights_folder(name, option)
    if folder is None:
        return f'{part}: {name} has no BERT weights, they are random'
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its own report of missing heads is not about this model
    logging.disable_progress_bar()
    try:
        theirs, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # the library raises almost any exception for a damaged file
        raise InputError(
            f'{option} {name}: its weights cannot be read ({first_sentence(error)}); copy or download them again'
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    state = {key: value for key, value in theirs.state_dict().items() if key not in info['missing_keys']}
    refuse_not_finite(state, f'{option} {name}')
    if not any(key.startswith('bert.') for key in state):
        raise InputError(f'{option} {name}: its weights are not those of a BERT')
    if not hasattr(text_encoder, 'cls'):
        state = {key.removeprefix('bert.'): value for key, value in state.items() if key.startswith('bert.')}
    missing = (r'.*crossattention\.', r'(bert\.)?encoder\.layer\.', r'cls\.')
    unexpected = (r'.*pooler\.', r'(bert\.)?encoder\.layer\.', r'cls\.')
    report = load_state(text_encoder, state, f'{part} {name}', missing, unexpected)
    layers = {int(key.split('encoder.layer.')[1].split('.')[0]) for key in report.loaded if 'encoder.layer.' in key}
    report.notes.append(
        f'layers loaded: {len(layers)} of {len(getattr(text_encoder, "bert", text_encoder).encoder.layer)}'
    )
    return report


def load_deit(visual_encoder: nn.Module, source: bool | str, vit: Mapping[str, Any]) -> Report | str:
    """DeiT-B/16 weights into the image encoder: from timm's hub (source True) or a file.

    Returns a Report, or a sentence if the weights stay random: `vit`, the shape section of the configuration, is not
    ViT-B/16 and no file is given.
    """
    if source is True:
        if any(vit[key] != value for key, value in VIT_B_16.items()):
            return 'image encoder: random weights, because DeiT weights are for ViT-B/16'
        import timm

        try:
            state = timm.create_model('deit_base_patch16_224', pretrained=True).state_dict()
        except Exception as error:
            reason = str(error).strip().split('\n')[0]
            raise MissingFileError(
                f'init_deit: the DeiT-B/16 weights could not be downloaded from the hub ({reason}); download them on a '
                'machine with a network and give the file with --set init_deit=PATH, or use random weights with --set '
                'init_deit=false'
            ) from None
    else:
        if not os.path.isfile(source):
            raise MissingFileError(f'init_deit: there is no file {source}')
        state = read_weights(source, 'init_deit')
    state = {f'visual_encoder.{key}': value for key, value in state.items()}
    holder = torch.nn.Module()
    holder.visual_encoder = visual_encoder
    return load_state(
        holder,
        state,
        f'DeiT weights ({"hub" if source is True else source})',
        unexpected=(r'visual_encoder\.(head|head_dist|dist_token)',),
    )
