"""The encoders and the decoder computed as the official program does: what `plain_steps` and the benchmarks use.

They have the weights of our models. As there, attention is softmax(Q K^T / sqrt(d)) V with its matrix in memory,
without fused kernels, and what is attended to is projected to keys and values again for every row.

Legend: B images, L tokens, P image tokens (1 + patches), Dv their width, D width of the text, E embedding, V
vocabulary, R rows, or resolution of an image, S states that are attended to, Dm their width, H heads, d = D / H, N
answers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of every head: query [R, L, D], key and value [R, S, D] -> [R, L, D].

    mask: bool, True = is attended to, broadcastable to [R, H, L, S].
    """
    query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # [R, H, -, d]
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])  # [R, H, L, S]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = F.dropout(scores.softmax(dim=3), dropout)
    return (weights @ value).transpose(1, 2).flatten(2)


def encode_image(vit: nn.Module, image: Tensor) -> Tensor:
    """The image encoder: [B, 3, R, R] -> [B, P, Dv]."""
    patches = vit.patch_embed(image)
    hidden = torch.cat([vit.cls_token.expand(len(image), -1, -1), patches], dim=1) + vit.pos_embed
    for block in vit.blocks:
        query, key, value = block.attn.qkv(block.norm1(hidden)).chunk(3, dim=2)
        hidden = hidden + block.attn.proj(attend(query, key, value, block.attn.num_heads))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return vit.norm(hidden)


def attention(part: nn.Module, hidden: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
    """One attention of BERT and its residual: hidden [R, L, D], states [R, S, Dm] -> [R, L, D]; mask as in `attend`."""
    projected = part.self.query(hidden), part.self.key(states), part.self.value(states)
    context = attend(*projected, part.num_heads, mask, part.dropout if part.training else 0.0)
    return part.output(context, hidden)


def run_layers(
    layers: nn.ModuleList, hidden: Tensor, mask: Tensor, memories: list[tuple[Tensor, Tensor | None] | None]
) -> Tensor:
    """Layers of BERT: hidden [R, L, D], mask [R, 1, 1 or L, L] -> [R, L, D].

    memories: (states [R, S, Dm], mask [R, 1, 1, S] or None) of each layer; None for a layer without cross-attention.
    """
    for layer, memory in zip(layers, memories, strict=True):
        hidden = attention(layer.attention, hidden, hidden, mask)
        if memory is not None:
            hidden = attention(layer.crossattention, hidden, *memory)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden


def encode_text(bert: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The layers that read text only: two of [R, L] -> [R, L, D]."""
    layers = bert.encoder.layer[: bert.config.fusion_layer]
    return run_layers(layers, bert.embeddings(input_ids), as_mask(attention_mask), [None] * len(layers))


def fuse(bert: nn.Module, text_embeds: Tensor, attention_mask: Tensor, image_embeds: Tensor) -> Tensor:
    """The layers that attend to an image: [R, L, D], [R, L], [R, P, Dv] -> [R, L, D]."""
    layers = bert.encoder.layer[bert.config.fusion_layer :]
    return run_layers(layers, text_embeds, as_mask(attention_mask), [(image_embeds, None)] * len(layers))


def as_mask(attention_mask: Tensor) -> Tensor:
    """[R, S] -> [R, 1, 1, S] bool"""
    return attention_mask[:, None, None].bool()


def feature(embeds: Tensor, projection: nn.Module) -> Tensor:
    """The normalized feature of the [CLS] token: [R, L, D] -> [R, E], in float32."""
    return F.normalize(projection(embeds[:, 0]).float(), dim=1)


def decode(decoder: nn.Module, ids: Tensor, attention_mask: Tensor, states: Tensor, states_mask: Tensor) -> Tensor:
    """The answer decoder: ids and their mask [N, L], states [N, S, D] and their mask [N, S] -> [N, L, V], float32."""
    length, layers = ids.shape[1], decoder.bert.encoder.layer
    mask = as_mask(attention_mask) & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    memory = states, as_mask(states_mask)
    hidden = run_layers(layers, decoder.bert.embeddings(ids), mask, [memory] * len(layers))
    return decoder.cls(hidden).float()
