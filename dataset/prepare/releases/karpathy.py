"""COCO captions and Flickr30k, from their caption files or from Karpathy's dataset_*.json, which has the splits."""

import argparse
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

from dataset.prepare.arguments import add_command, add_output_arguments
from dataset.prepare.common import Summary, add_prefix, caption_rows, clean_caption, load_json, write_rows
from dataset.prepare.entries import Entry
from dataset.prepare.exclude import Exclusions, flickr_id, flickr_id_in_name
from dataset.prepare.images import without_extension
from dataset.prepare.texts import read_lines
from utils.errors import InputError, MissingFileError

SPLITS = ('train', 'restval', 'val', 'test')
TRAINING = ('train', 'restval')  # restval: the images of COCO's val2014 that are neither in val nor in test


@dataclass
class Image:
    path: str
    image_id: str
    split: str = 'train'
    captions: list = field(default_factory=list)
    flickr_id: str | None = None
    coco_id: int | None = None
    caption_ids: list = field(default_factory=list)  # COCO's, one for each caption; empty if one of them has none


def add_coco(commands: Any) -> None:
    parser = add_command(commands, 'coco', run_coco)
    parser.add_argument('files', nargs='+', metavar='JSON')
    add_output_arguments(parser, 'FOLDER', per_image=True)


def add_flickr30k(commands: Any) -> None:
    parser = add_command(commands, 'flickr30k', run_flickr30k)
    parser.add_argument('file', metavar='FILE')
    parser.add_argument('--val', metavar='LIST', help='images of the validation split, one per line')
    parser.add_argument('--test', metavar='LIST', help='images of the test split, one per line')
    add_output_arguments(parser, 'FOLDER')


def run_coco(args: argparse.Namespace) -> Summary:
    """COCO captions: captions_*.json, or dataset_coco.json of Karpathy

    From dataset_coco.json: coco.json for pre-training and coco_train, coco_val and coco_test.json for retrieval. From
    captions_train2014.json and similar files: coco.json with all their captions.
    """
    summary = Summary('COCO captions')
    loaded = [(path, load_json(path)) for path in args.files]
    karpathy = [is_karpathy(data) for _, data in loaded]
    if any(karpathy) and len(loaded) > 1:
        raise InputError(
            "give Karpathy's dataset_coco.json without other files, because it contains all captions; to leave its "
            'test images out of captions_*.json, name it after --exclude'
        )
    if karpathy[0]:
        images = karpathy_images(*loaded[0][::-1], args.image_prefix, 'coco_', summary)
    else:
        images = []
        for path, data in loaded:
            images += coco_images(data, path, args.image_prefix, summary)
        refuse_repeated(images)
    images = drop_excluded(images, args, summary)
    training = [(image.path, image.captions) for image in images if image.split in TRAINING]
    write_rows(os.path.join(args.out, 'coco.json'), caption_rows(training, args.one_row_per_image, summary), summary)
    if karpathy[0]:
        write_retrieval(args.out, 'coco', images, summary)
    return summary


def run_flickr30k(args: argparse.Namespace) -> Summary:
    """Flickr30k: dataset_flickr30k.json of Karpathy, results_20130124.token or results.csv

    Writes flickr30k_train, flickr30k_val and flickr30k_test.json for retrieval. The token and CSV files have no splits:
    name the images of val and test with --val and --test.
    """
    summary = Summary('Flickr30k')
    if args.file.lower().endswith('.json'):
        if args.val or args.test:
            raise InputError(
                f'--val and --test: {args.file} says itself which images are in val and test: leave them out'
            )
        data = load_json(args.file)
        if not is_karpathy(data):
            raise InputError(f'{args.file} has no images with sentences and split: give dataset_flickr30k.json')
        images = karpathy_images(data, args.file, args.image_prefix, '', summary)
    else:
        images = token_images(args.file, args.image_prefix, args.encoding, summary)
        split_images(images, args, summary)
    images = drop_excluded(images, args, summary)
    write_retrieval(args.out, 'flickr30k', images, summary)
    if not summary.written:
        summary.print()
        raise InputError(f'no row of {args.file} is left to write: the summary says what was dropped or excluded')
    return summary


def split_images(images: list['Image'], args: argparse.Namespace, summary: Summary) -> None:
    """Set the split of each image by the lists of --val and --test. InputError if none of a list's entries matches."""
    named: dict[str, set[str]] = {}
    for split in ('val', 'test'):
        file = getattr(args, split)
        images_of_list = Exclusions([file] if file else [], summary, args.encoding, f'--{split}', args.allow_unmatched)
        named[split] = {image.path for image in images if images_of_list.contains(image.path, None, image.flickr_id)}
        images_of_list.report(summary)
    both = named['val'] & named['test']
    if both:
        raise InputError(
            f'--val and --test both name {len(both)} images, such as {min(both)}: give lists without overlap'
        )
    for image in images:
        image.split = next((split for split in named if image.path in named[split]), 'train')


def is_karpathy(data: object) -> bool:
    entries = data.get('images') if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        return False
    return {'sentences', 'split'} <= set(entries[0])


def karpathy_images(data: dict, path: str, prefix: str, id_prefix: str, summary: Summary) -> list[Image]:
    """The images of Karpathy's dataset_*.json."""
    images = []
    for entry in Entry(data, path).entries('images', 'image'):
        name, split = entry.text('filename'), entry.text('split')
        if split not in SPLITS:
            summary.drop(f'image of another split than {", ".join(SPLITS)}', f'{entry.place}, split {split!r}')
            continue
        folder = [entry.text('filepath')] if entry.get('filepath') else []
        sentences = list(entry.entries('sentences', 'sentence'))
        captions = [sentence.get('raw') for sentence in sentences]
        number = entry.identity('cocoid') if 'cocoid' in entry else without_extension(name)
        flickr = None if 'cocoid' in entry else flickr_id_in_name(name)
        images.append(Image(add_prefix(prefix, *folder, name), f'{id_prefix}{number}', split, captions, flickr))
        if 'cocoid' in entry and all('sentid' in sentence for sentence in sentences):
            images[-1].coco_id = entry.integer('cocoid')
            images[-1].caption_ids = [sentence.integer('sentid') for sentence in sentences]
    return images


