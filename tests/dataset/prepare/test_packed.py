"""Images in webdataset tars and in Parquet files: unpacked once, to safe names, and nothing is lost without a count."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from dataset.prepare.common import Summary
from dataset.prepare.own import packed, unpacked
from dataset.prepare.own.splits import Splits
from tests.dataset.prepare.tools import read, refuse, run
from utils.errors import InputError

POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n'


def image(seed: int = 0, kind: str = 'JPEG') -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def tar(path: Path, members: list[tuple[str, bytes | str | dict | tarfile.TarInfo]]) -> str:
    """Write a tar of (name, bytes, text, value as JSON, or header without data); returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w:gz' if path.suffix in ('.gz', '.tgz') else 'w') as out:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                data.name = name
                out.addfile(data)
                continue
            data = json.dumps(data) if isinstance(data, dict | list) else data
            data = data.encode() if isinstance(data, str) else data
            header = tarfile.TarInfo(name)
            header.size = len(data)
            out.addfile(header, io.BytesIO(data))
    return str(path)


def table(path: Path, columns: dict[str, list], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, **options)
    return str(path)


def unpack(
    source: object, out: Path, columns: list[str] | None = None, encoding: str | None = None, split: tuple = ()
) -> tuple[dict[str, list], Summary]:
    """The rows as {path: captions}, and the summary."""
    summary = Summary('')
    splits = Splits(str(source), list(split), summary)
    rows = list(splits.checked(packed.unpack(str(source), str(out), columns, encoding, splits, summary)))
    assert len(dict(rows)) == len(rows) and all((out / name).is_file() for name, _ in rows)
    return dict(rows), summary


