"""The table of configuration keys: what each means, which values it takes, which tasks read it, its default."""

import os
from dataclasses import dataclass
from typing import Any

from utils.config_checks import (
    Check,
    betas,
    boolean,
    boolean_or_names,
    boolean_or_path,
    count,
    count0,
    count0_or_auto,
    dropout,
    files,
    fraction,
    fraction_or_auto,
    fractions,
    integer,
    itm_accuracy,
    mapping,
    minutes,
    names,
    nonnegative,
    one_of,
    optional,
    optional_files,
    optional_path,
    path,
    path_or_mapping,
    policies,
    positive,
    ratio,
    scale,
    string,
)

PRETRAIN, RETRIEVAL, NLVR_PRETRAIN, NLVR, VQA = TASKS = ('pretrain', 'retrieval', 'nlvr_pretrain', 'nlvr', 'vqa')
REQUIRED = object()
MOST_LAYERS = 1000  # building a model with more would take hours, or all memory
MOST_WORKERS = max(64, 8 * (os.cpu_count() or 1))


@dataclass(frozen=True)
class Key:
    """One known key.

    meaning: one line. check: of `utils.config_checks`. default: a value, or a function of the task that makes one.
    tasks: those that read the key, all if empty. shapes_model: whether `create_model` reads it.
    """

    meaning: str
    check: Check
    default: Any = REQUIRED
    tasks: tuple[str, ...] = ()
    shapes_model: bool = False

    def read_by(self, task: str) -> bool:
        return not self.tasks or task in self.tasks

    def default_for(self, task: str) -> Any:
        return self.default(task) if callable(self.default) else self.default


def _model(meaning: str, check: Check, default: Any = REQUIRED, tasks: tuple[str, ...] = ()) -> Key:
    return Key(meaning, check, default, tasks, shapes_model=True)


def _crop_scale(task: str) -> list[float]:
    return [0.2, 1.0] if task in (PRETRAIN, NLVR_PRETRAIN) else [0.5, 1.0]


