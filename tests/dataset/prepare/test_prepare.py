"""`python -m dataset.prepare`: each command on a sample in the layout of its release."""

import json
import subprocess
import sys
import zlib

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from dataset.annotations import load_annotations
from tests.dataset.prepare.tools import jpeg, read, refuse, run, write
from utils.entry import user_message


def coco_name(number: int, split: str = 'val2014') -> str:
    return f'COCO_{split}_{number:012d}.jpg'


@pytest.fixture
def karpathy(tmp_path) -> str:
    """One image with two captions for each of Karpathy's four splits."""
    images = [
        {
            'filepath': 'train2014' if split == 'train' else 'val2014',
            'cocoid': number,
            'split': split,
            'imgid': number,
            'filename': coco_name(number, 'train2014' if split == 'train' else 'val2014'),
            'sentences': [{'raw': f'A {split} image.', 'tokens': []}, {'raw': f'Number {number}\n', 'tokens': []}],
        }
        for number, split in ((9, 'train'), (11, 'restval'), (13, 'val'), (15, 'test'))
    ]
    return write(tmp_path / 'dataset_coco.json', {'dataset': 'coco', 'images': images})


# --- each command ---


def test_coco_from_karpathy(tmp_path, karpathy, capsys):
    run('coco', karpathy, '--out', tmp_path / 'out', '--image-prefix', 'coco/')
    train = f'coco/train2014/{coco_name(9, "train2014")}', f'coco/val2014/{coco_name(11)}'
    expected = [
        (train[0], 'A train image.'),
        (train[0], 'Number 9'),
        (train[1], 'A restval image.'),
        (train[1], 'Number 11'),
    ]
    assert [(row['image'], row['caption']) for row in read(tmp_path / 'out/coco.json')] == expected
    assert [(row['image'], row['caption']) for row in read(tmp_path / 'out/coco_train.json')] == expected
    assert [row['image_id'] for row in read(tmp_path / 'out/coco_train.json')] == ['coco_9'] * 2 + ['coco_11'] * 2
    assert read(tmp_path / 'out/coco_val.json') == [
        {'image': f'coco/val2014/{coco_name(13)}', 'caption': ['A val image.', 'Number 13']}
    ]
    assert read(tmp_path / 'out/coco_test.json')[0]['caption'][0] == 'A test image.'
    shown = capsys.readouterr().out
    assert 'read      4 images' in shown and 'coco.json: 4 rows, 4 texts, 2 images' in shown
    run('coco', karpathy, '--out', tmp_path / 'grouped', '--one-row-per-image')
    assert [len(row['caption']) for row in read(tmp_path / 'grouped/coco.json')] == [2, 2]
    for kind, name in (('pretrain', 'coco'), ('retrieval_train', 'coco_train'), ('retrieval_eval', 'coco_test')):
        assert len(load_annotations(str(tmp_path / f'out/{name}.json'), kind))  # training reads what was written


@pytest.mark.parametrize('year', [2014, 2017])
def test_coco_from_its_own_captions(tmp_path, karpathy, capsys, year):
    names = {number: coco_name(number) if year == 2014 else f'{number:012d}.jpg' for number in (11, 15, 16)}
    images = [
        {'id': number, 'file_name': name, 'coco_url': f'http://images.cocodataset.org/val{year}/{name}'}
        for number, name in names.items()
    ]
    captions = [{'image_id': number, 'id': i, 'caption': f'Number {number}'} for i, number in enumerate([15, 11, 11])]
    file = write(tmp_path / f'captions_val{year}.json', {'info': {}, 'images': images, 'annotations': captions})
    run('coco', file, '--out', tmp_path, '--exclude', karpathy)
    assert read(tmp_path / 'coco.json') == [{'image': f'val{year}/{names[11]}', 'caption': 'Number 11'}] * 2
    shown = capsys.readouterr().out
    assert 'excluded  1 images' in shown and 'dropped   1 x image without a caption' in shown
    assert 'without other files' in refuse('coco', karpathy, file, '--out', tmp_path)
    assert "has no 'annotations'" in refuse('coco', write(tmp_path / 'a.json', {'images': images}), '--out', tmp_path)


