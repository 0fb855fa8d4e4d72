"""The models of the five tasks, all made by `create_model`."""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from models.inputs import SpecialTokens
from utils.config import model_settings
from utils.config_keys import TASKS
from utils.errors import InputError

CLASSES = {
    'pretrain': ('models.model_pretrain', 'PretrainModel'),
    'retrieval': ('models.model_retrieval', 'RetrievalModel'),
    'nlvr_pretrain': ('models.model_pretrain_nlvr', 'TextAssignmentModel'),
    'nlvr': ('models.model_nlvr', 'NLVRModel'),
    'vqa': ('models.model_vqa', 'VQAModel'),
}


def create_model(task: str, config: Mapping[str, Any], tokenizer: SpecialTokens) -> nn.Module:
    """A model with random weights.

    task: pretrain | retrieval | nlvr_pretrain | nlvr | vqa.
    config: the YAML mapping; keys of data and training may be missing.
    tokenizer: needs `pad_token_id`, `cls_token_id` and `mask_token_id` only.
    InputError if a key is missing or keys do not fit together.
    """
    if task not in CLASSES:
        raise InputError(f'task {task!r} is unknown; known are {", ".join(TASKS)}')
    module, name = CLASSES[task]
    make = getattr(import_module(module), name)
    settings = model_settings(task, config)
    try:
        return make(settings, tokenizer)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not re.search('allocate|overflow', str(error)):
            raise
        raise InputError(
            'the model does not fit into the memory of this machine; decrease image_res, vit, bert_config, embed_dim '
            'or queue_size'
        ) from None