FINETUNING = (RETRIEVAL, NLVR, VQA)
KEYS = {
    # model
    'image_res': _model('image resolution R in pixels', count),
    'vit': _model('shape of the image encoder (section)', mapping, lambda task: {}),
    'bert_config': _model(
        'shape of the text encoder: a file, or the mapping itself (`base: FILE` and changes)', path_or_mapping
    ),
    'vision_width': _model('width of the image encoder; must equal vit.embed_dim', optional(count), None),
    'embed_dim': _model('size of the features of ITC', count, 256, (PRETRAIN, RETRIEVAL, NLVR_PRETRAIN)),
    'temp': _model('temperature of ITC at the start', positive, 0.07, (PRETRAIN, RETRIEVAL)),
    'mlm_probability': _model('share of the tokens that MLM masks', fraction, 0.5, (PRETRAIN,)),
    'consistency_weight': _model('weight of the consistency loss', nonnegative, 0.2, (PRETRAIN,)),
    'itm_negatives': _model(
        'negatives of ITM: uniform, sampled, hard (the hardest of the batch) or auto; or `{first epoch: one of them}`',
        policies,
        lambda task: {0: 'hard'},
        (PRETRAIN,),
    ),
    'itm_target_accuracy': _model('ITM accuracy that `itm_negatives: auto` aims at', itm_accuracy, 0.85, (PRETRAIN,)),
    'exclude_equal_negatives': _model(
        'no negatives with an equal caption or image', boolean, False, (PRETRAIN, NLVR_PRETRAIN)
    ),
    'itc_smoothing': _model(
        'weight of the uniform distribution in the targets of ITC (MAFA: 0.5); or `{first epoch: weight}`',
        fractions,
        lambda task: {0: 0},
        (PRETRAIN,),
    ),
    'use_momentum': _model(
        'momentum encoders and a queue of their features; in pre-training as in ALBEF, with soft targets',
        boolean,
        False,
        (PRETRAIN, RETRIEVAL),
    ),
    'momentum': _model('momentum m: copy = m * copy + (1 - m) * weights', fraction, 0.995, (PRETRAIN, *FINETUNING)),
    'itc_queue_size': _model(
        'momentum features in the queue of pre-training (default: queue_size)', optional(count), None, (PRETRAIN,)
    ),
    'distill': _model('soft targets from the momentum model', boolean, False, FINETUNING),
    'rank_first_token_once': _model(
        "count an answer's first token once, not twice as officially", boolean, False, (VQA,)
    ),
    'grad_checkpointing': _model('recompute activations: less memory, more time', boolean, False),
    'queue_size': _model(
        'pretrain: features GRIT collects before grouping (L), per process; retrieval: momentum features in the queue',
        count,
        lambda task: 48000 if task == PRETRAIN else 65280,
        (PRETRAIN, RETRIEVAL),
    ),
    # data
    'train_file': Key('annotation files to train on', files),
    'val_file': Key('annotation files of validation', optional_files, None, FINETUNING),
    'test_file': Key('annotation files of the test split', optional_files, None, FINETUNING),
    'image_root': Key(
        'folder that relative image paths start from', string, '', (PRETRAIN, RETRIEVAL, NLVR_PRETRAIN, NLVR)
    ),
    'vqa_root': Key('folder of the images of VQA', string, '', (VQA,)),
    'vg_root': Key('folder of the images of Visual Genome', string, '', (VQA,)),
    'images_outside_root': Key(
        'allow image paths that lead out of these folders: absolute, or with ..', boolean, False
    ),
    'answer_list': Key('JSON list of the answers to choose from', path, REQUIRED, (VQA,)),
    'eos': Key('token that ends an answer', string, '[SEP]', (VQA,)),
    'annotation_cache': Key('folder of the annotation caches (default: beside each file)', optional_path, None),
    'crop_scale': Key('random crop: share of the image area [low, high]', scale, _crop_scale),
    'flip': Key('random horizontal flip', boolean, True),
    'randaugment': Key('RandAugment: true, false, or the names of the operations', boolean_or_names, True),
    'reduced_decode': Key('decode JPEG files no larger than needed; false gives the official pixels', boolean, True),
    'image_cache_mb': Key(
        'MiB for the images of each dataset, which stay in memory if all fit and are not cropped', nonnegative, 256
    ),
    'num_workers': Key('loader processes of each training process', integer(0, MOST_WORKERS), 4),
    'on_bad_image': Key('an unreadable image is replaced and counted, or an error', one_of('skip', 'error'), 'skip'),
    # batches
    'batch_size': Key('examples per step and process (N)', count, REQUIRED, (PRETRAIN, NLVR_PRETRAIN, NLVR)),
    'batch_size_train': Key('examples per step and process', count, REQUIRED, (RETRIEVAL, VQA)),
    'batch_size_test': Key('examples per evaluation step and process', count, REQUIRED, (RETRIEVAL, VQA)),
    'sampler': Key('mini-batches: grouped by GRIT, or random', one_of('grit', 'random'), 'grit', (PRETRAIN,)),
    'search_space': Key('examples that GRIT groups into one chain (M), per process', count, 1920, (PRETRAIN,)),
    'grit_quantile': Key(
        'the next example of a chain: the unused one at this quantile of similarity; 1 is the most similar, or auto',
        fraction_or_auto,
        1,
        (PRETRAIN,),
    ),
    'grit_grouping': Key(
        'how GRIT orders examples: chain, or cuthill_mckee (GCBS)',
        one_of('chain', 'cuthill_mckee'),
        'chain',
        (PRETRAIN,),
    ),
    'false_negative_filter': Key(
        'checkpoint of a model that finds the matches among the negatives of ITM (MAFA)',
        optional_path,
        None,
        (PRETRAIN,),
    ),
    'grit_from_epoch': Key(
        "first epoch of GRIT (epoch 0 is always random), or auto: when ITM reaches its target on ALBEF's negatives",
        count0_or_auto,
        0,
        (PRETRAIN,),
    ),
    # optimization
    'optimizer': Key('AdamW (section)', mapping),
    'schedular': Key('learning rate schedule (section)', mapping),
    'train_epochs': Key('epochs to train; may be fewer than schedular.epochs', optional(count), None, (PRETRAIN,)),
    'precision': Key('fp32, or matrix products in bfloat16', one_of('fp32', 'bf16'), 'fp32'),
    'compile': Key('torch.compile every transformer layer', boolean, False),
    'clip_grad_norm': Key('largest norm of the gradient', optional(positive), None),
    'on_nonfinite': Key(
        'a step whose loss or gradient is not finite: an error, or skip', one_of('error', 'skip'), 'error'
    ),
    'alpha': Key(
        "distill, in pre-training use_momentum: weight of the momentum model's predictions",
        fraction,
        lambda task: 0.4 if task == PRETRAIN else 0,
        (PRETRAIN, *FINETUNING),
    ),
    'warm_up': Key('raise alpha from 0 over epoch 0', boolean, True, (PRETRAIN, *FINETUNING)),
    'eval_ema': Key('evaluate the momentum copy; needs distill', boolean, False, (NLVR,)),
    'init_deit': Key(
        'image encoder at the start: DeiT-B/16 from the hub, random, or a file', boolean_or_path, True, (PRETRAIN,)
    ),
    # evaluation
    'k_test': Key('candidates that are re-ranked (retrieval: 0 = ITC only)', count0, 128, (RETRIEVAL, VQA)),
    'eccv_caption': Key(
        'also ECCV-Caption and CxC of the test split; needs the package eccv-caption', boolean, False, (RETRIEVAL,)
    ),
    'keep_embeds': Key('where image tokens wait for re-ranking', one_of('device', 'cpu'), 'device', (RETRIEVAL,)),
    'collective_timeout': Key('minutes that a process waits for the others before it gives up', minutes, 30),
    # output
    'print_freq': Key('steps between two lines of progress', count, 50),
    'report_to': Key(
        'training metrics, besides log.txt, to tensorboard (folder tensorboard in output_dir) or wandb',
        one_of('none', 'tensorboard', 'wandb'),
        'none',
    ),
    'save_every': Key('steps between two checkpoints inside an epoch', optional(count), None),
    'keep_checkpoints': Key('newest epoch checkpoints to keep (default: all)', optional(count), None),
}

