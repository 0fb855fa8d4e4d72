"""Image-text retrieval: ITC with a queue of momentum features, ITM against sampled negatives.

Legend: B pairs, L tokens, P image tokens (1 + patches), Dv their width, D width of the text, E embedding, R resolution,
Q queue, C = B + Q candidates, NI images, NT texts.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models import losses, rerank
from models.bert_layers import BertConfig
from models.inputs import SpecialTokens, TokenBatch
from models.momentum import QueueModel
from models.vit import create_vit
from models.xbert import create_bert


class RetrievalModel(QueueModel):
    """ALBEF's encoders and heads, fine-tuned to find the texts of an image and the images of a text.

    config: see `create_model`; tokenizer is not read. With `use_momentum` a queue of the momentum encoders' features
    adds candidates to ITC; the momentum encoders start as copies, until other weights are loaded.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: SpecialTokens):
        super().__init__()
        self.bert_config = BertConfig.from_mapping(config['bert_config'])
        self.visual_encoder, self.vision_proj, self.text_encoder, self.text_proj = self._encoders(config)
        self.temp = nn.Parameter(torch.tensor(float(config['temp'])))
        self.itm_head = nn.Linear(self.bert_config.hidden_size, 2)

        self.use_momentum, self.momentum = config['use_momentum'], config['momentum']
        self.distill = config['distill']
        if self.use_momentum:
            self.visual_encoder_m, self.vision_proj_m, self.text_encoder_m, self.text_proj_m = self._encoders(config)
            self.copy_momentum()
            self.create_queue(config['embed_dim'], config['queue_size'], with_idx=True)
        self.visual_encoder.set_grad_checkpointing(config['grad_checkpointing'])
        self.text_encoder.grad_checkpointing = config['grad_checkpointing']

    def _encoders(self, config: Mapping[str, Any]) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        return (
            create_vit(config['image_res'], config['vit']),
            nn.Linear(config['vision_width'], config['embed_dim']),
            create_bert(self.bert_config),
            nn.Linear(self.bert_config.hidden_size, config['embed_dim']),
        )

    def forward(self, image: Tensor, text: TokenBatch, idx: Tensor, alpha: float = 0.0) -> dict[str, Tensor]:
        """The losses of one batch; if gradients are enabled, momentum encoders and queue are updated.

        image: [B, 3, R, R]. text: `input_ids` and `attention_mask`, both [B, L]. idx: [B] int64, equal if two pairs
        show the same image. alpha: with `distill`, the weight of the momentum model's predictions in the targets.
        Returns loss_itc; loss_itm; itm_acc, the share of correct ITM predictions; no_negative, the number of pairs
        without a negative, because the whole batch shows their image.
        """
        image_embeds, image_feat = self.encode_image(image)  # [B, P, Dv], [B, E]
        text_embeds, text_feat = self.encode_text(text.input_ids, text.attention_mask)  # [B, L, D], [B, E]

        # ITC: each against the batch, with momentum also against features of earlier batches.
        if self.use_momentum:
            sims = self.momentum_similarities(image, text, image_feat, text_feat, idx, alpha)
        else:
            targets = losses.same_image_targets(idx, idx)  # [B, B]
            sims = *losses.similarities(image_feat, text_feat, self.temp), targets, targets
        sim_i2t, sim_t2i, targets_i2t, targets_t2i = sims  # all [B, C]
        loss_itc = (
            losses.soft_cross_entropy(sim_i2t, targets_i2t) + losses.soft_cross_entropy(sim_t2i, targets_t2i)
        ) / 2

        # ITM: each pair, its text with another image, and its image with another text.
        batch = len(idx)
        same_image = idx[:, None] == idx[None]  # [B, B]
        no_negative = same_image.all(dim=1)  # [B]: their draw is arbitrary and does not count in the loss
        excluded = same_image & ~no_negative[:, None]
        with torch.no_grad():
            other_image = losses.sampled_negatives(sim_t2i[:, :batch], excluded)  # [B]
            other_text = losses.sampled_negatives(sim_i2t[:, :batch], excluded)
        own, atts = torch.arange(batch, device=idx.device), text.attention_mask
        fused = self.text_encoder(
            mode='fusion',
            first_only=True,
            hidden=torch.cat([text_embeds, text_embeds, text_embeds[other_text]]),
            attention_mask=torch.cat([atts, atts, atts[other_text]]),
            memory=self.text_encoder.project(image_embeds),
            memory_index=torch.cat([own, other_image, own]),
        )  # [3B, 1, D]
        counted = torch.cat([torch.ones_like(no_negative), ~no_negative, ~no_negative]).float()  # [3B]
        is_match = torch.arange(3 * batch, device=idx.device) < batch
        loss_itm, itm_acc = losses.itm_loss(self.itm_head(fused[:, 0]).float(), is_match, counted)
        no_negative = no_negative.sum()
        return {'loss_itc': loss_itc, 'loss_itm': loss_itm, 'itm_acc': itm_acc, 'no_negative': no_negative}

    def momentum_similarities(
        self, image: Tensor, text: TokenBatch, image_feat: Tensor, text_feat: Tensor, idx: Tensor, alpha: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Similarities with the momentum features of the batch and of the queue, and their targets.

        Returns sim_i2t, sim_t2i, targets_i2t, targets_t2i, all [B, C]; the batch's own candidates are the first B.
        """
        if torch.is_grad_enabled():  # otherwise nothing is trained
            self.update_momentum()
        with torch.no_grad():
            image_feat_m = losses.feature(self.visual_encoder_m(image), self.vision_proj_m)  # [B, E]
            text_embeds_m = self.text_encoder_m(text.input_ids, text.attention_mask, mode='text')
            text_feat_m = losses.feature(text_embeds_m, self.text_proj_m)
            images, texts = self.candidates(image_feat_m, text_feat_m)  # [C, E]
            targets_i2t = targets_t2i = losses.same_image_targets(idx, torch.cat([idx, self.idx_queue[0]]))  # [B, C]
            if self.distill:
                targets_i2t, targets_t2i = self.soft_targets(
                    (targets_i2t, targets_t2i), (image_feat_m, text_feat_m), (images, texts), alpha
                )
        if torch.is_grad_enabled():
            self.enqueue(image_feat_m, text_feat_m, idx)
        return (
            losses.scaled_products(image_feat, texts, self.temp),
            losses.scaled_products(text_feat, images, self.temp),
            targets_i2t,
            targets_t2i,
        )

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, R, R] -> image_embeds [B, P, Dv], image_feat [B, E] normalized, in float32."""
        image_embeds = self.visual_encoder(image)
        return image_embeds, losses.feature(image_embeds, self.vision_proj)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Two of [B, L] -> text_embeds [B, L, D], text_feat [B, E] normalized, in float32."""
        text_embeds = self.text_encoder(input_ids, attention_mask, mode='text')
        return text_embeds, losses.feature(text_embeds, self.text_proj)

    def score_matrices(self, images: Iterable[Tensor], texts: Iterable[TokenBatch], k: int) -> tuple[Tensor, Tensor]:
        """ITM scores of the `k` best candidates by ITC of every image and of every text.

        images: iterable of batches [b, 3, R, R]. texts: iterable of batches [b, L].
        Returns (i2t [NI, NT], t2i [NT, NI]) on the CPU: the logit of "match", -100 where a pair was not scored.
        With several processes all have the same batches, and each scores its shard; see `models.rerank`, which
        `Retrieval.py` calls.
        """
        scores = rerank.score_split(self, rerank.shard(images), rerank.shard(texts), k)
        if not k:
            return torch.full_like(scores.i2t, rerank.NOT_SCORED), torch.full_like(scores.t2i, rerank.NOT_SCORED)
        return scores.i2t, scores.t2i
