"""From a scene to pixels: anti-aliased shapes on a pale background, computed with integers only."""

from functools import cache
from math import isqrt

from PIL import Image, ImageChops, ImageDraw

from dataset.shapes.scene import Place, Scene

IMAGE_SIDE = 128  # pixels
OVERSAMPLING = 8
RIM = 2  # pixels
BACKGROUNDS = ((252, 250, 244), (244, 248, 252), (246, 250, 244), (250, 245, 250), (247, 247, 247))
RGB = {
    'red': (222, 36, 36),
    'orange': (250, 140, 16),
    'yellow': (244, 212, 20),
    'green': (34, 160, 66),
    'blue': (36, 92, 218),
    'purple': (122, 48, 168),
    'pink': (248, 132, 192),
    'black': (34, 34, 40),
}

# Outlines in thousandths of the radius around the center, all symmetric to the vertical axis.
POLYGONS = {
    'square': ((-850, -850), (850, -850), (850, 850), (-850, 850)),
    'triangle': ((0, -900), (1000, 800), (-1000, 800)),
    'star': (
        *((0, -920), (253, -268), (951, -229), (409, 213), (588, 889)),
        *((0, 510), (-588, 889), (-409, 213), (-951, -229), (-253, -268)),
    ),
    'cross': (
        *((-320, -950), (320, -950), (320, -320), (950, -320), (950, 320), (320, 320)),
        *((320, 950), (-320, 950), (-320, 320), (-950, 320), (-950, -320), (-320, -320)),
    ),
    'heart': ((-847, 19), (0, 940), (847, 19), (480, -320), (0, -190), (-480, -320)),
    'diamond': ((0, -1000), (720, 0), (0, 1000), (-720, 0)),
}
# Discs added to the outline or, with value 0, cut out of it: center x, center y, radius, value.
DISCS = {
    'circle': ((0, 0, 950, 255),),
    'heart': ((-480, -320, 500, 255), (480, -320, 500, 255)),
    'ring': ((0, 0, 1000, 255), (0, 0, 560, 0)),
}


@cache
def shape_mask(shape: str, radius: int) -> Image.Image:
    """Coverage of a shape, 0 to 255, in a square of 2 x radius + 1 pixels; symmetric to the vertical axis."""
    side = 2 * radius + 1
    mask = Image.new('L', (side * OVERSAMPLING, side * OVERSAMPLING))
    draw = ImageDraw.Draw(mask)

    def at(thousandths: int) -> int:
        return (side * OVERSAMPLING * 1000 + 2 * thousandths * radius * OVERSAMPLING) // 2000

    if shape in POLYGONS:
        draw.polygon([(at(x), at(y)) for x, y in POLYGONS[shape]], fill=255)
    for x, y, r, value in DISCS.get(shape, ()):
        draw.ellipse((at(x - r), at(y - r), at(x + r), at(y + r)), fill=value)
    mask = mask.reduce(OVERSAMPLING)
    return ImageChops.lighter(mask, mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


@cache
def reach(shape: str, row: int) -> int | None:
    """How far a shape reaches to the right of its center at a row; None if the row is outside of the shape.

    Both in thousandths of the radius. Computed from the outline, not from pixels, so that the positions of items do not
    depend on how Pillow draws.
    """
    found = []
    corners = POLYGONS.get(shape, ())
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if min(y0, y1) <= row <= max(y0, y1):
            found.append(max(x0, x1) if y0 == y1 else x0 + (x1 - x0) * (row - y0) // (y1 - y0))
    for x, y, radius, value in DISCS.get(shape, ()):
        if value and abs(row - y) <= radius:
            found.append(x + isqrt(radius**2 - (row - y) ** 2))
    return max(found, default=None)


@cache
def contact_distance(first: tuple[str, int], second: tuple[str, int], dy: int) -> int:
    """Horizontal distance of the centers at which two (shape, radius) just overlap, the second `dy` pixels lower."""
    distances = []
    for row in range(-first[1], first[1] + 1):
        reach_first = reach(first[0], 1000 * row // first[1])
        reach_second = reach(second[0], 1000 * (row - dy) // second[1])
        if reach_first is not None and reach_second is not None:
            distances.append((reach_first * first[1] + reach_second * second[1]) // 1000)
    return max(distances) - 1


def draw(scene: Scene) -> Image.Image:
    """The image of a placed scene: RGB, `IMAGE_SIDE` pixels square."""
    background = BACKGROUNDS[scene.background]
    image = Image.new('RGB', (IMAGE_SIDE, IMAGE_SIDE), background)
    for i in reversed(range(len(scene.items))):  # the first item is drawn last: it may be inside the second
        item, place = scene.items[i], scene.places[i]
        if i == 0 and scene.relation == 'inside':  # a pale rim separates dark colors
            paint(image, item.shape, place._replace(radius=place.radius + RIM), background)
        paint(image, item.shape, place, RGB[item.color])
    return image


def paint(image: Image.Image, shape: str, place: Place, color: tuple[int, int, int]) -> None:
    image.paste(color, (place.x - place.radius, place.y - place.radius), shape_mask(shape, place.radius))
