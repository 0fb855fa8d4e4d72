"""Heat maps of the cross-attention: to which patches the tokens of a text belong.

Grad-CAM as ALBEF's (arXiv 2107.07651, section 6), of one fusion layer: the attention weights of every token to every
patch, times the positive part of the gradient of the ITM logit of "match", averaged over the heads. It shows what makes
the text match the image. The attention alone, averaged over the heads, shows where a token looks.

Legend: B pairs, L tokens, P image tokens (1 + patches), S patches of a side, H heads, d width of a head, R resolution.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.bert_layers import Attention, KeyValue
from models.inputs import TokenBatch
from models.xbert import BertModel
from utils.errors import InputError

LAYER = 3  # the fusion layer that ALBEF shows, counted from 1
GRADCAM, ATTENTION = METHODS = ('gradcam', 'attention')


def choose_layer(model: nn.Module, layer: int | None) -> int:
    """The fusion layer to show, from 1 on: by default the third, or the last but one if there are fewer than four.

    In the last layer only [CLS] affects ITM, so words have no map there. InputError for a layer that cannot be shown.
    """
    last = model.bert_config.num_hidden_layers - model.bert_config.fusion_layer - 1
    layer = max(1, min(LAYER, last)) if layer is None else layer
    if not isinstance(layer, int) or not 1 <= layer <= last:
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
    shown, mask = choose_layer(model, layer), text.attention_mask
    with torch.inference_mode(False), torch.no_grad():
        image, ids = image.clone(), text.input_ids.clone()  # tensors of inference mode have no gradient
        hidden, _ = model.encode_text(ids, mask.clone())  # [B, L, D]
        memory = model.text_encoder.project(model.encode_image(image)[0])
        with torch.enable_grad():
            hidden, weights = fuse(model.text_encoder, hidden, mask.clone()[:, None, None].bool(), memory, shown)
            match = model.itm_head(hidden[:, 0])[:, 1].sum()  # pairs do not affect one another
            gradient = torch.autograd.grad(match, weights)[0]  # [B, H, L, P]
    maps = weights.detach() * (gradient.clamp(min=0) if method == GRADCAM else 1)
    maps = maps.mean(dim=1)[..., 1:].float()  # [B, L, P - 1], without [CLS]
    side = math.isqrt(maps.shape[-1])
    return maps.unflatten(2, (side, side)) * mask[:, :, None, None]


def fuse(
    bert: BertModel, hidden: Tensor, mask: Tensor, memory: Sequence[KeyValue], shown: int
) -> tuple[Tensor, Tensor]:
    """Run the fusion layers, of which one, from 1 on, computes the weights of its cross-attention explicitly.

    hidden: [B, L, D]. mask: [B, 1, 1, L], True = token. memory: of `BertModel.project`. Returns (hidden [B, L, D],
    weights [B, H, L, P]). The weights are where gradients end: nothing below them gets one.
    """
    for number, layer in enumerate(bert.encoder.layer[bert.config.fusion_layer :], start=1):
        if number != shown:
            hidden = layer(hidden, mask, memory[number - 1])
            continue
        hidden = layer.attention(hidden, *layer.attention.project(hidden), mask)
        hidden, weights = attend(layer.crossattention, hidden, *memory[number - 1])
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden, weights


def attend(attention: Attention, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The forward pass of an attention without dropout: [B, L, D], two of [B, H, P, d] -> [B, L, D], weights."""
    query = attention.self.query(hidden).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)  # [B, H, L, d]
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)  # [B, H, L, P]
    weights = weights.detach().requires_grad_()
    context = (weights @ value).transpose(1, 2).flatten(2)  # [B, L, D]
    return attention.output(context, hidden), weights
