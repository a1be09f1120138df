"""A packed set, read so that the batch of a step is a pure function of (seed, step, mixture, data).

There is no sampler state: sample *k* of the run is computed from *k*, at the same cost for every *k* and for any number
of processes. A fixed cycle deals samples out to the sources by their mixture weights; within its source, a sample's
place is a permutation of the epoch, so that each sequence is seen once an epoch of its source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from septet.data.errors import UserError
from septet.data.manifest import fingerprint, read_manifest
from septet.data.words import mixed

_LEAST_CYCLE, _LARGEST_CYCLE = 1 << 10, 1 << 20  # samples over which the mixture's shares are exact


@dataclass(frozen=True)
class Batch:
    """Packed sequences as they come from the disk, padded to the sequence length."""

    input_ids: np.ndarray
    """(n, T) int64"""
    position_ids: np.ndarray
    """(n, T) int64: position within the document; padding counts as a document of its own"""
    num_tokens: np.ndarray
    """(n,) tokens before the padding"""
    document_lengths: list[np.ndarray]
    """n arrays"""
    lang: list[str]
    rows: np.ndarray
    """(n,) row numbers in the set, for hashing what was seen"""

    def cut(self, length: int) -> Batch:
        """The same tokens as more, shorter sequences, (n * T / length, length): no token sees beyond its piece.

        A document that is cut goes on in the next piece as one of its own, from position 0.
        """
        pieces = self.input_ids.shape[1] // length
        if pieces == 1:
            return self
        position_ids, document_lengths = np.empty_like(self.position_ids), []
        for row, lengths in enumerate(self.document_lengths):
            ends = np.concatenate([[0], np.cumsum(lengths), length * np.arange(1, pieces)])
            ends = np.unique(np.append(ends, self.position_ids.shape[1]))
            parts = np.diff(ends)
            position_ids[row] = np.arange(ends[-1]) - np.repeat(ends[:-1], parts)
            is_text = ends[:-1] < self.num_tokens[row]
            document_lengths += [parts[is_text & (ends[:-1] // length == piece)] for piece in range(pieces)]
        starts = length * np.arange(pieces)
        return Batch(
            self.input_ids.reshape(-1, length),
            position_ids.reshape(-1, length),
            np.clip(self.num_tokens[:, None] - starts, 0, length).reshape(-1),
            document_lengths,
            [lang for lang in self.lang for _ in range(pieces)],
            np.repeat(self.rows, pieces),
        )


class PackedDataset:
    """One split of a packed set.

    Args:
        directory: what `septet pack` wrote.
        mixture: weight of each language or `language/source`, what is not named being left out; by default every source in
            proportion to its sequences.
        seed: of the order.

    Raises:
        UserError: no packed set there, a split that is damaged or empty, or a mixture that names an unknown source.
    """

    def __init__(self, directory: Path, split: str, mixture: Mapping[str, float] | None = None, seed: int = 0):
        import datasets

        self.manifest = read_manifest(directory, "pack")
        self.sequence_length: int = self.manifest["counts"]["sequence_length"]
        self.pad_token_id: int = self.manifest["counts"]["special_ids"]["pad_token_id"]
        self.directory, self.split, self.seed = Path(directory), split, seed
        try:
            self.data = datasets.load_from_disk(str(Path(directory) / split)).with_format("numpy")
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            reason = str(error).split("\n")[0]
            raise UserError(
                f"{directory}: its {split} split cannot be read ({reason}); pack again with --overwrite"
            ) from error
        if not len(self.data):
            raise UserError(f"{directory}: its {split} split holds no sequence; give the corpus more text")
        listed = self.manifest["counts"][split]["total"]["sequences"]
        if len(self.data) != listed:  # a stream cut off between two batches reads as a shorter one
            raise UserError(
                f"{directory}: its {split} split holds {len(self.data):,} of the {listed:,} sequences in its manifest; "
                "pack again with --overwrite"
            )
        self._place_sources(mixture)

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and digests of the set's files."""
        return fingerprint(self.directory)

    def _place_sources(self, mixture: Mapping[str, float] | None) -> None:
        self.sources = self._rows_by_source()
        weights = {name: float(len(numbers)) for name, numbers in self.sources.items()}
        if mixture:
            self._check_weights(mixture, "mixture")
            for name in mixture:
                if (language := name.split("/")[0]) != name and language in mixture:
                    raise UserError(
                        f"mixture names both {language!r} and {name!r}, which is part of it; name each source of {language} by "
                        "itself"
                    )
            if not any(mixture.values()):
                raise UserError(
                    f"mixture gives every source the weight 0; one must have more; raise {next(iter(mixture))}"
                )
            weights = dict.fromkeys(weights, 0.0)  # what the mixture does not name is left out
            for key, weight in mixture.items():
                members = [n for n in self.sources if key in (n, n.split("/")[0])]
                size = sum(len(self.sources[n]) for n in members)
                weights.update({n: weight * len(self.sources[n]) / size for n in members})
        self.mixture = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        # A cycle long enough for the smallest source to get its share to within some 6 %, and at least one sample of
        # every source that has a weight. Largest remainders: the others' shares are right to within one sample.
        smallest = min(weight for weight in self.mixture.values() if weight)
        size = min(max(_LEAST_CYCLE, 1 << math.ceil(math.log2(16 / smallest))), _LARGEST_CYCLE)
        exact = np.array([self.mixture[name] * size for name in self.sources])
        share = np.maximum(np.floor(exact).astype(int), exact > 0)
        share[np.argsort(share - exact, kind="stable")[: max(0, size - share.sum())]] += 1
        dealt = np.repeat(np.arange(len(self.sources)), share)
        self._size = size = len(dealt)
        self._cycle = dealt[permuted(np.arange(size), size, key=self.seed)]  # (size,) source of each place
        self._share = share
        self._rank = np.zeros(size, dtype=np.int64)  # how many earlier places of the cycle have the same source
        for source in range(len(self.sources)):
            places = np.flatnonzero(self._cycle == source)
            self._rank[places] = np.arange(len(places))

    def _rows_by_source(self) -> dict[str, np.ndarray]:
        """Row numbers of each `language/source`, the one that comes first being named first.

        The names stay in Arrow, a record batch at a time: 2 million rows take 0.2 s and 48 MB, as strings 2.6 s and 273 MB.
        """
        import pyarrow.compute as pc

        codes, parts = {}, []
        for batch in self.data.data.select(["lang", "source"]).to_batches():
            names = pc.binary_join_element_wise(batch["lang"], batch["source"], "/").dictionary_encode()
            numbers = [codes.setdefault(name, len(codes)) for name in names.dictionary.to_pylist()]
            parts.append(np.array(numbers, dtype=np.int32)[names.indices.to_numpy()])
        self.source_of_row = np.concatenate(parts)  # (rows,) places in `sources`; 2 million rows take 8 MB
        order = np.argsort(self.source_of_row, kind="stable")
        ends = np.cumsum(np.bincount(self.source_of_row, minlength=len(codes)))
        return dict(zip(codes, np.split(order, ends[:-1]), strict=True))

    def epochs(self, num_samples: int) -> dict[str, float]:
        """How often the run's first `num_samples` samples go through each source."""
        cycles, places = divmod(int(num_samples), self._size)
        drawn = cycles * self._share + np.bincount(self._cycle[:places], minlength=len(self.sources))
        return {name: float(n / len(rows)) for n, (name, rows) in zip(drawn, self.sources.items(), strict=True)}

    def check_epochs(self, num_samples: int, max_epochs: Mapping[str, float]) -> None:
        """Checks that a run of `num_samples` samples repeats no source too often.

        Up to four epochs cost next to nothing against fresh text, and past sixteen more of them gain nothing
        (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").

        Args:
            max_epochs: by `language/source`, by language, for each of its sources, or for "all"; the closer name goes
                before, and what nothing names has no limit.

        Raises:
            UserError: the first source to be repeated more often, with how many samples can be drawn before it is; or
                a limit for a source that is not there.
        """
        self._check_weights({name: limit for name, limit in max_epochs.items() if name != "all"}, "max_epochs")
        default = max_epochs.get("all", math.inf)
        limits = {name: max_epochs.get(name, max_epochs.get(name.split("/")[0], default)) for name in self.sources}
        first, name = min((self._samples_within(name, limit), name) for name, limit in limits.items())
        if num_samples > first:
            raise UserError(
                f"{self.directory}: {num_samples:,} samples go {self.epochs(num_samples)[name]:.1f} times through {name} "
                f"({len(self.sources[name]):,} sequences); at most {limits[name]:g} epochs are allowed, which {first:,} "
                f"samples keep to; train for fewer steps, give {name} less weight in the mixture, or allow more epochs"
            )

    def _samples_within(self, name: str, max_epochs: float) -> float:
        """The most samples of the run that hold at most `max_epochs` epochs of the source."""
        index = list(self.sources).index(name)
        if not self._share[index] or math.isinf(max_epochs):
            return math.inf
        cycle, rank = divmod(math.floor(max_epochs * len(self.sources[name])), int(self._share[index]))
        first_too_many = np.flatnonzero(self._cycle == index)[rank]  # its place in the cycle
        return cycle * self._size + int(first_too_many)

    def _check_weights(self, weights: Mapping[str, float], what: str) -> None:
        for key, weight in weights.items():
            if not any(key in (name, name.split("/")[0]) for name in self.sources):
                raise UserError(f"{what} names {key!r}; the packed set has {', '.join(self.sources)}; name those")
            if not 0 <= weight < math.inf:
                raise UserError(f"{what} gives {key} {weight}; a number from 0 on is needed; give one")

    def rows(self, samples: np.ndarray) -> np.ndarray:
        """Row numbers of the run's samples `samples` (n,), counted from 0."""
        samples = np.asarray(samples, dtype=np.int64)
        cycle, place = np.divmod(samples, self._size)
        out = np.empty_like(samples)
        for index, numbers in enumerate(self.sources.values()):
            mine = self._cycle[place] == index
            if mine.any():
                within = cycle[mine] * self._share[index] + self._rank[place[mine]]  # the source's own count
                epoch, position = np.divmod(within, len(numbers))
                order = np.empty_like(position)
                for e in np.unique(epoch):
                    now = epoch == e
                    order[now] = permuted(position[now], len(numbers), key=_mix(self.seed, index, int(e)))
                out[mine] = numbers[order]
        return out

    def batch(self, samples: np.ndarray) -> Batch:
        """The run's samples `samples` (n,)."""
        return self.read(self.rows(samples))

    def read(self, rows: np.ndarray) -> Batch:
        """The sequences in rows `rows` (n,) of the set."""
        length = self.sequence_length
        input_ids = np.full((len(rows), length), self.pad_token_id, dtype=np.int64)
        position_ids = np.empty((len(rows), length), dtype=np.int64)
        num_tokens, document_lengths, langs = np.empty(len(rows), dtype=np.int64), [], []
        for i, row in enumerate(rows):
            item: dict[str, Any] = self.data[int(row)]
            tokens, lengths = item["input_ids"], np.asarray(item["document_lengths"])
            input_ids[i, : len(tokens)] = tokens
            num_tokens[i] = len(tokens)
            parts = [*lengths, length - len(tokens)]
            position_ids[i] = np.concatenate([np.arange(part) for part in parts])
            document_lengths.append(lengths)
            langs.append(str(item["lang"]))
        return Batch(input_ids, position_ids, num_tokens, document_lengths, langs, np.asarray(rows))


def _mix(*numbers: int) -> int:
    """One 64-bit key from several numbers (splitmix64's finaliser, Steele et al. 2014)."""
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def permuted(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """`index` under a pseudo-random permutation of 0 .. size-1, computed in place of being stored.

    A Feistel network over the next power of four permutes that power's range; values that fall outside `size` are sent
    through again until they fall inside (cycle walking, Black & Rogaway 2002).
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    half_mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    keys = [np.uint64(_mix(key, round_number)) for round_number in range(4)]
    out = np.asarray(index).astype(np.uint64)
    todo = np.ones(out.shape, dtype=bool)
    while todo.any():
        left, right = out[todo] >> shift, out[todo] & half_mask
        for round_key in keys:
            left, right = right, left ^ (mixed(right + round_key) & half_mask)
        out[todo] = (left << shift) | right
        todo &= out >= size
    return out.astype(np.int64)
