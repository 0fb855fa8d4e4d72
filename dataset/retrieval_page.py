"""One HTML file that shows what a retrieval model finds: queries with their best five, both ways, the right ones marked.

Thumbnails are part of the file, so it can be opened anywhere.
"""

import base64
import html
import io
import os
from pathlib import Path

import torch
from PIL import Image

from dataset.images import BadImage, read_image

QUERIES = 40  # of each kind, evenly spaced over the split
BEST = 5
THUMBNAIL = 160  # pixels of the longer side

STYLE = """
body { font: 14px sans-serif; margin: 2em auto; max-width: 1100px; color: #222 }
.query { display: flex; gap: 1.5em; border-top: 1px solid #ccc; padding: 1em 0; align-items: center }
.query > :first-child { flex: 0 0 200px }
ol { margin: 0; padding: 0; list-style-position: inside } .images { display: flex; gap: 1em; flex-wrap: wrap }
figure { margin: 0; padding: 4px; border: 3px solid #ddd; text-align: center } .right { color: #070; font-weight: bold }
figure.right { border-color: #0a0 } small { color: #777; font-weight: normal }
"""


def write_page(path, dataset, score_i2t, score_t2i):
    """Write the page of a split, beside its place first.

    dataset: a `RetrievalEvalDataset`; score_i2t: [NI, NT], score_t2i: [NT, NI], -100 where matching did not score.
    """
    pictures = Thumbnails(dataset)
    images, texts = spaced(len(dataset)), spaced(len(dataset.texts))
    parts = [f'<h2>Texts for images: {len(images)} of {len(dataset)}</h2>']
    for image in images:
        right = dataset.img2txt[image]
        found = ''.join(f'<li{marked(text in right)}>{html.escape(dataset.texts[text])} {figure(score)}</li>'
                        for text, score in best(score_i2t[image]))
        parts.append(query(pictures[image], f'<ol>{found}</ol>{place_note(score_i2t[image], right)}'))
    parts.append(f'<h2>Images for texts: {len(texts)} of {len(dataset.texts)}</h2>')
    for text in texts:
        right = [dataset.txt2img[text]]
        found = ''.join(f'<figure{marked(image in right)}>{pictures[image]}<br>{figure(score)}</figure>'
                        for image, score in best(score_t2i[text]))
        note = place_note(score_t2i[text], right)
        parts.append(query(f'<div>{html.escape(dataset.texts[text])}</div>', f'<div class="images">{found}</div>{note}'))
    page = ('<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Retrieval</title>'
            f'<style>{STYLE}</style><h1>Queries and their best {BEST}</h1><p>Right ones are green.</p>'
            + '\n'.join(parts) + '</html>\n')
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    temporary = Path(f'{path}.tmp')
    temporary.write_text(page, encoding='utf-8')
    os.replace(temporary, path)


def spaced(total):
    """At most `QUERIES` numbers below `total`, evenly spaced."""
    shown = min(total, QUERIES)
    return [i * total // shown for i in range(shown)]


def ranking(scores):
    """Candidates by falling score; among equals the higher number first, as recall counts: [C] -> [C]."""
    return scores.argsort(stable=True).flip(0)


def best(scores):
    """[(candidate, score)] of the best five."""
    return [(int(candidate), float(scores[candidate])) for candidate in ranking(scores)[:BEST]]


def place_note(scores, right):
    """Where the first right candidate stands, if it is not among those shown."""
    place = int(torch.isin(ranking(scores), torch.tensor(right)).nonzero()[0])
    return f'<p><small>the first right one has place {place + 1}</small></p>' if place >= BEST else ''


def query(asked, found):
    return f'<div class="query">{asked}<div>{found}</div></div>'


def marked(right):
    return ' class="right"' if right else ''


def figure(score):
    return f'<small>{"not scored" if score == -100 else f"{score:.3f}"}</small>'


class Thumbnails:
    """By number of an image its thumbnail as an HTML element, read once."""

    def __init__(self, dataset):
        self.dataset, self.made = dataset, {}

    def __getitem__(self, number):
        if number not in self.made:
            self.made[number] = thumbnail(self.dataset.path(self.dataset.table[number]))
        return self.made[number]


def thumbnail(path):
    """An image file as an <img> with its pixels in it, or a note where it cannot be read."""
    name = html.escape(os.path.basename(path), quote=True)
    try:
        image = Image.fromarray(read_image(path))
    except BadImage:
        return f'<div>{name} cannot be read</div>'
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{name}" title="{name}">'
