"""Cleaning of captions and questions: equal to the reference, for every string, in linear time."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.text import pre_caption, pre_question
from tests.reference import load_json

ROWS = load_json('text_cleaning')


@pytest.mark.parametrize('row', ROWS, ids=range(len(ROWS)))
def test_equals_the_reference(row):
    assert pre_caption(row['text'], row['max_words']) == row['caption']
    assert pre_question(row['text'], row['max_words']) == row['question']


@pytest.mark.parametrize(
    'text, caption',
    [
        ('a dog\0on a log', 'a dog\0on a log'),
        ('a dog\non a log\n', 'a dog\non a log'),
        ('a dog\r\n\r\non a log', 'a dog on a log'),
        ('\N{DOG FACE} runs \N{HOT DOG}!', '\N{DOG FACE} runs \N{HOT DOG}'),
        ('half an emoji \ud83d here', 'half an emoji here'),
        ('\0\n?!', '\0'),
        ('?!...', ''),
    ],
)
def test_odd_captions(text, caption):
    assert pre_caption(text, 30) == caption


def test_ten_thousand_words_are_cut_to_the_limit():
    text = 'A word, ' * 10_000
    assert pre_caption(text, 30) == ' '.join(['a word'] * 15)
    assert len(pre_question(text, 50).split(' ')) == 50


@pytest.mark.parametrize('clean', [pre_caption, pre_question])
@given(text=st.text(st.characters(exclude_categories=())), max_words=st.integers(1, 40))
def test_any_text_gives_few_words_that_utf8_can_hold(clean, text, max_words):
    cleaned = clean(text, max_words)
    cleaned.encode('utf-8')
    assert cleaned.count(' ') < max_words
    assert not set(',.\'!?"()*#:;~-/') & set(cleaned)


@given(text=st.text(alphabet=' aB-/\t\n,<>'))
def test_a_clean_caption_stays_as_it_is(text):
    clean = partial(pre_caption, max_words=1000)
    assert clean(clean(text)) == clean(text)
