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
    text = markdown(config, report_a, report_b, differences(report_a["task"], rows_a, rows_b, config.seed))
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
        for key in ("id", "lang", "reference"):
            if row_a.get(key) != row_b.get(key):
                here, there = (f"{row.get(key)!r:.80}" for row in (row_a, row_b))
                raise UserError(f"row {number}: {key} is {here} in {config.a} and {there} in {config.b}; {way_out}")
    if len(rows_a) != len(rows_b):
        raise UserError(f"{config.a} holds {len(rows_a):,} rows, {config.b} {len(rows_b):,}; {way_out}")


def differences(task: str, rows_a: Sequence[Mapping], rows_b: Sequence[Mapping], seed: int) -> list[dict[str, Any]]:
    """Of every metric of the task: {"metric", "a", "b", "value" (a - b), "low", "high", "p_value", "detectable", "verdict"}."""
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
        out[-1]["verdict"] = verdict
    return out


def markdown(config: CompareConfig, report_a: Mapping, report_b: Mapping, rows: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = [
        f"## {report_a['task']}: a against b",
        "",
        *(
            f"- {name}: `{path}`, {report['model'].get('num_parameters', 0):,} parameters, seed {report['seed']}"
            for name, path, report in (("a", config.a, report_a), ("b", config.b, report_b))
        ),
        "",
        "| metric | a | b | a − b [95 %] | p | verdict |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        name = f"**{row['metric']}**" if row["metric"] == report_a["primary_metric"] else row["metric"]
        shown = "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**row).replace("-", "−")
        lines.append(
            f"| {name} | {row['a']:.2f} | {row['b']:.2f} | {shown} | {row['p_value']:.3f} | {row['verdict']} |"
        )
    lines += [
        "",
        f"Paired bootstrap and approximate randomisation over the same rows; beyond noise is p < {SIGNIFICANCE} with zero "
        "outside the interval. It is the noise of the test set alone: another training seed adds its own.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_cli(run, CompareConfig)
