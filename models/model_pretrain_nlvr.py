"""Text assignment: pre-training for two images. Which one does a caption describe: the first, the second, neither?

Legend: B pairs, L tokens, P image tokens (1 + patches), Dv their width, D width of the text, E embedding, R resolution.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import losses
from models.bert_layers import BertConfig, select_rows
from models.inputs import SpecialTokens, TokenBatch
from models.two_images import create_two_image_bert, project_pairs
from models.vit import create_vit
from utils.errors import InputError

FIRST, SECOND, NEITHER = range(3)
TEMP = 0.07  # of the images' similarities; it is not trained


class TextAssignmentModel(nn.Module):
    """ALBEF's encoders with doubled fusion layers, and a head with three classes.

    config: see `create_model`; tokenizer is not read. `temp`, `text_proj` and `vision_proj` come from pre-training and
    are not trained; they stay in the state dict, as officially.
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: SpecialTokens):
        super().__init__()
        self.visual_encoder = create_vit(config['image_res'], config['vit'])
        bert_config = BertConfig.from_mapping(config['bert_config'])
        self.text_encoder = create_two_image_bert(bert_config)
        self.vision_proj = nn.Linear(config['vision_width'], config['embed_dim']).requires_grad_(False)
        self.text_proj = nn.Linear(bert_config.hidden_size, config['embed_dim']).requires_grad_(False)
        self.temp = nn.Parameter(torch.tensor(TEMP), requires_grad=False)
        self.ta_head = nn.Linear(bert_config.hidden_size, 3)

        self.exclude_equal_negatives = config['exclude_equal_negatives']
        self.visual_encoder.set_grad_checkpointing(config['grad_checkpointing'])
        self.text_encoder.grad_checkpointing = config['grad_checkpointing']

    def forward(self, image: Tensor, text: TokenBatch, image_key: Tensor | None = None) -> Tensor:
        """The loss of one batch.

        image: [B, 3, R, R]. text: `input_ids` and `attention_mask`, both [B, L]. image_key: [B] int64, equal if two
        pairs show the same image (read only with `exclude_equal_negatives`).
        """
        image_embeds = self.visual_encoder(image)  # [B, P, Dv]
        weights = self.similarity_weights(image_embeds, text.input_ids, image_key)  # [B, B]
        first, second, labels = self.draw_assignment(weights)  # [B]

        def split(states: Tensor) -> tuple[Tensor, Tensor]:
            return select_rows(states, first), select_rows(states, second)

        memory = project_pairs(self.text_encoder, image_embeds, split)
        hidden = self.text_encoder(text.input_ids, text.attention_mask, memory=memory, first_only=True)  # [B, 1, D]
        return F.cross_entropy(self.ta_head(hidden[:, 0]).float(), labels)

    @torch.no_grad()
    def similarity_weights(self, image_embeds: Tensor, input_ids: Tensor, image_key: Tensor | None = None) -> Tensor:
        """How likely each image is a text's distractor: [B, P, Dv] -> [B, B]; the weight of the own image is 0."""
        feat = F.normalize(self.vision_proj(image_embeds[:, 0]).float(), dim=-1)  # [B, E]
        keys = [] if not self.exclude_equal_negatives else [k for k in (input_ids, image_key) if k is not None]
        sim, _ = losses.similarities(feat, feat, TEMP)
        return sim.softmax(dim=1).masked_fill(losses.negative_mask(feat, *keys), 0.0)

    @torch.no_grad()
    def draw_assignment(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the two images that each text is shown with.

        weights: [B, B], how likely the images (columns) are distractors of each text (row); its own never is. Returns
        (first, second, labels), each [B] int64. The three labels are equally likely: the own image is the first, the
        second, or neither; then both are distractors, the second drawn from the remaining images. Draws from torch's
        default generator of the weights' device. InputError below 3 pairs, where this is impossible.
        """
        batch = len(weights)
        if batch < 3:
            raise InputError(
                f'text assignment needs batches of at least 3 pairs, not {batch}: a caption is shown with two images '
                'of other pairs'
            )
        own = torch.arange(batch, device=weights.device)
        labels = torch.randint(3, (batch,), device=weights.device)
        # A race of exponential clocks with these rates: the order in which they ring is a draw without replacement.
        # Weights of 0 become the smallest positive number, so that every row has two distractors.
        race = weights.clamp(min=torch.finfo(weights.dtype).tiny) / torch.empty_like(weights).exponential_()
        distractor, another = race.fill_diagonal_(-1.0).topk(2, dim=1).indices.unbind(1)
        first = torch.where(labels == FIRST, own, distractor)
        second = torch.where(labels == SECOND, own, torch.where(labels == NEITHER, another, distractor))
        return first, second, labels
