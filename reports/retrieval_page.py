"""One HTML file that shows what a retrieval model finds: queries with their top five in both directions, correct ones
marked.

Thumbnails are embedded, so the file can be opened anywhere.

Legend: NI images, NT texts, C candidates.
"""

import base64
import html
import io
import os
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from dataset.images import BadImage, read_image
from dataset.retrieval_dataset import RetrievalEvalDataset
from utils.files import atomic_write

QUERIES = 40  # in each direction, evenly spaced over the split
TOP = 5
THUMBNAIL = 160  # pixels of the longer side

STYLE = """
body { font: 14px sans-serif; margin: 2em auto; max-width: 1100px; color: #222 }
.query { display: flex; gap: 1.5em; border-top: 1px solid #ccc; padding: 1em 0; align-items: center }
.query > :first-child { flex: 0 0 200px }
ol { margin: 0; padding: 0; list-style-position: inside } .images { display: flex; gap: 1em; flex-wrap: wrap }
figure { margin: 0; padding: 4px; border: 3px solid #ddd; text-align: center }
.correct { color: #070; font-weight: bold }
figure.correct { border-color: #0a0 } small { color: #777; font-weight: normal }
"""


def write_page(path: str, dataset: RetrievalEvalDataset, score_i2t: Tensor, score_t2i: Tensor) -> None:
    """Write the page of a split, atomically.

    score_i2t: [NI, NT], score_t2i: [NT, NI], -100 where ITM did not score.
    """
    pictures = Thumbnails(dataset)
    images, texts = spaced(len(dataset)), spaced(len(dataset.texts))
    parts = [f'<h2>Texts for images: {len(images)} of {len(dataset)}</h2>']
    for image in images:
        correct = dataset.img2txt[image]
        found = ''.join(
            f'<li{marked(text in correct)}>{html.escape(dataset.texts[text])} {score_note(score)}</li>'
            for text, score in top(score_i2t[image])
        )
        parts.append(query(pictures[image], f'<ol>{found}</ol>{rank_note(score_i2t[image], correct)}'))
    parts.append(f'<h2>Images for texts: {len(texts)} of {len(dataset.texts)}</h2>')
    for text in texts:
        correct = [dataset.txt2img[text]]
        found = ''.join(
            f'<figure{marked(image in correct)}>{pictures[image]}<br>{score_note(score)}</figure>'
            for image, score in top(score_t2i[text])
        )
        note = rank_note(score_t2i[text], correct)
        parts.append(
            query(f'<div>{html.escape(dataset.texts[text])}</div>', f'<div class="images">{found}</div>{note}')
        )
    write_html(path, f'Queries and their top {TOP}', 'Correct ones are green.', parts)


def write_found_page(
    path: str, texts: Sequence[str], found: Sequence[Sequence[tuple[str, float]]], folder: str, kind: str
) -> None:
    """Write the page of what was found in a folder of pictures, atomically.

    found: for each text [(name of a picture, its score), ...], the best first. kind: of the scores, in words.
    """
    parts = []
    for text, pictures in zip(texts, found, strict=True):
        figures = ''.join(
            f'<figure>{thumbnail(os.path.join(folder, name))}<br>{score_note(score)}</figure>'
            for name, score in pictures
        )
        parts.append(query(f'<div>{html.escape(text)}</div>', f'<div class="images">{figures}</div>'))
    write_html(path, 'Pictures for texts', f'The best first, with their {kind}.', parts)


def write_html(path: str, title: str, note: str, parts: Sequence[str]) -> None:
    """Write a page of parts, atomically."""
    page = (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<style>{STYLE}</style><h1>{title}</h1><p>{note}</p>' + '\n'.join(parts) + '</html>\n'
    )
    with atomic_write(path) as file:
        file.write(page)


def spaced(total: int) -> list[int]:
    """At most `QUERIES` numbers below `total`, evenly spaced."""
    shown = min(total, QUERIES)
    return [i * total // shown for i in range(shown)]


def ranking(scores: Tensor) -> Tensor:
    """Candidates by descending score, among equals the higher number first, as recall counts: [C] -> [C]."""
    return scores.argsort(stable=True).flip(0)


def top(scores: Tensor) -> list[tuple[int, float]]:
    """[(candidate, score)] of the top five."""
    return [(int(candidate), float(scores[candidate])) for candidate in ranking(scores)[:TOP]]


def rank_note(scores: Tensor, correct: Sequence[int]) -> str:
    """The rank of the first correct candidate, if it is not among those shown."""
    rank = int(torch.isin(ranking(scores), torch.tensor(correct)).nonzero()[0])
    return f'<p><small>the first correct one has rank {rank + 1}</small></p>' if rank >= TOP else ''


def query(shown: str, found: str) -> str:
    return f'<div class="query">{shown}<div>{found}</div></div>'


def marked(is_correct: bool) -> str:
    return ' class="correct"' if is_correct else ''


def score_note(score: float) -> str:
    return f'<small>{"not scored" if score == -100 else f"{score:.3f}"}</small>'


class Thumbnails:
    """Number of an image -> its thumbnail as an HTML element, made once."""

    def __init__(self, dataset: RetrievalEvalDataset):
        self.dataset, self.made = dataset, {}

    def __getitem__(self, number: int) -> str:
        if number not in self.made:
            self.made[number] = thumbnail(self.dataset.path(number))
        return self.made[number]


def thumbnail(path: str) -> str:
    """An image file as an <img> with embedded pixels, or a note if it cannot be read."""
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
