"""`Predictor`: a trained model that takes pictures and texts as they are.

    from predict import load_model

    model = load_model('examples/shapes_model')
    model.similarity(['a.jpg', 'b.jpg'], ['a red star', 'a blue ring'])  # [2, 2] cosines, ITC
    model.match('a.jpg', 'a red star')                                   # [1] probability of "match", ITM
    model.heatmap('a.jpg', 'a red star')                                 # {word: [H, W]}

What a model can do depends on its task: `encode_image`, `encode_text`, `similarity`, `match` and `heatmap` need
weights of pre-training or retrieval, `answer` of VQA, `verify` of NLVR2, `assign` of text assignment.

Legend: n images, m texts, E embedding, H, W height and width of a picture in pixels, R resolution.
"""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.nlvr_dataset import StatementTokenizer
from dataset.retrieval_dataset import MAX_TOKENS, MAX_WORDS
from dataset.sources import (
    Sources,
    Texts,
    batches,
    checked,
    distinct,
    listed,
    paired,
    refuse_empty,
    require_strings,
    size_of,
)
from dataset.text import pre_caption, pre_question
from dataset.tokens import UNKNOWN_SHARE, Text, tokenize, tokenize_untruncated
from dataset.transforms import Source, eval_transform
from dataset.vqa_dataset import TEST_WORDS, AnswerList
from models.gradcam import GRADCAM, token_maps
from models.model_nlvr import classify
from models.pretrained import Pretrained, build, push_to_hub, read_pretrained, save_pretrained
from models.tokenization_bert import word_of_tokens
from utils import distributed
from utils.errors import InputError
from utils.setup import autocast

BATCH_SIZE = 64
TASK_WORDS = {
    'pretrain': 'pre-training',
    'retrieval': 'retrieval',
    'nlvr_pretrain': 'text assignment',
    'nlvr': 'NLVR2',
    'vqa': 'VQA',
}


def load_model(
    source: str | os.PathLike,
    config: Mapping[str, Any] | str | os.PathLike | None = None,
    text_encoder: str | None = None,
    device: str | torch.device = 'cuda',
    overrides: Sequence[str] = (),
) -> 'Predictor':
    """A trained model for predictions.

    source: a checkpoint file of any task (ours, ALBEF's, GRIT-VLP's), a folder of `save_pretrained`, or a name on the
    Hugging Face hub. config: a mapping or a YAML file, text_encoder: a folder or hub name with the vocabulary; both for
    a source that has none of its own. device: cuda (the CPU if there is no GPU), cuda:N or cpu. overrides: key=value,
    as for --set. InputError if something is missing or does not fit.
    """
    return Predictor(read_pretrained(source, config, text_encoder, overrides), device)


