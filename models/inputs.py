"""What the models read of their inputs, whoever makes them."""

from typing import Protocol

from torch import Tensor


class TokenBatch(Protocol):
    """A batch of texts, such as `dataset.tokens.Text` or the output of a Hugging Face tokenizer."""

    input_ids: Tensor  # [B, L] int64
    attention_mask: Tensor  # [B, L], 1 = token, 0 = padding


class SpecialTokens(Protocol):
    """What `create_model` reads of a tokenizer."""

    pad_token_id: int
    cls_token_id: int
    mask_token_id: int
