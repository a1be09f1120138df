"""Exact de-duplication and the held-out share, as datatrove steps."""

from __future__ import annotations

import hashlib
import re

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

_NOT_WORD = re.compile(r"[\W_]+")


def text_digest(text: str) -> str:
    """128 bits, in hexadecimal, over the case-folded letters and digits of a text.

    Copies that differ in case, white space or punctuation alone are equal. Among 10^12 documents two different ones
    agree by chance with a probability of 10^24 / 2^129, some 10^-15.
    """
    return hashlib.blake2b(_NOT_WORD.sub("", text.casefold()).encode(), digest_size=16).hexdigest()


class AddDigest(PipelineStep):
    """Notes `text_digest` in each document's metadata, so that later steps need not read the text."""

    type, name = "dedup", "add digest"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for doc in data:
            doc.metadata["digest"] = text_digest(doc.text)
            yield doc


class HoldOut(PipelineStep):
    """Puts a share of the documents into validation, chosen by their digest alone: neither order nor neighbours matter."""

    type, name = "split", "hold out"

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for doc in data:
            held_out = int(doc.metadata["digest"][:16], 16) < self.share * 2**64
            doc.metadata["split"] = "validation" if held_out else "train"
            yield doc


class FirstOfItsText(BaseFilter):
    """Keeps the first document with its text. Validation comes first, so that training never holds one of its texts."""

    name = "first of its text"
    reasons = {
        "exact_duplicate": "an earlier document has the same letters and digits",
        "in_validation": "a validation document has the same letters and digits",
    }

    def __init__(self):
        super().__init__()
        self._split_of: dict[bytes, str] = {}  # some 90 bytes a document

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        digest, split = bytes.fromhex(doc.metadata["digest"]), doc.metadata["split"]
        first = self._split_of.get(digest)
        if first is None:
            self._split_of[digest] = split
            return True
        return False, "exact_duplicate" if first == split else "in_validation"
