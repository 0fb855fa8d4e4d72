"""The page of queries and their top five."""

import re
from pathlib import Path

import Retrieval
from tests.helpers import read_log, read_rows
from tests.tiny import arguments


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
