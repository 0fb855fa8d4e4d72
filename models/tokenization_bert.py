"""The tokenizer of ALBEF and GRIT-VLP: BERT's WordPiece, but a text becomes `[CLS] X` without a final `[SEP]`."""

import copy
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from utils.errors import InputError, MissingFileError
from utils.files import digest_of, marked_encoding, read_head, read_text

# Loader workers are forked processes; the library's own threads would only warn about that.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

VOCABULARY = ('vocab.txt', 'tokenizer.json')
TOKENIZER_FILES = (*VOCABULARY, 'tokenizer_config.json', 'special_tokens_map.json')
SPECIAL_TOKENS = ('pad_token', 'unk_token', 'cls_token', 'sep_token', 'mask_token')


def create_tokenizer(name: str, vocab_size: int | None = None) -> BertTokenizerFast:
    """A Hugging Face tokenizer that emits `[CLS] X`.

    name: a hub name such as bert-base-uncased, or a folder with tokenizer files, of which `vocab.txt` alone is enough.
    vocab_size: the number of word embeddings of the text encoder.
    InputError if there is no vocabulary, if it is damaged, or if it has more tokens than `vocab_size`.
    """
    folder = local_folder(name, 'tokenizer', TOKENIZER_FILES)
    if not _holds(folder, VOCABULARY):  # the library would return a tokenizer of five special tokens
        raise MissingFileError(f'--text_encoder {name}: it has neither vocab.txt nor tokenizer.json')
    _check_files(name, folder)
    try:
        tokenizer = BertTokenizerFast.from_pretrained(folder, **_case(folder))
    except Exception as error:  # the library raises almost any exception for a damaged file
        raise InputError(
            f'--text_encoder {name}: its tokenizer files cannot be read ({first_sentence(error)}); copy or download '
            'them again'
        ) from None
    size = _check_vocabulary(name, folder, tokenizer)
    cls = tokenizer.cls_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f'{cls} $A', pair=f'{cls} $A $B', special_tokens=[(cls, tokenizer.cls_token_id)]
    )
    if vocab_size is not None and size > vocab_size:
        raise InputError(
            f'--text_encoder {name}: its vocabulary has {size} words, bert_config.vocab_size is {vocab_size}; set '
            f'bert_config.vocab_size={size}'
        )
    return tokenizer


def _check_files(name: str, folder: str) -> None:
    """InputError if a tokenizer file is not UTF-8 text, begins with a byte order mark, or is a pointer of git-lfs."""
    for file in TOKENIZER_FILES:
        if os.path.isfile(path := os.path.join(folder, file)):
            try:
                if read_text(path) and marked_encoding(read_head(path)):
                    raise InputError('it begins with a byte order mark; save it as UTF-8 without one')
            except InputError as error:
                raise InputError(
                    f'--text_encoder {name}: its tokenizer files cannot be read ({file}: {error})'
                ) from None


def _case(folder: str) -> dict[str, Any]:
    """How texts are normalized, if no tokenizer_config.json says it: the library does not ask tokenizer.json.

    A bare vocabulary does not say its case; bert-base-uncased's is lower case, and library versions differ in their
    default.
    """
    if _holds(folder, ('tokenizer_config.json',)):
        return {}
    if not _holds(folder, ('tokenizer.json',)):
        return {'do_lower_case': True}
    content = json.loads(read_text(os.path.join(folder, 'tokenizer.json')))
    normalizer = (content.get('normalizer') if isinstance(content, dict) else None) or {}
    names = {'lowercase': 'do_lower_case', 'strip_accents': 'strip_accents'}
    return {names[key]: value for key, value in normalizer.items() if key in names and value is not None}


def _check_vocabulary(name: str, folder: str, tokenizer: BertTokenizerFast) -> int:
    """Return the number of ids. InputError if a special token is missing or a line of vocab.txt is repeated."""
    own = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)  # the library adds what is missing
    missing = [token for kind in SPECIAL_TOKENS if (token := getattr(tokenizer, kind)) not in own]
    if missing:
        raise InputError(
            f'--text_encoder {name}: its vocabulary lacks {", ".join(map(str, missing))}; give the vocabulary of a BERT'
        )
    size = 1 + max(tokenizer.get_vocab().values())
    if len(tokenizer) < size and not _holds(folder, ('tokenizer.json',)):
        line = 1 + min(set(range(size)) - set(own.values()))
        raise InputError(
            f'--text_encoder {name}: line {line} of vocab.txt occurs again below; every token must be on one line, '
            'so copy or download the file again'
        )
    return size


def first_sentence(error: Exception) -> str:
    """What a library's error begins with, on one line."""
    return ' '.join(str(error).split()).split('. ')[0][:160] or type(error).__name__


def word_of_tokens(tokenizer, text: str) -> list[int]:
    """For every token of a text, the number of the word that it is of: words are separated by single spaces."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return [text.count(' ', 0, start) for start, _ in encoding.offsets]


def pack_tokenizer(tokenizer) -> dict[str, Any]:
    """A tokenizer as plain values, for a checkpoint that is used without the files of its vocabulary.

    What it was last used for, padding and truncation, is not part of it.
    """
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return {'json': backend.to_str(), 'special_tokens': dict(tokenizer.special_tokens_map)}


def unpack_tokenizer(packed: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that `pack_tokenizer` packed. InputError if it is damaged."""
    try:
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(packed['json']), **packed['special_tokens'])
    except Exception as error:  # the library raises bare exceptions
        raise InputError(
            f'the tokenizer in the checkpoint cannot be read ({first_sentence(error)}); give one with --text_encoder'
        ) from None


def fingerprint(tokenizer) -> str:
    """The number of tokens and a digest of the vocabulary, in words: equal if every token has the same id."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[::-1])
    return f'{len(vocabulary)} tokens with digest {digest_of(vocabulary)}'


def local_folder(name: str, what: str, files: Iterable[str], option: str = '--text_encoder') -> str:
    """The folder that a name means: itself, or the local cache of the hub's files, downloaded if needed."""
    if os.path.isdir(name):
        return name
    if os.path.isfile(name):
        raise InputError(f'{option} {name}: it is a file; give the folder with the {what} files')
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=list(files))
    except Exception as error:  # no network, no such name, not even a possible name: each has its own exception
        reason = str(error).strip().split('\n')[0]
        raise MissingFileError(
            f'{option} {name}: no such folder, and the {what} could not be downloaded from the Hugging Face hub '
            f'({reason}); give a folder with its files, or download it once on a machine with a network'
        ) from None


def _holds(folder: str, files: Iterable[str]) -> bool:
    return any(os.path.isfile(os.path.join(folder, file)) for file in files)
