"""The training steps as the official program does them: what the benchmarks compare with, and oracles of the tests.

Each function computes the losses of a model of this repository, from the same weights, without what makes ours fast:

- attention is without fused kernels, as there, and keys and values are projected for every row (`plain_layers`);
- the clean and the masked text are two passes; ITM fuses the pairs in one pass and both kinds of negatives in another;
- vocabulary logits are computed at all positions, and the loss ignores those without a label;
- every token goes through the last layer; AdamW is torch's default; momentum copies are updated one by one.

The model chooses negatives and masked tokens, so that both ways have the same.

Legend: B pairs, L tokens, D width of the text, E embedding, R resolution, V vocabulary, C candidates of ITC, S question
tokens, N answers of all questions.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain_layers import as_mask, decode, encode_image, encode_text, feature, fuse, run_layers
from models import losses
from models.inputs import TokenBatch
from optim import parameter_groups


def plain_optimizer(settings: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the settings of `optim.create_optimizer`, in the implementation that torch chooses by default."""
    groups = parameter_groups(model, float(settings['weight_decay']), settings.get('no_decay') or ())
    betas, eps = tuple(settings.get('betas', (0.9, 0.999))), float(settings.get('eps', 1e-8))
    return torch.optim.AdamW(groups, lr=float(settings['lr']), betas=betas, eps=eps)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(F.log_softmax(logits, dim=1) * target).sum(dim=1).mean()


@torch.no_grad()
def update_momentum(model: nn.Module) -> None:
    """copy = m * copy + (1 - m) * part, one parameter after another."""
    for part, copy in model.momentum_pairs():
        for parameter, average in zip(part.parameters(), copy.parameters(), strict=True):
            average.data = average.data * model.momentum + parameter.data * (1 - model.momentum)


