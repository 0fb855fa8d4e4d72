"""Shards of webdataset as input of `folder`: samples, captions, and tars that are damaged or hostile."""

import os
import tarfile
from pathlib import Path

import pytest

from dataset.prepare.own import packed, unpacked
from tests.dataset.prepare.packing import POINTER, files_under, image, refusal, tar, unpack


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
