"""Images in webdataset tars and in Parquet files: unpacked once, to safe names, and nothing is lost without a count."""

from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from dataset.prepare.common import Summary
from dataset.prepare.own import packed
from dataset.prepare.own.splits import Splits
from tests.dataset.prepare.packing import POINTER, files_under, image, refusal, table, tar, unpack
from tests.dataset.prepare.tools import read, refuse, run
from utils.errors import InputError


def test_a_folder_of_shards(tmp_path):
    for number, name in enumerate(('00001.tar', '00000.tar', '00000.tgz')):
        tar(tmp_path / 'in' / name, [('1.jpg', image(number)), ('1.txt', name)])
    table(tmp_path / 'in/00000.parquet', {'url': ['u'], 'caption': ['x']})  # as img2dataset writes them
    (tmp_path / 'in/00000_stats.json').write_text('{}')
    (tmp_path / 'in/beside.jpg').write_bytes(image())
    (tmp_path / 'in/.00002.tar').write_text('is being downloaded')
    assert packed.is_packed(str(tmp_path / 'in'))
    rows, summary = unpack(tmp_path / 'in', tmp_path / 'out')
    assert rows == {'00000/1.jpg': ['00000.tar'], '00000_2/1.jpg': ['00000.tgz'], '00001/1.jpg': ['00001.tar']}
    assert list(rows) == sorted(rows) and summary.noted == {'image beside the shards, not read': 1}
    assert list(unpack(tmp_path / 'in/*1.tar', tmp_path / 'out')[0]) == ['00001/1.jpg']
    table(tmp_path / 'in/packed.parquet', {'image': [image()], 'caption': ['x']})
    assert 'tars and Parquet files' in refusal(tmp_path / 'in', tmp_path / 'out')


@pytest.mark.parametrize('names', [('train-0.tar', 'test-0.tar'), ('a_train2014_0.parquet', 'a_val2014_0.parquet')])
def test_shards_of_several_splits_are_refused(tmp_path, names):
    for name in (*names, f'latest{Path(names[0]).suffix}'):
        if name.endswith('.tar'):
            tar(tmp_path / name, [('1.jpg', image()), ('1.txt', 'x')])
        else:
            table(tmp_path / name, {'image': [image()], 'caption': ['x']})
    assert 'as a pattern in quotes' in refusal(tmp_path, tmp_path / 'out')
    assert len(unpack(tmp_path / '*train*', tmp_path / 'out')[0]) == 1
    rows, _ = unpack(tmp_path, tmp_path / 'out', split=('train',))
    assert {row.split('/')[0] for row in rows} == {'latest', names[0].rpartition('.')[0]}
    with pytest.raises(InputError, match='--split dev: .* has no example of it'):
        unpack(tmp_path / '*train*', tmp_path / 'out', split=('dev',))


@pytest.mark.parametrize('kind', ['folders', 'field', 'column'])
def test_samples_of_several_splits_are_refused(tmp_path, kind):
    splits = ['train', 'val2014', 'train', None]
    if kind == 'column':
        columns = {'image': [image(i) for i in range(4)], 'caption': list('0123'), 'SPLIT': splits}
        shard = table(tmp_path / 'a.parquet', columns)
    else:
        members = []
        for number, split in enumerate(splits):
            stem = f'x/{split}/{number}' if kind == 'folders' and split else str(number)
            text = {'caption': str(number)} | ({'subset': split} if kind == 'field' else {})
            members += [(f'{stem}.jpg', image(number)), (f'{stem}.json', text)]
        shard = tar(tmp_path / 'a.tar', members)
    message = refusal(shard, tmp_path / 'out')
    assert message == f'{shard} has examples of the splits train, val2014: choose with --split NAME'
    assert not (tmp_path / 'out').exists()
    rows, summary = unpack(shard, tmp_path / 'out', split=('Train',))
    assert sorted(rows.values()) == [['0'], ['2']]
    assert summary.noted == {'example of another split than --split, not read': 2}
    assert len(unpack(shard, tmp_path / 'out', split=('train', 'val2014'))[0]) == 3
    if kind == 'folders':
        tar(tmp_path / 'in/0.tar', [('test/1.jpg', image()), ('test/1.txt', 'x')])
        tar(tmp_path / 'in/1.tar', [('train/1.jpg', image()), ('train/1.txt', 'y')])
        assert 'examples of the splits test, train' in refusal(tmp_path / 'in', tmp_path / 'new')
        assert list(unpack(tmp_path / 'in', tmp_path / 'new', split=('train',))[0].values()) == [['y']]
        same = tar(tmp_path / 'b.tar', [('train/1.jpg', image()), ('train/1.txt', 'x')])
        assert len(unpack(same, tmp_path / 'out')[0]) == 1


