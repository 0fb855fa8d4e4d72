"""One process or many: every helper does nothing special without a process group."""

import datetime
import os

import torch
import torch.distributed as dist


def init(args):
    """Join the process group that a launcher announces in the environment, and choose this process's device.

    Without a launcher (WORLD_SIZE absent or 1) there is no group. Collectives on the CPU go through gloo, those on CUDA
    tensors through NCCL. Returns the torch.device; `--device cuda` falls back to the CPU where there is no GPU.
    """
    device = choose_device(args.device)
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        if not args.distributed:
            raise ValueError('--distributed false, but a launcher started several processes; start one, or drop the flag')
        backend = 'cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo'
        dist.init_process_group(backend, init_method=args.dist_url, timeout=datetime.timedelta(hours=2))
    return device


def choose_device(name):
    """torch.device by the name of `--device`; among several GPUs the one of LOCAL_RANK."""
    if name.split(':')[0] == 'cuda' and not torch.cuda.is_available():
        return torch.device('cpu')
    device = torch.device(name)
    if device.type == 'cuda' and device.index is None:
        device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
        if device.index >= torch.cuda.device_count():
            raise ValueError(f'process {device.index} of this machine finds only {torch.cuda.device_count()} GPU(s); start '
                             'at most one process a GPU (--nproc_per_node)')
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    return device


def is_initialized():
    return dist.is_available() and dist.is_initialized()


def rank():
    return dist.get_rank() if is_initialized() else 0


def world_size():
    return dist.get_world_size() if is_initialized() else 1


def is_main():
    return rank() == 0


def close():
    if is_initialized():
        dist.destroy_process_group()


def barrier():
    if is_initialized():
        dist.barrier()


def all_reduce_sum(tensor):
    """The sum over all ranks, in place; returns the tensor."""
    if is_initialized():
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor):
    """Rank 0's values on every rank, in place; returns the tensor."""
    if is_initialized():
        dist.broadcast(tensor, 0)
    return tensor


def all_gather_tensors(tensor):
    """Every rank's tensor, in rank order; the first dimensions may differ, dtype and the other dimensions may not."""
    if not is_initialized():
        return [tensor]
    sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
    sizes = torch.cat(sizes).tolist()
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[:len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def gather_objects(value):
    """Every rank's value, in rank order, on rank 0; None elsewhere. Values are pickled: keep their tensors on the CPU."""
    if not is_initialized():
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def broadcast_object(value):
    """Rank 0's value on every rank."""
    if not is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def main_first(function):
    """Run a function on rank 0; its result, or its error, reaches every rank. For reading and deciding, not for heavy data."""
    if not is_initialized():
        return function()
    result = error = None
    if is_main():
        try:
            result = function()
        except Exception as caught:  # re-raised on all ranks below
            error = caught
    result, error = broadcast_object((result, error))
    if error is not None:
        raise error
    return result
