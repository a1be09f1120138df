"""Reading documents: formats, errors, bad rows, parts, long lines, web archives, and a Hub that breaks off."""

import gzip
import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import hub_double
import pyarrow
import pyarrow.parquet
import pytest

from septet.data import documents, hub, web
from septet.data.documents import (
    BAD_ROWS,
    JsonLinesWriter,
    check_columns,
    expand,
    parts_of,
    read_documents,
    read_rows,
    write_jsonl,
)
from septet.data.errors import UserError
from septet.data.manifest import fingerprint, writing
from septet.data.web import decode_page


def document(text: str, lang: str = "en") -> dict[str, str]:
    return {"text": text, "source": "test", "lang": lang}


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def texts_of(path: Path, **options) -> list[str]:
    return [row["text"] for row in read_documents(str(path), **options)]


# --- formats and files ------------------------------------------------------------------------------------------------


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


def test_files_that_were_joined_have_marks_inside(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n\xef\xbb\xbf\n')
    assert read_rows(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


def test_a_cell_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text(f'text,label\n"{"x" * 200_000}",1\n', encoding="utf-8")
    assert len(read_rows(tmp_path / "a.csv")[0]["text"]) == 200_000


@pytest.mark.parametrize("manifest", ['{"name": "x"}', '[{"a": 1}]', '{"stage": "x"}', "{"])
def test_a_manifest_of_somebody_else_s_is_a_file_like_any(manifest, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "manifest.json").write_text(manifest)
    assert [str(tmp_path / "a.txt")] == expand([str(tmp_path)])
    before = fingerprint(tmp_path)
    (tmp_path / "a.txt").write_text("b")
    assert fingerprint(tmp_path) != before


def test_a_folder_is_known_by_its_manifest_as_long_as_it_holds_what_that_lists(tmp_path):
    with writing(tmp_path / "out", "corpus", {}, {}) as out:
        write_jsonl(out.path / "train" / "00000.jsonl.gz", [{"text": "a"}])
    whole = fingerprint(tmp_path / "out")
    (tmp_path / "out" / ".DS_Store").touch()
    assert fingerprint(tmp_path / "out") == whole
    write_jsonl(tmp_path / "out" / "train" / "00001.jsonl.gz", [{"text": "b"}])
    assert fingerprint(tmp_path / "out") != whole
    (tmp_path / "out" / "train" / "00001.jsonl.gz").unlink()
    assert fingerprint(tmp_path / "out") == whole
    write_jsonl(tmp_path / "out" / "train" / "00000.jsonl.gz", [{"text": "other"}])
    assert fingerprint(tmp_path / "out") != whole


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


GOOD = b'{"text": "x", "lang": "en"}\n'
PARQUET_MAGIC = b"PAR1"


def _parquet(**row: str) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), stream)
    return stream.getvalue()


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
    "wrong column": (
        "a.jsonl",
        b'{"texte": "x", "lang": "en"}',
        "line 1: has no column 'text'; did you mean 'texte'? known: lang, texte; pass",
    ),
    "wrong column of Parquet": (
        "a.parquet",
        _parquet(texte="x"),
        "a.parquet: has no column 'text'; did you mean 'texte'?",
    ),
    "UTF-16": ("a.jsonl", GOOD.decode().encode("utf-16"), "a.jsonl: is UTF-16 (byte order mark ff fe)"),
    "UTF-16 text": ("a.txt", "été".encode("utf-16"), "a.txt: is UTF-16 (byte order mark ff fe)"),
    "no text": ("a.jsonl", b'{"text": 3, "lang": "en"}', "line 1: column 'text' holds int; it must hold text"),
}


