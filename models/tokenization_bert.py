"""The tokenizer of ALBEF and GRIT-VLP: BERT's WordPiece, but a text becomes `[CLS] X` without a closing `[SEP]`."""

import os

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, BertTokenizerFast, PreTrainedTokenizerFast

# Workers are forked processes; the library's own threads would only warn about that.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

VOCABULARY = ('vocab.txt', 'tokenizer.json')
WEIGHTS = ('model.safetensors', 'pytorch_model.bin')


def create_tokenizer(name):
    """A Hugging Face tokenizer that emits `[CLS] X`.

    name: a hub name such as bert-base-uncased, or a folder with tokenizer files, of which `vocab.txt` alone is enough.
    Raises FileNotFoundError with the remedy where neither leads to a vocabulary.
    """
    folder = local_folder(name, 'tokenizer', (*VOCABULARY, 'tokenizer_config.json', 'special_tokens_map.json'))
    if not _holds(folder, VOCABULARY):  # a tokenizer of five special tokens would come back, without a word
        raise FileNotFoundError(f'--text_encoder {name}: it holds no vocab.txt and no tokenizer.json')
    # A bare vocabulary says nothing of case; bert-base-uncased's is lower case, and libraries differ in what they assume.
    case = {} if _holds(folder, ('tokenizer.json', 'tokenizer_config.json')) else {'do_lower_case': True}
    tokenizer = BertTokenizerFast.from_pretrained(folder, **case)
    cls = tokenizer.cls_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f'{cls} $A', pair=f'{cls} $A $B', special_tokens=[(cls, tokenizer.cls_token_id)])
    return tokenizer


def pack_tokenizer(tokenizer):
    """A tokenizer as plain values, for a checkpoint that is to be used where its vocabulary's files are not."""
    return {'json': tokenizer.backend_tokenizer.to_str(), 'special_tokens': dict(tokenizer.special_tokens_map)}


def unpack_tokenizer(packed):
    """The tokenizer that `pack_tokenizer` packed."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(packed['json']), **packed['special_tokens'])


def local_folder(name, what, files):
    """The folder that a name stands for: itself, or the hub's files brought into the local cache (or found there)."""
    if os.path.isdir(name):
        return name
    from huggingface_hub import snapshot_download
    try:
        return snapshot_download(name, allow_patterns=list(files))
    except Exception as error:  # no network, no such name, not even a possible name: each has its own exception
        reason = str(error).strip().split('\n')[0]
        raise FileNotFoundError(f'--text_encoder {name}: no such folder, and the {what} could not be had from the Hugging Face '
                                f'hub ({reason}); give a folder with its files, or download it once where there is a '
                                'network') from None


def weights_folder(name):
    """A folder with a BERT's config.json and weights for a hub name or a folder; None for a folder that holds none."""
    if not os.path.isdir(name):
        folder = local_folder(name, 'weights', ('config.json', WEIGHTS[0]))
        return folder if _holds(folder, WEIGHTS[:1]) else local_folder(name, 'weights', ('config.json', WEIGHTS[1]))
    has_weights = _holds(name, WEIGHTS) and _holds(name, ('config.json',))
    return name if has_weights and AutoConfig.from_pretrained(name).model_type == 'bert' else None


def _holds(folder, files):
    return any(os.path.exists(os.path.join(folder, file)) for file in files)
