"""Single examples of an evaluation: how wrong each is, the worst, random ones, and how they are shown."""

from __future__ import annotations

import bisect
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

NUM_EXAMPLES = 5  # the worst and as many random ones: what one reads at a sitting
NUM_BUCKETS = 4  # quartiles of the input length


def badness(row: Mapping[str, Any]) -> tuple[float, str]:
    """How wrong one prediction is, without a model: 0 is right, more is worse; and the same in words.

    The measure follows from the row's shape, so that a new task needs no entry here. Tags: the number of wrong ones.
    A label (with `probabilities`): the probability given to a wrong one; several: how many are missing or too many.
    Numbers: the distance. Answers (a list of accepted ones): 0 for an exact match, else 1 - F1 and a hair more, since the
    right words in another order are wrong. Any other text: 100 - sentence chrF (Popović 2015, as sacreBLEU computes it).
    """
    reference, prediction = row["reference"], row["prediction"]
    match _kind(row):
        case "tags":
            wrong = sum(a != b for a, b in itertools.zip_longest(reference, prediction))
            return float(wrong), f"{wrong} of {len(reference)} tags wrong"
        case "label":
            probability = float(row["probabilities"].get(prediction, 1.0))
            if reference == prediction:
                return 0.0, f"right, probability {probability:.2f}"
            return probability, f"wrong, with probability {probability:.2f}"
        case "labels":
            wrong = len({*reference} ^ {*prediction})
            return float(wrong), f"{wrong} labels missing or too many"
        case "number":
            return abs(prediction - reference), f"{prediction - reference:+.3g}"
        case "answer":
            match, f1 = _answer_scores(prediction, reference, row["lang"])
            return (0.0, "right") if match else (max(1 - f1, 1e-9), f"no exact match, F1 {100 * f1:.0f}")
        case _:
            chrf = _chrf().sentence_score(prediction, [reference]).score
            return 100 - chrf, f"chrF {chrf:.1f}"


def _kind(row: Mapping[str, Any]) -> str:
    if isinstance(row["prediction"], list):
        return "labels" if "probabilities" in row else "tags"
    if "probabilities" in row:
        return "label"
    if isinstance(row["prediction"], int | float):
        return "number"
    return "answer" if isinstance(row["reference"], list) else "text"


def _answer_scores(prediction: str, answers: Sequence[str], language: str) -> tuple[bool, float]:
    from septet.tasks.harness.metrics.qa import answer_scores  # it imports numpy

    return answer_scores(prediction, answers, language)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def worst_examples(rows: Sequence[Mapping[str, Any]], num_examples: int = NUM_EXAMPLES) -> list[Mapping[str, Any]]:
    """The worst wrong predictions, the worst first; fewer where fewer are wrong. Ties keep the file's order."""
    judged = [(badness(row)[0], row) for row in rows]
    wrong = sorted((pair for pair in judged if pair[0] > 0), key=lambda pair: -pair[0])
    return [row for _, row in wrong[:num_examples]]


def random_examples(
    rows: Sequence[Mapping[str, Any]], seed: int, num_examples: int = NUM_EXAMPLES
) -> list[Mapping[str, Any]]:
    """Examples drawn without looking at them: the same ones for the same seed."""
    return random.Random(seed).sample(list(rows), min(num_examples, len(rows)))


def length_quarters(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows in quarters by the length of their input in characters; fewer where many lengths are alike.

    Returns:
        {"low", "high" (characters, inclusive), "members" (row numbers)}, the shortest first.
    """
    lengths = [sum(_characters(value) for value in row["input"].values()) for row in rows]
    ordered = sorted(lengths)
    edges = sorted({ordered[len(ordered) * part // NUM_BUCKETS] for part in range(1, NUM_BUCKETS)} - {ordered[0]})
    members: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        members.setdefault(bisect.bisect_right(edges, length), []).append(index)
    return [
        {"low": min(lengths[i] for i in part), "high": max(lengths[i] for i in part), "members": part}
        for _, part in sorted(members.items())
    ]


def _characters(value: Any) -> int:
    return sum(map(_characters, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 0


def segments(value: Any, tokens: Sequence[str] | None = None, language: str = "") -> list[tuple[str, str | None]]:
    """A reference or prediction as pieces (text, entity type or None); joined, the texts are what is shown."""
    if tokens is None or not isinstance(value, list):
        if isinstance(value, list):
            value = " | ".join(map(str, value)) or "(none)"
        return [(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), None)]
    space, pieces = "" if language == "zh" else " ", []
    tags = itertools.chain(value, itertools.repeat("O"))
    previous = None
    for token, tag in zip(tokens, tags, strict=False):
        entity = tag[2:] if tag[:2] in ("B-", "I-") else None
        if pieces and entity == previous and not tag.startswith("B-"):
            pieces[-1] = (pieces[-1][0] + space + token, entity)
        else:
            pieces += [(space, None)] if pieces and space else []
            pieces.append((token, entity))
        previous = entity
    return pieces


def shown_example(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the pages show it."""
    language, tokens = row["lang"], row["input"].get("tokens")
    outputs = [("reference", row["reference"]), ("model", row["prediction"]), *row.get("baselines", {}).items()]
    return {
        "id": row.get("id", ""),
        "language": language,
        "note": badness(row)[1],
        "truncated": row.get("truncated", False),
        "inputs": [(name, text) for name, text in row["input"].items() if isinstance(text, str)],
        "outputs": [(name, segments(value, tokens, language)) for name, value in outputs],
    }
