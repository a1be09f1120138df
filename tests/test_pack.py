"""Packing: nothing is lost, documents keep their borders; the order is a permutation that needs no memory."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from septet.data import pack
from septet.data.documents import read_rows, write_jsonl
from septet.data.errors import UserError
from septet.data.manifest import fingerprint, read_json, read_manifest, write_json, write_manifest
from septet.data.pack import PackConfig, TextEncoder, best_fit, cut_emptiest, probe_texts, run, token_byte_lengths
from septet.data.packed import PackedDataset, permuted


def write_corpus(folder: Path, train: Iterable[dict[str, str]]) -> Path:
    """A finished corpus of these documents, the first also standing for validation."""
    train = list(train)
    write_jsonl(folder / "train" / "00000.jsonl.gz", train)
    write_jsonl(folder / "validation" / "00000.jsonl.gz", train[:1])
    write_manifest(folder, "corpus", {}, {}, {}, 0.0)
    return folder


def document(text: str, lang: str = "en", source: str = "test") -> dict[str, str]:
    return {"text": text, "lang": lang, "source": source}


def sequences(folder: Path, split: str = "train") -> list[dict]:
    import datasets

    return list(datasets.load_from_disk(str(folder / split)))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 300 documents from two sources, a few words to some hundred each."""
    draw = np.random.default_rng(3)
    lengths = draw.integers(1, 120, 300)
    texts = [" ".join(str(n) for n in draw.integers(0, 999, length)) for length in lengths]
    return write_corpus(
        tmp_path_factory.mktemp("words"),
        [document(text, "en", "ab"[i % 3 == 0]) for i, text in enumerate(texts)],
    )


def test_the_order_is_a_permutation_for_every_size() -> None:
    for size in [*range(1, 301), 1000, 4097]:
        orders = [permuted(np.arange(size), size, key=key) for key in (7, 8, 9)]
        for order in orders:
            assert np.array_equal(np.sort(order), np.arange(size)), size
        if size > 100:
            assert (orders[0] != orders[1]).mean() > 0.9
            assert abs(np.corrcoef(orders[0], np.arange(size))[0, 1]) < 0.3


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


def test_best_fit_is_exact() -> None:
    """The fullest bin with room, sought among all of them."""
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(1, 41, 200).tolist()
        rooms: list[int] = []
        for length in sorted(lengths, reverse=True):
            fitting = [place for place, room in enumerate(rooms) if room >= length]
            if fitting:
                rooms[min(fitting, key=rooms.__getitem__)] -= length
            else:
                rooms.append(40 - length)
        loads = [sum(lengths[i] for i in members) for members in best_fit(lengths, 40)]
        assert sorted(40 - load for load in loads) == sorted(rooms)