def refusal(source: object, out: Path, columns: list[str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        unpack(source, out, columns)
    message = str(caught.value)
    assert '\n' not in message
    return message


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('name', ['00000.tar', '00000.tar.gz', '00000.TGZ'])
def test_a_shard_is_unpacked_once(tmp_path, name, monkeypatch):
    if name == '00000.TGZ':
        os.rename(tar(tmp_path / 'a.tgz', [('1.jpg', image(1)), ('1.txt', 'one\n\ntwo\r\n')]), tmp_path / name)
    else:
        tar(tmp_path / name, [('1.jpg', image(1)), ('1.txt', 'one\n\ntwo\r\n')])
    assert packed.is_packed(str(tmp_path / name))
    rows, summary = unpack(tmp_path / name, tmp_path / 'out')
    assert [[text.strip() for text in texts] for texts in rows.values()] == [['one', 'two']]
    assert files_under(tmp_path / 'out') == {'00000/1.jpg': image(1)} and list(rows) == ['00000/1.jpg']
    assert summary.written == [f'{tmp_path}/out: 1 images unpacked, 0 were there already']
    monkeypatch.setattr(unpacked, 'atomic_write', None)
    again, summary = unpack(tmp_path / name, tmp_path / 'out')
    assert again == rows and summary.written == [f'{tmp_path}/out: 0 images unpacked, 1 were there already']


def test_samples_need_not_be_complete_or_sorted(tmp_path):
    shard = tar(
        tmp_path / 'a.tar',
        [
            ('./2.txt', 'two'),
            ('1.jpg', image(1)),
            ('2.JPG', image(2)),
            ('1.txt', 'one'),
            ('no caption.jpg', image(3)),
            ('empty.jpg', image(4)),
            ('empty.txt', '\n \n'),
            ('no image.txt', 'x'),
            ('no image.cls', '3'),
            ('both.jpg', image(5)),
            ('both.png', image(5, 'PNG')),
            ('both.txt', 'x'),
            ('twice.jpg', image(6)),
            ('twice.txt', 'x'),
            ('twice.txt', 'y'),
            ('mask.jpg', image(7)),
            ('mask.seg.png', image(7, 'PNG')),
            ('mask.txt', 'm'),
            ('left.left.jpg', image(8)),
            ('left.txt', 'l'),
            ('content.img', image(9, 'WEBP')),
            ('content.cls', '3'),
            ('content.txt', 'c'),
            ('._1.jpg', b'of macOS'),
        ],
    )
    rows, summary = unpack(shard, tmp_path / 'out')
    wanted = {'a/1.jpg': 'one', 'a/2.jpg': 'two', 'a/mask.jpg': 'm', 'a/left.jpg': 'l', 'a/content.webp': 'c'}
    assert rows == {name: [text] for name, text in wanted.items()}
    files = files_under(tmp_path / 'out')
    assert files.keys() == wanted.keys() and files['a/2.jpg'] == image(2) and files['a/mask.jpg'] == image(7)
    assert summary.dropped == {
        'sample without a caption': 2,
        'sample without an image': 1,
        'sample with several images (a name ends at the first dot)': 1,
        'sample that has a member twice': 1,
    }
    assert summary.first['sample without an image'] == f"{shard}: 'no image'"
    assert summary.noted == {
        'further image of a sample, such as a mask, not used': 1,
        'hidden member, not read': 1,
    }
    assert summary.read == {'shards': 1, 'samples': 10}


@pytest.mark.parametrize(
    ('texts', 'columns', 'wanted'),
    [
        ({'json': {'caption': 'a', 'url': 'u'}}, None, ['a']),
        ({'json': {'TEXT': 'a', 'url': 'u'}}, None, ['a']),
        ({'json': {'caption': None, 'title': 'b'}}, None, ['b']),
        ({'json': {'captions': ['a', 'b']}}, None, ['a', 'b']),
        ({'json': {'captions': [{'caption': 'a'}, {'caption': 'b', 'id': 1}]}}, None, ['a', 'b']),
        ({'json': ['a', 'b']}, None, ['a', 'b']),
        ({'json': '"a"'}, None, ['a']),
        ({'json': '\ufeff{"caption": "é"}'}, None, ['é']),
        ({'caption': 'a'}, None, ['a']),
        ({'json': {'caption': 'json'}, 'txt': 'txt'}, None, ['txt']),
        ({'json': {'caption': 'json'}, 'txt': ''}, None, ['json']),
        ({'json': {'caption': 'a', 'long': 'b'}}, ['jpg', 'long'], ['b']),
        ({'txt': 'a', 'long.txt': 'b'}, ['jpg', 'long.txt'], ['b']),
        ({'txt': 'a\rb'}, None, ['a', 'b']),
        ({'json': {'caption': "['a', 'b']"}}, None, ['a', 'b']),
        ({'txt': '["a", "b"]\n[c]'}, None, ['a', 'b', '[c]']),
    ],
)
def test_captions_of_a_sample(tmp_path, texts, columns, wanted):
    shard = tar(tmp_path / 'a.tar', [('1.jpg', image()), *((f'1.{name}', text) for name, text in texts.items())])
    assert unpack(shard, tmp_path / 'out', columns)[0] == {'a/1.jpg': wanted}


def test_columns_choose_the_image(tmp_path):
    shard = tar(tmp_path / 'a.tar', [('1.left.jpg', image(1)), ('1.right.jpg', image(2)), ('1.txt', 'x')])
    unpack(shard, tmp_path / 'out', ['right.jpg', 'txt'])
    assert files_under(tmp_path / 'out') == {'a/1.jpg': image(2)}
    message = refusal(shard, tmp_path / 'new', ['jpg', 'txt'])
    assert 'no sample has an image and a caption; the extensions are .left.jpg, .right.jpg, .txt' in message
    assert '--columns' in message and not (tmp_path / 'new').exists()


def test_bad_texts(tmp_path):
    good = [('1.jpg', image()), ('1.txt', 'x')]
    shard = tar(
        tmp_path / 'a.tar',
        [*good, ('2.jpg', image()), ('2.json', '{"caption'), ('3.json', '[' * 5000), ('4.json', b'"\xe9"')],
    )
    rows, summary = unpack(shard, tmp_path / 'out')
    assert list(rows) == ['a/1.jpg'] and summary.dropped['JSON that cannot be read'] == 3
    assert f"{shard}: '2.json'" in summary.first['JSON that cannot be read']
    shard = tar(tmp_path / 'b.tar', [('1.jpg', image()), ('1.txt', 'café'.encode('cp1252'))])
    message = refusal(shard, tmp_path / 'out')
    assert f"{shard}: '1.txt'" in message and '--encoding' in message
    assert unpack(shard, tmp_path / 'out', encoding='cp1252')[0] == {'b/1.jpg': ['café']}


def test_no_member_leads_out_of_the_folder(tmp_path):
    secret = tmp_path / 'secret.jpg'
    secret.write_bytes(image(99))
    link, hard, device = (tarfile.TarInfo() for _ in range(3))
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    hard.type, hard.linkname = tarfile.LNKTYPE, 'deep/1.jpg'
    device.type = tarfile.CHRTYPE
    names = [
        '../../up.jpg',
        '/absolute.jpg',
        'deep/1.jpg',
        'other/1.jpg',
        'a\\b.jpg',
        'x' * 300 + '.jpg',
        'new\nline.jpg',
        '\udcff.jpg',
        'CON:?*.jpg',
    ]
    members = [member for name in names for member in ((name, image(len(name))), (name[:-4] + '.txt', 'x'))]
    folder = tarfile.TarInfo()
    folder.type = tarfile.DIRTYPE
    bad = [('link.jpg', link), ('hard.jpg', hard), ('null.jpg', device), ('dir.jpg', folder)]
    bad += [(f'{name[:-4]}.txt', 'x') for name, _ in bad]
    shard = tar(tmp_path / 'in/..tar.tar', members + bad)
    before = files_under(tmp_path)
    rows, summary = unpack(shard, tmp_path / 'out')
    created = files_under(tmp_path).keys() - before.keys()
    assert created == {f'out/{name}' for name in rows} and len(rows) == len(names)
    assert {'tar/1.jpg', 'tar/1_2.jpg', 'tar/up.jpg', 'tar/absolute.jpg'} <= rows.keys()
    assert (tmp_path / 'out/tar/1_2.jpg').read_bytes() == image(len('other/1.jpg'))
    assert not any(path.is_symlink() for path in (tmp_path / 'out').rglob('*'))
    assert summary.dropped == {'member that is a link or a device': 3, 'sample without an image': 4}


def test_a_file_of_somebody_else_stays(tmp_path):
    shard = tar(tmp_path / 'a.tar', [('1.jpg', image()), ('1.txt', 'x')])
    for theirs in (b'mine', image() + b'more', b''):
        (tmp_path / 'out/a').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'out/a/1.jpg').write_bytes(theirs)
        assert f'{tmp_path}/out/a/1.jpg exists and is not the image in {shard}' in refusal(shard, tmp_path / 'out')
        assert files_under(tmp_path / 'out') == {'a/1.jpg': theirs}


@pytest.mark.parametrize('name', ['a.tar', 'a.tar.gz'])
def test_a_shard_that_is_cut_off_is_refused(tmp_path, name):
    path = Path(
        tar(
            tmp_path / name,
            [(f'{i}.{end}', image(i) if end == 'jpg' else 'x') for i in range(4) for end in ('jpg', 'txt')],
        )
    )
    data = path.read_bytes()
    # Between members, in a header, in an image, before the mark of the end; with gzip these are any places.
    for length in (512 + len(image(0)) // 512 * 512 + 512, 300, 1000, len(data) // 2, 3000, 4608, 0):
        if length < len(data):
            path.write_bytes(data[:length])
            message = refusal(path, tmp_path / 'out')
            assert str(path) in message and 'download it again' in message
            assert not (tmp_path / 'out').exists(), length


def test_a_damaged_shard_is_refused(tmp_path):
    path = Path(
        tar(
            tmp_path / 'a.tar',
            [(f'{i}.{end}', image(i) if end == 'jpg' else 'x') for i in range(4) for end in ('jpg', 'txt')],
        )
    )
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as file:
        offset = file.getmembers()[5].offset
    path.write_bytes(data[:offset] + b'\xff' * 100 + data[offset + 100 :])
    assert 'cut off or damaged, after 5 members (a header is damaged)' in refusal(path, tmp_path / 'out')
    path.write_bytes(data + data)
    assert 'data after its end' in refusal(path, tmp_path / 'out')
    path.write_bytes(b'<html>404</html>' * 100)
    assert 'download it again' in refusal(path, tmp_path / 'out')
    path.write_bytes(POINTER)
    assert 'git lfs pull' in refusal(path, tmp_path / 'out')
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / 'absent.tar', tmp_path / 'out')


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
