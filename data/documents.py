"""Reading and writing rows: JSON lines, Parquet, CSV, plain text, web archives and sets of the Hugging Face Hub.

Every reader gives one `UserError` that names the file, the line or row, the rule and the way out.
Lines end at "\\n" alone: `str.splitlines` would also break at U+0085 and U+2028, which occur inside real sentences.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from septet.data.errors import UserError, suggestion
from septet.data.manifest import FILE_NAME, read_manifest

HUB_PREFIX = "hub:"
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst")
TEXT = (".txt", ".txt.gz")
WEB_ARCHIVES = (".warc", ".warc.gz")
SUFFIXES = (*JSON_LINES, ".parquet", *TEXT, *WEB_ARCHIVES)  # what documents are read from; task sets may be .csv too
ROWS = (*JSON_LINES, ".parquet", ".csv", ".csv.gz")  # what task sets are read from
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# The longest document read, in bytes. Ours: ten times the longest of novels; the steps after the reader need several
# times its size in memory, for each process.
MAX_LINE_BYTES = 32 << 20
# The largest web page read, in bytes: where Common Crawl cuts pages since 2025 (before, at 1 MiB).
MAX_PAGE_BYTES = 5 << 20

Part = tuple[int, int]
"""(k, n): the k-th of n parts of a file, counted from 0; (0, 1) is the whole."""

BAD_ROWS = {
    "invalid_utf8": "the line or text is not valid UTF-8",
    "invalid_json": "the line is not JSON, or not an object",
    "half_surrogate": "the row has half of a surrogate pair, which is no character",
    "missing_column": "the row lacks the column of the text, or the language column that was named",
    "not_text": "the column of the text holds something else",
    "too_long": "the line or text is longer than the limit",
    "page_too_large": f"the web page is larger than {MAX_PAGE_BYTES >> 20} MiB",
    "page_not_extracted": "no main text was found in the web page, or looking for it failed or took too long",
}
"""Why a row or page can be no document: {reason: meaning}."""


class BadRow(UserError):
    """One row or page that can be no document, while the rest of its file may be good; `reason` is one of `BAD_ROWS`.

    Readers yield it in place of the row, without its place, which takes time to name; `at` gives it one.
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason

    def at(self, place: str) -> BadRow:
        return BadRow(f"{place}: {self}", self.reason)