def test_bytes_that_are_no_images_are_not_unpacked(tmp_path):
    (tmp_path / 'i').mkdir()
    (tmp_path / 'i/a.jpg').write_bytes(image())
    (tmp_path / 'i/a.txt').write_text('star')
    table(tmp_path / 'i/meta.parquet', {'phash': [b'1', None], 'url': ['u', 'v']})
    paths = table(tmp_path / 'paths.parquet', {'path': [b'a.jpg', None], 'caption': [b'one', b'x']})
    sounds = table(tmp_path / 'sound.parquet', {'audio': [{'bytes': b'RIFF', 'path': 'a.wav'}], 'text': ['x']})
    for source in (paths, sounds, str(tmp_path / 'i')):
        assert not packed.is_packed(source)
    heic = table(tmp_path / 'heic.parquet', {'image': [b'\xff\x00ftypheic'], 'caption': ['x']})
    assert 'row 0: the column image has bytes that are neither an image' in refuse('folder', heic, '--out', 'o.json')
    late = table(tmp_path / 'late.parquet', {'image': [None, b'<html>', image()], 'caption': ['x'] * 3})
    assert packed.is_packed(late) and not packed.is_packed(late, ['caption', 'image'])
    run('folder', tmp_path / 'i', '--out', tmp_path / 'o.json')
    assert read(tmp_path / 'o.json') == [{'image': 'a.jpg', 'caption': 'star'}]
    run('folder', paths, '--image-root', tmp_path / 'i', '--out', tmp_path / 'o.json')
    assert read(tmp_path / 'o.json') == [{'image': 'a.jpg', 'caption': 'one'}]


