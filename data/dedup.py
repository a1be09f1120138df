"""Exact and near de-duplication, as datatrove steps over the documents of a `Store`.

Two texts are exact duplicates if their letters and digits are equal. They are near duplicates if the Jaccard
similarity of their shingles, 5 words or 8 Chinese characters in a row, reaches the threshold. Each document that goes
is at least so similar to an earlier one that stays, which is named beside it: no chain of small differences joins two
texts that are not alike.

    sign        a MinHash signature (Broder 1997) of each document, and a sketch: its smallest shingle hashes
    Exact       documents with the digest of an earlier one
    Candidates  pairs that agree in one of 25 bands of 5 hashes (LSH; Leskovec, Rajaraman & Ullman 2014, section 3.4):
                99.99 % of all pairs at a similarity of 0.8, 99 % at 0.7
    Similar     the pairs that pass: signatures decide where they can, 3 standard errors from the threshold, and
                sketches the rest
    Resolve     who goes, in the order of the documents

datatrove's own MinHash steps were tried first: they ask spaCy and jieba for words, and join what agrees in a band
without looking at the pair; docs/results.md has both, measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from datatrove.data import DocumentsPipeline

from septet.data.store import NUM_HASHES, Store
from septet.data.words import Words, mixed, words_of

BANDS, BAND_ROWS = 25, 5
assert BANDS * BAND_ROWS == NUM_HASHES
SHINGLE_WORDS, SHINGLE_CHARACTERS = 5, 8
_SKETCH_SIZE = 2048
_PAIRS_AT_ONCE = 1 << 14
_DOCUMENTS_AT_ONCE = 1 << 22
_NUMBERS = mixed(np.arange(1, 2 * NUM_HASHES + 1, dtype=np.uint64)).astype(np.uint32).reshape(2, NUM_HASHES, 1)
_MASKS, _FACTORS = _NUMBERS[0], _NUMBERS[1] | np.uint32(1)
EDGE = np.dtype([("earlier", "<u8"), ("later", "<u8"), ("jaccard", "<f4"), ("exact", "?")])
REASONS = {
    "exact_duplicate": "an earlier document has the same letters and digits",
    "near_duplicate": "the Jaccard similarity to an earlier document that stays reaches --near-duplicates",
    "in_validation": "a validation document is an exact or near duplicate",
}


def text_digest(text: str) -> bytes:
    """16 bytes over the case-folded letters and digits of a text.

    Copies that differ in case, white space or punctuation alone are equal. Among 10^12 documents two different ones
    agree by chance with a probability of 10^24 / 2^129, some 10^-15.
    """
    return hashlib.blake2b(words_of(text).letters, digest_size=16).digest()


def shingles(words: Words) -> np.ndarray:
    """(n,) uint32, sorted, each once: hashes of the runs of 5 words, or of 8 characters if most words are characters.

    A text that is shorter is one shingle; so are two such texts either equal or not alike.
    """
    size = SHINGLE_CHARACTERS if words.are_characters else SHINGLE_WORDS
    hashes = words.n_grams(min(size, max(1, len(words.hashes))))
    values = np.sort((hashes >> np.uint64(32)).astype(np.uint32))
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def signature(values: np.ndarray) -> np.ndarray:
    """(NUM_HASHES,) uint32: for each of NUM_HASHES permutations of the 32-bit numbers the smallest image of `values`.

    The values are hashes, so that an exclusive or and a product by an odd number, both bijective, permute them enough.
    """
    out = np.full(NUM_HASHES, 0xFFFFFFFF, dtype=np.uint32)
    for start in range(0, len(values), 2048):  # the table stays in the processor's cache
        images = (values[None, start : start + 2048] ^ _MASKS) * _FACTORS
        np.minimum(out, images.min(axis=1), out=out)
    return out


def sketch(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Of sorted `values` those below 2^(32 - scale), with the smallest scale that leaves at most 2,048, and the scale.

    The similarity of two sketches is that of their texts, exactly if both have scale 0, and else within a standard
    error of at most 1.6 % (FracMinHash; Irber et al. 2022, https://doi.org/10.1101/2022.01.11.475838).
    """
    scale = 0
    while np.searchsorted(values, (1 << 32) >> scale) > _SKETCH_SIZE:
        scale += 1
    return values[: np.searchsorted(values, (1 << 32) >> scale)], scale


