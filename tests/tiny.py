"""Command lines that run the real scripts in seconds: the configurations in configs/shapes with much smaller models."""

from pathlib import Path

from utils.config import apply_overrides, read_yaml, resolve

CONFIGS = Path(__file__).parent.parent / 'configs' / 'shapes'

MODEL = [
    'image_res=32',
    'vit={patch_size: 16, embed_dim: 32, depth: 1, num_heads: 2}',
    'vision_width=32',
    'bert_config.hidden_size=32',
    'bert_config.num_hidden_layers=2',
    'bert_config.fusion_layer=1',
    'bert_config.num_attention_heads=2',
    'bert_config.intermediate_size=64',
    'bert_config.encoder_width=32',
    'bert_config.hidden_dropout_prob=0.1',  # so that a resumed run has a random generator to restore
    'bert_config.attention_probs_dropout_prob=0.1',
    'num_workers=0',
    'print_freq=1000',
]

SCRIPTS = {
    'pretrain': 'Pretrain',
    'retrieval': 'Retrieval',
    'nlvr_pretrain': 'Pretrain_nlvr',
    'nlvr': 'NLVR',
    'vqa': 'VQA',
}

TASKS = {
    'pretrain': (
        'Pretrain',
        [
            'train_file=[{shapes}/pretrain.json]',
            'image_root={shapes}',
            'embed_dim=16',
            'batch_size=4',
            'queue_size=16',
            'search_space=8',
            'train_epochs=2',
            'grit_from_epoch=0',
            'itm_negatives=hard',
        ],
    ),
    'retrieval': (
        'Retrieval',
        [
            'train_file=[{shapes}/retrieval_train.json]',
            'val_file={shapes}/retrieval_val.json',
            'test_file={shapes}/retrieval_test.json',
            'image_root={shapes}',
            'embed_dim=16',
            'batch_size_train=8',
            'batch_size_test=8',
            'k_test=4',
            'schedular.epochs=2',
        ],
    ),
    'nlvr_pretrain': (
        'NLVR_pretrain',
        [
            'train_file=[{shapes}/pretrain.json]',
            'image_root={shapes}',
            'embed_dim=16',
            'batch_size=8',
            'schedular.epochs=2',
        ],
    ),
    'nlvr': (
        'NLVR',
        [
            'train_file=[{shapes}/nlvr_train.json]',
            'val_file=[{shapes}/nlvr_dev.json]',
            'test_file=[{shapes}/nlvr_test.json]',
            'image_root={shapes}',
            'batch_size=16',
            'schedular.epochs=2',
        ],
    ),
    'vqa': (
        'VQA',
        [
            'train_file=[{shapes}/vqa_train.json]',
            'val_file=[{shapes}/vqa_val.json]',
            'test_file=[{shapes}/vqa_test.json]',
            'answer_list={shapes}/answer_list.json',
            'vqa_root={shapes}',
            'vg_root={shapes}',
            'batch_size_train=16',
            'batch_size_test=8',
            'k_test=4',
            'schedular.epochs=2',
        ],
    ),
}


def arguments(task, shapes, output, *settings, flags=()):
    """The argv of a task's script on the small synthetic dataset; `settings` are further key=value overrides."""
    config, overrides = overridden(task, shapes, *settings)
    return [
        '--config',
        config,
        '--output_dir',
        str(output),
        '--text_encoder',
        f'{shapes}/vocab',
        '--device',
        'cpu',
        *(word for item in overrides for word in ('--set', item)),
        *flags,
    ]


def resolved(task, shapes, *settings):
    """The configuration that `arguments` leads to."""
    config, overrides = overridden(task, shapes, *settings)
    return resolve(task, apply_overrides(read_yaml(config), overrides), config)[0]


def overridden(task, shapes, *settings):
    """(path of the task's configuration, the overrides that make it fit the small synthetic dataset)"""
    config, data = TASKS[task]
    return str(CONFIGS / f'{config}.yaml'), [*MODEL, *(item.format(shapes=shapes) for item in data), *settings]
