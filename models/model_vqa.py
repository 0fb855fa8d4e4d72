"""Visual question answering: an encoder reads a question and its image, a decoder generates the answer (ALBEF).

Legend: B questions, N answers of all questions, P image tokens, S question tokens, L answer tokens, D width, V
vocabulary, T target tokens, A answers in the list, R resolution.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import answer_ranking
from models.bert_layers import BertConfig, require_fusion_layers
from models.inputs import SpecialTokens, TokenBatch
from models.momentum import MomentumModel
from models.vit import create_vit
from models.xbert import create_bert


class VQAModel(MomentumModel):
    """An image encoder, a question encoder that reads the image, and a causal answer decoder that reads the question.

    config: see `create_model`. tokenizer: `pad_token_id` is read. With `distill` the model has a momentum copy of each
    part, which gives soft targets.
    """

    COPIED = ('visual_encoder', 'text_encoder', 'text_decoder')

    def __init__(self, config: Mapping[str, Any], tokenizer: SpecialTokens):
        super().__init__()
        self.bert_config = BertConfig.from_mapping(config['bert_config'])
        require_fusion_layers(
            self.bert_config,
            'the answer decoder has as many layers as the text encoder has from fusion_layer on',
        )
        self.pad = tokenizer.pad_token_id
        self.distill, self.momentum = config['distill'], config['momentum']
        self.rank_first_token_once = config['rank_first_token_once']

        self.visual_encoder, self.text_encoder, self.text_decoder = self._parts(config)
        self.visual_encoder.set_grad_checkpointing(config['grad_checkpointing'])
        self.text_encoder.grad_checkpointing = self.text_decoder.bert.grad_checkpointing = config['grad_checkpointing']
        if self.distill:
            self.visual_encoder_m, self.text_encoder_m, self.text_decoder_m = self._parts(config)
            self.copy_momentum()

    def _parts(self, config: Mapping[str, Any]) -> tuple[nn.Module, nn.Module, nn.Module]:
        bert = self.bert_config
        layers = bert.num_hidden_layers - bert.fusion_layer
        decoder = replace(bert, num_hidden_layers=layers, fusion_layer=0, encoder_width=bert.hidden_size)
        return create_vit(config['image_res'], config['vit']), create_bert(bert), create_bert(decoder, head=True)

    def forward(
        self, image: Tensor, question: TokenBatch, answer: TokenBatch, k: Tensor, weights: Tensor, alpha: float = 0.0
    ) -> Tensor:
        """The loss of one batch: the sum of each answer's token losses, weighted, divided by the number of questions.

        image: [B, 3, R, R]. question: `input_ids` and `attention_mask`, both [B, S]. answer: the same for the answers
        of all questions, [N, L]. k: [B], the number of answers of each question. weights: [N]. alpha: with `distill`,
        the weight of the cross entropy with the momentum model's prediction.
        """
        labels = answer.input_ids[:, 1:]  # [N, L-1]
        is_target = labels != self.pad
        targets = is_target.flatten().nonzero()[:, 0]  # [T]; waits for the device, so before its work is queued
        k = torch.as_tensor(k, device=image.device)
        question_index = torch.arange(len(image), device=image.device).repeat_interleave(
            k, output_size=len(labels)
        )  # [N]
        inputs = image, question, answer, question_index, targets

        logits = self.target_logits(*inputs, self.visual_encoder, self.text_encoder, self.text_decoder)  # [T, V]
        loss = F.cross_entropy(logits, labels.flatten().index_select(0, targets), reduction='none')  # [T]
        if self.distill:
            with torch.no_grad():
                self.update_momentum()
                teacher = self.target_logits(*inputs, self.visual_encoder_m, self.text_encoder_m, self.text_decoder_m)
            loss = (1 - alpha) * loss + alpha * F.cross_entropy(logits, teacher.softmax(dim=1), reduction='none')
        weights = weights.to(loss.device, torch.float32).index_select(0, targets // labels.shape[1])  # [T]
        return (loss * weights).sum() / len(image)

    def target_logits(
        self,
        image: Tensor,
        question: TokenBatch,
        answer: TokenBatch,
        question_index: Tensor,
        targets: Tensor,
        visual_encoder: nn.Module,
        text_encoder: nn.Module,
        text_decoder: nn.Module,
    ) -> Tensor:
        """Vocabulary logits of the target tokens of the answers: [T, V], in float32.

        question_index: [N], the question of each answer. targets: [T], flat positions in [N, L-1], the tokens after the
        first.
        """
        states = read_question(visual_encoder, text_encoder, image, question)  # [B, S, D]
        hidden = text_decoder.bert(
            answer.input_ids[:, :-1],
            answer.attention_mask[:, :-1],
            causal=True,
            memory=text_decoder.bert.project(states),
            memory_index=question_index,
            memory_mask=question.attention_mask,
        )  # [N, L-1, D]
        return text_decoder.logits_at(targets, hidden)

    @torch.no_grad()
    def rank_answers(self, image: Tensor, question: TokenBatch, answers: TokenBatch, k: int) -> tuple[Tensor, Tensor]:
        """The k best answers of a list for each question: (ids [B, k], probabilities [B, k]), best first.

        answers: the list, `input_ids` and `attention_mask`, both [A, L]. See `answer_ranking.rank_answers`.
        """
        states = read_question(self.visual_encoder, self.text_encoder, image, question)
        return answer_ranking.rank_answers(
            self.text_decoder, states, question.attention_mask, answers, k, self.pad, self.rank_first_token_once
        )


def read_question(visual_encoder: nn.Module, text_encoder: nn.Module, image: Tensor, question: TokenBatch) -> Tensor:
    """The states of a question after it attends to its image: [B, 3, R, R], [B, S] -> [B, S, D]."""
    image_embeds = visual_encoder(image)  # [B, P, Dv]
    return text_encoder(question.input_ids, question.attention_mask, memory=text_encoder.project(image_embeds))