def visual_genome(folder) -> tuple[str, str]:
    site = 'https://cs.stanford.edu/people/rak248'
    images = [
        {'image_id': 1, 'url': f'{site}/VG_100K_2/1.jpg', 'coco_id': None, 'flickr_id': None},
        {'image_id': 2, 'url': f'{site}/VG_100K/2.jpg', 'coco_id': 15, 'flickr_id': 77},
        {'image_id': 3, 'url': f'{site}/VG_100K/3.jpg', 'coco_id': 9, 'flickr_id': 1234567},
    ]
    phrases = {1: ['a red car', 'A red  car', 'the sky', ' '], 2: ['a dog'], 3: ['a cat'], 4: ['nowhere']}
    regions = [
        {
            'id': image,
            'regions': [
                {'region_id': i, 'image_id': image, 'phrase': phrase, 'x': 0, 'y': 0, 'width': 10 + i, 'height': 10}
                for i, phrase in enumerate(listed)
            ],
        }
        for image, listed in phrases.items()
    ]
    return write(folder / 'region_descriptions.json', regions), write(folder / 'image_data.json', images)


def test_visual_genome(tmp_path, karpathy, capsys):
    files = visual_genome(tmp_path)
    run('vg', *files, '--out', tmp_path / 'vg.json', '--image-prefix', 'vg')
    rows = [(row['image'], row['caption']) for row in read(tmp_path / 'vg.json')]
    assert rows == [
        ('vg/VG_100K_2/1.jpg', 'a red car'),
        ('vg/VG_100K_2/1.jpg', 'the sky'),
        ('vg/VG_100K/2.jpg', 'a dog'),
        ('vg/VG_100K/3.jpg', 'a cat'),
    ]
    shown = capsys.readouterr().out
    for line in (
        'read      7 regions',
        '1 x phrase that its image has already',
        '1 x empty caption',
        '1 x image that is not in image_data.json',
    ):
        assert line in shown
    run('vg', *files, '--out', tmp_path / 'vg.json', '--exclude', karpathy, '--largest', 2, '--one-row-per-image')
    assert read(tmp_path / 'vg.json') == [  # image 2 is Karpathy's test image 15; blank and sky are the largest of 1
        {'image': 'VG_100K_2/1.jpg', 'caption': ['the sky']},
        {'image': 'VG_100K/3.jpg', 'caption': ['a cat']},
    ]
    assert 'excluded  1 images' in capsys.readouterr().out
    run('vg', *files, '--out', tmp_path / 'vg.json', '--exclude', write(tmp_path / 'flickr.txt', '1234567\n'))
    assert 'VG_100K/3.jpg' not in [row['image'] for row in read(tmp_path / 'vg.json')]


URLS = ['http://a.org/x/one.jpg', 'http://b.org/two.png?size=3', 'http://c.org/three', 'http://d.org/four.jpg']


@pytest.mark.parametrize('naming', ['row', 'crc32', 'basename', 'table'])
def test_cc3m(tmp_path, capsys, naming):
    tsv = write(tmp_path / 'Train_GCC-training.tsv', ''.join(f'caption {i}\t{url}\n' for i, url in enumerate(URLS)))
    stems = {
        'row': ['0', '1', '2', '3'],
        'basename': ['one', 'two', 'three', 'four'],
        'crc32': [f'{i}_{zlib.crc32(url.encode())}' for i, url in enumerate(URLS)],
        'table': ['000000007', '000000000', '000000001', '000000002'],
    }[naming]
    for i in (0, 1, 3):  # the third image could not be downloaded
        ending = '' if naming == 'crc32' else '.jpg'  # that downloader writes no extension
        (tmp_path / 'images/00000').mkdir(parents=True, exist_ok=True)
        (tmp_path / f'images/00000/{stems[i]}{ending}').touch()
    if naming == 'table':
        table = pa.table({'url': URLS, 'key': stems, 'caption': [''] * 4})
        parquet.write_table(table, tmp_path / 'images/00000.parquet')
    run('cc3m', tsv, '--images', tmp_path / 'images', '--out', tmp_path / 'cc3m.json', '--image-prefix', 'cc3m')
    ending = '' if naming == 'crc32' else '.jpg'
    assert read(tmp_path / 'cc3m.json') == [
        {'image': f'cc3m/00000/{stems[i]}{ending}', 'caption': f'caption {i}'} for i in (0, 1, 3)
    ]
    assert '1 x image not in the download folder' in capsys.readouterr().out