def jaccard(one: tuple[np.ndarray, int], other: tuple[np.ndarray, int]) -> float:
    """The similarity of two sketches: what they share over what they have together."""
    limit = (1 << 32) >> max(one[1], other[1])
    first, second = (values[: np.searchsorted(values, limit)] for values in (one[0], other[0]))
    shared = len(np.intersect1d(first, second, assume_unique=True))
    together = len(first) + len(second) - shared
    return shared / together if together else 1.0


@dataclasses.dataclass
class Exact:
    """One task: finds the documents whose digest an earlier one has.

    Writes exact.npy, an `EDGE` for each of them to the first with its digest, and repeated_ids.npy, the number of
    documents whose id the input had given before.
    """

    documents: Path
    output: Path

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        store, edges, repeated = Store(self.documents), [], 0
        parts = len(store) // _DOCUMENTS_AT_ONCE + 1
        for part in range(parts):
            digests, ids, numbers = [], [], []
            for task in store.tasks:
                rows = store.rows(task)
                mine = rows["digest"][:, 0] % parts == part
                digests.append(rows["digest"][mine])
                numbers.append(np.flatnonzero(mine) + store.first[task])
                ids.append(rows["id"][(rows["id"] % parts == part) & (rows["id"] != 0)])
            earlier, later = _same(np.concatenate(digests), np.concatenate(numbers))
            edges.append(_edges(earlier, later, 1.0, exact=True))
            given = np.concatenate(ids)
            repeated += len(given) - len(np.unique(given))
        self.output.mkdir(parents=True, exist_ok=True)
        every = np.concatenate(edges)
        np.save(self.output / "exact.npy", every[np.argsort(every["later"], kind="stable")])
        np.save(self.output / "repeated_ids.npy", np.array(repeated))
        yield from ()


@dataclasses.dataclass
class Candidates:
    """A task for each band: pairs of documents that agree in it, exact duplicates left out.

    Of the documents that agree, each is paired with the first, so that ten thousand copies of one page make ten thousand
    pairs, not fifty million; two that are alike meet again in bands which another first does not share. Writes
    <band>.npy: (pairs,) uint64, the later document's number times 2^32 plus the earlier one's, sorted.
    """

    documents: Path
    exact: Path
    output: Path

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        store = Store(self.documents)
        copies = np.zeros(len(store), dtype=bool)
        copies[np.load(self.exact / "exact.npy")["later"]] = True
        parts = len(store) // _DOCUMENTS_AT_ONCE + 1
        pairs = [np.empty(0, dtype=np.uint64)]
        for part in range(parts):
            keys, numbers = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
            for task in store.tasks:
                band = store.signatures(task)[:, rank * BAND_ROWS : (rank + 1) * BAND_ROWS].astype(np.uint64)
                key = np.zeros(len(band), dtype=np.uint64)
                for column in range(BAND_ROWS):
                    key = mixed(key + band[:, column] + np.uint64(1))
                mine = (key % np.uint64(parts) == part) & ~copies[store.first[task] : store.first[task + 1]]
                keys.append(key[mine])
                numbers.append(np.flatnonzero(mine) + store.first[task])
            earlier, later = _same(np.concatenate(keys), np.concatenate(numbers))
            pairs.append(later.astype(np.uint64) << np.uint64(32) | earlier.astype(np.uint64))
        self.output.mkdir(parents=True, exist_ok=True)
        np.save(self.output / f"{rank:02d}.npy", np.unique(np.concatenate(pairs)))
        yield from ()


