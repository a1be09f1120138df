"""The heuristic filters of the corpus, as datatrove steps.

A new filter is one class here and one entry in `quality_filters`. It returns True to keep a document, or (False, reason)
to drop it, and its `reasons` say what each reason means, with the numbers: the corpus page shows that beside what was
dropped. A document's language is its metadata "lang"; one with no `Rules` passes all filters that go by language.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from septet.data.words import CODE_POINTS, looked_up, words_of

Verdict = bool | tuple[bool, str]
Quality = Literal["web", "light", "none"]


def quality_filters(quality: Quality, min_bytes: int, max_bytes: int) -> list[PipelineStep]:
    """The filters, cheap ones first; they follow `Clean` and the identification of the language.

    `light` drops damage and repetition, and fits books, manuals, laws and poems. `web` drops as well what the published
    heuristics take for no prose: pages of links, menus, notices, code, and any document under some 50 words. `none` asks
    for the length alone, for text that was filtered already.
    """
    if quality == "none":
        return [RightLength(min_bytes, max_bytes)]
    rules = {"light": LIGHT, "web": WEB}[quality]
    return [
        RightLength(min_bytes, max_bytes),
        FewReplacementCharacters(),
        EnoughLetters(),
        *([LittleBoilerplate()] if quality == "web" else []),
        FewRepeatedLines(rules),
        *([LinesOfProse(WEB), WordsOfProse(WEB)] if quality == "web" else []),
        FewRepeatedNGrams(rules),
    ]


# --- thresholds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """How much repetition a document of one language may hold; shares are of its lines or characters.

    An n-gram is n words in a row as `septet.data.words` counts them: in Chinese, n characters.
    """

    repeated_lines: float
    """lines that stood in the document before"""
    repeated_line_characters: float
    """characters in such lines"""
    frequent_n_grams: tuple[tuple[int, float], ...]
    """(n, share) each: characters in the most frequent n-gram"""
    repeated_n_grams: tuple[tuple[int, float], ...]
    """(n, share) each: characters in n-grams that stood in the document before"""


@dataclass(frozen=True)
class WebRules(Rules):
    """What else the heuristics for web pages ask of a document; a word of Chinese is a character."""

    min_words: int
    max_words: int
    min_mean_word_length: int
    """in characters"""
    max_mean_word_length: int
    symbols_per_word: float
    """most number signs, and most ellipses"""
    words_with_letters: float
    """least share of words that hold a letter"""
    stop_words: tuple[str, ...]
    """words of which two different ones must occur"""
    finished_lines: float
    """least share of lines that end a sentence"""
    line_breaks_per_word: float
    short_lines: float = 1.0
    """largest share of lines of up to 30 characters"""
    mean_line_length: int = 0
    """least mean length of a line, in characters"""
    han: float = 0.0
    """least share of Han characters among all characters"""
    # The same in all languages (Rae et al. 2021, section A.1.1).
    bullet_lines: float = 0.9
    ellipsis_lines: float = 0.3


# What no text worth keeping was seen to have, books, laws and plays included. Characters of repeated lines: Gopher; its
# share of the lines themselves is left out, since in a play the speakers' names are a third of them. Runs of 13 Chinese
# characters: ChineseWebText (Chen et al. 2023, https://arxiv.org/abs/2311.01149), and 8 words are about as many. Their
# share is ours: prose was measured at 6 % at the most, laws and old books of rites at 19 %, a text that held one passage
# twice at 35 %, and a hundredth of the pages of a manual at 41 %.
LIGHT: Mapping[str, Rules] = {
    "en": Rules(1.0, 0.20, (), ((8, 0.30),)),
    "fr": Rules(1.0, 0.20, (), ((8, 0.30),)),
    "zh": Rules(1.0, 0.20, (), ((13, 0.30),)),
}

# Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1). Its shares of paragraphs are left out, as in
# FineWeb-2: a repeated paragraph is repeated lines, and scene breaks and refrains are paragraphs.
_FREQUENT = ((2, 0.20), (3, 0.18), (4, 0.16))
_REPEATED = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))

# A Chinese word has some 1.7 characters (jieba, over 100 documents of modern Chinese: 1.74), so that n words are
# 1.7 n characters; what is published by the word is turned into characters at the same rate.
_CHARACTERS = {2: 3, 3: 5, 4: 7, 5: 8, 6: 10, 7: 12, 8: 14, 9: 15, 10: 17}


def _in_characters(limits: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    return tuple((_CHARACTERS[n], share) for n, share in limits)


# English: Gopher, and FineWeb (Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6) for lines; its share of
# line breaks stands in datatrove alone. French and Chinese: FineWeb-2 (Penedo et al. 2025, https://arxiv.org/abs/2506.20920,
# configs/fra_Latn.yml and cmn_Hani.yml of its repository), which sets no limit on short lines; for Chinese also
# ChineseWebText (Chen et al. 2023, https://arxiv.org/abs/2311.01149): Han and the mean length of lines.
WEB: Mapping[str, WebRules] = {
    "en": WebRules(
        repeated_lines=0.30,
        repeated_line_characters=0.10,
        frequent_n_grams=_FREQUENT,
        repeated_n_grams=_REPEATED,
        min_words=50,
        max_words=100_000,
        min_mean_word_length=3,
        max_mean_word_length=10,
        symbols_per_word=0.1,
        words_with_letters=0.8,
        stop_words=("the", "be", "to", "of", "and", "that", "have", "with"),
        finished_lines=0.12,
        line_breaks_per_word=0.3,
        short_lines=0.67,
    ),
    "fr": WebRules(
        repeated_lines=0.264,
        repeated_line_characters=0.10,
        frequent_n_grams=((2, 0.161), (3, 0.149), (4, 0.134)),
        repeated_n_grams=((5, 0.15), (6, 0.141), (7, 0.131), (8, 0.121), (9, 0.111), (10, 0.10)),
        min_words=50,
        max_words=100_000,
        min_mean_word_length=2,
        max_mean_word_length=11,
        symbols_per_word=0.1,
        words_with_letters=0.812,
        stop_words=(
            *("de", "la", "le", "et", "à", "en", "l", "des", "du"),
            *("les", "est", "d", "un", "une", "il", "dans", "par", "au"),
        ),
        finished_lines=0.10,
        line_breaks_per_word=0.185,
    ),
    "zh": WebRules(
        repeated_lines=0.287,
        repeated_line_characters=0.10,
        frequent_n_grams=_in_characters(((2, 0.256), (3, 0.201), (4, 0.171))),
        repeated_n_grams=_in_characters(((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.14), (10, 0.127))),
        min_words=85,
        max_words=170_000,
        min_mean_word_length=0,
        max_mean_word_length=5,
        symbols_per_word=0.06,
        words_with_letters=0.735,
        # Without its 年 月 日 人 中, which as characters stand in every list of dates; with the other script's forms.
        stop_words=tuple("的在是和了于於为為有被他与與后後也而由"),
        finished_lines=0.106,
        line_breaks_per_word=0.105,
        mean_line_length=10,
        han=0.3,
    ),
}


# --- filters ----------------------------------------------------------------------------------------------------------


class RightLength(BaseFilter):
    """Counts bytes, since a Chinese character carries some three times as much as a Latin one, and takes three bytes."""

    name = "right length"

    def __init__(self, min_bytes: int, max_bytes: int):
        super().__init__()
        self.min_bytes, self.max_bytes = min_bytes, max_bytes
        self.reasons = {
            "too_short": f"fewer than {min_bytes:,} bytes of UTF-8, after cleaning",
            "too_long": f"more than {max_bytes:,} bytes of UTF-8, after cleaning",
        }

    def filter(self, doc: Document) -> Verdict:
        size = len(doc.text.encode())
        if size < self.min_bytes:
            return False, "too_short"
        return size <= self.max_bytes or (False, "too_long")


class FewReplacementCharacters(BaseFilter):
    """The threshold is ours and untuned."""

    name = "few replacement characters"
    reasons = {
        "too_many_replacement_characters": "more than 1 character in 1,000 is U+FFFD, the mark of bytes lost in decoding"
    }

    def filter(self, doc: Document) -> Verdict:
        return doc.text.count("\ufffd") <= len(doc.text) / 1000 or (False, "too_many_replacement_characters")


class EnoughLetters(BaseFilter):
    """Drops tables, dumps and rulers. The threshold is ours, below what was measured on texts worth keeping.

    Prose and manuals: 84 % at the least, 89 (zh) to 95 % (en) in the median of 248 documents; Python source: 61 and 85 %.
    """

    name = "enough letters"
    reasons = {"too_few_letters": "fewer than 60 % of the visible characters are letters"}

    def filter(self, doc: Document) -> Verdict:
        kinds = _kinds_of(np.frombuffer(doc.text.encode("utf-32-le"), dtype=np.uint32))
        letters, visible = np.count_nonzero(kinds == _LETTER), np.count_nonzero(kinds)
        return bool(letters >= 0.6 * visible) or (False, "too_few_letters")


class LittleBoilerplate(BaseFilter):
    """C4's marks of what is no prose (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2).

    C4 drops single lines with the words below; here a document goes as one, so that its reason and examples can be read.
    The share of lines and the French and Chinese words are ours, untuned.
    """

    name = "little boilerplate"
    reasons = {
        "placeholder_text": "holds “lorem ipsum”",
        "curly_brackets": "holds a curly bracket, as code and templates do",
        "too_many_notices": "over 30 % of the lines speak of JavaScript, cookies, terms of use or rights reserved",
    }
    _NOTICES = (
        *(
            "javascript",
            "terms of use",
            "privacy policy",
            "cookie policy",
            "uses cookies",
            "use of cookies",
            "use cookies",
        ),
        *("conditions d'utilisation", "conditions d’utilisation", "politique de confidentialité", "des cookies"),
        *("mentions légales", "tous droits réservés", "all rights reserved"),
        *("隐私政策", "隱私政策", "使用条款", "使用條款", "版权所有", "版權所有", "icp备"),
    )

    def filter(self, doc: Document) -> Verdict:
        if "{" in doc.text:
            return False, "curly_brackets"
        text = doc.text.lower()
        if "lorem ipsum" in text:
            return False, "placeholder_text"
        if notices := [notice for notice in self._NOTICES if notice in text]:
            lines = _lines_of(text)
            if sum(any(notice in line for notice in notices) for line in lines) > 0.3 * len(lines):
                return False, "too_many_notices"
        return True


class FewRepeatedLines(BaseFilter):
    name = "few repeated lines"

    def __init__(self, rules: Mapping[str, Rules]):
        super().__init__()
        self.rules = rules
        limits = [_each(rules, "repeated_lines", ".1%", "of its lines")]
        limits += [_each(rules, "repeated_line_characters", ".0%", "of its characters")]
        self.reasons = {
            "too_many_repeated_lines": f"lines seen before in the document are over {' or '.join(filter(None, limits))}"
        }

    def filter(self, doc: Document) -> Verdict:
        rules = self.rules.get(doc.metadata["lang"])
        if rules is None:
            return True
        lines = _lines_of(doc.text)
        different = set(lines)
        repeated_characters = sum(map(len, lines)) - sum(map(len, different))
        few = len(lines) - len(different) <= rules.repeated_lines * len(
            lines
        ) and repeated_characters <= rules.repeated_line_characters * len(doc.text)
        return few or (False, "too_many_repeated_lines")


class LinesOfProse(BaseFilter):
    """What a document's lines look like. A dash (— – --) begins speech in French and is no bullet; a hyphen is one."""

    name = "lines of prose"
    _BULLETS = ("•", "‣", "●", "■", "▪", "◆", "★", "*", "-")
    _ENDS = frozenset(".!?…。！？；\"'”’»」』")

    def __init__(self, rules: Mapping[str, WebRules]):
        super().__init__()
        self.rules = rules
        self.reasons = {
            "too_many_short_lines": f"lines of up to 30 characters are over {_each(rules, 'short_lines', '.0%')} of the "
            f"lines, or the mean line has fewer characters than {_each(rules, 'mean_line_length', 'd')}",
            "too_few_finished_lines": f"under {_each(rules, 'finished_lines', '.1%')} of the lines end a sentence",
            "too_many_bullet_lines": f"over {_each(rules, 'bullet_lines', '.0%')} of the lines begin with a bullet",
            "too_many_ellipsis_lines": f"over {_each(rules, 'ellipsis_lines', '.0%')} of the lines break off",
        }

    def filter(self, doc: Document) -> Verdict:
        rules = self.rules.get(doc.metadata["lang"])
        lines = _lines_of(doc.text)
        if rules is None or not lines:
            return True
        count = len(lines)
        if rules.short_lines < 1 and sum(len(line) <= 30 for line in lines) > rules.short_lines * count:
            return False, "too_many_short_lines"
        if sum(map(len, lines)) < rules.mean_line_length * count:
            return False, "too_many_short_lines"
        if sum(line[-1] in self._ENDS for line in lines) < rules.finished_lines * count:
            return False, "too_few_finished_lines"
        if (
            sum(line.startswith(self._BULLETS) and not line.startswith("--") for line in lines)
            > rules.bullet_lines * count
        ):
            return False, "too_many_bullet_lines"
        if sum(line.endswith(("...", "…")) for line in lines) > rules.ellipsis_lines * count:
            return False, "too_many_ellipsis_lines"
        return True