# Keys of earlier versions, with what to write now.
FORMER = {'hard_negatives_from_epoch': 'itm_negatives: {0: sampled, EPOCH: hard}'}

SECTIONS = {
    'optimizer': {
        'opt': Key('the optimizer: adamW', string, 'adamW'),
        'lr': Key('peak learning rate', positive),
        'weight_decay': Key('weight decay', nonnegative, 0.02),
        'betas': Key('betas of Adam', betas, lambda task: [0.9, 0.999]),
        'eps': Key('epsilon of Adam', positive, 1e-8),
        'no_decay': Key('parameters without weight decay besides biases and 1-D ones', names, lambda task: []),
    },
    'schedular': {
        'sched': Key('the schedule: cosine', one_of('cosine'), 'cosine'),
        'lr': Key('if given, must equal optimizer.lr; `--set` of one moves the other', optional(positive), None),
        'epochs': Key('epochs of the cosine', count),
        'min_lr': Key('learning rate at its end', nonnegative),
        'decay_rate': Key('only 1', one_of(1), 1),
        'warmup_lr': Key('learning rate at the start', nonnegative),
        'warmup_epochs': Key('warm-up in epoch 0: steps of 100 iterations each', count0, 0),
        'cooldown_epochs': Key('no effect, as officially', count0, 0),
    },
    'vit': {
        'patch_size': Key('pixels of a patch side', count, 16),
        'embed_dim': Key('width', count, 768),
        'depth': Key('layers', integer(1, MOST_LAYERS), 12),
        'num_heads': Key('attention heads', count, 12),
        'mlp_ratio': Key('width of the MLP by the width', ratio, 4),
    },
}

# The text encoder's shape; a bert_config may also have keys of BERT's own files that do not affect this model.
BERT = {
    'hidden_size': Key('width D', count, 768),
    'num_hidden_layers': Key('layers', integer(1, MOST_LAYERS), 12),
    'num_attention_heads': Key('attention heads', count, 12),
    'intermediate_size': Key('width of the feed-forward layers', count, 3072),
    'hidden_act': Key('activation: gelu', one_of('gelu'), 'gelu'),
    'hidden_dropout_prob': Key('dropout of hidden states', dropout, 0.1),
    'attention_probs_dropout_prob': Key('dropout of attention weights', dropout, 0.1),
    'initializer_range': Key('standard deviation of random weights', positive, 0.02),
    'layer_norm_eps': Key('epsilon of LayerNorm', positive, 1e-12),
    'max_position_embeddings': Key('longest text in tokens', count, 512),
    'type_vocab_size': Key('token types', count, 2),
    'vocab_size': Key('tokens of the vocabulary V', count, 30522),
    'pad_token_id': Key('token id of padding', count0, 0),
    'fusion_layer': Key('first layer that attends to the image', count0, 6),
    'encoder_width': Key('width of the image encoder (default: vit.embed_dim)', count, 768),
}
BASE = {'base': Key('file whose keys the other keys of a bert_config change', optional_path, None)}
BERT_IGNORED = set(
    'architectures model_type concat_layer type transformers_version position_embedding_type use_cache '
    'classifier_dropout gradient_checkpointing unk_token_id _name_or_path add_cross_attention'.split()
)


def key_of(name: str) -> Key | None:
    """The key of a full name such as optimizer.lr, None if it is not known."""
    section, _, inner = name.rpartition('.')
    keys = {'': KEYS, 'bert_config': BERT | BASE} | SECTIONS
    return keys.get(section, {}).get(inner)


def key_table() -> str:
    """All keys as a Markdown table: key, meaning, default, tasks."""
    lines = ['| key | meaning | default | tasks |', '|---|---|---|---|']
    for name, key in KEYS.items():
        lines.append(_row(name, key))
        section = BERT if name == 'bert_config' else SECTIONS.get(name, {})
        lines += [_row(f'{name}.{inner}', entry) for inner, entry in section.items()]
    return '\n'.join(lines)


def _row(name: str, key: Key) -> str:
    tasks = key.tasks or TASKS
    defaults = {task: 'required' if key.default is REQUIRED else _shown(key.default_for(task)) for task in tasks}
    if len(set(defaults.values())) == 1:
        default = next(iter(defaults.values()))
    else:
        default = '; '.join(f'{task}: {value}' for task, value in defaults.items())
    return f'| `{name}` | {key.meaning} | {default} | {", ".join(key.tasks) or "all"} |'


def _shown(value: Any) -> str:
    """A default as YAML writes it."""
    if value is None or value == '':
        return '-'
    if isinstance(value, dict) and len(value) == 1:
        return _shown(*value.values())
    return str(value).lower() if isinstance(value, bool) else str(value)
