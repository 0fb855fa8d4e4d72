"""All loading of weights: rename the keys of a file, load them into a model, report what was loaded.

Nothing is loaded silently: every parameter is loaded, reported as missing or unexpected for a known reason, or the file
is refused with its name and the keys.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.bert_layers import BertConfig
from models.vit import VIT_B_16, interpolate_pos_embed
from models.weight_files import State, read_bert, read_weights
from utils.errors import InputError, MissingFileError

OTHER_TASK = 'Is it a checkpoint of this task, with the same vit and bert_config?'


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


def strip_bert(state: State) -> dict[str, Tensor]:
    """The names of a text encoder without a head: `text_encoder(_m).bert.*` -> `text_encoder(_m).*`."""
    return {re.sub(r'^(text_encoder(?:_m)?)\.bert\.', r'\1.', key): value for key, value in state.items()}


def resize_pos_embeds(state: State, model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Resize position embeddings of another resolution. Returns (state, names of those resized).

    InputError if their grid is not square.
    """
    state, resized = dict(state), []
    for name in ('visual_encoder', 'visual_encoder_m'):
        key, encoder = f'{name}.pos_embed', getattr(model, name, None)
        if (
            key in state
            and encoder is not None
            and state[key].ndim == 3
            and state[key].shape[1] != encoder.pos_embed.shape[1]
            and state[key].shape[2] == encoder.pos_embed.shape[2]
        ):
            state[key] = interpolate_pos_embed(state[key], encoder)
            resized.append(key)
    return state, resized


def load_state(
    model: nn.Module,
    state: State,
    source: str,
    missing: Sequence[str] = (),
    unexpected: Sequence[str] = (),
    remedy: str = OTHER_TASK,
) -> Report:
    """Load a state dict (already renamed) into a model and report.

    missing, unexpected: patterns (matched at the start of a key) of keys that may be only in the model, or only in the
    file. InputError names the file and the keys that no pattern allows, or whose shape differs, and the remedy.
    """
    try:
        state, resized = resize_pos_embeds(state, model)
    except InputError as error:
        raise InputError(f'{source} does not fit this model: {error}. {remedy}') from None
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
        raise InputError(f'{source} does not fit this model: {faults_text}. {remedy}')
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
    """A pre-training checkpoint of ours, of GRIT-VLP or of ALBEF into the pre-training model.

    A model with momentum encoders takes those of the file; if there are none they are copies of the weights just
    loaded. It also takes the file's queue if it has the same size.
    """
    if not model.use_momentum:
        return load_state(model, state, source, unexpected=MOMENTUM)
    queue = state.get('image_queue')
    fits = queue is not None and queue.shape == model.image_queue.shape
    dropped = {} if fits else {key: value for key, value in state.items() if _matches(key, QUEUE)}
    state = {key: value for key, value in state.items() if key not in dropped}
    copied = not any(re.match(COPY, key) for key in state)
    report = load_state(model, state, source, missing=(*QUEUE, COPY) if copied else QUEUE)
    if copied:
        model.copy_momentum()
        report.missing = [key for key in report.missing if not re.match(COPY, key)]
        report.notes.append('momentum encoders: copies of the loaded weights')
    report_queue(report, model, dropped)
    return report


def load_retrieval(model: nn.Module, state: State, source: str) -> Report:
    """Weights of pre-training (ours, GRIT-VLP's, ALBEF's), or of retrieval itself, into the retrieval model.

    A queue in the file is dropped: it may have another length, and its indices are those of another dataset's images.
    """
    queue = {key: value for key, value in state.items() if _matches(key, QUEUE)}
    state = strip_bert({key: value for key, value in state.items() if key not in queue})
    report = load_state(model, state, source, missing=MOMENTUM, unexpected=(*MOMENTUM, r'text_encoder(_m)?\.cls\.'))
    report_queue(report, model, queue)
    return report


def report_queue(report: Report, model: nn.Module, dropped: State) -> None:
    """Add the entries of a queue that were not loaded to the report, with a note if the model has a queue itself."""
    report.unexpected += dropped
    if 'image_queue' in dropped and model.use_momentum:
        report.notes.append(
            f'the queue of the file, {dropped["image_queue"].shape[1]} features, is dropped; a new one has '
            f'{model.image_queue.shape[1]}'
        )


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
    state = read_bert(name, option)
    if state is None:
        return f'{part}: {name} has no BERT weights, they are random'
    if not hasattr(text_encoder, 'cls'):
        state = {key.removeprefix('bert.'): value for key, value in state.items() if key.startswith('bert.')}
    missing = (r'.*crossattention\.', r'(bert\.)?encoder\.layer\.', r'cls\.')
    unexpected = (r'.*pooler\.', r'(bert\.)?encoder\.layer\.', r'cls\.')
    remedy = 'Is bert_config that of these weights?'
    report = load_state(text_encoder, state, f'{option} {name}', missing, unexpected, remedy)
    report.source = f'{part} {name}'
    layers = {int(key.split('encoder.layer.')[1].split('.')[0]) for key in report.loaded if 'encoder.layer.' in key}
    report.notes.append(
        f'layers loaded: {len(layers)} of {len(getattr(text_encoder, "bert", text_encoder).encoder.layer)}'
    )
    return report


def load_deit(visual_encoder: nn.Module, source: bool | str, vit: Mapping[str, Any]) -> Report | str:
    """DeiT-B/16 weights into the image encoder: from timm's hub (source True) or a file.

    Returns a Report, or a sentence if the weights stay random: source is False, or no file is given and `vit`, the
    shape section of the configuration, is not ViT-B/16.
    """
    if source is False:
        return 'image encoder: random weights (init_deit: false)'
    if source is True:
        if any(vit[key] != value for key, value in VIT_B_16.items()):
            return 'image encoder: random weights, because DeiT weights are for ViT-B/16'
        state = download_deit()
    else:
        state = read_weights(source, 'init_deit')
    state, notes = without_distillation_token(state)
    holder = torch.nn.Module()
    holder.visual_encoder = visual_encoder
    report = load_state(
        holder,
        {f'visual_encoder.{key}': value for key, value in state.items()},
        f'init_deit {"(hub)" if source is True else source}',
        unexpected=(r'visual_encoder\.(head|head_dist|dist_token)',),
        remedy='Give a DeiT or ViT of the shape of the vit section, or init_deit: false',
    )
    report.notes += notes
    return report


def download_deit() -> dict[str, Tensor]:
    """The weights of DeiT-B/16 from timm's hub. MissingFileError if they cannot be downloaded."""
    import timm

    try:
        return timm.create_model('deit_base_patch16_224', pretrained=True).state_dict()
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        raise MissingFileError(
            f'init_deit: the DeiT-B/16 weights could not be downloaded from the hub ({reason}); download them on a '
            'machine with a network and give the file with --set init_deit=PATH, or use random weights with --set '
            'init_deit=false'
        ) from None


def without_distillation_token(state: State) -> tuple[dict[str, Tensor], list[str]]:
    """A distilled DeiT's weights without the position of its second token. Returns (state, notes for the report).

    Its `pos_embed` is [1, 2 + n, D]: of [CLS], of the distillation token `dist_token`, of n patches.
    """
    state, position = dict(state), state.get('pos_embed')
    if 'dist_token' not in state or position is None or position.ndim != 3:
        return state, []
    state['pos_embed'] = torch.cat([position[:, :1], position[:, 2:]], dim=1)
    return state, ['a distilled DeiT: its distillation token is not used']
