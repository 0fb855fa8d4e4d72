"""BERT that reads a text with two images: each fusion layer doubled (NLVR2, as in ALBEF, arXiv 2107.07651).

With F = fusion_layer, layers F, F+2, ... attend to the first image and F+1, F+3, ... to the second. The two layers of a
pair project their image to keys and values with the same parameters, which have both layers' names in the state dict.

Legend: I images, R rows of text, S image tokens (1 + patches), Dm their width, H heads, d = D / H.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from models.bert_layers import BertConfig
from models.xbert import BertModel, create_bert


def create_two_image_bert(config: BertConfig) -> BertModel:
    """A BertModel with random weights whose fusion layers are doubled; config: the BertConfig of pre-training."""
    bert = create_bert(replace(config, num_hidden_layers=doubled_layers(config.fusion_layer, config.num_hidden_layers)))
    for first, second in layer_pairs(bert):
        second.crossattention.self.key = first.crossattention.self.key
        second.crossattention.self.value = first.crossattention.self.value
    return bert


def doubled_layers(fusion_layer: int, layers: int) -> int:
    """The number of layers of a text encoder of `layers` after its fusion layers are doubled."""
    return fusion_layer + 2 * (layers - fusion_layer)


def layer_pairs(bert: BertModel) -> list[tuple[nn.Module, nn.Module]]:
    """[(layer of the first image, layer of the second)]"""
    fusion = bert.encoder.layer[bert.config.fusion_layer :]
    return list(zip(fusion[::2], fusion[1::2], strict=True))


def project_pairs(
    bert: BertModel, image_embeds: Tensor, split: Callable[[Tensor], Sequence[Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values for `BertModel.forward(memory=...)`: each image is projected once for each pair of layers.

    image_embeds: [I, S, Dm]. split: from states of the I images to (those of each row's first image, those of its
    second), [I, H, S, d] -> two of [R, H, S, d]. Returns one (key, value) per fusion layer, each [R, H, S, d].
    """
    memory = []
    for layer, _ in layer_pairs(bert):
        key, value = layer.crossattention.project(image_embeds)
        memory += zip(split(key), split(value), strict=True)
    return memory
