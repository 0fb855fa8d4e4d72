"""The comparison of pre-training arms: its settings are valid, and its table is what the runs gave. The computed cost:
FLOPs and bytes are those of closed formulas, of real tensors and of a real optimizer.
"""

import time
from concurrent.futures import Future

import pytest
import torch

from benchmarks import compare_pretraining as compare
from benchmarks import cost, counting
from models import create_model
from models.itm_negatives import of_epoch
from models.rerank import score_split
from optim import create_optimizer
from tests.tiny import resolved
from utils.config import apply_overrides, read_yaml, resolve
from utils.errors import InputError


@pytest.mark.parametrize('arm', compare.ARMS)
def test_the_settings_of_an_arm_are_valid(arm):
    config, unused = settings(compare.ARMS[arm])
    assert not unused and config['train_epochs'] == config['schedular']['epochs']


def settings(arm):
    return resolve('pretrain', apply_overrides(read_yaml(f'configs/shapes/{arm.config}.yaml'), arm.changed))


def test_arms_that_share_the_beginning_agree_in_it():
    """Before epoch START, and in what GRIT collects there, nothing that differs has an effect."""
    common, _ = settings(compare.BEGINNING)
    assert compare.START == common['train_epochs'] < common['grit_from_epoch']
    later = {'train_epochs', 'sampler', 'grit_quantile', 'grit_grouping'}  # read when GRIT begins
    filtered = {'false_negative_filter'}  # begins after the shared epochs, as the words of the arms say
    sharing = [arm for arm in compare.ARMS.values() if arm.shares]
    assert len(sharing) > 5
    for arm in sharing:
        config, _ = settings(arm)
        for key in config.keys() - later - filtered:
            if isinstance(config[key], dict) and 0 in config[key]:  # a schedule
                for epoch in range(compare.START):
                    assert of_epoch(config[key], epoch) == of_epoch(common[key], epoch), (arm, key)
            else:
                assert config[key] == common[key], (arm, key)


def test_the_table_shows_mean_lowest_and_highest():
    names = [*compare.METRICS, *compare.OTHERS]
    results = {'grit': [dict.fromkeys(names, value) for value in (0.5, 0.9)], 'random': [dict.fromkeys(names, 0.25)]}
    grit, random = compare.table(results).splitlines()[2:]
    assert grit.count('| 0.7 (0.5 to 0.9)') == len(compare.METRICS) and grit.endswith('| 0.70 | 0.7 | 0.7 |')
    assert '| - |' in compare.table({'grit': [dict.fromkeys(names, 0.5) | {'false negatives': None}]})
    assert random.startswith(f'| {compare.ARMS["random"].words} | 1 | 0.2 |') and '(' not in random.split('|', 2)[2]


def test_a_run_of_other_settings_is_refused(tmp_path):
    (tmp_path / 'world.json').write_text('{"version": 2, "seed": 0}')
    for _ in range(2):
        compare.refuse_other_settings(tmp_path / 'run', compare.ARMS['grit'], str(tmp_path))
    with pytest.raises(InputError, match='is of other settings: remove it'):
        compare.refuse_other_settings(tmp_path / 'run', compare.ARMS['random'], str(tmp_path))
    (tmp_path / 'world.json').write_text('{"version": 2, "seed": 0, "duplicates": 0.5}')
    with pytest.raises(InputError, match='is of other settings: remove it'):
        compare.refuse_other_settings(tmp_path / 'run', compare.ARMS['grit'], str(tmp_path))


def test_an_arm_continues_the_shared_epochs_also_after_a_failure(tmp_path, monkeypatch):
    """A first call that fails before the shared epochs are trained leaves nothing that the second would continue."""
    (tmp_path / 'world.json').write_text('{"version": 2, "seed": 0}')
    shared = tmp_path / 'checkpoint_03.pth'
    shared.write_bytes(b'weights')
    beginning, failed = Future(), Future()
    beginning.set_result(shared)
    failed.set_exception(InputError('stopped'))
    with pytest.raises(InputError, match='stopped'):
        compare.run_arm('grit', 0, str(tmp_path), tmp_path, failed)
    found = []

    def pretrain(arm, seed, data, folder):
        found.append((folder / 'pretrain' / 'checkpoint_03.pth').read_bytes())
        raise InputError('enough')

    monkeypatch.setattr(compare, 'pretrain', pretrain)
    with pytest.raises(InputError, match='enough'):
        compare.run_arm('grit', 0, str(tmp_path), tmp_path, beginning)
    assert found == [b'weights']


