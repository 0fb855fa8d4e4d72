"""From a scene to pixels: anti-aliased shapes on a pale background, computed with integers only."""

from functools import cache

from PIL import Image, ImageChops, ImageDraw

from dataset.shapes.scene import Scene

IMAGE_SIDE = 128  # pixels
OVERSAMPLING = 8
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


def draw(scene: Scene) -> Image.Image:
    """The image of a placed scene: RGB, `IMAGE_SIDE` pixels square."""
    image = Image.new('RGB', (IMAGE_SIDE, IMAGE_SIDE), BACKGROUNDS[scene.background])
    for item, place in zip(scene.items, scene.places, strict=True):
        corner = place.x - place.radius, place.y - place.radius
        image.paste(RGB[item.color], corner, shape_mask(item.shape, place.radius))
    return image
