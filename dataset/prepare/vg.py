"""Visual Genome: region_descriptions.json and image_data.json."""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dataset.prepare.arguments import add_command, add_output_arguments, positive
from dataset.prepare.common import Summary, add_prefix, caption_rows, progress_bar, require_key, stream_json, write_rows
from dataset.prepare.exclude import Exclusions


@dataclass
class Image:
    path: str
    coco_id: int | None
    flickr_id: int | None


def add_vg(commands: Any) -> None:
    parser = add_command(commands, 'vg', run_vg)
    parser.add_argument('regions', metavar='region_descriptions.json')
    parser.add_argument('images', metavar='image_data.json')
    parser.add_argument(
        '--largest',
        type=positive,
        metavar='N',
        help='only the N regions of each image that cover most of it (default: all)',
    )
    add_output_arguments(parser, 'F.json', per_image=True)


def run_vg(args: argparse.Namespace) -> Summary:
    """Visual Genome: region_descriptions.json and image_data.json

    Each distinct description of a region becomes a caption of the image. Half of the images are COCO images: --exclude
    finds them by their COCO id.
    """
    summary = Summary('Visual Genome')
    images, exclusions = read_images(args.images, args.image_prefix), Exclusions(args.exclude)
    summary.read['images of image_data.json'] = len(images)
    items = progress_bar(stream_json(args.regions), 'regions', len(images))
    described = described_images(items, args.regions, images, exclusions, args.largest, summary)
    write_rows(args.out, caption_rows(described, args.one_row_per_image, summary), summary)
    return summary


def read_images(path: str, prefix: str) -> dict[int, Image]:
    """{id: image} of image_data.json; its URL contains the folder, VG_100K or VG_100K_2."""
    images = {}
    for item in stream_json(path):
        url = require_key(item, 'url', path, 'an image')
        number = item.get('image_id', item.get('id'))  # `id` in the first release
        images[number] = Image(add_prefix(prefix, *url.split('/')[-2:]), item.get('coco_id'), item.get('flickr_id'))
    return images


def described_images(
    items: Iterable, path: str, images: dict[int, Image], exclusions: Exclusions, largest: int | None, summary: Summary
) -> Iterator[tuple[str, list[str]]]:
    """(path, distinct phrases) of each image that is not excluded."""
    for item in items:
        regions = require_key(item, 'regions', path, 'an image')
        number = item.get('id', item.get('image_id'))
        summary.read['regions'] += len(regions)
        image = images.get(number)
        if image is None:
            summary.dropped['image that is not in image_data.json'] += 1
        elif exclusions.contains(image.path, image.coco_id, image.flickr_id):
            summary.excluded.add(image.path)
        else:
            yield image.path, distinct_phrases(regions, largest, summary)


def distinct_phrases(regions: list[dict], largest: int | None, summary: Summary) -> list[str]:
    """Each phrase once, ignoring case and spaces; the first of several equal ones."""
    if largest is not None:
        summary.dropped['region smaller than the --largest ones'] += max(0, len(regions) - largest)
        regions = sorted(regions, key=lambda region: -region['width'] * region['height'])[:largest]
    phrases: dict[str, str] = {}
    for region in regions:
        phrase = str(region.get('phrase', ''))
        phrases.setdefault(' '.join(phrase.lower().split()), phrase)
    summary.dropped['phrase that its image has already'] += len(regions) - len(phrases)
    return list(phrases.values())
