"""Visual Genome: region_descriptions.json and image_data.json."""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dataset.prepare.arguments import add_command, add_output_arguments, positive
from dataset.prepare.common import Summary, add_prefix, caption_rows, progress_bar, stream_json, write_rows
from dataset.prepare.entries import Entry, entries
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
    images = read_images(args.images, args.image_prefix)
    exclusions = Exclusions.of(args, summary)
    summary.read['images of image_data.json'] = len(images)
    items = entries(progress_bar(stream_json(args.regions), 'regions', len(images)), args.regions, 'image')
    described = described_images(items, images, exclusions, args.largest, summary)
    rows = exclusions.reported(caption_rows(described, args.one_row_per_image, summary), summary)
    write_rows(args.out, rows, summary)
    return summary


def read_images(path: str, prefix: str) -> dict[int, Image]:
    """{id: image} of image_data.json; its URL contains the folder, VG_100K or VG_100K_2."""
    images = {}
    for item in entries(stream_json(path), path, 'image'):
        number = item.integer('image_id', 'id')  # `id` in the first release
        file = add_prefix(prefix, *item.text('url').split('/')[-2:])
        images[number] = Image(file, item.get('coco_id'), item.get('flickr_id'))
    return images


def described_images(
    items: Iterable[Entry], images: dict[int, Image], exclusions: Exclusions, largest: int | None, summary: Summary
) -> Iterator[tuple[str, list]]:
    """(path, distinct phrases) of each image that is not excluded."""
    for item in items:
        regions = list(item.entries('regions', 'region'))
        summary.read['regions'] += len(regions)
        image = images.get(item.integer('id', 'image_id'))
        if image is None:
            summary.drop('image that is not in image_data.json', f'{item.path}, {item.place}')
        elif exclusions.contains(image.path, image.coco_id, image.flickr_id):
            summary.excluded.add(image.path)
        else:
            yield image.path, distinct_phrases(regions, largest, summary)


def distinct_phrases(regions: list[Entry], largest: int | None, summary: Summary) -> list:
    """Each phrase once, ignoring case and spaces; the first of several equal ones. What is not a string stays."""
    if largest is not None:
        summary.dropped['region smaller than the --largest ones'] += max(0, len(regions) - largest)
        regions = sorted(regions, key=lambda region: -region.integer('width') * region.integer('height'))[:largest]
    phrases: dict[object, object] = {}
    for number, region in enumerate(regions):
        phrase = region.get('phrase')
        phrases.setdefault(' '.join(phrase.lower().split()) if isinstance(phrase, str) else number, phrase)
    summary.dropped['phrase that its image has already'] += len(regions) - len(phrases)
    return list(phrases.values())
