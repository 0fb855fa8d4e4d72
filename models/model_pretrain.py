"""Pre-training: contrastive loss with consistency (ITC), image-text matching (ITM), masked language modeling (MLM).

Legend: B pairs, L tokens, P image tokens (1 + patches), Dv their width, D width of the text, E embedding, R resolution,
Q queue, C = B + Q candidates of ITC, N masked positions, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models import losses
from models.bert_layers import BertConfig, require_fusion_layers
from models.inputs import SpecialTokens, TokenBatch
from models.itm_negatives import ItmNegatives, of_epoch
from models.momentum import QueueModel
from models.vit import create_vit
from models.xbert import BertModel, create_bert

TEMP_RANGE = (0.001, 0.5)


class Teacher(NamedTuple):
    """What the momentum encoders computed for a batch, without gradients.

    image_embeds: [B, P, Dv]. masked_embeds: [B, L, D], of the masked texts. image_feat, text_feat: [B, E]. images,
    texts: [C, E], the candidates of ITC: these features, then the queue.
    """

    image_embeds: Tensor
    masked_embeds: Tensor
    image_feat: Tensor
    text_feat: Tensor
    images: Tensor
    texts: Tensor


class Pairs(NamedTuple):
    """ITM's pairs besides the own ones, 2B: each image with another text, then each text with another image.

    images, texts: [2B] int64, rows of the batch. is_match: [2B] bool, True if the filter found that a pair matches.
    """

    images: Tensor
    texts: Tensor
    is_match: Tensor


class PretrainModel(QueueModel):
    """ALBEF's encoders and heads with GRIT-VLP's losses (arXiv 2208.04060), or with all of ALBEF's (arXiv 2107.07651).

    config: see `create_model`. tokenizer: `pad_token_id`, `cls_token_id` and `mask_token_id` are read. With
    `use_momentum` momentum encoders and a queue of their features give ITC more candidates and, with alpha, ITC and MLM
    soft targets. `filter`: None, or a `models.match_filter.MatchFilter`, which finds matches among ITM's negatives.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: SpecialTokens):
        super().__init__()
        self.visual_encoder = create_vit(config['image_res'], config['vit'])
        self.bert_config = BertConfig.from_mapping(config['bert_config'])
        require_fusion_layers(self.bert_config, 'ITM and MLM read text and image together')
        self.text_encoder = create_bert(self.bert_config, head=True)
        width = self.bert_config.hidden_size
        self.vision_proj = nn.Linear(config['vision_width'], config['embed_dim'])
        self.text_proj = nn.Linear(width, config['embed_dim'])
        self.temp = nn.Parameter(torch.tensor(float(config['temp'])))
        self.itm_head = nn.Linear(width, 2)

        self.use_momentum, self.momentum = config['use_momentum'], config['momentum']
        if self.use_momentum:
            self.create_copies()
            self.create_queue(config['embed_dim'], config['itc_queue_size'] or config['queue_size'])
        self.pad, self.cls, self.mask = tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id
        self.mlm_probability = config['mlm_probability']
        self.consistency_weight, self.itc_smoothing = config['consistency_weight'], config['itc_smoothing']
        self.negatives = ItmNegatives(config['itm_negatives'], config['itm_target_accuracy'])
        self.exclude_equal_negatives = config['exclude_equal_negatives']
        self.filter = None
        self.visual_encoder.set_grad_checkpointing(config['grad_checkpointing'])
        self.text_encoder.bert.grad_checkpointing = config['grad_checkpointing']
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Use the policy of ITM's negatives and the smoothing of ITC's targets of an epoch."""
        self.negatives.begin_epoch(epoch)
        self.smoothing = of_epoch(self.itc_smoothing, epoch)

    def forward(
        self, image: Tensor, text: TokenBatch, image_key: Tensor | None = None, alpha: float = 0.0
    ) -> dict[str, Tensor]:
        """The losses of one batch; if gradients are enabled, momentum encoders and queue are updated.

        image: [B, 3, R, R]. text: `input_ids` and `attention_mask`, both [B, L]. image_key: [B] int64, equal if two
        pairs show the same image (read only with `exclude_equal_negatives`). alpha: with `use_momentum`, the weight of
        the momentum model's predictions in the targets. Returns loss_mlm, loss_itc (contrastive + weight x
        consistency), loss_itm; image_feat and text_feat [B, E], normalized and detached; itm_acc, the share of correct
        ITM predictions; pairs, see `Pairs`.
        """
        with torch.no_grad():
            self.temp.clamp_(*TEMP_RANGE)
        batch, own = len(image), torch.arange(len(image), device=image.device)
        bert, atts = self.text_encoder.bert, text.attention_mask
        masked_ids, labels = self.mask_tokens(text.input_ids)  # [B, L]
        targets = masked_positions(labels)  # [N]; waits for the device, so before its work is queued

        # Single modalities: the image; the clean and the masked text in one call.
        image_embeds = self.visual_encoder(image)  # [B, P, Dv]
        text_embeds, masked_embeds = encode_both(bert, text, masked_ids)  # [B, L, D]
        image_feat, text_feat = self.features(image_embeds, text_embeds)  # [B, E]
        teacher = self.teach(image, text, masked_ids) if self.use_momentum else None

        # Similarities, and the negatives of ITM: a text for each image, an image for each text.
        sims = self.similarities(image_feat, text_feat, teacher)  # image to text, text to image: [B, C]
        pairs = self.choose_negatives(image, text, sims, image_key)
        other_text, other_image = pairs.texts[:batch], pairs.images[batch:]  # [B]

        # ITC and consistency.
        loss_itc = self.itc_loss(sims, pairs, teacher, alpha)

        # Fusion of four pairs per image: the positive, the image with its negative text, the text with its negative
        # image, and the image with the masked text. A pair that the filter found to match is an example of MLM, too.
        mlm_texts, mlm_images, mlm_atts = own, own, atts
        if self.filter is not None:
            found = pairs.is_match.nonzero()[:, 0]
            mlm_texts, mlm_images = (torch.cat([own, x[found]]) for x in (pairs.texts, pairs.images))
            mlm_atts, labels, masked_embeds = atts[mlm_texts], labels[mlm_texts], masked_embeds[mlm_texts]
            targets = masked_positions(labels)
        of_itm, of_mlm = bert.fuse(
            hidden=torch.cat([text_embeds, text_embeds[other_text], text_embeds, masked_embeds]),
            attention_mask=torch.cat([atts, atts[other_text], atts, mlm_atts]),
            memory=bert.project(image_embeds),
            memory_index=torch.cat([own, own, other_image, mlm_images]),
            itm_rows=3 * batch,
        )  # [3B, 1, D], [B or more, L, D]

        # ITM: one positive and two negatives per pair.
        is_match = torch.cat([torch.ones_like(own, dtype=torch.bool), pairs.is_match])  # [3B]
        loss_itm, itm_acc = losses.itm_loss(self.itm_head(of_itm[:, 0]).float(), is_match)

        # MLM: vocabulary logits at the masked positions only.
        logits = self.text_encoder.logits_at(targets, of_mlm)  # [N, V]
        labels = labels.flatten().index_select(0, targets)  # [N]
        if teacher is None:
            loss_mlm = losses.mlm_loss(logits, labels)
        else:
            logits_m = self.teach_mlm(teacher, (mlm_texts, mlm_images), mlm_atts, targets)  # [N, V]
            loss_mlm = losses.distilled_mlm_loss(logits, labels, logits_m, alpha)

        return {
            'loss_mlm': loss_mlm,
            'loss_itc': loss_itc,
            'loss_itm': loss_itm,
            'image_feat': image_feat.detach(),
            'text_feat': text_feat.detach(),
            'itm_acc': itm_acc,
            'pairs': pairs,
        }

    # ---- ITC ----

    def features(self, image_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized features of the [CLS] tokens, in float32: [B, P, Dv], [B, L, D] -> two of [B, E]."""
        return losses.feature(image_embeds, self.vision_proj), losses.feature(text_embeds, self.text_proj)

    def teach(self, image: Tensor, text: TokenBatch, masked_ids: Tensor) -> Teacher:
        """Move the momentum encoders, encode the batch with them, and put its features into the queue.

        image: [B, 3, R, R]. text: [B, L]. masked_ids: [B, L].
        If gradients are disabled nothing is trained: encoders and queue stay as they are.
        """
        if torch.is_grad_enabled():
            self.update_momentum()
        with torch.no_grad():
            image_embeds = self.visual_encoder_m(image)
            text_embeds, masked_embeds = encode_both(self.text_encoder_m.bert, text, masked_ids)
            image_feat = losses.feature(image_embeds, self.vision_proj_m)
            text_feat = losses.feature(text_embeds, self.text_proj_m)
            images, texts = self.candidates(image_feat, text_feat)
        if torch.is_grad_enabled():
            self.enqueue(image_feat, text_feat)
        return Teacher(image_embeds, masked_embeds, image_feat, text_feat, images, texts)

    def similarities(self, image_feat: Tensor, text_feat: Tensor, teacher: Teacher | None) -> tuple[Tensor, Tensor]:
        """Of every image with the candidate texts, of every text with the candidate images: two of [B, C].

        The candidates are the detached features of the batch, or those of the momentum encoders and of the queue.
        """
        if teacher is None:
            return losses.similarities(image_feat, text_feat, self.temp)
        scaled = losses.scaled_products
        return scaled(image_feat, teacher.texts, self.temp), scaled(text_feat, teacher.images, self.temp)

    def itc_loss(self, sims: tuple[Tensor, Tensor], pairs: Pairs, teacher: Teacher | None, alpha: float) -> Tensor:
        """ITC with the consistency loss, [], of two of [B, C]. Targets are soft with momentum, filter or smoothing."""
        batch = len(sims[0])
        if teacher is None and self.filter is None and not self.smoothing:
            loss = losses.contrastive_loss(*sims)
        else:
            targets = self.itc_targets(sims[0].shape, pairs, teacher, alpha)
            loss = sum(losses.soft_cross_entropy(*both) for both in zip(sims, targets, strict=True)) / 2
        if self.consistency_weight:
            loss = loss + self.consistency_weight * losses.consistency_loss(*(sim[:, :batch] for sim in sims))
        return loss

    @torch.no_grad()
    def itc_targets(
        self, size: tuple[int, int], pairs: Pairs, teacher: Teacher | None, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """The target distributions of both directions: size (B, C) -> two of [B, C]."""
        batch = size[0]
        others, found = (pairs.texts[:batch], pairs.images[batch:]), pairs.is_match.chunk(2)
        first = losses.itc_targets(size, others[0], found[0], self.smoothing)
        second = first if self.filter is None else losses.itc_targets(size, others[1], found[1], self.smoothing)
        if teacher is None:
            return first, second
        feats_m = teacher.image_feat, teacher.text_feat
        return self.soft_targets((first, second), feats_m, (teacher.images, teacher.texts), alpha)

    # ---- ITM ----

    @torch.no_grad()
    def choose_negatives(
        self, image: Tensor, text: TokenBatch, sims: tuple[Tensor, Tensor], image_key: Tensor | None
    ) -> Pairs:
        """The pairs that ITM tells from the own ones. sims: two of [B, C]; the first B columns are the batch's.

        image: [B, 3, R, R]. text: [B, L]. image_key: [B]. The filter makes those that it finds to match positives, and
        the next choice replaces doubtful ones.
        """
        batch, own = len(image), torch.arange(len(image), device=image.device)
        sims = [sim[:, :batch] for sim in sims]
        excluded = self.excluded_pairs(text.input_ids, image_key)  # [B, B]
        other_text, other_image = (self.negatives.pick(sim, excluded) for sim in sims)  # [B]
        is_match = torch.zeros(2 * batch, dtype=torch.bool, device=image.device)
        if self.filter is not None:
            pairs = torch.cat([own, other_image]), torch.cat([other_text, own])
            is_match, is_doubtful = self.filter(image, text, *pairs)
            other_text, other_image = (
                self.negatives.next_choice(sim, excluded, other, doubtful)
                for sim, other, doubtful in zip(sims, (other_text, other_image), is_doubtful.chunk(2), strict=True)
            )
        return Pairs(torch.cat([own, other_image]), torch.cat([other_text, own]), is_match)

    def excluded_pairs(self, input_ids: Tensor, image_key: Tensor | None) -> Tensor:
        """Pairs that cannot be negatives: [B, B] bool; officially only the own pair."""
        keys = [] if not self.exclude_equal_negatives else [k for k in (input_ids, image_key) if k is not None]
        return losses.negative_mask(input_ids, *keys)

    # ---- MLM ----

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

    @torch.no_grad()
    def teach_mlm(self, teacher: Teacher, pairs: tuple[Tensor, Tensor], atts: Tensor, targets: Tensor) -> Tensor:
        """The momentum model's vocabulary logits of masked texts with images: [N, V].

        pairs: two of [M] int64, text and image of each. atts: [M, L]. targets: [N], see `masked_positions`.
        """
        texts, images = pairs
        bert = self.text_encoder_m.bert
        fused = bert(
            mode='fusion',
            hidden=teacher.masked_embeds[texts],
            attention_mask=atts,
            memory=bert.project(teacher.image_embeds),
            memory_index=images,
        )
        return self.text_encoder_m.logits_at(targets, fused)


def encode_both(bert: BertModel, text: TokenBatch, masked_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The clean and the masked texts, in one call: two of [B, L, D]."""
    ids = torch.cat([text.input_ids, masked_ids])
    clean, masked = bert(ids, text.attention_mask.repeat(2, 1), mode='text').chunk(2)
    return clean, masked


def masked_positions(labels: Tensor) -> Tensor:
    """The positions that MLM predicts, counted over all rows: labels [M, L], -100 elsewhere -> [N] int64."""
    return (labels != -100).flatten().nonzero()[:, 0]
