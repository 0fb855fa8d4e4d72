"""Command lines that run the real scripts in seconds: the demo world's configurations with much smaller models."""

from pathlib import Path

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
    'num_workers=0',
    'print_freq=1000',
]

TASKS = {
    'pretrain': (
        'Pretrain',
        [
            'train_file=[{world}/pretrain.json]',
            'image_root={world}',
            'embed_dim=16',
            'batch_size=4',
            'queue_size=16',
            'search_space=8',
            'train_epochs=2',
            'grit_from_epoch=0',
            'hard_negatives_from_epoch=0',
        ],
    ),
    'retrieval': (
        'Retrieval',
        [
            'train_file=[{world}/retrieval_train.json]',
            'val_file={world}/retrieval_val.json',
            'test_file={world}/retrieval_test.json',
            'image_root={world}',
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
            'train_file=[{world}/pretrain.json]',
            'image_root={world}',
            'embed_dim=16',
            'batch_size=8',
            'schedular.epochs=2',
        ],
    ),
    'nlvr': (
        'NLVR',
        [
            'train_file=[{world}/nlvr_train.json]',
            'val_file=[{world}/nlvr_dev.json]',
            'test_file=[{world}/nlvr_test.json]',
            'image_root={world}',
            'batch_size=16',
            'schedular.epochs=2',
        ],
    ),
    'vqa': (
        'VQA',
        [
            'train_file=[{world}/vqa_train.json]',
            'val_file=[{world}/vqa_val.json]',
            'test_file=[{world}/vqa_test.json]',
            'answer_list={world}/answer_list.json',
            'vqa_root={world}',
            'vg_root={world}',
            'batch_size_train=16',
            'batch_size_test=8',
            'k_test=4',
            'schedular.epochs=2',
        ],
    ),
}


def arguments(task, world, output, *settings, flags=()):
    """The argv of a task's script on a small world; `settings` are further key=value overrides."""
    config, data = TASKS[task]
    overrides = [*MODEL, *(item.format(world=world) for item in data), *settings]
    return [
        '--config',
        str(CONFIGS / f'{config}.yaml'),
        '--output_dir',
        str(output),
        '--text_encoder',
        f'{world}/vocab',
        '--device',
        'cpu',
        *(word for item in overrides for word in ('--set', item)),
        *flags,
    ]
