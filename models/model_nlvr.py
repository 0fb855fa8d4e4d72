"""NLVR2: is a statement about two images true?

Legend: B statements, L tokens, P image tokens (1 + patches), Dv their width, D width of the text, R resolution.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import losses
from models.bert_layers import BertConfig
from models.inputs import SpecialTokens, TokenBatch
from models.momentum import MomentumModel
from models.two_images import create_two_image_bert, project_pairs
from models.vit import create_vit


class NLVRModel(MomentumModel):
    """ALBEF's encoders with doubled fusion layers and a classifier of [false, true].

    config: see `create_model`; tokenizer is not read. With `distill` the predictions of a momentum copy of all parts
    are soft targets; call `copy_momentum` after weights are loaded.
    """

    COPIED = ('visual_encoder', 'text_encoder', 'cls_head')

    def __init__(self, config: Mapping[str, Any], tokenizer: SpecialTokens):
        super().__init__()
        self.visual_encoder, self.text_encoder, self.cls_head = create_parts(config)
        self.distill, self.momentum = config['distill'], config['momentum']
        if self.distill:
            self.visual_encoder_m, self.text_encoder_m, self.cls_head_m = create_parts(config)
            self.copy_momentum()
        self.visual_encoder.set_grad_checkpointing(config['grad_checkpointing'])
        self.text_encoder.grad_checkpointing = config['grad_checkpointing']

    def forward(
        self,
        images: Tensor,
        text: TokenBatch,
        targets: Tensor | None = None,
        alpha: float = 0.0,
        use_momentum: bool = False,
    ) -> Tensor:
        """The logits of (false, true), [B, 2], or with targets the loss.

        images: [2B, 3, R, R], the left images and then the right ones. text: [B, L]. targets: [B] int64, 1 if the
        statement is true. alpha: with `distill`, the weight of the momentum copy's predictions in the target.
        use_momentum: return the logits of the momentum copy.
        """
        if targets is None:
            return self.momentum_logits(images, text) if use_momentum else self.logits(images, text)
        logits = self.logits(images, text)
        loss = F.cross_entropy(logits, targets)
        if self.distill:
            if torch.is_grad_enabled():  # otherwise nothing is trained
                self.update_momentum()
            with torch.no_grad():
                soft_targets = self.momentum_logits(images, text).softmax(dim=1)
            loss = (1 - alpha) * loss + alpha * losses.soft_cross_entropy(logits, soft_targets)
        return loss

    def logits(self, images: Tensor, text: TokenBatch) -> Tensor:
        return classify(images, text, self.visual_encoder, self.text_encoder, self.cls_head)

    def momentum_logits(self, images: Tensor, text: TokenBatch) -> Tensor:
        return classify(images, text, self.visual_encoder_m, self.text_encoder_m, self.cls_head_m)


def create_parts(config: Mapping[str, Any]) -> tuple[nn.Module, nn.Module, nn.Module]:
    """(image encoder, two-image text encoder, classifier) with random weights."""
    bert_config = BertConfig.from_mapping(config['bert_config'])
    width = bert_config.hidden_size
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
    return create_vit(config['image_res'], config['vit']), create_two_image_bert(bert_config), head


def classify(
    images: Tensor, text: TokenBatch, visual_encoder: nn.Module, text_encoder: nn.Module, cls_head: nn.Module
) -> Tensor:
    """Logits of (false, true): images [2B, 3, R, R], text [B, L] -> [B, 2], in float32."""
    image_embeds = visual_encoder(images)  # [2B, P, Dv]
    memory = project_pairs(text_encoder, image_embeds, lambda states: states.chunk(2))
    hidden = text_encoder(text.input_ids, text.attention_mask, memory=memory, first_only=True)  # [B, 1, D]
    return cls_head(hidden[:, 0]).float()