class WordsOfProse(BaseFilter):
    """What a document's words look like."""

    name = "words of prose"

    def __init__(self, rules: Mapping[str, WebRules]):
        super().__init__()
        self.rules = rules
        self._stop_words = {
            lang: np.concatenate([words_of(word).hashes for word in r.stop_words]) for lang, r in rules.items()
        }
        self.reasons = {
            "too_few_words": f"fewer words (Chinese: characters) than {_each(rules, 'min_words', ',')}",
            "too_many_words": f"more words (Chinese: characters) than {_each(rules, 'max_words', ',')}",
            "too_many_line_breaks": f"over {_each(rules, 'line_breaks_per_word', '.3f')} line breaks a word",
            "too_many_symbols": f"over {_each(rules, 'symbols_per_word', '.2f')} number signs or ellipses a word",
            "too_short_words": f"the mean word has fewer characters than {_each(rules, 'min_mean_word_length', 'd')}",
            "too_long_words": f"the mean word has more characters than {_each(rules, 'max_mean_word_length', 'd')}",
            "too_few_han": f"under {_each(rules, 'han', '.0%')} of the characters are Han",
            "too_few_words_with_letters": f"under {_each(rules, 'words_with_letters', '.1%')} of the words hold a letter",
            "too_few_stop_words": "fewer than two of the commonest words of the language",
        }

    def filter(self, doc: Document) -> Verdict:
        rules = self.rules.get(doc.metadata["lang"])
        if rules is None:
            return True
        text, words = doc.text, words_of(doc.text)
        count = len(words.hashes)
        if count < rules.min_words:
            return False, "too_few_words"
        if count > rules.max_words:
            return False, "too_many_words"
        if text.count("\n") > rules.line_breaks_per_word * count:
            return False, "too_many_line_breaks"
        # The Chinese ellipsis is two characters.
        ellipses = text.count("...") + text.count("…") - text.count("……")
        if max(text.count("#"), ellipses) > rules.symbols_per_word * count:
            return False, "too_many_symbols"
        letters = np.frombuffer(words.letters, dtype=np.uint32)
        if len(letters) < rules.min_mean_word_length * count:
            return False, "too_short_words"
        if len(letters) > rules.max_mean_word_length * count:
            return False, "too_long_words"
        if rules.han and np.count_nonzero((letters >= 0x4E00) & (letters <= 0x9FFF)) < rules.han * len(text):
            return False, "too_few_han"
        starts = np.cumsum(words.lengths) - words.lengths
        with_letters = np.logical_or.reduceat(_kinds_of(letters) == _LETTER, starts)
        if np.count_nonzero(with_letters) < rules.words_with_letters * count:
            return False, "too_few_words_with_letters"
        found = 0
        for stop_word in self._stop_words[doc.metadata["lang"]]:  # the common ones come first, so two are soon found
            found += bool((words.hashes == stop_word).any())
            if found == 2:
                return True
        return False, "too_few_stop_words"


