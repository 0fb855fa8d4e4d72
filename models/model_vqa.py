"""Visual question answering: a question is read over the image, and a decoder says its answer word by word (ALBEF).

Legend: B questions, N answers of all questions, P image tokens, S question tokens, L answer tokens, D width, V
vocabulary, T asked tokens, A answers in the list.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from models import answer_ranking
from models.momentum import copy_to_momentum, update_momentum
from models.vit import create_vit
from models.xbert import BertConfig, create_bert
from utils.errors import InputError


class VQAModel(nn.Module):
    """An image encoder, a question encoder that reads the image, and a causal answer decoder that reads the question.

    config: see `create_model`; tokenizer: its `pad_token_id` is read. With `distill` the model has a momentum copy of
    each part, a teacher for the loss.
    """

    def __init__(self, config, tokenizer):
        super().__init__()
        self.bert_config = BertConfig.from_mapping(config['bert_config'])
        if self.bert_config.fusion_layer == self.bert_config.num_hidden_layers:
            raise InputError(
                'bert_config: fusion_layer must be below num_hidden_layers: the answer decoder has as many '
                'layers as the text encoder has from fusion_layer on'
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

    def _parts(self, config):
        bert = self.bert_config
        decoder = replace(
            bert,
            num_hidden_layers=bert.num_hidden_layers - bert.fusion_layer,
            fusion_layer=0,
            encoder_width=bert.hidden_size,
        )
        return (create_vit(config['image_res'], config['vit']), create_bert(bert), create_bert(decoder, head=True))

    def momentum_pairs(self):
        """[(module, its momentum copy)]; none without `distill`."""
        names = ('visual_encoder', 'text_encoder', 'text_decoder') if self.distill else ()
        return [(getattr(self, name), getattr(self, f'{name}_m')) for name in names]

    def copy_momentum(self):
        """Take the momentum copies, where there are any, from the weights as they are now."""
        copy_to_momentum(self.momentum_pairs())

    def forward(self, image, question, answer, k, weights, alpha=0.0):
        """The loss of one batch: of each answer weight x the sum of its tokens' losses, divided by the number of
        questions.

        image: [B, 3, R, R]; question: `input_ids` and `attention_mask`, both [B, S]; answer: the same of all questions'
        answers, [N, L]; k: [B], how many answers each question has; weights: [N].
        alpha: with `distill`, how much of a token's loss is cross entropy with the momentum model's prediction.
        """
        targets = answer.input_ids[:, 1:]  # [N, L-1]
        asked = (
            (targets != self.pad).flatten().nonzero()[:, 0]
        )  # [T]; waits for the device, so before its work is queued
        asker = torch.arange(len(image), device=image.device).repeat_interleave(
            torch.as_tensor(k, device=image.device), output_size=len(targets)
        )  # [N]
        inputs = image, question, answer, asker, asked

        logits = self.answer_logits(*inputs, self.visual_encoder, self.text_encoder, self.text_decoder)  # [T, V]
        loss = F.cross_entropy(logits, targets.flatten().index_select(0, asked), reduction='none')  # [T]
        if self.distill:
            with torch.no_grad():
                update_momentum(self.momentum_pairs(), self.momentum)
                teacher = self.answer_logits(*inputs, self.visual_encoder_m, self.text_encoder_m, self.text_decoder_m)
            loss = (1 - alpha) * loss + alpha * F.cross_entropy(logits, teacher.softmax(dim=1), reduction='none')
        weights = weights.to(loss.device, torch.float32).index_select(0, asked // targets.shape[1])  # [T]
        return (loss * weights).sum() / len(image)

    def answer_logits(self, image, question, answer, asker, asked, visual_encoder, text_encoder, text_decoder):
        """Scores of all words for each asked token of the answers: [T, V], in float32.

        asker: [N], the question of each answer; asked: [T], flat places in [N, L-1], the tokens after the first.
        """
        states = read_question(visual_encoder, text_encoder, image, question)  # [B, S, D]
        hidden = text_decoder.bert(
            answer.input_ids[:, :-1],
            answer.attention_mask[:, :-1],
            causal=True,
            memory=text_decoder.bert.project(states),
            memory_index=asker,
            memory_mask=question.attention_mask,
        )  # [N, L-1, D]
        return text_decoder.cls(hidden.flatten(0, 1).index_select(0, asked)).float()

    @torch.no_grad()
    def rank_answers(self, image, question, answers, k):
        """The k best answers of a list for each question: (ids [B, k], probabilities [B, k]), best first.

        answers: the list, `input_ids` and `attention_mask`, both [A, L]. See `answer_ranking.rank_answers`.
        """
        states = read_question(self.visual_encoder, self.text_encoder, image, question)
        return answer_ranking.rank_answers(
            self.text_decoder, states, question.attention_mask, answers, k, self.pad, self.rank_first_token_once
        )


def read_question(visual_encoder, text_encoder, image, question):
    """The states of a question that was read over its image: [B, 3, R, R], [B, S] -> [B, S, D]."""
    image_embeds = visual_encoder(image)  # [B, P, Dv]
    return text_encoder(question.input_ids, question.attention_mask, memory=text_encoder.project(image_embeds))
