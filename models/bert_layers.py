"""The layers of BERT: embeddings, self-attention, cross-attention to a memory, feed-forward; and their configuration.

The parameters have the names of Hugging Face's BERT, with `crossattention` added to the layers that attend to a memory.

Legend: R rows of text, L tokens, D width, H heads, d = D / H; B memories (images) of S states (1 + patches), each Dm
wide.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import InputError

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT; the defaults are bert-base-uncased with ALBEF's six text and six fusion layers."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = 'gelu'
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    vocab_size: int = 30522
    pad_token_id: int = 0
    fusion_layer: int = 6
    encoder_width: int = 768

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> 'BertConfig':
        """Build from a checked configuration mapping. InputError names what does not fit together."""
        known = {field.name for field in fields(cls)}
        config = cls(**{key: value for key, value in mapping.items() if key in known})
        if config.hidden_size % config.num_attention_heads:
            raise InputError(
                f'bert_config: hidden_size {config.hidden_size} must be a multiple of num_attention_heads '
                f'{config.num_attention_heads}'
            )
        if not 0 <= config.fusion_layer <= config.num_hidden_layers:
            raise InputError(
                f'bert_config: fusion_layer {config.fusion_layer} must be between 0 and num_hidden_layers '
                f'{config.num_hidden_layers}'
            )
        if config.pad_token_id >= config.vocab_size:
            raise InputError(
                f'bert_config: pad_token_id {config.pad_token_id} must be below vocab_size {config.vocab_size}'
            )
        return config


def require_fusion_layers(config: BertConfig, reason: str) -> None:
    """InputError unless some layers attend to a memory. reason: what needs them."""
    if config.fusion_layer == config.num_hidden_layers:
        raise InputError(f'bert_config: fusion_layer must be below num_hidden_layers: {reason}')


class Embeddings(nn.Module):
    """Word + position + token type (always 0), normalized."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.register_buffer('position_ids', torch.arange(config.max_position_embeddings)[None])

    def forward(self, input_ids: Tensor, start: int = 0) -> Tensor:  # [R, L] -> [R, L, D]
        end = start + input_ids.shape[1]
        if end > self.position_ids.shape[1]:
            raise InputError(
                f'a text has {end} tokens, more than the {self.position_ids.shape[1]} position embeddings; cut the '
                'text or increase bert_config.max_position_embeddings'
            )
        embeds = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        embeds = embeds + self.position_embeddings(self.position_ids[:, start:end])
        return self.dropout(self.LayerNorm(embeds))


class Projections(nn.Module):
    """The query, key and value projections of one attention."""

    def __init__(self, width: int, memory_width: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)


class AddAndNorm(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual): the end of every block of BERT."""

    def __init__(self, width_in: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(width_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """Multi-head attention to the text itself, or to projected memories."""

    def __init__(self, config: BertConfig, memory_width: int):
        super().__init__()
        self.self = Projections(config.hidden_size, memory_width)
        self.output = AddAndNorm(config.hidden_size, config)
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob

    def _heads(self, x: Tensor) -> Tensor:  # [B, S, D] -> [B, H, S, d]
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def project(self, states: Tensor) -> KeyValue:
        """Keys and values of what is attended to: [B, S, Dm] -> two of [B, H, S, d]."""
        return self._heads(self.self.key(states)), self._heads(self.self.value(states))

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from hidden [R, L, D] to key and value [R, H, S, d], or [B, H, S, d] with R = r x B.

        In the second case rows b*r ... b*r + r-1 attend to memory b: the queries of a memory are concatenated, so that
        nothing is copied.
        mask: bool, True = is attended to, broadcastable to [R, H, L, S]; in the second case [B, 1, 1, S].
        """
        rows, length, _ = hidden.shape
        query = self._heads(self.self.query(hidden))  # [R, H, L, d]
        shared = key.shape[0] != rows
        if shared:
            assert rows % key.shape[0] == 0 and (mask is None or mask.shape[2] == 1), (rows, key.shape)
            query = query.unflatten(0, (key.shape[0], -1)).transpose(1, 2).flatten(2, 3)  # [B, H, r*L, d]
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        if shared:
            context = context.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)  # [R, H, L, d]
        return self.output(context.transpose(1, 2).flatten(2), hidden)  # [R, L, D]


class Intermediate(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden))


class Layer(nn.Module):
    """Self-attention, cross-attention to a memory if the layer has it, feed-forward."""

    def __init__(self, config: BertConfig, has_memory: bool):
        super().__init__()
        self.attention = Attention(config, config.hidden_size)
        if has_memory:
            self.crossattention = Attention(config, config.encoder_width)
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config.intermediate_size, config)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        memory: KeyValue | None = None,
        memory_mask: Tensor | None = None,
        past: KeyValue | None = None,
        present: list[KeyValue] | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """hidden [R, L, D] -> the same, with `first_only` its first token [R, 1, D].

        memory: (key, value), each [B or R, H, S, d].
        past: (key, value) of earlier tokens, each [R, H, T, d]. present: a list that receives those of `hidden`.
        """
        key, value = self.attention.project(hidden)
        if first_only:  # it still attends to all tokens
            hidden = hidden[:, :1]
        if present is not None:
            present.append((key, value))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        hidden = self.attention(hidden, key, value, mask)
        if memory is not None:
            hidden = self.crossattention(hidden, *memory, memory_mask)
        return self.output(self.intermediate(hidden), hidden)


def select_rows(states: Tensor, index: Tensor) -> Tensor:
    """Keys or values of some memories: [B, H, S, d], index [R] -> [R, H, S, d].

    Rows are copied as they are in memory, [S, H, d], so that the backward pass adds up complete rows.
    """
    return states.transpose(1, 2).index_select(0, index).transpose(1, 2)