class Predictor:
    """A model in eval mode, with its tokenizer and image transform; see the module's docstring.

    Images are paths, Pillow images, or arrays [H, W, 3] uint8 (RGB), or [H, W] uint8 (gray); one, or a list of them.
    Texts are one string or a list, and are cleaned as in training. Results are float32 tensors on the CPU.
    """

    def __init__(self, pretrained: Pretrained, device: str | torch.device = 'cuda'):
        self.pretrained, self.device = pretrained, distributed.choose_device(str(device))
        self.task, self.config, self.tokenizer = pretrained.task, pretrained.config, pretrained.tokenizer
        self.model = build(pretrained).to(self.device)
        self.transform = eval_transform(self.config)
        self.positions = self.config['bert_config'].get('max_position_embeddings', 512)
        self.answers = (
            AnswerList(pretrained.answers, self.tokenizer, self.config['eos']) if self.task == 'vqa' else None
        )

    from_pretrained = staticmethod(load_model)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write weights, configuration and vocabulary to a folder, which `load_model` reads."""
        save_pretrained(self.pretrained, folder)

    def push_to_hub(self, name: str, private: bool = False, token: str | None = None) -> str:
        """Upload that folder to the Hugging Face hub as USER/MODEL -> its address."""
        return push_to_hub(self.pretrained, name, private, token)

    # ---- pre-training and retrieval ----

    @torch.no_grad()
    def encode_image(self, images: Sources, batch_size: int = BATCH_SIZE) -> Tensor:
        """Normalized features of ITC: n images -> [n, E]."""
        self._require('encode_image', 'pretrain', 'retrieval')
        return self._join(self._encode_pixels(some)[1] for some in batches(listed(images), batch_size))

    @torch.no_grad()
    def encode_text(self, texts: Texts, batch_size: int = BATCH_SIZE) -> Tensor:
        """Normalized features of ITC: m texts -> [m, E]."""
        self._require('encode_text', 'pretrain', 'retrieval')
        return self._join(self._encode_words(some)[1] for some in batches(listed(texts), batch_size))

    def similarity(self, images: Sources, texts: Texts, batch_size: int = BATCH_SIZE) -> Tensor:
        """Cosines of the features of n images and m texts, as ITC ranks them: [n, m]."""
        return self.encode_image(images, batch_size) @ self.encode_text(texts, batch_size).t()

    def match(self, images: Sources, texts: Texts, batch_size: int = BATCH_SIZE) -> Tensor:
        """ITM's probability that text i describes image i: [n]. One image, or one text, is paired with all others."""
        return self.match_logits(images, texts, batch_size).softmax(dim=1)[:, 1]

    @torch.no_grad()
    def match_logits(self, images: Sources, texts: Texts, batch_size: int = BATCH_SIZE) -> Tensor:
        """The logits of that probability: [n, 2], of "no match" and of "match".

        The second is the score by which the evaluation of retrieval re-ranks, as officially; the difference orders
        pairs as the probability does, also where it rounds to 1.
        """
        self._require('match', 'pretrain', 'retrieval')
        images, texts = paired(listed(images), listed(texts))
        pairs = zip(batches(images, batch_size), batches(texts, batch_size), strict=True)
        return torch.cat([torch.empty(0, 2), *(self._match(*pair).cpu() for pair in pairs)])

    def heatmap(self, image: Source, text: str, layer: int | None = None, method: str = GRADCAM) -> dict[str, Tensor]:
        """Where ITM finds each word, and the whole text, in a picture: Grad-CAM of the cross-attention, as in ALBEF.

        Returns {word: [H, W]} >= 0 in the order of the words, and last, if there are several, the cleaned text itself:
        the mean of its words. A word that is repeated gets a number: 'a', 'a (2)'. layer: the fusion layer, counted
        from 1; by default the third, or the last but one if there are fewer than four. method: gradcam, or attention
        for where a word looks.
        """
        require_strings([text])
        found = self.word_maps([checked(image)], text, layer, method)[0]
        width, height = size_of(image)
        pixels = F.interpolate(
            torch.stack([part for _, part in found])[None], (height, width), mode='bilinear', align_corners=False
        )[0]  # [w, H, W]
        named: dict[str, Tensor] = {}
        for i, (word, _) in enumerate(found):
            count = [other for other, _ in found[: i + 1]].count(word)
            named[word if count == 1 else f'{word} ({count})'] = pixels[i]
        return named | {' '.join(word for word, _ in found): pixels.mean(dim=0)}

    def word_maps(
        self,
        images: Sources,
        texts: Texts,
        layer: int | None = None,
        method: str = GRADCAM,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[tuple[str, Tensor]]]:
        """Heat maps of n pairs on the grid of S x S patches: for each pair [(word, [S, S]), ...] in the text's order.

        A word's map is the mean of its tokens' maps; words behind the last token that the model reads have none.
        Computed in float32, whatever the `precision`.
        """
        self._require('heatmap', 'pretrain', 'retrieval')
        images, texts = paired(listed(images), listed(texts))
        found = []
        for some, of_some in zip(batches(images, batch_size), batches(texts, batch_size), strict=True):
            words, text = self._tokens(of_some)
            maps = token_maps(self.model, self._pixels(some), text, layer, method).cpu()  # [n, L, S, S]
            found += [self._maps_of_words(*pair) for pair in zip(words, maps, strict=True)]
        return found

    def _maps_of_words(self, text: str, maps: Tensor) -> list[tuple[str, Tensor]]:
        """The maps of a cleaned text's tokens, [L, S, S] -> [(word, [S, S]), ...]."""
        tokens_of: dict[int, list[int]] = {}
        for token, word in enumerate(word_of_tokens(self.tokenizer, text), start=1):  # behind [CLS]
            if token < len(maps):
                tokens_of.setdefault(word, []).append(token)
        words = text.split(' ')
        return [(words[word], maps[tokens].mean(dim=0)) for word, tokens in tokens_of.items()]

    # ---- VQA, NLVR2, text assignment ----

    @torch.no_grad()
    def answer(self, image: Source, question: str, k: int = 5) -> list[tuple[str, float]]:
        """The k best answers of the list to a question, with their probabilities, the best first."""
        self._require('answer', 'vqa')
        if k < 1:
            raise InputError(f'{k} answers: give a number of at least 1')
        require_strings([question])
        words = pre_question(question, TEST_WORDS)
        refuse_empty([question], [words])
        text = tokenize_untruncated(self.tokenizer, [words], self.positions)
        self._warn_of_unknown(text)
        candidates = max(k, self.config['k_test'])
        with autocast(self.device, self.config):
            ids, probabilities = self.model.rank_answers(
                self._pixels([image]), text.to(self.device), self.answers.tokens.to(self.device), candidates
            )
        found = zip(ids[0].tolist(), probabilities[0].tolist(), strict=True)
        return [(self.answers.texts[number], probability) for number, probability in found][:k]

    def verify(self, left: Source, right: Source, statement: str) -> float:
        """The probability that a statement about two images is true."""
        self._require('verify', 'nlvr')
        return float(self._classify([left, right], statement, self.model.cls_head)[1])

    def assign(self, left: Source, right: Source, text: str) -> dict[str, float]:
        """The probabilities that a text describes the first of two images, the second, or neither."""
        self._require('assign', 'nlvr_pretrain')
        found = self._classify([left, right], text, self.model.ta_head).tolist()
        return dict(zip(('first', 'second', 'neither'), found, strict=True))

    @torch.no_grad()
    def _classify(self, images: Sequence[Source], sentence: str, head: nn.Module) -> Tensor:
        """The probabilities of the classes of a head for a sentence about two images."""
        require_strings([sentence])
        text = StatementTokenizer(self.config, self.tokenizer)([sentence])
        refuse_empty([sentence], [pre_caption(sentence, MAX_WORDS)])
        self._warn_of_unknown(text)
        encoders = self.model.visual_encoder, self.model.text_encoder
        with autocast(self.device, self.config):
            return classify(self._pixels(images), text.to(self.device), *encoders, head)[0].softmax(dim=0).cpu()

    # ---- from what users give to what the model takes ----

    def _require(self, method: str, *tasks: str) -> None:
        if self.task not in tasks:
            raise InputError(
                f'{self.pretrained.source}: it was trained for {TASK_WORDS[self.task]}, and {method} needs a '
                f'checkpoint of {" or ".join(TASK_WORDS[task] for task in tasks)}; give one'
            )

    def _pixels(self, images: Sequence[Source]) -> Tensor:
        """[n, 3, R, R] on the device; images are decoded in parallel."""
        with ThreadPoolExecutor(min(8, len(images))) as threads:
            return torch.stack([*threads.map(lambda image: self.transform(checked(image)), images)]).to(self.device)

    def _tokens(self, texts: Sequence[str]) -> tuple[list[str], Text]:
        """(cleaned texts, their tokens [n, L] on the device), as the evaluation of retrieval reads them."""
        require_strings(texts)
        words = [pre_caption(text, MAX_WORDS) for text in texts]
        refuse_empty(texts, words)
        text = tokenize(self.tokenizer, words, min(MAX_TOKENS, self.positions))
        self._warn_of_unknown(text)
        return words, text.to(self.device)

    def _warn_of_unknown(self, text: Text) -> None:
        unknown, tokens = (text.input_ids == self.tokenizer.unk_token_id).sum(), text.attention_mask[:, 1:].sum()
        if unknown > UNKNOWN_SHARE * tokens:
            warnings.warn(
                f'{int(unknown)} of {int(tokens)} tokens are [UNK], which stands for any word that the vocabulary of '
                f'{self.pretrained.source} lacks; the model cannot read them',
                stacklevel=3,
            )

    def _encode_pixels(self, images: Sequence[Source]) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.config):
            return self.model.encode_image(self._pixels(images))

    def _encode_words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """text_embeds [n, L, D], text_feat [n, E], attention_mask [n, L]."""
        text = self._tokens(texts)[1]
        with autocast(self.device, self.config):
            return *self.model.encode_text(text.input_ids, text.attention_mask), text.attention_mask

    def _match(self, images: Sequence[Source], texts: Sequence[str]) -> Tensor:
        """The logits of ITM of n pairs, [n, 2]. Equal images or texts are encoded once."""
        (pixels, image_of), (words, text_of) = distinct(images), distinct(texts)
        image_embeds, _ = self._encode_pixels(pixels)
        hidden, _, mask = self._encode_words(words)
        rows = {'hidden': hidden[text_of], 'attention_mask': mask[text_of], 'first_only': True}
        index = None if len(pixels) == 1 else torch.tensor(image_of, device=self.device)
        encoder = self.model.text_encoder
        with autocast(self.device, self.config):
            memory = encoder.project(image_embeds)
            fused = encoder(mode='fusion', memory=memory, memory_index=index, **rows)
            return self.model.itm_head(fused[:, 0]).float()

    def _join(self, parts: Iterable[Tensor]) -> Tensor:
        """Features of batches on the CPU: [n, E], also of none."""
        return torch.cat([torch.empty(0, self.config['embed_dim']), *(part.cpu() for part in parts)])