def test_what_is_not_packed(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a.jpg').write_bytes(image())
    paths = table(tmp_path / 'paths.parquet', {'image': ['a.jpg'], 'caption': ['x']})
    (tmp_path / 'broken.parquet').write_bytes(b'PAR1')
    for source in ('images', 'broken.parquet', 'absent.parquet', 'absent', '*.none', 'paths.parquet'):
        assert not packed.is_packed(str(tmp_path / source)), source
    both = table(tmp_path / 'both.parquet', {'path': ['a.jpg'], 'jpg': [image()], 'caption': ['x']})
    assert packed.is_packed(both) and not packed.is_packed(both, ['path', 'caption'])
    assert list(unpack(both, tmp_path / 'out')[0]) == ['both/000000.jpg']
    assert 'path has no images' in refusal(both, tmp_path / 'out', ['path', 'caption'])
    assert 'no images' in refusal(paths, tmp_path / 'out')
    no_caption = table(tmp_path / 'none.parquet', {'image': [image()], 'words': ['x']})
    assert packed.is_packed(no_caption) and 'choose those of images and captions' in refusal(no_caption, tmp_path)
    (tmp_path / 'pointer.parquet').write_bytes(POINTER)
    with pytest.raises(InputError, match='git lfs pull'):
        packed.is_packed(str(tmp_path / 'pointer.parquet'))


def test_parquet_with_embedded_images(tmp_path):
    images = [
        {'bytes': image(0), 'path': 'data/a.png'},  # the content decides
        {'bytes': image(1, 'PNG'), 'path': None},
        {'bytes': image(2), 'path': 'other/a.jpeg'},
        {'bytes': image(3, 'WEBP'), 'path': '../../../up.jpg'},
        {'bytes': None, 'path': 'gone.jpg'},
        None,
        {'bytes': b'<html>', 'path': 'page.jpg'},
        {'bytes': image(4), 'path': 'b.jpg'},
        {'bytes': image(5), 'path': 'c.jpg'},
        {'bytes': image(6), 'path': 'd.v1'},
    ]
    captions = [['zero', 'null'], ['one'], ['two'], ['three'], ['x'], ['x'], ['x'], None, [None, ''], ['nine', None]]
    path = table(tmp_path / 'train.parquet', {'image': images, 'caption': captions})
    assert packed.is_packed(path) and packed.is_packed(str(tmp_path))
    rows, summary = unpack(path, tmp_path / 'out')
    assert rows == {
        'train/a.jpg': ['zero', 'null'],
        'train/000001.png': ['one'],
        'train/000002.jpg': ['two'],
        'train/up.webp': ['three'],
        'train/d.v1.jpg': ['nine'],
    }
    files = files_under(tmp_path / 'out')
    assert files.keys() == rows.keys() and files['train/000002.jpg'] == image(2)
    assert summary.dropped == {
        'image that is not in the file, only its path': 1,
        'row without an image': 1,
        'image that is of no known format': 1,
        'row without a caption': 2,
    }
    assert summary.first['image that is of no known format'] == f'{path}, row 6'
    again, summary = unpack(path, tmp_path / 'out')
    assert again == rows and summary.written == [f'{tmp_path}/out: 0 images unpacked, 5 were there already']


@pytest.mark.parametrize('kind', [pyarrow.binary(), pyarrow.large_binary()])
def test_parquet_is_read_in_small_batches(tmp_path, monkeypatch, kind):
    count = 3 * packed.PER_BATCH + 1
    images = pyarrow.array([image(i) for i in range(count)], kind)
    path = table(tmp_path / 'a.parquet', {'img': images, 'text': [str(i) for i in range(count)]}, row_group_size=100)
    sizes = []
    really_iterate = parquet.ParquetFile.iter_batches

    def iterate(self, *args, **options):
        for batch in really_iterate(self, *args, **options):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, 'iter_batches', iterate)
    rows, _ = unpack(path, tmp_path / 'out')
    assert list(rows.items()) == [(f'a/{i:06d}.jpg', [str(i)]) for i in range(count)]
    assert max(sizes) <= packed.PER_BATCH


def test_a_parquet_file_that_is_damaged_is_refused(tmp_path):
    path = Path(table(tmp_path / 'a.parquet', {'image': [image(i) for i in range(50)], 'caption': ['x'] * 50}))
    data = bytearray(path.read_bytes())
    data[4:2000] = b'\xff' * 1996
    path.write_bytes(data)
    message = refusal(path, tmp_path / 'out')
    assert message.startswith(f'{path} is not a complete Parquet file')
    latin1 = pyarrow.array(['café'.encode('latin-1')], pyarrow.binary()).view(pyarrow.string())
    path = table(tmp_path / 'b.parquet', {'image': [image()], 'caption': latin1})
    assert f'{path}: a caption or path is not UTF-8 text' in refusal(path, tmp_path / 'out')


def test_an_interrupted_unpacking_continues(tmp_path):
    for number in range(2):
        tar(
            tmp_path / f'in/{number}.tar',
            [(f'{i}.{end}', image(i) if end == 'jpg' else 'x') for i in range(3) for end in ('jpg', 'txt')],
        )
    summary = Summary('')
    splits = Splits('', [], summary)
    rows = packed.unpack(str(tmp_path / 'in'), str(tmp_path / 'out'), None, None, splits, summary)
    for _ in range(4):
        next(rows)
    rows.close()
    assert sorted(files_under(tmp_path / 'out')) == ['0/0.jpg', '0/1.jpg', '0/2.jpg', '1/0.jpg']
    assert unpack(tmp_path / 'in', tmp_path / 'out')[1].written[0].endswith('2 images unpacked, 4 were there already')
