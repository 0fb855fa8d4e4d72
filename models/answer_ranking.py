"""Rank the answers of a fixed list for each question with the answer decoder.

Legend: B questions, S question tokens, A answers in the list, k answers to return, L answer tokens, D width, V
vocabulary, c candidates of each question in a chunk, T target tokens, H heads, d = D / H.

Every answer begins with [CLS], so the decoder takes its first step once per question. Its log-probabilities of the
answers' first tokens select k candidates; these continue from the keys and values of the first step, and attend to keys
and values of the question that are projected once for all of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.inputs import TokenBatch
from models.xbert import BertModel, BertWithHead, PredictionHead
from utils.errors import InputError

CHUNK = 32  # candidates of a question that are scored together


@torch.no_grad()
def rank_answers(
    decoder: BertWithHead,
    states: Tensor,
    mask: Tensor,
    answers: TokenBatch,
    k: int,
    pad: int,
    first_token_once: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k best answers of each question, best first: (ids [B, k] int64, probabilities [B, k], which sum to 1).

    decoder: all of its layers attend to a memory. states, mask: [B, S, D] and [B, S], that memory. answers: the list,
    `input_ids` [A, L] padded with `pad` on the right. k: a shorter list is returned as a whole. An answer's score is
    the sum of the log-probabilities of its tokens; that of the first one counts twice, as in ALBEF, unless
    `first_token_once`. Ties go to the answer that comes first in the list.
    """
    ids, batch = answers.input_ids, len(states)
    if k < 1 or ids.shape[1] < 2 or (ids[:, 0] != ids[0, 0]).any():
        raise InputError('ranking needs k of at least 1, and answers of two tokens or more with the same first token')
    memory = decoder.bert.project(states)  # once for all steps and candidates
    past: list[tuple[Tensor, Tensor]] = []
    start = ids[:1, :1].expand(batch, 1)
    hidden = decoder.bert(start, torch.ones_like(start), memory=memory, memory_mask=mask, present=past)  # [B, 1, D]
    first_token = F.log_softmax(decoder.cls(hidden[:, 0]).float(), dim=1)  # [B, V]
    first, candidates = top_k(first_token.index_select(1, ids[:, 1]), k)  # [B, k]

    later = score_later_tokens(decoder.bert, decoder.cls, memory, mask, past, ids, candidates, pad)
    scores = later + (first if first_token_once else 2 * first)
    probabilities, order = top_k(scores.softmax(dim=1), k)
    return candidates.gather(1, order), probabilities


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and their columns, ties in order: [B, A] -> two of [B, min(k, A)]."""
    values, columns = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], columns[:, :k]


def score_later_tokens(
    bert: BertModel,
    head: PredictionHead,
    memory: list[tuple[Tensor, Tensor]],
    mask: Tensor,
    past: list[tuple[Tensor, Tensor]],
    ids: Tensor,
    candidates: Tensor,
    pad: int,
) -> Tensor:
    """Log-probabilities of the candidates' tokens after the first, summed: candidates [B, k] -> [B, k].

    past: keys and values of [CLS] in every layer, each [B, H, 1, d]. Candidates of similar length are scored together:
    most answers are one word, and would otherwise be padded to the longest.
    """
    lengths = (ids != pad).sum(dim=1)[candidates]  # [B, k]
    scores = torch.zeros(candidates.shape, device=ids.device)
    for columns in lengths.argsort(dim=1, stable=True).split(CHUNK, dim=1):
        longest = int(lengths.gather(1, columns).max())
        rows = ids[candidates.gather(1, columns).flatten(), 1:longest]  # [B*c, longest - 1]
        inputs, labels = rows[:, :-1], rows[:, 1:]
        targets = (labels != pad).flatten().nonzero()[:, 0]  # [T]
        if not len(targets):
            continue
        repeated = [tuple(part.repeat_interleave(columns.shape[1], dim=0) for part in layer) for layer in past]
        attended = torch.cat([torch.ones_like(inputs[:, :1]), inputs != pad], dim=1)  # [B*c, longest - 1], with [CLS]
        hidden = bert(inputs, attended, memory=memory, memory_mask=mask, causal=True, past=repeated)
        logits = head(hidden.flatten(0, 1).index_select(0, targets)).float()  # [T, V]
        of_token = -F.cross_entropy(logits, labels.flatten().index_select(0, targets), reduction='none')  # [T]
        sums = scores.new_zeros(len(rows)).index_add(0, targets // labels.shape[1], of_token)
        scores.scatter_(1, columns, sums.view(columns.shape))
    return scores
