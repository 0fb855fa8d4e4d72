"""Weights from files into models: reading, renaming, and an account of what was taken.

Nothing is loaded silently: every parameter is taken, explained (new here, or left behind for a stated reason), or the
load is refused with the file and the keys.
"""

import argparse
import os
import re
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch

from models.vit import VIT_B_16, interpolate_pos_embed

# What official checkpoints hold besides tensors and plain values; NumPy's scalars under their names in its versions 1 and 2.
_scalar = np.float64(0).__reduce__()[0]
HARMLESS = [OrderedDict, argparse.Namespace, np.dtype, *(type(np.dtype(name)) for name in ('float64', 'float32', 'int64')),
            (_scalar, 'numpy.core.multiarray.scalar'), (_scalar, 'numpy._core.multiarray.scalar')]


@dataclass
class Report:
    """What a load took, what is new in the model (random or from elsewhere), and what was left in the file."""

    source: str
    taken: list = field(default_factory=list)
    new: list = field(default_factory=list)
    left: list = field(default_factory=list)
    resized: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def __str__(self):
        lines = [f'{self.source}: took {len(self.taken)} tensors']
        for words, keys in (('resized', self.resized), ('new here, not in the file', self.new),
                            ('left in the file, not used here', self.left)):
            if keys:
                lines.append(f'  {words}: {summarize(keys)}')
        return '\n'.join(lines + [f'  {note}' for note in self.notes])


def summarize(keys, most=6):
    """A few words for many keys: the number of tensors under each first name."""
    groups = {}
    for key in keys:
        groups.setdefault(key.split('.')[0], []).append(key)
    words = [f'{name} ({len(members)} tensors)' if len(members) > 1 else members[0] for name, members in groups.items()]
    return ', '.join(words[:most]) + (f' and {len(words) - most} more' if len(words) > most else '')