class JsonLinesWriter:
    """Writes rows as UTF-8 JSON lines, compressed if the name ends in .gz; equal rows give equal bytes.

    Args:
        compresslevel: gzip's: 1 writes some 60 to 90 MB/s a core and some 10 to 18 % more bytes than 6, which writes 10 to 20.
            (isal's igzip writes 250 MB/s, but what it writes depends on the processor.)
    """

    def __init__(self, path: Path, compresslevel: int = 6):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close)
        # No name and no time in the gzip header: both would change the bytes from run to run.
        self._stream = (
            gzip.GzipFile("", "wb", compresslevel=compresslevel, fileobj=self._file, mtime=0)
            if path.suffix == ".gz"
            else self._file
        )

    def write(self, row: dict[str, Any]) -> None:
        self.write_lines(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def write_lines(self, lines: bytes) -> None:
        """Writes rows that are JSON lines already, with their newlines."""
        self._stream.write(lines)

    def close(self) -> None:
        self._stream.close()
        self._file.close()

    def __enter__(self) -> JsonLinesWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows as JSON lines (`JsonLinesWriter`); returns their number."""
    count = 0
    with JsonLinesWriter(Path(path)) as writer:
        for row in rows:
            writer.write(row)
            count += 1
    return count


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of one file of a task set: .jsonl, .json (one object a line), .parquet or .csv, the first two also .gz.

    Raises:
        UserError: missing, unreadable, damaged or empty file; invalid UTF-8; a line that is not a JSON object.
    """
    return list(iterate_rows(Path(path)))


def iterate_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of `read_rows`, one by one, in constant memory."""
    unit = "line"
    if path.name.endswith(JSON_LINES):
        rows = _json_lines(path)
    elif path.suffix == ".parquet":
        rows, unit = _parquet(path), "row"
    elif path.name.endswith((".csv", ".csv.gz")):
        rows = _csv(path)
    else:
        raise UserError(f"{path}: unknown kind of file; rows are read from {', '.join(ROWS)}; convert it")
    empty = True
    for number, row in rows:
        if isinstance(row, BadRow):
            raise row.at(f"{path}, {unit} {number}")
        empty = False
        yield row
    if empty:
        raise UserError(f"{path}: holds no rows; a set needs at least one; give a file that holds some")


def check_columns(path: str | Path, row: dict[str, Any], columns: Sequence[str], way_out: str) -> None:
    """Raises a `UserError` naming the first of `columns` that `row` lacks, with the columns there are."""
    for column in columns:
        if column not in row:
            raise UserError(f"{path}: has no column {column!r}; {suggestion(column, row)}; {way_out}")


def expand(inputs: Sequence[str]) -> list[str]:
    """The files and Hub sets behind `--inputs`: a folder stands for the readable files below it, in sorted order.

    Raises:
        UserError: a path does not exist, is no kind that can be read, or is a folder without such files.
    """
    found = []
    for name in inputs:
        path = Path(name)
        if name.startswith(HUB_PREFIX):
            found.append(name)
        elif path.is_dir():
            folders = [path]
            with contextlib.suppress(UserError):
                read_manifest(path, "corpus")
                folders = [path / "train", path / "validation"]  # not what that corpus rejected
            files = [
                p
                for folder in folders
                for p in sorted(folder.rglob("*"))
                if p.name.endswith(SUFFIXES) and p.name != FILE_NAME and p.is_file()
            ]
            if not files:
                raise UserError(
                    f"{path}: holds no file ending in {', '.join(SUFFIXES)}; give the folder that holds the documents"
                )
            found.extend(map(str, files))
        elif not path.is_file():
            raise UserError(
                f"{path}: no such file or folder; check the path, or write {HUB_PREFIX}owner/name for a set of the Hub"
            )
        elif not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: unknown kind of file; documents are read from {', '.join(SUFFIXES)}; convert it")
        else:
            found.append(name)
    return found


def parts_of(name: str, part_bytes: int) -> int:
    """In how many parts `read_documents` can read a file or Hub set, of about `part_bytes` bytes of text each.

    Uncompressed JSON lines can be read from any line on, Parquet by its row groups, and a Hub set by its data files,
    whatever their size; everything else is read in one piece.
    """
    path = Path(name)
    if name.startswith(HUB_PREFIX):
        from septet.data.hub import load, retried

        return max(1, retried(name, lambda: load(name).num_shards))
    if path.suffix in (".jsonl", ".json"):
        return max(1, path.stat().st_size // part_bytes)
    if path.suffix == ".parquet":
        with _parquet_file(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        return max(1, min(len(groups), sum(group.total_byte_size for group in groups) // part_bytes))
    return 1


def read_documents(
    name: str,
    text_column: str = "text",
    lang_column: str = "lang",
    lang: str | None = None,
    *,
    bad_rows: Literal["stop", "drop"] = "stop",
    on_bad_row: Callable[[str, str], None] = lambda reason, message: None,
    max_line_bytes: int = MAX_LINE_BYTES,
    part: Part = (0, 1),
    source: str | None = None,
) -> Iterator[dict[str, str]]:
    """The documents of one file or Hub set, as {"text", "source", "lang"} with "id" and "url" where the set has them.

    A file without rows has no documents and is no error: among many shards some are empty.

    Args:
        name: a path that ends in one of `SUFFIXES`, or `hub:owner/name[:config][:split][@revision]` (split: train).
            A text file is one document: a blank line separates its paragraphs, not documents.
            A web archive gives the main text of its HTML pages; other records are passed over.
        lang_column: rows may lack the column "lang"; a column of another name was meant, so it must be there.
        lang: the language of all rows; without it each row tells its own in `lang_column`, or has "".
        bad_rows: whether a row that can be no document stops the reading, or is dropped and the next one read.
        on_bad_row: called for each row dropped, and each page without text whatever `bad_rows` says, with the reason
            (one of `BAD_ROWS`) and a message that begins with its place.
        max_line_bytes: a longer line, or text of more characters, is a bad row, and is never held in memory whole.
        source: the source of rows that name none; default: the file's name, or the Hub set's.
        part: which part to read (`parts_of`); one after the other, the parts' documents are those of the whole.

    Raises:
        UserError: a bad row, or a file that is damaged as a whole, is UTF-16 or, if Parquet, lacks the column.
    """
    path, default_source, unit = Path(name), Path(name).name, "row"
    columns = (text_column, lang_column, "id", "source", "url")
    if name.startswith(HUB_PREFIX):
        from septet.data.hub import rows_of

        default_source, rows = name.partition("@")[0], rows_of(name, part)
        unit = "row" if part[1] == 1 else f"part {part[0] + 1} of {part[1]}, row"
    elif name.endswith(TEXT):
        rows, unit = _whole_text(path, text_column, max_line_bytes), "line"
    elif name.endswith(WEB_ARCHIVES):
        from septet.data.web import pages

        rows, unit = pages(path, text_column), "record"
        default_source = path.name.removesuffix(".gz").removesuffix(".warc")
    elif path.suffix == ".parquet":
        rows = _parquet(path, columns, part)
    else:
        rows, unit = _json_lines(path, max_line_bytes, part), "line"
    lines_before = _lines_before(path, part) if unit == "line" else lambda: 0
    if lang is None and lang_column != "lang" and not name.endswith((*TEXT, *WEB_ARCHIVES)):
        named = (text_column, lang_column)
    else:
        named = (text_column,)
    for number, row in rows:
        try:
            text = _text_of(row, named, max_line_bytes)
        except BadRow as error:
            error = error.at(f"{name}, {unit} {lines_before() + number}")
            if bad_rows == "drop" or error.reason.startswith("page_"):
                on_bad_row(error.reason, str(error))
                continue
            raise UserError(f"{error}, or pass --bad-rows drop") from error
        own_lang = row.get(lang_column)
        document = {
            "text": text,
            "source": str(row.get("source") or source or default_source),
            "lang": lang or ("" if own_lang is None else str(own_lang)),
        }
        yield document | {key: str(row[key]) for key in ("id", "url") if row.get(key) is not None}


def _text_of(row: dict[str, Any] | BadRow, columns: tuple[str, ...], limit: int) -> str:
    """The row's text, in the first of `columns`, all of which must be there; a null is an empty text."""
    if isinstance(row, BadRow):
        raise row
    for column, option in zip(columns, ("--text-column", "--lang-column"), strict=False):
        if column not in row:
            raise BadRow(
                f"has no column {column!r}; {suggestion(column, row)}; pass the right {option}", "missing_column"
            )
    text = row[columns[0]]
    if text is None:
        return ""
    if not isinstance(text, str):
        kind = type(text).__name__
        raise BadRow(f"column {columns[0]!r} holds {kind}; it must hold text; pass the right --text-column", "not_text")
    if len(text) > limit:
        raise BadRow(f"holds {len(text):,} characters; at most {limit:,} are read; split the document", "too_long")
    return text


# --- bytes and lines --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed if it ends in .gz or .zst; a read that fails ends the block with a `UserError`."""
    try:
        if path.suffix == ".zst":  # zstandard's own reader takes a truncated file for a whole one
            import pyarrow

            with pyarrow.input_stream(str(path), compression="zstd") as stream:
                yield stream
        else:
            with open(path, "rb") as file:
                yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
    except (OSError, EOFError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:
            raise _unreadable(path, error) from error
        kind = "zstd" if path.suffix == ".zst" else "gzip"
        raise UserError(
            f"{path}: is a damaged or truncated {kind} file ({error}); it must be whole; fetch or make it again"
        ) from error


def _blocks(path: Path, start: int = 0) -> Iterator[bytes]:
    """The bytes of `opened` from `start` on, in blocks of at most 1 MiB."""
    with opened(path) as stream:
        if start:
            stream.seek(start)
        while block := stream.read(1 << 20):
            yield block


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be read ({error.strerror or error}); it must be a readable file; check path and permissions"
    )


def _without_mark(data: bytes, path: Path) -> bytes:
    """The start of a file without the byte order mark that some Windows programs put before UTF-8."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(
            f"{path}: is UTF-16 (byte order mark {data[:2].hex(' ')}); text must be UTF-8; "
            "convert the file, say with iconv -f UTF-16 -t UTF-8"
        )
    return data.removeprefix(_BYTE_ORDER_MARK)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(
            f"is not valid UTF-8 (byte 0x{data[error.start]:02x}); text must be UTF-8; "
            "convert the file, say with iconv -f latin1 -t utf-8",
            "invalid_utf8",
        ) from error


def _whole_text(path: Path, column: str, limit: float = math.inf) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """A text file as one row, with the number of the line that is bad; nothing if the file is blank."""
    blocks, size = [], 0
    for block in _blocks(path):
        size += len(block)
        if size > limit:
            yield 1, BadRow(f"the file is longer than {limit:,} bytes; it is one document; split it", "too_long")
            return
        blocks.append(block)
    data = _without_mark(b"".join(blocks), path)
    try:
        text = _decode(data)
    except BadRow as error:
        yield data.count(b"\n", 0, error.__cause__.start) + 1, error
        return
    if not _is_blank(text):
        yield 1, {column: text}


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _bounds(path: Path, part: Part) -> tuple[int, float]:
    """The first byte of a part of a file, and the first one after it."""
    k, n = part
    if n == 1:
        return 0, math.inf
    size = path.stat().st_size
    return size * k // n, size * (k + 1) // n


def _lines(path: Path, limit: float = math.inf, part: Part = (0, 1)) -> Iterator[bytes | None]:
    """The lines whose first byte lies in the part; None for a line longer than `limit` bytes, which is never held."""
    start, end = _bounds(path, part)
    # From one byte before the part: the line that this byte is in, be it only its end, belongs to the part before.
    position, skipping = max(start - 1, 0), start > 0
    pieces, size = [], 0  # of a line that goes on in the next block
    for block in itertools.chain(_blocks(path, position), (b"\n",)):  # the last line may lack its end
        *ends, rest = block.split(b"\n")
        for line_end in ends:
            size += len(line_end)
            line = b"".join((*pieces, line_end)) if size <= limit else None
            if position >= end:
                return
            if not skipping:
                yield _without_mark(line, path) if position == 0 and line else line
            position += size + 1
            pieces, size, skipping = [], 0, False
        size += len(rest)
        if size <= limit:
            pieces.append(rest)
        else:
            pieces = []


def _lines_before(path: Path, part: Part) -> Callable[[], int]:
    """Counts the lines before a part, when and if it is asked for."""

    @functools.cache
    def count() -> int:
        start, _ = _bounds(path, part)
        lines, position = int(start > 0), 0  # the line that byte start - 1 is in belongs to the part before
        for block in _blocks(path) if start > 0 else ():
            if position >= start - 1:
                break
            lines += block.count(b"\n", 0, start - 1 - position)
            position += len(block)
        return lines

    return count


# --- kinds of files: each gives (number, row) -------------------------------------------------------------------------


def _json_lines(
    path: Path, limit: float = math.inf, part: Part = (0, 1)
) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    for number, line in enumerate(_lines(path, limit, part), start=1):
        try:
            row = _json_row(line, limit)
        except BadRow as error:
            row = error
        if row is not None:
            yield number, row


def _json_row(line: bytes | None, limit: float) -> dict[str, Any] | None:
    """The object in a line, or None if the line is blank."""
    if line is None:
        raise BadRow(f"is longer than {limit:,} bytes; rows must be shorter; split the document", "too_long")
    text = _decode(line).lstrip("\ufeff")  # files that were joined have marks inside
    if _is_blank(text):
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(
            f"is not JSON ({error}); each line must be one object; mend or remove the line", "invalid_json"
        ) from error
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise BadRow(f"is JSON, but a {kind}; each line must be one object; write one row a line", "invalid_json")
    if "\\ud" in text or "\\uD" in text:  # half of a surrogate pair parses, but is no text and cannot be written
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadRow(
                "has half of a surrogate pair; text must be Unicode; mend or remove the line", "half_surrogate"
            ) from error
    return row


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Without pre_buffer and with a buffer, a row group is read piece by piece, not whole.
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except FileNotFoundError as error:
        raise _unreadable(path, error) from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: is not a readable Parquet file ({reason}); it must be whole; fetch or make it again"
        ) from error


def _parquet(
    path: Path, columns: Sequence[str] | None = None, part: Part = (0, 1)
) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """The rows of a part of the row groups; of `columns` those that there are, and the first must be there."""
    with _parquet_file(path) as file:
        names = file.schema_arrow.names
        if columns is not None:
            check_columns(path, dict.fromkeys(names), columns[:1], "pass the right --text-column")
            columns = [name for name in names if name in columns]
        k, n = part
        groups = range(file.num_row_groups)[file.num_row_groups * k // n : file.num_row_groups * (k + 1) // n]
        number = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
        for group in groups:
            metadata = file.metadata.row_group(group)
            # Some 4 MiB at once, so that a thousand books do not come together.
            batch_rows = min(max((metadata.num_rows << 22) // max(metadata.total_byte_size, 1), 1), 1024)
            for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns):
                for row in _rows_of_batch(batch):
                    number += 1
                    yield number, row


def _rows_of_batch(batch: Any) -> Iterator[dict[str, Any] | BadRow]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            yield BadRow(f"holds invalid UTF-8 ({error}); text must be UTF-8; write the row again", "invalid_utf8")
            return
        rows = (row for index in range(len(batch)) for row in _rows_of_batch(batch.slice(index, 1)))
    yield from rows


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    for number, whole in _whole_text(path, "text"):
        if isinstance(whole, BadRow):
            yield number, whole
            return
        csv.field_size_limit(max(csv.field_size_limit(), len(whole["text"])))
        reader = csv.DictReader(io.StringIO(whole["text"], newline=""), strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}, line {reader.line_num}: has not as many cells as the header ({len(reader.fieldnames)}); "
                        "rows must match it; quote cells that hold commas"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(
                f'{path}, line {reader.line_num}: is not CSV ({error}); cells are quoted with "; mend the line'
            ) from error