def coco_images(data: object, path: str, prefix: str, summary: Summary) -> list[Image]:
    """The images of COCO's own captions_*.json."""
    images, top = {}, Entry(data, path)
    for entry in top.entries('images', 'image'):
        name, number = entry.text('file_name'), entry.identity('id')
        if str(number) in images:
            raise InputError(f'{path}: {entry.place} has the id {number!r} of an image before it: correct one of them')
        file = add_prefix(prefix, *filter(None, [folder_of(entry)]), name)
        images[str(number)] = Image(file, f'coco_{number}', flickr_id=flickr_id(entry.get('flickr_url')))
    for annotation in top.entries('annotations', 'annotation'):
        if image := images.get(str(annotation.identity('image_id'))):
            image.captions.append(annotation.get('caption'))
        else:
            summary.drop('caption of an image that is not listed', f'{path}, {annotation.place}')
    return list(images.values())


def folder_of(entry: Entry) -> str:
    """The folder of an image of COCO; '' if its name has one, or if nothing says it, as for other datasets.

    2014: COCO_train2014_000000000009.jpg is in train2014; 2017: only the URL, .../train2017/000000000009.jpg, says it.
    """
    name, url = entry.text('file_name'), entry.get('coco_url')
    for form, text in ((r'COCO_([a-z]+\d{4})_\d{12}\.jpg', name), (rf'.*/([a-z]+\d{{4}})/{re.escape(name)}', url)):
        if isinstance(text, str) and '/' not in name and (match := re.fullmatch(form, text)):
            return match[1]
    return ''


def token_images(path: str, prefix: str, encoding: str | None, summary: Summary) -> list[Image]:
    """The images of `NAME#0<TAB>caption` lines, or of `NAME| 0| caption` lines under a heading."""
    images: dict[str, Image] = {}
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} does not exist: give results_20130124.token, results.csv or Karpathy JSON')
    for number, line in enumerate(read_lines(path, encoding, summary)):
        name, caption = _split_line(line)
        if caption is None:
            if number and line.strip():
                summary.drop('line without an image and a caption', f'{path}, line {number + 1}')
            continue
        if name not in images:
            number = flickr_id_in_name(name)
            images[name] = Image(add_prefix(prefix, name), without_extension(name), flickr_id=number)
        images[name].captions.append(caption)
    if not images:
        raise InputError(
            f'{path} has no lines NAME#0<TAB>caption or NAME| 0| caption: give a caption file of Flickr30k'
        )
    return list(images.values())


def _split_line(line: str) -> tuple[str, str | None]:
    """(image name, caption) of a line; no caption if it has another form."""
    if '\t' in line and '#' in line.split('\t')[0]:
        name, caption = line.split('\t', 1)
        return name.rpartition('#')[0].strip(), caption
    parts = line.split('|', 2)
    if len(parts) == 3 and parts[1].strip().isdecimal():
        return parts[0].strip(), parts[2]
    return '', None


def refuse_repeated(images: list[Image]) -> None:
    """InputError if an image is in two files, whose captions would be there twice."""
    seen = set()
    for image in images:
        if image.path in seen:
            raise InputError(f'the image {image.path} is in two of the files: give each file once')
        seen.add(image.path)


def drop_excluded(images: list[Image], args: argparse.Namespace, summary: Summary) -> list[Image]:
    """The images that --exclude does not name."""
    exclusions = Exclusions.of(args, summary)
    remaining = [image for image in images if not exclusions.contains(image.path, None, image.flickr_id)]
    summary.read['images'] += len(images)
    summary.read['captions'] += sum(len(image.captions) for image in images)
    summary.excluded |= {image.path for image in images} - {image.path for image in remaining}
    exclusions.report(summary)
    return remaining


def write_retrieval(folder: str, name: str, images: list[Image], summary: Summary) -> None:
    """Write the three files of a retrieval dataset; a split without images gets none."""
    counted = Summary('') if summary.written else summary  # the pre-training file has already counted these captions
    train = [image for image in images if image.split in TRAINING]
    if train:
        write_rows(os.path.join(folder, f'{name}_train.json'), training_rows(train, counted), summary)
    for split in ('val', 'test'):
        chosen = [image for image in images if image.split == split]
        if chosen:
            write_rows(os.path.join(folder, f'{name}_{split}.json'), evaluation_rows(chosen, summary), summary)


def evaluation_rows(images: list[Image], summary: Summary) -> Iterator[dict]:
    """Retrieval rows for evaluation: one per image, with COCO's ids of image and captions if the release has them."""
    for image in images:
        for row in caption_rows([(image.path, image.captions)], True, summary):
            if image.caption_ids:
                kept = [clean_caption(caption, Summary('')) is not None for caption in image.captions]
                row |= {'image_id': image.coco_id, 'caption_ids': [*compress(image.caption_ids, kept)]}
            yield row


def training_rows(images: list[Image], summary: Summary) -> Iterator[dict]:
    """Retrieval rows for training: one per caption."""
    for image in images:
        for caption in image.captions:
            clean = clean_caption(caption, summary)
            if clean is not None:
                yield {'image': image.path, 'caption': clean, 'image_id': image.image_id}
