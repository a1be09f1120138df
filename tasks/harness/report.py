"""Renders evaluations: `report.md` beside each one, and one self-contained page (HTML and Markdown) over all of them.

Only `report.json` and `predictions.jsonl` are read, so a page can be made anywhere, without a model. The page loads
nothing: pictures lie in it as data URIs, there is no script, and everything that comes from data is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from septet.data.errors import UserError, run_cli
from septet.data.manifest import read_json
from septet.tasks.harness.examples import random_examples, shown_example, worst_examples

MAX_CONFUSION_LABELS = 30  # cells stay readable; the whole matrix is in report.json
MAX_CURVE_POINTS = 400  # about one a pixel of a picture's width

# The order of the page; tasks that are not named here follow by their directory's name.
_TASK_ORDER = ("translation", "classification", "qa", "summarization", "ner")
_METRIC_WORDS = {
    "bleu": "BLEU",
    "mcc": "MCC",
    "chrf": "chrF",
    "chrf++": "chrF++",
    "f1": "F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
_EMPTY: dict[str, Any] = {
    "synthetic": False,
    "languages": [],
    "seed": 0,
    "code_version": "",
    "decoding": {},
    "finetune": {},
    "baselines": {},
    "by_language": {},
    "by_length": [],
    "warnings": [],
    "classes": [],
    "confusion": None,
    "curves": {},
    "validation_score": [],
    "calibration": None,
    "folds": {},
    "showcase": [],
    "seconds": {},
    "joules": {},
    "peak_memory_gib": None,
    "hardware": "",
    "libraries": {},
}


@dataclass(frozen=True)
class ReportConfig:
    reports: Path = Path("reports")
    """the directory whose sub-directories hold a report.json each, as `septet evaluate` writes them"""
    run: Path | None = None
    """a pre-training run, whose metrics.jsonl gives the loss curves; left out if not given"""
    output: Path | None = None
    """where index.html and index.md go; the reports' own directory if not given"""


# -- reading ----------------------------------------------------------------------------------------------------------


def read_report(directory: Path) -> dict[str, Any]:
    """The content of `directory/report.json`, with empty values for the parts that a task does not have.

    Raises:
        UserError: the file is missing, is no JSON, or lacks what every evaluation writes.
    """
    path = Path(directory) / "report.json"
    report = read_json(path)
    way_out = "evaluate the task again"
    if not isinstance(report, dict):
        raise UserError(f"{path}: holds a {type(report).__name__}, an evaluation is a JSON object; {way_out}")
    if report.get("schema_version") != 1:
        raise UserError(f"{path}: has schema version {report.get('schema_version')!r}, 1 is read here; {way_out}")
    kinds = {"task": str, "title": str, "primary_metric": str, "model": dict, "data": dict, "scores": dict}
    for key, kind in kinds.items():
        if not isinstance(report.get(key), kind):
            raise UserError(f"{path}: {key} is {report.get(key)!r:.60}, must be a {kind.__name__}; {way_out}")
    report = {**_EMPTY, **report}
    if report["primary_metric"] not in report["scores"]:
        raise UserError(f"{path}: its primary metric {report['primary_metric']!r} is not among its scores; {way_out}")
    for scores in (report["scores"], *(baseline.get("scores", {}) for baseline in report["baselines"].values())):
        for metric, score in scores.items():
            if not isinstance(score, dict) or not isinstance(score.get("value"), int | float):
                raise UserError(f"{path}: score {metric!r} is {score!r:.60}, must hold a number `value`; {way_out}")
    return report


def read_predictions(directory: Path) -> list[dict[str, Any]]:
    """The rows of `directory/predictions.jsonl`.

    Raises:
        UserError: the file is missing or empty, or a row is damaged; the message names the line.
    """
    path = Path(directory) / "predictions.jsonl"
    rows = _read_jsonl(path, ("lang", "input", "reference", "prediction"))
    if not rows:
        raise UserError(f"{path}: holds no row, an evaluation has at least one; evaluate the task again")
    return rows


