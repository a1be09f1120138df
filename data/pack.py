"""Pack a corpus into sequences of one length, with document boundaries.

Every document becomes `<bos> text <eos>`; no token is dropped. By best fit, documents longer than a sequence are cut, and
the pieces of one language and source are placed, longest first, into the open sequence that they fill best (Ding et al.
2024, "Fewer Truncations Improve Language Modeling"); where that would pad too much, the emptiest sequences are cut into
the room of the others. By concatenation, the documents of a source follow one another and are cut wherever a sequence
ends. The result is an Arrow data set with the tokenizer beside it; `PackedDataset` reads it.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from septet.data.errors import UserError, run_cli
from septet.data.manifest import digests_of, finished, read_manifest, write_json, writing

SPLITS = ("train", "validation")
TOKENS_AT_ONCE = (
    1 << 25
)  # best fit chooses among this many tokens; 128 MiB of them are held, whatever the corpus's size
SHARD_BYTES = 500_000_000
_SEQUENCES_PER_WRITE = 1000
_DOCUMENTS_PER_CALL, _CHARACTERS_PER_CALL = 1000, 1 << 22  # of the tokenizer
_CHECKED_CHARACTERS = 1 << 16  # the longest document that is also encoded by tokenizers, as a check


@dataclass(frozen=True)
class PackConfig:
    corpus: Path = Path("build/corpus")
    """what `septet corpus` wrote"""
    tokenizer: Path = Path("build/tokenizer")
    """what `septet tokenizer` wrote, or any folder with a fast tokenizer whose pad token is not its eos token"""
    output: Path = Path("build/packed")
    """where the packed set goes"""
    sequence_length: int = 512
    """tokens in a sequence"""
    method: Literal["best_fit", "concatenate"] = "best_fit"
    """best_fit cuts few documents and pads a little; concatenate cuts wherever a sequence ends and pads only the last
    sequence of each source"""
    max_padding: float = 0.05
    """share of padding up to which best_fit cuts no document but those longer than a sequence (the 0.05 is ours)"""
    overwrite: bool = False
    """replace what stands at --output"""


def run(config: PackConfig) -> Path:
    """Packs `train` and `validation`; returns the output directory.

    Raises:
        UserError: a stage that is missing, a split without documents, a damaged shard, a tokenizer that cannot serve, a
            sequence length below 8, a share of padding outside 0 .. 1, or a full disk; nothing half-written is left.
    """
    from septet.data.pages import write_packed_card

    manifest = read_manifest(config.corpus, "corpus")
    if config.sequence_length < 8:
        raise UserError(f"--sequence-length {config.sequence_length}; a sequence holds at least 8 tokens; give more")
    if not 0 <= config.max_padding < 1:
        raise UserError(f"--max-padding {config.max_padding}; it is a share from 0 to below 1; give, say, 0.05")
    inputs = {"corpus": config.corpus, "tokenizer": config.tokenizer}
    if finished(config.output, "pack", config, inputs, config.overwrite):
        return config.output
    shards = {
        split: [Path(config.corpus) / name for name in manifest["files"] if _is_shard(name, split)] for split in SPLITS
    }
    for split in SPLITS:
        if not shards[split]:
            raise UserError(
                f"{config.corpus}: its {split} split holds no document; a packed set needs both splits; give "
                "`septet corpus` more text"
            )
    tokenizer = load_tokenizer(config.tokenizer)
    encoder = TextEncoder(tokenizer)
    digests = digests_of(inputs)
    with writing(config.output, "pack", config, inputs, digests) as out:
        out.counts.update(describe(tokenizer), sequence_length=config.sequence_length, encoder=encoder.name)
        for split in SPLITS:
            out.counts[split] = _pack_split(config, encoder, split, shards[split], out.path / split)
        tokenizer.save_pretrained(out.path / "tokenizer")
        write_packed_card(out.path / "README.md", config, out.counts, manifest, digests)
    for split in SPLITS:
        total = out.counts[split]["total"]
        print(
            f"pack: {split} {total['sequences']:,} sequences of {config.sequence_length}, {total['tokens']:,} tokens, "
            f"{total['padding_share']:.2%} padding, {total['cut_share']:.1%} of {total['documents']:,} documents cut, "
            f"{total['lost_tokens']:,} tokens lost; encoded by {encoder.name}",
            flush=True,
        )
        if config.method == "best_fit" and total["padding_share"] > config.max_padding:
            print(
                f"pack: {split} pads more than --max-padding {config.max_padding:g}, for sequences hold one source each and "
                f"some of its {len(out.counts[split]) - 1:,} sources fill few; --method concatenate pads the last sequence of each",
                flush=True,
            )
    return config.output


def read_tokenizer(path: Path) -> Any:
    """A fast tokenizer from a folder, as it is; a `UserError` where there is none."""
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would ask to trust the code of a model beside it

    try:
        return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing more special
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: is not a tokenizer folder ({reason}); give another") from error


def load_tokenizer(path: Path) -> Any:
    """A fast tokenizer that a model can be trained with.

    Raises:
        UserError: there is none, or its pad token is missing or equals eos (a model trained so never learns to stop).
    """
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such tokenizer folder; run `septet tokenizer` first, or give another --tokenizer")
    tokenizer = read_tokenizer(path)
    for name in ("bos", "eos", "pad"):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise UserError(f"{path}: the tokenizer has no {name} token; Septet needs one; use `septet tokenizer`")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"{path}: pad and eos are both {tokenizer.eos_token!r}; a model trained with that never learns to stop; "
            "give the tokenizer a pad token of its own (`septet import` does: --pad-token)"
        )
    return tokenizer


def describe(tokenizer: Any) -> dict[str, Any]:
    """What a model must know of the tokenizer: the vocabulary, rounded up to a multiple of 128, and special ids."""
    names = ("pad", "bos", "eos", "sep", "mask")
    special_ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return {"vocab_size": -(-len(tokenizer) // 128) * 128, "num_tokens": len(tokenizer), "special_ids": special_ids}


def token_byte_lengths(tokenizer: Any) -> list[int]:
    """Bytes of UTF-8 behind each token id; a special token stands for none.

    A byte-level token has one character a byte. SentencePiece's write a space as "▁" and bytes without a token as `<0xE2>`.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    is_byte_level = '"ByteLevel"' in json.dumps([described["pre_tokenizer"], described["decoder"]])

    def length(token: str) -> int:
        if is_byte_level:
            return len(token)
        return 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token.replace("▁", " ").encode())

    lengths = [0] * len(tokenizer)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token, token_id in tokenizer.get_vocab().items():
        lengths[token_id] = 0 if token_id in special else length(token)
    return lengths


