"""The losses of pre-training and fine-tuning as pure functions of tensors.

Legend: B batch, C candidates, E embedding, N asked tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F


def similarities(image_feat, text_feat, temp):
    """In-batch similarities in both directions; each side is compared with the *detached* features of the other.

    image_feat, text_feat: [B, E], normalised. Returns sim_i2t, sim_t2i, each [B, B], divided by the temperature. In
    float32 also under autocast.
    """
    return scaled_products(image_feat, text_feat.detach(), temp), scaled_products(text_feat, image_feat.detach(), temp)


def scaled_products(queries, candidates, temp):
    """Similarities of features [B, E] and [C, E], divided by the temperature: [B, C], in float32 also under "
    "autocast."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ candidates.t() / temp


def same_image_targets(idx, candidate_idx):
    """The distribution wanted of each row, even over the candidates that show its image: [B], [C] -> [B, C]."""
    positive = (idx[:, None] == candidate_idx[None]).float()
    return positive / positive.sum(dim=1, keepdim=True)


def contrastive_loss(sim_i2t, sim_t2i, targets=None):
    """Cross entropy over the candidates of each row, averaged over both directions (ITC).

    sim_i2t, sim_t2i: [B, C]. targets: [B, C], the distribution wanted of each row; None = row i belongs to candidate i.
    """
    if targets is None:
        targets = torch.arange(len(sim_i2t), device=sim_i2t.device)
        return (F.cross_entropy(sim_i2t, targets) + F.cross_entropy(sim_t2i, targets)) / 2
    return (soft_cross_entropy(sim_i2t, targets) + soft_cross_entropy(sim_t2i, targets)) / 2


def soft_cross_entropy(logits, target):
    """Mean over rows of -sum target x log softmax(logits); both [B, C]."""
    return -(F.log_softmax(logits, dim=1) * target).sum(dim=1).mean()


def consistency_loss(sim_i2t, sim_t2i):
    """GRIT-VLP's consistency: what an image says about the batch's texts and what its text says about the batch's
    images should agree. Each of the two distributions [B, B] is the other's (detached) target; the average of both.
    """
    target_i2t = F.softmax(sim_t2i.detach(), dim=1)
    target_t2i = F.softmax(sim_i2t.detach(), dim=1)
    return (soft_cross_entropy(sim_i2t, target_i2t) + soft_cross_entropy(sim_t2i, target_t2i)) / 2


def mlm_loss(logits, labels):
    """Mean cross entropy over the asked tokens; 0, with a gradient of 0, where none was asked. logits [N, V], labels
    [N].
    """
    return F.cross_entropy(logits, labels, reduction='sum') / max(len(labels), 1)


def negative_mask(batch, *keys):
    """Which pairs may not serve as negatives: [B, B] bool, True on the diagonal and where a row of any key is equal.

    keys: [B] or [B, L] tensors, such as image identities or token ids. A row that would keep no negative at all keeps
    all but its own pair.
    """
    own = torch.eye(batch.shape[0], dtype=torch.bool, device=batch.device)
    excluded = own
    for key in keys:
        key = key.reshape(len(key), -1)
        excluded = excluded | (key[:, None] == key[None]).all(dim=2)
    return torch.where(excluded.all(dim=1, keepdim=True), own, excluded)


def hardest_negatives(sim, excluded):
    """For each row the most similar candidate that is not excluded: [B, C] -> [B] int64.

    Taken on raw similarities: softmax keeps the order but underflows to ties at low temperature.
    """
    return sim.masked_fill(excluded, -torch.inf).argmax(dim=1)


def sampled_negatives(sim, excluded):
    """For each row one candidate drawn with probability softmax(sim) among those not excluded (ALBEF): [B, C] -> "
    "[B]."""
    return torch.multinomial(sim.masked_fill(excluded, -torch.inf).softmax(dim=1), 1)[:, 0]
