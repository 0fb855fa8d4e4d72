"""CSV and TSV files as people write them: every row is read as it is meant, or the line is named."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.prepare.common import Summary
from dataset.prepare.tables import BrokenTable, table_pairs
from tests.dataset.prepare.tools import write
from utils.errors import InputError

ROWS = [('p0.jpg', 'one'), ('p1.jpg', 'two'), ('p2.jpg', 'three, "four"'), ('p3.jpg', 'five\nsix')]


def pairs(tmp_path, text: str, name: str = 't.csv', columns: list[str] | None = None) -> tuple[list, Summary]:
    summary = Summary('')
    return list(table_pairs(write(tmp_path / name, text), columns, None, summary)), summary


def written(rows, **dialect) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator='\n', **dialect).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|'])
@pytest.mark.parametrize('name', ['t.csv', 't.tsv', 'T.CSV'])
def test_the_heading_shows_the_delimiter(tmp_path, delimiter, name):
    text = written([('id', 'filepath', 'Title'), *((1, *row) for row in ROWS)], delimiter=delimiter)
    found, summary = pairs(tmp_path, text, name)
    assert found == ROWS
    usual = delimiter == ('\t' if name.endswith('.tsv') else ',')
    assert any('between its columns' in note for note in summary.noted) != usual


def test_blanks_after_delimiters_do_not_count(tmp_path):
    found, _ = pairs(tmp_path, 'image, caption\np0.jpg, one\np1.jpg, "two, three"\n')
    assert found == [('p0.jpg', 'one'), ('p1.jpg', 'two, three')]


def test_a_table_without_a_heading(tmp_path):
    assert pairs(tmp_path, 'p0.jfif;one\np1.jpg;two\n')[0] == [('p0.jfif', 'one'), ('p1.jpg', 'two')]


@pytest.mark.parametrize(('name', 'delimiter'), [('t.csv', ','), ('t.tsv', '\t')])
@pytest.mark.parametrize('caption', ['"two', '"two" dogs', 'two"', '6" dog', '"two\r'])
def test_an_open_quote_takes_no_other_row(tmp_path, name, delimiter, caption):
    lines = ['image,caption', 'p0.jpg,one', f'p1.jpg,{caption}', 'p2.jpg,three', 'p3.jpg,"four"']
    found, summary = pairs(tmp_path, '\n'.join(lines).replace(',', delimiter) + '\n', name)
    assert [image for image, _ in found] == ['p0.jpg', 'p1.jpg', 'p2.jpg', 'p3.jpg']
    assert found[1][1].strip('\r') == caption.strip('\r') and found[3][1] in ('four', '"four"')
    assert any('line by line' in note for note in summary.noted) == caption.startswith('"')


def test_two_open_quotes_do_not_make_one_caption(tmp_path):
    lines = ['image,caption', 'p0.jpg,"one', 'p1.jpg,two', 'p2.jpg,three"', 'p3.jpg,four']
    assert [image for image, _ in pairs(tmp_path, '\n'.join(lines))[0]] == ['p0.jpg', 'p1.jpg', 'p2.jpg', 'p3.jpg']
    found, _ = pairs(tmp_path, 'image,caption\np0.jpg,"a, b"\np1.jpg,"two\np2.jpg,"c, d"\n')
    assert found == [('p0.jpg', 'a, b'), ('p1.jpg', '"two'), ('p2.jpg', 'c, d')]
    ids = ['image\tcaption', '17\t"one', '18\ttwo', '19\tthree"']
    assert [image for image, _ in pairs(tmp_path, '\n'.join(ids), 't.tsv')[0]] == ['17', '18', '19']


@pytest.mark.parametrize(
    'lines',
    [
        ['p0.jpg,"a\nb"', 'p1.jpg,"two', 'p2.jpg,three'],
        ['p0.jpg,"a, b"', 'p1.jpg,"two" x, y', 'p2.jpg,three'],
    ],
)
def test_what_stays_ambiguous_is_refused_with_its_line(tmp_path, lines):
    line = 2 + '\n'.join(lines).split('\n').index(next(line for line in lines if line.startswith('p1')))
    with pytest.raises(BrokenTable, match=rf't\.csv, line {line}:? .*put quotes around'):
        pairs(tmp_path, '\n'.join(['image,caption', *lines]) + '\n')


def test_commas_without_quotes(tmp_path):
    found, summary = pairs(tmp_path, 'image,caption\np0.jpg,a dog, a cat,a bird\np1.jpg,plain\n')
    assert found == [('p0.jpg', 'a dog, a cat, a bird'), ('p1.jpg', 'plain')]
    assert summary.noted['caption with delimiters but without quotes, put together again'] == 1
    with pytest.raises(BrokenTable, match='line 3 has 3 fields, the heading has 2'):
        pairs(tmp_path, 'caption,image\nplain,p1.jpg\na dog, a cat,p0.jpg\n')


def test_rows_that_are_too_short_are_counted(tmp_path):
    found, summary = pairs(tmp_path, 'id,image,caption\n1,p0.jpg\n2,p1.jpg,two\n\n3\n')
    assert found == [('p1.jpg', 'two')]
    assert summary.dropped['row with fewer fields than the heading'] == 2
    assert summary.first['row with fewer fields than the heading'].endswith('line 2')


def test_columns_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match='has the columns where, what: choose'):
        pairs(tmp_path, 'where;what\np0.jpg;one\n')
    assert pairs(tmp_path, 'where;what\np0.jpg;one\n', columns=['where', 'what'])[0] == [('p0.jpg', 'one')]


CAPTION = st.text(st.sampled_from('ab ,;"\n\'|'), max_size=12).filter(lambda text: text == text.strip())


@settings(max_examples=150, deadline=None)
@given(captions=st.lists(CAPTION, min_size=1, max_size=6), delimiter=st.sampled_from(',;\t|'))
def test_what_csv_writes_is_read_again(tmp_path_factory, captions, delimiter):
    rows = [(f'p{number}.jpg', caption) for number, caption in enumerate(captions)]
    text = written([('image', 'caption'), *rows], delimiter=delimiter, quoting=csv.QUOTE_ALL)
    assert pairs(tmp_path_factory.mktemp('t'), text)[0] == rows


@settings(max_examples=150, deadline=None)
@given(captions=st.lists(CAPTION, min_size=2, max_size=6), data=st.data())
def test_a_damaged_line_never_hides_a_row(tmp_path_factory, captions, data):
    """A quote is removed or added somewhere: all images come out, or a line is named."""
    rows = [(f'p{number}.jpg', caption.replace('\n', ' ')) for number, caption in enumerate(captions)]
    text = written([('image', 'caption'), *rows])
    at = data.draw(st.integers(len('image,caption\n'), len(text)))
    text = text[:at] + '"' + text[at:] if data.draw(st.booleans()) else text[:at] + text[at:].replace('"', '', 1)
    try:
        found, summary = pairs(tmp_path_factory.mktemp('t'), text)
    except BrokenTable:
        return
    assert len(found) + summary.dropped.total() == len(rows)
