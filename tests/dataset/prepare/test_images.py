"""Image files under a folder: links, unknown extensions, and what cannot be read are followed or counted."""

import os
import shutil

import pytest
from PIL import Image

from dataset.images import read_image
from dataset.prepare.common import Summary
from dataset.prepare.images import files_under, image_extensions, image_files, without_extension
from tests.dataset.prepare.tools import jpeg, read, run, write


@pytest.mark.filterwarnings('ignore:IM image format')
def test_training_reads_every_known_extension(tmp_path):
    """Each format that Pillow can write, under each of its extensions."""
    Image.init()
    tried = 0
    for extension in image_extensions():
        if Image.EXTENSION[extension] in Image.SAVE and extension not in ('.pfm', '.blp', '.icns'):
            path = tmp_path / f'a{extension}'
            Image.new('1' if extension in ('.msp', '.xbm') else 'RGB', (16, 16)).save(path)
            assert read_image(path).shape == (16, 16, 3)
            tried += 1
    assert tried > 20 and {'.jpg', '.jfif', '.jpe', '.webp', '.tiff'} <= set(image_extensions())
    assert not {'.eps', '.pdf', '.mpg', '.txt', '.json'} & set(image_extensions())


def test_only_the_extension_of_an_image_is_cut():
    names = ('a.JPG', 'a.b.png', 'a.b', 'a', 'dog 1.', 'v1.2')
    assert [without_extension(name) for name in names] == ['a', 'a.b', 'a.b', 'a', 'dog 1.', 'v1.2']


def test_links_are_followed_once_and_broken_ones_counted(tmp_path):
    jpeg(tmp_path / 'elsewhere/c.jpg')
    jpeg(tmp_path / 'own/sub/a.jpg')
    jpeg(tmp_path / 'own/b.jpg')
    (tmp_path / 'own/linked').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'own/sub/loop').symlink_to(tmp_path / 'own')
    (tmp_path / 'own/gone.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    (tmp_path / 'own/here.jpg').symlink_to(tmp_path / 'own/b.jpg')
    summary = Summary('')
    assert list(image_files(files_under(str(tmp_path / 'own'), summary), summary)) == [
        'b.jpg',
        'here.jpg',
        'linked/c.jpg',
        'sub/a.jpg',
    ]
    assert summary.dropped == {'broken link': 1} and summary.first['broken link'] == f'{tmp_path}/own/gone.jpg'
    assert summary.noted == {'folder that a link names again': 1}


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read every folder')
def test_a_folder_that_cannot_be_read_is_counted(tmp_path):
    jpeg(tmp_path / 'closed/a.jpg')
    (tmp_path / 'closed').chmod(0)
    summary = Summary('')
    assert list(files_under(str(tmp_path), summary)) == []
    (tmp_path / 'closed').chmod(0o700)
    assert summary.dropped['folder that cannot be read'] == 1


def test_pictures_of_every_extension_are_taken_or_counted(tmp_path, capsys):
    for name in ('a.jpg', 'b.jfif', 'c.jpe', 'd', 'e.JPEG', 'no text.jpg'):
        jpeg(tmp_path / 'own' / name)
    for name in ('f.heic', 'g.svg', 'h'):
        write(tmp_path / 'own' / name, 'not an image')
    for name in 'abcdefghi':
        write(tmp_path / f'own/{name}.txt', f'star {name}')
    run('folder', tmp_path / 'own', '--out', tmp_path / 'o.json')
    assert [row['image'] for row in read(tmp_path / 'o.json')] == ['a.jpg', 'b.jfif', 'c.jpe', 'd', 'e.JPEG']
    shown = capsys.readouterr().out
    for line in (
        '1 x image without a .txt, the first: no text.jpg',
        '4 x .txt without an image, the first: f.txt',
        '1 x file .heic, which training does not read as an image, the first: f.heic',
        '1 x file .svg, which',
        '1 x file without an extension, which training does not read as an image, the first: h',
    ):
        assert line in shown, shown


def test_other_files_in_a_download_folder_are_counted(tmp_path, capsys):
    table = write(tmp_path / 't.tsv', ''.join(f'star {row}\thttp://a.org/{row}x\n' for row in range(4)))
    for name in ('0.jpg', '1.jfif', '2'):
        jpeg(tmp_path / 'i' / name)
    for name in ('3.mp4', '0.json', '0.txt', '00000_stats.json'):
        write(tmp_path / 'i' / name, '')
    shutil.copy(tmp_path / 'i/0.jpg', tmp_path / 'i/cover.jpg')
    run('cc3m', table, '--images', tmp_path / 'i', '--out', tmp_path / 'o.json')
    assert [row['image'] for row in read(tmp_path / 'o.json')] == ['0.jpg', '1.jfif', '2']
    shown = capsys.readouterr().out
    assert '1 x file .mp4, which training' in shown and '1 x image that no row names' in shown
