"""The models of the five tasks, all made by `create_model`."""

from importlib import import_module

from utils.config import TASKS, model_settings

CLASSES = {
    'pretrain': ('models.model_pretrain', 'PretrainModel'),
    'retrieval': ('models.model_retrieval', 'RetrievalModel'),
    'nlvr_pretrain': ('models.model_pretrain_nlvr', 'TextAssignmentModel'),
    'nlvr': ('models.model_nlvr', 'NLVRModel'),
    'vqa': ('models.model_vqa', 'VQAModel'),
}


def create_model(task, config, tokenizer):
    """A model at random weights.

    task: pretrain | retrieval | nlvr_pretrain | nlvr | vqa.
    config: the YAML mapping; keys of data and training loop may be missing.
    tokenizer: needs `pad_token_id`, `cls_token_id` and `mask_token_id` only.
    Raises ValueError where a key is missing or keys do not fit together.
    """
    if task not in CLASSES:
        raise ValueError(f'task {task!r} is unknown; known are {", ".join(TASKS)}')
    module, name = CLASSES[task]
    return getattr(import_module(module), name)(model_settings(task, config), tokenizer)
