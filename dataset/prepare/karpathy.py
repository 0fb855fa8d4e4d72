"""COCO captions and Flickr30k, from their caption files or from Karpathy's dataset_*.json, which knows the splits."""

import argparse
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dataset.prepare.common import (
    Summary,
    add_common,
    add_per_image,
    caption_rows,
    clean_caption,
    join,
    load_json,
    need,
    write_rows,
)
from dataset.prepare.exclude import Exclusions
from utils.errors import InputError, MissingFileError

TRAINING = ('train', 'restval')  # restval: the part of COCO's val2014 that is neither val nor test


@dataclass
class Image:
    path: str
    identity: str
    split: str = 'train'
    captions: list = field(default_factory=list)


def add_coco(commands) -> None:
    parser = commands.add_parser(
        'coco',
        help='COCO captions: captions_*.json, or dataset_coco.json of Karpathy',
        description='From dataset_coco.json: coco.json for pre-training and coco_train, coco_val and coco_test.json '
        'for retrieval. From captions_train2014.json and its like: coco.json with all that they hold.',
    )
    parser.add_argument('files', nargs='+', metavar='JSON')
    add_common(parser, 'FOLDER to write to')
    add_per_image(parser)
    parser.set_defaults(run=run_coco)


def add_flickr30k(commands) -> None:
    parser = commands.add_parser(
        'flickr30k',
        help='Flickr30k: dataset_flickr30k.json of Karpathy, results_20130124.token or results.csv',
        description='Writes flickr30k_train, flickr30k_val and flickr30k_test.json for retrieval. The token and CSV '
        'files know no splits: name the images of val and test with --val and --test.',
    )
    parser.add_argument('file', metavar='FILE')
    parser.add_argument('--val', metavar='LIST', help='images of the validation split, one a line')
    parser.add_argument('--test', metavar='LIST', help='images of the test split, one a line')
    add_common(parser, 'FOLDER to write to')
    parser.set_defaults(run=run_flickr30k)


def run_coco(args: argparse.Namespace) -> Summary:
    summary = Summary('COCO captions')
    loaded = [(path, load_json(path)) for path in args.files]
    karpathy = [is_karpathy(data) for _, data in loaded]
    if any(karpathy) and len(loaded) > 1:
        raise InputError(
            "give Karpathy's dataset_coco.json alone, as it holds all captions: to keep its test images "
            'out of captions_*.json, name it after --exclude'
        )
    read = karpathy_images if karpathy[0] else coco_images
    images = [image for path, data in loaded for image in read(data, path, args.image_prefix, 'coco_')]
    images = keep(images, Exclusions(args.exclude), summary)
    training = [(image.path, image.captions) for image in images if image.split in TRAINING]
    write_rows(os.path.join(args.out, 'coco.json'), caption_rows(training, args.one_row_per_image, summary), summary)
    if karpathy[0]:
        write_retrieval(args.out, 'coco', images, summary)
    return summary


def run_flickr30k(args: argparse.Namespace) -> Summary:
    summary = Summary('Flickr30k')
    if args.file.endswith('.json'):
        data = load_json(args.file)
        if not is_karpathy(data):
            raise InputError(f'{args.file} is not dataset_flickr30k.json: its images have no sentences and splits')
        images = karpathy_images(data, args.file, args.image_prefix, '')
    else:
        val, test = (Exclusions([file] if file else []) for file in (args.val, args.test))
        images = list(token_images(args.file, args.image_prefix, summary))
        for image in images:
            image.split = 'test' if test.names(image.path) else 'val' if val.names(image.path) else 'train'
    write_retrieval(args.out, 'flickr30k', keep(images, Exclusions(args.exclude), summary), summary)
    return summary


def is_karpathy(data: object) -> bool:
    entries = data.get('images') if isinstance(data, dict) else None
    return bool(entries) and isinstance(entries, list) and {'sentences', 'split'} <= set(entries[0])


