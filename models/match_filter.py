"""A frozen model that looks at the negatives of ITM: which of them are in truth matches (MAFA, arXiv 2312.06112).

Legend: B pairs, L tokens, R resolution, K pairs to look at.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.inputs import TokenBatch
from models.model_retrieval import RetrievalModel
from models.pretrained import build, read_pretrained
from models.tokenization_bert import fingerprint
from utils.errors import InputError, MissingFileError

MATCH, DOUBTFUL = 0.8, 0.5


class MatchFilter:
    """Judges pairs by the ITM head of a frozen model, which belongs to no optimizer and no checkpoint.

    With p, the probability of "match": a pair matches if p > 0.8; it is doubtful if 0.5 < p <= 0.8; else it does not.
    """

    def __init__(self, model: RetrievalModel):
        self.model = model.eval().requires_grad_(False)

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
        text_embeds, atts = model.encode_text(text.input_ids, text.attention_mask)[0], text.attention_mask
        fused = model.text_encoder(
            mode='fusion',
            first_only=True,
            hidden=text_embeds[texts],
            attention_mask=atts[texts],
            memory=model.text_encoder.project(image_embeds),
            memory_index=images,
        )  # [K, 1, D]
        return model.itm_head(fused[:, 0]).float().softmax(dim=1)[:, 1]


def load_filter(config: Mapping[str, Any], tokenizer: Any, device: torch.device) -> MatchFilter | None:
    """The filter that `false_negative_filter` names, on `device`; None if it names none.

    It is a checkpoint of pre-training or retrieval. Its image encoder reads the images of this run, at their
    resolution. InputError if the checkpoint is of another task or has another vocabulary.
    """
    key, source = 'false_negative_filter', config['false_negative_filter']
    if source is None:
        return None
    try:
        pretrained = read_pretrained(source, overrides=[f'image_res={config["image_res"]}'])
    except MissingFileError as error:
        raise MissingFileError(f'{key}: {error}') from None
    except InputError as error:
        raise InputError(
            f'{key}: {error} (`python -m models.convert` writes a folder that has configuration and vocabulary)'
        ) from None
    if pretrained.task not in ('pretrain', 'retrieval'):
        raise InputError(f'{key} {source} is a checkpoint of {pretrained.task}; give one of retrieval or pre-training')
    if fingerprint(pretrained.tokenizer) != fingerprint(tokenizer):
        raise InputError(
            f'{key} {source} has another vocabulary than this run; give a checkpoint that was trained with the same '
            '--text_encoder'
        )
    return MatchFilter(build(pretrained).to(device))
