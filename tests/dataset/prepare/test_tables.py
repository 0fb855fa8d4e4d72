"""CSV and TSV files as people write them: every row is read as it is meant, or the line is named."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.prepare.columns import captions_of, written_list
from dataset.prepare.common import Summary
from dataset.prepare.own.csv_tables import BrokenTable
from dataset.prepare.own.splits import Splits
from dataset.prepare.own.tables import table_pairs
from tests.dataset.prepare.tools import write
from utils.errors import InputError

ROWS = [('p0.jpg', 'one'), ('p1.jpg', 'two'), ('p2.jpg', 'three, "four"'), ('p3.jpg', 'five\nsix')]


def pairs(tmp_path, text: str, name: str = 't.csv', columns: list[str] | None = None) -> tuple[list, Summary]:
    summary = Summary('')
    path = write(tmp_path / name, text)
    splits = Splits(path, [], summary)
    return list(splits.checked(table_pairs(path, columns, None, str(tmp_path), splits, summary))), summary


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
    with pytest.raises(BrokenTable, match='line 2: a quote that opens here is closed in line 4'):
        pairs(tmp_path, '\n'.join(lines))
    found, _ = pairs(tmp_path, 'image,caption\np0.jpg,"a, b"\np1.jpg,"two\np2.jpg,"c, d"\n')
    assert found == [('p0.jpg', 'a, b'), ('p1.jpg', '"two'), ('p2.jpg', 'c, d')]
    ids = ['image\tcaption', '17\t"one', '18\ttwo', '19\tthree"']
    assert [image for image, _ in pairs(tmp_path, '\n'.join(ids), 't.tsv')[0]] == ['17', '18', '19']


@pytest.mark.parametrize('names', [['h0', 'h1', 'h2', 'h3'], ['a3f', '0c', 'e44b', '9'], ['dog', 'cat', 'cow', 'pig']])
def test_an_open_quote_takes_no_row_whose_image_has_no_extension(tmp_path, names):
    if names[0] == 'dog':  # only a file shows that a word is an image
        for name in names:
            (tmp_path / name).touch()
    text = 'image,caption\n{},one\n{},"two\n{},three\n{},four"\n'.format(*names)
    with pytest.raises(BrokenTable, match='line 3: a quote that opens here is closed in line 5'):
        pairs(tmp_path, text)
    found, _ = pairs(tmp_path, text.replace('four"', 'four'))
    assert found == list(zip(names, ['one', '"two', 'three', 'four'], strict=True))


def test_captions_of_several_lines_are_read_whole(tmp_path):
    """Lines in them that have as many fields as the heading are no rows."""
    text = 'image,caption\np0.jpg,"first part\nsecond, part"\np1.jpg,plain\n'
    assert pairs(tmp_path, text)[0] == [('p0.jpg', 'first part\nsecond, part'), ('p1.jpg', 'plain')]
    text = 'image\tcaption\np0.jpg\t"first\n\tsecond"\np1.jpg\tplain\n'
    assert pairs(tmp_path, text, 't.tsv')[0] == [('p0.jpg', 'first\n\tsecond'), ('p1.jpg', 'plain')]


@pytest.mark.parametrize('delimiter', [',', '\t'])
@pytest.mark.parametrize('stray', ['"Hi" she said', '"two'])
@pytest.mark.parametrize('ending', ['', ' x'])
def test_a_stray_quote_does_not_cut_captions_of_several_lines(tmp_path, delimiter, stray, ending):
    lines = ['image,caption', f'p0.jpg,"first part\nsecond, part"{ending}', f'p1.jpg,{stray}', 'p2.jpg,plain']
    text = '\n'.join(lines).replace(',', delimiter)
    name = 't.tsv' if delimiter == '\t' else 't.csv'
    with pytest.raises(BrokenTable, match='line 2: its quotes' if ending else 'line 4: its quotes'):
        pairs(tmp_path, text, name)


def test_backslashes_before_quotes(tmp_path):
    lines = ['image,caption', r'"p0.jpg","a \"red\" dog, C:\new"', '"p1.jpg","a cat"', r'p2.jpg,"\\ and \"blue\""']
    found, summary = pairs(tmp_path, '\n'.join(lines))
    assert found == [('p0.jpg', r'a "red" dog, C:\new'), ('p1.jpg', 'a cat'), ('p2.jpg', r'\ and "blue"')]
    assert summary.noted == {'table read with backslashes before quotes instead of doubled quotes': 1}
    assert summary.first.popitem()[1].endswith('t.csv, line 2')
    with pytest.raises(BrokenTable, match='line 2: its quotes'):  # both ways in one file
        pairs(tmp_path, '\n'.join([*lines, 'p3.jpg,"a ""green"" cow, b"']))


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


def test_empty_fields_after_the_last_column_are_left_out(tmp_path):
    found, summary = pairs(tmp_path, 'image,caption\np0.jpg,a dog,\np1.jpg,a cat,,\np2.jpg,a, b,\n,,\n')
    assert found == [('p0.jpg', 'a dog'), ('p1.jpg', 'a cat'), ('p2.jpg', 'a, b')]
    assert summary.noted['row with empty fields after its last column, left out'] == 2
    assert pairs(tmp_path, 'caption,image\na dog,p0.jpg,,\n')[0] == [('p0.jpg', 'a dog')]


def test_rows_that_are_too_short_are_counted(tmp_path):
    found, summary = pairs(tmp_path, 'id,image,caption\n1,p0.jpg\n2,p1.jpg,two\n\n3\n')
    assert found == [('p1.jpg', 'two')]
    assert summary.dropped['row with fewer fields than the heading'] == 2
    assert summary.first['row with fewer fields than the heading'].endswith('line 2')


def test_columns_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match='has the columns where, what: choose'):
        pairs(tmp_path, 'where;what\np0.jpg;one\n')
    assert pairs(tmp_path, 'where;what\np0.jpg;one\n', columns=['where', 'what'])[0] == [('p0.jpg', 'one')]


@pytest.mark.parametrize('heading', ['image,caption,caption', 'image,Text,x,text'])
def test_columns_that_are_there_twice_are_refused(tmp_path, heading):
    with pytest.raises(InputError, match='several columns with the name (caption|Text)'):
        pairs(tmp_path, f'{heading}\np0.jpg,one,two,three\n')


@pytest.mark.parametrize('before', ['', '\n', '\r\n \n', ',,\n', 'sep=,\n', '"sep=,"\r\n\n'])
def test_lines_before_the_heading_are_skipped(tmp_path, before):
    text = f'{before}image,caption\np0.jpg,one\np1.jpg,two\n'
    assert pairs(tmp_path, text)[0] == [('p0.jpg', 'one'), ('p1.jpg', 'two')]
    line = before.count('\n') + 3
    with pytest.raises(BrokenTable, match=f'line {line}: its quotes'):
        pairs(tmp_path, text.replace('two', '"two" x, y'))


def test_the_delimiter_that_excel_names(tmp_path):
    found, summary = pairs(tmp_path, 'sep=;\nimage;caption\np0.jpg;a, b\n')
    assert found == [('p0.jpg', 'a, b')] and summary.noted == {'table with semicolons between its columns': 1}
    assert pairs(tmp_path, 'sep=#\nimage#caption\np0.jpg#a; b\n')[0] == [('p0.jpg', 'a; b')]


@pytest.mark.parametrize(
    ('text', 'columns'),
    [
        ('a dog,p0.jpg\na cat,p1.jpg\n', None),
        ('0,p0.jpg,a dog\n1,p1.jpg,a cat\n', None),
        ('a dog,p0.jpg\na cat,p1.jpg\n', ['p0.jpg', 'a dog']),
        ('p00,a dog\np01,a cat\n', ['p00', 'a dog']),
        ('thing,a dog\nother,a cat\n', ['thing', 'a dog']),
        ('thing,a dog,1\nother,a cat,2\n', None),
    ],
)
def test_a_table_without_a_heading_needs_one(tmp_path, text, columns):
    (tmp_path / 'thing').touch()
    with pytest.raises(InputError, match='has no heading: its first line is .*add a first line .*image,caption'):
        pairs(tmp_path, text, columns=columns)


@pytest.mark.parametrize(
    ('field', 'captions'),
    [
        ('["Two ""young"" guys.", "A man."]', ['Two "young" guys.', 'A man.']),
        ("['a dog', 'a cat']", ['a dog', 'a cat']),
        ("['a dog' 'a cat'\n 'a cow']", ['a dog', 'a cat', 'a cow']),  # NumPy
        ("['it''s']", None),
        ('["one"]', ['one']),
        ('[]', []),
        ('[0, 1]', None),
        ('[music]', None),
        ('[a dog], [a cat]', None),
        ("['a' 'b', 'c']", None),
        ('["a", 1]', None),
        ('["a"', None),
    ],
)
def test_lists_written_as_text(field, captions):
    field = field.replace('""', '\\"')
    if "''" in field:
        field, captions = field.replace("''", "\\'"), ["it's"]
    assert written_list(field) == captions
    summary = Summary('')
    assert captions_of(field, summary) == ([field] if captions is None else captions)
    assert summary.noted.total() == (captions is not None)


@pytest.mark.parametrize('name', ['t.csv', 't.jsonl'])
@pytest.mark.parametrize('column', ['split', 'Set', 'subset'])
def test_splits_are_not_mixed(tmp_path, name, column):
    def text(*splits):
        rows = [(f'p{number}.jpg', f'c{number}', split) for number, split in enumerate(splits)]
        names = ('image', 'caption', column)
        objects = '\n'.join(json.dumps(dict(zip(names, row, strict=True))) for row in rows)
        return objects if name.endswith('jsonl') else written([names, *rows])

    with pytest.raises(InputError, match='examples of the splits train, test: choose with --split NAME'):
        pairs(tmp_path, text('train', 'Test '), name)
    for same in (('train', 'train'), ('cars', 'bikes'), ('train', 'cars')):
        assert len(pairs(tmp_path, text(*same), name)[0]) == 2
    path, summary = write(tmp_path / name, text('train', 'restval', 'TEST')), Summary('')
    for wanted, count in ((['train'], 1), (['Train', 'restval'], 2), (['test'], 1)):
        splits = Splits(path, wanted, summary)
        assert len(list(splits.checked(table_pairs(path, None, None, '', splits, summary)))) == count
    splits = Splits(path, ['val'], summary)
    with pytest.raises(InputError, match='--split val: .* its splits are train, restval, test'):
        list(splits.checked(table_pairs(path, None, None, '', splits, summary)))


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
