"""Exact scores for ranking images and texts, several times cheaper than pair by pair, on any number of processes.

Officially the fusion layers score each of the best pairs by ITC separately: 71 % of the FLOPs project the same image's
tokens to keys and values again, for each of its candidate texts, and texts are padded to 30 tokens. Here
1. every rank encodes its shard of images and texts, and keeps its images' tokens;
2. every rank finds the pairs that either direction needs, each pair once;
3. every rank scores the pairs of its own images, image by image: keys and values are projected once, and the candidate
   texts run in batches of similar length.

The scores do not depend on the number of processes, to the last bit: batches have a fixed composition in step 1, and in
step 3 they follow from one image's candidates alone, so every product has the same shape wherever it is computed. (On
the CPU the number of threads of a process must be the same, too.)

Legend: NI images, NT texts, P image tokens, D width, E embedding, T tokens of all texts, M pairs, k
candidates, n batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from models.inputs import TokenBatch
from utils import distributed
from utils.log import Progress

Batch = TypeVar('Batch')
TEXTS_AT_ONCE = 128  # texts of one image in a forward pass: enough to fill a GPU
LENGTHS_AT_ONCE = 4  # different lengths in a forward pass: texts are padded by three tokens at most
ROWS_AT_ONCE = 1024  # rows whose best candidates are selected at a time: limits the memory
NOT_SCORED = -100.0


class Scores(NamedTuple):
    """Scores of a split, on the CPU of every rank."""

    sim_i2t: Tensor  # [NI, NT], ITC: cosines of the features
    i2t: Tensor  # [NI, NT], ITM: the logit of "match", NOT_SCORED where a pair is no candidate
    t2i: Tensor  # [NT, NI]


@dataclass
class Encoded:
    """The encoded split: features of everything, tokens of all texts, tokens of this rank's images."""

    image_feat: Tensor  # [NI, E]
    text_feat: Tensor  # [NT, E]
    image_embeds: dict[int, Tensor]  # {number of an image: [P, D]}
    text_embeds: Tensor  # [T, D], one text after another, without padding
    text_lengths: Tensor  # [NT] int64, on the CPU

    def similarities(self) -> Tensor:
        """Cosines of all pairs, [NI, NT], in float32 also under autocast: the ranking by ITC."""
        with torch.autocast(self.image_feat.device.type, enabled=False):
            return self.image_feat @ self.text_feat.t()


def shard(batches: Iterable[Batch]) -> Iterable[Batch]:
    """This rank's shard of batches that every rank has: every W-th."""
    return islice(batches, distributed.rank(), None, distributed.world_size())


@torch.no_grad()
def score_split(
    model: nn.Module,
    images: Iterable[Tensor],
    texts: Iterable[TokenBatch],
    k: int,
    store: torch.device | None = None,
    title: str | None = None,
    every: int = 50,
) -> Scores:
    """Rank a split by ITC, and re-rank the `k` best candidates of every image and of every text by ITM.

    images, texts, store: this rank's shard, see `encode`. k: with 0 `i2t` and `t2i` are ITC's.
    title, every: of the progress bar. Dropout is off. A collective.
    """
    training = model.training
    model.eval()
    try:
        encoded = encode(model, images, texts, store)
        sim_i2t = encoded.similarities()
        scores = rerank(model, encoded, sim_i2t, k, title, every) if k else (sim_i2t.cpu(), sim_i2t.cpu().t())
        return Scores(sim_i2t.cpu(), *scores)
    finally:
        model.train(training)


@torch.no_grad()
def encode(
    model: nn.Module, images: Iterable[Tensor], texts: Iterable[TokenBatch], store: torch.device | None = None
) -> Encoded:
    """Encode this rank's batches and gather what all ranks need.

    images: iterable of batches [n, 3, R, R]. texts: iterable of batches with `input_ids` and `attention_mask` [n, L].
    Batch i of all belongs to rank i % W. store: the device that keeps the tokens until they are scored; the model's if
    None.
    """
    device = next(model.parameters()).device
    store = store or device
    image_feat, image_embeds = [], []
    for image in images:
        embeds, feat = model.encode_image(image.to(device, non_blocking=True))
        image_feat.append(feat)
        image_embeds.append(embeds.to(store))
    text_feat, text_embeds, lengths = [], [], []
    for text in texts:
        mask = text.attention_mask.bool()
        longest = int(mask.any(dim=0).nonzero().max()) + 1
        ids, mask = text.input_ids[:, :longest].to(device), mask[:, :longest].to(device)
        embeds, feat = model.encode_text(ids, mask)
        text_feat.append(feat)
        text_embeds.append(embeds[mask].to(store))  # padding is dropped
        lengths.append(mask.sum(dim=1).cpu())

    no_feat, width = torch.empty(0, model.vision_proj.out_features, device=device), model.bert_config.hidden_size
    image_feat, firsts = gather_batches(image_feat, no_feat)
    return Encoded(
        image_feat,
        gather_batches(text_feat, no_feat)[0],
        {
            first + i: tokens
            for first, batch in zip(firsts, image_embeds, strict=True)
            for i, tokens in enumerate(batch)
        },
        gather_batches(text_embeds, torch.empty(0, width, device=store))[0],
        gather_batches(lengths, torch.empty(0, dtype=torch.int64))[0],
    )