def karpathy_images(data: dict, path: str, prefix: str, identity: str) -> list[Image]:
    images = []
    for entry in data['images']:
        folder = [entry['filepath']] if entry.get('filepath') else []
        name = need(entry, 'filename', path, "an image of Karpathy's files")
        captions = [need(sentence, 'raw', path, 'a sentence') for sentence in entry['sentences']]
        number = entry.get('cocoid') or os.path.splitext(name)[0]
        images.append(Image(join(prefix, *folder, name), f'{identity}{number}', entry['split'], captions))
    return images


def coco_images(data: dict, path: str, prefix: str, identity: str) -> Iterable[Image]:
    images = {}
    for entry in need(data, 'images', path, 'captions_train2014.json'):
        name = need(entry, 'file_name', path, 'an image of captions_train2014.json')
        # 2014: COCO_train2014_000000000009.jpg lies in train2014; 2017: only the address says where.
        folder = name.split('_')[1] if name.startswith('COCO_') else entry.get('coco_url', '/').split('/')[-2]
        images[entry['id']] = Image(join(prefix, *filter(None, [folder]), name), f'{identity}{entry["id"]}')
    for annotation in need(data, 'annotations', path, 'captions_train2014.json'):
        caption = need(annotation, 'caption', path, 'an annotation of captions_train2014.json')
        if annotation['image_id'] in images:
            images[annotation['image_id']].captions.append(caption)
    return images.values()


def token_images(path: str, prefix: str, summary: Summary) -> Iterable[Image]:
    """Of `NAME#0<TAB>caption` lines, or of `NAME| 0| caption` lines under a heading."""
    images: dict[str, Image] = {}
    if not os.path.isfile(path):
        raise MissingFileError(f'{path} does not exist: give results_20130124.token, results.csv or Karpathy JSON')
    with open(path, encoding='utf-8', errors='replace') as lines:
        for number, line in enumerate(lines):
            name, caption = _split_line(line)
            if caption is None:
                if number and line.strip():
                    summary.dropped['line that holds no image and caption'] += 1
                continue
            image = images.setdefault(name, Image(join(prefix, name), os.path.splitext(name)[0]))
            image.captions.append(caption)
    if not images:
        raise InputError(f'{path} has neither NAME#0<TAB>caption nor NAME| 0| caption lines: is it of Flickr30k?')
    return images.values()


def _split_line(line: str) -> tuple[str, str | None]:
    if '\t' in line and '#' in line.split('\t')[0]:
        name, caption = line.split('\t', 1)
        return name.split('#')[0].strip(), caption
    parts = line.split('|', 2)
    if len(parts) == 3 and parts[1].strip().isdecimal():
        return parts[0].strip(), parts[2]
    return '', None


def keep(images: Iterable[Image], exclusions: Exclusions, summary: Summary) -> list[Image]:
    images = list(images)
    kept = [image for image in images if not exclusions.names(image.path)]
    summary.read['images'] += len(images)
    summary.read['captions'] += sum(len(image.captions) for image in images)
    summary.excluded |= {image.path for image in images} - {image.path for image in kept}
    return kept


def write_retrieval(folder: str, name: str, images: list[Image], summary: Summary) -> None:
    """The three files of a retrieval data set; a split without images has none."""
    counted = Summary('') if summary.written else summary  # writing the pre-training file counted these captions before
    train = [image for image in images if image.split in TRAINING]
    if train:
        write_rows(os.path.join(folder, f'{name}_train.json'), training_rows(train, counted), summary)
    for split in ('val', 'test'):
        chosen = [(image.path, image.captions) for image in images if image.split == split]
        if chosen:
            write_rows(os.path.join(folder, f'{name}_{split}.json'), caption_rows(chosen, True, summary), summary)


def training_rows(images: list[Image], summary: Summary) -> Iterator[dict]:
    for image in images:
        for caption in image.captions:
            clean = clean_caption(caption, summary)
            if clean is not None:
                yield {'image': image.path, 'caption': clean, 'image_id': image.identity}