def test_cc3m_with_a_heading_and_bad_lines(tmp_path, capsys):
    tsv = write(tmp_path / 'v.tsv', f'caption\turl\nzero\t{URLS[0]}\nno address\n\t{URLS[2]}\n{URLS[3]}\tthree\n')
    for i in range(4):
        (tmp_path / f'{i:09d}.jpg').touch()
    run('cc3m', tsv, '--images', tmp_path, '--out', tmp_path / 'out.json')
    rows = [(row['image'], row['caption']) for row in read(tmp_path / 'out.json')]
    assert rows == [('000000000.jpg', 'zero'), ('000000003.jpg', 'three')]  # dropped lines count as rows
    shown = capsys.readouterr().out
    assert '1 x line without a URL' in shown and '1 x empty caption' in shown
    (tmp_path / 'none').mkdir()
    assert 'no image in' in refuse('cc3m', tsv, '--images', tmp_path / 'none', '--out', tmp_path / 'b.json')
    assert 'does not exist' in refuse('cc3m', tsv, '--images', tmp_path / 'absent', '--out', tmp_path / 'b.json')
    assert 'no caption<TAB>URL lines' in refuse(
        'cc3m', write(tmp_path / 'bad.tsv', 'a\tb\nc\td\n'), '--images', tmp_path, '--out', tmp_path / 'b.json'
    )


def test_an_image_that_may_belong_to_several_rows_is_given_to_none(tmp_path, capsys):
    urls = ['http://a.org/1/photo.jpg', 'http://a.org/2/photo.jpg', 'http://a.org/two.jpg', 'http://a.org/three.jpg']
    tsv = write(tmp_path / 't.tsv', ''.join(f'caption {i}\t{url}\n' for i, url in enumerate(urls)))
    for name in ('photo.jpg', 'a/two.jpg', 'b/two.jpg', 'three.jpg'):
        jpeg(tmp_path / 'images' / name)
    run('cc3m', tsv, '--images', tmp_path / 'images', '--out', tmp_path / 'out.json')
    assert read(tmp_path / 'out.json') == [{'image': 'three.jpg', 'caption': 'caption 3'}]
    assert '1 x name that several images share' in capsys.readouterr().out


@pytest.mark.parametrize('layout', ['json', 'txt'])
def test_sbu(tmp_path, capsys, layout):
    urls = [f'http://static.flickr.com/2723/{number}_b0f291553e.jpg' for number in (4385058960, 4385058961, 4385058962)]
    captions = ['Man sits', 'Girl\tstands', 'Dog, "lies"']
    if layout == 'json':
        data = {'image_urls': urls, 'captions': captions, 'user_ids': ['a'] * 3}
        files = [write(tmp_path / 'sbu-captions-all.json', data)]
    else:
        files = [
            write(tmp_path / f'SBU_captioned_photo_dataset_{name}.txt', '\n'.join(lines) + '\n')
            for name, lines in (('captions', captions), ('urls', urls))
        ]
    for number in (4385058960, 4385058961, 4385058962):
        (tmp_path / f'{number}_b0f291553e.jpg').touch()
    exclude = write(tmp_path / 'flickr30k_test.json', [{'image': 'flickr30k-images/4385058960.jpg', 'caption': ['x']}])
    run('sbu', *files, '--images', tmp_path, '--out', tmp_path / 'out/sbu.json', '--exclude', exclude)
    assert [row['caption'] for row in read(tmp_path / 'out/sbu.json')] == ['Girl stands', 'Dog, "lies"']
    assert 'excluded  1 images' in capsys.readouterr().out
    for data in ({'image_urls': urls, 'captions': ['x']}, {'image_urls': [], 'captions': []}):
        uneven = write(tmp_path / 'bad.json', data)
        message = refuse('sbu', uneven, '--images', tmp_path, '--out', tmp_path / 'x.json')
        assert 'as many URLs as captions' in message


