"""The losses of pre-training and fine-tuning as pure functions of tensors.

Legend: B batch, C candidates, E embedding, N masked positions, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def feature(embeds: Tensor, projection: nn.Module) -> Tensor:
    """The normalized feature of the [CLS] token, in float32: [B, L, D] -> [B, E]."""
    return F.normalize(projection(embeds[:, 0]).float(), dim=-1)


def similarities(image_feat: Tensor, text_feat: Tensor, temp: Tensor | float) -> tuple[Tensor, Tensor]:
    """In-batch similarities in both directions; each side is compared with the *detached* features of the other.

    image_feat, text_feat: [B, E], normalized. Returns sim_i2t, sim_t2i, both [B, B], divided by the temperature, in
    float32 also under autocast.
    """
    return scaled_products(image_feat, text_feat.detach(), temp), scaled_products(text_feat, image_feat.detach(), temp)


def scaled_products(queries: Tensor, candidates: Tensor, temp: Tensor | float) -> Tensor:
    """Similarities of [B, E] and [C, E] divided by the temperature: [B, C], in float32 also under autocast."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ candidates.t() / temp


def same_image_targets(idx: Tensor, candidate_idx: Tensor) -> Tensor:
    """The target distribution of each row, uniform over the candidates with its image: [B], [C] -> [B, C]."""
    positive = (idx[:, None] == candidate_idx[None]).float()
    return positive / positive.sum(dim=1, keepdim=True)


def itc_targets(size: tuple[int, int], other: Tensor, found: Tensor, smoothing: float = 0.0) -> Tensor:
    """The target distributions of ITC with further positives, or smoothed: size (B, C) -> [B, C].

    other: [B] int64. found: [B] bool. The positives of row i are candidate i and, if found[i], candidate other[i]; they
    weigh alike. smoothing: the weight of the uniform distribution over all candidates that is mixed in (MAFA, arXiv
    2312.06112).
    """
    positive = torch.eye(*size, device=other.device).scatter_add(1, other[:, None], found.float()[:, None])
    targets = positive / positive.sum(dim=1, keepdim=True)
    return (1 - smoothing) * targets + smoothing / size[1]


def contrastive_loss(sim_i2t: Tensor, sim_t2i: Tensor) -> Tensor:
    """ITC: cross entropy over the candidates of each row, averaged over both directions; row i belongs to candidate i.

    sim_i2t, sim_t2i: [B, C].
    """
    targets = torch.arange(len(sim_i2t), device=sim_i2t.device)
    return (F.cross_entropy(sim_i2t, targets) + F.cross_entropy(sim_t2i, targets)) / 2


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of -sum target x log softmax(logits); both [B, C]."""
    return -(F.log_softmax(logits, dim=1) * target).sum(dim=1).mean()


def consistency_loss(sim_i2t: Tensor, sim_t2i: Tensor) -> Tensor:
    """GRIT-VLP's consistency: an image's distribution over the texts should agree with its text's over the images.

    sim_i2t, sim_t2i: [B, B]. Each distribution is the other's (detached) target; the average of both directions.
    """
    target_i2t = F.softmax(sim_t2i.detach(), dim=1)
    target_t2i = F.softmax(sim_i2t.detach(), dim=1)
    return (soft_cross_entropy(sim_i2t, target_i2t) + soft_cross_entropy(sim_t2i, target_t2i)) / 2


def itm_loss(logits: Tensor, is_match: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """ITM: cross entropy of (no match, match), and the share of correct predictions.

    logits: [R, 2]. is_match: [R] bool. counted: [R] float, 0 for rows that do not count.
    """
    is_match = is_match.long()
    correct = logits.detach().argmax(dim=1) == is_match
    if counted is None:
        return F.cross_entropy(logits, is_match), correct.float().mean()
    loss = F.cross_entropy(logits, is_match, reduction='none') * counted
    return loss.sum() / counted.sum(), (correct * counted).sum() / counted.sum()


def mlm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """MLM: mean cross entropy over the masked positions; 0, with a gradient of 0, if there are none.

    logits: [N, V]. labels: [N].
    """
    return F.cross_entropy(logits, labels, reduction='sum') / max(len(labels), 1)


def distilled_mlm_loss(logits: Tensor, labels: Tensor, logits_m: Tensor, alpha: float) -> Tensor:
    """ALBEF: the loss of MLM, mixed with the cross entropy of the momentum model's prediction, which weighs `alpha`.

    logits, logits_m: [N, V]. labels: [N].
    """
    loss = F.cross_entropy(logits, logits_m.softmax(dim=1), reduction='sum') / max(len(labels), 1)
    return (1 - alpha) * mlm_loss(logits, labels) + alpha * loss


def negative_mask(batch: Tensor, *keys: Tensor) -> Tensor:
    """Pairs that may not be negatives: [B, B] bool, True on the diagonal and where a row of any key is equal.

    batch: [B, ...]. keys: [B] or [B, L] tensors, such as image identities or token ids. A row without any negative left
    excludes only its own pair.
    """
    own = torch.eye(batch.shape[0], dtype=torch.bool, device=batch.device)
    excluded = own
    for key in keys:
        key = key.reshape(len(key), -1)
        excluded = excluded | (key[:, None] == key[None]).all(dim=2)
    return torch.where(excluded.all(dim=1, keepdim=True), own, excluded)


def hardest_negatives(sim: Tensor, excluded: Tensor) -> Tensor:
    """GRIT-VLP: for each row the most similar candidate that is not excluded: [B, C] -> [B] int64.

    It reads raw similarities: softmax keeps the order but underflows to ties at low temperature.
    """
    return sim.masked_fill(excluded, -torch.inf).argmax(dim=1)


def sampled_negatives(sim: Tensor, excluded: Tensor, strength: Tensor | float = 1.0) -> Tensor:
    """For each row a candidate drawn with probability softmax(strength x sim) among those not excluded: [B, C] -> [B].

    strength: 1 is ALBEF's sampling, 0 draws every candidate alike, and a large one the most similar candidate.
    """
    return draw((strength * sim).masked_fill(excluded, -torch.inf).softmax(dim=1))


def draw(probability: Tensor) -> Tensor:
    """One candidate for each row by its probability: [B, C] -> [B] int64.

    The same draw as torch.multinomial's, without its check of the input, for which the host waits for the device.
    """
    return (probability / torch.empty_like(probability).exponential_()).argmax(dim=1)
