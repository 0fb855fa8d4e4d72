"""NLVR2: is a statement about two images true?

Legend: B statements, L tokens, P image tokens (1 + patches), D width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models import losses
from models.momentum import copy_to_momentum, update_momentum
from models.two_images import create_two_image_bert, project_pairs
from models.vit import create_vit
from models.xbert import BertConfig


class NLVRModel(nn.Module):
    """ALBEF's encoders with doubled fusion layers and a classifier of [false, true].

    config: see `create_model`; nothing is read of the tokenizer. With `distill` the answers of a momentum copy of
    everything are part of the target; `copy_momentum` is to be called once weights are loaded.
    """

    def __init__(self, config, tokenizer):
        super().__init__()
        self.visual_encoder, self.text_encoder, self.cls_head = create_judge(config)
        self.distill, self.momentum = config['distill'], config['momentum']
        if self.distill:
            self.visual_encoder_m, self.text_encoder_m, self.cls_head_m = create_judge(config)
            self.copy_momentum()
        self.visual_encoder.set_grad_checkpointing(config['grad_checkpointing'])
        self.text_encoder.grad_checkpointing = config['grad_checkpointing']

    def forward(self, images, text, targets=None, alpha=0.0):
        """images: [2B, 3, R, R], the left images and then the right ones; text: `input_ids` and `attention_mask`, both
        [B, L].

        targets: [B] int64, 1 where the statement is true. alpha: the weight of the momentum copy's answers in the
        target, read with `distill` only. Returns the logits of (false, true), [B, 2], or with targets the loss.
        """
        logits = judge(images, text, self.visual_encoder, self.text_encoder, self.cls_head)
        if targets is None:
            return logits
        loss = F.cross_entropy(logits, targets)
        if self.distill:
            if torch.is_grad_enabled():  # else nothing is trained that could be followed
                update_momentum(self.momentum_pairs(), self.momentum)
            with torch.no_grad():
                soft_targets = judge(images, text, self.visual_encoder_m, self.text_encoder_m, self.cls_head_m).softmax(
                    dim=1
                )
            loss = (1 - alpha) * loss + alpha * losses.soft_cross_entropy(logits, soft_targets)
        return loss

    def momentum_pairs(self):
        """[(module, its momentum copy)]"""
        return [
            (self.visual_encoder, self.visual_encoder_m),
            (self.text_encoder, self.text_encoder_m),
            (self.cls_head, self.cls_head_m),
        ]

    def copy_momentum(self):
        """Take the momentum copies, where there are any, from the weights as they are now."""
        if self.distill:
            copy_to_momentum(self.momentum_pairs())


def create_judge(config):
    """(image encoder, two-image text encoder, classifier) at random weights."""
    bert_config = BertConfig.from_mapping(config['bert_config'])
    width = bert_config.hidden_size
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
    return create_vit(config['image_res'], config['vit']), create_two_image_bert(bert_config), head


def judge(images, text, visual_encoder, text_encoder, cls_head):
    """Logits of (false, true): images [2B, 3, R, R], text [B, L] -> [B, 2], in float32."""
    image_embeds = visual_encoder(images)  # [2B, P, Dv]
    memory = project_pairs(text_encoder, image_embeds, lambda states: states.chunk(2))
    hidden = text_encoder(text.input_ids, text.attention_mask, memory=memory)  # [B, L, D]
    return cls_head(hidden[:, 0]).float()
