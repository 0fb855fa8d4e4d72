"""`python -m dataset.prepare check` on every kind of bad input, when interrupted, and on files that kill a process."""

import json
import os
import signal
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from dataset.annotations import load_annotations
from dataset.prepare.checking import examine
from tests.dataset.groups import check_gone
from tests.dataset.prepare.tools import jpeg, read, refuse, run, write


def bad_folder(folder) -> dict[str, str]:
    """Write one file of each kind -> {name: why it is dropped, or ''}."""
    jpeg(folder / 'good.jpg')
    good = (folder / 'good.jpg').read_bytes()
    (folder / 'same.jpg').write_bytes(good)
    (folder / 'truncated.jpg').write_bytes(open(jpeg(folder / 'large.jpg', size=(200, 200)), 'rb').read()[:9000])
    (folder / 'header only.jpg').write_bytes(good[:20])
    (folder / 'page.jpg').write_text('<!DOCTYPE html><html>not found</html>')
    (folder / 'zero.jpg').write_bytes(b'')
    (folder / 'noise.png').write_bytes(bytes(range(256)) * 9)
    (folder / 'folder.jpg').mkdir()
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (8, 8, 4), np.uint8), 'CMYK').save(folder / 'cmyk.jpg')
    Image.fromarray(rng.integers(0, 65536, (8, 8)).astype(np.uint16)).save(folder / 'sixteen.png')
    palette = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).quantize(8)
    palette.save(folder / 'palette.png', transparency=0)
    frames = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).quantize(8) for _ in range(3)]
    frames[0].save(folder / 'animated.gif', save_all=True, append_images=frames[1:])
    Image.new('RGB', (30_000, 40)).save(folder / 'panorama.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg(folder / 'rotated.jpg', seed=2, exif=exif)
    # A PNG whose header claims 60,000 x 60,000 pixels.
    Image.new('L', (1, 1)).save(folder / 'bomb.png')
    data = bytearray((folder / 'bomb.png').read_bytes())
    data[16:24] = (60_000).to_bytes(4, 'big') * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
    (folder / 'bomb.png').write_bytes(data)
    dropped = {
        'truncated.jpg': 'ends early',
        'header only.jpg': 'image: ',
        'page.jpg': 'HTML',
        'zero.jpg': 'empty',
        'noise.png': 'image: ',
        'folder.jpg': 'directory',
        'absent.jpg': 'No such file',
        'bomb.png': 'more than 500 million pixels',
        'nul\0.jpg': 'image: ',
        '\udcff.jpg': 'not UTF-8',
    }
    usable = [
        'good.jpg',
        'same.jpg',
        'cmyk.jpg',
        'sixteen.png',
        'palette.png',
        'animated.gif',
        'panorama.jpg',
        'rotated.jpg',
    ]
    return dropped | dict.fromkeys(usable, '')


def test_check_cleans_a_folder_of_everything_bad(tmp_path, capsys):
    fate = bad_folder(tmp_path / 'images')
    rows = [{'image': name, 'caption': f'caption of {name[:2]!r}', 'extra': 1} for name in fate]
    bad_rows = [
        ({'image': 'good.jpg'}, "has no 'caption'"),
        ({'caption': 'x'}, "has no 'image'"),
        ({'image': 'good.jpg', 'caption': 7}, "'caption' must be"),
        ({'image': 'good.jpg', 'caption': []}, 'empty list'),
        ({'image': 'good.jpg', 'caption': [' \n', '\0']}, 'nothing but blanks'),
        ({'image': '', 'caption': 'x'}, "'image' must be"),
        ('a string', 'is a str'),
    ]
    captions = {
        'two\nlines': 'two lines',
        'nul \0\x07 inside': 'nul inside',
        'emoji \U0001f600': 'emoji \U0001f600',
        'word ' * 10_000: ' '.join(['word'] * 200),
        'half \ud83d': 'half',
    }
    rows += [row for row, _ in bad_rows] + [{'image': 'good.jpg', 'caption': ['', text]} for text in captions]
    file = write(tmp_path / 'f.json', rows)
    run('check', file, '--image-root', tmp_path / 'images', '--out', tmp_path / 'g.json', '--workers', 2)

    clean = read(tmp_path / 'g.json')
    usable = [row for row in rows[: len(fate)] if not fate[row['image']]]
    assert clean == usable + [{'image': 'good.jpg', 'caption': [text]} for text in captions.values()]
    assert list(load_annotations(str(tmp_path / 'g.json'), 'pretrain'))[-1]['caption'] == ['half']
    report = read(tmp_path / 'g.report.json')
    found = {entry['row']: entry['reason'] for entry in report['dropped rows']}
    wanted = {
        number: reason
        for number, reason in enumerate(
            [fate[row['image']] for row in rows[: len(fate)]] + [reason for _, reason in bad_rows]
        )
        if reason
    }
    assert found.keys() == wanted.keys()
    for number, reason in wanted.items():
        assert reason in found[number], (rows[number], found[number])
    noted = report['noted']
    for note in (
        'CMYK, converted',
        'more than 8 bits a value, reduced',
        'transparency, ignored',
        'animated, first frame taken',
        'EXIF rotation, ignored',
    ):
        assert noted[f'image: {note}'] == 1, note
    assert report['duplicates']['image with the same bytes as another'] == 1
    assert report['duplicates']['image that came before'] == len(captions)
    assert report['duplicates']['caption that came before'] == 1  # that of palette and panorama
    assert report['most repeated images'] == [{'image': str(tmp_path / 'images/same.jpg'), 'copies': 2}]
    assert report['changed']['caption cut at 200 words'] == 1
    assert report['changed']['caption with line breaks or control characters, now spaces'] == 3
    files = sorted(name for name in os.listdir(tmp_path) if name[0] != '.')
    assert files == ['f.json', 'g.json', 'g.report.json', 'images']
    shown = capsys.readouterr().out
    assert f'read      {len(rows)} rows' in shown and f'{tmp_path}/g.json: {len(clean)} rows' in shown
    assert 'x bad image' in shown and '1 x caption with emoji, kept' in shown

    run('check', file, '--image-root', tmp_path / 'images', '--out', tmp_path / 'h.json', '--keep-truncated')
    names = [row['image'] for row in read(tmp_path / 'h.json')]
    assert 'truncated.jpg' in names and 'page.jpg' not in names


@pytest.mark.parametrize(
    ('kind', 'row', 'bad'),
    [
        ('retrieval_train', {'image': 'a.jpg', 'caption': 'x', 'image_id': 3}, {'image_id': None}),
        ('nlvr', {'images': ['a.jpg', 'b.jpg'], 'sentence': 'x', 'label': 'True'}, {'images': ['a.jpg', 'gone.jpg']}),
        ('vqa', {'question': 'x', 'image': 'a.jpg', 'dataset': 'vqa', 'question_id': 1}, {'question': '  '}),
        ('vqa', {'question': 'x', 'image': 'a.jpg', 'dataset': 'vqa', 'question_id': 1}, {'dataset': 'vg'}),
    ],
)
def test_check_knows_each_kind_of_row(tmp_path, kind, row, bad):
    for name in ('a.jpg', 'b.jpg'):
        jpeg(tmp_path / 'images' / name)
    file = write(tmp_path / 'f.json', [row, row | bad])
    roots = ['--image-root', tmp_path / 'images', '--vg-root', tmp_path]
    run('check', file, *roots, '--out', tmp_path / 'g.json', '--workers', 1)
    assert read(tmp_path / 'g.json') == [row]
    assert read(tmp_path / 'g.report.json')['kind'] == kind


def test_check_rebases(tmp_path):
    jpeg(tmp_path / 'new/a.jpg')
    rows = [{'image': '/old/server/a.jpg', 'caption': 'x'}, {'image': f'{tmp_path}/new/a.jpg', 'caption': 'y'}]
    file = write(tmp_path / 'f.jsonl', '\n'.join(map(json.dumps, rows)))
    run('check', file, '--out', tmp_path / 'g.json', '--rebase', f'/old/server={tmp_path}/new', '--workers', 1)
    assert [row['image'] for row in read(tmp_path / 'g.json')] == [f'{tmp_path}/new/a.jpg'] * 2
    assert read(tmp_path / 'g.report.json')['changed'] == {'image with a path that --rebase rewrites': 1}
    refused = ['check', file, '--out', tmp_path / 'h.json', '--rebase']
    message = refuse(*refused, '/mistyped=/x')
    assert 'no path starts with /mistyped' in message and "'/old/server/a.jpg'" in message
    assert 'give OLD=NEW' in refuse(*refused, '/old')


def test_the_rule_whose_result_exists_is_used(tmp_path):
    for name in ('VG_100K/1.jpg', 'VG_100K_2/2.jpg', 'b/3.jpg'):
        jpeg(tmp_path / 'images' / name)
    names = ['vg/1.jpg', 'vg/2.jpg', 'vg/gone.jpg', 'vg/sub/3.jpg', 'b/3.jpg']
    file = write(tmp_path / 'f.json', [{'image': name, 'caption': 'x'} for name in names])
    command = ['check', file, '--image-root', tmp_path / 'images', '--out', tmp_path / 'g.json', '--workers', 1]
    run(*command, '--rebase', 'vg=VG_100K', '--rebase', 'vg=VG_100K_2', '--rebase', 'vg/sub=b')
    assert [row['image'] for row in read(tmp_path / 'g.json')] == [
        'VG_100K/1.jpg',
        'VG_100K_2/2.jpg',
        'b/3.jpg',
        'b/3.jpg',
    ]
    [dropped] = read(tmp_path / 'g.report.json')['dropped rows']
    assert dropped['row'] == 2 and dropped['image'] == f'{tmp_path}/images/VG_100K/gone.jpg'


def test_each_reason_shows_an_example(tmp_path, capsys):
    jpeg(tmp_path / 'a.jpg')
    names = ['a.jpg', 'coco/b.jpg', 'coco/c.jpg', '\udcff.jpg']
    rows = [{'image': name, 'caption': 'x'} for name in names] + [{'image': 'a.jpg', 'caption': 7}]
    run(
        'check',
        write(tmp_path / 'f.json', rows),
        '--image-root',
        tmp_path,
        '--out',
        tmp_path / 'g.json',
        '--workers',
        1,
    )
    shown = capsys.readouterr().out
    assert f"2 x row: image: No such file or directory, the first: '{tmp_path}/coco/b.jpg'" in shown
    assert f"not UTF-8, the first: '{tmp_path}/\\udcff.jpg'" in shown
    assert "'caption' must be a string or a list of strings, the first: row 4" in shown


def test_if_no_image_exists_the_remedies_are_named(tmp_path):
    file = write(tmp_path / 'f.json', [{'image': f'/other/machine/{i}.jpg', 'caption': 'x'} for i in range(3)])
    message = refuse('check', file, '--image-root', tmp_path, '--out', tmp_path / 'g.json')
    assert "3 were looked for, the first is '/other/machine/0.jpg'" in message
    assert '--rebase' in message and '--find' in message and os.listdir(tmp_path) == ['f.json']


@pytest.mark.parametrize(
    ('row', 'others'),
    [
        ({'image': 'a.jpg', 'caption': ['x', 'y']}, [{'image': 'b.jpg'}, {'caption': ['y', 'x']}, {'caption': 'x'}]),
        (
            {'images': ['a.jpg', 'b.jpg'], 'sentence': 'x', 'label': 'True'},
            [{'images': ['b.jpg', 'a.jpg']}, {'sentence': 'X'}, {'label': False}],
        ),
        (
            {'question': 'x', 'image': 'a.jpg', 'dataset': 'vqa', 'question_id': 1, 'answer': ['1']},
            [{'answer': ['2']}, {'question': 'y'}, {'dataset': 'vg'}],
        ),
    ],
)
def test_duplicate_rows_are_dropped_on_request(tmp_path, capsys, row, others):
    for name in ('1/a.jpg', '1/b.jpg', '2/a.jpg'):
        jpeg(tmp_path / name)
    rows = [row, *(row | other for other in others), row | {'extra': 'ignored', 'question_id': 7}]
    command = ['check', write(tmp_path / 'f.json', rows), '--image-root', tmp_path / '1', '--vg-root', tmp_path / '2']
    run(*command, '--out', tmp_path / 'all.json', '--workers', 1)
    assert read(tmp_path / 'all.json') == rows and 'image and caption that came before' in capsys.readouterr().out
    run(*command, '--out', tmp_path / 'g.json', '--workers', 1, '--drop-duplicates')
    assert read(tmp_path / 'g.json') == rows[:-1]
    [dropped] = read(tmp_path / 'g.report.json')['dropped rows']
    assert (dropped['row'], dropped['earlier row']) == (4, 0)
    assert '1 x row: the same images and texts as an earlier row, the first: row 4, as row 0' in capsys.readouterr().out


def test_duplicates_are_what_is_written(tmp_path):
    """A row equals another if its path was replaced or its caption cleaned to the same."""
    jpeg(tmp_path / 'new/a.jpg')
    rows = [{'image': 'old/a.jpg', 'caption': 'a\ncat'}, {'image': 'new/a.jpg', 'caption': 'a cat '}]
    command = ['check', write(tmp_path / 'f.json', rows), '--image-root', tmp_path, '--drop-duplicates', '--workers', 1]
    run(*command, '--out', tmp_path / 'g.json', '--rebase', 'old=new')
    assert read(tmp_path / 'g.json') == [{'image': 'new/a.jpg', 'caption': 'a cat'}]


@pytest.mark.parametrize('name', ['clean.jsonl', 'clean.JSON', 'clean.ndjson'])
def test_report_and_progress_are_named_after_the_output(tmp_path, name):
    jpeg(tmp_path / 'a.jpg')
    file = write(tmp_path / 'f.json', [{'image': 'a.jpg', 'caption': 'x'}])
    run('check', file, '--image-root', tmp_path, '--out', tmp_path / name, '--workers', 1)
    assert sorted(os.listdir(tmp_path)) == sorted(['a.jpg', 'f.json', name, 'clean.report.json'])
    assert len(load_annotations(str(tmp_path / name), 'pretrain')) == 1


def test_check_overwrites_no_input(tmp_path):
    for name in ('g.report.json', 'g.progress.jsonl'):
        file = write(tmp_path / name, [{'image': 'a.jpg', 'caption': 'x'}])
        assert 'would be overwritten' in refuse('check', file, '--out', tmp_path / 'g.jsonl')
    (tmp_path / 'folder.json').mkdir()
    assert 'is a folder' in refuse('check', file, '--out', tmp_path / 'folder.json')


@pytest.mark.parametrize('workers', ['0', '-1', '1.5', 'all'])
def test_workers_are_an_integer_of_at_least_1(workers, capsys):
    with pytest.raises(SystemExit):
        run('check', 'f.json', '--out', 'g.json', '--workers', workers)
    assert 'is not an integer of at least 1' in capsys.readouterr().err


def test_check_refuses_other_files(tmp_path):
    out = ['--out', tmp_path / 'g.json']
    cut = write(tmp_path / 'f.json', '[{"image": "a", "caption": "x"}, {"im')
    assert 'is cut off at row 1' in refuse('check', cut, *out)
    assert 'give another file' in refuse('check', tmp_path / 'f.json', '--out', tmp_path / 'f.json')
    assert 'does not exist' in refuse('check', tmp_path / 'absent.json', *out)
    assert 'no JSON object' in refuse('check', write(tmp_path / 'f.json', '[1, 2]'), *out)
    empty = write(tmp_path / 'empty.jpg', '')
    assert 'no row is left' in refuse('check', write(tmp_path / 'f.json', [{'image': empty, 'caption': 'x'}]), *out)
    assert read(tmp_path / 'g.report.json')['dropped rows'][0]['row'] == 0 and not (tmp_path / 'g.json').exists()


def test_an_interrupted_check_continues(tmp_path, monkeypatch):
    rows = [{'image': f'{i}.jpg', 'caption': 'x'} for i in range(10)]
    for i in range(9):
        jpeg(tmp_path / f'images/{i}.jpg', seed=i)
    file, clean = write(tmp_path / 'f.json', rows), tmp_path / 'g.json'
    arguments = ['check', file, '--image-root', tmp_path / 'images', '--out', clean]
    seen = []

    def one_by_one(paths, workers):
        for path in sorted(paths, reverse=True):
            if len(seen) == 4:
                raise KeyboardInterrupt
            seen.append(os.path.basename(path))
            yield examine.examine(path)

    monkeypatch.setattr(examine, 'examine_all', one_by_one)
    with pytest.raises(SystemExit, match='interrupted'):
        run(*arguments)
    journal = tmp_path / 'g.progress.jsonl'
    journal.write_text(journal.read_text()[:-5])  # killed while it wrote the last line
    assert seen == ['9.jpg', '8.jpg', '7.jpg', '6.jpg'] and not clean.exists()
    jpeg(tmp_path / 'images/9.jpg')  # downloaded in the meantime
    seen[:] = [None] * 10
    run(*arguments)
    assert sorted(seen[10:]) == [f'{i}.jpg' for i in (0, 1, 2, 3, 4, 5, 6, 9)]  # 6 was incomplete, 9 was bad
    assert read(clean) == rows and not journal.exists()


def examine_slowly(connection, folder):
    def open_slowly(path, **options):
        connection.send(os.getpid())
        time.sleep(60)

    examine.open_image = open_slowly
    list(examine.examine_all([f'{folder}/{i}.jpg' for i in range(2 * examine.PER_TASK)], 2))


def test_no_process_survives_a_killed_check(tmp_path, start):
    child, connection = start(examine_slowly, tmp_path)
    assert len({connection.recv(), connection.recv()}) == 2
    child.kill()
    child.join()
    check_gone(child.pid, 1)


def test_what_is_not_a_file_is_a_bad_image(tmp_path):
    os.mkfifo(tmp_path / 'a.jpg')
    (tmp_path / 'b.jpg').symlink_to('/dev/zero')
    for name in ('a.jpg', 'b.jpg'):
        assert 'it is a pipe or a device' in examine.examine(str(tmp_path / name)).reason


def test_an_image_that_kills_the_decoder_is_one_bad_image(tmp_path, monkeypatch):
    paths = [jpeg(tmp_path / f'{i:02d}.jpg') for i in range(24)]
    really_open = examine.open_image

    def deadly(path, **options):
        if path in (paths[5], paths[20]):
            os.kill(os.getpid(), signal.SIGKILL)
        if path == paths[6]:
            raise RuntimeError('an unforeseen error')
        return really_open(path, **options)

    monkeypatch.setattr(examine, 'open_image', deadly)
    verdicts = {verdict.image: verdict.reason for verdict in examine.examine_all(paths, 2)}
    bad = {path: reason for path, reason in verdicts.items() if reason}
    assert verdicts.keys() == set(paths)
    assert bad == {
        paths[5]: 'reading it kills the process',
        paths[20]: 'reading it kills the process',
        paths[6]: 'RuntimeError an unforeseen error',
    }
