"""The page of queries and their top five."""

import re
from pathlib import Path

import pytest
import torch

import Retrieval
from dataset.retrieval_dataset import RetrievalEvalDataset
from reports.retrieval_page import write_page
from tests.helpers import read_log, read_rows, write_rows
from tests.tiny import arguments, resolved


def test_the_page_shows_queries_with_the_correct_ones_marked(shapes, pretrained, tmp_path):
    page = tmp_path / 'pages' / 'page.html'
    flags = ['--evaluate', '--checkpoint', str(pretrained), '--page', str(page)]
    Retrieval.main(arguments('retrieval', shapes, tmp_path, 'k_test=39', flags=flags))
    html = page.read_text()
    rows = read_rows(shapes, 'retrieval_test')
    assert html.count('class="query"') == 13 + 39 and html.count('<li') == 13 * 5 and html.count('<figure') == 39 * 5
    assert all(Path(row['image']).name in html for row in rows) and not re.search(r'src="(?!data:)', html)
    record = read_log(tmp_path)[0]
    found = len(re.findall('<figure class="correct">', html))
    assert found == round(39 * record['test_img_r5'] / 100)
    missed = html.split('Images for texts')[0].count('the first correct one has rank')
    assert missed == 13 - round(13 * record['test_txt_r5'] / 100)


HOSTILE = '<script>alert(1)</script> & "quoted" \'too\''


@pytest.mark.parametrize('is_readable', [True, False])
def test_captions_and_names_are_shown_as_text(shapes, tokenizer, tmp_path, is_readable):
    rows = read_rows(shapes, 'retrieval_test')[:3]
    name = '"><script>alert(2)<' + '.jpg'
    content = (shapes / rows[1]['image']).read_bytes()
    (tmp_path / name).write_bytes(content if is_readable else b'')
    rows[1] |= {'image': name, 'caption': [HOSTILE]}
    for row in (rows[0], rows[2]):
        (tmp_path / Path(row['image']).name).write_bytes(content)
        row['image'] = Path(row['image']).name
    file = write_rows(tmp_path / 'rows.json', rows)
    config = resolved('retrieval', shapes, f'test_file={file}', f'image_root={tmp_path}')
    dataset = RetrievalEvalDataset(config, 'test', tokenizer)
    write_page(str(tmp_path / 'page.html'), dataset, torch.zeros(3, 7), torch.zeros(7, 3))
    html = (tmp_path / 'page.html').read_text()
    assert not re.search('<script|alert.2.<', html)
    assert '&lt;script&gt;alert1&lt;' in html and '&quot;&gt;&lt;script&gt;alert(2)&lt;.jpg' in html
