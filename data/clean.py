"""Cleaning: Unicode repaired and normalised, and white space that carries nothing removed."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import ftfy
from datatrove.pipeline.formatters.base import BaseFormatter
from ftfy.badness import MOJIBAKE_CATEGORIES
from ftfy.chardata import LIGATURES


class Clean(BaseFormatter):
    """Repairs encoding damage and normalises to NFC with ftfy, and trims white space that carries nothing.

    Against ftfy's defaults, `fix_character_width` is off, since it would turn Chinese full-width punctuation into
    ASCII, and `uncurl_quotes` is off, since French and Chinese texts need their quotes. No-break spaces stay, which
    French sets before its punctuation, and so does the indentation of lines but the first. HTML entities are decoded, over and
    over (`&amp;lt;` becomes `<`), in texts without a tag. What comes out is clean: cleaning it again
    changes nothing.
    """

    name = "clean"
    # Soft hyphen, zero-width space and word joiner show nothing; the joiners U+200C and U+200D shape emoji and stay.
    _INVISIBLE = "\u00ad\u200b\u2060"
    _BLANK_LINES = re.compile(r"\n{3,}")

    def format(self, text: str) -> str:
        # Twice where something changed: without a soft hyphen, or at the start of a line, ftfy may see more to repair.
        while (cleaned := self._once(text)) != text:
            text = cleaned
        return text

    def _once(self, text: str) -> str:
        text = repaired(text)
        for character in self._INVISIBLE:
            text = text.replace(character, "")
        # Line by line: the expression `\s+$` takes quadratic time on long white space inside a line.
        text = "\n".join([line.rstrip() for line in text.split("\n")])
        if "\n\n\n" in text:
            text = self._BLANK_LINES.sub("\n\n", text)
        return text.strip()


FTFY = ftfy.TextFixerConfig(normalization="NFC", fix_character_width=False, uncurl_quotes=False, explain=False)


def repaired(text: str) -> str:
    """`ftfy.fix_text(text, FTFY)`, without the wait: ftfy alone runs at 2 to 4 MB/s, nearly all of it in search of damage.

    ftfy looks at each line by itself, so only lines are passed on where `_suspicious` finds something; in real text, one
    line in 10,000.
    """
    suspicious = _suspicious()
    if not unicodedata.is_normalized("NFC", text):
        composed = unicodedata.normalize("NFC", text)
        # In longer lines ftfy cuts, perhaps between a letter and its accent.
        if len(text) > FTFY.max_decode_length or suspicious.search(text) or suspicious.search(composed):
            return ftfy.fix_text(text, FTFY)
        return composed
    pieces, done, config = [], 0, FTFY
    first_tag = text.find("<")  # ftfy decodes no HTML entity after the first line with a tag
    while damage := suspicious.search(text, done):
        start = max(done, text.rfind("\n", done, damage.start()) + 1)
        end = text.find("\n", damage.start()) + 1 or len(text)
        if 0 <= first_tag < start:
            config = FTFY._replace(unescape_html=False)
        pieces += text[done:start], ftfy.fix_text(text[start:end], config)
        done = end
    return "".join([*pieces, text[done:]])


@cache
def _suspicious() -> re.Pattern[str]:
    """Matches in every line that ftfy (6.3) would change, apart from normalisation, and in few others.

    It is a character that ftfy never leaves in place, an HTML entity, or the first two or three characters of one of the
    alternatives of `ftfy.badness.BADNESS_RE`, without which ftfy takes no line for mis-decoded. The expression is quick
    because it begins with one set of characters, so that the search skips to the next of them.
    """
    of = MOJIBAKE_CATEGORIES
    bad, start, end, box = of["bad"], of["start_punctuation"], of["end_punctuation"], of["box"]
    currency, numeric, law = of["currency"], of["numeric"], of["law"]
    upper, lower, common = of["upper_accented"], of["lower_accented"], of["upper_common"] + of["lower_common"]
    other = lower + upper + box + start + end + currency + numeric + law
    never_left = "\0-\x08\x0b\x0d-\x1f\x7f-\x9f\u2028\u2029\u206a-\u206f\ufeff\ufff9-\ufffc\ud800-\udfff"
    never_left += "".join(map(chr, LIGATURES))
    ends_in_ascii = [(never_left, ""), ("&", "#?[0-9A-Za-z]{1,24};"), ("Œœ", "(?![A-Za-z])"), ("ÂÃ", " ")]
    ends_beyond_ascii = [
        (other + bad + common, f"[{bad}]"),
        (bad, f"[{other}]"),
        (lower + of["lower_common"] + box + end + currency + numeric, f"[{upper}]"),
        (box + end + currency + numeric, f"[{lower}]"),
        (lower + upper + box + end, f"[{currency}]"),
        (upper + box, f"[{numeric}{law}°]"),
        (start, f"[{numeric}]"),
        (currency + numeric + box + upper, f"[{start}]"),
        (box, f"[{of['kaomoji']}{end}]"),
        (other, f"[{box}]"),
        (lower + upper + currency + numeric + box + law, rf"[{end}][{start}\w]"),
        (lower + upper, rf"[{start}]\w"),
        ("ÂÃÎÐØÙ√≈", ""),
        ("à", "[²µ¹¼½¾]"),
        ("×", "[²³]"),
        ("‚", "[Äâó]"),
        ("в", "Ђ"),
        ("βā", "€"),
        ("ВГРСΒΓΞΟ", f"[{bad}{start}{end}{currency}°µ]"),
        ("Г", "ў"),
    ]

    def any_of(sequences: list[tuple[str, str]]) -> str:
        return "|".join(f"(?<=[{first}]){rest}" for first, rest in sequences)

    firsts = "".join(first for first, _ in ends_in_ascii + ends_beyond_ascii)
    return re.compile(f"[{firsts}](?:{any_of(ends_in_ascii)}|(?=[^\0-\x7f])(?:{any_of(ends_beyond_ascii)}))")