def test_flickr30k(tmp_path, capsys):
    sentences = [{'raw': 'One .'}, {'raw': 'Two .'}]
    entries = [
        {'filename': f'{number}.jpg', 'split': split, 'imgid': number, 'sentences': sentences}
        for number, split in ((1000092795, 'train'), (10002456, 'val'), (1007129816, 'test'))
    ]
    karpathy = write(tmp_path / 'dataset_flickr30k.json', {'images': entries, 'dataset': 'flickr30k'})
    run('flickr30k', karpathy, '--out', tmp_path / 'k', '--image-prefix', 'flickr30k-images')
    lines = [(entry['filename'], i, sentence['raw']) for entry in entries for i, sentence in enumerate(sentences)]
    token = write(tmp_path / 'results_20130124.token', ''.join(f'{name}#{i}\t{text}\n' for name, i, text in lines))
    cells = ''.join(f'{name}| {i}| {text}\n' for name, i, text in lines) + '2199200615.jpg| 4   A dog runs .\n'
    table = write(tmp_path / 'results.csv', f'image_name| comment_number| comment\n{cells}')
    val, test = write(tmp_path / 'val.txt', '10002456\n'), write(tmp_path / 'test.txt', '1007129816.jpg\n')
    prefix = ['--image-prefix', 'flickr30k-images']
    for file, out in ((token, 't'), (table, 'c')):
        run('flickr30k', file, '--val', val, '--test', test, '--out', tmp_path / out, *prefix)
    for split in ('train', 'val', 'test'):
        rows = read(tmp_path / f'k/flickr30k_{split}.json')
        assert rows == read(tmp_path / f't/flickr30k_{split}.json') == read(tmp_path / f'c/flickr30k_{split}.json')
    assert read(tmp_path / 'k/flickr30k_train.json')[1] == {
        'image': 'flickr30k-images/1000092795.jpg',
        'caption': 'Two .',
        'image_id': '1000092795',
    }
    assert read(tmp_path / 'k/flickr30k_test.json') == [
        {'image': 'flickr30k-images/1007129816.jpg', 'caption': ['One .', 'Two .']}
    ]
    assert '1 x line without an image and a caption' in capsys.readouterr().out
    assert 'give a caption file of Flickr30k' in refuse('flickr30k', val, '--out', tmp_path)


def test_nlvr2(tmp_path, capsys):
    def lines(*items):
        return ''.join(json.dumps(item) + '\n' for item in items)

    one = {'sentence': 'Two dogs.', 'left_url': 'http://a', 'right_url': 'http://b', 'writer': 1}
    train = write(
        tmp_path / 'train.json',
        lines(
            one | {'identifier': 'train-10171-0-0', 'directory': 65, 'label': 'False'},
            one | {'identifier': 'train-10171-0-12', 'directory': 65, 'label': True},
            one | {'identifier': 'train-1-2-0', 'directory': 6, 'label': 'maybe'},
        ),
    )
    dev = write(tmp_path / 'dev.json', lines(one | {'identifier': 'dev-850-0-0', 'label': 'True'}))
    test = write(tmp_path / 'test1.json', lines(one | {'identifier': 'test1-0-1-0', 'label': 'True'}))
    run('nlvr2', train, dev, test, '--out', tmp_path / 'out')
    pair = ['images/train/65/train-10171-0-img0.png', 'images/train/65/train-10171-0-img1.png']
    assert read(tmp_path / 'out/nlvr_train.json') == [
        {'images': pair, 'sentence': 'Two dogs.', 'label': 'False', 'identifier': 'train-10171-0-0'},
        {'images': pair, 'sentence': 'Two dogs.', 'label': 'True', 'identifier': 'train-10171-0-12'},
    ]
    assert read(tmp_path / 'out/nlvr_dev.json')[0]['images'][1] == 'dev/dev-850-0-img1.png'
    assert read(tmp_path / 'out/nlvr_test.json')[0]['images'][0] == 'test1/test1-0-1-img0.png'
    assert '1 x label that is neither True nor False' in capsys.readouterr().out
    assert [row['label'] for row in load_annotations(str(tmp_path / 'out/nlvr_train.json'), 'nlvr')] == [False, True]
    for identifier, message in (('train-1-0-0', "has no 'directory'"), ('x-1-0-0', 'give a file of NLVR2')):
        bad = write(tmp_path / 'bad.json', lines(one | {'identifier': identifier, 'label': 'True'}))
        assert message in refuse('nlvr2', bad, '--out', tmp_path)


