"""How well a pre-trained model fills in masked words of captions from the image, by kind of word.

    python -m reports.masked_words output/pretrain --text_encoder output/shapes/vocab \\
        --annotations output/shapes/retrieval_test.json --image_root output/shapes --words output/shapes/word_kinds.json

Every word of a kind is masked alone, the rest of its caption stays, and the prediction is the best of the whole
vocabulary. Captions are cleaned and cut as in pre-training. Computed in float32, whatever the run's `precision`.

Legend: B images, R resolution, N masked words, each in a text of its own, L tokens, D width.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dataset.annotations import load_annotations
from dataset.caption_dataset import MAX_TOKENS, MAX_WORDS
from dataset.images import BadImage
from dataset.text import pre_caption
from dataset.transforms import EvalTransform, eval_transform
from evaluation.masked_words import masked_word_lines, masked_word_metrics
from models import create_model
from models.tokenization_bert import create_tokenizer
from models.weight_files import model_state, read_checkpoint
from models.weights import load_pretrain
from utils import distributed
from utils.arguments import Parser, positive_int
from utils.checkpoint import find_run
from utils.entry import run_main
from utils.errors import InputError, MissingFileError
from utils.files import atomic_write, read_json

IMAGES_AT_ONCE = 32
TEXTS_AT_ONCE = 256  # in a forward pass: limits the memory for the keys and values of their images


class MaskedText(NamedTuple):
    """A caption whose token at `position` is [MASK]; `token` was there, a word of kind `kind`."""

    ids: list[int]
    position: int
    token: int
    kind: str


def read_word_kinds(path: str) -> dict[str, list[str]]:
    """Read {kind: [word, ...]} from a JSON file, the words cleaned as captions are. InputError with the remedy."""
    if os.path.isdir(path):
        raise InputError(f'--words {path} is a folder; give the JSON file in it')
    if not os.path.isfile(path):
        raise MissingFileError(f'--words {path}: there is no such file')
    content = read_json(path, '--words')
    if not isinstance(content, dict) or not content:
        raise InputError(f'--words {path} must contain {{kind: [word, ...]}}, such as {{"color": ["red", "blue"]}}')
    kinds: dict[str, list[str]] = {}
    kind_of: dict[str, str] = {}
    for kind, words in content.items():
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise InputError(f'--words {path}: {kind!r} must have a list of words, one or more')
        kinds[kind] = [pre_caption(word, MAX_WORDS) for word in words]
        for word, cleaned in zip(words, kinds[kind], strict=True):
            if len(cleaned.split()) != 1:
                raise InputError(f'--words {path}: {word!r} of {kind!r} is not one word; give single words')
            if kind_of.setdefault(cleaned, kind) != kind:
                raise InputError(
                    f'--words {path}: {word!r} is in {kind_of[cleaned]!r} and in {kind!r}; leave it in one kind'
                )
    return kinds


def word_tokens(tokenizer, kinds: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, int | None]]:
    """Return {word: (its kind, its token)}; the token is None if the word is not one token of the vocabulary."""
    tokens: dict[str, tuple[str, int | None]] = {}
    for kind, words in kinds.items():
        for word in words:
            ids = tokenizer(word, add_special_tokens=False).input_ids
            is_one = len(ids) == 1 and ids[0] != tokenizer.unk_token_id
            tokens[word] = kind, ids[0] if is_one else None
    return tokens


def mask_words(
    tokenizer, caption: str, tokens: Mapping[str, tuple[str, int | None]], max_tokens: int
) -> tuple[list[MaskedText], int]:
    """Mask every word of a caption that is in `tokens`, one at a time.

    caption: not cleaned. tokens: see `word_tokens`. max_tokens: the caption is cut there, [CLS] included.
    Returns (masked texts, number of words skipped: those that are not one token, or cut off).
    """
    words = pre_caption(caption, MAX_WORDS).split()
    found = [(place, *tokens[word]) for place, word in enumerate(words) if word in tokens]
    if not found:
        return [], 0
    text = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_tokens)
    position = {word: at for at, word in enumerate(text.word_ids()) if word is not None}
    masked = []
    for place, kind, token in found:
        if token is not None and place in position:
            at = position[place]
            ids = [*text.input_ids[:at], tokenizer.mask_token_id, *text.input_ids[at + 1 :]]
            masked.append(MaskedText(ids, at, token, kind))
    return masked, len(found) - len(masked)


@torch.no_grad()
def predict_words(model: nn.Module, image: Tensor, owner: Sequence[int], texts: Sequence[MaskedText]) -> list[int]:
    """The most probable token at the masked position of each text, out of the whole vocabulary.

    image: [B, 3, R, R], each encoded once. owner: [N], the image of each text, a row of `image`. texts: [N].
    """
    device, bert = image.device, model.text_encoder.bert
    memory = bert.project(model.visual_encoder(image))
    predicted = []
    for some in torch.arange(len(texts)).split(TEXTS_AT_ONCE):
        chosen = [texts[i] for i in some.tolist()]
        ids = [torch.tensor(text.ids) for text in chosen]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)  # [N, L]
        ids = pad_sequence(ids, batch_first=True, padding_value=model.pad).to(device)  # [N, L]
        hidden = bert(ids, mask, mode='text')  # [N, L, D]
        memory_index = torch.tensor([owner[i] for i in some.tolist()], device=device)
        fused = bert(mode='fusion', hidden=hidden, attention_mask=mask, memory=memory, memory_index=memory_index)
        position = torch.tensor([text.position for text in chosen], device=device)
        at_mask = fused[torch.arange(len(chosen), device=device), position]  # [N, D]
        predicted += model.text_encoder.cls(at_mask).argmax(dim=1).tolist()
    return predicted


def masked_word_accuracy(
    model: nn.Module,
    tokenizer,
    rows: Iterable[Mapping[str, Any]],
    image_root: str,
    kinds: Mapping[str, Iterable[str]],
    device: torch.device,
    transform: EvalTransform,
) -> dict[str, Any]:
    """Mask the words of `kinds` in the captions of all rows and predict them with the image.

    model: of pre-training, on `device`. rows: {image, caption: [str, ...]}. kinds: {kind: words}, cleaned.
    Returns {kinds: see `masked_word_metrics`, in the order of `kinds`; images, skipped: numbers of images with a masked
    word, and of words skipped}. Dropout is off. An image that cannot be read is an InputError.
    """
    tokens = word_tokens(tokenizer, kinds)
    max_tokens = min(MAX_TOKENS, model.bert_config.max_position_embeddings)
    predictions: list[tuple[str, str, str | None]] = []
    images = skipped = 0
    training = model.training
    model.eval()
    try:
        for batch in _batches(rows):
            image, owner, texts = [], [], []
            for row in batch:
                masked = [mask_words(tokenizer, caption, tokens, max_tokens) for caption in row['caption']]
                skipped += sum(count for _, count in masked)
                own = [text for found, _ in masked for text in found]
                if own:  # an image without a masked word need not be encoded
                    owner += [len(image)] * len(own)
                    texts += own
                    image.append(_read_image(transform, os.path.join(image_root, row['image'])))
            if image:
                images += len(image)
                predicted = predict_words(model, torch.stack(image).to(device), owner, texts)
                true = tokenizer.convert_ids_to_tokens([text.token for text in texts])
                words = tokenizer.convert_ids_to_tokens(predicted)  # None: a number above those of the vocabulary
                predictions += zip([text.kind for text in texts], true, words, strict=True)
    finally:
        model.train(training)
    metrics = masked_word_metrics(predictions)
    return {'kinds': {kind: metrics[kind] for kind in kinds if kind in metrics}, 'images': images, 'skipped': skipped}


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    rows = iter(rows)
    while batch := list(islice(rows, IMAGES_AT_ONCE)):
        yield batch


def _read_image(transform: EvalTransform, path: str) -> Tensor:
    """[3, R, R] float32."""
    try:
        return transform(path)
    except BadImage as error:
        raise InputError(f'{error}; repair it, drop its row, or correct --image_root') from None


def read_pretrained(path: str) -> tuple[str, dict[str, Any]]:
    """A checkpoint of Pretrain.py, or the newest one in an output folder -> (its path, its content)."""
    if os.path.isdir(path):
        newest = find_run(path, 'pretrain')
        if newest is None:
            raise MissingFileError(f'{path}: there is no checkpoint of Pretrain.py in it')
        path = newest
    content = read_checkpoint(path, 'CHECKPOINT')
    task = content.get('task') if isinstance(content, dict) else None
    if task != 'pretrain':
        what = f'of task {task}' if task else 'of another program'
        raise InputError(f'CHECKPOINT {path}: it is a checkpoint {what}; give one that Pretrain.py wrote')
    if not isinstance(content.get('config'), dict):
        raise InputError(f'CHECKPOINT {path}: it has no configuration; give one that Pretrain.py wrote')
    return path, content


def parse_arguments(argv: Sequence[str] | None) -> Any:
    parser = Parser(
        prog='python -m reports.masked_words', description='Accuracy of masked words of captions, by kind of word.'
    )
    parser.add_argument('checkpoint', help='a checkpoint of Pretrain.py, or its output folder: then the newest one')
    parser.add_argument('--text_encoder', required=True, help='a hub name or a folder with tokenizer files')
    parser.add_argument('--annotations', required=True, help='rows {image, caption}, of retrieval or pre-training')
    parser.add_argument('--image_root', default='', help='folder that the paths of the images start from')
    parser.add_argument('--words', required=True, help='a JSON file {kind: [word, ...]}')
    parser.add_argument('--device', default='cuda', help='cuda (the CPU if there is no GPU) or cpu')
    parser.add_argument('--limit', type=positive_int, help='read only so many rows of the annotations')
    parser.add_argument('--out', help='a JSON file to write the result to')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    kinds = read_word_kinds(args.words)
    path, content = read_pretrained(args.checkpoint)
    config = content['config']  # resolved; not again, so that keys of training may have changed since
    rows = islice(load_annotations(args.annotations, 'retrieval_eval', config['annotation_cache']), args.limit)
    tokenizer = create_tokenizer(args.text_encoder, config['bert_config']['vocab_size'])
    if len(tokenizer) != config['bert_config']['vocab_size']:
        print(
            f'warning: {args.text_encoder} has {len(tokenizer)} tokens and the model '
            f'{config["bert_config"]["vocab_size"]}; it may not be the vocabulary that the model was trained with'
        )
    device = distributed.choose_device(args.device)
    model = create_model('pretrain', config, tokenizer)
    load_pretrain(model, model_state(content, path, 'CHECKPOINT'), path)
    model.to(device)

    result = masked_word_accuracy(model, tokenizer, rows, args.image_root, kinds, device, eval_transform(config))
    skipped = f'{result["skipped"]} words skipped: not one token of the vocabulary, or cut off'
    if not result['kinds']:
        raise InputError(
            f'no word of --words {args.words} could be masked in the captions of {args.annotations} ({skipped}); give '
            'words of these captions that are in the vocabulary of --text_encoder'
        )
    print(f'{path}: {result["images"]} images of {args.annotations}, {skipped}')
    print('\n'.join(masked_word_lines(result['kinds'])))
    missing = [kind for kind in kinds if kind not in result['kinds']]
    if missing:
        print(f'kinds without a masked word: {", ".join(missing)}')
    if args.out:
        with atomic_write(args.out) as file:
            json.dump({'checkpoint': path, 'annotations': args.annotations} | result, file, indent=1)


if __name__ == '__main__':
    run_main(main)