def gather_batches(batches: Sequence[Tensor], empty: Tensor) -> tuple[Tensor, list[int]]:
    """Put the batches of all ranks in order: rank r has batches r, r + W, ... (a collective).

    batches: this rank's tensors [n, ...]. empty: the same without rows, for a rank that has none.
    Returns all rows in one tensor, and the number of the first row of each own batch.
    """
    sizes = torch.tensor([len(batch) for batch in batches], dtype=torch.int64, device=empty.device)
    sizes = [part.tolist() for part in distributed.all_gather_tensors(sizes)]
    rows = distributed.all_gather_tensors(torch.cat([empty, *(batch.to(empty.dtype) for batch in batches)]))
    rows = [part.split(of_rank) for part, of_rank in zip(rows, sizes, strict=True)]
    firsts, ordered, total = [], [], 0
    for i in range(len(sizes[0])):
        for rank in range(len(sizes)):
            if i < len(sizes[rank]):
                firsts += [total] if rank == distributed.rank() else []
                ordered.append(rows[rank][i])
                total += sizes[rank][i]
    return torch.cat([empty, *ordered]), firsts


@torch.no_grad()
def rerank(
    model: nn.Module, encoded: Encoded, sim_i2t: Tensor, k: int, title: str | None = None, every: int = 50
) -> tuple[Tensor, Tensor]:
    """ITM scores of the `k` best candidates by ITC of every image and of every text.

    sim_i2t: [NI, NT], the same on every rank. title: of a progress bar, reported every so many images; None for none.
    Returns (i2t [NI, NT], t2i [NT, NI]) on the CPU of every rank, -100 where a pair was not scored.
    """
    num_images, num_texts = sim_i2t.shape
    best_texts, best_images = best_candidates(sim_i2t, k), best_candidates(sim_i2t.t(), k)  # [NI, k], [NT, k]
    pairs, position = merge_pairs(best_texts, best_images)  # [M], [NI * k + NT * k]
    bounds = torch.searchsorted(pairs, torch.arange(num_images + 1, device=pairs.device) * num_texts).tolist()
    candidates = (pairs % num_texts).cpu()

    scores = torch.zeros(len(pairs), device=sim_i2t.device)
    progress = title and Progress(title, len(encoded.image_embeds), every=every, unit='images', device=scores.device)
    for done, (image, tokens) in enumerate(encoded.image_embeds.items()):
        own = slice(bounds[image], bounds[image + 1])
        scores[own] = score_texts(model, tokens, encoded, candidates[own])
        if progress and progress.due(done):
            progress.report(done)
    if progress:
        progress.close()
    scores = distributed.all_reduce_sum(scores)[position].cpu()  # each pair belongs to one rank and is 0 elsewhere
    of_images, of_texts = scores.split([best_texts.numel(), best_images.numel()])
    i2t = scatter_scores(of_images, best_texts.cpu(), num_texts)
    return i2t, scatter_scores(of_texts, best_images.cpu(), num_images)


def best_candidates(sim: Tensor, k: int) -> Tensor:
    """The k best columns of every row, or all if there are fewer: [N, C] -> [N, min(k, C)]."""
    return torch.cat([rows.topk(min(k, sim.shape[1]), dim=1).indices for rows in sim.split(ROWS_AT_ONCE)])


def merge_pairs(best_texts: Tensor, best_images: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs that either direction needs, each once: [NI, k], [NT, k'] -> (pairs [M], position [NI * k + NT * k']).

    A pair is image * NT + text, in ascending order; `position` is where each candidate is in `pairs`, the images'
    first.
    """
    num_images, num_texts = len(best_texts), len(best_images)
    image = torch.arange(num_images, device=best_texts.device)[:, None]
    text = torch.arange(num_texts, device=best_texts.device)[:, None]
    needed = torch.cat([(image * num_texts + best_texts).flatten(), (best_images * num_texts + text).flatten()])
    return torch.unique(needed, return_inverse=True)


@torch.no_grad()
def score_texts(model: nn.Module, tokens: Tensor, encoded: Encoded, texts: Tensor) -> Tensor:
    """ITM scores of one image with some texts: tokens [P, D], numbers of texts [n] on the CPU -> [n]."""
    device = next(model.parameters()).device
    scores = torch.empty(len(texts), device=device)
    if len(texts) == 0:
        return scores
    memory = model.text_encoder.project(tokens[None].to(device))  # one (key, value) per layer, each [1, H, P, d]
    for some in similar_length(encoded.text_lengths[texts]):
        hidden, mask = padded(encoded, texts[some], device)
        fused = model.text_encoder(mode='fusion', hidden=hidden, attention_mask=mask, memory=memory, first_only=True)
        scores[some.to(device)] = model.itm_head(fused[:, 0])[:, 1].float()
    return scores


def similar_length(lengths: Tensor) -> list[Tensor]:
    """Batches of texts of similar length: lengths [n] -> positions in it, as a list of tensors."""
    order = lengths.argsort(stable=True)
    sizes = torch.unique_consecutive(lengths[order] // LENGTHS_AT_ONCE, return_counts=True)[1].tolist()
    return [batch for group in order.split(sizes) for batch in group.split(TEXTS_AT_ONCE)]


def padded(encoded: Encoded, texts: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens of texts, by number [n] -> (hidden [n, L, D], mask [n, L]); masked are tokens of the next text."""
    lengths = encoded.text_lengths[texts]
    starts = (encoded.text_lengths.cumsum(0) - encoded.text_lengths)[texts]
    offset = torch.arange(int(lengths.max()))
    tokens = (starts[:, None] + offset).clamp(max=len(encoded.text_embeds) - 1)
    return encoded.text_embeds[tokens.to(encoded.text_embeds.device)].to(device), (offset < lengths[:, None]).to(device)


def scatter_scores(scores: Tensor, best: Tensor, columns: int) -> Tensor:
    """Scores [N * k] of the candidates best [N, k] -> [N, columns], -100 elsewhere."""
    return torch.full((len(best), columns), NOT_SCORED).scatter_(1, best, scores.view(best.shape))
