"""Visual Genome: region_descriptions.json and image_data.json."""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dataset.prepare.common import (
    Summary,
    add_common,
    add_per_image,
    caption_rows,
    join,
    need,
    progress,
    stream_json,
    write_rows,
)
from dataset.prepare.exclude import Exclusions


@dataclass
class Image:
    path: str
    coco_id: int | None
    flickr_id: int | None


def add_vg(commands) -> None:
    parser = commands.add_parser(
        'vg',
        help='Visual Genome: region_descriptions.json and image_data.json',
        description='Each distinct region description of an image is a caption of it. Half of the images are COCO '
        'images: --exclude knows them by their COCO id.',
    )
    parser.add_argument('regions', metavar='region_descriptions.json')
    parser.add_argument('images', metavar='image_data.json')
    parser.add_argument(
        '--largest', type=int, metavar='N', help='only the N regions of each image that cover most of it (default: all)'
    )
    add_common(parser, 'F.json to write')
    add_per_image(parser)
    parser.set_defaults(run=run_vg)


def run_vg(args: argparse.Namespace) -> Summary:
    summary = Summary('Visual Genome')
    images, exclusions = read_images(args.images, args.image_prefix), Exclusions(args.exclude)
    summary.read['images of image_data.json'] = len(images)
    items = progress(stream_json(args.regions), 'regions', len(images))
    described = described_images(items, args.regions, images, exclusions, args.largest, summary)
    write_rows(args.out, caption_rows(described, args.one_row_per_image, summary), summary)
    return summary


def read_images(path: str, prefix: str) -> dict[int, Image]:
    """Of image_data.json, by id: where each image lies (VG_100K or VG_100K_2), and its COCO and Flickr ids."""
    images = {}
    for item in stream_json(path):
        url = need(item, 'url', path, 'an image of image_data.json')
        number = item.get('image_id', item.get('id'))  # `id` in the first release
        images[number] = Image(join(prefix, *url.split('/')[-2:]), item.get('coco_id'), item.get('flickr_id'))
    return images


def described_images(
    items: Iterable, path: str, images: dict[int, Image], exclusions: Exclusions, largest: int | None, summary: Summary
) -> Iterator[tuple[str, list[str]]]:
    for item in items:
        regions = need(item, 'regions', path, 'an image of region_descriptions.json')
        number = item.get('id', item.get('image_id'))
        summary.read['regions'] += len(regions)
        image = images.get(number)
        if image is None:
            summary.dropped['image that image_data.json does not know'] += 1
        elif exclusions.names(image.path, image.coco_id, image.flickr_id):
            summary.excluded.add(image.path)
        else:
            yield image.path, distinct_phrases(regions, largest, summary)


def distinct_phrases(regions: list[dict], largest: int | None, summary: Summary) -> list[str]:
    """Each phrase once, whatever its case and spaces; of several like ones the first."""
    if largest is not None:
        summary.dropped['region smaller than the --largest ones'] += max(0, len(regions) - largest)
        regions = sorted(regions, key=lambda region: -region['width'] * region['height'])[:largest]
    phrases: dict[str, str] = {}
    for region in regions:
        phrase = str(region.get('phrase', ''))
        phrases.setdefault(' '.join(phrase.lower().split()), phrase)
    summary.dropped['phrase that its image has already'] += len(regions) - len(phrases)
    return list(phrases.values())
