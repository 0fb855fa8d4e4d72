"""Files with weights: checkpoints of any program, and BERT's folders, read into a mapping of names to tensors."""

import argparse
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.tokenization_bert import first_sentence, local_folder
from utils.checkpoint_files import SHARD, STEP_FILE
from utils.errors import InputError, MissingFileError
from utils.files import WEIGHTS_FILE, archive_fault, content_fault, read_json
from utils.finite import not_finite
from utils.log import print_rank0

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
MODEL_TYPE = 'grit-vlp'  # in the config.json of a folder of `models.pretrained`
# Where programs put the weights in a checkpoint: ours and the official ones, Lightning and timm, others, averages.
CONTAINERS = ('model', 'state_dict', 'model_state_dict', 'state_dict_ema', 'model_ema')
WRAPPERS = re.compile(r'^((module|model|_orig_mod)\.)+')  # DataParallel, Lightning, torch.compile


def read_checkpoint(path: str, option: str = '--checkpoint') -> dict[str, Any]:
    """Everything in a checkpoint file, on the CPU. InputError for a missing file, a damaged file, unsafe content.

    path: may be a folder that `save_pretrained` wrote. option: the flag or key that names it, for messages.
    """
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, WEIGHTS_FILE)):
            raise InputError(f'{option} {path}: it is a folder without {WEIGHTS_FILE}; give a file in it')
        path = os.path.join(path, WEIGHTS_FILE)
    if not os.path.isfile(path):
        raise MissingFileError(f'{option} {path}: there is no such file')
    if fault := content_fault(path):
        raise InputError(f'{option} {path}: {fault}')
    fault = archive_fault(path)
    if fault:
        raise InputError(f'{option} {path}: the file is damaged ({fault}); copy or download it again')
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about pickle and TorchScript files, before their error
            if _is_safetensors(path):
                return load_file(path)
            with open(path, 'rb') as file:  # by its name torch would read it as safetensors
                content = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises almost any exception for a file of another kind
        unsafe = re.search(r'GLOBAL (\S+)', str(error))
        if unsafe:
            raise InputError(
                f'{option} {path}: it contains the Python object {unsafe[1]}, which may run code, and is not loaded; '
                'if you trust the file, save only its model and load that'
            ) from None
        raise InputError(
            f'{option} {path}: not a readable checkpoint (damaged, incomplete, or of another kind); copy or download '
            'it again'
        ) from None
    if isinstance(content, dict) and SHARD in content:
        raise InputError(
            f'{option} {path}: it is a shard of a checkpoint, without weights; give the {STEP_FILE} beside it'
        )
    return content


def _is_safetensors(path: str) -> bool:
    """Whether a file begins with the length of a JSON object and the object, whatever its name."""
    with open(path, 'rb') as file:
        length, first = int.from_bytes(file.read(8), 'little'), file.read(1)
    return first == b'{' and 0 < length < os.path.getsize(path)


def read_weights(path: str, option: str = '--checkpoint') -> dict[str, Tensor]:
    """The model weights in a checkpoint file."""
    return model_state(read_checkpoint(path, option), path, option)


def model_state(checkpoint: Any, path: str, option: str = '--checkpoint') -> dict[str, Tensor]:
    """The weights in what `read_checkpoint` returned: under a name of `CONTAINERS`, or the file is the state dict.

    The prefixes of wrappers are removed from the names. InputError if there are no weights, if a tensor is not finite,
    or if two have the same name.
    """
    found = {}
    if isinstance(checkpoint, dict):
        found = {name: checkpoint[name] for name in CONTAINERS if _are_weights(checkpoint.get(name))}
        found = found or ({'': checkpoint} if _are_weights(checkpoint) else {})
    if not found:
        raise InputError(
            f'{option} {path}: has no model weights (a mapping of names to tensors, or such a mapping under '
            f'{", ".join(f"`{name}`" for name in CONTAINERS)})'
        )
    (name, state), *others = found.items()
    if others:
        print_rank0(
            f'{option} {path}: the weights are those under {name}, not {", ".join(other for other, _ in others)}'
        )
    refuse_not_finite(state, f'{option} {path}')
    unwrapped = {WRAPPERS.sub('', key): value for key, value in state.items()}
    if len(unwrapped) < len(state):
        raise InputError(f'{option} {path}: has the weights of several models; save one of them and give that')
    return unwrapped


def _are_weights(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_weight, value.items()))


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


# ---- BERT's folders, as Hugging Face saves them ----

# In the order in which the library looks for them; an index names the files of weights that are in several.
USABLE = (WEIGHTS_FILE, 'model.safetensors.index.json', 'pytorch_model.bin', 'pytorch_model.bin.index.json')
LIKE_WEIGHTS = re.compile(r'\.(safetensors|bin|pth?|ckpt|h5|hdf5|msgpack|ot|onnx|npz|pb|gguf|tflite)(\.|-|$)')


