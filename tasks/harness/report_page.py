"""The page over all evaluations below a folder, as HTML and Markdown.

    septet report --reports reports --run runs/pretrain

The page loads nothing: pictures lie in it as data URIs, there is no script, and everything that comes from data is escaped.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from septet.data.errors import UserError, run_cli
from septet.tasks.harness.examples import random_examples, shown_example, worst_examples
from septet.tasks.harness.report import (
    SYNTHETIC,
    calibration_line,
    classes_heading,
    classes_table,
    count_text,
    is_error,
    languages_table,
    left_out,
    lengths_table,
    md,
    md_table,
    metric_name,
    number_text,
    parameters_text,
    plain_text,
    read_jsonl,
    read_predictions,
    read_report,
    score_text,
    settings,
    showcase_md,
    summary,
    summary_table,
    write_text,
)

MAX_CONFUSION_LABELS = 30  # cells stay readable; the whole matrix is in report.json
MAX_CURVE_POINTS = 400  # about one a pixel of a picture's width

# The order of the page; tasks that are not named here follow by their directory's name.
_TASK_ORDER = ("translation", "classification", "qa", "summarization", "ner")


@dataclass(frozen=True)
class ReportConfig:
    reports: Path = Path("reports")
    """the directory whose sub-directories hold a report.json each, as `septet evaluate` writes them"""
    run: Path | None = None
    """a pre-training run, whose metrics.jsonl gives the loss curves; left out if not given"""
    output: Path | None = None
    """where index.html and index.md go; the reports' own directory if not given"""


# -- pictures ---------------------------------------------------------------------------------------------------------

# Text, grid and six lines, which stay apart for colour-blind readers (after Okabe and Ito 2008); the page's legend
# has the same six.
_LIGHT = ("#4a4f57", "#d9dce1", ("#1f5f99", "#c8641b", "#2b8a6e", "#a3518c", "#8a7a12", "#5b6470"))
_DARK = ("#b4bac4", "#3a4049", ("#7db4ea", "#eda05f", "#63c7a6", "#d996c4", "#d6c65c", "#a4adb8"))


def line_picture(curves: Mapping[str, Sequence[Sequence[float]]], y_label: str) -> dict[str, Any]:
    """Curves {name: [[step, value], ...]} as {"light", "dark": an SVG in a data URI, "names", "y_label"}.

    Long curves are drawn as means over equal stretches of steps. The names are left to the page's own legend, whose
    fonts know every script.
    """
    light, dark = (_line_picture(list(curves.values()), y_label, *colors) for colors in (_LIGHT, _DARK))
    return {"light": light, "dark": dark, "names": list(curves), "y_label": y_label}


def _line_picture(curves: Sequence[Any], y_label: str, text: str, grid: str, colors: Sequence[str]) -> str:
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": "septet",
        "axes.labelcolor": text,
        "axes.edgecolor": grid,
        "xtick.color": text,
        "ytick.color": text,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for curve, color in zip(curves, itertools.cycle(colors), strict=False):
            points = np.array([point for point in curve if None not in point], dtype=float).reshape(-1, 2)
            if len(points) > MAX_CURVE_POINTS:
                points = np.stack([part.mean(axis=0) for part in np.array_split(points, MAX_CURVE_POINTS)])
            few = {"marker": "o", "markersize": 3.5} if len(points) <= 20 else {}
            axes.plot(*points.T, color=color, linewidth=1.6, **few)
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        axes.grid(axis="y", color=grid, linewidth=0.7)
        axes.tick_params(length=0)
        axes.set_axisbelow(True)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pretraining(run: Path) -> dict[str, Any]:
    """Curves and closing numbers of a pre-training run; where a resumed run logged a step twice, the later one counts."""
    directory = next((d for d in (run, run.parent) if (d / "metrics.jsonl").is_file()), run)
    rows = read_jsonl(directory / "metrics.jsonl", ("step",))
    loss = {row["step"]: row["loss"] for row in rows if row.get("loss") is not None}
    speeds = sorted(row["tokens_per_second"] for row in rows if row.get("tokens_per_second"))
    bits: dict[str, dict[int, float]] = {}
    for row in rows:
        for language, values in (row.get("validation") or {}).items():
            bits.setdefault(language, {})[row["step"]] = values["bits_per_byte"]
    if not loss:
        raise UserError(f"{directory / 'metrics.jsonl'}: holds no training loss; give --run the directory of a run")
    curves = {language: sorted(points.items()) for language, points in bits.items()}
    facts = [("steps", count_text(max(loss))), ("last training loss", f"{loss[max(loss)]:.3f}")]
    facts += [(f"bits per byte, {language}", f"{curve[-1][1]:.3f}") for language, curve in curves.items()]
    facts += [("tokens per second (median)", f"{speeds[len(speeds) // 2]:,.0f}")] if speeds else []
    pictures = [("Training loss", line_picture({"training": sorted(loss.items())}, "loss (nats per token)"))]
    if curves:
        pictures.append(("Held-out text, by language", line_picture(curves, "bits per byte")))
    return {"path": str(directory), "facts": facts, "pictures": pictures}