@pytest.mark.parametrize("name, data, message", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_give_one_message(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        list(read_documents(str(tmp_path / name)))
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


# --- rows that can be no document -------------------------------------------------------------------------------------


def test_bad_rows_are_dropped_with_their_reason_and_place_and_the_others_read(tmp_path):
    lines = {
        1: b'{"text": "first", "lang": ""}',
        2: b"{'text': 1}",
        3: '{"text": "été"}'.encode("latin1"),
        4: b"[1]",
        5: rb'{"text": "\ud83d"}',
        6: b'{"text": 3}',
        7: b'{"texte": "x"}',
        9: b'{"text": "' + b"x" * 200 + b'"}',
        10: b'{"text": "nul \\u0000", "lang": null}',
    }
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines.get(n, b"") for n in range(1, 11)))
    dropped = []

    def note(reason: str, message: str) -> None:
        dropped.append((int(re.search(r"a\.jsonl, line (\d+): ", message).group(1)), reason))

    options = {"bad_rows": "drop", "max_line_bytes": 100, "on_bad_row": note}
    rows = list(read_documents(str(tmp_path / "a.jsonl"), **options))
    assert [(row["text"], row["lang"]) for row in rows] == [("first", ""), ("nul \0", "")]
    reasons = [
        "invalid_json",
        "invalid_utf8",
        "invalid_json",
        "half_surrogate",
        "not_text",
        "missing_column",
        "too_long",
    ]
    assert dropped == list(zip([2, 3, 4, 5, 6, 7, 9], reasons, strict=True))
    assert set(reasons) <= set(BAD_ROWS)

    whole, dropped[:] = dropped[:], []  # each part names lines by their number in the whole file
    for n in (2, 3, 50):
        assert rows == [
            row for k in range(n) for row in read_documents(str(tmp_path / "a.jsonl"), part=(k, n), **options)
        ]
        assert whole == dropped
        dropped.clear()

    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xff")
    (tmp_path / "long.txt").write_text("x" * 200, encoding="utf-8")
    drop = {"bad_rows": "drop", "on_bad_row": lambda reason, _: dropped.append(reason)}
    assert texts_of(tmp_path / "a.txt", **drop) + texts_of(tmp_path / "long.txt", max_line_bytes=100, **drop) == []
    assert dropped == ["invalid_utf8", "too_long"]


def test_invalid_utf8_in_one_row_of_parquet(tmp_path):
    raw = pyarrow.array([b"one", b"\xe9t\xe9", b"three"])
    text = pyarrow.Array.from_buffers(pyarrow.string(), len(raw), raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2: holds invalid UTF-8 .*, or pass --bad-rows drop"):
        texts_of(tmp_path / "a.parquet")
    dropped = []
    note = {"bad_rows": "drop", "on_bad_row": lambda reason, message: dropped.append((reason, "row 2" in message))}
    assert texts_of(tmp_path / "a.parquet", **note) == ["one", "three"]
    assert dropped == [("invalid_utf8", True)]


def test_a_damaged_file_stops_even_where_bad_rows_are_dropped(tmp_path):
    rows = b"".join(b'{"text": "%d"}\n' % n for n in range(100_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows)[:-9])
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(rows)[:-9])
    (tmp_path / "a.jsonl").write_bytes(rows.decode().encode("utf-16"))
    for name, message in (
        ("a.jsonl.gz", "is a damaged or truncated gzip file"),
        ("a.jsonl.zst", "is a damaged or truncated zstd file"),
        ("a.jsonl", "is UTF-16 (byte order mark ff fe)"),
    ):
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / name}: {message}")):
            texts_of(tmp_path / name, bad_rows="drop")


def test_an_empty_shard_has_no_documents_and_an_empty_task_set_is_an_error(tmp_path):
    (tmp_path / "zero.jsonl").touch()
    (tmp_path / "zero.jsonl.gz").touch()
    (tmp_path / "empty.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n\n")
    (tmp_path / "blank.txt").write_bytes(b" \n")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    for name in expand([str(tmp_path)]):
        assert parts_of(name, 100) == 1
        assert list(read_documents(name)) == []
        if not name.endswith(".txt"):
            with pytest.raises(UserError, match="holds no rows"):
                read_rows(Path(name))


def test_a_language_column_that_was_named_must_be_there(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "language": "fr"}])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"], "language": ["fr"]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert [row["lang"] for row in read_documents(str(tmp_path / name))] == [""]
        assert [row["lang"] for row in read_documents(str(tmp_path / name), lang_column="language")] == ["fr"]
        assert [row["lang"] for row in read_documents(str(tmp_path / name), lang_column="none", lang="zh")] == ["zh"]
        with pytest.raises(UserError, match=r"1: has no column 'langue'.*pass the right --lang-column"):
            list(read_documents(str(tmp_path / name), lang_column="langue"))
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    assert [row["lang"] for row in read_documents(str(tmp_path / "a.txt"), lang_column="language")] == [""]


