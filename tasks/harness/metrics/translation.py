"""BLEU, chrF and chrF++ by sacreBLEU's own classes; one reference a segment or several, of differing number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from septet.tasks.harness.metrics.core import Metric, reference_lists, require_texts, warn


@cache
def _bleu(language: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(trg_lang=language)


@cache
def _chrf(word_order: int) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=word_order)


def _streams(lists: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """sacreBLEU's layout: the first reference of each segment, the second of each ..., None where one has no more."""
    return [[texts[i] if i < len(texts) else None for texts in lists] for i in range(max(map(len, lists)))]


def _bleu_statistics(predictions: Sequence[str], references: Sequence[Any], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 10): lengths of prediction and reference, matches and totals of 1- to 4-grams."""
    require_texts(predictions, "prediction")
    lists = reference_lists(references)
    statistics = np.empty((len(lists), 10))
    for language in set(languages):
        rows = [row for row, other in enumerate(languages) if other == language]
        statistics[rows] = _bleu(language)._extract_corpus_statistics(
            [predictions[row] for row in rows], _streams([lists[row] for row in rows])
        )
    if statistics[:, 1].max() < 4:
        warn("bleu: no reference has four tokens, so that BLEU is 0 whatever is predicted; go by chrf")
    return statistics


def _chrf_statistics(predictions: Sequence[str], references: Sequence[Any], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 42): predicted, reference and matching n-grams, as chrF++ counts them, then as chrF does.

    24 columns for characters of order 1 to 6 and words of 1 and 2, 18 for the characters alone. They differ where there are
    several references, of which each metric takes the one that it finds best.
    """
    require_texts(predictions, "prediction")
    streams = _streams(reference_lists(references))
    with_words = np.array(_chrf(2)._extract_corpus_statistics(predictions, streams), dtype=float)
    if len(streams) == 1:
        return np.concatenate([with_words, with_words[:, :18]], axis=1)
    return np.concatenate([with_words, _chrf(0)._extract_corpus_statistics(predictions, streams)], axis=1)


def _bleu_score(sums: np.ndarray) -> np.ndarray:
    bleu = _bleu("en")  # the formula is one for all tokenizers
    return np.apply_along_axis(lambda row: bleu._compute_score_from_stats(row.tolist()).score, -1, sums)


def _chrf_score(sums: np.ndarray) -> np.ndarray:
    return np.apply_along_axis(lambda row: _chrf(0)._compute_f_score(row.tolist()), -1, sums[..., 24:])


def _chrf_plus_plus_score(sums: np.ndarray) -> np.ndarray:
    return np.apply_along_axis(lambda row: _chrf(2)._compute_f_score(row.tolist()), -1, sums[..., :24])


def _signature(metric_of: Callable[[str], Any]) -> Callable[[Sequence[Any], Sequence[str]], str]:
    """sacreBLEU's signature; where languages differ in it, each with its own."""

    def signature(references: Sequence[Any], languages: Sequence[str]) -> str:
        by_text: dict[str, list[str]] = {}
        for language in sorted(set(languages)):
            counts = {
                1 if isinstance(given, str) else len(given)
                for given, other in zip(references, languages, strict=True)
                if other == language
            }
            metric = metric_of(language)
            metric.num_refs = counts.pop() if len(counts) == 1 else -1
            by_text.setdefault(str(metric.get_signature()), []).append(language)
        if len(by_text) == 1:
            return next(iter(by_text))
        return "; ".join(f"{'+'.join(group)}: {text}" for text, group in by_text.items())

    return signature


METRICS = (
    Metric("bleu", _bleu_statistics, _bleu_score, _signature(_bleu)),
    Metric("chrf", _chrf_statistics, _chrf_score, _signature(lambda language: _chrf(0))),
    Metric("chrf++", _chrf_statistics, _chrf_plus_plus_score, _signature(lambda language: _chrf(2))),
)
