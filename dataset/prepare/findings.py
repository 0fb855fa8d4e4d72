"""What `check` finds out: a verdict on each image, and how often images and captions come again."""

from collections import Counter
from typing import NamedTuple

MOST_REPEATED = 10
TRUNCATED = 'ends early'


class Verdict(NamedTuple):
    """On one file: why it is bad (None: it is not), what training does to it, and a digest of its bytes."""

    image: str
    reason: str | None
    notes: tuple[str, ...] = ()
    digest: str | None = None


class Repeats:
    """Counts images, captions and pairs of both that came before. Keeps their hashes, as there may be millions."""

    def __init__(self):
        self.hashes: dict[str, set[int]] = {'image': set(), 'caption': set(), 'image and caption': set()}
        self.count: Counter = Counter()

    def seen(self, row: dict, images: list[str]) -> dict:
        captions = row.get('caption', row.get('sentence', row.get('question')))
        self._add('image', tuple(images))
        for caption in captions if isinstance(captions, list) else [captions]:
            self._add('caption', caption)
            self._add('image and caption', (*images, caption))
        return row

    def _add(self, what: str, value: object) -> None:
        key = hash(value)
        self.count[f'{what} that came before'] += key in self.hashes[what]
        self.hashes[what].add(key)


def same_bytes(verdicts: dict[str, Verdict]) -> int:
    """How many files repeat another one's contents under another name."""
    digests = [verdict.digest for verdict in verdicts.values() if verdict.digest]
    return len(digests) - len(set(digests))


def most_repeated(verdicts: dict[str, Verdict]) -> list[dict]:
    """Files that are there again and again, such as a site's "no longer available", with one path of each."""
    examples = {verdict.digest: path for path, verdict in verdicts.items() if verdict.digest}
    counts = Counter(verdict.digest for verdict in verdicts.values() if verdict.digest).most_common(MOST_REPEATED)
    return [{'image': examples[digest], 'copies': count} for digest, count in counts if count > 1]