class TextEncoder:
    """Documents as `<bos> text <eos>`, with exactly the ids of the `tokenizers` library.

    What looks like a special token inside a text is encoded as the plain text it is: a document that holds `<|eos|>`
    does not end there. `fastokens` does the work if it is installed and gives the same ids for `probe_texts()`; one
    document of each call is encoded by both, and a difference stops the run. Measured on one core, 8,192 | 65,536
    tokens, MB/s of en, fr, zh: tokenizers 3.4, 2.6, 3.5 | 2.3, 1.7, 2.4; fastokens 15, 10, 8 | 20, 19, 9.

    Args:
        tokenizer: what `load_tokenizer` gave.
    """

    def __init__(self, tokenizer: Any):
        from tokenizers import Tokenizer

        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.reference = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.reference.no_truncation()
        self.reference.no_padding()
        self.reference.encode_special_tokens = True
        self.name, self.fast = f"tokenizers {metadata.version('tokenizers')}", None
        try:
            import fastokens
        except ImportError:
            return
        try:
            self.fast = fastokens.Tokenizer.from_json_str(self.reference.to_str())
            same = all(map(np.array_equal, self._encode_fast(probe_texts()), self._encode_exactly(probe_texts())))
        except Exception:  # each kind of tokenizer that it does not serve raises its own
            same = False
        if same:
            self.name = f"fastokens {metadata.version('fastokens')}"
        else:
            self.fast = None

    def documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`<bos> text <eos>` of each text, (n,) int32.

        Raises:
            UserError: fastokens and tokenizers differ on one of the texts.
        """
        if self.fast is None:
            encoded = self._encode_exactly(texts)
        else:
            encoded = self._encode_fast(texts)
            checked = next((i for i, text in enumerate(texts) if 0 < len(text) <= _CHECKED_CHARACTERS), None)
            if checked is not None and not np.array_equal(encoded[checked], *self._encode_exactly([texts[checked]])):
                raise UserError(
                    f"{self.name}: gives other ids than tokenizers for the text {texts[checked][:40]!r}...; they must be "
                    "equal; pip uninstall fastokens and run again (slower), and tell its authors"
                )
        return [np.concatenate(([self.bos], ids, [self.eos]), dtype=np.int32) for ids in encoded]

    def is_whole(self, piece: np.ndarray) -> bool:
        """Whether a piece is a document that was not cut."""
        return len(piece) > 1 and bool(piece[0] == self.bos and piece[-1] == self.eos)

    def _encode_fast(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids, offsets = self.fast.encode_batch_flat(list(texts), add_special_tokens=False, split_special_tokens=True)
        ids, offsets = np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8").astype(np.int64)
        return [ids[start:end] for start, end in itertools.pairwise(offsets)]

    def _encode_exactly(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self.reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


def probe_texts(count: int = 1000) -> list[str]:
    """Pseudo-random texts, always the same, in which two tokenizers would differ first.

    White space and controls of every kind, combining and joining marks, digits of several scripts, Latin among Chinese,
    spellings of special tokens, and any other Unicode.
    """
    draw = random.Random(0)
    awkward = " \t\r\n\0\x0b\x85\xa0\u2028\u3000\u200b\u200d\ufe0f\u0301aZéſ19９²٣é中のー한👍🏽!_'’-/<|>"
    spellings = ["<|bos|>", "<|eos|>", "<|pad|>", "<|sep|>", "<s>", "</s>", "<|im_start|>", "[CLS]"]
    alphabets = [
        lambda: chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])),
        lambda: chr(draw.randrange(0x3000)),
        lambda: draw.choice(awkward),
        lambda: chr(draw.choice([draw.randrange(0x20, 0x7F), draw.randrange(0x3040, 0xA000)])),
        lambda: draw.choice([*spellings, " ", "eos", "中"]),
    ]
    return ["".join(alphabets[i % len(alphabets)]() for _ in range(draw.randrange(80))) for i in range(count)]


def best_fit(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    """Places pieces, longest first, each into the fullest bin that still has room; equal ones in the order given.

    Args:
        lengths: the pieces' lengths, none above `capacity`.

    Returns:
        For each bin the indices of its pieces.
    """
    lengths = list(lengths)
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # room left -> bins
    rooms: list[int] = []  # the keys of open_bins, sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(rooms, lengths[index])
        if place == len(rooms):
            bins.append([index])
            target, room = len(bins) - 1, capacity
        else:
            room = rooms[place]
            target = open_bins[room].pop()
            bins[target].append(index)
            if not open_bins[room]:
                del open_bins[room], rooms[place]
        left = room - lengths[index]
        if left:
            if left not in open_bins:
                bisect.insort(rooms, left)
                open_bins[left] = []
            open_bins[left].append(target)
    return bins


def in_turn(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    """Places pieces one after another, each bin being full but for the last; none reaches over the end of a bin."""
    bins, room = [], 0
    for index, length in enumerate(lengths):
        if not room:
            bins.append([])
            room = capacity
        bins[-1].append(index)
        room -= length
    return bins


def cut_emptiest(sequences: list[list[np.ndarray]], capacity: int, max_padding: float) -> list[list[np.ndarray]]:
    """Cuts the pieces of the emptiest sequences into the room of the others until at most `max_padding` is padding.

    Documents of much the same length, above half a sequence, leave every sequence half empty however they are placed.
    The largest rooms are filled first, so that the parts are as few and as long as can be.

    Args:
        sequences: the pieces of each, token arrays of at most `capacity` tokens in all.
    """
    loads = [sum(map(len, pieces)) for pieces in sequences]
    tokens = sum(loads)
    needed = max(math.ceil(tokens / capacity), math.floor(tokens / (capacity * (1 - max_padding))))
    order = sorted(range(len(sequences)), key=lambda i: (-loads[i], i))
    kept = [list(sequences[i]) for i in sorted(order[:needed])]
    rooms = [(loads[i] - capacity, place) for place, i in enumerate(sorted(order[:needed]))]  # negative: a min-heap
    heapq.heapify(rooms)
    for i in order[needed:]:
        for piece in sequences[i]:
            start = 0
            while start < len(piece):
                room, place = rooms[0]
                part = piece[start : start - room]
                kept[place].append(part)
                heapq.heapreplace(rooms, (room + len(part), place))
                start += len(part)
    return kept


@dataclass
class _Group:
    """The documents of one language and source that wait for their place, in pieces of at most a sequence."""

    lang: str
    source: str
    pieces: list[np.ndarray] = field(default_factory=list)
    waiting: int = 0  # tokens in `pieces`
    documents: int = 0
    encoded_tokens: int = 0
    whole_documents: int = 0
    sequences: int = 0
    tokens: int = 0

    def add(self, document: np.ndarray, config: PackConfig) -> None:
        capacity = config.sequence_length
        room = capacity - self.waiting % capacity if config.method == "concatenate" else capacity
        cuts = [0, *range(room, len(document), capacity), len(document)]
        self.pieces.extend(document[start:end] for start, end in itertools.pairwise(cuts))
        self.waiting += len(document)
        self.documents += 1
        self.encoded_tokens += len(document)

    def place(self, config: PackConfig, last: bool) -> list[list[np.ndarray]]:
        """The pieces of each sequence; concatenation keeps back a sequence that more documents can fill."""
        capacity, pieces = config.sequence_length, self.pieces
        bins = (best_fit if config.method == "best_fit" else in_turn)(map(len, pieces), capacity)
        sequences = [[pieces[i] for i in indices] for indices in bins]
        self.pieces, self.waiting = [], 0
        if config.method == "best_fit":
            return cut_emptiest(sequences, capacity, config.max_padding)
        if not last and sum(map(len, sequences[-1])) < capacity:
            self.pieces = sequences.pop()
            self.waiting = sum(map(len, self.pieces))
        return sequences

    def counts(self, capacity: int) -> dict[str, Any]:
        """The numbers of the manifest; `lost_tokens` are those encoded and not written."""
        return {
            "documents": self.documents,
            "cut_documents": self.documents - self.whole_documents,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "lost_tokens": self.encoded_tokens - self.tokens,
            "cut_share": round(1 - self.whole_documents / self.documents, 4),
            "padding_share": round(1 - self.tokens / (self.sequences * capacity), 4),
        }


class _Shards:
    """An Arrow data set in files of bounded size, as `datasets.load_from_disk` reads it; equal rows give equal bytes."""

    def __init__(self, folder: Path, split: str):
        import datasets

        integers = datasets.List(datasets.Value("int32"))
        string = datasets.Value("string")
        self.features = datasets.Features(
            {"input_ids": integers, "document_lengths": integers, "lang": string, "source": string}
        )
        self.folder, self.split = folder, split
        self.names: list[str] = []
        self.bytes, self.stream = 0, None
        folder.mkdir()

    def write(
        self, lang: str, source: str, pieces: np.ndarray, lengths: np.ndarray, per_sequence: Sequence[int]
    ) -> None:
        """Writes sequences whose pieces lie one after another.

        Args:
            pieces: (tokens,) int32.
            lengths: (pieces,) int32, tokens of each piece.
            per_sequence: pieces of each sequence.
        """
        import pyarrow as pa

        last_pieces = np.cumsum(per_sequence)
        ends = np.concatenate(([0], np.cumsum(lengths)[last_pieces - 1])).astype(np.int32)
        columns = [
            pa.ListArray.from_arrays(ends, pieces),
            pa.ListArray.from_arrays(np.concatenate(([0], last_pieces)).astype(np.int32), lengths),
            pa.repeat(lang, len(per_sequence)),
            pa.repeat(source, len(per_sequence)),
        ]
        batch = pa.record_batch(columns, schema=self.features.arrow_schema)
        if self.stream is None or self.bytes + batch.nbytes > SHARD_BYTES:
            self.close()
            self.names.append(f"{len(self.names):05}.arrow")
            self.stream, self.bytes = pa.ipc.new_stream(self.folder / self.names[-1], batch.schema), 0
        self.stream.write_batch(batch)
        self.bytes += batch.nbytes

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def finish(self) -> None:
        """Writes the two files beside the shards by which `datasets` knows a set that it saved."""
        import datasets

        self.close()
        datasets.DatasetInfo(features=self.features).write_to_directory(str(self.folder))
        state = dict.fromkeys(
            ("_fingerprint", "_format_columns", "_format_type")
        )  # datasets draws the fingerprint itself
        state |= {"_data_files": [{"filename": name} for name in self.names], "_split": self.split}
        write_json(self.folder / "state.json", {**state, "_format_kwargs": {}, "_output_all_columns": False})


def _pack_split(
    config: PackConfig, encoder: TextEncoder, split: str, corpus_shards: Sequence[Path], output: Path
) -> dict[str, Any]:
    from tqdm import tqdm

    groups: dict[str, _Group] = {}
    shards = _Shards(output, split)

    def write(group: _Group, last: bool) -> None:
        sequences = group.place(config, last)
        for start in range(0, len(sequences), _SEQUENCES_PER_WRITE):
            some = sequences[start : start + _SEQUENCES_PER_WRITE]
            pieces = list(itertools.chain.from_iterable(some))
            lengths = np.fromiter(map(len, pieces), np.int32)
            shards.write(group.lang, group.source, np.concatenate(pieces), lengths, [len(s) for s in some])
            group.sequences += len(some)
            group.tokens += int(lengths.sum())
            group.whole_documents += sum(map(encoder.is_whole, pieces))

    rows = tqdm(_rows(corpus_shards), desc=f"pack {split}", unit=" documents", mininterval=1, disable=None)
    for batch in _batches(rows):
        for row, document in zip(batch, encoder.documents([row["text"] for row in batch]), strict=True):
            name = f"{row['lang']}/{row['source']}"
            if name not in groups:
                groups[name] = _Group(row["lang"], row["source"])
            groups[name].add(document, config)
        while sum(group.waiting for group in groups.values()) > TOKENS_AT_ONCE:
            largest = max(groups.values(), key=lambda group: group.waiting)
            if largest.waiting < config.sequence_length:
                break  # so many sources that none fills a sequence
            write(largest, last=False)
    for name in sorted(groups):
        write(groups[name], last=True)
    shards.finish()

    total = _Group("", "")
    for group in groups.values():
        for key in ("documents", "encoded_tokens", "whole_documents", "sequences", "tokens"):
            setattr(total, key, getattr(total, key) + getattr(group, key))
    return {name: group.counts(config.sequence_length) for name, group in [*sorted(groups.items()), ("total", total)]}


def _is_shard(name: str, split: str) -> bool:
    return name.startswith(f"{split}/") and name.endswith(".jsonl.gz")


def _rows(shards: Iterable[Path]) -> Iterator[dict[str, Any]]:
    from septet.data.documents import check_columns, iterate_rows

    for shard in shards:
        for row in iterate_rows(shard):
            check_columns(shard, row, ("text", "lang", "source"), "make the corpus again with `septet corpus`")
            yield row


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch, characters = [], 0
    for row in rows:
        batch.append(row)
        characters += len(row["text"])
        if len(batch) == _DOCUMENTS_PER_CALL or characters >= _CHARACTERS_PER_CALL:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


if __name__ == "__main__":
    run_cli(run, PackConfig)
