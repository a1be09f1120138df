"""Reading and writing rows: JSON lines, Parquet, CSV, plain text and sets of the Hugging Face Hub.

Every reader gives one `UserError` that names the file, the line or row, the rule and the way out.
Lines end at "\\n" alone: `str.splitlines` would also break at U+0085 and U+2028, which occur inside real sentences.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from septet.data.errors import UserError, suggestion
from septet.data.manifest import FILE_NAME

HUB_PREFIX = "hub:"
JSON_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
TEXT = (".txt", ".txt.gz")
SUFFIXES = (*JSON_LINES, ".parquet", *TEXT)  # what documents are read from; task sets may be .csv too
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLinesWriter:
    """Writes rows as UTF-8 JSON lines, compressed if the name ends in .gz; equal rows give equal bytes."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close)
        # No name and no time in the gzip header: both would change the bytes from run to run.
        self._stream = (
            gzip.GzipFile("", "wb", compresslevel=6, fileobj=self._file, mtime=0)
            if path.suffix == ".gz"
            else self._file
        )

    def write(self, row: dict[str, Any]) -> None:
        self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

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
    if path.name.endswith(JSON_LINES):
        rows = _json_lines(path)
    elif path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.name.endswith((".csv", ".csv.gz")):
        rows = _csv(path)
    else:
        raise UserError(
            f"{path}: unknown kind of file; rows are read from .jsonl, .json, .parquet or .csv (.gz too); convert it"
        )
    empty = True
    for row in rows:
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
            files = [
                p for p in sorted(path.rglob("*")) if p.name.endswith(SUFFIXES) and p.name != FILE_NAME and p.is_file()
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


def read_documents(
    name: str, text_column: str = "text", lang_column: str = "lang", lang: str | None = None
) -> Iterator[dict[str, str]]:
    """The documents of one file or Hub set, as {"text", "source", "lang"} with "id" where the set has one.

    Args:
        name: a path that ends in one of `SUFFIXES`, or `hub:owner/name[:config][:split]` (split: train).
            A text file is one document: a blank line separates its paragraphs, not documents.
        lang: the language of all rows; without it each row tells its own in `lang_column`.

    Raises:
        UserError: what `read_rows` raises, a column that is not there, or a text that is no string.
    """
    path, source = Path(name), Path(name).name
    if name.startswith(HUB_PREFIX):
        rows, unit, source = _hub(name), "row", name
    elif name.endswith(TEXT):
        if lang is None:
            raise UserError(f"{path}: plain text does not tell its language; every document needs one; pass --lang")
        rows, unit = [{text_column: _decode(_read_all(path), path, None)}], "document"
    else:
        rows, unit = iterate_rows(path), "row"
    for number, row in enumerate(rows, start=1):
        place = f"{name}, {unit} {number}"
        check_columns(place, row, [text_column], "pass the right --text-column")
        if lang is None:
            check_columns(
                place, row, [lang_column], "pass --lang with the language of all rows, or the right --lang-column"
            )
        text = row[text_column] if row[text_column] is not None else ""
        if not isinstance(text, str):
            raise UserError(
                f"{place}: column {text_column!r} holds {type(text).__name__}; it must hold text; pass the right --text-column"
            )
        document = {"text": text, "source": str(row.get("source") or source), "lang": lang or str(row[lang_column])}
        yield document | ({"id": str(row["id"])} if row.get("id") is not None else {})


def _blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, decompressed if it ends in .gz, in blocks of at most 1 MiB."""
    try:
        with open(path, "rb") as file:
            stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            while block := stream.read(1 << 20):
                yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: is a damaged or truncated gzip file ({error}); it must be whole; fetch or make it again"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be read ({error.strerror or error}); it must be a readable file; check path and permissions"
    )


def _read_all(path: Path) -> bytes:
    return b"".join(_blocks(path)).removeprefix(_BYTE_ORDER_MARK)


def _decode(data: bytes, path: Path, line: int | None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = line or data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: is not valid UTF-8 (byte 0x{data[error.start]:02x}); text must be UTF-8; "
            "convert the file, say with iconv -f latin1 -t utf-8"
        ) from error


def _lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for block in _blocks(path):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        yield from lines
    if rest:
        yield rest


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        # Some Windows programs put a byte order mark before UTF-8.
        text = _decode(line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line, path, number)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: is not JSON ({error}); each line must be one object; mend or remove the line"
            ) from error
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise UserError(
                f"{path}, line {number}: is JSON, but a {kind}; each line must be one object; write one row a line"
            )
        if "\\ud" in text or "\\uD" in text:  # half of a surrogate pair parses, but is no text and cannot be written
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{path}, line {number}: has half of a surrogate pair; text must be Unicode; mend or remove the line"
                ) from error
        yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: holds invalid UTF-8 ({error}); text must be UTF-8; write the file again") from error
    except FileNotFoundError as error:
        raise _unreadable(path, error) from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: is not a readable Parquet file ({reason}); it must be whole; fetch or make it again"
        ) from error


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    text = _decode(_read_all(path), path, None)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {reader.line_num}: has not as many cells as the header ({len(reader.fieldnames)}); "
                    "rows must match it; quote cells that hold commas"
                )
            yield row
    except csv.Error as error:
        raise UserError(
            f'{path}, line {reader.line_num}: is not CSV ({error}); cells are quoted with "; mend the line'
        ) from error


def _hub(name: str) -> Iterator[dict[str, Any]]:
    """Streams `hub:owner/name[:config][:split]`; an empty config is the default one."""
    repository, config, split = [*name.removeprefix(HUB_PREFIX).split(":"), "", ""][:3]
    empty = True
    try:
        import datasets

        for row in datasets.load_dataset(repository, config or None, split=split or "train", streaming=True):
            empty = False
            yield row
    except Exception as error:  # every layer of the Hub's client raises its own kind
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(
            f"{name}: cannot be read ({reason}); it must be {HUB_PREFIX}owner/name[:config][:split] of a set within reach; "
            "check the name and the network, or give files"
        ) from error
    if empty:
        raise UserError(f"{name}: holds no rows; a set needs at least one; choose another split")
