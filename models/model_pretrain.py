"""Pre-training: image-text contrast with consistency, image-text matching, masked language modelling.

Legend: B pairs, L tokens, P image tokens (1 + patches), D width, E embedding, N asked tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models import losses
from models.vit import create_vit
from models.xbert import BertConfig, create_bert

TEMP_RANGE = (0.001, 0.5)


class PretrainModel(nn.Module):
    """ALBEF's encoders and heads without its momentum copies, trained with GRIT-VLP's losses (arXiv 2208.04060).

    config: see `create_model`; tokenizer: its `pad_token_id`, `cls_token_id` and `mask_token_id` are read.
    """

    def __init__(self, config, tokenizer):
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
        self.itm_negatives = config['itm_negatives']
        self.exclude_equal_negatives = config['exclude_equal_negatives']
        self.visual_encoder.set_grad_checkpointing(config['grad_checkpointing'])
        self.text_encoder.bert.grad_checkpointing = config['grad_checkpointing']

    def forward(self, image, text, image_key=None):
        """The losses of one batch.

        image: [B, 3, R, R]; text: `input_ids` and `attention_mask`, both [B, L]; image_key: [B] int64, equal where two
        pairs show the same image (read only with `exclude_equal_negatives`). Returns a dict: loss_mlm, loss_itc
        (contrast + weight x consistency), loss_itm; image_feat and text_feat [B, E], normalised and detached; itm_acc,
        the share of right answers in matching.
        """
        with torch.no_grad():
            self.temp.clamp_(*TEMP_RANGE)
        batch = len(image)
        bert = self.text_encoder.bert
        masked_ids, labels = self.mask_tokens(text.input_ids)  # [B, L]
        asked = (labels != -100).flatten().nonzero()[:, 0]  # [N]; waits for the device, so before its work is queued

        # Each modality alone: the image, and the clean and the masked text in one call.
        image_embeds = self.visual_encoder(image)  # [B, P, Dv]
        both = bert(torch.cat([text.input_ids, masked_ids]), text.attention_mask.repeat(2, 1), mode='text')
        text_embeds, masked_embeds = both.chunk(2)  # [B, L, D]
        image_feat, text_feat = self.features(image_embeds, text_embeds)  # [B, E]

        # Contrast and consistency (ITC).
        sim_i2t, sim_t2i = losses.similarities(image_feat, text_feat, self.temp)  # [B, B]
        loss_itc = losses.contrastive_loss(sim_i2t, sim_t2i)
        if self.consistency_weight:
            loss_itc = loss_itc + self.consistency_weight * losses.consistency_loss(sim_i2t, sim_t2i)

        # Four rows of text for each image: its own, another image's hardest text, a text with its hardest image, the
        # masked.
        excluded = self.excluded_pairs(text.input_ids, image_key)
        with torch.no_grad():
            hard_text, hard_image = (
                self.pick_negatives(sim_i2t, excluded),
                self.pick_negatives(sim_t2i, excluded),
            )  # [B]
        own, atts = torch.arange(batch, device=image.device), text.attention_mask
        fused = bert(
            mode='fusion',
            hidden=torch.cat([text_embeds, text_embeds[hard_text], text_embeds, masked_embeds]),
            attention_mask=torch.cat([atts, atts[hard_text], atts, atts]),
            memory=bert.project(image_embeds),
            memory_index=torch.cat([own, own, hard_image, own]),
        )  # [4B, L, D]

        # Matching (ITM): one positive and two hard negatives a pair.
        matches = self.itm_head(fused[: 3 * batch, 0]).float()  # [3B, 2]
        is_match = (torch.arange(3 * batch, device=image.device) < batch).long()
        loss_itm = F.cross_entropy(matches, is_match)

        # Masked words (MLM), scored only where they are asked.
        hidden = fused[3 * batch :].flatten(0, 1).index_select(0, asked)  # [N, D]
        loss_mlm = losses.mlm_loss(self.text_encoder.cls(hidden).float(), labels.flatten().index_select(0, asked))

        return {
            'loss_mlm': loss_mlm,
            'loss_itc': loss_itc,
            'loss_itm': loss_itm,
            'image_feat': image_feat.detach(),
            'text_feat': text_feat.detach(),
            'itm_acc': (matches.detach().argmax(dim=1) == is_match).float().mean(),
        }

    def features(self, image_embeds, text_embeds):
        """Normalised features of the [CLS] tokens, in float32: [B, P, Dv], [B, L, D] -> two of [B, E]."""
        image_feat = F.normalize(self.vision_proj(image_embeds[:, 0]).float(), dim=-1)
        text_feat = F.normalize(self.text_proj(text_embeds[:, 0]).float(), dim=-1)
        return image_feat, text_feat

    def excluded_pairs(self, input_ids, image_key):
        """Pairs that cannot serve as negatives: [B, B] bool; only the own pair, as officially, unless configured
        otherwise.
        """
        keys = [] if not self.exclude_equal_negatives else [k for k in (input_ids, image_key) if k is not None]
        return losses.negative_mask(input_ids, *keys)

    def pick_negatives(self, sim, excluded):
        """One negative for each row of sim [B, B] -> [B]: the hardest (GRIT-VLP) or a sampled one (ALBEF)."""
        pick = losses.hardest_negatives if self.itm_negatives == 'hard' else losses.sampled_negatives
        return pick(sim, excluded)

    def mask_tokens(self, input_ids):
        """Draw the masked words: [B, L] -> (masked_ids, labels), labels -100 where nothing is asked.

        Every token but [PAD] and [CLS] is asked with `mlm_probability`; of those 80 % become [MASK], 10 % a random word
        of the whole vocabulary, and 10 % stay. Draws from torch's default generator of the ids' device.
        """
        draw = torch.rand(input_ids.shape, device=input_ids.device)
        asked = (draw < self.mlm_probability) & (input_ids != self.pad) & (input_ids != self.cls)
        labels = input_ids.masked_fill(~asked, -100)
        fate = torch.rand(input_ids.shape, device=input_ids.device)
        masked_ids = input_ids.masked_fill(asked & (fate < 0.8), self.mask)
        random_words = torch.randint_like(input_ids, self.bert_config.vocab_size)
        return torch.where(asked & (fate >= 0.9), random_words, masked_ids), labels