# --- long lines, parts, compression -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit, read", [(40_000_000, [30_000_000, 4]), (1_000_000, [4])])
def test_a_line_of_30_megabytes_takes_little_time_and_memory(tmp_path, limit, read):
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.write(b'{"text": "' + b"x" * 30_000_000 + b'"}\n{"text": "next"}\n')
    tracemalloc.start()
    started = time.monotonic()
    lengths = [
        len(row["text"]) for row in read_documents(str(tmp_path / "a.jsonl"), max_line_bytes=limit, bad_rows="drop")
    ]
    seconds, (_, peak) = time.monotonic() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lengths == read
    assert seconds < 5  # 0.3 s; it is linear
    assert peak < (150e6 if limit > 30e6 else 10e6)


def test_parts_one_after_the_other_are_the_whole(tmp_path):
    rows = [document("x" * (n % 37), "fr") | {"id": str(n)} for n in range(100)]
    path = tmp_path / "a.jsonl"
    write_jsonl(path, rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()[:-1])  # a byte order mark, and no end of line at the end
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=9)
    for n in itertools.chain(range(1, 30), (path.stat().st_size, 10_000)):
        for name in ("a.jsonl", "a.parquet") if n < 30 else ("a.jsonl",):
            assert rows == [row for k in range(n) for row in read_documents(str(tmp_path / name), part=(k, n))]
    assert parts_of(str(path), path.stat().st_size // 4) == 4
    assert parts_of(str(tmp_path / "a.parquet"), 1) == 12  # the row groups
    assert parts_of(str(tmp_path / "a.parquet"), 10**9) == 1
    write_jsonl(tmp_path / "a.jsonl.gz", rows)
    assert parts_of(str(tmp_path / "a.jsonl.gz"), 1) == 1


def test_lines_are_those_of_split_wherever_blocks_and_parts_end(tmp_path, monkeypatch):
    data = b"\n".join(b"ab" * (n % 5) for n in range(40)) + b"\n\n"
    (tmp_path / "a").write_bytes(data)
    for block_bytes in (1, 2, 3, 7, 1000):

        def blocks(path, start=0, block_bytes=block_bytes):
            return (data[i : i + block_bytes] for i in range(start, len(data), block_bytes))

        monkeypatch.setattr(documents, "_blocks", blocks)
        for limit in (4, 100):
            expected = [line if len(line) <= limit else None for line in data.split(b"\n")[:-1]]
            for n in (1, 3, 17):
                lines = [line for k in range(n) for line in documents._lines(tmp_path / "a", limit, (k, n))]
                assert expected == (
                    lines[:-1] if n == 1 else lines
                )  # the end of the whole reads as one more blank line


def test_zstandard_and_the_level_of_gzip(tmp_path):
    rows = [document(f"été {n}") for n in range(1000)]
    for level in (1, 6):
        with JsonLinesWriter(tmp_path / f"{level}.jsonl.gz", level) as writer:
            for row in rows:
                writer.write(row)
        assert rows == list(read_documents(str(tmp_path / f"{level}.jsonl.gz")))
    write_jsonl(tmp_path / "plain.jsonl.gz", rows)
    assert (tmp_path / "plain.jsonl.gz").read_bytes() == (tmp_path / "6.jsonl.gz").read_bytes()
    assert [(tmp_path / f"{level}.jsonl.gz").read_bytes()[8] for level in (1, 6)] == [4, 0]  # the header's note of it
    data = gzip.decompress((tmp_path / "plain.jsonl.gz").read_bytes())
    frames = zstd(data[:5000]) + zstd(data[5000:])
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    assert rows == list(read_documents(str(tmp_path / "a.jsonl.zst")))


def test_parquet_reads_the_columns_it_needs(tmp_path, monkeypatch):
    table = pyarrow.table({"text": ["x"], "embedding": [[1.0]], "url": ["http://a"], "id": [7], "source": ["s"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    asked, read = [], pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile, "iter_batches", lambda *a, **k: asked.append(k["columns"]) or read(*a, **k)
    )
    expected = [{"text": "x", "source": "s", "lang": "", "id": "7", "url": "http://a"}]
    assert expected == list(read_documents(str(tmp_path / "a.parquet")))
    assert asked == [["text", "url", "id", "source"]]
    assert read_rows(tmp_path / "a.parquet")[0]["embedding"] == [1.0]


# --- web archives -----------------------------------------------------------------------------------------------------

PAGES = {  # (text, encoding, declared in the header, declared in a meta tag)
    "en": ("The harbour wall was built of grey stone, and the boats came in with the evening tide.", "utf-8", None, None),
    "fr header": ("Le château fut bâti près de la forêt ; l’été, les fenêtres restaient ouvertes.", "cp1252", "ISO-8859-1", None),
    "fr meta": ("La rivière gelée brillait, et les élèves rentraient déjà à la maison.", "cp1252", None, "windows-1252"),
    "fr": ("À l’école, le maître écrivit une dictée très brève où chaque mot était pesé.", "cp1252", None, None),
    "zh header": ("清晨的河边有一座石桥，老师带着学生在桥上看鱼。", "gb18030", "gb2312", None),
    "zh meta": ("市场里的人很多，大家都在买新鲜的蔬菜和水果。", "gb18030", None, "GBK"),
    "zh": ("冬天的花园里没有花，只有一只猫在窗户下面睡觉。", "gb18030", None, None),
    "zh-Hant meta": ("圖書館裡有許多舊書，學生們每天下午都來這裡讀書。", "big5", None, "big5"),
    "zh-Hant": ("這個城市的冬天很長，人們喜歡在家裡聽音樂。", "big5", None, None),
}  # fmt: skip


def page(text: str, meta: str | None = None) -> str:
    declared = f'<meta http-equiv="Content-Type" content="text/html; charset={meta}">' if meta else ""
    menu = "".join(f"<li><a href='/{n}'>menu {n}</a></li>" for n in range(9))
    return f"<html><head>{declared}<title>t</title></head><body><ul>{menu}</ul><article><p>{text}</p></article></body></html>"


def write_warc(path: Path, records: list[tuple[str, str, bytes]], gzipped: bool = True) -> None:
    """Records of (status line, content type, body)."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=gzipped)
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "test"}))
        for number, (status, kind, body) in enumerate(records):
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"http://example.org/{number}", "response", io.BytesIO(body), http_headers=headers
            )
            writer.write_record(record)


@pytest.mark.parametrize("text, encoding, header, meta", PAGES.values(), ids=PAGES)
def test_the_encoding_of_a_page_is_declared_or_found(text, encoding, header, meta):
    html = page(text, meta)
    kind = f"text/html; charset={header}" if header else "text/html"
    assert decode_page(html.encode(encoding), kind) == html
    assert decode_page(html.encode("utf-8-sig"), kind) == html  # valid UTF-8 comes before a wrong declaration
    assert decode_page(html.encode("utf-16"), "text/html") == html


def test_the_header_comes_before_the_meta_tag_and_both_before_a_guess():
    html = page("Москва", "koi8-r")
    assert decode_page(html.encode("cp1251"), "text/html; charset=windows-1251") == html
    assert decode_page(html.encode("koi8-r"), "text/html") == html
    assert decode_page(html.encode("koi8-r"), "text/html; charset=nonsense") == html


def test_hostile_names_of_encodings_are_not_taken():
    body = page("été").encode("latin1")
    for name in ("idna", "punycode", "unicode_escape", "utf-7", "zip", "../etc", "é"):
        assert "été" in decode_page(body, f"text/html; charset={name}")


def test_web_archives_give_the_text_of_their_pages(tmp_path):
    records = [
        ("200 OK", f"text/html; charset={header}" if header else "text/html", page(text, meta).encode(encoding))
        for text, encoding, header, meta in PAGES.values()
    ]
    records[1:1] = [
        ("301 Moved", "text/html", page("This page has moved to another place.").encode()),
        ("200 OK", "image/png", b"\x89PNG" + bytes(999)),
        ("200 OK", "text/html", b"<html><body></body></html>"),
        ("200 OK", "text/html", b"<p>" + b"x" * documents.MAX_PAGE_BYTES),
    ]
    write_warc(tmp_path / "crawl-1.warc.gz", records)
    write_warc(tmp_path / "crawl-1.warc", records, gzipped=False)
    for name in ("crawl-1.warc.gz", "crawl-1.warc"):
        noted = []
        rows = list(read_documents(str(tmp_path / name), on_bad_row=lambda *bad, noted=noted: noted.append(bad)))
        assert [row["text"] for row in rows] == [text for text, *_ in PAGES.values()]
        assert {(row["source"], row["lang"]) for row in rows} == {("crawl-1", "")}
        assert len({row["id"] for row in rows}) == len(PAGES)
        assert rows[1]["url"] == "http://example.org/5"
        assert [reason for reason, _ in noted] == ["page_not_extracted", "page_too_large"]
        assert f"{name}, record 5: gave no text (http://example.org/3)" in noted[0][1]

        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: -len(data) // 20])
        with pytest.raises(UserError, match=rf"{name}: is a damaged or truncated (gzip file|web archive)"):
            list(read_documents(str(tmp_path / name)))


def test_a_page_that_hangs_or_crashes_the_parser_is_counted_and_the_next_one_read(tmp_path, monkeypatch):
    pages = [page("The first page is good."), page("hang"), page("crash"), page("The last page is good.")]
    write_warc(tmp_path / "a.warc.gz", [("200 OK", "text/html", html.encode()) for html in pages])
    # The process of its own finds a stand-in of trafilatura that hangs or dies, as the real one might.
    (tmp_path / "trafilatura.py").write_text(
        "import os, re\n"
        "def extract(html, **_):\n"
        "    while 'hang' in html: pass\n"
        "    if 'crash' in html: os.kill(os.getpid(), 11)\n"
        "    return re.search('<p>(.*?)</p>', html).group(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(web, "EXTRACTION_SECONDS", 1)
    noted = []
    rows = read_documents(
        str(tmp_path / "a.warc.gz"), on_bad_row=lambda reason, message: noted.append((reason, message))
    )
    assert [row["text"] for row in rows] == ["The first page is good.", "The last page is good."]
    assert [reason for reason, _ in noted] == ["page_not_extracted"] * 2
    (tmp_path / "trafilatura.py").write_text("raise SystemExit")
    with pytest.raises(RuntimeError, match="did not start"):
        next(read_documents(str(tmp_path / "a.warc.gz")))


def test_code_in_the_folder_where_one_works_is_not_run(tmp_path, monkeypatch):
    write_warc(tmp_path / "a.warc.gz", [("200 OK", "text/html", page("The page that was archived.").encode())])
    (tmp_path / "trafilatura.py").write_text("def extract(html, **_): return 'hijacked'")
    monkeypatch.chdir(tmp_path)
    assert "hijacked" not in texts_of(tmp_path / "a.warc.gz")


def test_a_record_without_a_length_is_named(tmp_path):
    (tmp_path / "a.warc").write_bytes(b"WARC/1.0\r\nWARC-Type: response\r\n\r\nno length\r\n\r\n")
    with pytest.raises(UserError, match=r"a\.warc: is a damaged or truncated web archive"):
        texts_of(tmp_path / "a.warc", bad_rows="drop")


def test_web_archives_without_their_libraries(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    (tmp_path / "a.warc").touch()
    with pytest.raises(UserError, match=r"read with trafilatura; .*pip install 'septet\[web\]'"):
        list(read_documents(str(tmp_path / "a.warc")))


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_set(monkeypatch):
    """A set of 3 files of 5 rows each, in place of the Hub; it breaks off before the rows in `breaks`, once each."""
    import datasets
    import huggingface_hub

    breaks, asked, waited = [], [], []

    def rows(files):
        for file in files:
            for row in range(5):
                if (file, row) in breaks:
                    breaks.remove((file, row))
                    raise ConnectionError("reset")
                yield {"text": f"{file}.{row}", "id": 5 * file + row}

    def load_dataset(name, config, split, revision, streaming):
        asked.append((name, config, split, revision, streaming))
        return datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": [0, 1, 2]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.time, "sleep", waited.append)
    return breaks, asked, waited


EXPECTED = [f"{file}.{row}" for file in range(3) for row in range(5)]


def test_hub_sets_are_streamed_by_name_config_split_and_revision(hub_set):
    _, asked, _ = hub_set
    first = next(read_documents("hub:o/n:20.fr", lang="fr"))
    assert first == {"text": "0.0", "source": "hub:o/n:20.fr", "lang": "fr", "id": "0"}
    assert [row["text"] for row in read_documents("hub:o/n::test")] == EXPECTED
    pinned = list(read_documents("hub:o/n@abc"))
    assert {row["source"] for row in pinned} == {"hub:o/n"}
    assert asked == [
        ("o/n", "20.fr", "train", None, True),
        ("o/n", None, "test", None, True),
        ("o/n", None, "train", "abc", True),
    ]
    assert parts_of("hub:o/n", 1) == 3
    for n in (2, 3, 4):
        assert [row["text"] for k in range(n) for row in read_documents("hub:o/n", part=(k, n))] == EXPECTED


def test_a_hub_that_breaks_off_is_asked_again_from_the_row_where_it_did(hub_set, capsys):
    breaks, asked, waited = hub_set
    breaks += [(0, 0), (1, 2), (1, 2), (1, 4), (2, 0)]
    assert [row["text"] for row in read_documents("hub:o/n")] == EXPECTED
    assert len(asked) == 6
    assert waited == [1, 1, 2, 1, 1]  # a row that came ends the waiting
    lines = capsys.readouterr().err.split("\n")[:-1]
    assert lines[1] == "hub:o/n: the Hub broke off after row 7 (ConnectionError: reset); trying again in 1 s"
    assert len(lines) == 5

    breaks += [(1, 2)] * 6
    waited.clear()
    read = []
    with pytest.raises(
        UserError, match=r"broke off after row 7, 5 more tries did not help \(ConnectionError: reset\); .* is kept: run"
    ):
        read.extend(row["text"] for row in read_documents("hub:o/n"))
    assert waited == [1, 2, 4, 8, 16]


def test_a_hub_set_that_is_not_there_is_not_asked_for_again(hub_set, monkeypatch):
    import datasets

    _, _, waited = hub_set
    for error in (datasets.exceptions.DatasetNotFoundError("no such set"), ValueError("BuilderConfig 'x' not found")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(UserError, match=r"hub:o/n:x: cannot be read \(.*\); it must be hub:owner"):
            list(read_documents("hub:o/n:x"))
    assert waited == []


READ_HUB = """
import json, sys, time
from septet.data import documents, hub, web
time.sleep = lambda seconds: None
try:
    pinned = hub.resolve(sys.argv[1])
    print(json.dumps([pinned, list(documents.read_documents(pinned))]))
except documents.UserError as error:
    print(json.dumps(str(error)))
"""


def test_the_real_client_against_a_stand_in_of_the_hub(tmp_path):
    class DatasetHandler(hub_double.Handler):
        """While `failures` last, the second file is refused with 503."""

        failures = 0

        def do_GET(self):
            if self.command == "GET" and "/resolve/" in self.path and "-1.jsonl" in self.path and self.failures:
                DatasetHandler.failures -= 1
                return self.answer(b"", 503)
            return super().do_GET()

    files = {f"train-{k}.jsonl": [{"text": f"{k}.{n}", "lang": "en"} for n in range(5)] for k in range(3)}
    with hub_double.HubDouble() as server:
        server.RequestHandlerClass = DatasetHandler
        server.repos["datasets/o/n"] = {
            name: b"".join(json.dumps(row).encode() + b"\n" for row in rows) for name, rows in files.items()
        }
        environment = {
            **os.environ, "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip

        def run(name: str):
            command = [sys.executable, "-c", READ_HUB, name]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
            return json.loads(done.stdout), done.stderr

        DatasetHandler.failures = 8  # the client itself gives up after six
        (pinned, rows), printed = run("hub:o/n")
        assert "the Hub broke off after row 5 (HfHubHTTPError" in printed
        assert pinned == f"hub:o/n@{server.sha('datasets/o/n')}"
        assert [row["text"] for row in rows] == EXPECTED
        message, _ = run("hub:o/missing")
        assert "hub:o/missing: cannot be read (RepositoryNotFoundError" in message