def vqa_files(folder) -> list[str]:
    def questions(split, numbers):
        return write(
            folder / f'v2_OpenEnded_mscoco_{split}_questions.json',
            {
                'data_subtype': split,
                'questions': [{'image_id': n, 'question': f'What is {n}?', 'question_id': n * 1000} for n in numbers],
            },
        )

    answers = {9: 'Two', 10: 'the dog', 15: 'dog', 16: 'cat'}
    annotations = [
        write(
            folder / f'v2_mscoco_{split}_annotations.json',
            {
                'data_subtype': split,
                'annotations': [
                    {
                        'question_id': n * 1000,
                        'image_id': n,
                        'question_type': 'what is',
                        'answer_type': 'other',
                        'multiple_choice_answer': answers[n],
                        'answers': [
                            {'answer': answers[n], 'answer_confidence': 'yes', 'answer_id': i + 1} for i in range(10)
                        ],
                    }
                    for n in numbers
                ],
            },
        )
        for split, numbers in (('train2014', (9, 10)), ('val2014', (15, 16)))
    ]
    splits = {'train2014': (9, 10, 11), 'val2014': (15, 16), 'test2015': (20,)}
    return [questions(split, numbers) for split, numbers in splits.items()] + annotations


def test_vqa(tmp_path, karpathy, capsys):
    questions = [
        {
            'id': image,
            'qas': [
                {
                    'qa_id': image * 10 + i,
                    'image_id': image,
                    'question': 'Where is it?',
                    'answer': answer,
                    'a_objects': [],
                }
                for i, answer in enumerate(['In the sky.', '.'])
            ],
        }
        for image in (1, 2)
    ]
    qa, image_data = write(tmp_path / 'question_answers.json', questions), visual_genome(tmp_path)[1]
    run(
        'vqa',
        *vqa_files(tmp_path),
        '--vg',
        qa,
        image_data,
        '--out',
        tmp_path / 'out',
        '--num-answers',
        2,
        '--exclude',
        karpathy,
        '--image-prefix',
        'coco',
        '--vg-image-prefix',
        'vg',
    )
    assert read(tmp_path / 'out/vqa_train.json')[0] == {
        'question': 'What is 9?',
        'image': f'coco/train2014/{coco_name(9, "train2014")}',
        'dataset': 'vqa',
        'question_id': 9000,
        'answer': ['Two'] * 10,
        'answer_type': 'other',
        'question_type': 'what is',
    }
    assert [row['question_id'] for row in read(tmp_path / 'out/vqa_val.json')] == [16000]  # 15 is a Karpathy test image
    assert read(tmp_path / 'out/vqa_test.json') == [
        {
            'question': 'What is 20?',
            'image': f'coco/test2015/{coco_name(20, "test2015")}',
            'dataset': 'vqa',
            'question_id': 20000,
        }
    ]
    assert read(tmp_path / 'out/vg_qa.json') == [
        {
            'question': 'Where is it?',
            'image': 'vg/VG_100K_2/1.jpg',
            'dataset': 'vg',
            'question_id': 10,
            'answer': 'in sky',
        }
    ]
    assert read(tmp_path / 'out/answer_list.json') == [
        'dog',
        '2',
    ]  # dog: twice when normalized; 2 sorts before cat
    shown = capsys.readouterr().out
    for line in (
        '1 x question of train2014 without an annotation',
        '1 x empty answer',
        'excluded  2 images',
        '2 answers, each given at least 1 times; the correct one of 75.0% of the questions',
    ):
        assert line in shown
    files = [str(tmp_path / f'out/{name}.json') for name in ('vqa_train', 'vg_qa', 'vqa_test')]
    table = load_annotations(files, 'vqa')
    assert [type(row.get('answer')).__name__ for row in table] == ['list', 'list', 'str', 'NoneType']


