"""The tokenizer of ALBEF and GRIT-VLP: BERT's WordPiece, but a text becomes `[CLS] X` without a closing `[SEP]`."""

import os

from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, BertTokenizerFast

# Workers are forked processes; the library's own threads would only warn about that.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')


def create_tokenizer(name):
    """A Hugging Face tokenizer that emits `[CLS] X`.

    name: a hub name such as bert-base-uncased, or a folder with tokenizer files, of which `vocab.txt` alone is enough.
    Raises FileNotFoundError with the remedy where neither leads to a vocabulary.
    """
    if os.path.isdir(name) and not any(os.path.exists(os.path.join(name, f)) for f in ('vocab.txt', 'tokenizer.json')):
        raise FileNotFoundError(f'--text_encoder {name}: the folder holds no vocab.txt and no tokenizer.json')
    try:
        tokenizer = BertTokenizerFast.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(unreachable(name, 'tokenizer', error)) from None
    cls = tokenizer.cls_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f'{cls} $A', pair=f'{cls} $A $B', special_tokens=[(cls, tokenizer.cls_token_id)])
    return tokenizer


def unreachable(name, what, error):
    """The message for a hub name that could not be had, or a path that does not exist."""
    reason = str(error).strip().split('\n')[0]
    return (f'--text_encoder {name}: no such folder, and the {what} could not be had from the Hugging Face hub ({reason}); '
            'give a folder with its files, or download it once where there is a network')


def has_weights(name):
    """Whether a text encoder's weights are to be had under this name: a hub name, or a folder with a BERT's weights in it."""
    if not os.path.isdir(name):
        return True
    return any(file.endswith('.safetensors') or file.startswith('pytorch_model') and file.endswith('.bin')
               for file in os.listdir(name)) and _is_bert(name)


def _is_bert(folder):
    return os.path.exists(os.path.join(folder, 'config.json')) and AutoConfig.from_pretrained(folder).model_type == 'bert'
