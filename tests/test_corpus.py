"""The corpus stage: readers and their errors, cleaning, filters with reasons, de-duplication, and whole outputs only."""

import errno
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from septet.data import corpus
from septet.data.corpus import CorpusConfig
from septet.data.documents import check_columns, expand, iterate_rows, read_documents, read_rows, write_jsonl
from septet.data.errors import UserError
from septet.data.manifest import read_manifest

WORDS = {
    "en": "river stone morning letter garden winter harbour music silver window teacher market",
    "fr": "rivière pierre matin lettre jardin hiver musique argent fenêtre marché château été",
    "zh": "河流 石头 早晨 书信 花园 冬天 港口 音乐 窗户 老师 市场 城堡",
}


def prose(lang: str, seed: int, words: int = 40) -> str:
    chosen = random.Random(f"{lang}{seed}").choices(WORDS[lang].split(" "), k=words)
    return ("" if lang == "zh" else " ").join(chosen) + ("。" if lang == "zh" else ".")


def document(text: str, lang: str = "en") -> dict[str, str]:
    return {"text": text, "source": "test", "lang": lang}


def many(count: int = 60) -> list[dict[str, str]]:
    return [document(prose(lang, i), lang) for i in range(count) for lang in WORDS]


def rows_below(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("*.jsonl.gz")) for row in iterate_rows(file)]


