"""Batches of token ids, as every dataset makes them."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from utils.log import print_rank0


class Text(NamedTuple):
    """A batch of texts: input_ids and attention_mask, both [B, L] int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def to(self, device: torch.device) -> 'Text':
        return Text(*(part.to(device, non_blocking=True) for part in self))


def tokenize(tokenizer, texts: Sequence[str], max_length: int | None = None) -> Text:
    """Texts -> Text, padded to the longest; cut at max_length tokens if it is given."""
    tokens = tokenizer(
        texts, padding='longest', truncation=max_length is not None, max_length=max_length, return_tensors='pt'
    )
    return Text(tokens.input_ids, tokens.attention_mask)


def tokenize_untruncated(tokenizer, texts: Sequence[str], positions: int) -> Text:
    """Texts -> Text, padded to the longest; cut (with one message) only at the last position embedding."""
    text = tokenize(tokenizer, texts)
    if text.input_ids.shape[1] <= positions:
        return text
    _report_cut(positions)
    return Text(*(part[:, :positions] for part in text))


@functools.cache
def _report_cut(positions: int) -> None:
    print_rank0(f'texts longer than {positions} tokens are cut to bert_config.max_position_embeddings')
