"""Cleaning of captions, statements and questions, with the rules of ALBEF that released checkpoints were trained with.

Any string is accepted (NUL, newlines, emoji, thousands of words), and the time is linear in its length.
"""

import re

_DROPPED = str.maketrans('', '', ',.\'!?"()*#:;~')
_JOINERS_TO_SPACES = str.maketrans('-/', '  ')
_WHITE_SPACE_RUN = re.compile(r'\s{2,}')
_LONE_SURROGATE = re.compile('[\ud800-\udfff]')


def pre_caption(text: str, max_words: int) -> str:
    """Return the caption or statement in lower case, without punctuation, with at most `max_words` words.

    `<person>`, the placeholder for names in Conceptual Captions, becomes `person`. Runs of white space become one
    space; a single tab or newline stays and separates no words, as only spaces do.
    """
    text = _split_joined(_lower_bare(text)).replace('<person>', 'person')
    text = _WHITE_SPACE_RUN.sub(' ', text).rstrip('\n').strip(' ')
    return _first_words(text, max_words)


def pre_question(text: str, max_words: int) -> str:
    """Return the question in lower case, without punctuation, with at most `max_words` words.

    Unlike in captions, leading and repeated spaces stay, and each repeated one counts as a word.
    """
    return _first_words(_split_joined(_lower_bare(text)).rstrip(' '), max_words)


def _lower_bare(text: str) -> str:
    # Half of a surrogate pair, left by tools that cut an emoji in two, has no UTF-8 form, which tokenizers need.
    return _LONE_SURROGATE.sub('', text).lower().translate(_DROPPED)


def _split_joined(text: str) -> str:
    return text.translate(_JOINERS_TO_SPACES)


def _first_words(text: str, max_words: int) -> str:
    return ' '.join(text.split(' ', max_words)[:max_words])