def test_after_a_failed_run_no_other_begins(tmp_path, monkeypatch):
    begun = []

    def run_arm(arm, seed, data, out, beginning):
        begun.append((arm, seed))
        time.sleep(0.1)
        raise InputError(f'{arm} failed')

    monkeypatch.setattr(compare, 'run_arm', run_arm)
    monkeypatch.setattr(compare, 'run_script', lambda command, log: None)
    monkeypatch.setattr(compare, 'train_shared_epochs', lambda seed, data, out: None)
    with pytest.raises(InputError, match='grit failed'):
        compare.main(['--out', str(tmp_path), '--jobs', '1', '--arms', 'grit', 'random', '--seeds', '0', '0', '1', '2'])
    assert begun[0] == ('grit', 0) and len(begun) < 4


# ---- what a run costs ----


def products_of(config):
    """Multiply-adds of pre-training, written down: B pairs, L tokens, P image tokens, D width, I of the MLPs ->
    (everything but ITC's similarities, the part that momentum encoders repeat).
    """
    b, tokens, p, d, i, e, v = 4, cost.TOKENS['pretrain'], 5, 32, 64, 16, config['bert_config']['vocab_size']
    masked = b * (tokens - 1) * config['mlm_probability']
    vit = b * ((p - 1) * 3 * 16 * 16 * d + p * (4 * d * d + 2 * d * 4 * d) + 2 * p * p * d)
    text_layer = tokens * (4 * d * d + 2 * d * i) + 2 * tokens * tokens * d
    cross_attention = tokens * 2 * d * d + 2 * tokens * p * d
    shared = vit + 2 * b * text_layer + b * p * 2 * d * d + 2 * b * d * e + masked * (d * d + d * v)
    one_fusion = b * (text_layer + cross_attention)
    only_cls = b * (
        tokens * 2 * d * d + 2 * tokens * d + 2 * p * d + 4 * d * d + 2 * d * i
    )  # keys, values of all tokens
    return shared + one_fusion + 3 * only_cls + 3 * b * d * 2, shared + one_fusion


def test_flops_of_pretraining_are_those_of_the_matrix_products(monkeypatch):
    monkeypatch.setattr(cost, 'SETTINGS', [])  # no memory
    config = resolved('pretrain', '.')
    products = products_of(config)[0] + 2 * 4 * 4 * 16
    per_pair, per_image = cost.pretrain(config)
    assert per_pair.flops == per_image.flops == 3 * 2 * products / 4
    assert per_pair.examples > per_image.examples and (per_pair.batch, per_pair.epochs) == (4, config['train_epochs'])


def test_flops_of_albefs_pretraining(monkeypatch):
    """Momentum encoders and their MLM cost a forward pass only; similarities, also the teacher's, count as trained."""
    monkeypatch.setattr(cost, 'SETTINGS', [])  # no memory
    config = resolved('pretrain', '.', 'use_momentum=true', 'itc_queue_size=64', 'consistency_weight=0')
    trained, repeated = products_of(config)
    similarities = 2 * 2 * 4 * (4 + 64) * 16
    assert cost.pretrain(config)[0].flops == 2 * (3 * (trained + similarities) + repeated) / 4


def test_momentum_encoders_cost_a_forward_pass_only(monkeypatch):
    monkeypatch.setattr(cost, 'SETTINGS', [])  # no memory
    config = resolved('retrieval', '.', 'use_momentum=true', 'queue_size=64')
    with_copies, without = (
        cost.retrieval({**config, 'use_momentum': use}, 'x', 800, (3, 6))[0].flops for use in (True, False)
    )
    model = create_model('retrieval', config, counting.TOKENIZER)
    image, text = counting.random_batch(1, cost.TOKENS['retrieval'], config)
    encoders = counting.count_flops(lambda: (model.encode_image(image), model.encode_text(*text)))['Global']
    queue = 2 * 2 * 64 * config['embed_dim']
    assert with_copies - without == pytest.approx(encoders + 3 * queue, abs=2 * config['embed_dim'] * 2 * 2)


def test_evaluation_counts_what_score_split_does(monkeypatch):
    """All candidates of both directions, each pair scored for both: without shared pairs there are as many."""
    config = resolved('retrieval', '.', 'k_test=2')
    words, images, texts = 6, 3, 6
    lengths = torch.full((100,), 1 + words)
    encoded = lambda _, count, *rest: type('Encoded', (), {'text_lengths': lengths[:count]})  # noqa: E731
    monkeypatch.setattr(cost, 'WORDS', words)
    monkeypatch.setattr(cost, 'random_encoded', encoded)
    computed = cost.evaluation_flops(config, images, texts) * images
    model = create_model('retrieval', config, counting.TOKENIZER).eval()
    image, text = counting.random_batch(texts, 1 + words, config)
    scored = []
    monkeypatch.setattr('models.rerank.merge_pairs', lambda *best: scored.append(all_pairs(*best)) or scored[0])
    real = counting.count_flops(lambda: score_split(model, [image[:images]], [text], 2))['Global']
    assert len(scored[0][1]) == images * 2 + texts * 2
    assert real - 2 * images * texts * config['embed_dim'] == computed