@pytest.mark.parametrize("max_padding", [0.0, 0.05, 0.2])
def test_the_emptiest_sequences_are_cut_until_the_padding_is_as_asked(max_padding: float) -> None:
    pieces = [np.arange(1000 * i, 1000 * i + n) for i, n in enumerate(np.random.default_rng(1).integers(60, 90, 400))]
    made = cut_emptiest([[piece] for piece in pieces], 100, max_padding)  # no two of them fit into one
    loads = [sum(map(len, members)) for members in made]
    tokens = sum(map(len, pieces))
    assert max(loads) <= 100
    assert 1 - tokens / (100 * len(made)) <= max_padding or len(made) == -(-tokens // 100)
    assert 1 - tokens / (100 * (len(made) + 1)) > max_padding  # not one sequence more was cut than had to be
    assert sorted(np.concatenate([p for members in made for p in members])) == sorted(np.concatenate(pieces))
    whole = {(piece[0], len(piece)) for members in made for piece in members}
    cut = [len(piece) for piece in pieces if (piece[0], len(piece)) not in whole]
    assert len(cut) <= 400 - len(made)  # only those of the sequences that are gone, which were the emptiest
    assert max(cut) <= min(len(piece) for piece in pieces if (piece[0], len(piece)) in whole)


def test_nothing_is_cut_while_the_padding_is_within_its_limit() -> None:
    full = [[np.arange(95 + i % 3)] for i in range(40)]  # of 100: one sequence fewer would hold them, if they were cut
    assert cut_emptiest(full, 100, 0.05) == full


def test_concatenation_keeps_the_order_and_pads_only_the_end(words, packed, tokenizer, tmp_path) -> None:
    made = run(PackConfig(words, packed / "tokenizer", tmp_path / "out", sequence_length=32, method="concatenate"))
    encoder = TextEncoder(tokenizer)
    rows = read_rows(words / "train" / "00000.jsonl.gz")
    counts = read_manifest(made, "pack")["counts"]["train"]
    for source in "ab":
        documents = encoder.documents([row["text"] for row in rows if row["source"] == source])
        mine = [row for row in sequences(made) if row["source"] == source]
        assert np.concatenate([row["input_ids"] for row in mine]).tolist() == np.concatenate(documents).tolist()
        assert all(len(row["input_ids"]) == 32 for row in mine[:-1])
        ends = np.cumsum([length for row in mine for length in row["document_lengths"]])
        assert set(np.cumsum(list(map(len, documents)))) <= set(ends)  # every border of a document is one of a piece
        starts = np.cumsum([0, *map(len, documents)])
        cut = sum(a // 32 != (b - 1) // 32 for a, b in itertools.pairwise(starts))
        assert counts[f"en/{source}"]["cut_documents"] == cut


@pytest.mark.parametrize("method", ["best_fit", "concatenate"])
def test_little_memory_loses_no_token(method: str, words, packed, tokenizer, tmp_path, monkeypatch) -> None:
    """Few tokens held at once and small shards: every document is still there, in order."""
    monkeypatch.setattr(pack, "TOKENS_AT_ONCE", 1000)
    monkeypatch.setattr(pack, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(pack, "_DOCUMENTS_PER_CALL", 10)
    config = PackConfig(words, packed / "tokenizer", tmp_path / "out", sequence_length=128, method=method)
    made = run(config)
    assert len(list((made / "train").glob("*.arrow"))) > 3
    rows = sequences(made)
    assert all(len(row["input_ids"]) <= 128 and sum(row["document_lengths"]) == len(row["input_ids"]) for row in rows)
    documents = TextEncoder(tokenizer).documents([r["text"] for r in read_rows(words / "train" / "00000.jsonl.gz")])
    assert Counter(t for row in rows for t in row["input_ids"]) == Counter(np.concatenate(documents).tolist())
    total = read_manifest(made, "pack")["counts"]["train"]["total"]
    assert (total["documents"], total["lost_tokens"], total["sequences"]) == (300, 0, len(rows))
    assert total["tokens"] == sum(map(len, documents))
    if method == "concatenate":  # a group that is written in parts goes on where it stopped
        assert sum(len(row["input_ids"]) < 128 for row in rows) <= 2
        for source in "ab":
            ids = [t for row in rows if row["source"] == source for t in row["input_ids"]]
            texts = [r["text"] for r in read_rows(words / "train" / "00000.jsonl.gz") if r["source"] == source]
            assert ids == np.concatenate(TextEncoder(tokenizer).documents(texts)).tolist()


def test_a_special_token_spelled_in_a_text_is_text(packed, tokenizer, tmp_path) -> None:
    text = "He typed <|eos|> and <|bos|>, then <|pad|>."
    corpus = write_corpus(tmp_path / "corpus", [document(text), document("<|eos|>")])
    rows = sequences(run(PackConfig(corpus, packed / "tokenizer", tmp_path / "out", sequence_length=64)))
    ids = [token for row in rows for token in row["input_ids"]]
    assert ids.count(tokenizer.eos_token_id) == ids.count(tokenizer.bos_token_id) == 2
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).count("<|eos|>") == 2


def test_the_fast_encoder_gives_the_ids_of_tokenizers(tokenizer, documents) -> None:
    pytest.importorskip("fastokens")
    encoder = TextEncoder(tokenizer)
    assert encoder.name.startswith("fastokens")
    texts = [*probe_texts(3000), "", "a" * 10_000, " " * 10_000, "字" * 10_000]
    texts += [row["text"] for row in documents]
    assert all(map(np.array_equal, encoder._encode_fast(texts), encoder._encode_exactly(texts)))
    plain = encoder.documents(["plain text"])[0].tolist()
    assert plain == [tokenizer.bos_token_id, *tokenizer.encode("plain text")[1:], tokenizer.eos_token_id]


def test_an_encoder_that_is_absent_or_wrong_is_not_used(words, packed, tokenizer, tmp_path, monkeypatch) -> None:
    fast = run(PackConfig(words, packed / "tokenizer", tmp_path / "fast", sequence_length=64))
    monkeypatch.setitem(sys.modules, "fastokens", None)
    slow = run(PackConfig(words, packed / "tokenizer", tmp_path / "slow", sequence_length=64))
    assert read_manifest(slow, "pack")["counts"]["encoder"].startswith("tokenizers")
    assert fingerprint(slow) == fingerprint(fast)

    class Wrong:
        @staticmethod
        def from_json_str(_: str) -> Wrong:
            return Wrong()

        def encode_batch_flat(self, texts: list[str], **_: bool) -> tuple[bytes, bytes]:
            lengths = [0, *map(len, texts)]
            return np.zeros(sum(lengths), np.uint32).tobytes(), np.cumsum(lengths).astype(np.uint64).tobytes()

    monkeypatch.setitem(sys.modules, "fastokens", SimpleNamespace(Tokenizer=Wrong))
    encoder = TextEncoder(tokenizer)
    assert encoder.name.startswith("tokenizers") and encoder.fast is None
    encoder.fast = Wrong()  # one that the probe did not find out
    with pytest.raises(UserError, match="other ids than tokenizers"):
        encoder.documents(["", "some text"])


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
    rows = data.rows(np.arange(3 * 1024))
    for row in rows:
        name = next(name for name, numbers in data.sources.items() if row in numbers)
        seen[name].append(int(row))
    for name, numbers in data.sources.items():
        for epoch in range(len(seen[name]) // len(numbers)):
            part = seen[name][epoch * len(numbers) : (epoch + 1) * len(numbers)]
            assert sorted(part) == sorted(numbers)
    shares = {name.split("/")[0]: len(rows) / (3 * 1024) for name, rows in seen.items()}
    assert shares == {"en": 0.5, "fr": 0.25, "zh": 0.25}


def test_the_order_is_the_same_for_any_number_of_processes(packed) -> None:
    data = PackedDataset(packed, "train", mixture={"en": 3, "zh": 1}, seed=2)
    steps = np.arange(40 * 12).reshape(40, 12)
    alone = [data.rows(samples).tolist() for samples in steps]
    for processes in (2, 3, 4):
        ranks = [PackedDataset(packed, "train", mixture={"en": 3, "zh": 1}, seed=2) for _ in range(processes)]
        parts = [[r.rows(np.split(samples, processes)[i]).tolist() for i, r in enumerate(ranks)] for samples in steps]
        assert [list(itertools.chain(*part)) for part in parts] == alone


def test_repetition_is_counted_and_limited(packed) -> None:
    data = PackedDataset(packed, "train", mixture={"en": 5, "fr": 1}, seed=4)
    rows = data.rows(np.arange(3000))
    for num_samples in (0, 1, 17, 1024, 2999):
        seen = {name: np.isin(rows[:num_samples], numbers).sum() for name, numbers in data.sources.items()}
        assert data.epochs(num_samples) == {name: seen[name] / len(data.sources[name]) for name in seen}
    most = next(n for n in range(3000) if max(data.epochs(n + 1).values()) > 4)
    data.check_epochs(most, {"all": 4})
    with pytest.raises(UserError, match=rf"en/test .* at most 4 epochs are allowed, which {most} samples keep to"):
        data.check_epochs(most + 1, {"all": 4})
    data.check_epochs(10**9, {"zh": 1})  # not in the mixture, and the others have no limit
    data.check_epochs(most + 1, {"all": 4, "en": 3, "en/test": 5})  # the closer name goes before
    with pytest.raises(UserError, match=r"through fr/test"):
        data.check_epochs(most, {"en": 4, "fr": data.epochs(most)["fr/test"] / 2})
    with pytest.raises(UserError, match="max_epochs names 'de'"):
        data.check_epochs(1, {"de": 1})
    with pytest.raises(UserError, match="max_epochs gives en nan; a number from 0 on is needed"):
        data.check_epochs(1, {"en": float("nan")})
    for weights, message in (({"en": -1.0}, "mixture gives en -1.0"), ({"en": 0.0}, "every source the weight 0")):
        with pytest.raises(UserError, match=message):
            PackedDataset(packed, "train", weights)


def test_small_sources_get_their_share(packed, monkeypatch) -> None:
    """A source of a five-thousandth is seen as often as the others, and many sources are all seen."""
    for sizes in ({"en/large": 50_000, "fr/small": 10}, {f"en/{k}": 1 for k in range(3000)}):
        ends = np.cumsum(list(sizes.values()))
        rows = {name: np.arange(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        monkeypatch.setattr(PackedDataset, "_rows_by_source", lambda self, rows=rows: rows)
        data = PackedDataset(packed, "train")
        samples = -(-10 * ends[-1] // data._size) * data._size  # whole cycles; within one the sources come at random
        epochs = data.epochs(samples).values()
        assert max(epochs) / min(epochs) < 1.1
        assert len(set(data.rows(np.arange(data._size)).tolist())) > 0.9 * min(ends[-1], data._size)
    few = {"en/large": np.arange(10**8), "fr/one": np.arange(10**8, 10**8 + 1)}
    monkeypatch.setattr(PackedDataset, "_rows_by_source", lambda self: few)
    assert PackedDataset(packed, "train").epochs(2 << 20)["fr/one"] == 2  # once a cycle, which has a limit


def test_many_sources_that_fill_no_sequence(words, packed, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pack, "TOKENS_AT_ONCE", 50)
    config = PackConfig(words, packed / "tokenizer", tmp_path / "out", sequence_length=4096, method="concatenate")
    assert read_manifest(run(config), "pack")["counts"]["train"]["total"]["lost_tokens"] == 0


def test_the_set_is_loaded_like_any_other(packed, tmp_path) -> None:
    import datasets

    folder = shutil.copytree(packed, tmp_path / "set")
    files = "\n".join(f"  - split: {split}\n    path: {split}/*.arrow" for split in ("train", "validation"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    for split in ("train", "validation"):
        assert list(loaded[split]) == sequences(packed, split)


def test_a_mixture_leaves_out_what_it_does_not_name(packed) -> None:
    data = PackedDataset(packed, "train", mixture={"zh": 1.0})
    assert set(data.batch(np.arange(64)).lang) == {"zh"}


def test_a_mixture_names_each_source_once(packed) -> None:
    source = next(name for name in PackedDataset(packed, "train").sources if name.startswith("zh/"))
    for mixture in ({"zh": 1.0, source: 1.0}, {source: 1.0, "zh": 1.0}):
        with pytest.raises(UserError, match=f"mixture names both 'zh' and '{source}', which is part of it"):
            PackedDataset(packed, "train", mixture=mixture)


def test_a_token_of_sentencepiece_s_kind_is_as_long_as_its_text() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "<0xE2>", "<0x98>", "<0x83>", "▁", "h", "é", "字"]
    plain = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], byte_fallback=True))
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    plain.add_special_tokens(["<s>"])
    assert token_byte_lengths(PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>")) == [
        0,
        1,
        1,
        1,
        1,
        1,
        2,
        3,
    ]


def test_a_damaged_set_is_named(packed, tmp_path) -> None:
    shutil.copytree(packed, tmp_path / "damaged")
    arrow = next((tmp_path / "damaged" / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(UserError, match="its train split cannot be read"):
        PackedDataset(tmp_path / "damaged", "train")


def test_a_set_cut_off_between_two_batches_is_named(words, packed, tmp_path, monkeypatch) -> None:
    """An Arrow stream that stops there reads as a shorter one."""
    import pyarrow as pa

    monkeypatch.setattr(pack, "_SEQUENCES_PER_WRITE", 5)
    made = run(PackConfig(words, packed / "tokenizer", tmp_path / "out", sequence_length=64))
    arrow = made / "train" / "00000.arrow"
    with pa.ipc.open_stream(arrow.read_bytes()) as stream:
        batches = list(stream)
    with pa.ipc.new_stream(str(arrow), batches[0].schema) as stream:
        for batch in batches[:-1]:
            stream.write_batch(batch)
    with pytest.raises(UserError, match=r"holds [\d,]+ of the [\d,]+ sequences in its manifest"):
        PackedDataset(made, "train")


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
    with pytest.raises(UserError, match="share from 0 to below 1"):
        run(PackConfig(root / "corpus", root / "tokenizer", tmp_path / "out", max_padding=1.0))
    with pytest.raises(UserError, match="mixture names 'de'"):
        PackedDataset(packed, "train", mixture={"de": 1.0})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["no shard", "empty", "truncated", "missing", "no column", "full disk"])
def test_bad_input_is_one_message_and_leaves_nothing(damage: str, packed, tmp_path, monkeypatch) -> None:
    corpus = write_corpus(tmp_path / "corpus", [document(f"Sentence {n}.") for n in range(200)])
    shard = corpus / "train" / "00000.jsonl.gz"
    if damage == "no shard":
        manifest = read_json(corpus / "manifest.json")
        del manifest["files"]["train/00000.jsonl.gz"]
        write_json(corpus / "manifest.json", manifest)
        message = "its train split holds no document"
    elif damage == "empty":
        write_jsonl(shard, [])
        message = "holds no rows"
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-20])
        message = "damaged or truncated gzip"
    elif damage == "missing":
        shard.unlink()
        message = "cannot be read"
    elif damage == "no column":
        write_jsonl(shard, [{"text": "x", "lang": "en"}])
        message = "has no column 'source'"
    else:
        import pyarrow as pa

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        stream = SimpleNamespace(write_batch=full, close=lambda: None)
        monkeypatch.setattr(pa.ipc, "new_stream", lambda *_: stream)
        message = "No space left on device"
    with pytest.raises(UserError, match=message):
        run(PackConfig(corpus, packed / "tokenizer", tmp_path / "out", sequence_length=64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


def test_the_closing_line_states_what_packing_cost(words, packed, tmp_path, capsys) -> None:
    made = run(PackConfig(words, packed / "tokenizer", tmp_path / "out", sequence_length=64))
    total = read_manifest(made, "pack")["counts"]["train"]["total"]
    assert total["padding_share"] <= 0.05 and 0 < total["cut_share"] < 1
    out = capsys.readouterr().out
    line = next(line for line in out.split("\n") if line.startswith("pack: train "))
    assert f"{total['padding_share']:.2%} padding, {total['cut_share']:.1%} of 300 documents cut, 0 tokens lost" in line


def test_padding_that_many_small_sources_bring_is_said(packed, tmp_path, capsys) -> None:
    rows = [{"id": str(k), "text": f"one short text {k}", "source": f"s{k}", "lang": "en"} for k in range(20)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"corpus/{split}/00000.jsonl.gz", rows)
    write_manifest(tmp_path / "corpus", "corpus", {}, {}, {}, 0)
    run(PackConfig(tmp_path / "corpus", packed / "tokenizer", tmp_path / "out", sequence_length=64))
    assert (
        "train pads more than --max-padding 0.05, for sequences hold one source each and some of its 20"
        in capsys.readouterr().out
    )
