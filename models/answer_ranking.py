"""Which answers of a fixed list fit a question best, according to the answer decoder.

Legend: B questions, S question tokens, A answers in the list, k answers kept, L answer tokens, D width, V vocabulary,
c candidates of each question in a chunk, T asked tokens.

Every answer begins with [CLS], so the first step of the decoder is one per question. Its scores of the answers' first
tokens pick k candidates; these go on from the first step's keys and values, and read keys and values of the question
that were projected once for all of them.
"""

import torch
import torch.nn.functional as F

from utils.errors import InputError

CHUNK = 32  # candidates of a question that are scored together


@torch.no_grad()
def rank_answers(decoder, states, mask, answers, k, pad, first_token_once=False):
    """The k best answers of each question, best first: (ids [B, k] int64, probabilities [B, k], which sum to 1).

    decoder: a BertWithHead all of whose layers read a memory. states, mask: [B, S, D] and [B, S], what it reads.
    answers: the list, `input_ids` [A, L] padded with `pad` on the right. k: of a shorter list all are kept. An answer's
    score is the sum of the log-probabilities of its tokens; that of the first one counts twice, as in ALBEF, unless
    `first_token_once`. Of equal scores the answer that comes first in the list is the better one.
    """
    ids, batch = answers.input_ids, len(states)
    if k < 1 or ids.shape[1] < 2 or (ids[:, 0] != ids[0, 0]).any():
        raise InputError(
            'ranking needs k of at least 1, and answers of two tokens or more that begin with the same one'
        )
    memory = decoder.bert.project(states)  # once for all steps and candidates
    past = []
    start = ids[:1, :1].expand(batch, 1)
    hidden = decoder.bert(start, torch.ones_like(start), memory=memory, memory_mask=mask, present=past)  # [B, 1, D]
    words = F.log_softmax(decoder.cls(hidden[:, 0]).float(), dim=1)  # [B, V]
    first, candidates = best(words.index_select(1, ids[:, 1]), k)  # [B, k]

    later = later_scores(decoder.bert, decoder.cls, memory, mask, past, ids, candidates, pad)
    scores = later + (first if first_token_once else 2 * first)
    probabilities, order = best(scores.softmax(dim=1), k)
    return candidates.gather(1, order), probabilities


def best(scores, k):
    """The k largest values of each row and their places; of equal values the earlier: [B, A] -> two of [B, min(k, "
    "A)]."""
    values, places = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], places[:, :k]


def later_scores(bert, head, memory, mask, past, ids, candidates, pad):
    """Log-probabilities of the candidates' tokens after the first, summed: candidates [B, k] -> [B, k].

    past: keys and values of [CLS] in every layer, each [B, H, 1, d]. Short candidates are scored together, and long
    ones: most answers are one word, and would else be padded to the longest.
    """
    lengths = (ids != pad).sum(dim=1)[candidates]  # [B, k]
    scores = torch.zeros(candidates.shape, device=ids.device)
    for columns in lengths.argsort(dim=1, stable=True).split(CHUNK, dim=1):
        longest = int(lengths.gather(1, columns).max())
        rows = ids[candidates.gather(1, columns).flatten(), 1:longest]  # [B*c, longest - 1]
        read, targets = rows[:, :-1], rows[:, 1:]
        asked = (targets != pad).flatten().nonzero()[:, 0]  # [T]
        if not len(asked):
            continue
        ours = [tuple(part.repeat_interleave(columns.shape[1], dim=0) for part in layer) for layer in past]
        seen = torch.cat([torch.ones_like(read[:, :1]), read != pad], dim=1)  # [B*c, longest - 1], [CLS] included
        hidden = bert(read, seen, memory=memory, memory_mask=mask, causal=True, past=ours)
        logits = head(hidden.flatten(0, 1).index_select(0, asked)).float()  # [T, V]
        of_token = -F.cross_entropy(logits, targets.flatten().index_select(0, asked), reduction='none')
        sums = scores.new_zeros(len(rows)).index_add(0, asked // targets.shape[1], of_token)
        scores.scatter_(1, columns, sums.view(columns.shape))
    return scores