def read_bert(name: str, option: str = '--text_encoder') -> dict[str, Tensor] | None:
    """The weights of a BERT with Hugging Face's names (hub name or folder); None if a folder is only a vocabulary.

    option: the flag that gives `name`, for messages. InputError if there are weights that cannot be used.
    """
    from transformers import BertForMaskedLM
    from transformers.utils import logging

    folder = weights_folder(name, option)
    if folder is None:
        return None
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its own report of missing heads is not about this model
    logging.disable_progress_bar()
    try:
        theirs, info = BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # the library raises almost any exception for a damaged file
        raise InputError(
            f'{option} {name}: its weights cannot be read ({first_sentence(error)}); copy or download them again'
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    state = {key: value for key, value in theirs.state_dict().items() if key not in info['missing_keys']}
    refuse_not_finite(state, f'{option} {name}')
    if not any(key.startswith('bert.') for key in state):
        raise InputError(
            f"{option} {name}: its weights do not have the names of Hugging Face's BERT, such as "
            'bert.encoder.layer.0.output.dense.weight; give a folder that save_pretrained wrote'
        )
    lacking = sorted(key for key in info['missing_keys'] if re.match(r'bert\.(embeddings|encoder)\.', key))
    if lacking:
        raise InputError(
            f'{option} {name}: its weights lack {lacking[0]} and {len(lacking) - 1} others of the model of its '
            'config.json; copy or download them again'
        )
    return state


def weights_folder(name: str, option: str = '--text_encoder') -> str | None:
    """The folder with a BERT's config.json and weights for a hub name or a folder; None if a folder is a vocabulary.

    InputError names the file if there is something like weights that cannot be used.
    """
    folder = name
    if not os.path.isdir(name):
        for file in (USABLE[0], USABLE[2]):
            folder = local_folder(name, 'weights', ('config.json', file), option)
            if os.path.isfile(os.path.join(folder, file)):
                break
        else:  # a snapshot in the cache that an earlier run downloaded for the tokenizer
            raise MissingFileError(
                f'{option} {name}: no such folder, and neither {USABLE[0]} nor {USABLE[2]} of this name is in the '
                'cache of the Hugging Face hub or could be downloaded; give a folder with its files, or download it '
                'once on a machine with a network'
            )
    files = sorted(file for file in os.listdir(folder) if not os.path.isdir(os.path.join(folder, file)))
    weights = [file for file in files if LIKE_WEIGHTS.search(file)]
    if not weights and 'config.json' not in files:
        return None
    usable = next((file for file in USABLE if file in weights), None)
    if usable is None:
        found = f'{weights[0]} is not used' if weights else 'there is a config.json'
        raise InputError(
            f'{option} {name}: {found}, and there is no {USABLE[0]} or {USABLE[2]}; add it, or, for random weights, '
            f'remove {weights[0] if weights else "config.json"}'
        )
    if 'config.json' in files and _is_own(os.path.join(folder, 'config.json')):
        return None  # a folder of `save_pretrained`: of a text encoder it has the vocabulary
    if 'config.json' not in files:
        raise InputError(
            f'{option} {name}: {usable} has no config.json beside it; add that of the same model, or, for random '
            f'weights, remove {usable}'
        )
    for file in ('config.json', usable, *_shards(os.path.join(folder, usable), option)):
        path = os.path.join(folder, file)
        if os.path.islink(path) and not os.path.exists(path):
            raise InputError(f'{option} {name}: {file} is a link to a file that is not there; fetch or copy it')
        if not os.path.isfile(path):
            raise InputError(f'{option} {name}: {usable} names {file}, which is missing; copy or download it')
        if fault := content_fault(path):
            raise InputError(f'{option} {name}: {file}: {fault}')
    _refuse_other_model(os.path.join(folder, 'config.json'), name, option)
    return folder


def _is_own(path: str) -> bool:
    """Whether a config.json is that of a folder of `models.pretrained`."""
    try:
        content = read_json(path, 'config.json')
    except (InputError, OSError):
        return False
    return isinstance(content, dict) and content.get('model_type') == MODEL_TYPE


def _shards(index: str, option: str) -> list[str]:
    """The files that an index of weights names; none if the file is not an index."""
    if not index.endswith('.json'):
        return []
    content = {} if content_fault(index) else read_json(index, option)
    parts = content.get('weight_map') if isinstance(content, dict) else None
    return sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else []


def _refuse_other_model(path: str, name: str, option: str) -> None:
    """InputError if a config.json is not a BERT's."""
    try:
        config = read_json(path, 'config.json')
        kind = config['model_type'] if 'model_type' in config else 'hidden_size' in config and 'bert'  # an early one
    except (InputError, TypeError) as error:
        kind, reason = None, first_sentence(error)
    else:
        reason = 'it has no model_type'
    if not kind:
        raise InputError(
            f'{option} {name}: its config.json is not that of a model ({reason}); copy or download it again'
        )
    if kind != 'bert':
        raise InputError(
            f'{option} {name}: config.json is that of a {kind}, whose weights do not fit a BERT; give a BERT such as '
            'bert-base-uncased'
        )
