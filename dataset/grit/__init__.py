"""GRIT, grouped mini-batch sampling (arXiv 2208.04060): the paper's method.

While an epoch trains, `GritCollector` collects features in queues; full queues are grouped into chains of similar
examples (`group_queue`); `EpochPlan` turns the chains into the next epoch's mini-batches.
"""

from dataset.grit.grouping import group_by_similarity, group_queue

__all__ = ['group_by_similarity', 'group_queue']
