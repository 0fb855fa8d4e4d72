"""Duplicates with known truth: training images of which the same captions are true, and which image a caption fits.

    python -m dataset.shapes --out output/shapes_duplicates --duplicates 0.3

A share of the training images comes in groups of ten: a scene, and nine more pictures of it. Their captions are those
of the scene. Five of the nine show its items at other places, before any background; four also show one more item,
which no caption names, if the scene has fewer than four items and the split allows another.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from random import Random

from dataset.shapes.sampling import companions, draw_scenes, placed
from dataset.shapes.scene import SIZES, Item, Scene, pick, shuffled
from utils.errors import InputError

GROUP = 10  # images
MOST_ITEMS = 4


def check_share(share: float) -> None:
    """InputError if a share of duplicates is not from 0 to 1."""
    if not 0 <= share <= 1:
        raise InputError(f'--duplicates {share} is not a share of the training images: give a number from 0 to 1')


def group_count(count: int, share: float) -> int:
    """The number of groups among `count` training images: round(share x count / 10), and no more than they can hold."""
    return max(0, min(round(share * count / GROUP), count // GROUP))


def scenes_of(marker: Mapping, split: str) -> list[Scene]:
    """The scenes of a split, one for each image. marker: `seed`, `scenes` and, if there are any, `duplicates`."""
    count, seed, share = marker['scenes'][split], marker['seed'], marker.get('duplicates', 0)
    return duplicated(count, seed, share) if split == 'train' and share else draw_scenes(split, count, seed)


def duplicated(count: int, seed: int, share: float) -> list[Scene]:
    """`count` training scenes, of which a share is in groups of ten, in random order.

    The others are the first training scenes of this seed. Which scenes have a group is random, too, so that neither the
    place of an image in the files nor its family depends on whether it is a duplicate.
    """
    rng, groups = Random(f'{seed} train duplicates'), group_count(count, share)
    scenes = shuffled(rng, draw_scenes('train', count - (GROUP - 1) * groups, seed))
    pictures = [picture for scene in scenes[:groups] for picture in draw_group(rng, scene)]
    return shuffled(rng, [*pictures, *scenes[groups:]])


def draw_group(rng: Random, base: Scene) -> list[Scene]:
    """The scene and nine more pictures of it, each with the named items at places of its own."""
    group, taken = [base], {base.places}
    while len(group) < GROUP:
        options = companions([item.kind for item in base.items], 'train') if len(group) % 2 == 0 else []
        extra = [Item(pick(rng, SIZES), *pick(rng, options))] if options and len(base.items) < MOST_ITEMS else []
        picture = replace(base, items=(*base.items, *extra), unnamed=len(extra))
        while (picture := placed(rng, picture)).places[: len(base.items)] in taken:
            pass
        group.append(picture)
        taken.add(picture.places[: len(base.items)])
    return group


def other_images(scenes: Sequence[Scene], images: Sequence[str]) -> list[list[str]]:
    """For each scene the images of the other scenes of which its captions are true, in order.

    A caption is true of an image that shows all items it names, with the same related pair in the same relation.
    """
    showing = defaultdict(list)
    for scene, image in zip(scenes, images, strict=True):
        for meaning in true_meanings(scene):
            showing[meaning].append(image)
    return [
        [other for other in showing[scene.meaning] if other != image]
        for scene, image in zip(scenes, images, strict=True)
    ]


def true_meanings(scene: Scene) -> Iterator[tuple]:
    """The meaning of every caption that is true of the image of a scene: it names the pair and any other items."""
    others = scene.items[2:]
    for count in range(len(others) + 1):
        for some in combinations(others, count):
            yield Scene((*scene.items[:2], *some), scene.relation).meaning
