"""Reading images: Pillow's pixels if the file is good, a defined result or `BadImage` if it is not."""

import io
import os
import pickle
import socket
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from dataset import images
from dataset.images import BadImage, open_image, read_image, scale_box

JPEG = 'JPEG'


def picture(width=61, height=47, seed=0):
    """Smooth colors and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    return Image.fromarray((np.asarray(coarse) * 0.9 + rng.integers(0, 25, (height, width, 3))).astype(np.uint8))


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def official(data):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))


@pytest.fixture
def read(tmp_path):
    """Write bytes to a file and read the image; any warning is an error."""

    def run(data, **options):
        path = tmp_path / 'image.jpg'
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            return read_image(path, **options)

    return run


def with_orientation(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be displayed rotated by 90 degrees
    return encode(image, JPEG, exif=exif)


def palette_with_transparency():
    return encode(picture().quantize(16), 'PNG', transparency=bytes(range(0, 256, 16)))


def animated_gif():
    frames = [picture(seed=seed) for seed in range(3)]
    return encode(frames[0], 'GIF', save_all=True, append_images=frames[1:], duration=50)


GOOD = {
    'jpeg 4:2:0': lambda: encode(picture(), JPEG, subsampling='4:2:0'),
    'jpeg 4:4:4': lambda: encode(picture(), JPEG, subsampling='4:4:4', quality=95),
    'jpeg progressive': lambda: encode(picture(), JPEG, progressive=True),
    'jpeg grayscale': lambda: encode(picture().convert('L'), JPEG),
    'jpeg cmyk': lambda: encode(picture().convert('CMYK'), JPEG),
    'jpeg stored as rgb': lambda: encode(picture(), JPEG, keep_rgb=True),
    'jpeg exif rotation is ignored': lambda: with_orientation(picture()),
    'jpeg with bytes after its end': lambda: encode(picture(), JPEG) + b'\n',
    'png': lambda: encode(picture(), 'PNG'),
    'png with alpha': lambda: encode(picture().convert('RGBA'), 'PNG'),
    'png palette with transparency': palette_with_transparency,
    'png black and white': lambda: encode(picture().convert('1'), 'PNG'),
    'gif animated, first frame': animated_gif,
    'bmp': lambda: encode(picture(), 'BMP'),
    'one pixel': lambda: encode(picture(1, 1), JPEG),
}


@pytest.mark.parametrize('kind', GOOD)
def test_pixels_are_those_of_pillow(kind, read):
    data = GOOD[kind]()
    pixels = read(data)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, official(data))


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_16_bit_png_keeps_the_high_byte(mode, read):
    """Pillow itself does so for color, and clips grayscale at 255."""
    values = np.arange(0, 65536, 16, dtype='>u2').reshape(64, 64)
    channels = 1 if mode == 'L' else 3
    rows = b''.join(b'\0' + np.repeat(row, channels).tobytes() for row in values)
    header = struct.pack('>IIBBBBB', 64, 64, 16, 0 if mode == 'L' else 2, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    data = b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body)) for name, body in chunks
    )
    np.testing.assert_array_equal(read(data), np.repeat(values[..., None] >> 8, 3, axis=2))
    if mode == 'RGB':
        np.testing.assert_array_equal(read(data), official(data))


def test_truncated_jpeg_is_decoded_as_far_as_it_goes(read):
    data = encode(picture(160, 120), JPEG)
    pixels = read(data[: len(data) // 2])
    np.testing.assert_array_equal(pixels[:32], read(data)[:32])
    assert pixels.shape == (120, 160, 3)
    with pytest.raises(BadImage, match='truncated'):
        read(data[: len(data) // 2], allow_truncated=False)
    read(data[: len(data) // 2])  # the refusal has no effect on later calls


def test_damage_inside_a_jpeg_gives_the_pixels_that_pillow_makes_of_it(read):
    data = bytearray(encode(picture(160, 120), JPEG))
    data[len(data) // 2] ^= 0x55
    np.testing.assert_array_equal(read(bytes(data)), official(bytes(data)))


BAD = {
    'empty': (b'', 'empty'),
    'HTML': (b'\n <!DOCTYPE html><html><body>Not found</body></html>', 'HTML or XML page'),
    'PostScript': (encode(picture(), 'EPS'), 'PostScript program'),
    'text': (b'gone' * 100, 'no known image format'),
    'JPEG cut off in its header': (encode(picture(), JPEG)[:100], 'Truncated|no known'),
    'PNG cut off in its header': (encode(picture(), 'PNG')[:20], 'Truncated|no known'),
}


@pytest.mark.parametrize('kind', BAD)
def test_refused(kind, read, tmp_path):
    data, reason = BAD[kind]
    with pytest.raises(BadImage, match=reason) as caught:
        read(data)
    assert str(tmp_path / 'image.jpg') in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name, reason', [('missing.jpg', 'No such file'), ('', 'Is a directory'), ('a\0b', 'null')])
def test_other_paths_than_files_are_refused(name, reason, tmp_path):
    with pytest.raises(BadImage, match=reason):
        read_image(os.path.join(tmp_path, name))


def test_the_error_crosses_processes():
    error = BadImage('cannot read x.jpg')
    assert isinstance(pickle.loads(pickle.dumps(error)), BadImage) and isinstance(error, ValueError)


def test_a_panorama_beyond_pillows_pixel_limit_is_decoded_small(tmp_path):
    path = tmp_path / 'panorama.jpg'
    Image.new('L', (30_000, 6_000), 90).save(path)
    encoded = open_image(path)
    assert encoded.size == (30_000, 6_000)
    pixels = encoded.decode(8)
    assert pixels.shape == (750, 3750, 3) and (pixels == 90).all()


def test_absurd_sizes_are_refused_before_they_take_memory(read):
    """A damaged header that claims 65,535 x 65,535 pixels."""
    jpeg, bmp = bytearray(encode(picture(), JPEG)), bytearray(encode(picture(), 'BMP'))
    frame = jpeg.index(b'\xff\xc0')
    jpeg[frame + 5 : frame + 9] = b'\xff' * 4
    bmp[18:26] = struct.pack('<ii', 65_535, 65_535)
    for data in (jpeg, bmp):
        with pytest.raises(BadImage, match='65535 x 65535 pixels'):
            read(bytes(data))


@pytest.mark.parametrize('kind', ['jpeg 4:2:0', 'jpeg grayscale', 'jpeg cmyk', 'jpeg with bytes after its end', 'png'])
@pytest.mark.parametrize('reduce', [1, 2, 4, 8])
def test_reduced_decode_equals_pillows_draft(kind, reduce, read):
    data = GOOD[kind]()
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    image.draft(None, (width // reduce, height // reduce))
    reduced = 1 if kind == 'png' else reduce
    assert image.size == (-(-width // reduced), -(-height // reduced))
    np.testing.assert_array_equal(read(data, reduce=reduce), np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('kind', ['jpeg 4:2:0', 'jpeg cmyk', 'png'])
def test_a_box_is_cut_out_of_the_image(kind, tmp_path):
    path = tmp_path / 'image'
    path.write_bytes(GOOD[kind]())
    np.testing.assert_array_equal(open_image(path).decode(box=(3, 5, 40, 30)), read_image(path)[5:30, 3:40])
    reduced, factor = read_image(path, reduce=2), 1 if kind == 'png' else 2
    expected = reduced[10 // factor : 40 // factor, 20 // factor : 60 // factor]
    np.testing.assert_array_equal(open_image(path).decode(2, (20, 10, 60, 40)), expected)


@pytest.mark.parametrize('reduce', [1, 2, 4, 8])
def test_scaled_boxes_stay_inside_and_are_never_empty(reduce):
    for width in range(1, 40):
        size = -(-width // reduce)
        for left in range(width):
            for right in range(left + 1, width + 1):
                a, top, b, bottom = scale_box((left, 0, right, 1), reduce, (size, 1))
                assert 0 <= a < b <= size and (top, bottom) == (0, 1)
                assert abs(a - left / reduce) <= (0.5 if right - left >= reduce else 1)
                assert abs(b - right / reduce) <= (0.5 if right - left >= reduce else 1.5)
                assert b - a >= (right - left) // reduce


# ---- hostile files ----


@pytest.mark.parametrize('kind', ['pipe', 'socket', 'device'])
def test_what_is_not_a_file_is_refused_at_once(kind, tmp_path):
    """To open a pipe for reading waits for a writer, and /dev/zero never ends."""
    path, listener = tmp_path / 'image.jpg', socket.socket(socket.AF_UNIX)
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'socket':
        listener.bind(str(path))
    else:
        path.symlink_to('/dev/zero')
    with listener, pytest.raises(BadImage, match='image.jpg.: (it is a pipe or a device|No such device)'):
        read_image(path)


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
    path = tmp_path / 'image.jpg'
    with open(path, 'wb') as file:
        file.truncate(1 << 40)  # it takes no room on the disk
    with pytest.raises(BadImage, match='image.jpg.: 1048576 MiB are too much for an image'):
        read_image(path)


def without_memory(*args, **kwargs):
    raise MemoryError


def without_memory_in_opencv(*args, **kwargs):
    raise images.cv2.error('Insufficient memory')


@pytest.mark.parametrize(
    'place, failing',
    [
        ('cv2.imdecode', without_memory),
        ('cv2.cvtColor', without_memory_in_opencv),
        ('Image.open', without_memory),
        ('to_rgb', without_memory),
        ('open_regular', without_memory),
    ],
)
def test_an_image_for_which_there_is_no_memory_is_named(place, failing, read, monkeypatch):
    data = encode(picture(), JPEG if 'cv2' in place else 'PNG')
    monkeypatch.setattr(f'dataset.images.{place}', failing)
    with pytest.raises(BadImage, match='image.jpg.: there is not enough memory for it'):
        read(data)