# --- folder ---


def test_folder_of_images_with_texts(tmp_path, capsys):
    for name in ('a.jpg', 'sub/b.PNG', 'c.jpg', 'd.jpg', '.hidden.jpg'):
        jpeg(tmp_path / 'own' / name)
    write(tmp_path / 'own/a.txt', '\ufefffirst\r\n\r\nsecond\0 half\n')
    write(tmp_path / 'own/sub/b.txt', 'only one, 日本 \U0001f600')
    write(tmp_path / 'own/d.txt', ' \n')
    run('folder', tmp_path / 'own', '--out', tmp_path / 'f.json')
    assert read(tmp_path / 'f.json') == [
        {'image': 'a.jpg', 'caption': 'first'},
        {'image': 'a.jpg', 'caption': 'second half'},
        {'image': 'sub/b.PNG', 'caption': 'only one, 日本 \U0001f600'},
    ]
    shown = capsys.readouterr().out
    for line in (
        'read      4 images',
        '1 x image without a .txt',
        '1 x image with an empty .txt',
        '1 x caption with emoji',
        '1 x caption with line breaks or control characters',
    ):
        assert line in shown
    run(
        'folder',
        tmp_path / 'own',
        '--out',
        tmp_path / 'f.json',
        '--one-row-per-image',
        '--image-prefix',
        '/data/own',
        '--exclude',
        write(tmp_path / 'no.txt', 'sub/b.jpg\n'),
    )
    assert read(tmp_path / 'f.json') == [{'image': '/data/own/a.jpg', 'caption': ['first', 'second half']}]


@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'json', 'parquet', 'no heading'])
def test_folder_from_a_table(tmp_path, capsys, ending):
    for name in ('a.jpg', 'b, c.jpg'):
        jpeg(tmp_path / name)
    rows = [
        ('a.jpg', 'a "quoted", text\nof two lines'),
        ('b, c.jpg', 'x' * 200_000),
        ('gone.jpg', 'y'),
        ('a.jpg', 'more'),
        ('a.jpg', ''),
    ]
    heading, columns = ('File_Name', 'Text'), []
    path = tmp_path / f'table.{"csv" if ending == "no heading" else ending}'
    if ending in ('csv', 'tsv', 'no heading'):
        separator = '\t' if ending == 'tsv' else ','
        quoted = [
            separator.join('"' + cell.replace('"', '""') + '"' for cell in row)
            for row in ([] if ending == 'no heading' else [heading]) + rows
        ]
        write(path, '\n'.join(quoted) + '\n')
    elif ending == 'parquet':
        columns = ['--columns', 'where', 'what']
        table = {'id': range(5), 'what': [row[1] for row in rows], 'where': [row[0] for row in rows]}
        parquet.write_table(pa.table(table), path)
    else:
        objects = [dict(zip(heading, row, strict=True)) for row in rows]
        write(path, objects if ending == 'json' else '\n'.join(map(json.dumps, objects)))
    run('folder', path, '--out', tmp_path / 'out/f.json', *columns, '--one-row-per-image')
    assert read(tmp_path / 'out/f.json') == [
        {'image': 'a.jpg', 'caption': ['a "quoted", text of two lines', 'more']},
        {'image': 'b, c.jpg', 'caption': ['x' * 200_000]},
    ]
    shown = capsys.readouterr().out
    assert 'read      5 rows' in shown and '1 x image that is not there' in shown and '1 x empty caption' in shown


