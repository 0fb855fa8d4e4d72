"""Results of `check`: a verdict on each image, and how often images and captions are repeated."""

from collections import Counter
from typing import NamedTuple

MOST_REPEATED = 10
TRUNCATED = 'ends early'


class Verdict(NamedTuple):
    """On one file: why it is bad (None if it is good), what training does to it, and a digest of its bytes."""

    image: str
    reason: str | None
    notes: tuple[str, ...] = ()
    digest: str | None = None


class Repeats:
    """Counts repeated images, captions and pairs of both. Stores hashes, because there may be millions."""

    def __init__(self):
        self.hashes: dict[str, set[int]] = {'image': set(), 'caption': set(), 'image and caption': set()}
        self.count: Counter = Counter()

    def count_row(self, row: dict, images: list[str]) -> dict:
        """Count a row and return it."""
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


class Duplicates:
    """Finds what was added before. Stores hashes, like `Repeats`."""

    def __init__(self):
        self.rows: dict[int, int] = {}  # {hash of the content: number of the first row that has it}

    def add(self, row: int, content: tuple) -> int | None:
        """The number of the earlier row with the same content, if there is one."""
        first = self.rows.setdefault(hash(content), row)
        return None if first == row else first


def count_same_bytes(verdicts: dict[str, Verdict]) -> int:
    """How many files have the same content as an earlier file."""
    digests = [verdict.digest for verdict in verdicts.values() if verdict.digest]
    return len(digests) - len(set(digests))


def most_repeated(verdicts: dict[str, Verdict]) -> list[dict]:
    """The content that most files share, such as a website's "no longer available", with one path of each."""
    examples = {verdict.digest: path for path, verdict in verdicts.items() if verdict.digest}
    counts = Counter(verdict.digest for verdict in verdicts.values() if verdict.digest).most_common(MOST_REPEATED)
    return [{'image': examples[digest], 'copies': count} for digest, count in counts if count > 1]
