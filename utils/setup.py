"""The beginning of every script: processes, configuration, seeds, output folder, and the model on its device."""

import os
from contextlib import contextmanager

import torch

from utils import distributed
from utils.config import apply_overrides, read_yaml, resolve, write_yaml
from utils.log import say
from utils.seeding import seed_everything


def start(task, args):
    """Check everything that can be checked before work is done, join the other processes, seed, make the output folder.

    Returns (config, device): the resolved configuration, also written to output_dir/config.yaml, and this process's device.
    """
    config, unused = resolve(task, apply_overrides(read_yaml(args.config), args.set), args.config)
    if args.checkpoint and not os.path.isfile(args.checkpoint):
        raise FileNotFoundError(f'--checkpoint {args.checkpoint}: there is no such file')
    device = distributed.init(args)
    seed_everything(args.seed)
    if device.type == 'cuda':  # what A100 did under the official code's torch 1.8
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if distributed.is_main():
        os.makedirs(args.output_dir, exist_ok=True)
        if not args.evaluate:
            write_yaml(config, os.path.join(args.output_dir, 'config.yaml'))
    say(f'{task}: {distributed.world_size()} process(es) on {device.type}' +
        (', no GPU was found' if args.device.startswith('cuda') and device.type == 'cpu' else '') +
        f', {config["precision"]}, output in {args.output_dir}')
    if unused:
        say('keys of other tasks, not used here: ' + ', '.join(unused))
    return config, device


def check_vocabulary(tokenizer, bert_config, name):
    """ValueError where the tokenizer's words do not fit the text encoder's table."""
    if len(tokenizer) > bert_config['vocab_size']:
        raise ValueError(f'--text_encoder {name}: its vocabulary has {len(tokenizer)} words, bert_config.vocab_size is '
                         f'{bert_config["vocab_size"]}; they must fit: set bert_config.vocab_size={len(tokenizer)}')


def to_device(model, device, config):
    """The model on its device, compiled where `compile` says so, and wrapped where several processes share the work."""
    model.to(device)
    if config['compile']:
        compile_layers(model)
    if distributed.is_initialized():
        for buffer in model.buffers():  # the wrapper sees to parameters only; retrieval's queue starts as noise
            distributed.broadcast(buffer)
        return torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[device.index] if device.type == 'cuda' else None, broadcast_buffers=False,
            gradient_as_bucket_view=True)
    return model


def compile_layers(model):
    """torch.compile each transformer layer, in place: the names in the state dict stay. ValueError where it cannot work."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=next(model.parameters()).device))
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(f'compile: true does not work here: {reason}; set compile: false') from None
    for module in model.modules():
        if type(module).__name__ in ('Block', 'Layer'):
            module.compile()


def autocast(device, config):
    """The context of a forward pass: bfloat16 products with `precision: bf16`, nothing with fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config['precision'] == 'bf16')


@contextmanager
def one_thread(device):
    """Compute in one thread where the device is the CPU: a product's last bits depend on how many threads share it."""
    threads = torch.get_num_threads()
    if device.type == 'cpu':
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def optimize(loss, model, optimizer, config):
    """One optimizer step on a loss, with the gradient's norm clipped where `clip_grad_norm` says so."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config['clip_grad_norm']:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config['clip_grad_norm'])
    optimizer.step()
