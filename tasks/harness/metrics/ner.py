"""Entities in IOB2 tags: strict as seqeval has it, partial as SemEval-2013 has it. Tags cannot say that entities overlap."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from septet.data.errors import UserError
from septet.tasks.harness.metrics.classification import table
from septet.tasks.harness.metrics.core import Metric, fixed, ratio, warn

Entity = tuple[str, int, int]
_TAG = re.compile(r"O|[BI]-.+")


def entities(tags: Sequence[str]) -> set[Entity]:
    """(type, start, end) of the entities in IOB2 tags, in tokens, `end` exclusive.

    Strict: an entity begins with B and goes on over I of its type; an I that continues nothing belongs to no entity.
    """
    found, start = set(), None
    for position, tag in enumerate([*tags, "O"]):
        if start is not None and tag != "I-" + tags[start][2:]:
            found.add((tags[start][2:], start, position))
            start = None
        if tag.startswith("B-"):
            start = position
    return found


def partial_credit(predicted: Iterable[Entity], expected: Iterable[Entity]) -> float:
    """Predicted entities with the boundaries of an expected one, and half of those that overlap one, whatever the types.

    SemEval-2013's "partial" (Segura-Bedmar et al. 2013), in nervaluate's order: from the left, each predicted entity takes
    the first expected one that it overlaps and that is not taken.
    """
    left = sorted(expected, key=lambda entity: entity[1])
    credit = 0.0
    for _, start, end in sorted(predicted, key=lambda entity: entity[1]):
        taken = next((entity for entity in left if entity[1] < end and start < entity[2]), None)
        if taken is not None:
            credit += 1.0 if taken[1:] == (start, end) else 0.5
            left.remove(taken)
    return credit


def _of_both(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> list[tuple[set[Entity], set[Entity]]]:
    """Entities of prediction and reference of each segment, after a check of the tags."""
    for what, sequences in (("predicted", predictions), ("reference", references)):
        for row, tags in enumerate(sequences):
            if isinstance(tags, str) or not isinstance(tags, Sequence):
                raise UserError(f"row {row}: the {what} tags are {tags!r}; they must be a list of tags, one a token")
    for tag in sorted({tag for sequences in (predictions, references) for tags in sequences for tag in tags}, key=str):
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            raise UserError(f"tag {tag!r}: tags must be IOB2, that is O, B-TYPE or I-TYPE; convert the column ner_tags")
    for row, (predicted, expected) in enumerate(zip(predictions, references, strict=True)):
        if len(predicted) != len(expected):
            raise UserError(
                f"row {row}: {len(predicted)} predicted tags for {len(expected)} tokens; there must be one a token, "
                "with O for tokens that were cut off"
            )
    for what, sequences in (("references", references), ("predictions", predictions)):
        stray = [row for row, tags in enumerate(sequences) if _has_stray_inside(tags)]
        if stray:
            warn(
                f"entities: {len(stray)} {what}, such as row {stray[0]}, hold an I- that continues nothing; by IOB2 it is no "
                "entity, so that none is found there; convert the tags from IOB1 (`septet.tasks.ner.as_iob2`)"
            )
    if all(tag == "O" for tags in references for tag in tags):
        warn("entities: the references hold none at all, so that every score is 0 whatever is predicted")
    return [
        (entities(predicted), entities(expected)) for predicted, expected in zip(predictions, references, strict=True)
    ]


def _has_stray_inside(tags: Sequence[str]) -> bool:
    return any(tag.startswith("I-") and before[2:] != tag[2:] for before, tag in zip(["O", *tags], tags, strict=False))


def _statistics(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], languages: Sequence[str]
) -> np.ndarray:
    """(num_segments, 4): entities that are right, predicted, and in the reference; partial credit."""
    return np.array(
        [
            [len(predicted & expected), len(predicted), len(expected), partial_credit(predicted, expected)]
            for predicted, expected in _of_both(predictions, references)
        ],
        dtype=float,
    )


def entity_table(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """`class_table` by entity type, with "partial_f1" among the entities of that type; support in entities."""
    hits, partial, predicted, expected = Counter(), Counter(), Counter(), Counter()
    for both in _of_both(predictions, references):
        for kind in {entity[0] for found in both for entity in found}:
            mine, theirs = ({entity for entity in found if entity[0] == kind} for found in both)
            hits[kind] += len(mine & theirs)
            partial[kind] += partial_credit(mine, theirs)
            predicted[kind] += len(mine)
            expected[kind] += len(theirs)
    types = sorted(expected)
    columns = [
        np.array([counts[kind] for kind in types], dtype=float) for counts in (hits, predicted, expected, partial)
    ]
    partial_f1 = ratio(2 * columns[3], columns[1] + columns[2])
    return [{**row, "partial_f1": float(f1)} for row, f1 in zip(table(types, *columns[:3]), partial_f1, strict=True)]


def _metric(name: str, mode: str, aggregate: Callable[[np.ndarray], np.ndarray]) -> Metric:
    return Metric(name, _statistics, aggregate, fixed(f"mode:{mode}|scheme:IOB2|average:micro"))


METRICS = (
    _metric("entity_f1", "strict", lambda sums: ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])),
    _metric("entity_precision", "strict", lambda sums: ratio(sums[..., 0], sums[..., 1])),
    _metric("entity_recall", "strict", lambda sums: ratio(sums[..., 0], sums[..., 2])),
    _metric("entity_partial_f1", "partial", lambda sums: ratio(2 * sums[..., 3], sums[..., 1] + sums[..., 2])),
)