@dataclasses.dataclass
class Similar:
    """A task for each task of documents: of the pairs whose later document is there, those that reach the threshold.

    Writes <task>.npy: `EDGE`, sorted by the later and then the earlier document.
    """

    documents: Path
    pairs: Path
    output: Path
    threshold: float

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        store = Store(self.documents)
        bounds = store.first[rank : rank + 2].astype(np.uint64) << np.uint64(32)
        found = [np.empty(0, dtype=np.uint64)]
        for file in sorted(self.pairs.glob("*.npy")):
            pairs = np.load(file, mmap_mode="r")
            start, end = np.searchsorted(pairs, bounds)
            found.append(np.array(pairs[start:end]))
        pairs = np.unique(np.concatenate(found))
        edges = [np.empty(0, dtype=EDGE)]
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[start : start + _PAIRS_AT_ONCE]
            earlier, later = some & np.uint64(0xFFFFFFFF), some >> np.uint64(32)
            edges.append(self._passing(store, earlier.astype(np.int64), later.astype(np.int64)))
        self.output.mkdir(parents=True, exist_ok=True)
        np.save(self.output / f"{rank:05d}.npy", np.concatenate(edges))
        yield from ()

    def _passing(self, store: Store, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        similarity = (store.signatures_of(earlier) == store.signatures_of(later)).mean(axis=1)
        margin = 3 * (self.threshold * (1 - self.threshold) / NUM_HASHES) ** 0.5
        for k in np.flatnonzero(np.abs(similarity - self.threshold) <= margin):
            similarity[k] = jaccard(store.sketch(earlier[k]), store.sketch(later[k]))
        passing = similarity >= self.threshold
        return _edges(earlier[passing], later[passing], similarity[passing])


def resolve(store: Store, exact: np.ndarray, edges_of_task: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Who goes and because of whom.

    Returns:
        (documents,) bool; and `EDGE`, one for each that goes, sorted by it: to the most similar earlier one that stays.
    """
    goes = np.zeros(len(store), dtype=bool)
    goes[exact["later"]] = True
    near = [np.empty(0, dtype=EDGE)]
    for file in edges_of_task:
        found: dict[int, tuple[float, int]] = {}
        for earlier, later, similarity, _ in np.load(file).tolist():
            if not goes[earlier] and similarity > found.get(later, (0.0, 0))[0]:
                found[later] = (similarity, earlier)
                goes[later] = True
        near.append(np.array([(earlier, later, s, False) for later, (s, earlier) in found.items()], dtype=EDGE))
    nearest = np.concatenate(near)
    exact = exact.copy()
    gone = goes[exact["earlier"]]  # a copy of one that is itself a near duplicate: both go because of the same one
    its_own = nearest[np.searchsorted(nearest["later"], exact["earlier"][gone])]
    exact["earlier"][gone], exact["jaccard"][gone] = its_own["earlier"], its_own["jaccard"]
    every = np.concatenate([nearest, exact])
    return goes, every[np.argsort(every["later"], kind="stable")]


def _same(keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (earlier, later) of numbers with equal keys (n,) or (n, 2): each with the first."""
    if not len(keys):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    columns = keys.reshape(len(keys), -1)
    order = np.lexsort((numbers, *columns.T))
    columns, numbers = columns[order], numbers[order]
    new = np.append(True, (columns[1:] != columns[:-1]).any(axis=1))
    first = numbers[np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))]
    return first[~new], numbers[~new]


def _edges(earlier: np.ndarray, later: np.ndarray, similarity: np.ndarray | float, exact: bool = False) -> np.ndarray:
    edges = np.empty(len(earlier), dtype=EDGE)
    edges["earlier"], edges["later"], edges["jaccard"], edges["exact"] = earlier, later, similarity, exact
    return edges
