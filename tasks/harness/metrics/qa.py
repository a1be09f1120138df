"""Answers to questions: SQuAD's exact match and F1 in three languages, and for Chinese CMRC 2018's own."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import numpy as np

from septet.data.errors import UserError
from septet.tasks.harness.metrics.core import Metric, fixed, is_list, mean_of, require_texts, warn_of_dropped
from septet.tasks.harness.metrics.tokens import HAN

_ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b")
_FRENCH_ARTICLES = re.compile(r"\b(le|la|les|du|des|au|aux|un|une)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # its script's; … and . , stay
_CMRC_PIECE = re.compile("[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+")


def answer_tokens(text: str, language: str) -> list[str]:
    """Tokens of an answer after SQuAD's normalisation; two answers match exactly if their tokens are equal.

    - en: the official SQuAD script: lower case, ASCII punctuation deleted, *a an the* deleted, split at white space.
    - fr: the same with *le la les l' du des au aux un une*; *l'* goes before the apostrophe does, and all Unicode
      punctuation is deleted (« » ’ …). The list is ours: we have not found the script that FQuAD (d'Hoffschmidt et al. 2020)
      was scored with; FrenchBench's (Faysse et al. 2024) knows *un une des le la les* alone and makes one word of *l'été*.
    - zh: as MLQA's script has it (Lewis et al. 2020): lower case, all Unicode punctuation deleted, each Chinese character
      a token, everything else split at white space.
    """
    text = text.lower()
    if language == "en":
        text = text.translate(_ASCII_PUNCTUATION)
        return _ENGLISH_ARTICLES.sub(" ", text).split()
    if language == "fr":
        text = re.sub(r"\bl['’]", " ", text)
        return _FRENCH_ARTICLES.sub(" ", _without_punctuation(text)).split()
    return re.sub(rf"([{HAN}])", r" \1 ", _without_punctuation(text)).split()


def _without_punctuation(text: str) -> str:
    kept = text.translate(_ASCII_PUNCTUATION)
    return "".join(character for character in kept if unicodedata.category(character)[0] != "P")


def _answer_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], languages: Sequence[str]
) -> np.ndarray:
    """(num_segments, 7): exact match and F1 with the best reference, 0 to 1, the constant 1; then F1 and 1 where there is an
    answer, and where there is none.

    As in SQuAD 2.0 a question without accepted answers expects the empty one, and empty is right or wrong, nothing between.
    Where all questions have answers this is SQuAD 1.1, but for answers that normalisation leaves nothing of: 1.1 would take
    them as they are, 2.0 drops them.
    """
    _require_answers(predictions, references)
    tokens = {
        (text, language): answer_tokens(text, language)
        for prediction, answers, language in zip(predictions, references, languages, strict=True)
        for text in (prediction, *answers)
    }
    warn_of_dropped("exact_match and f1", (text for text, _ in tokens), tokens.values())
    statistics = np.zeros((len(references), 7))
    for row, (prediction, answers, language) in enumerate(zip(predictions, references, languages, strict=True)):
        match, f1 = _best_match(tokens[prediction, language], [tokens[answer, language] for answer in answers])
        statistics[row, :3] = match, f1, 1
        statistics[row, 3:5] = (f1, 1) if answers else (0, 0)
        statistics[row, 5:] = (0, 0) if answers else (f1, 1)
    return statistics


def answer_scores(prediction: str, answers: Sequence[str], language: str) -> tuple[bool, float]:
    """Whether one answer matches one of the accepted ones exactly, and its F1 with the best of them, 0 to 1."""
    return _best_match(answer_tokens(prediction, language), [answer_tokens(answer, language) for answer in answers])


def _best_match(predicted: list[str], answers: Sequence[list[str]]) -> tuple[bool, float]:
    accepted = [answer for answer in answers if answer] or [[]]
    return predicted in accepted, max(overlap_f1(predicted, answer) for answer in accepted)


def _require_answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    require_texts(predictions, "predicted answer")
    for row, answers in enumerate(references):
        if not is_list(answers, str):
            raise UserError(
                f"row {row}: the answers are {answers!r}; they must be a list of texts, empty where there is none"
            )


def overlap_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """SQuAD's F1 of two lists of tokens, 0 to 1: of what they share, repeated tokens as often as both have them."""
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * (Counter(predicted) & Counter(expected)).total() / (len(predicted) + len(expected))


def _cmrc_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], languages: Sequence[str]
) -> np.ndarray:
    """(num_segments, 3): CMRC's exact match and F1 with the best reference, 0 to 1, and the constant 1."""
    statistics = np.ones((len(references), 3))
    for row, (prediction, answers) in enumerate(zip(predictions, references, strict=True)):
        statistics[row, 0] = any(_cmrc_text(prediction) == _cmrc_text(answer) for answer in answers)
        statistics[row, 1] = max(_substring_f1(cmrc_tokens(prediction), cmrc_tokens(answer)) for answer in answers)
    return statistics


def _cmrc_text(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)


@cache
def _treebank() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def cmrc_tokens(text: str) -> list[str]:
    """Tokens as CMRC 2018's script has them: without its punctuation, Chinese by characters, the rest by NLTK's words.

    The script lets NLTK split that rest into sentences first, by a model that would have to be downloaded. That is left out:
    it differs in foreign text of several sentences alone.
    """
    tokens = []
    for piece in _CMRC_PIECE.findall(_cmrc_text(text)):
        tokens += [piece] if "\u4e00" <= piece <= "\u9fa5" else _treebank().tokenize(piece)
    return tokens


def _substring_f1(predicted: list[str], expected: list[str]) -> float:
    """2 * longest common run of tokens / (all tokens)."""
    matcher = SequenceMatcher(None, predicted, expected, autojunk=False)
    longest = matcher.find_longest_match(0, len(predicted), 0, len(expected)).size
    return 2 * longest / max(len(predicted) + len(expected), 1)


def _signature(references: Sequence[Sequence[str]], languages: Sequence[str]) -> str:
    return f"squad:2.0|lang:{'+'.join(sorted(set(languages)))}|refs:best"


def _some_unanswerable(references: Sequence[Sequence[str]], languages: Sequence[str]) -> bool:
    return 0 < sum(not answers for answers in references) < len(references)


def _chinese(references: Sequence[Sequence[str]], languages: Sequence[str]) -> bool:
    return set(languages) == {"zh"} and all(references)


METRICS = (
    Metric("exact_match", _answer_statistics, mean_of(0, 2), _signature),
    Metric("f1", _answer_statistics, mean_of(1, 2), _signature),
    Metric("f1_answerable", _answer_statistics, mean_of(3, 4), _signature, applies=_some_unanswerable),
    Metric("f1_unanswerable", _answer_statistics, mean_of(5, 6), _signature, applies=_some_unanswerable),
    Metric("cmrc_em", _cmrc_statistics, mean_of(0), fixed("cmrc2018:v5|refs:best"), applies=_chinese),
    Metric("cmrc_f1", _cmrc_statistics, mean_of(1), fixed("cmrc2018:v5|refs:best"), applies=_chinese),
)