# -- the page ---------------------------------------------------------------------------------------------------------


def _bars(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores and baselines of every metric as the page draws them: percentages on one scale from 0, each error on its own."""
    groups = []
    for metric, score in report["scores"].items():
        bars = [("model", score)]
        bars += [
            (name, b["scores"][metric]) for name, b in report["baselines"].items() if metric in b.get("scores", {})
        ]
        groups.append({"metric": metric_name(metric), "signature": score.get("signature", ""), "bars": bars})
        groups[-1]["error"] = is_error(score)
    percentages = [group for group in groups if not group["error"]]
    shared = next((limit for limit in (10, 25, 50, 100) if _highest(percentages) <= limit), _highest(percentages))
    for group in groups:
        limit = _highest([group]) if group["error"] else shared
        group["axis"] = (f"{limit / 2:.3g}", f"{limit:.3g}") if group["error"] or group is percentages[-1] else None
        group["bars"] = [_bar(name, score, limit) for name, score in group["bars"]]
    return groups


def _highest(groups: Iterable[Mapping[str, Any]]) -> float:
    return max((s.get("high") or s["value"] for group in groups for _, s in group["bars"]), default=0.0)


def _bar(name: str, score: Mapping[str, Any], limit: float) -> dict[str, Any]:
    value = score["value"]
    low, high = (value if score.get(key) is None else score[key] for key in ("low", "high"))
    width, left, right = (
        min(max(100 * number / limit, 0.0), 100.0) if limit > 0 else 0.0 for number in (value, low, high)
    )
    return {
        "name": name,
        "text": number_text(value, error=is_error(score)),
        "interval": score_text(score),
        "width": f"{width:.2f}",
        "low": f"{left:.2f}",
        "span": f"{right - left:.2f}",
    }


def _confusion(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The confusion matrix as a heat map: a cell's shade is its share of the reference class."""
    if not report["confusion"]:
        return None
    labels, matrix = [plain_text(label) for label in report["confusion"]["labels"]], report["confusion"]["matrix"]
    frequent = sorted(range(len(labels)), key=lambda i: -sum(matrix[i]))[:MAX_CONFUSION_LABELS]
    kept = sorted(frequent)
    rows = []
    for number, i in enumerate(kept, start=1):
        total = sum(matrix[i]) or 1
        cells = [{"count": matrix[i][j], "shade": f"{matrix[i][j] / total:.3f}", "hit": i == j} for j in kept]
        rows.append({"number": number, "label": labels[i], "cells": cells})
    short = len(kept) <= 6 and all(len(labels[i]) <= 12 for i in kept)
    return {"rows": rows, "short": short, "left_out": len(labels) - len(kept)}


def _section(directory: Path) -> dict[str, Any]:
    """Everything that the page shows of one evaluation."""
    report, rows = read_report(directory), read_predictions(directory)
    curves = {name.replace("_", " "): curve for name, curve in report["curves"].items() if curve}
    return {
        "report": report,
        "summary": summary(report),
        "bars": _bars(report),
        "picture": line_picture(curves, "loss") if curves else None,
        "score_picture": line_picture({"validation": report["validation_score"]}, metric_name(report["primary_metric"]))
        if len(report["validation_score"]) > 1
        else None,
        "calibration": report["calibration"],
        "calibration_line": calibration_line(report["calibration"]) if report["calibration"] else "",
        "languages": languages_table(report) if len(report["by_language"]) > 1 else None,
        "classes": classes_table(report) if report["classes"] else None,
        "classes_heading": classes_heading(report),
        "confusion": _confusion(report),
        "lengths": lengths_table(report) if report["by_length"] else None,
        "worst": [shown_example(row) for row in worst_examples(rows)],
        "random": [shown_example(row) for row in random_examples(rows, report["seed"])],
        "left_out": left_out(report),
        "settings": settings(report),
        "parameters": parameters_text(report["model"].get("num_parameters")),
        "showcase": [{**item, "prediction": plain_text(item["prediction"])} for item in report["showcase"]],
    }


def _order(directory: Path) -> tuple[int, str]:
    task = read_report(directory)["task"]
    return (_TASK_ORDER.index(task) if task in _TASK_ORDER else len(_TASK_ORDER), directory.name)


def _distinct_slugs(names: Sequence[str]) -> list[str]:
    """Anchors of the page: the names without what an anchor cannot hold, numbered where that makes two alike."""
    slugs: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w-]+", "-", name)
        numbered = (plain if n == 1 else f"{plain}-{n}" for n in itertools.count(1))
        slugs.append(next(slug for slug in numbered if slug not in (*slugs, "showcase", "pretraining", "seeds")))
    return slugs


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value)) or "–"