def content(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which holds times."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture
def make(tmp_path):
    """Writes documents into files and runs the stage over them; one file runs without worker processes."""

    def make(documents, validation=None, output="corpus", **options) -> Path:
        write_jsonl(tmp_path / "documents.jsonl.gz", documents)
        held_out = ()
        if validation is not None:
            write_jsonl(tmp_path / "held_out.jsonl", validation)
            held_out = (str(tmp_path / "held_out.jsonl"),)
        inputs = (str(tmp_path / "documents.jsonl.gz"),)
        return corpus.run(CorpusConfig(inputs, tmp_path / output, held_out, **{"validation_share": 0.2} | options))

    return make


@pytest.fixture
def one_worker(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)


# --- readers ----------------------------------------------------------------------------------------------------------


def test_every_format_gives_the_same_documents(tmp_path):
    texts = ["One\u0085sentence, with a line mark inside.\nAnd a second line.", "人工智能。", "Été\u2028comme hiver."]
    rows = [document(text) for text in texts]
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"):
        write_jsonl(tmp_path / name, rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet"):
        assert rows == list(read_documents(str(tmp_path / name)))
        assert rows == read_rows(tmp_path / name)

    (tmp_path / "a.txt").write_text("First paragraph.\n\nSecond.", encoding="utf-8")
    (whole,) = read_documents(str(tmp_path / "a.txt"), lang="en")
    assert whole == {"text": "First paragraph.\n\nSecond.", "source": "a.txt", "lang": "en"}


def test_csv_keeps_commas_quotes_and_line_ends_inside_cells(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"a, ""b""\nc\u0085d",1\n', encoding="utf-8")
    assert read_rows(tmp_path / "a.csv") == [{"text": 'a, "b"\nc\u0085d', "label": "1"}]


def test_a_byte_order_mark_and_empty_lines_are_no_content(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}')
    assert read_rows(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


def test_a_folder_stands_for_its_readable_files_in_order(tmp_path):
    for name in ("b.jsonl", "sub/a.txt", "a.parquet", "notes.md", "manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(tmp_path / name) for name in ("a.parquet", "b.jsonl", "sub/a.txt")] == expand([str(tmp_path)])


def test_equal_rows_give_equal_gzip_bytes(tmp_path):
    write_jsonl(tmp_path / "a.jsonl.gz", [{"a": "é"}])
    first = (tmp_path / "a.jsonl.gz").read_bytes()
    os.utime(tmp_path / "a.jsonl.gz", (0, 0))
    write_jsonl(tmp_path / "renamed.jsonl.gz", [{"a": "é"}])
    assert first == (tmp_path / "renamed.jsonl.gz").read_bytes()
    assert bytes(4) == first[4:8]  # the header's time


def test_hub_sets_are_streamed_by_name_config_and_split(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        return iter([{"text": "Bonjour.", "id": 7}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    expected = [{"text": "Bonjour.", "source": "hub:o/n:20.fr", "lang": "fr", "id": "7"}]
    assert expected == list(read_documents("hub:o/n:20.fr", lang="fr"))
    list(read_documents("hub:o/n::test", lang="fr"))
    assert asked == [("o/n", "20.fr", "train", True), ("o/n", None, "test", True)]

    def fail(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        UserError, match=re.escape("hub:o/n: cannot be read (ConnectionError: offline); it must be hub:")
    ):
        list(read_documents("hub:o/n", lang="fr"))


GOOD = b'{"text": "x", "lang": "en"}\n'
PARQUET_MAGIC = b"PAR1"
BAD_FILES = {
    "not gzip": ("a.jsonl.gz", GOOD, "a.jsonl.gz: is a damaged or truncated gzip file"),
    "truncated gzip": ("a.jsonl.gz", gzip.compress(GOOD * 99)[:-12], "a.jsonl.gz: is a damaged or truncated gzip file"),
    "corrupt gzip": (
        "a.jsonl.gz",
        gzip.compress(GOOD)[:-6] + b"\0\0\0\0\0\0",
        "a.jsonl.gz: is a damaged or truncated gzip file",
    ),
    "corrupt Parquet": (
        "a.parquet",
        PARQUET_MAGIC + b"?" * 99 + PARQUET_MAGIC,
        "a.parquet: is not a readable Parquet file",
    ),
    "empty Parquet": ("a.parquet", b"", "a.parquet: is not a readable Parquet file"),
    "invalid UTF-8": (
        "a.jsonl",
        GOOD + '{"text": "été"}'.encode("latin1"),
        "a.jsonl, line 2: is not valid UTF-8 (byte 0xe9)",
    ),
    "invalid UTF-8 text": ("a.txt", b"one\ntwo \xff", "a.txt, line 2: is not valid UTF-8 (byte 0xff)"),
    "not JSON": ("a.jsonl", GOOD + b"\n{'text': 1}\n", "a.jsonl, line 3: is not JSON"),
    "no object": ("a.jsonl", b"[1]\n", "a.jsonl, line 1: is JSON, but a list; each line must be one object"),
    "half a surrogate": ("a.jsonl", rb'{"text": "\ud83d"}', "a.jsonl, line 1: has half of a surrogate pair"),
    "no rows": ("a.jsonl.gz", gzip.compress(b""), "a.jsonl.gz: holds no rows"),
    "wrong column": (
        "a.jsonl",
        b'{"texte": "x", "lang": "en"}',
        "row 1: has no column 'text'; did you mean 'texte'? known: lang, texte; pass",
    ),
    "no language": ("a.jsonl", b'{"text": "x"}', "row 1: has no column 'lang'; known: text; pass --lang"),
    "no text": ("a.jsonl", b'{"text": 3, "lang": "en"}', "row 1: column 'text' holds int; it must hold text"),
}


@pytest.mark.parametrize("name, data, message", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_give_one_message(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    lang = "en" if name.endswith(".txt") else None
    with pytest.raises(UserError, match=re.escape(message)) as error:
        list(read_documents(str(tmp_path / name), lang=lang))
    assert "\n" not in str(error.value)
    assert str(error.value).count(";") >= 2  # the value; the rule; the way out


def test_bad_rows_of_task_sets(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nonly one cell\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv, line 2: has not as many cells as the header \(2\)"):
        read_rows(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"missing\.jsonl: cannot be read"):
        read_rows(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match=r"a\.xlsx: unknown kind of file"):
        read_rows(tmp_path / "a.xlsx")
    with pytest.raises(
        UserError, match=r"has no column 'label'; did you mean 'labels'\? known: labels, text; rename it"
    ):
        check_columns(tmp_path / "a.csv", {"text": "", "labels": ""}, ["text", "label"], "rename it")


def test_bad_inputs_of_the_stage(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").touch()
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    for inputs, message in [
        ((), "--inputs: is empty"),
        ((str(tmp_path / "nowhere.jsonl"),), "nowhere.jsonl: no such file or folder"),
        ((str(tmp_path / "empty"),), "empty: holds no file ending in .jsonl"),
        ((str(tmp_path / "a.pdf"),), "a.pdf: unknown kind of file"),
        ((str(tmp_path / "a.txt"),), "a.txt: plain text does not tell its language"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            corpus.run(CorpusConfig(inputs, tmp_path / "corpus"))
    with pytest.raises(UserError, match=r"--validation-share 1\.5: must lie between 0 and 1"):
        corpus.run(CorpusConfig((str(tmp_path / "a.txt"),), tmp_path / "corpus", validation_share=1.5))
    assert not (tmp_path / "corpus").exists()


# --- cleaning and filters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("e\u0301te\u0301", "été"),  # NFC
        ("It’s “quoted” — «\u00a0oui\u00a0»", "It’s “quoted” — «\u00a0oui\u00a0»"),
        ("你好，世界！（全角）：ＡＢ？", "你好，世界！（全角）：ＡＢ？"),
        ("schÃ¶n, itâ€™s", "schön, it’s"),
        ("a\x00b\x07c\ufeff\u200bd", "abcd"),
        ("one  \r\ntwo\t\n\n\n\n  three\u2028four ", "one\ntwo\n\n  three\nfour"),
        ("one\u0085 two", "one… two"),  # ftfy: what a Windows ellipsis becomes if read as Latin-1
        ("👩\u200d🔬", "👩\u200d🔬"),
    ],
)
def test_cleaning(raw, clean):
    from septet.data.filters import Clean

    assert clean == Clean().format(raw)
    assert clean == Clean().format(clean)


def test_each_reason_drops_what_was_planted_and_nothing_else(make):
    planted = {
        "unknown_language": document(prose("en", 1), "de"),
        "too_short": document("猫在桌子上。" + "  " * 99, "zh"),
        "too_many_replacement_characters": document(prose("en", 2) + "\ufffd\ufffd"),
        "too_few_letters": document(prose("en", 3) + " 1 2 3 | = %" * 60),
        "too_many_repeated_lines": document("\n".join([prose("fr", 4, 6)] * 2 + [prose("fr", 5, 6)]), "fr"),
        "wrong_script": document(prose("en", 6), "zh"),
        "exact_duplicate": document(prose("en", 7).upper().replace(" ", ",  ")),
        "in_validation": document(prose("zh", 8) + "！", "zh"),
    }
    kept = [document(prose("en", 7)), document(prose("fr", 9), "fr"), document(prose("zh", 10) + "OpenAI GPT", "zh")]
    validation = [document(prose("zh", 8), "zh")]
    folder = make([kept[0], *planted.values(), *kept[1:]], validation)

    assert set(planted) == {p.name.removesuffix(".jsonl.gz") for p in (folder / "rejects").iterdir()}
    for reason, row in planted.items():
        (rejected,) = read_rows(folder / f"rejects/{reason}.jsonl.gz")
        assert row["lang"] == rejected["lang"]
        assert row["text"].strip() == rejected["text"]
    assert [row["text"] for row in kept] == [row["text"] for row in rows_below(folder / "train")]
    assert [row["text"] for row in validation] == [row["text"] for row in rows_below(folder / "validation")]

    counts = read_manifest(folder, "corpus")["counts"]
    assert {reason: {row["lang"]: 1} for reason, row in planted.items()} == counts["dropped"]
    assert {lang: row["documents"] for lang, row in counts["read"].items()} == {"de": 1, "en": 4, "fr": 2, "zh": 5}
    english = len(kept[0]["text"])
    assert {"documents": 1, "bytes": english, "characters": english} == counts["train"]["en"]


@pytest.mark.parametrize(
    "text, few",
    [
        ("\n".join(f"line number {i}" for i in range(9)), True),
        ("\n".join(["-"] * 9 + [prose("en", i) for i in range(9)]), False),  # 44 % of the lines, 1 % of the characters
        (
            "\n".join([prose("en", 0)] * 2 + ["ab", "cd", "ef", "gh"]),
            False,
        ),  # 17 % of the lines, 49 % of the characters
    ],
)
def test_repeated_lines_count_by_lines_and_by_characters(text, few):
    from datatrove.data import Document

    from septet.data.filters import FewRepeatedLines

    assert FewRepeatedLines().filter(Document(text, "0")) == (few or (False, "too_many_repeated_lines"))


def test_the_held_out_share_depends_on_the_text_alone(make):
    documents = many()
    first = make(documents)
    second = make([row | {"id": str(i)} for i, row in enumerate(reversed(documents))], output="reversed")
    held_out = {row["text"] for row in rows_below(first / "validation")}
    train = {row["text"] for row in rows_below(first / "train")}
    assert held_out == {row["text"] for row in rows_below(second / "validation")}
    assert not held_out & train
    assert {row["text"] for row in documents} == held_out | train
    assert 0.1 < len(held_out) / len(documents) < 0.3  # 0.2 of 180, three standard deviations are 0.09


def test_shards_hold_the_documents_in_order(make):
    documents = many()
    folder = make(documents, validation=[document(prose("en", 999))], shard_megabytes=0.01)
    shards = sorted((folder / "train").iterdir())
    assert [f"{i:05d}.jsonl.gz" for i in range(len(shards))] == [p.name for p in shards]
    sizes = [sum(len(row["text"].encode()) for row in read_rows(p)) for p in shards]
    assert len(sizes) > 2
    assert all(10_000 <= size < 11_000 for size in sizes[:-1])
    assert [row["text"] for row in documents] == [row["text"] for row in rows_below(folder / "train")]


def test_the_page_escapes_and_shows_counts(make):
    nasty = "<script>alert('x')</script> & " + prose("en", 1)
    folder = make([*many(10), document(nasty), document("<b>short</b>")])
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;short&lt;/b&gt;" in page
    assert "fewer bytes of UTF-8 than --min-bytes" in page
    assert not re.search(r'(src|href)="(?!#)', page)  # self-contained


# --- whole outputs only -----------------------------------------------------------------------------------------------


def test_workers_change_no_byte(tmp_path, one_worker, monkeypatch):
    documents = [*many(), *many(20), document("short")]
    for number in range(5):
        write_jsonl(tmp_path / f"in/{number}.jsonl", documents[number::5])
    config = CorpusConfig((str(tmp_path / "in"),), tmp_path / "alone", validation_share=0.2)
    corpus.run(config)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    corpus.run(CorpusConfig(config.inputs, tmp_path / "together", validation_share=0.2))
    assert content(tmp_path / "alone") == content(tmp_path / "together")

    write_jsonl(tmp_path / "in/3.jsonl", [{"txt": "x", "lang": "en"}])
    with pytest.raises(UserError, match=re.escape("3.jsonl, row 1: has no column 'text'; did you mean 'txt'?")):
        corpus.run(CorpusConfig(config.inputs, tmp_path / "bad", validation_share=0.2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "in", "together"]


def test_many_files_share_a_task_and_keep_their_order(tmp_path, one_worker, monkeypatch):
    monkeypatch.setattr(corpus, "_MAX_TASKS", 2)
    rows = many(10)
    for number in range(5):
        write_jsonl(tmp_path / f"in/{number}.jsonl", rows[6 * number : 6 * number + 6])
    write_jsonl(tmp_path / "held_out.jsonl", [document(prose("en", 999))])
    folder = corpus.run(CorpusConfig((str(tmp_path / "in"),), tmp_path / "corpus", (str(tmp_path / "held_out.jsonl"),)))
    assert [row["text"] for row in rows] == [row["text"] for row in rows_below(folder / "train")]


def test_a_second_run_is_up_to_date_and_differences_are_named(make, capsys, tmp_path):
    folder = make(many(20))
    before = (folder / "manifest.json").read_bytes()
    capsys.readouterr()
    make(many(20))
    assert "is up to date" in capsys.readouterr().out
    assert before == (folder / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="was made with min_bytes = 100, now 50"):
        make(many(20), min_bytes=50)
    with pytest.raises(UserError, match=r"its input inputs\[0\] \(.*documents.jsonl.gz\) has changed"):
        make(many(21))
    assert before == (folder / "manifest.json").read_bytes()
    made_again = content(folder)
    make(many(20), overwrite=True)
    assert made_again == content(folder)


def test_nothing_left_is_an_error(make, tmp_path):
    with pytest.raises(UserError, match=r"no document is left to train on \(too_short 2\)"):
        make([document("a"), document("b")])
    with pytest.raises(UserError, match="no document is held out"):
        make(many(5), validation_share=1e-9)
    assert [p.name for p in tmp_path.iterdir()] == ["documents.jsonl.gz"]


def test_a_full_disk_leaves_finished_work_untouched(make, monkeypatch, tmp_path):
    before = content(make(many(20)))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(corpus.Examples, "offer", fail)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        make(many(30), overwrite=True)
    assert before == content(tmp_path / "corpus")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "documents.jsonl.gz"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_kill_leaves_no_output_and_no_process(tmp_path, one_worker):
    rows = many(2000)
    for number in range(4):
        write_jsonl(tmp_path / f"in/{number}.jsonl", rows)
    command = [
        sys.executable,
        "-m",
        "septet.data.corpus",
        "--inputs",
        str(tmp_path / "in"),
        "--output",
        str(tmp_path / "corpus"),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob(".corpus.*.tmp/work/kept/*")):
            assert process.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "corpus").exists()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for number in range(4):
        write_jsonl(tmp_path / f"in/{number}.jsonl", many(20))
    corpus.run(CorpusConfig((str(tmp_path / "in"),), tmp_path / "corpus", validation_share=0.2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "in"]


def test_the_command_line_prints_one_line_and_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "septet.data.corpus",
        "--inputs",
        str(tmp_path / "no.jsonl"),
        "--output",
        str(tmp_path / "c"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert re.fullmatch(r"septet: error: .*no\.jsonl: no such file or folder; .*\n", result.stderr)


def test_manifest_numbers_add_up(make):
    folder = make([*many(30), *many(5), document("short")])
    counts = read_manifest(folder, "corpus")["counts"]
    for lang, read in counts["read"].items():
        dropped = sum(by_lang.get(lang, 0) for by_lang in counts["dropped"].values())
        kept = [counts[split].get(lang, {}).get("documents", 0) for split in ("train", "validation")]
        assert read["documents"] == sum(kept) + dropped
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]["index.html"]["bytes"] > 1000
