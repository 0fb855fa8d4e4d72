"""BERT whose upper layers also attend to an image (or, in a decoder, to the states of a question).

Legend: R rows of text, L tokens, D width, H heads, d = D / H, V vocabulary;
B memories (images) of S states (1 + patches), each Dm wide.

The parameters have the names of Hugging Face's BERT, with `crossattention` added to the layers from `fusion_layer` on,
so that BERT, ALBEF and GRIT-VLP weights load as they are.

`BertModel.project` projects what the upper layers attend to *once* to keys and values, and `memory_index` gives the
memory of every row of text. A pre-training step has four rows of text per image; projecting the image again for each
row, as is usual, takes a seventh of all FLOPs.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.bert_layers import BertConfig, Embeddings, KeyValue, Layer, select_rows


class Encoder(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, i >= config.fusion_layer) for i in range(config.num_hidden_layers))


class BertModel(nn.Module):
    """The stack of layers: the first `fusion_layer` ones attend to text only, the others to text and a memory."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.grad_checkpointing = False

    def project(self, states: Tensor) -> list[KeyValue]:
        """Project B memories once for all layers that read them.

        states: [B, S, Dm], an image's patches or a question's tokens.
        Returns one (key, value) per fusion layer, each [B, H, S, d].
        """
        return [layer.crossattention.project(states) for layer in self.encoder.layer[self.config.fusion_layer :]]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mode: str = 'multi_modal',
        hidden: Tensor | None = None,
        memory: list[KeyValue] | None = None,
        memory_index: Tensor | None = None,
        memory_mask: Tensor | None = None,
        causal: bool = False,
        past: list[KeyValue] | None = None,
        present: list[KeyValue] | None = None,
        first_only: bool = False,
    ) -> Tensor:
        """Run the layers that `mode` names.

        input_ids: [R, L], required by 'text' and 'multi_modal'. hidden: [R, L, D], required by 'fusion'.
        attention_mask: [R, L], 1 = token, 0 = padding.
        mode: 'text' (the first layers), 'fusion' (the others, from `hidden`), 'multi_modal' (all).
        memory: the result of `project`. memory_index: [R], the memory that each row attends to; None = row r attends to
        memory r, or, with R = r x B rows, every r consecutive rows to the next memory. memory_mask: [B, S], 1 = token.
        causal: a token attends to itself and earlier ones only (decoder).
        past: for every layer (key, value) of T earlier tokens, each [R, H, T, d]; `hidden` continues them, and
        `attention_mask` [R, T + L] includes them. present: a list that receives what a later call can use as `past`.
        first_only: the last layer computes only the first token, the only one that ITM reads.
        Returns [R, L, D], with `first_only` [R, 1, D].
        """
        first, last = {
            'text': (0, self.config.fusion_layer),
            'fusion': (self.config.fusion_layer, self.config.num_hidden_layers),
            'multi_modal': (0, self.config.num_hidden_layers),
        }[mode]
        start = past[0][0].shape[2] if past is not None else 0  # T
        if hidden is None:
            hidden = self.embeddings(input_ids, start)
        mask = attention_mask[:, None, None].bool()  # [R, 1, 1, T + L]
        if causal:
            mask = mask & mask.new_ones(hidden.shape[1], mask.shape[3]).tril(start)  # [R, 1, L, T + L]
        if memory_mask is not None:
            memory_mask = memory_mask[:, None, None].bool()  # [B, 1, 1, S]
            if memory_index is not None:
                memory_mask = memory_mask.index_select(0, memory_index)

        for i in range(first, last):
            states = self.memory_of(i, memory, memory_index)
            arguments = hidden, mask, states, memory_mask, past and past[i - first], present
            hidden = self.run_layer(i, *arguments, first_only=first_only and i == last - 1)
        return hidden

    def fuse(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        memory: list[KeyValue],
        memory_index: Tensor,
        itm_rows: int,
    ) -> tuple[Tensor, Tensor]:
        """The fusion layers of R rows. ITM reads the first token of the first `itm_rows`, and no other token of them.

        hidden: [R, L, D]. attention_mask: [R, L]. memory_index: [R]. See `forward`. The last layer computes only what
        is read. Returns [itm_rows, 1, D] and, of the other rows, [R - itm_rows, L, D].
        """
        last = self.config.num_hidden_layers - 1
        mask = attention_mask[:, None, None].bool()  # [R, 1, 1, L]
        for i in range(self.config.fusion_layer, last):
            hidden = self.run_layer(i, hidden, mask, self.memory_of(i, memory, memory_index))
        sizes = [itm_rows, len(hidden) - itm_rows]
        of_itm, of_others = zip(hidden.split(sizes), mask.split(sizes), memory_index.split(sizes), strict=True)
        states, attended, index = of_itm
        itm = self.run_layer(last, states, attended, self.memory_of(last, memory, index), first_only=True)
        states, attended, index = of_others
        return itm, self.run_layer(last, states, attended, self.memory_of(last, memory, index))

    def memory_of(self, i: int, memory: list[KeyValue] | None, index: Tensor | None) -> KeyValue | None:
        """What layer i attends to besides the text, a row for each of `index` [R]; None in the text layers."""
        if i < self.config.fusion_layer:
            return None
        key, value = memory[i - self.config.fusion_layer]
        return (key, value) if index is None else (select_rows(key, index), select_rows(value, index))

    def run_layer(self, i: int, *arguments: Any, first_only: bool = False) -> Tensor:
        """Layer i; its activations are recomputed in the backward pass with `grad_checkpointing`."""
        layer = self.encoder.layer[i]
        if self.grad_checkpointing and self.training:
            return checkpoint(layer, *arguments, first_only=first_only, use_reentrant=False)
        return layer(*arguments, first_only=first_only)


class PredictionTransform(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(hidden)))


class Predictions(nn.Module):
    """Vocabulary logits; the weight is the word embedding's, the bias has two names in the state dict."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = self.decoder.bias

    def forward(self, hidden: Tensor) -> Tensor:  # [..., D] -> [..., V]
        return self.decoder(self.transform(hidden))


class PredictionHead(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.predictions = Predictions(config)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.predictions(hidden)


class BertWithHead(nn.Module):
    """BERT and a head for vocabulary logits: MLM of pre-training, the answer decoder of VQA."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.bert = BertModel(config)
        self.cls = PredictionHead(config)
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def logits_at(self, positions: Tensor, hidden: Tensor) -> Tensor:
        """The head's vocabulary logits at some positions only: [N, V], in float32.

        positions: [N] int64, counted over all rows of hidden [R, L, D].
        """
        return self.cls(hidden.flatten(0, 1).index_select(0, positions)).float()


def init_bert(module: nn.Module, std: float) -> None:
    """BERT's initialization: normal weights, zero biases, padding's embedding zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if part.padding_idx is not None:
                nn.init.zeros_(part.weight[part.padding_idx].detach())


def create_bert(config: BertConfig, head: bool = False) -> BertModel | BertWithHead:
    """A BertModel, or with `head` a BertWithHead, with random weights."""
    model = BertWithHead(config) if head else BertModel(config)
    init_bert(model, config.initializer_range)
    return model
