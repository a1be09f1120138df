"""Web archives: the main text of the HTML pages of a WARC file."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from septet.data.documents import MAX_PAGE_BYTES, BadRow, opened
from septet.data.errors import UserError

# The processor time that looking for the text of one page may take; ours. Most take 0.01 s, 5 MiB of prose 1.5 s, but
# 150,000 paragraphs or table rows take minutes. Not time by the clock: that would depend on what else the machine does.
EXTRACTION_SECONDS = 10
# The address space that the process may take; ours. A page of 5 MiB of <br> takes 760 MB of memory.
EXTRACTION_BYTES = 2 << 30


def pages(path: Path, column: str) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """The HTML pages of a WARC file that were answered with 200, by the numbers of their records."""
    try:
        import charset_normalizer  # noqa: F401 (below they are used, page by page)
        import trafilatura  # noqa: F401
        import webencodings  # noqa: F401
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise UserError(
            f"{path}: web archives are read with {error.name}; it is not installed; run pip install 'septet[web]'"
        ) from error

    with opened(path) as stream, contextlib.closing(_Extractor()) as extract:
        try:
            for number, record in enumerate(ArchiveIterator(stream), start=1):
                if _is_html_page(record):
                    yield number, _page_row(record, column, extract)
                while record.raw_stream.read(1 << 20):
                    pass
                if missing := getattr(record.raw_stream, "limit", 0):
                    raise EOFError(f"record {number} lacks its last {missing:,} bytes")
        except (
            ArchiveLoadFailed,
            EOFError,
            AttributeError,
            ValueError,
        ) as error:  # warcio's own parsing raises the last two
            raise UserError(
                f"{path}: is a damaged or truncated web archive ({error}); it must be whole; fetch it again"
            ) from error


def _page_row(record: Any, column: str, extract: Callable[[str], str | None]) -> dict[str, Any] | BadRow:
    url = record.rec_headers.get_header("WARC-Target-URI")
    body = _read_up_to(record.content_stream(), MAX_PAGE_BYTES + 1)
    if len(body) > MAX_PAGE_BYTES:
        return BadRow(f"is larger than {MAX_PAGE_BYTES:,} bytes ({url})", "page_too_large")
    text = extract(decode_page(body, record.http_headers.get_header("Content-Type")))
    if not text:
        return BadRow(f"gave no text ({url})", "page_not_extracted")
    return {column: text, "id": record.rec_headers.get_header("WARC-Record-ID"), "url": url}


def _is_html_page(record: Any) -> bool:
    """Whether a WARC record is an HTML page: by the type the crawler found, else by the one the server gave."""
    if record.rec_type != "response" or record.http_headers is None or record.http_headers.get_statuscode() != "200":
        return False
    kind = record.rec_headers.get_header("WARC-Identified-Payload-Type")
    kind = kind or record.http_headers.get_header("Content-Type") or ""
    return kind.partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


def _read_up_to(stream: Any, size: int) -> bytes:
    """At most `size` bytes: warcio's streams give as many as they like at once."""
    blocks = []
    while size > 0 and (block := stream.read(size)):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


_CHARSET = re.compile(r"""charset\s*=[\s"']*([\w:.-]+)""", re.IGNORECASE)
_META_CHARSET = re.compile("<meta[^>]*?" + _CHARSET.pattern, re.IGNORECASE)


def decode_page(body: bytes, content_type: str | None) -> str:
    """A web page's text: UTF-8 if it is valid, else as its byte order mark, HTTP header or meta tag says, else by guess.

    The order is that of the HTML standard (https://html.spec.whatwg.org/#determining-the-character-encoding), but for
    UTF-8, which other encodings do not look like by chance. Bytes that fit nothing become U+FFFD. The guess is between
    the encodings of undeclared Chinese, French and English pages: of 1,006 that were tried once (200 or 2,000 characters
    of text; GBK, Big5, Windows-1252) charset_normalizer then gets 1,000 right, left to choose among all encodings 904
    (and 219 of the 298 French ones), cchardet 852 (254 of the 286 in GBK).
    """
    import charset_normalizer
    import webencodings

    with contextlib.suppress(UnicodeDecodeError):
        return body.decode("utf-8-sig")
    in_header = _CHARSET.search(content_type or "")
    in_meta = _META_CHARSET.search(body[:1024].decode("latin-1"))  # as far as browsers look
    declared = (webencodings.lookup(match.group(1)) for match in (in_header, in_meta) if match)
    encoding = next(filter(None, declared), None)
    if encoding is None:
        guess = charset_normalizer.from_bytes(body, cp_isolation=["gb18030", "big5hkscs", "cp1252"]).best()
        name = guess.encoding if guess else "cp1252"
        encoding = webencodings.lookup({"big5hkscs": "big5", "cp1252": "windows-1252"}.get(name, name))
    if encoding.name == "gbk":  # the standard decodes GBK as its superset
        encoding = webencodings.lookup("gb18030")
    return webencodings.decode(body, encoding, errors="replace")[0]


class _Extractor:
    """Finds the main text of HTML pages in a process of its own, since hostile pages hang or crash the parsers.

    Bytes go through the pipe, never pickles: what a hostile page might make of that process must not reach this one. It
    ends itself after `EXTRACTION_SECONDS` on one page, and a new one takes its place. (datatrove's
    `ExtractorSandbox` does the same, but forks, and what it forks outlives a parent that was killed.)
    """

    def __init__(self) -> None:
        self._process = None

    def __call__(self, html: str) -> str | None:
        """The main text, or None if there is none, or it was not found in time."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send_bytes(html.encode("utf-8", "surrogatepass"))
            return self._pipe.recv_bytes().decode() or None
        except (EOFError, ConnectionError):
            self.close()
            return None

    def _start(self) -> None:
        self._pipe, child = multiprocessing.Pipe()
        # Not from the folder where the command was typed: a trafilatura.py there would be run.
        code = f"import sys; sys.path[:] = filter(None, sys.path); from septet.data import web; web.extract_pages({child.fileno()}, {EXTRACTION_SECONDS})"
        # Not multiprocessing.Process, which would run the caller's script once more if it lacks the usual guard.
        self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[child.fileno()])
        child.close()
        try:
            self._pipe.recv_bytes()
        except EOFError as error:
            raise RuntimeError("the process that extracts text from web pages did not start") from error

    def close(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def extract_pages(file_descriptor: int, seconds: int) -> None:
    """The process of `_Extractor`: answers each page that comes through the pipe, until its other end is closed."""
    import resource

    import trafilatura

    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (EXTRACTION_BYTES, EXTRACTION_BYTES))
    with (
        multiprocessing.connection.Connection(file_descriptor) as pipe,
        contextlib.suppress(EOFError, KeyboardInterrupt),
    ):
        pipe.send_bytes(b"ready")
        while True:
            html = pipe.recv_bytes().decode("utf-8", "surrogatepass")
            signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process, in whatever library it hangs
            try:
                # Precision and no comments as for FineWeb (https://arxiv.org/abs/2406.17557). Not `deduplicate`: what it
                # drops depends on the pages before.
                text = trafilatura.extract(html, favor_precision=True, include_comments=False)
            except Exception:  # every kind that a parser can raise
                text = None
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send_bytes((text or "").encode("utf-8", "replace"))
