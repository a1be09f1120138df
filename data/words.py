"""The words of a text as numbers: what de-duplication, decontamination and the repetition filters compare.

A word is a run of letters and digits, case-folded; a Han character or kana, which no space separates, is a word by
itself, so that Chinese is compared by characters and never as one long word. Punctuation, white space and combining marks do not count.

All of it is arithmetic over arrays: a polynomial hash modulo 2^64 of any run of characters is the difference of two
prefix sums (Karp & Rabin 1987), and a hash of n words in a row is the same again over the words' hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

_SEPARATOR, _LETTER, _ALONE = 0, 1, 2
CODE_POINTS = 0x32400  # beyond: nothing but tags and private use
# Kana with its extensions; Han with its extensions and compatibility forms.
_STANDING_ALONE = ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
_STANDING_ALONE += ((0x20000, CODE_POINTS - 1),)
_CHARACTER_BASE, _WORD_BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Words:
    """The words of one text, in order."""

    hashes: np.ndarray
    """(n,) uint64: one number a word, equal for equal words"""
    lengths: np.ndarray
    """(n,) int64: characters of each word"""
    letters: bytes
    """the letters and digits without anything between them, in UTF-32"""
    are_characters: bool
    """whether most of the words are characters that stand alone: the text is Chinese or Japanese"""

    def n_grams(self, n: int) -> np.ndarray:
        """(max(0, number of words - n + 1),) uint64: one number for every n words in a row."""
        count = len(self.hashes) - n + 1
        if count < 1:
            return np.empty(0, dtype=np.uint64)
        powers, inverses = _powers(int(_WORD_BASE), _room(len(self.hashes)))
        sums = _prefix_sums(self.hashes * powers[: len(self.hashes)])
        return mixed((sums[n:] - sums[:-n]) * inverses[:count])


@lru_cache(maxsize=1)  # the steps look at one document after the other, each of them at its words
def words_of(text: str) -> Words:
    """The words of `text`."""
    points = np.frombuffer(text.casefold().encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = looked_up(_kinds(), points)
    inside = kinds != _SEPARATOR
    points, kinds = points[inside], kinds[inside]
    if not len(points):
        return Words(np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64), b"", False)
    # A word starts at a character that stands alone, after one, and after a separator.
    first = np.empty(len(points), dtype=bool)
    first[0] = True
    first[1:] = np.diff(np.flatnonzero(inside)) > 1
    alone = kinds == _ALONE
    first |= alone
    first[1:] |= alone[:-1]
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(points))
    powers, inverses = _powers(int(_CHARACTER_BASE), _room(len(points)))
    sums = _prefix_sums((points.astype(np.uint64) + np.uint64(1)) * powers[: len(points)])
    hashes = mixed((sums[ends] - sums[starts]) * inverses[starts])
    return Words(hashes, ends - starts, points.tobytes(), bool(2 * np.count_nonzero(alone) > len(starts)))


def looked_up(table: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n,) entries of `table` (CODE_POINTS,) for the code points `points` (n,) uint32."""
    return table[np.minimum(points, np.uint32(CODE_POINTS - 1))]


def mixed(values: np.ndarray) -> np.ndarray:
    """`values` (uint64), each bit spread over all (splitmix64's finaliser, Steele et al. 2014); a new array."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _prefix_sums(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values, out=sums[1:])
    return sums


def _room(length: int) -> int:
    return max(1 << 16, 1 << (length - 1).bit_length())


@lru_cache(maxsize=4)
def _powers(base: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers 0 .. length-1 of an odd number modulo 2^64, and of its inverse."""

    def powers(factor: int) -> np.ndarray:
        out = np.full(length, factor, dtype=np.uint64)
        out[0] = 1
        return np.multiply.accumulate(out)

    return powers(base), powers(pow(base, -1, 1 << 64))


@cache
def _kinds() -> np.ndarray:
    kinds = np.array([chr(point).isalnum() for point in range(CODE_POINTS)], dtype=np.uint8)
    for start, end in _STANDING_ALONE:
        kinds[start : end + 1] *= _ALONE
    return kinds
