"""Two reports of one task side by side, with a paired test for every metric.

septet compare reports/classification reports/classification-lora
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from septet.data.errors import UserError, run_cli


@dataclass(frozen=True)
class CompareConfig:
    a: Annotated[Path, tyro.conf.Positional]
    """a folder that `septet evaluate` wrote"""
    b: Annotated[Path, tyro.conf.Positional]
    """another of the same task and test set"""
    seed: int = 0
    """of the bootstrap and the randomisation"""
    output: Path | None = None
    """also write the table here, as Markdown"""


def run(config: CompareConfig) -> str:
    """Prints and returns the table, in Markdown.

    Raises:
        UserError: reports of different tasks, or predictions for different rows or references.
    """
    from septet.tasks.harness.metrics import FAMILIES, difference
    from septet.tasks.harness.report import read_predictions, read_report

    reports = [read_report(place) for place in (config.a, config.b)]
    rows_a, rows_b = read_predictions(config.a), read_predictions(config.b)
    task = reports[0]["task"]
    if task != reports[1]["task"]:
        raise UserError(f"{config.a} is of {task}, {config.b} of {reports[1]['task']}; only one task can be compared")
    if len(rows_a) != len(rows_b):
        raise UserError(f"{config.a} has {len(rows_a)} rows, {config.b} {len(rows_b)}; evaluate both on the same set")
    for one, other in zip(rows_a, rows_b, strict=True):
        if (one["id"], one["reference"]) != (other["id"], other["reference"]):
            raise UserError(f"row {one['id']!r} of {config.a} is row {other['id']!r} of {config.b}, or has another reference; evaluate both on the same set")  # fmt: skip
    references, languages = [row["reference"] for row in rows_a], [row["lang"] for row in rows_a]
    predictions = [row["prediction"] for row in rows_a], [row["prediction"] for row in rows_b]
    lines = [
        f"{reports[0]['title']}: A = {config.a}, B = {config.b}, {len(rows_a):,} rows",
        "",
        "| metric | A | B | A - B | 95 % interval | p | |",
        "|---|---|---|---|---|---|---|",
    ]
    for metric in FAMILIES[task]:
        found = difference(task, metric.name, *predictions, references, languages, seed=config.seed)
        a, b = (report["scores"][metric.name]["value"] for report in reports)
        verdict = "beyond chance" if found["p_value"] < 0.05 else "could be chance"
        lines.append(
            f"| {metric.name} | {a:.2f} | {b:.2f} | {found['value']:+.2f} | {found['low']:+.2f} to {found['high']:+.2f} "
            f"| {found['p_value']:.3f} | {verdict} |"
        )
    table = "\n".join(lines)
    print(table, flush=True)
    if config.output:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(table + "\n", encoding="utf-8")
    return table


if __name__ == "__main__":
    run_cli(run, CompareConfig)