def products(queries: Tensor, candidates: Tensor, temp: Tensor) -> Tensor:
    """Similarities by the temperature, in float32 also under autocast: [B, E], [C, E] -> [B, C]."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ candidates.t() / temp


def pretrain(model: nn.Module, image: Tensor, text: TokenBatch) -> dict[str, Tensor]:
    """The losses of `models.model_pretrain` without momentum and filter: image [B, 3, R, R], text [B, L]."""
    with torch.no_grad():
        model.temp.clamp_(0.001, 0.5)
    bert, atts = model.text_encoder.bert, text.attention_mask
    masked_ids, labels = model.mask_tokens(text.input_ids)
    image_embeds = encode_image(model.visual_encoder, image)
    text_embeds = encode_text(bert, text.input_ids, atts)
    masked_embeds = encode_text(bert, masked_ids, atts)

    # ITC and consistency.
    image_feat, text_feat = feature(image_embeds, model.vision_proj), feature(text_embeds, model.text_proj)
    sim_i2t = products(image_feat, text_feat.detach(), model.temp)  # [B, B]
    sim_t2i = products(text_feat, image_feat.detach(), model.temp)
    one_hot = torch.eye(len(image), device=image.device)
    loss_itc = (soft_cross_entropy(sim_i2t, one_hot) + soft_cross_entropy(sim_t2i, one_hot)) / 2
    consistency = soft_cross_entropy(sim_i2t, sim_t2i.detach().softmax(dim=1))
    consistency = (consistency + soft_cross_entropy(sim_t2i, sim_i2t.detach().softmax(dim=1))) / 2
    loss_itc = loss_itc + model.consistency_weight * consistency

    # ITM: the pair, its image with another text, its text with another image.
    pairs = model.choose_negatives(image, text, (sim_i2t.detach(), sim_t2i.detach()), None)
    other_text, other_image = pairs.texts[: len(image)], pairs.images[len(image) :]
    loss_itm = itm_loss(model, bert, (text_embeds, atts, image_embeds), other_text, other_image)

    # MLM: vocabulary logits at every position.
    logits = model.text_encoder.cls(fuse(bert, masked_embeds, atts, image_embeds)).float()  # [B, L, V]
    loss_mlm = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    return {'loss_mlm': loss_mlm, 'loss_itc': loss_itc, 'loss_itm': loss_itm}


def itm_loss(
    model: nn.Module, bert: nn.Module, encoded: tuple[Tensor, Tensor, Tensor], other_text: Tensor, other_image: Tensor
) -> Tensor:
    """ITM in two passes: the B pairs; the texts with other images and other texts with the images, 2B.

    encoded: of the pairs, text [B, L, D], its mask [B, L], image [B, P, Dv]. other_text, other_image: negatives [B].
    """
    text, atts, image = encoded
    pairs = fuse(bert, text, atts, image)[:, 0]
    negatives = fuse(
        bert,
        torch.cat([text, text[other_text]]),
        torch.cat([atts, atts[other_text]]),
        torch.cat([image[other_image], image]),
    )[:, 0]
    logits = model.itm_head(torch.cat([pairs, negatives])).float()  # [3B, 2]
    return F.cross_entropy(logits, match_labels(len(text), text.device))


def match_labels(batch: int, device: torch.device) -> Tensor:
    """1 for B pairs, 0 for two negatives of each: [3B]."""
    return torch.cat([torch.ones(batch, dtype=torch.int64), torch.zeros(2 * batch, dtype=torch.int64)]).to(device)


def retrieval(model: nn.Module, image: Tensor, text: TokenBatch, idx: Tensor, alpha: float = 0.0) -> dict[str, Tensor]:
    """The losses of `models.model_retrieval` with momentum: image [B, 3, R, R], text [B, L], idx [B].

    Every pair must have a negative.
    """
    bert, atts = model.text_encoder, text.attention_mask
    image_embeds, text_embeds = encode_image(model.visual_encoder, image), encode_text(bert, text.input_ids, atts)
    image_feat, text_feat = feature(image_embeds, model.vision_proj), feature(text_embeds, model.text_proj)

    # ITC: candidates are the momentum features of the batch and of the queue.
    with torch.no_grad():
        update_momentum(model)
        image_feat_m = feature(encode_image(model.visual_encoder_m, image), model.vision_proj_m)
        text_feat_m = feature(encode_text(model.text_encoder_m, text.input_ids, atts), model.text_proj_m)
        images = torch.cat([image_feat_m, model.image_queue.t()])  # [C, E]
        texts = torch.cat([text_feat_m, model.text_queue.t()])
        positive = (idx[:, None] == torch.cat([idx, model.idx_queue[0]])[None]).float()  # [B, C]
        targets_i2t = targets_t2i = positive / positive.sum(dim=1, keepdim=True)
        if model.distill:
            predicted_i2t = products(image_feat_m, texts, model.temp).softmax(dim=1)
            predicted_t2i = products(text_feat_m, images, model.temp).softmax(dim=1)
            targets_i2t = alpha * predicted_i2t + (1 - alpha) * targets_i2t
            targets_t2i = alpha * predicted_t2i + (1 - alpha) * targets_t2i
    sim_i2t, sim_t2i = products(image_feat, texts, model.temp), products(text_feat, images, model.temp)  # [B, C]
    loss_itc = (soft_cross_entropy(sim_i2t, targets_i2t) + soft_cross_entropy(sim_t2i, targets_t2i)) / 2
    model.enqueue(image_feat_m, text_feat_m, idx)

    # ITM: the pair, its text with another image, its image with another text.
    other_image = sample_negatives(sim_t2i[:, : len(idx)], idx)
    other_text = sample_negatives(sim_i2t[:, : len(idx)], idx)
    loss_itm = itm_loss(model, bert, (text_embeds, atts, image_embeds), other_text, other_image)
    return {'loss_itc': loss_itc, 'loss_itm': loss_itm}


@torch.no_grad()
def sample_negatives(sim: Tensor, idx: Tensor) -> Tensor:
    """One candidate of another image for each row, by softmax(sim): [B, B], [B] -> [B]; draws as `losses.draw` does."""
    weights = sim.masked_fill(idx[:, None] == idx[None], -torch.inf).softmax(dim=1)
    return losses.draw(weights)


def nlvr(model: nn.Module, images: Tensor, text: TokenBatch, targets: Tensor, alpha: float = 0.0) -> dict[str, Tensor]:
    """The loss of `models.model_nlvr`: images [2B, 3, R, R], the left ones first, text [B, L], targets [B]."""
    logits = nlvr_logits(images, text, model.visual_encoder, model.text_encoder, model.cls_head)
    loss = F.cross_entropy(logits, targets)
    if model.distill:
        update_momentum(model)
        with torch.no_grad():
            copies = model.visual_encoder_m, model.text_encoder_m, model.cls_head_m
            predicted = nlvr_logits(images, text, *copies).softmax(dim=1)
        loss = (1 - alpha) * loss + alpha * soft_cross_entropy(logits, predicted)
    return {'loss': loss}


def nlvr_logits(images: Tensor, text: TokenBatch, vit: nn.Module, bert: nn.Module, head: nn.Module) -> Tensor:
    """All 2B images in one pass; every layer projects its image, the left or the right one: -> [B, 2]."""
    hidden = encode_text(bert, text.input_ids, text.attention_mask)
    first, second = ((part, None) for part in encode_image(vit, images).chunk(2))
    layers = bert.encoder.layer[bert.config.fusion_layer :]
    hidden = run_layers(layers, hidden, as_mask(text.attention_mask), [first, second] * (len(layers) // 2))
    return head(hidden[:, 0]).float()


def vqa(
    model: nn.Module,
    image: Tensor,
    question: TokenBatch,
    answer: TokenBatch,
    k: Tensor,
    weights: Tensor,
    alpha: float = 0.0,
) -> dict[str, Tensor]:
    """The loss of `models.model_vqa`: image [B, 3, R, R], question [B, S], answer [N, L], k [B], weights [N]."""
    inputs = image, question, answer, k
    logits = answer_logits(*inputs, model.visual_encoder, model.text_encoder, model.text_decoder)[:, :-1].flatten(0, 1)
    labels = answer.input_ids[:, 1:]
    labels = labels.masked_fill(labels == model.pad, -100)  # [N, L-1]
    loss = F.cross_entropy(logits, labels.flatten(), reduction='none', ignore_index=-100)  # [N * (L-1)]
    if model.distill:
        update_momentum(model)
        with torch.no_grad():
            copies = model.visual_encoder_m, model.text_encoder_m, model.text_decoder_m
            predicted = answer_logits(*inputs, *copies)[:, :-1].flatten(0, 1).softmax(dim=1)
        soft = -(F.log_softmax(logits, dim=1) * predicted).sum(dim=1).masked_fill(labels.flatten() == -100, 0)
        loss = (1 - alpha) * loss + alpha * soft
    return {'loss': (loss.view(labels.shape).sum(dim=1) * weights).sum() / len(image)}


def answer_logits(
    image: Tensor,
    question: TokenBatch,
    answer: TokenBatch,
    k: Tensor,
    vit: nn.Module,
    bert: nn.Module,
    decoder: nn.Module,
) -> Tensor:
    """Vocabulary logits after every token of every answer, whose question is repeated for it: [N, L, V], float32."""
    embeds = encode_text(bert, question.input_ids, question.attention_mask)
    states = fuse(bert, embeds, question.attention_mask, encode_image(vit, image))  # [B, S, D]
    rows = torch.arange(len(image), device=image.device).repeat_interleave(k)
    return decode(decoder, answer.input_ids, answer.attention_mask, states[rows], question.attention_mask[rows])


STEPS = {'pretrain': pretrain, 'retrieval': retrieval, 'nlvr': nlvr, 'vqa': vqa}
