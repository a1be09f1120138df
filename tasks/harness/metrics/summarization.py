"""ROUGE of words that keep their accents and of Chinese characters; on ASCII it is rouge_score's."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np

from septet.tasks.harness.metrics.core import Metric, mean_of, reference_lists, require_texts, warn_of_dropped
from septet.tasks.harness.metrics.tokens import sentences, words

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class _Words:
    """`words` in the shape that rouge_score asks of a tokenizer."""

    tokenize = staticmethod(words)


def _statistics(predictions: Sequence[str], references: Sequence[Any], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 5): F-measures of ROUGE-1, -2, -L and -Lsum, 0 to 1, and the constant 1.

    Of several references each metric takes the best, as rouge_score's `score_multi` does.
    """
    from rouge_score.rouge_scorer import RougeScorer

    require_texts(predictions, "prediction")
    lists = reference_lists(references)
    read = {text: _lines(text) for texts in (predictions, *lists) for text in texts}
    warn_of_dropped("rouge", read, map(words, read))
    scorer = RougeScorer(list(NAMES), tokenizer=_Words())
    rows = []
    for prediction, texts in zip(predictions, lists, strict=True):
        found = scorer.score_multi([read[text] for text in texts], read[prediction])
        rows.append([*(found[name].fmeasure for name in NAMES), 1.0])
    return np.array(rows)


def _lines(text: str) -> str:
    """A sentence a line: rouge_score ends a sentence where a line ends, and we also where `sentences` finds one."""
    return "\n".join(sentence for line in text.split("\n") for sentence in sentences(line))


def _signature(references: Sequence[Any], languages: Sequence[str]) -> str:
    version = importlib.metadata.version("rouge-score")
    num_references = {1 if isinstance(given, str) else len(given) for given in references}
    several = "" if num_references == {1} else "|refs:best"
    return f"rouge_score:{version}|tok:words+han-characters|case:lc|norm:nfkc|stem:no|f:mean{several}"


METRICS = tuple(Metric(name, _statistics, mean_of(column), _signature) for column, name in enumerate(NAMES))