def _read_jsonl(path: Path, keys: Iterable[str]) -> list[dict[str, Any]]:
    rows = []
    try:
        with open(path, encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                row = json.loads(line)
                if missing := [key for key in keys if not isinstance(row, dict) or key not in row]:
                    raise UserError(f"{path}, line {number}: has no {missing[0]!r}; make the file again")
                rows.append(row)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run the stage that makes it") from error
    except ValueError as error:
        raise UserError(f"{path}, line {len(rows) + 1}: is not JSON ({error}); make the file again") from error
    return rows


# -- numbers in words -------------------------------------------------------------------------------------------------


def _number(value: float | None, sign: bool = False, error: bool = False) -> str:
    """One decimal; of an error, whose unit may be any, three digits."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{'+' if sign else ''}{'.3g' if error else '.1f'}}".replace("-", "−")


def _is_error(score: Mapping[str, Any]) -> bool:
    """Whether a score is an error (mae, rmse): better if lower, in the unit of what was predicted, not 0 to 100."""
    return not score.get("higher_is_better", True)


def score_text(score: Mapping[str, Any], sign: bool = False, error: bool = False) -> str:
    """`41.2 [39.0, 43.1]`: a value with its 95 % interval.

    Args:
        score: {"value", "low", "high"}; an error says so itself, the difference of two errors by `error`.
    """
    error = error or _is_error(score)
    value, low, high = (_number(score.get(key), sign, error) for key in ("value", "low", "high"))
    return value if low == "–" else f"{value} [{low}, {high}]"


def _p_value(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else _plain(value)


def _parameters(value: int | None) -> str:
    if not value:
        return "–"
    unit, name = (1e9, "B") if value >= 1e9 else (1e6, "M") if value >= 1e6 else (1e3, "k")
    return f"{value / unit:.3g} {name}"


def _metric(name: str) -> str:
    """`macro_f1` as people write it: `macro F1`."""
    return " ".join(_METRIC_WORDS.get(word, word) for word in name.split("_"))


def _minutes(report: Mapping[str, Any]) -> float:
    return sum(report["seconds"].values()) / 60


def _kilojoules(joules: float | None) -> str:
    return "not measured: no counter here" if joules is None else f"{joules / 1e3:,.1f}, the whole machine's"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def best_baseline(report: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The name and the content of the baseline with the best primary score; None if there is none."""
    metric = report["primary_metric"]
    known = [item for item in report["baselines"].items() if metric in item[1].get("scores", {})]
    best = min if _is_error(report["scores"][metric]) else max
    return best(known, key=lambda item: item[1]["scores"][metric]["value"], default=None)


def _summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table over all tasks, numbers already in words."""
    name, baseline = best_baseline(report) or ("", {"scores": {}})
    difference = baseline.get("difference") or {}
    score = report["scores"][report["primary_metric"]]
    low, high = difference.get("low"), difference.get("high")
    is_higher, is_lower = low is not None and low > 0, high is not None and high < 0
    is_better, is_worse = (is_lower, is_higher) if _is_error(score) else (is_higher, is_lower)
    baseline_value = baseline["scores"].get(report["primary_metric"], {}).get("value")
    return {
        "title": report["title"],
        "synthetic": report["synthetic"],
        "languages": ", ".join(report["languages"]),
        "metric": _metric(report["primary_metric"]),
        "score": score_text(score),
        "baseline": name,
        "baseline_score": _number(baseline_value, error=_is_error(score)),
        "difference": score_text(difference, sign=True, error=_is_error(score)),
        "verdict": "better" if is_better else "worse" if is_worse else "unclear",
        "p_value": _p_value(difference.get("p_value")),
        "rows": _count((report["data"].get("test") or {}).get("rows")),
        "minutes": f"{_minutes(report):.1f}",
    }


# -- Markdown ---------------------------------------------------------------------------------------------------------


def _md(text: Any) -> str:
    """Text from data inside Markdown: one line, no markup, no HTML."""
    text = html.escape(" ".join(_plain(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)


def _md_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose header is ours and whose cells are escaped."""
    lines = [header, ["---"] * len(header), *([_md(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def summary_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table over evaluations: primary score and interval, best baseline, difference, p-value, rows, minutes.

    Args:
        reports: contents of report.json files, as `read_report` gives them. Scores are on the 0-100 scale.
    """
    header = [
        "task",
        "languages",
        "metric",
        "score [95 %]",
        "best baseline",
        "difference [95 %]",
        "p",
        "test rows",
        "minutes",
    ]
    rows = []
    for report in reports:
        row = _summary({**_EMPTY, **report})
        title = row["title"] + (
            " (synthetic data)" if row["synthetic"] and "synthetic" not in row["title"].lower() else ""
        )
        baseline = f"{row['baseline']}: {row['baseline_score']}" if row["baseline"] else "–"
        rows.append((title, row["languages"], row["metric"], row["score"], baseline))
        rows[-1] += (row["difference"], row["p_value"], row["rows"], row["minutes"])
    return _md_table(header, rows)


def _showcase_md(items: Iterable[Mapping[str, Any]]) -> str:
    return _md_table(
        ["showcase", "input", "the model's answer"], [(i["title"], i["input"], i["prediction"]) for i in items]
    )


def _examples_md(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = []
    for example in map(shown_example, rows):
        cut = ", input truncated" if example["truncated"] else ""
        lines.append(f"- {_md(example['id'])} ({_md(example['language'])}): {example['note']}{cut}")
        lines += [
            f"  - {_md(name)}: {_md(text if len(text) <= 400 else text[:400] + ' …')}"
            for name, text in example["inputs"]
        ]
        for name, pieces in example["outputs"]:
            joined = "".join(f"[{text}: {entity}]" if entity else text for text, entity in pieces)
            lines.append(f"  - **{_md(name)}**: {_md(joined) or '(empty)'}")
    return "\n".join(lines) + "\n" if lines else "None: every prediction agrees with its reference.\n"


def _settings(report: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Provenance by heading: what was read, with what settings, in what time, on what."""
    model, data = report["model"], report["data"]
    groups: dict[str, list[tuple[str, str]]] = {
        "model": [
            ("path", _plain(model.get("path", "–"))),
            (
                "architecture",
                _plain(model.get("architecture", "–")) + (" with a LoRA adapter" if model.get("adapter") else ""),
            ),
            ("parameters", _count(model.get("num_parameters"))),
            ("fingerprint", _plain(model.get("fingerprint", "–"))),
            *(("ensemble with", _plain(member)) for member in model.get("ensemble", ())),
        ],
    }
    for split, part in data.items():
        groups[f"{split} data"] = [(key, _count(value)) for key, value in (part or {}).items()]
    groups["fine-tuning"] = [(key, _plain(value)) for key, value in report["finetune"].items()]
    if folds := report["folds"]:
        spread = f"{_number(folds['mean'])} ± {_number(folds['standard_deviation'])}"
        groups["folds"] = [("values", ", ".join(map(_number, folds["values"]))), ("mean ± standard deviation", spread)]
    groups["decoding"] = [(key, _plain(value)) for key, value in report["decoding"].items()]
    memory = report["peak_memory_gib"]
    groups["time and machine"] = [
        *((f"{stage} (seconds)", f"{seconds:,.1f}") for stage, seconds in report["seconds"].items()),
        *((f"{stage} (kilojoules)", _kilojoules(joules)) for stage, joules in report["joules"].items()),
        ("peak memory", "–" if memory is None else f"{memory:.2f} GiB"),
        ("hardware", _plain(report["hardware"]) or "–"),
        ("code", _plain(report["code_version"]) or "–"),
        ("seed", _plain(report["seed"])),
        *((library, _plain(version)) for library, version in report["libraries"].items()),
    ]
    return {name: entries for name, entries in groups.items() if entries}


def _left_out(report: Mapping[str, Any]) -> str:
    """One line about the test rows that were cut, and those that the model may have seen."""
    test = report["data"].get("test") or {}
    rows, truncated, in_train = (_count(test.get(key)) for key in ("rows", "truncated", "in_train"))
    line = f"{rows} test rows; truncated to the model's context: {truncated}; also in train, to the letter: {in_train}."
    if members := report["model"].get("ensemble"):
        line += f" The mean of {len(members) + 1} models' answers is scored (--ensemble)."
    if unfinished := test.get("unfinished"):
        line += f" {_count(unfinished)} answers stopped at the greatest number of new tokens, unfinished."
    if out_of_reach := test.get("out_of_reach"):
        line += f" No accepted answer to {_count(out_of_reach)} questions is a span that the recipe can give."
    if mended := test.get("mended"):
        line += f" {_count(mended)} rows were mended as the recipe says."
    if found := test.get("in_corpus"):
        line += (
            f" A piece of {_count(found['rows_found'])} stands in the pre-training corpus, of "
            f"{_count(found['rows_checked'])} that are long enough to tell."
        )
    _, baseline = best_baseline(report) or ("", {})
    error = _is_error(report["scores"][report["primary_metric"]])
    if detectable := (baseline.get("difference") or {}).get("detectable"):
        line += (
            f" A paired test on these rows finds a difference from the best baseline of {_number(detectable, error=error)} or "
            "more in four cases of five."
        )
    return " ".join([line, *(f"Warning: {message}." for message in report["warnings"])])


_SYNTHETIC = (
    "These texts are made up, generated from a seed. Scores on them show that the route works; "
    "they do not say how well a model reads real text."
)


def _classes_heading(report: Mapping[str, Any]) -> str:
    return "By class" if report["confusion"] else "By entity type"


def _languages_table(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    # A metric may apply to one language alone, such as CMRC's to Chinese.
    metrics = list(
        dict.fromkeys([*report["scores"], *(m for p in report["by_language"].values() for m in p["scores"])])
    )
    rows = []
    for language, part in report["by_language"].items():
        scores = [score_text(part["scores"][metric]) if metric in part["scores"] else "–" for metric in metrics]
        rows.append((language, _count(part["rows"]), *scores))
    return ["language", "rows", *map(_metric, metrics)], rows


def _classes_table(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    columns = ["precision", "recall", "f1", *(["partial_f1"] if "partial_f1" in report["classes"][0] else [])]
    rows = [
        (_plain(c["label"]), *(_number(c[key]) for key in columns), _count(c["support"])) for c in report["classes"]
    ]
    return ["class" if report["confusion"] else "entity", *map(_metric, columns), "support"], rows


def _lengths_table(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    metric = report["primary_metric"]
    rows = [
        (f"{q['low']:,}–{q['high']:,}", _count(q["rows"]), score_text(q["scores"][metric]))
        for q in report["by_length"]
        if metric in q["scores"]
    ]
    return ["characters", "rows", f"{_metric(metric)} [95 %]"], rows


def _calibration_line(calibration: Mapping[str, Any]) -> str:
    return (
        f"Expected calibration error {_number(calibration['ece'])} % (15 bins; Guo et al. 2017), Brier score "
        f"{calibration['brier']:.3f}: how far the stated probabilities are from how often the model is right."
    )


def _calibration_table(calibration: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    rows = [
        (f"{b['low']:.0f}–{b['high']:.0f}", _number(b["confidence"]), _number(b["accuracy"]), _count(b["rows"]))
        for b in calibration["bins"]
    ]
    return ["probability, %", "stated, %", "right, %", "rows"], rows


def task_markdown(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of `report.md`, from a report and its predictions."""
    parts = [f"# {_md(report['title'])}\n"]
    if report["synthetic"]:
        parts.append(f"**Synthetic data.** {_SYNTHETIC}\n")
    parts += [_left_out(report) + "\n", "## Scores\n"]
    scores = [(_metric(m), score_text(s), s.get("signature", "")) for m, s in report["scores"].items()]
    parts.append(_md_table(["metric", "score [95 %]", "signature"], scores))
    if report["baselines"]:
        metrics = list(report["scores"])
        lines = []
        for name, baseline in report["baselines"].items():
            difference, cells = baseline.get("difference") or {}, baseline.get("scores", {})
            values = [score_text(cells[m]) if m in cells else "–" for m in metrics]
            shown = score_text(difference, sign=True, error=_is_error(report["scores"][report["primary_metric"]]))
            lines.append((name, *values, shown, _p_value(difference.get("p_value"))))
        primary = _metric(report["primary_metric"])
        header = ["baseline", *map(_metric, metrics), f"model minus baseline ({primary})", "p"]
        parts += ["## Baselines\n", _md_table([_md(h) for h in header], lines)]
    if report["by_language"]:
        header, lines = _languages_table(report)
        parts += ["## By language\n", _md_table([_md(h) for h in header], lines)]
    if calibration := report["calibration"]:
        parts += [f"## Calibration\n\n{_calibration_line(calibration)}\n", _md_table(*_calibration_table(calibration))]
    if report["classes"]:
        header, lines = _classes_table(report)
        parts += [f"## {_classes_heading(report)}\n", _md_table([_md(h) for h in header], lines)]
    if report["by_length"]:
        header, lines = _lengths_table(report)
        parts += ["## By input length, in quarters of the rows\n", _md_table([_md(h) for h in header], lines)]
    if report["showcase"]:
        parts += ["## Showcase\n", _showcase_md(report["showcase"])]
    parts += ["## Worst examples\n", _examples_md(worst_examples(rows))]
    parts += ["## Random examples\n", _examples_md(random_examples(rows, report["seed"]))]
    parts.append("## Provenance\n")
    for name, entries in _settings(report).items():
        parts.append(_md_table([_md(name), ""], entries))
    return "\n".join(parts)


def write_task_report(directory: Path) -> Path:
    """Writes `directory/report.md` from `report.json` and `predictions.jsonl`, and returns its path.

    Raises:
        UserError: one of the two files is missing or damaged, or the directory cannot be written.
    """
    directory = Path(directory)
    path = directory / "report.md"
    _write_text(path, task_markdown(read_report(directory), read_predictions(directory)))
    return path


def _write_text(path: Path, text: str) -> None:
    """Writes beside the place and renames there, so that no reader sees half a file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another --output"
        ) from error


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

    settings = {
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
    with matplotlib.rc_context(settings):
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
    rows = _read_jsonl(directory / "metrics.jsonl", ("step",))
    loss = {row["step"]: row["loss"] for row in rows if row.get("loss") is not None}
    speeds = sorted(row["tokens_per_second"] for row in rows if row.get("tokens_per_second"))
    bits: dict[str, dict[int, float]] = {}
    for row in rows:
        for language, values in (row.get("validation") or {}).items():
            bits.setdefault(language, {})[row["step"]] = values["bits_per_byte"]
    if not loss:
        raise UserError(f"{directory / 'metrics.jsonl'}: holds no training loss; give --run the directory of a run")
    curves = {language: sorted(points.items()) for language, points in bits.items()}
    facts = [("steps", _count(max(loss))), ("last training loss", f"{loss[max(loss)]:.3f}")]
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
        groups.append({"metric": _metric(metric), "signature": score.get("signature", ""), "bars": bars})
        groups[-1]["error"] = _is_error(score)
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
        "text": _number(value, error=_is_error(score)),
        "interval": score_text(score),
        "width": f"{width:.2f}",
        "low": f"{left:.2f}",
        "span": f"{right - left:.2f}",
    }


def _confusion(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The confusion matrix as a heat map: a cell's shade is its share of the reference class."""
    if not report["confusion"]:
        return None
    labels, matrix = [_plain(label) for label in report["confusion"]["labels"]], report["confusion"]["matrix"]
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
        "summary": _summary(report),
        "bars": _bars(report),
        "picture": line_picture(curves, "loss") if curves else None,
        "score_picture": line_picture({"validation": report["validation_score"]}, _metric(report["primary_metric"]))
        if len(report["validation_score"]) > 1
        else None,
        "calibration": report["calibration"],
        "calibration_line": _calibration_line(report["calibration"]) if report["calibration"] else "",
        "languages": _languages_table(report) if len(report["by_language"]) > 1 else None,
        "classes": _classes_table(report) if report["classes"] else None,
        "classes_heading": _classes_heading(report),
        "confusion": _confusion(report),
        "lengths": _lengths_table(report) if report["by_length"] else None,
        "worst": [shown_example(row) for row in worst_examples(rows)],
        "random": [shown_example(row) for row in random_examples(rows, report["seed"])],
        "left_out": _left_out(report),
        "settings": _settings(report),
        "parameters": _parameters(report["model"].get("num_parameters")),
        "showcase": [{**item, "prediction": _plain(item["prediction"])} for item in report["showcase"]],
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
    path = Path(_plain(report["model"].get("path", "")))
    return path.parent.name or path.name if path.name == "final" else path.name


def _verdict(reports: Sequence[Mapping[str, Any]]) -> str:
    better = sum(_summary(report)["verdict"] == "better" for report in reports)
    errors = sorted({name for report in reports for name, score in report["scores"].items() if _is_error(score)})
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
            found[-1]["error"] = _is_error(first["scores"][metric])
    return found


def _seeds_table(reports: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, ...]]]:
    rows = []
    for g in seed_groups(reports):
        mean, sd, low, high = (_number(g[key], error=g["error"]) for key in ("mean", "sd", "low", "high"))
        values = ", ".join(_number(value, error=g["error"]) for value in g["values"])
        rows.append(
            (g["title"], _count(g["seeds"]), _metric(g["metric"]), f"{mean} ± {sd}", f"[{low}, {high}]", values)
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
        parts.append(f"**Synthetic data, where marked.** {_SYNTHETIC}\n")
    if showcase := [item for section in sections for item in section["showcase"]]:
        parts += ["## Showcase\n", "Whatever the model says, right or wrong.\n", _showcase_md(showcase)]
    if pretraining:
        parts += ["## Pre-training\n", _md_table(["", ""], pretraining["facts"])]
    header, lines = seeds
    if lines:
        parts += ["## Over seeds\n", _SEEDS + "\n", _md_table(header, lines)]
    parts.append("## Single reports\n")
    parts.append("\n".join(f"- [{_md(r['title'])}]({link})" for r, link in zip(reports, links, strict=True)) + "\n")
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
    environment.filters |= {"number": _number, "count": _count}
    page = environment.get_template("report.html.j2").render(
        sections=sections,
        pretraining=pretraining,
        verdict=_verdict(reports),
        synthetic=_SYNTHETIC if any(report["synthetic"] for report in reports) else "",
        heading=f"Evaluation of {models}" if ", " not in models else f"Evaluation of {len(reports)} fine-tuned models",
        models=models,
        all_synthetic=all(report["synthetic"] for report in reports),
        architectures=_distinct(_plain(report["model"].get("architecture", "")) for report in reports),
        parameters=_distinct(section["parameters"] for section in sections),
        languages=_distinct(language for report in reports for language in report["languages"]),
        hardware=_distinct(_plain(report["hardware"]) for report in reports),
        code=_distinct(_plain(report["code_version"]) for report in reports),
        minutes=f"{_minutes_of_all(reports):.1f}",
        seeds=seeds,
        seeds_line=_SEEDS,
    )
    links = [quote(Path(os.path.relpath(directory / "report.md", output)).as_posix()) for directory in directories]
    _write_text(output / "index.md", _index_markdown(sections, links, pretraining, seeds))
    _write_text(output / "index.html", page)
    print(f"report: {len(sections)} evaluations -> {output / 'index.html'}", flush=True)
    return output / "index.html"


if __name__ == "__main__":
    run_cli(run, ReportConfig)
