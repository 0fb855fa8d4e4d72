"""Cleaning of captions, statements and questions by the rules of ALBEF, with which released checkpoints were trained.

Any string is accepted (NUL, newlines, emoji, thousands of words); the time is linear in its length.
"""

import re

_DROPPED = str.maketrans('', '', ',.\'!?"()*#:;~')
_JOINERS_TO_SPACES = str.maketrans('-/', '  ')
_WHITE_SPACE_RUN = re.compile(r'\s{2,}')
_LONE_SURROGATE = re.compile('[\ud800-\udfff]')


def pre_caption(text: str, max_words: int) -> str:
    """The caption or statement in lower case, without punctuation, with at most `max_words` words.

    `<person>`, the placeholder for names in Conceptual Captions, becomes `person`. Runs of white space become one
    space. A single tab or newline stays, and does not separate words: only spaces do.
    """
    text = _split_joined(_lower_without_punctuation(text)).replace('<person>', 'person')
    text = _WHITE_SPACE_RUN.sub(' ', text).rstrip('\n').strip(' ')
    return _first_words(text, max_words)


def pre_question(text: str, max_words: int) -> str:
    """The question in lower case, without punctuation, with at most `max_words` words.

    Unlike in captions, leading and repeated spaces stay, and each repeated one counts as a word.
    """
    return _first_words(_split_joined(_lower_without_punctuation(text)).rstrip(' '), max_words)


def _lower_without_punctuation(text: str) -> str:
    # Some tools cut an emoji in two: half of a surrogate pair has no UTF-8 form, which tokenizers need.
    return _LONE_SURROGATE.sub('', text).lower().translate(_DROPPED)


def _split_joined(text: str) -> str:
    return text.translate(_JOINERS_TO_SPACES)


def _first_words(text: str, max_words: int) -> str:
    return ' '.join(text.split(' ', max_words)[:max_words])
