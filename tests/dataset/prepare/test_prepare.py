"""`python -m dataset.prepare`: each command on a sample in the layout of its release."""

import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from dataset.annotations import load_annotations
from tests.dataset.prepare.tools import coco_name, jpeg, read, refuse, run, write


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


def test_coco_keeps_its_ids_in_the_rows_of_evaluation(tmp_path, karpathy):
    """Those of the captions that are written, also as strings in the release; none if the release lacks one."""
    content = read(Path(karpathy))
    for image in content['images']:
        image['sentences'] += [{'raw': ' '}, {'raw': 'The last.'}]
        for number, sentence in enumerate(image['sentences']):
            sentence['sentid'] = 10 * image['cocoid'] + number
    del content['images'][2]['sentences'][0]['sentid']
    content['images'][3] |= {'cocoid': '15'}
    run('coco', write(Path(karpathy), content), '--out', tmp_path)
    captions = ['A test image.', 'Number 15', 'The last.']
    assert read(tmp_path / 'coco_test.json') == [
        {'image': f'val2014/{coco_name(15)}', 'caption': captions, 'image_id': 15, 'caption_ids': [150, 151, 153]}
    ]
    assert [row.keys() for row in read(tmp_path / 'coco_val.json')] == [{'image', 'caption'}]
    for name in ('coco', 'coco_train'):
        assert all('caption_ids' not in row for row in read(tmp_path / f'{name}.json'))
    (row,) = load_annotations(str(tmp_path / 'coco_test.json'), 'retrieval_eval')
    assert (row['image_id'], row['caption_ids']) == (15, [150, 151, 153])


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
    assert '2 x image whose name another image has, too' in capsys.readouterr().out


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
    for data, wanted in (
        ({'image_urls': urls, 'captions': ['x']}, 'as many URLs as captions'),
        ({'image_urls': [], 'captions': []}, 'there is no URL'),
    ):
        uneven = write(tmp_path / 'bad.json', data)
        message = refuse('sbu', uneven, '--images', tmp_path, '--out', tmp_path / 'x.json')
        assert wanted in message


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