class FewRepeatedNGrams(BaseFilter):
    """Gopher's repetition within a document, as datatrove counts it, whose thresholds these are.

    Not datatrove's filter, since that needs a tokenizer of words (spaCy, jieba) and was measured at 0.13 MB/s. The n-grams
    of a text are numbers here, and one sort brings equal ones together. Over 600 English documents, 228 of them
    repetitive, both decided alike on 97 %. An n-gram can only be repeated where all shorter ones inside it are, so that of
    each length only those few are looked at that may be.
    """

    name = "few repeated n-grams"

    def __init__(self, rules: Mapping[str, Rules]):
        super().__init__()
        self.rules = rules
        run = "n words in a row (Chinese: characters)"
        self.reasons = {
            "too_many_repeated_n_grams": f"{run} that stood in the document before hold more of the characters than, for n, "
            + _each(rules, "repeated_n_grams")
        }
        if frequent := _each(rules, "frequent_n_grams"):
            self.reasons["too_frequent_n_gram"] = f"the same {run} hold more of the characters than, for n, {frequent}"

    def filter(self, doc: Document) -> Verdict:
        rules = self.rules.get(doc.metadata["lang"])
        if rules is None:
            return True
        words, size = words_of(doc.text), len(doc.text)
        count = len(words.hashes)
        ends = np.concatenate([[0], np.cumsum(words.lengths)])
        space = 0 if words.are_characters else 1
        longest_word = int(words.lengths.max(initial=0)) + space
        may_repeat, shorter = np.ones(count, dtype=bool), 1  # at each word, whether the n-gram that starts there may
        for n, share in rules.frequent_n_grams:
            positions, first = _repeated(words.n_grams(n), may_repeat, shorter, n)
            if not len(positions):
                return True
            starts = np.append(np.flatnonzero(first), len(positions))
            occurrences = starts[1:] - starts[:-1]
            most = int(occurrences.max())
            start = positions[starts[:-1][occurrences == most]].min()
            if most * (ends[start + n] - ends[start] + space * (n - 1)) > share * size:
                return False, "too_frequent_n_gram"
            may_repeat, shorter = _mark(positions, count), n
            longest_n, lowest_share = rules.frequent_n_grams[-1]
            if most * longest_n * longest_word <= lowest_share * size:
                break  # no longer one is more frequent
        for n, share in rules.repeated_n_grams:
            positions, first = _repeated(words.n_grams(n), may_repeat, shorter, n)
            covered = np.zeros(count + 1, dtype=np.int32)
            covered[positions[~first]] += 1
            covered[positions[~first] + n] -= 1
            characters = words.lengths[np.cumsum(covered[:-1]) > 0].sum()
            if characters > share * size:
                return False, "too_many_repeated_n_grams"
            if characters <= rules.repeated_n_grams[-1][1] * size:
                return True  # longer ones hold no more than these, and the last limit is the lowest
            may_repeat, shorter = _mark(positions, count), n
        return True


