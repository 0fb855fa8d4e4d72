"""Metrics as pure functions of predictions: recall, NLVR2 and VQA accuracy. Imports neither `dataset` nor `models`."""

from evaluation.retrieval import retrieval_recall
from evaluation.vqa import vqa_accuracy

__all__ = ['retrieval_recall', 'vqa_accuracy']
