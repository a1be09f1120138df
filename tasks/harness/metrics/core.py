"""What a metric is, and what the families share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from septet.data.errors import UserError


@dataclass(frozen=True)
class Metric:
    """A corpus score as a function of statistics that add up over segments."""

    name: str
    statistics: Callable[[Sequence[Any], Sequence[Any], Sequence[str]], np.ndarray]
    """(predictions, references, language of each segment) -> (num_segments, k)."""
    aggregate: Callable[[np.ndarray], np.ndarray]
    """Summed statistics (..., k) -> scores (...); NaN where the score is not defined."""
    signature: Callable[[Sequence[Any], Sequence[str]], str]
    """(references, language of each segment) -> what must be equal for two scores to be comparable."""
    higher_is_better: bool = True
    joint: bool = False
    """The columns depend on what is predicted: two systems are compared on statistics that were computed in one call."""
    applies: Callable[[Sequence[Any], Sequence[str]], bool] = lambda references, languages: True
    """(references, language of each segment) -> whether the metric means anything for them; else it is left out."""


def fixed(text: str) -> Callable[[Sequence[Any], Sequence[str]], str]:
    """A signature that depends on nothing."""
    return lambda references, languages: text


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Percentage, 0 where the denominator is."""
    return 100 * np.divide(numerator, denominator, out=np.zeros_like(denominator, dtype=float), where=denominator != 0)


def mean_of(column: int, count: int = -1) -> Callable[[np.ndarray], np.ndarray]:
    """Mean of a column of values 0 to 1 as a percentage; column `count` counts the segments, NaN where there are none."""

    def aggregate(sums: np.ndarray) -> np.ndarray:
        counted = sums[..., count]
        return 100 * np.divide(sums[..., column], counted, out=np.full_like(counted, np.nan), where=counted != 0)

    return aggregate


def require_texts(values: Sequence[Any], what: str) -> None:
    """Raises a `UserError` unless all are strings; a row without a prediction is named."""
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"row {row}: the {what} is {value!r}; it must be text; give every row its {what}")


def reference_lists(references: Sequence[Any]) -> list[list[str]]:
    """The references of each segment, which may have one (str) or several, of differing number (list[str]).

    Raises:
        UserError: a segment has none, or one that is blank or not text: whatever is predicted would score 0.
    """
    lists = []
    for row, given in enumerate(references):
        texts = [given] if isinstance(given, str) else given
        if not is_list(texts, str) or not texts or not all(text.strip() for text in texts):
            raise UserError(f"row {row}: the reference is {given!r}; it must hold text; leave the row out")
        lists.append(list(texts))
    return lists


def is_list(value: Any, kind: type) -> bool:
    """Whether a value from outside is a list (or tuple) of nothing but `kind`."""
    return isinstance(value, list | tuple) and all(isinstance(each, kind) for each in value)


def warn(message: str) -> None:
    """A warning of a score that is 0 for a reason other than what was predicted."""
    warnings.warn(message, stacklevel=3)


def warn_of_dropped(metric: str, texts: Iterable[str], tokens: Iterable[Sequence[str]]) -> None:
    """Warns of texts that are not blank but have no token: whatever is predicted for them, they score nothing."""
    lost = [text for text, kept in zip(texts, tokens, strict=True) if text.strip() and not kept]
    if lost:
        warn(
            f"{metric}: the tokenizer keeps nothing of {len(lost)} texts, such as {lost[0][:40]!r}; check their language"
        )
