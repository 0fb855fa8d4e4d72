"""Pre-training: contrastive loss with consistency (ITC), image-text matching (ITM), masked language modeling (MLM).

Legend: B pairs, L tokens, P image tokens (1 + patches), Dv their width, D width of the text, E embedding, R resolution,
N masked positions, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import losses
from models.inputs import SpecialTokens, TokenBatch
from models.itm_negatives import ItmNegatives
from models.vit import create_vit
from models.xbert import BertConfig, create_bert

TEMP_RANGE = (0.001, 0.5)


class PretrainModel(nn.Module):
    """ALBEF's encoders and heads without its momentum encoders, trained with GRIT-VLP's losses (arXiv 2208.04060).

    config: see `create_model`. tokenizer: `pad_token_id`, `cls_token_id` and `mask_token_id` are read.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: SpecialTokens):
        super().__init__()
        self.visual_encoder = create_vit(config['image_res'], config['vit'])
        self.bert_config = BertConfig.from_mapping(config['bert_config'])
        self.text_encoder = create_bert(self.bert_config, head=True)
        width = self.bert_config.hidden_size
        self.vision_proj = nn.Linear(config['vision_width'], config['embed_dim'])
        self.text_proj = nn.Linear(width, config['embed_dim'])
        self.temp = nn.Parameter(torch.tensor(float(config['temp'])))
        self.itm_head = nn.Linear(width, 2)

        self.pad, self.cls, self.mask = tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id
        self.mlm_probability = config['mlm_probability']
        self.consistency_weight = config['consistency_weight']
        self.negatives = ItmNegatives(config['itm_negatives'], config['itm_target_accuracy'])
        self.exclude_equal_negatives = config['exclude_equal_negatives']
        self.visual_encoder.set_grad_checkpointing(config['grad_checkpointing'])
        self.text_encoder.bert.grad_checkpointing = config['grad_checkpointing']

    def forward(self, image: Tensor, text: TokenBatch, image_key: Tensor | None = None) -> dict[str, Tensor]:
        """The losses of one batch.

        image: [B, 3, R, R]. text: `input_ids` and `attention_mask`, both [B, L]. image_key: [B] int64, equal if two
        pairs show the same image (read only with `exclude_equal_negatives`). Returns loss_mlm, loss_itc (contrastive +
        weight x consistency), loss_itm; image_feat and text_feat [B, E], normalized and detached; itm_acc, the share of
        correct ITM predictions.
        """
        with torch.no_grad():
            self.temp.clamp_(*TEMP_RANGE)
        batch = len(image)
        bert = self.text_encoder.bert
        masked_ids, labels = self.mask_tokens(text.input_ids)  # [B, L]
        targets = (labels != -100).flatten().nonzero()[:, 0]  # [N]; waits for the device, so before its work is queued

        # Single modalities: the image; the clean and the masked text in one call.
        image_embeds = self.visual_encoder(image)  # [B, P, Dv]
        both = bert(torch.cat([text.input_ids, masked_ids]), text.attention_mask.repeat(2, 1), mode='text')
        text_embeds, masked_embeds = both.chunk(2)  # [B, L, D]
        image_feat, text_feat = self.features(image_embeds, text_embeds)  # [B, E]

        # ITC and consistency.
        sim_i2t, sim_t2i = losses.similarities(image_feat, text_feat, self.temp)  # [B, B]
        loss_itc = losses.contrastive_loss(sim_i2t, sim_t2i)
        if self.consistency_weight:
            loss_itc = loss_itc + self.consistency_weight * losses.consistency_loss(sim_i2t, sim_t2i)

        # Fusion of four pairs per image: the positive, the image with its negative text, the text with its negative
        # image, and the image with the masked text.
        excluded = self.excluded_pairs(text.input_ids, image_key)  # [B, B]
        with torch.no_grad():
            other_text = self.negatives.pick(sim_i2t, excluded)  # [B]
            other_image = self.negatives.pick(sim_t2i, excluded)  # [B]
        own, atts = torch.arange(batch, device=image.device), text.attention_mask
        fused = bert(
            mode='fusion',
            hidden=torch.cat([text_embeds, text_embeds[other_text], text_embeds, masked_embeds]),
            attention_mask=torch.cat([atts, atts[other_text], atts, atts]),
            memory=bert.project(image_embeds),
            memory_index=torch.cat([own, own, other_image, own]),
        )  # [4B, L, D]

        # ITM: one positive and two negatives per pair.
        loss_itm, itm_acc = losses.itm_loss(self.itm_head(fused[: 3 * batch, 0]).float(), batch)

        # MLM: vocabulary logits at the masked positions only.
        hidden = fused[3 * batch :].flatten(0, 1).index_select(0, targets)  # [N, D]
        logits = self.text_encoder.cls(hidden).float()  # [N, V]
        loss_mlm = losses.mlm_loss(logits, labels.flatten().index_select(0, targets))

        return {
            'loss_mlm': loss_mlm,
            'loss_itc': loss_itc,
            'loss_itm': loss_itm,
            'image_feat': image_feat.detach(),
            'text_feat': text_feat.detach(),
            'itm_acc': itm_acc,
        }

    def features(self, image_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized features of the [CLS] tokens, in float32: [B, P, Dv], [B, L, D] -> two of [B, E]."""
        image_feat = F.normalize(self.vision_proj(image_embeds[:, 0]).float(), dim=-1)
        text_feat = F.normalize(self.text_proj(text_embeds[:, 0]).float(), dim=-1)
        return image_feat, text_feat

    def excluded_pairs(self, input_ids: Tensor, image_key: Tensor | None) -> Tensor:
        """Pairs that cannot be negatives: [B, B] bool; officially only the own pair."""
        keys = [] if not self.exclude_equal_negatives else [k for k in (input_ids, image_key) if k is not None]
        return losses.negative_mask(input_ids, *keys)

    def mask_tokens(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the tokens that MLM predicts: [B, L] -> (masked_ids, labels), both [B, L]; labels are -100 elsewhere.

        Every token but [PAD] and [CLS] is a target with `mlm_probability`; of the targets 80 % become [MASK], 10 % a
        random token of the whole vocabulary, and 10 % stay. Draws from torch's default generator of the ids' device.
        """
        draw = torch.rand(input_ids.shape, device=input_ids.device)
        is_target = (draw < self.mlm_probability) & (input_ids != self.pad) & (input_ids != self.cls)
        labels = input_ids.masked_fill(~is_target, -100)
        draw = torch.rand(input_ids.shape, device=input_ids.device)
        masked_ids = input_ids.masked_fill(is_target & (draw < 0.8), self.mask)
        random_tokens = torch.randint_like(input_ids, self.bert_config.vocab_size)
        return torch.where(is_target & (draw >= 0.9), random_tokens, masked_ids), labels
