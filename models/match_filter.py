"""A frozen model that predicts which negatives of ITM are matches in truth (MAFA, arXiv 2312.06112).

Legend: B pairs, L tokens, R resolution, K pairs.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.inputs import TokenBatch
from models.model_retrieval import RetrievalModel
from models.pretrained import IncompleteError, Pretrained, build, read_pretrained
from models.tokenization_bert import fingerprint
from models.weight_files import State
from utils.errors import InputError

MATCH, DOUBTFUL = 0.8, 0.5


class MatchFilter:
    """Predicts whether pairs match, by the ITM head of a frozen model, which no optimizer and no checkpoint has.

    digest: of its weights, by which a resumed run knows it.

    With p, the probability of "match": a pair matches if p > 0.8; it is doubtful if 0.5 < p <= 0.8; else it does not.
    """

    def __init__(self, model: RetrievalModel, digest: str = ''):
        self.model, self.digest = model.eval().requires_grad_(False), digest

    def __call__(self, image: Tensor, text: TokenBatch, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Which pairs of a batch match, and which are doubtful: two of [K] bool; arguments as for `probability`."""
        probability = self.probability(image, text, images, texts)
        is_match = probability > MATCH
        return is_match, (probability > DOUBTFUL) & ~is_match

    @torch.no_grad()
    def probability(self, image: Tensor, text: TokenBatch, images: Tensor, texts: Tensor) -> Tensor:
        """The probability that pairs match: [K].

        image: [B, 3, R, R]. text: [B, L]. images, texts: [K] int64, the image and the text of each pair in the batch.
        """
        model = self.model
        image_embeds = model.visual_encoder(image)
        atts = text.attention_mask
        text_embeds = model.text_encoder(text.input_ids, atts, mode='text')
        fused = model.text_encoder(
            mode='fusion',
            first_only=True,
            hidden=text_embeds[texts],
            attention_mask=atts[texts],
            memory=model.text_encoder.project(image_embeds),
            memory_index=images,
        )  # [K, 1, D]
        return model.itm_head(fused[:, 0]).float().softmax(dim=1)[:, 1]


def load_filter(config: Mapping[str, Any], tokenizer: Any, tokens: int, device: torch.device) -> MatchFilter | None:
    """The filter that `false_negative_filter` names, on `device`; None if it names none.

    It is a checkpoint of pre-training or retrieval. Its image encoder reads the images of this run, at their
    resolution. tokens: of the longest text. No random number is drawn. InputError if the checkpoint is of another task,
    has another vocabulary, or cannot read such a text.
    """
    key, source = 'false_negative_filter', config['false_negative_filter']
    if source is None:
        return None
    try:
        pretrained = read_pretrained(source, overrides=[f'image_res={config["image_res"]}'])
        _refuse_unfit(pretrained, tokenizer, tokens)
        with torch.random.fork_rng(devices=[]):  # it is built on the CPU
            return MatchFilter(build(pretrained).to(device), state_digest(pretrained.state))
    except IncompleteError:
        raise InputError(
            f'{key} {source}: it lacks its configuration or its vocabulary; write a folder that has both with `python '
            f'-m models.convert {source} FOLDER --config CONFIG --text_encoder NAME`, and give that'
        ) from None
    except InputError as error:
        raise type(error)(f'{key}: {error}') from None


def _refuse_unfit(pretrained: Pretrained, tokenizer: Any, tokens: int) -> None:
    """InputError if a checkpoint is of another task, has another vocabulary, or reads fewer tokens."""
    if pretrained.task not in ('pretrain', 'retrieval'):
        raise InputError(
            f'{pretrained.source} is a checkpoint of {pretrained.task}; give one of retrieval or pre-training'
        )
    if fingerprint(pretrained.tokenizer) != fingerprint(tokenizer):
        raise InputError(
            f'{pretrained.source} has another vocabulary than this run; give a checkpoint that was trained with the '
            'same --text_encoder'
        )
    longest = pretrained.config['bert_config'].get('max_position_embeddings', tokens)
    if longest < tokens:
        raise InputError(
            f'{pretrained.source} reads texts of at most {longest} tokens, and those of this run have up to {tokens}; '
            'give another checkpoint'
        )


def state_digest(state: State) -> str:
    """A digest of weights, in 16 letters."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
