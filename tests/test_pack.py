"""Packing: nothing is lost, documents keep their borders; the order is a permutation that needs no memory."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest

from septet.data.documents import read_rows
from septet.data.errors import UserError
from septet.data.manifest import fingerprint, read_manifest
from septet.data.pack import PackConfig, best_fit, run, token_byte_lengths
from septet.data.packed import CYCLE, PackedDataset, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_the_order_is_a_permutation(size: int) -> None:
    order = permuted(np.arange(size), size, key=7)
    assert sorted(order) == list(range(size))
    if size > 60:
        assert (permuted(np.arange(size), size, key=8) != order).mean() > 0.9
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.3


def test_a_place_of_the_order_is_computed_alone() -> None:
    everything = permuted(np.arange(10_000), 10_000, key=3)
    assert permuted(np.array([9_876]), 10_000, key=3)[0] == everything[9_876]


def test_best_fit_places_every_piece_once_and_fills() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 3000).tolist()
    bins = best_fit(lengths, 100)
    assert sorted(i for members in bins for i in members) == list(range(3000))
    loads = [sum(lengths[i] for i in members) for members in bins]
    assert max(loads) <= 100
    assert len(bins) <= 1.03 * sum(lengths) / 100  # taken as they come, the same pieces need a third more


def test_packing_keeps_every_token_and_border(packed, tokenizer) -> None:
    data = PackedDataset(packed, "train")
    corpus = packed.parent / "corpus" / "train"
    texts = Counter(row["text"] for shard in sorted(corpus.glob("*.jsonl.gz")) for row in read_rows(shard))
    pieces = []
    for row in range(len(data)):
        batch = data.read(np.array([row]))
        start = 0
        for length in batch.document_lengths[0]:
            pieces.append(batch.input_ids[0, start : start + length].tolist())
            assert batch.position_ids[0, start : start + length].tolist() == list(range(length))
            start += length
        assert (batch.input_ids[0, start:] == tokenizer.pad_token_id).all()
        assert batch.num_tokens[0] == start
    assert sum(piece[0] == tokenizer.bos_token_id for piece in pieces) == sum(texts.values())
    assert sum(piece[-1] == tokenizer.eos_token_id for piece in pieces) == sum(texts.values())
    whole = Counter(
        tokenizer.decode(p[1:-1]) for p in pieces if (p[0], p[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    )
    assert whole.keys() <= texts.keys()
    lengths = np.array(token_byte_lengths(tokenizer))
    assert sum(lengths[np.array(piece)].sum() for piece in pieces) == sum(len(t.encode()) * n for t, n in texts.items())


def test_each_sequence_comes_once_an_epoch_of_its_source(packed) -> None:
    data = PackedDataset(packed, "train", mixture={"en": 2, "fr": 1, "zh": 1}, seed=5)
    seen: dict[str, list[int]] = {name: [] for name in data.sources}
    rows = data.rows(np.arange(3 * CYCLE))
    for row in rows:
        name = next(name for name, numbers in data.sources.items() if row in numbers)
        seen[name].append(int(row))
    for name, numbers in data.sources.items():
        for epoch in range(len(seen[name]) // len(numbers)):
            part = seen[name][epoch * len(numbers) : (epoch + 1) * len(numbers)]
            assert sorted(part) == sorted(numbers)
    shares = {name.split("/")[0]: len(rows) / (3 * CYCLE) for name, rows in seen.items()}
    assert shares == {"en": 0.5, "fr": 0.25, "zh": 0.25}


def test_a_mixture_leaves_out_what_it_does_not_name(packed) -> None:
    data = PackedDataset(packed, "train", mixture={"zh": 1.0})
    assert set(data.batch(np.arange(64)).lang) == {"zh"}


def test_a_damaged_set_is_named(packed, tmp_path) -> None:
    shutil.copytree(packed, tmp_path / "damaged")
    arrow = next((tmp_path / "damaged" / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(UserError, match="its train split cannot be read"):
        PackedDataset(tmp_path / "damaged", "train")


def test_any_sample_is_computed_alone(packed) -> None:
    data = PackedDataset(packed, "train", seed=5)
    together = data.rows(np.arange(5000))
    assert data.rows(np.array([4321, 17])).tolist() == [together[4321], together[17]]
    assert PackedDataset(packed, "train", seed=6).rows(np.arange(5000)).tolist() != together.tolist()


def test_a_second_run_stops_and_other_options_are_refused(packed, capsys) -> None:
    root = packed.parent
    config = PackConfig(root / "corpus", root / "tokenizer", packed, sequence_length=64)
    before = read_manifest(packed, "pack")
    run(config)
    assert "up to date" in capsys.readouterr().out
    assert read_manifest(packed, "pack") == before
    with pytest.raises(UserError, match=r"sequence_length = 64, now 32.*--overwrite"):
        run(PackConfig(root / "corpus", root / "tokenizer", packed, sequence_length=32))


def test_the_same_input_gives_the_same_bytes(packed, tmp_path) -> None:
    again = run(
        PackConfig(packed.parent / "corpus", packed.parent / "tokenizer", tmp_path / "again", sequence_length=64)
    )
    assert fingerprint(again) == fingerprint(packed)
    other = run(
        PackConfig(packed.parent / "corpus", packed.parent / "tokenizer", tmp_path / "other", sequence_length=32)
    )
    assert fingerprint(other) != fingerprint(packed)


def test_what_cannot_be_packed_is_refused(packed, tokenizer, tmp_path) -> None:
    root = packed.parent
    with pytest.raises(UserError, match="run `septet corpus` first"):
        run(PackConfig(tmp_path, root / "tokenizer", tmp_path / "out"))
    with pytest.raises(UserError, match="septet tokenizer"):
        run(PackConfig(root / "corpus", tmp_path / "nothing", tmp_path / "out"))
    tokenizer.save_pretrained(tmp_path / "wrong")
    wrong = type(tokenizer).from_pretrained(tmp_path / "wrong", pad_token=tokenizer.eos_token)
    wrong.save_pretrained(tmp_path / "wrong")
    with pytest.raises(UserError, match="never learns to stop"):
        run(PackConfig(root / "corpus", tmp_path / "wrong", tmp_path / "out"))
    with pytest.raises(UserError, match="at least 8"):
        run(PackConfig(root / "corpus", root / "tokenizer", tmp_path / "out", sequence_length=4))
    with pytest.raises(UserError, match="mixture names 'de'"):
        PackedDataset(packed, "train", mixture={"de": 1.0})
    assert not (tmp_path / "out").exists()