def _model_name(report: Mapping[str, Any]) -> str:
    """The last part of the model's path that says something: `runs/demo/final` is `demo`."""
    path = Path(plain_text(report["model"].get("path", "")))
    return path.parent.name or path.name if path.name == "final" else path.name


def _verdict(reports: Sequence[Mapping[str, Any]]) -> str:
    better = sum(summary(report)["verdict"] == "better" for report in reports)
    errors = sorted({name for report in reports for name, score in report["scores"].items() if is_error(score)})
    return (
        f"In {better} of {len(reports)} evaluations the model is better than its best baseline: there the 95 % interval of "
        "the difference lies on the better side of zero. Scores run from 0 to 100"
        + (f", {' and '.join(errors)} in the unit of what is predicted, lower being better." if errors else ".")
    )


def _minutes_of_all(reports: Sequence[Mapping[str, Any]]) -> float:
    """Minutes of all evaluations; the fine-tuning of a model that several of them score counts once."""
    finetuned = {r["model"].get("fingerprint", n): r["seconds"].get("finetune", 0.0) for n, r in enumerate(reports)}
    others = sum(seconds for r in reports for stage, seconds in r["seconds"].items() if stage != "finetune")
    return (sum(finetuned.values()) + others) / 60


def seed_groups(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations that differ in the seed of their fine-tuning alone, as one system each.

    Returns:
        {"title", "metric", "values" (of each seed), and what `statistics.over_seeds` gives of them}.
    """
    from septet.tasks.harness.statistics import over_seeds

    groups: dict[str, dict[Any, Mapping[str, Any]]] = {}
    for report in reports:
        settings = {k: v for k, v in report["finetune"].items() if k not in ("seed", "output", "resume")}
        test = (report["data"].get("test") or {}).get("sha256")
        if test and "seed" in report["finetune"] and not report["folds"] and not report["model"].get("ensemble"):
            key = json.dumps([report["task"], test, settings], sort_keys=True, default=str)
            groups.setdefault(key, {})[report["finetune"]["seed"]] = report
    found = []
    for group in groups.values():
        if len(group) > 1:
            first, metric = next(iter(group.values())), next(iter(group.values()))["primary_metric"]
            values = [group[seed]["scores"][metric]["value"] for seed in sorted(group)]
            found.append({"title": first["title"], "metric": metric, "values": values, **over_seeds(values)})
            found[-1]["error"] = is_error(first["scores"][metric])
    return found


def _seeds_table(reports: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, ...]]]:
    rows = []
    for g in seed_groups(reports):
        mean, sd, low, high = (number_text(g[key], error=g["error"]) for key in ("mean", "sd", "low", "high"))
        values = ", ".join(number_text(value, error=g["error"]) for value in g["values"])
        rows.append(
            (g["title"], count_text(g["seeds"]), metric_name(g["metric"]), f"{mean} ± {sd}", f"[{low}, {high}]", values)
        )
    return ["task", "seeds", "metric", "mean ± standard deviation", "mean, 95 %", "each seed"], rows


_SEEDS = (
    "Runs that differ in the seed of their fine-tuning alone. The interval is that of the mean over seeds (Student's t): it "
    "says how training varies; how the test set does is in each score's own interval."
)


def _index_markdown(
    sections: Sequence[Mapping[str, Any]],
    links: Sequence[str],
    pretraining: Mapping[str, Any] | None,
    seeds: tuple[list[str], list[tuple[str, ...]]],
) -> str:
    reports = [section["report"] for section in sections]
    parts = ["# Evaluation\n", summary_table(reports), _verdict(reports) + "\n"]
    if any(report["synthetic"] for report in reports):
        parts.append(f"**Synthetic data, where marked.** {SYNTHETIC}\n")
    if showcase := [item for section in sections for item in section["showcase"]]:
        parts += ["## Showcase\n", "Whatever the model says, right or wrong.\n", showcase_md(showcase)]
    if pretraining:
        parts += ["## Pre-training\n", md_table(["", ""], pretraining["facts"])]
    header, lines = seeds
    if lines:
        parts += ["## Over seeds\n", _SEEDS + "\n", md_table(header, lines)]
    parts.append("## Single reports\n")
    parts.append("\n".join(f"- [{md(r['title'])}]({link})" for r, link in zip(reports, links, strict=True)) + "\n")
    return "\n".join(parts)


def run(config: ReportConfig) -> Path:
    """Writes index.html and index.md over all evaluations below `config.reports`; returns the path of index.html.

    Raises:
        UserError: there is no evaluation, one of them is damaged, or the page cannot be written.
    """
    import jinja2

    directories = [path.parent for path in config.reports.glob("*/report.json")]
    if not directories:
        raise UserError(
            f"{config.reports}: holds no */report.json; run `septet evaluate TASK` first, or give --reports"
        )
    output = config.output or config.reports
    directories.sort(key=_order)
    slugs = _distinct_slugs([directory.name for directory in directories])
    sections = [{**_section(directory), "slug": slug} for directory, slug in zip(directories, slugs, strict=True)]
    reports = [section["report"] for section in sections]
    seeds = _seeds_table(reports)
    titles = Counter(report["title"] for report in reports)
    for section, directory in zip(sections, directories, strict=True):
        if titles[section["report"]["title"]] > 1:  # alike, they are told apart by their folders
            section["report"]["title"] += f" ({directory.name})"
            section["summary"]["title"] = section["report"]["title"]
    pretraining = _pretraining(config.run) if config.run else None
    models = _distinct(_model_name(report) for report in reports)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number_text, "count": count_text}
    page = environment.get_template("report_page.html.j2").render(
        sections=sections,
        pretraining=pretraining,
        verdict=_verdict(reports),
        synthetic=SYNTHETIC if any(report["synthetic"] for report in reports) else "",
        heading=f"Evaluation of {models}" if ", " not in models else f"Evaluation of {len(reports)} fine-tuned models",
        models=models,
        all_synthetic=all(report["synthetic"] for report in reports),
        architectures=_distinct(plain_text(report["model"].get("architecture", "")) for report in reports),
        parameters=_distinct(section["parameters"] for section in sections),
        languages=_distinct(language for report in reports for language in report["languages"]),
        hardware=_distinct(plain_text(report["hardware"]) for report in reports),
        code=_distinct(plain_text(report["code_version"]) for report in reports),
        minutes=f"{_minutes_of_all(reports):.1f}",
        seeds=seeds,
        seeds_line=_SEEDS,
    )
    links = [quote(Path(os.path.relpath(directory / "report.md", output)).as_posix()) for directory in directories]
    write_text(output / "index.md", _index_markdown(sections, links, pretraining, seeds))
    write_text(output / "index.html", page)
    print(f"report: {len(sections)} evaluations -> {output / 'index.html'}", flush=True)
    return output / "index.html"


if __name__ == "__main__":
    run_cli(run, ReportConfig)
