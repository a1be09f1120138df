"""Two evaluations of one task side by side: every metric, the difference with its interval, and a paired test.

septet compare reports/translation reports/translation-lora
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from septet.data.errors import UserError, run_cli
from septet.tasks.harness.report import read_predictions, read_report

SIGNIFICANCE = 0.05  # beyond noise: p below this and zero outside the 95 % interval


@dataclass(frozen=True)
class CompareConfig:
    a: Annotated[Path, tyro.conf.Positional]
    """a folder that `septet evaluate` wrote"""
    b: Annotated[Path, tyro.conf.Positional]
    """another one, of the same task and test set"""
    seed: int = 0
    """of the bootstrap and the test"""
    output: Path | None = None
    """a Markdown file for the table; it is printed in any case"""


def run(config: CompareConfig) -> str:
    """Prints the table and returns it.

    Raises:
        UserError: a report that cannot be read, other tasks, or other test rows; the message names the first difference.
    """
    report_a, report_b = read_report(config.a), read_report(config.b)
    if report_a["task"] != report_b["task"]:
        raise UserError(
            f"{config.a} is of the task {report_a['task']!r}, {config.b} of {report_b['task']!r}; scores of different "
            "tasks cannot be compared; give two reports of one task"
        )
    rows_a, rows_b = read_predictions(config.a), read_predictions(config.b)
    require_same_rows(config, rows_a, rows_b)
    languages = sorted({row["lang"] for row in rows_a})
    tables = {"": differences(report_a["task"], rows_a, rows_b, config.seed)}
    for language in languages if len(languages) > 1 else ():
        pairs = [(a, b) for a, b in zip(rows_a, rows_b, strict=True) if a["lang"] == language]
        tables[language] = differences(report_a["task"], *zip(*pairs, strict=True), config.seed)
    text = markdown(config, report_a, report_b, tables)
    if config.output is not None:
        try:
            config.output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{config.output}: cannot be written ({error.strerror}); give another --output") from error
    print(text, end="", flush=True)
    return text


def require_same_rows(config: CompareConfig, rows_a: Sequence[Mapping], rows_b: Sequence[Mapping]) -> None:
    """Raises a `UserError` unless both predicted the same rows in the same order."""
    way_out = "a paired test needs the same rows; evaluate both on one test set"
    for number, (row_a, row_b) in enumerate(zip(rows_a, rows_b, strict=False), start=1):
        for key in ("id", "lang", "input", "reference"):
            if row_a.get(key) != row_b.get(key):
                here, there = (f"{row.get(key)!r:.80}" for row in (row_a, row_b))
                raise UserError(f"row {number}: {key} is {here} in {config.a} and {there} in {config.b}; {way_out}")
    if len(rows_a) != len(rows_b):
        raise UserError(f"{config.a} holds {len(rows_a):,} rows, {config.b} {len(rows_b):,}; {way_out}")


def differences(task: str, rows_a: Sequence[Mapping], rows_b: Sequence[Mapping], seed: int) -> list[dict[str, Any]]:
    """Of every metric of the task: {"metric", "a", "b", "value" (a - b), "low", "high", "p_value", "detectable", "verdict",
    "higher_is_better"}."""
    from septet.tasks.harness import metrics
    from septet.tasks.harness.task import get_task

    family = get_task(task).family
    predictions_a, predictions_b = ([row["prediction"] for row in rows] for rows in (rows_a, rows_b))
    references, languages = [row["reference"] for row in rows_a], [row["lang"] for row in rows_a]
    scores_a = metrics.score(family, predictions_a, references, languages)
    scores_b = metrics.score(family, predictions_b, references, languages)
    out = []
    for name in scores_a:
        metric = metrics.get(family, name)
        found = metrics.difference(family, name, predictions_a, predictions_b, references, languages, seed)
        sure = found["p_value"] < SIGNIFICANCE and not found["low"] <= 0 <= found["high"]
        better = "a" if (found["value"] > 0) == metric.higher_is_better else "b"
        verdict = f"{better} is better" if sure else "within noise"
        out.append({"metric": name, "a": scores_a[name], "b": scores_b[name], **found})
        out[-1] |= {"verdict": verdict, "higher_is_better": metric.higher_is_better}
    return out


def markdown(
    config: CompareConfig, report_a: Mapping, report_b: Mapping, tables: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """The comparison as Markdown: over all rows (""), and by language where there are several."""
    lines = [
        f"## {report_a['task']}: a against b",
        "",
        *(
            f"- {name}: `{path}`, {report['model'].get('num_parameters', 0):,} parameters, seed {report['finetune'].get('seed', '–')}"
            for name, path, report in (("a", config.a, report_a), ("b", config.b, report_b))
        ),
    ]
    for language, rows in tables.items():
        lines += ["", f"### {language}", ""] if language else [""]
        lines += [
            "| metric | a | b | a − b [95 %] | p | shown from | verdict |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        for row in rows:
            name = f"**{row['metric']}**" if row["metric"] == report_a["primary_metric"] else row["metric"]
            digits = ".2f" if row["higher_is_better"] else ".3g"  # an error has a unit of its own
            a, b, detectable = (f"{row[key]:{digits}}" for key in ("a", "b", "detectable"))
            value, low, high = (f"{row[key]:+{digits}}".replace("-", "−") for key in ("value", "low", "high"))
            shown = f"{value} [{low}, {high}]"
            lines.append(f"| {name} | {a} | {b} | {shown} | {row['p_value']:.3f} | {detectable} | {row['verdict']} |")
    lines += [
        "",
        f"Paired bootstrap and approximate randomisation over the same rows; beyond noise is p < {SIGNIFICANCE} with zero "
        "outside the interval. A true difference of the size under *shown from* is found four times in five. It is the noise of "
        "the test set alone: another training seed adds its own.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_cli(run, CompareConfig)