def all_pairs(best_texts, best_images):
    """As many distinct pairs for every image as both directions need together, whichever they are."""
    count = (best_texts.numel() + best_images.numel()) // len(best_texts)
    pairs = (torch.arange(len(best_texts))[:, None] * len(best_images) + torch.arange(count)).flatten()
    return pairs, torch.arange(len(pairs))


@pytest.mark.parametrize('task', ['pretrain', 'retrieval', 'nlvr_pretrain', 'nlvr', 'vqa'])
def test_weights_are_those_of_the_real_model_and_optimizer(task):
    """Parameters that are shared count once, as the real ones do; AdamW keeps moments of what is trained only."""
    config = resolved(task, '.', *(['use_momentum=true', 'queue_size=64'] if task == 'retrieval' else []))
    model = create_model(task, config, counting.TOKENIZER)
    optimizer = create_optimizer(config['optimizer'], model)
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    moments = [state[name].nbytes for state in optimizer.state.values() for name in ('exp_avg', 'exp_avg_sq')]
    weights = counting.weight_bytes(counting.create_fake(task, config))
    assert weights == counting.weight_bytes(model)
    assert weights.trained + weights.frozen == sum(p.numel() * 4 for p in model.parameters())
    assert weights.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert weights.moments == sum(moments) and weights.buffers == sum(b.nbytes for b in model.buffers())


def saved_bytes(model, image):
    """What autograd saves, by its own hooks: each storage once, without weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # kept, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(image)
    return sum(storage.nbytes() for storage in saved.values())


def test_kept_bytes_are_what_autograd_saves():
    """With real tensors and without values alike, and in bfloat16 about half; casts of weights are apart."""
    config = resolved('pretrain', '.', 'bert_config.attention_probs_dropout_prob=0')
    real, fake = (make('pretrain', config) for make in (real_model, counting.create_fake))
    image = torch.randn(4, 3, 32, 32)
    saved = saved_bytes(real.visual_encoder, image)
    output = 4 * 5 * 32 * 4  # which the caller keeps; autograd saves the image, too, which the caller made
    kept = counting.kept_bytes(real.visual_encoder, lambda: real.visual_encoder(image))
    assert kept == (saved - image.nbytes + output, 0)
    with counting.without_values(0.48):
        full, none = counting.kept_bytes(fake, lambda: fake(*counting.random_batch(4, 25, config)))
        half, casts = counting.kept_bytes(fake, lambda: fake(*counting.random_batch(4, 25, config)), 'bf16')
        counting.set_checkpointing(fake, True)
        recomputed, _ = counting.kept_bytes(fake, lambda: fake(*counting.random_batch(4, 25, config)))
    assert none == 0 and 0.4 * full < half < 0.8 * full and recomputed < 0.7 * full
    assert 0 < casts <= counting.weight_bytes(fake).trained / 2


def real_model(task, config):
    return create_model(task, config, counting.TOKENIZER).train()


def test_hours_follow_the_formula(monkeypatch, capsys):
    stage = cost.Stage('x', 1_000_003, 2, 10, 3e9, memory={})
    assert stage.hours(4, 100, 0.5) == 2 * 1_000_003 / 4 * 3e9 / 5e13 / 3600  # evaluates: no memory
    stage = stage._replace(memory=dict.fromkeys(cost.SETTINGS, 5e9), weights=counting.Weights(1, 2, 3, 4, 5))
    assert stage.hours(4, 100, 0.5) == 2 * 1_000_000 / 4 * 3e9 / 5e13 / 3600  # 25,000 full steps of 40
    monkeypatch.setitem(cost.STAGES, 'pretrain', ('pretrain', 'Pretrain', lambda config: [stage, stage]))
    cost.main(['--stages', 'pretrain', '--gpus', '4', '--device-tflops', '100', '--utilization', '0.5'])
    out = capsys.readouterr().out
    assert out.startswith('Computed, not measured: 4 GPUs of 100 TFLOP/s, of which 50% are used.')
    assert out.count('| x | 1,000,003 | 2 | 4 x 10 | 3 | 30 s | 0.03 |') == 2 and out.count('| x | 10 | 0.00 |') == 1


@pytest.mark.parametrize('argv', [['--gpus', '0'], ['--device-tflops', 'nan'], ['--utilization', '1.5']])
def test_impossible_devices_are_refused(argv):
    with pytest.raises(InputError, match=f'{argv[0]} .*: must be'):
        cost.main(argv)
