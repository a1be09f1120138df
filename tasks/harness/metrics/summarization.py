"""ROUGE of words that keep their accents and of Chinese characters; on ASCII it is rouge_score's."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from septet.tasks.harness.metrics.core import Metric, mean_of, reference_lists, require_texts, warn_of_dropped
from septet.tasks.harness.metrics.tokens import sentences, words


def _statistics(predictions: Sequence[str], references: Sequence[Any], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 5): F-measures of ROUGE-1, -2, -L and -Lsum, 0 to 1, and the constant 1.

    Of several references each metric takes the best, as rouge_score's `score_multi` does.
    """
    require_texts(predictions, "prediction")
    lists = reference_lists(references)
    read = {text: _sentences_of_words(text) for texts in (predictions, *lists) for text in texts}
    warn_of_dropped("rouge", read, ([word for sentence in found for word in sentence] for found in read.values()))
    scores = [
        np.max([_scores(read[prediction], read[text]) for text in texts], axis=0)
        for prediction, texts in zip(predictions, lists, strict=True)
    ]
    return np.column_stack([scores, np.ones(len(scores))])


def _sentences_of_words(text: str) -> list[list[str]]:
    """The words of each sentence. A line ends a sentence, as rouge_score has it, and so does what `sentences` finds."""
    return [words(sentence) for line in text.split("\n") for sentence in sentences(line)]


def _scores(predicted: list[list[str]], expected: list[list[str]]) -> list[float]:
    """F-measures of ROUGE-1, -2, -L and -Lsum of two texts, each a list of sentences, each a list of words."""
    mine, theirs = ([word for sentence in text for word in sentence] for text in (predicted, expected))
    longest = len(common_subsequence(theirs, mine))
    return [
        *(_f1((_ngrams(mine, n) & _ngrams(theirs, n)).total(), len(mine) + 1 - n, len(theirs) + 1 - n) for n in (1, 2)),
        _f1(longest, len(mine), len(theirs)),
        _f1(_union_hits(predicted, expected), len(mine), len(theirs)),
    ]


def _ngrams(tokens: list[str], order: int) -> Counter:
    """N-grams of that order and how often they occur."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def _f1(hits: int, num_predicted: int, num_expected: int) -> float:
    return 2 * hits / (num_predicted + num_expected) if hits else 0.0


def _union_hits(predicted: list[list[str]], expected: list[list[str]]) -> int:
    """Words of the reference's sentences that stand in the union of their longest common subsequences with each predicted
    sentence (Lin 2004, section 3.2), each word counted as often as both texts have it at most, as ROUGE 1.5.5 does."""
    left = Counter(word for sentence in predicted for word in sentence)
    left &= Counter(word for sentence in expected for word in sentence)
    hits = 0
    for sentence in expected:
        for place in sorted({place for other in predicted for place in common_subsequence(sentence, other)}):
            if left[sentence[place]] > 0:
                left[sentence[place]] -= 1
                hits += 1
    return hits


def common_subsequence(reference: Sequence[str], candidate: Sequence[str]) -> list[int]:
    """Places in `reference` of a longest common subsequence, of several the one that rouge_score finds; the last first.

    The table of lengths is held as one integer a column, whose bit i is 0 where the length grows at token i of the reference
    (Hyyrö 2004, "Bit-Parallel LCS-length Computation Revisited"): a word of the candidate costs a few operations.
    """
    where: dict[str, int] = defaultdict(int)
    for place, token in enumerate(reference):
        where[token] |= 1 << place
    everywhere = (1 << len(reference)) - 1
    columns = [everywhere]
    for token in candidate:
        grows = columns[-1] & where.get(token, 0)
        columns.append(((columns[-1] + grows) | (columns[-1] - grows)) & everywhere)
    row, column, found = len(reference), len(candidate), []
    while row and column:
        if reference[row - 1] == candidate[column - 1]:
            row, column = row - 1, column - 1
            found.append(row)
        elif _length(columns[column - 1], row) > _length(columns[column], row - 1):
            column -= 1
        else:
            row -= 1
    return found


def _length(column: int, row: int) -> int:
    """Entry `row` of a column of the table: the zeros among its first bits."""
    return row - (column & ((1 << row) - 1)).bit_count()


def _signature(references: Sequence[Any], languages: Sequence[str]) -> str:
    num_references = {1 if isinstance(given, str) else len(given) for given in references}
    several = "" if num_references == {1} else "|refs:best"
    return f"tok:words+han-characters|case:lc|norm:nfkc|stem:no|f:mean{several}"


METRICS = tuple(
    Metric(name, _statistics, mean_of(column), _signature)
    for column, name in enumerate(("rouge1", "rouge2", "rougeL", "rougeLsum"))
)