def test_folder_refuses_what_it_cannot_read(tmp_path):
    out = ['--out', tmp_path / 'f.json']
    assert 'has the columns a, b' in refuse('folder', write(tmp_path / 'a.csv', 'a,b\n1,2\n'), *out)
    assert 'is empty' in refuse('folder', write(tmp_path / 'b.csv', ''), *out)
    assert 'not a complete Parquet file' in refuse('folder', write(tmp_path / 'c.parquet', 'PAR1 cut'), *out)
    assert 'is cut off' in refuse('folder', write(tmp_path / 'd.jsonl', '{"image": "a.jpg", "capt'), *out)
    assert 'is not a folder or' in refuse('folder', tmp_path / 'absent', *out)
    for ending in ('csv', 'parquet'):
        with pytest.raises(FileNotFoundError) as caught:
            run('folder', tmp_path / f'absent.{ending}', *out)
        assert user_message(caught.value) == f'{tmp_path}/absent.{ending}: No such file or directory; correct the path'
    jpeg(tmp_path / 'own/a.jpg')
    assert 'no row is left' in refuse('folder', tmp_path / 'own', *out)
    assert not (tmp_path / 'f.json').exists()


# --- the command line ---


def test_every_command_has_help(capsys):
    for command in ('coco', 'vg', 'cc3m', 'sbu', 'flickr30k', 'nlvr2', 'vqa', 'folder', 'check'):
        with pytest.raises(SystemExit) as stop:
            run(command, '--help')
        assert stop.value.code == 0 and '--out' in capsys.readouterr().out


def run_module(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'dataset.prepare', *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_runs_as_a_module():
    done = run_module('--help')
    assert done.returncode == 0 and 'flickr30k' in done.stdout


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['check', 'absent.json', '--out', 'g.json'], 'error: the annotation file absent.json does not exist'),
        (['folder', 'absent.csv', '--out', 'g.json'], 'error: absent.csv: No such file or directory'),
        (['vg', 'a.json', 'b.json', '--out', 'g.json', '--largest', '0'], 'error: argument --largest'),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(args, message):
    done = run_module(*args)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count('\n') == 1


def test_debug_shows_the_traceback(tmp_path):
    done = run_module('check', tmp_path / 'absent.json', '--out', 'g.json', '--debug')
    assert done.returncode != 0 and 'Traceback' in done.stderr and 'MissingFileError' in done.stderr


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'is not complete JSON'),
        ('{"images": [{"sentences"', 'is not complete JSON'),
        ('[1, 2]', "has no 'images'"),
        ('{"images": [{"id": 1}], "annotations": []}', "has no 'file_name'"),
        ('{"images": [], "annotations": [{"caption": "x"}]}', "has no 'image_id'"),
    ],
)
def test_a_release_that_was_cut_is_refused(tmp_path, text, message):
    assert message in refuse('coco', write(tmp_path / 'captions_train2014.json', text), '--out', tmp_path)


def test_a_bad_exclude_file_is_refused(tmp_path, karpathy):
    command = ['coco', karpathy, '--out', tmp_path, '--exclude']
    assert 'names no image' in refuse(*command, write(tmp_path / 'empty.txt', '\n'))
    assert 'is not an object' in refuse(*command, write(tmp_path / 'a.json', {'images': [1]}))
    assert "has no 'id'" in refuse(*command, write(tmp_path / 'a.json', {'images': [{}]}))
    (tmp_path / 'latin1.txt').write_bytes(b'caf\xe9.jpg\n')
    assert 'is not UTF-8 text' in refuse(*command, tmp_path / 'latin1.txt')


def test_annotations_without_answers_are_refused(tmp_path):
    rows = [{'question_id': 1, 'answers': [], 'multiple_choice_answer': '.'}]
    file = write(tmp_path / 'annotations.json', {'annotations': rows})
    assert 'no answer is left' in refuse('vqa', file, '--out', tmp_path)
