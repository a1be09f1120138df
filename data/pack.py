"""Pack a corpus into sequences of one length, with document boundaries.

Every document becomes `<bos> text <eos>`, cut into pieces no longer than a sequence. Pieces of one language and source
are placed by best fit, longest first, into the open sequence that they fill best (Ding et al. 2024, "Fewer Truncations
Improve Language Modeling"), so that no document is cut but for being longer than a sequence. The result is an Arrow
data set with the tokenizer beside it; `PackedDataset` reads it.
"""

from __future__ import annotations

import bisect
import itertools
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from septet.data.errors import UserError, run_cli
from septet.data.manifest import finished, read_manifest, writing

SPLITS = ("train", "validation")


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
    pieces_at_once: int = 200_000
    """pieces of one language and source that best fit chooses among; bounds the memory"""
    overwrite: bool = False
    """replace what stands at --output"""


def run(config: PackConfig) -> Path:
    """Packs `train` and `validation`; returns the output directory.

    Raises:
        UserError: a stage that is missing, a tokenizer that cannot serve, or a sequence length below 8.
    """
    read_manifest(config.corpus, "corpus")
    if config.sequence_length < 8:
        raise UserError(f"--sequence-length {config.sequence_length}; a sequence holds at least 8 tokens; give more")
    inputs = {"corpus": config.corpus, "tokenizer": config.tokenizer}
    if finished(config.output, "pack", config, inputs, config.overwrite):
        return config.output
    tokenizer = load_tokenizer(config.tokenizer)
    with writing(config.output, "pack", config, inputs) as out:
        out.counts.update(describe(tokenizer), sequence_length=config.sequence_length)
        for split in SPLITS:
            out.counts[split] = _pack_split(config, tokenizer, split, out.path / split)
        tokenizer.save_pretrained(out.path / "tokenizer")
    for split in SPLITS:
        total = out.counts[split]["total"]
        print(
            f"pack: {split} {total['sequences']:,} sequences of {config.sequence_length}, {total['tokens']:,} tokens, "
            f"{total['padding_share']:.1%} padding, {total['cut_documents']:,} of {total['documents']:,} documents cut"
        )
    return config.output


def load_tokenizer(path: Path) -> Any:
    """A fast tokenizer from a folder.

    Raises:
        UserError: there is none, or its pad token is missing or equals eos (a model trained so never learns to stop).
    """
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would ask to trust the code of a model beside it

    if not Path(path).is_dir():
        raise UserError(f"{path}: no such tokenizer folder; run `septet tokenizer` first, or give another --tokenizer")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a tokenizer folder ({str(error).splitlines()[0]}); give another") from error
    for name in ("bos", "eos", "pad"):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise UserError(f"{path}: the tokenizer has no {name} token; Septet needs one; use `septet tokenizer`")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"{path}: pad and eos are both {tokenizer.eos_token!r}; a model trained with that never learns to stop; "
            "give the tokenizer a pad token of its own"
        )
    return tokenizer


def describe(tokenizer: Any) -> dict[str, Any]:
    """What a model must know of the tokenizer: the vocabulary, rounded up to a multiple of 128, and special ids."""
    names = ("pad", "bos", "eos", "sep", "mask")
    special_ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return {"vocab_size": -(-len(tokenizer) // 128) * 128, "num_tokens": len(tokenizer), "special_ids": special_ids}


def token_byte_lengths(tokenizer: Any) -> list[int]:
    """Bytes of text behind each token id; a byte-level token has one character a byte, a special token stands for none."""
    lengths = [0] * len(tokenizer)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token, token_id in tokenizer.get_vocab().items():
        lengths[token_id] = 0 if token_id in special else len(token)
    return lengths


def best_fit(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    """Places pieces, longest first, each into the fullest bin that still has room.

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


def _pack_split(config: PackConfig, tokenizer: Any, split: str, output: Path) -> dict[str, Any]:
    import datasets
    from tqdm import tqdm

    names = ("documents", "cut_documents", "sequences", "tokens")
    counts: dict[str, Any] = defaultdict(lambda: dict.fromkeys(names, 0))
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int32")),
            "document_lengths": datasets.List(datasets.Value("int32")),
            "lang": datasets.Value("string"),
            "source": datasets.Value("string"),
        }
    )

    def packed(lang: str, source: str, pieces: list[list[int]]) -> Iterator[dict[str, Any]]:
        group = counts[f"{lang}/{source}"]
        for indices in best_fit(map(len, pieces), config.sequence_length):
            chosen = [pieces[i] for i in indices]
            group["sequences"] += 1
            group["tokens"] += sum(map(len, chosen))
            yield {
                "input_ids": [token for piece in chosen for token in piece],
                "document_lengths": [len(piece) for piece in chosen],
                "lang": lang,
                "source": source,
            }

    def rows() -> Iterator[dict[str, Any]]:
        pieces: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
        documents = tqdm(_documents(config, split), desc=f"pack {split}", unit=" documents", mininterval=1)
        for batch in _batches(documents, 1000):
            encodings = tokenizer([row["text"] for row in batch], add_special_tokens=False)["input_ids"]
            for row, encoding in zip(batch, encodings, strict=True):
                key = (row["lang"], row["source"])
                ids = [tokenizer.bos_token_id, *encoding, tokenizer.eos_token_id]
                counts["/".join(key)]["documents"] += 1
                counts["/".join(key)]["cut_documents"] += len(ids) > config.sequence_length
                cuts = range(0, len(ids), config.sequence_length)
                pieces[key].extend(ids[i : i + config.sequence_length] for i in cuts)
                if len(pieces[key]) >= config.pieces_at_once:
                    yield from packed(*key, pieces.pop(key))
        for key in sorted(pieces):
            yield from packed(*key, pieces[key])

    datasets.disable_progress_bars()
    cache = output.with_name(f"{output.name}.cache")
    # A fixed fingerprint: datasets would draw one at random, and the same input would not give the same bytes.
    settings = {"cache_dir": str(cache), "split": split, "fingerprint": "septet"}
    try:
        made = datasets.Dataset.from_generator(rows, features=features, **settings)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError | OSError):  # a damaged shard, a full disk
            raise error.__cause__ from None
        raise
    made.save_to_disk(output)
    del made
    shutil.rmtree(cache)
    counts["total"] = {name: sum(group[name] for group in counts.values()) for name in names}
    for group in counts.values():
        room = group["sequences"] * config.sequence_length
        group["padding_share"] = round(1 - group["tokens"] / room, 4) if room else 0.0
    return counts


def _documents(config: PackConfig, split: str) -> Iterator[dict[str, Any]]:
    from septet.data.documents import iterate_rows

    for shard in sorted((config.corpus / split).glob("*.jsonl.gz")):
        yield from iterate_rows(shard)


def _batches(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


if __name__ == "__main__":
    run_cli(run, PackConfig)