def read_checkpoint(path):
    """Everything in a checkpoint file, on the CPU. The remedy is in the error: missing file, damaged file, unsafe content."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'--checkpoint {path}: there is no such file')
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(f'--checkpoint {path}: not a readable checkpoint ({reason}); copy or download it again, or, if it '
                         'holds Python objects and you trust it, save only its model and load that') from None


def model_state(checkpoint, path):
    """The weights in what `read_checkpoint` returned: under `model`, or the file is the state dict itself."""
    state = checkpoint.get('model', checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(v) for v in state.values()):
        raise ValueError(f'--checkpoint {path}: holds no model weights (a mapping of names to tensors, or such a mapping '
                         'under `model`)')
    return {key.removeprefix('module.'): value for key, value in state.items()}


def strip_bert(state):
    """The names of a text encoder without a head: `text_encoder.bert.*` -> `text_encoder.*` (momentum copies likewise)."""
    return {re.sub(r'^(text_encoder(?:_m)?)\.bert\.', r'\1.', key): value for key, value in state.items()}


def resize_pos_embeds(state, model):
    """Position embeddings of another resolution are resized. Returns (state, names of those resized)."""
    state, resized = dict(state), []
    for name in ('visual_encoder', 'visual_encoder_m'):
        key, encoder = f'{name}.pos_embed', getattr(model, name, None)
        if key in state and encoder is not None and state[key].shape[1] != encoder.pos_embed.shape[1] \
                and state[key].shape[2] == encoder.pos_embed.shape[2]:
            state[key] = interpolate_pos_embed(state[key], encoder)
            resized.append(key)
    return state, resized


def load_state(model, state, source, new=(), left=()):
    """Load a state dict (already renamed) into a model and report.

    new, left: patterns (matched at the start of a key) of what the model may have beyond the file, and the file beyond
    the model. A missing or surplus key that no pattern explains, or another shape, raises ValueError naming file and keys.
    """
    state, resized = resize_pos_embeds(state, model)
    wanted = model.state_dict()
    new = [*new, r'.*position_ids$']  # a constant that newer libraries do not store
    missing = [key for key in wanted if key not in state]
    surplus = [key for key in state if key not in wanted]
    report = Report(source, resized=resized, left=surplus)
    report.taken = [key for key in wanted if key in state]
    report.new = [key for key in missing if not key.endswith('position_ids')]
    unexplained = [key for key in missing if not _explained(key, new)]
    unknown = [key for key in surplus if not _explained(key, left)]
    shapes = [f'{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}'
              for key in report.taken if state[key].shape != wanted[key].shape]
    faults = (('it lacks ', unexplained), ('nothing here takes its ', unknown), ('it has ', shapes))
    faults = [words + ', '.join(keys[:4]) + (f' and {len(keys) - 4} more' if len(keys) > 4 else '')
              for words, keys in faults if keys]
    if faults:
        raise ValueError(f'{source} does not fit this model: {"; ".join(faults)}. Is it a checkpoint of this task, with the '
                         'same vit and bert_config?')
    model.load_state_dict({key: state[key] for key in report.taken}, strict=False)
    return report


def _explained(key, patterns):
    return any(re.match(pattern, key) for pattern in patterns)


# Momentum copies and queues of ALBEF's pre-training; GRIT-VLP has none.
QUEUE = (r'(image|text|idx)_queue$', r'queue_ptr$', r'ptr_queue$')
MOMENTUM = (r'[a-z_]+_m\.', *QUEUE)


def load_pretrain(model, state, source):
    """A pre-training checkpoint of ours, of GRIT-VLP or of ALBEF into the pre-training model."""
    return load_state(model, state, source, left=MOMENTUM)


def load_retrieval(model, state, source):
    """Weights of pre-training (ours, GRIT-VLP's, ALBEF's), or of retrieval itself, into the retrieval model.

    A queue in the file is dropped: it may be of another width, and its numbers are those of another data set's images.
    """
    queue = {key: value for key, value in state.items() if _explained(key, QUEUE)}
    state = strip_bert({key: value for key, value in state.items() if key not in queue})
    report = load_state(model, state, source, new=MOMENTUM, left=(*MOMENTUM, r'text_encoder(_m)?\.cls\.'))
    report.left += queue
    if 'image_queue' in queue and model.use_momentum:
        report.notes.append(f'the queue of the file, {queue["image_queue"].shape[1]} features, is dropped: it starts anew, '
                            f'with {model.image_queue.shape[1]}')
    return report


def double_fusion_layers(state, fusion_layer, layers):
    """The layers of a text encoder for two images: with F = fusion_layer, layer l >= F becomes F + 2 (l - F) and the one after.

    state: names without `bert.`; layers: how many there are once doubled. A state that has as many already, or one that does
    not lead to as many, comes back as it is.
    """
    def layer(key):
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


def load_two_images(model, state, source, new=()):
    """A pre-training checkpoint, its fusion layers doubled, or one with doubled layers into a model of two images.

    Other tasks' heads and momentum copies are left. new: see `load_state`.
    """
    config = model.text_encoder.config
    momentum = [key for key in state if _explained(key, MOMENTUM)]
    state = strip_bert({key: value for key, value in state.items() if key not in momentum})
    doubled = double_fusion_layers(state, config.fusion_layer, config.num_hidden_layers)
    report = load_state(model, doubled, source, new,
                        left=(r'text_encoder\.cls\.', r'(itm|ta|cls)_head\.', r'temp$', r'(text|vision)_proj\.'))
    report.left += momentum
    if doubled is not state:
        report.notes.append(f'each fusion layer, from {config.fusion_layer} on, stands for two: one for each image')
    return report


def load_text_assignment(model, state, source):
    """Weights of pre-training (ours, GRIT-VLP's, ALBEF's), or of text assignment itself, into the text assignment model."""
    return load_two_images(model, state, source, new=(r'ta_head\.',))


def load_nlvr(model, state, source, head=False):
    """Weights of text assignment, of pre-training or of NLVR2 itself into the NLVR2 model; its momentum copies follow them.

    head: whether the file must have the classifier, too.
    """
    report = load_two_images(model, state, source, new=(*MOMENTUM, *([] if head else [r'cls_head\.'])))
    if model.distill:
        model.copy_momentum()
        report.new = [key for key in report.new if not _explained(key, MOMENTUM)]
        report.notes.append('momentum copies: of the weights after loading')
    return report


def load_bert(text_encoder, name):
    """Hugging Face BERT weights (hub name or folder) into a BertModel or BertWithHead.

    Returns a Report, or a sentence where a folder holds a vocabulary only and the text encoder stays random. Layers that
    only this model has (cross-attention, fusion layers beyond the file's) stay random and are reported.
    """
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    from models.tokenization_bert import weights_folder
    folder = weights_folder(name)
    if folder is None:
        return f'text encoder: {name} holds no BERT weights, it starts at random'
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its own account of missing heads says nothing about this model
    logging.disable_progress_bar()
    try:
        theirs, account = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    missing = set(account['missing_keys'])
    state = {key: value for key, value in theirs.state_dict().items() if key not in missing}
    if not any(key.startswith('bert.') for key in state):
        raise ValueError(f'--text_encoder {name}: its weights are not those of a BERT')
    if not hasattr(text_encoder, 'cls'):
        state = {key.removeprefix('bert.'): value for key, value in state.items() if key.startswith('bert.')}
    new = (r'.*crossattention\.', r'(bert\.)?encoder\.layer\.', r'cls\.')
    left = (r'.*pooler\.', r'(bert\.)?encoder\.layer\.', r'cls\.')
    report = load_state(text_encoder, state, f'text encoder {name}', new, left)
    layers = {int(key.split('encoder.layer.')[1].split('.')[0]) for key in report.taken if 'encoder.layer.' in key}
    report.notes.append(f'layers taken: {len(layers)} of {len(getattr(text_encoder, "bert", text_encoder).encoder.layer)}')
    return report


def load_deit(visual_encoder, source, vit):
    """DeiT-B/16 weights into the image encoder: from timm's hub (source True) or a file. Returns a Report or a reason not to.

    vit: the shape section of the configuration; where it is not ViT-B/16 and no file is given, there is nothing to load.
    """
    if source is True:
        if any(vit[key] != value for key, value in VIT_B_16.items()):
            return 'image encoder: DeiT weights are for ViT-B/16, this shape starts at random'
        import timm
        try:
            state = timm.create_model('deit_base_patch16_224', pretrained=True).state_dict()
        except Exception as error:
            reason = str(error).strip().split('\n')[0]
            raise FileNotFoundError(f'init_deit: the DeiT-B/16 weights could not be had from the hub ({reason}); download them '
                                    'where there is a network and give the file with --set init_deit=PATH, or start at random '
                                    'with --set init_deit=false') from None
    else:
        if not os.path.isfile(source):
            raise FileNotFoundError(f'init_deit: there is no file {source}')
        state = model_state(read_checkpoint(source), source)
    state = {f'visual_encoder.{key}': value for key, value in state.items()}
    holder = torch.nn.Module()
    holder.visual_encoder = visual_encoder
    return load_state(holder, state, f'DeiT weights ({"hub" if source is True else source})',
                      left=(r'visual_encoder\.(head|head_dist|dist_token)',))