def _repeated(grams: np.ndarray, shorter_repeat: np.ndarray, shorter: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the n-grams stand that occur more than once, given at which words the shorter ones that do start.

    Returns:
        (k,) int64: their positions, equal ones together, in the order of the text; (k,) bool: which are the first of
        their kind.
    """
    may = shorter_repeat
    for _ in range(n - shorter):
        may = may[:-1] & may[1:]
    candidates = np.flatnonzero(may[: len(grams)])
    # The hash's upper bits with the position below them: one sort of plain numbers, five times as fast as argsort.
    bits = np.uint64(len(grams).bit_length())
    order = np.sort((grams[candidates] >> bits << bits) | candidates.astype(np.uint64))
    same = np.zeros(len(order) + 1, dtype=bool)  # as the one before
    kinds = order >> bits
    same[1:-1] = kinds[1:] == kinds[:-1]
    some = same[:-1] | same[1:]
    positions = (order & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    return positions[some], ~same[:-1][some]


def _mark(positions: np.ndarray, count: int) -> np.ndarray:
    marks = np.zeros(count, dtype=bool)
    marks[positions] = True
    return marks


@lru_cache(maxsize=1)  # several filters look at the lines of one document
def _lines_of(text: str) -> list[str]:
    """The lines that hold something, without the white space around."""
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


def _each(rules: Mapping[str, Rules], field: str, spec: str = "", of: str = "") -> str:
    """A threshold as a reader wants it: one number for each language that has a limit, or one for all of them."""

    def written(limit: float | tuple[tuple[int, float], ...]) -> str:
        if isinstance(limit, tuple):
            return ", ".join(f"{n}: {share:.1%}" for n, share in limit)
        return format(limit, spec)

    limits = {lang: written(limit) for lang, r in rules.items() if (limit := getattr(r, field)) not in (0, 1.0, ())}
    if len(limits) == len(rules) and len(set(limits.values())) == 1:
        limits = {"": limits.popitem()[1]}
    text = "; ".join(f"{limit} ({lang})" if lang else limit for lang, limit in limits.items())
    return f"{text} {of}".strip().replace("%", " %") if limits else ""


_LETTER = 2


def _kinds_of(points: np.ndarray) -> np.ndarray:
    """(n,) uint8 for (n,) uint32 code points: 0 white space, 1 other visible characters, 2 letters of any script."""
    return looked_up(_kinds(), points)


@cache
def _kinds() -> np.ndarray:
    def kind(character: str) -> int:
        # Marks, such as the vowels of Devanagari, count with the letters that they belong to.
        if character.isalpha() or unicodedata.category(character).startswith("M"):
            return _LETTER
        return not character.isspace()

    return np.array([kind(chr(point)) for point in range(CODE_POINTS)], dtype=np.uint8)
