"""Batches of token ids, as every dataset makes them."""

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from utils import distributed
from utils.log import print_rank0

UNKNOWN_SHARE = 0.1  # of the tokens of a file: with more of them there is a warning


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


def report_unknown(tokenizer, texts: Mapping[str, Sequence[str]], name: str) -> None:
    """Print the share of [UNK] among the tokens of texts, with a warning for each file with many of them (rank 0).

    texts: {file: texts from it, cleaned}. name: what they are, in words.
    """
    if not distributed.is_main():
        return
    backend = copy.deepcopy(tokenizer.backend_tokenizer)  # checkpoints contain its settings of padding and truncation
    backend.no_padding()
    backend.no_truncation()
    tokens, unknown = dict.fromkeys(texts, 0), dict.fromkeys(texts, 0)
    for file, some in texts.items():
        for text in backend.encode_batch(some, add_special_tokens=False):
            tokens[file] += len(text.ids)
            unknown[file] += text.ids.count(tokenizer.unk_token_id)
    share = sum(unknown.values()) / max(1, sum(tokens.values()))
    print_rank0(f'{name}: {share:.2%} of the tokens are [UNK] (in {sum(map(len, texts.values()))} texts)')
    for file in texts:
        if unknown[file] > UNKNOWN_SHARE * tokens[file]:
            print_rank0(
                f'warning: {file}: {unknown[file] / tokens[file]:.0%} of the tokens are [UNK], which stands for any '
                'word that the vocabulary lacks, so the model cannot read them; give a vocabulary of their language '
                'and script with --text_encoder, and its size with --set bert_config.vocab_size=SIZE'
            )
