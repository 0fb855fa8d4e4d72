"""Heat maps of the cross-attention: to which patches the tokens of a text belong.

Grad-CAM as ALBEF's (arXiv 2107.07651, section 6), of one fusion layer: the attention weights of every token to every
patch, times the positive part of the gradient of the ITM logit of "match", averaged over the heads. It shows what makes
the text match the image. The attention alone, averaged over the heads, shows where a token looks.

Legend: B pairs, L tokens, P image tokens (1 + patches), S patches of a side, H heads, d width of a head, R resolution.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.inputs import TokenBatch
from models.xbert import Attention
from utils.errors import InputError

LAYER = 3  # the fusion layer that ALBEF shows, counted from 1
GRADCAM, ATTENTION = METHODS = ('gradcam', 'attention')


def choose_layer(model: nn.Module, layer: int | None) -> int:
    """The fusion layer to show, from 1 on: by default the third, or the last but one if there are fewer than four.

    In the last layer only [CLS] affects ITM, so words have no map there. InputError for a layer that cannot be shown.
    """
    last = model.bert_config.num_hidden_layers - model.bert_config.fusion_layer - 1
    layer = max(1, min(LAYER, last)) if layer is None else layer
    if not 1 <= layer <= last:
        shown = f'give one from 1 to {last}' if last > 1 else 'only layer 1 can be shown' if last else 'it has no other'
        raise InputError(
            f'fusion layer {layer}: heat maps are of a fusion layer before the last, in which words affect ITM; '
            f'the model has {last + 1}, {shown}'
        )
    return layer


def token_maps(
    model: nn.Module, image: Tensor, text: TokenBatch, layer: int | None = None, method: str = GRADCAM
) -> Tensor:
    """Heat maps of B pairs, one for every token: [B, L, S, S] >= 0; those of padding are 0.

    model: a `RetrievalModel` in eval mode. image: [B, 3, R, R]. text: [B, L]. layer: see `choose_layer`. method: one of
    `METHODS`. InputError for another method or layer.
    """
    if method not in METHODS:
        raise InputError(f'heat maps by {method!r} are unknown; give {" or ".join(METHODS)}')
    layer = choose_layer(model, layer)
    bert = model.text_encoder
    attention = bert.encoder.layer[model.bert_config.fusion_layer + layer - 1].crossattention
    with torch.no_grad():
        image_embeds, _ = model.encode_image(image)  # [B, P, Dv]
        text_embeds, _ = model.encode_text(text.input_ids, text.attention_mask)  # [B, L, D]
        memory = bert.project(image_embeds)
    with torch.enable_grad(), recorded(attention) as weights:
        mask = text.attention_mask
        fused = bert(mode='fusion', hidden=text_embeds, attention_mask=mask, memory=memory)
        match = model.itm_head(fused[:, 0])[:, 1].sum()  # pairs do not affect one another
        gradient = torch.autograd.grad(match, weights[0])[0]  # [B, H, L, P]
    maps = weights[0].detach() * (gradient.clamp(min=0) if method == GRADCAM else 1)
    maps = maps.mean(dim=1)[..., 1:].float()  # [B, L, P - 1], without [CLS]
    side = math.isqrt(maps.shape[-1])
    return maps.unflatten(2, (side, side)) * text.attention_mask[:, :, None, None]


@contextmanager
def recorded(attention: Attention) -> Iterator[list[Tensor]]:
    """While it lasts, an attention computes its weights explicitly, and the list receives them, each [., H, L, S].

    They require a gradient; what they were computed from does not get one.
    """
    weights: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # [., H, L, S]
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        weights.append(scores.softmax(dim=-1).detach().requires_grad_())
        return weights[-1] @ value

    attention.attend = attend  # hides the method
    try:
        yield weights
    finally:
        del attention.attend
