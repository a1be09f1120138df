"""Cleaning and filters of the corpus, as datatrove steps.

A new filter is one class here and one entry in `document_steps`. It returns True to keep a document, or (False, reason)
to drop it, and says in `reasons` what each reason means: the corpus page shows that beside what was dropped.
"""

from __future__ import annotations

import re
from collections import Counter

import ftfy
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters.base import BaseFormatter

Verdict = bool | tuple[bool, str]


def document_steps(languages: tuple[str, ...], min_bytes: int) -> list[PipelineStep]:
    """The steps that look at one document at a time, in order."""
    return [
        KnownLanguage(languages),
        Clean(),
        LongEnough(min_bytes),
        FewReplacementCharacters(),
        EnoughLetters(),
        FewRepeatedLines(),
        ExpectedScript(),
    ]


class Clean(BaseFormatter):
    """Repairs encoding damage and normalises to NFC with ftfy, and trims white space that carries nothing.

    Against ftfy's defaults, `fix_character_width` is off, since it would turn Chinese full-width punctuation into
    ASCII, and `uncurl_quotes` is off, since French and Chinese texts need their quotes. No-break spaces stay, which
    French sets before its punctuation, and so does the indentation of lines.
    """

    name = "clean"
    _CONFIG = ftfy.TextFixerConfig(normalization="NFC", fix_character_width=False, uncurl_quotes=False, explain=False)
    # Soft hyphen, zero-width space and word joiner show nothing; the joiners U+200C and U+200D shape emoji and stay.
    _INVISIBLE = re.compile("[\u00ad\u200b\u2060]")
    _TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
    _BLANK_LINES = re.compile(r"\n{3,}")

    def format(self, text: str) -> str:
        text = self._INVISIBLE.sub("", ftfy.fix_text(text, self._CONFIG))
        return self._BLANK_LINES.sub("\n\n", self._TRAILING.sub("", text)).strip()


class KnownLanguage(BaseFilter):
    name = "known language"
    reasons = {"unknown_language": "the language tag is none of those the corpus is made for"}

    def __init__(self, languages: tuple[str, ...]):
        super().__init__()
        self.languages = languages

    def filter(self, doc: Document) -> Verdict:
        return doc.metadata["lang"] in self.languages or (False, "unknown_language")


class LongEnough(BaseFilter):
    """Counts bytes, since a Chinese character carries some three times as much as a Latin one, and takes three bytes."""

    name = "long enough"
    reasons = {"too_short": "fewer bytes of UTF-8 than --min-bytes, after cleaning"}

    def __init__(self, min_bytes: int):
        super().__init__()
        self.min_bytes = min_bytes

    def filter(self, doc: Document) -> Verdict:
        return len(doc.text.encode()) >= self.min_bytes or (False, "too_short")


class FewReplacementCharacters(BaseFilter):
    """The threshold is ours and untuned."""

    name = "few replacement characters"
    reasons = {
        "too_many_replacement_characters": "more than 1 character in 1,000 is U+FFFD, the mark of bytes lost in decoding"
    }

    def filter(self, doc: Document) -> Verdict:
        return doc.text.count("\ufffd") <= len(doc.text) / 1000 or (False, "too_many_replacement_characters")


def letters_of(text: str) -> str:
    """The letters of any script in `text`, without digits, marks, punctuation and white space."""
    return _NOT_LETTER.sub("", text)


_NOT_LETTER = re.compile(r"[\W\d_]+")
_SPACE = re.compile(r"\s+")


class EnoughLetters(BaseFilter):
    """Drops tables, dumps and rulers. The threshold is ours, below what was measured on texts worth keeping.

    Prose and manuals: 84 % at the least, 89 (zh) to 95 % (en) in the median of 248 documents; Python source: 61 and 85 %.
    """

    name = "enough letters"
    reasons = {"too_few_letters": "fewer than 60 % of the visible characters are letters"}

    def filter(self, doc: Document) -> Verdict:
        return len(letters_of(doc.text)) >= 0.6 * len(_SPACE.sub("", doc.text)) or (False, "too_few_letters")


class FewRepeatedLines(BaseFilter):
    """Thresholds of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1)."""

    name = "few repeated lines"
    reasons = {
        "too_many_repeated_lines": "lines seen before in the document are over 30 % of its lines or 20 % of its characters"
    }

    def filter(self, doc: Document) -> Verdict:
        lines = Counter(stripped for line in doc.text.split("\n") if (stripped := line.strip()))
        repeated_lines = sum(count - 1 for count in lines.values())
        repeated_characters = sum((count - 1) * len(line) for line, count in lines.items())
        few = repeated_lines <= 0.3 * lines.total() and repeated_characters <= 0.2 * len(doc.text)
        return few or (False, "too_many_repeated_lines")


class ExpectedScript(BaseFilter):
    """A first guard against wrong tags; a language with no entry here passes. The threshold is ours.

    Letters count by their bytes, or a Chinese text with many product names would hold "mostly" Latin letters.
    """

    name = "expected script"
    reasons = {"wrong_script": "fewer than half of the letters, by bytes, are of the script of the tagged language"}
    # Latin to Extended-B, and Extended Additional; Han with its extensions and compatibility forms.
    _OTHER_THAN_LATIN = re.compile("[^A-Za-z\u00aa-\u024f\u1e00-\u1eff]+")
    _OTHER_THAN_HAN = re.compile("[^\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
    _OTHER_SCRIPTS = {"en": _OTHER_THAN_LATIN, "fr": _OTHER_THAN_LATIN, "zh": _OTHER_THAN_HAN}

    def filter(self, doc: Document) -> Verdict:
        other = self._OTHER_SCRIPTS.get(doc.metadata["lang"])
        if other is None:
            return True
        letters = letters_of(doc.text)
        return len(other.sub("", letters).encode()) >= 0.5 * len(letters.encode()) or (False, "wrong_script")
