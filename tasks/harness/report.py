"""One evaluation for people to read: its numbers in words, its tables, and `report.md`.

Only `report.json` and `predictions.jsonl` are read, so a report can be made anywhere, without a model; everything that comes
from data is escaped. The page over several evaluations is `report_page`.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from septet.data.errors import UserError
from septet.data.manifest import read_json
from septet.tasks.harness.examples import random_examples, shown_example, worst_examples

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
    rows = read_jsonl(path, ("lang", "input", "reference", "prediction"))
    if not rows:
        raise UserError(f"{path}: holds no row, an evaluation has at least one; evaluate the task again")
    return rows


def read_jsonl(path: Path, keys: Iterable[str]) -> list[dict[str, Any]]:
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


def number_text(value: float | None, sign: bool = False, error: bool = False) -> str:
    """One decimal; of an error, whose unit may be any, three digits."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{'+' if sign else ''}{'.3g' if error else '.1f'}}".replace("-", "−")


def is_error(score: Mapping[str, Any]) -> bool:
    """Whether a score is an error (mae, rmse): better if lower, in the unit of what was predicted, not 0 to 100."""
    return not score.get("higher_is_better", True)


def score_text(score: Mapping[str, Any], sign: bool = False, error: bool = False) -> str:
    """`41.2 [39.0, 43.1]`: a value with its 95 % interval.

    Args:
        score: {"value", "low", "high"}; an error says so itself, the difference of two errors by `error`.
    """
    error = error or is_error(score)
    value, low, high = (number_text(score.get(key), sign, error) for key in ("value", "low", "high"))
    return value if low == "–" else f"{value} [{low}, {high}]"


def _p_value(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def count_text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else plain_text(value)


def parameters_text(value: int | None) -> str:
    if not value:
        return "–"
    unit, name = (1e9, "B") if value >= 1e9 else (1e6, "M") if value >= 1e6 else (1e3, "k")
    return f"{value / unit:.3g} {name}"


def metric_name(name: str) -> str:
    """`macro_f1` as people write it: `macro F1`."""
    return " ".join(_METRIC_WORDS.get(word, word) for word in name.split("_"))


def minutes(report: Mapping[str, Any]) -> float:
    return sum(report["seconds"].values()) / 60


def _kilojoules(joules: float | None) -> str:
    return "not measured: no counter here" if joules is None else f"{joules / 1e3:,.1f}, the whole machine's"


def plain_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def best_baseline(report: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The name and the content of the baseline with the best primary score; None if there is none."""
    metric = report["primary_metric"]
    known = [item for item in report["baselines"].items() if metric in item[1].get("scores", {})]
    best = min if is_error(report["scores"][metric]) else max
    return best(known, key=lambda item: item[1]["scores"][metric]["value"], default=None)


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table over all tasks, numbers already in words."""
    name, baseline = best_baseline(report) or ("", {"scores": {}})
    difference = baseline.get("difference") or {}
    score = report["scores"][report["primary_metric"]]
    low, high = difference.get("low"), difference.get("high")
    is_higher, is_lower = low is not None and low > 0, high is not None and high < 0
    is_better, is_worse = (is_lower, is_higher) if is_error(score) else (is_higher, is_lower)
    baseline_value = baseline["scores"].get(report["primary_metric"], {}).get("value")
    return {
        "title": report["title"],
        "synthetic": report["synthetic"],
        "languages": ", ".join(report["languages"]),
        "metric": metric_name(report["primary_metric"]),
        "score": score_text(score),
        "baseline": name,
        "baseline_score": number_text(baseline_value, error=is_error(score)),
        "difference": score_text(difference, sign=True, error=is_error(score)),
        "verdict": "better" if is_better else "worse" if is_worse else "unclear",
        "p_value": _p_value(difference.get("p_value")),
        "rows": count_text((report["data"].get("test") or {}).get("rows")),
        "minutes": f"{minutes(report):.1f}",
    }


# -- Markdown ---------------------------------------------------------------------------------------------------------


def md(text: Any) -> str:
    """Text from data inside Markdown: one line, no markup, no HTML."""
    text = html.escape(" ".join(plain_text(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)


def md_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose header is ours and whose cells are escaped."""
    lines = [header, ["---"] * len(header), *([md(cell) for cell in row] for row in rows)]
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
        row = summary({**_EMPTY, **report})
        title = row["title"] + (
            " (synthetic data)" if row["synthetic"] and "synthetic" not in row["title"].lower() else ""
        )
        baseline = f"{row['baseline']}: {row['baseline_score']}" if row["baseline"] else "–"
        rows.append((title, row["languages"], row["metric"], row["score"], baseline))
        rows[-1] += (row["difference"], row["p_value"], row["rows"], row["minutes"])
    return md_table(header, rows)


def showcase_md(items: Iterable[Mapping[str, Any]]) -> str:
    return md_table(
        ["showcase", "input", "the model's answer"], [(i["title"], i["input"], i["prediction"]) for i in items]
    )


def _examples_md(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = []
    for example in map(shown_example, rows):
        cut = ", input truncated" if example["truncated"] else ""
        lines.append(f"- {md(example['id'])} ({md(example['language'])}): {example['note']}{cut}")
        lines += [
            f"  - {md(name)}: {md(text if len(text) <= 400 else text[:400] + ' …')}" for name, text in example["inputs"]
        ]
        for name, pieces in example["outputs"]:
            joined = "".join(f"[{text}: {entity}]" if entity else text for text, entity in pieces)
            lines.append(f"  - **{md(name)}**: {md(joined) or '(empty)'}")
    return "\n".join(lines) + "\n" if lines else "None: every prediction agrees with its reference.\n"


def settings(report: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Provenance by heading: what was read, with what settings, in what time, on what."""
    model, data = report["model"], report["data"]
    groups: dict[str, list[tuple[str, str]]] = {
        "model": [
            ("path", plain_text(model.get("path", "–"))),
            (
                "architecture",
                plain_text(model.get("architecture", "–")) + (" with a LoRA adapter" if model.get("adapter") else ""),
            ),
            ("parameters", count_text(model.get("num_parameters"))),
            ("fingerprint", plain_text(model.get("fingerprint", "–"))),
            *(("ensemble with", plain_text(member)) for member in model.get("ensemble", ())),
        ],
    }
    for split, part in data.items():
        groups[f"{split} data"] = [(key, count_text(value)) for key, value in (part or {}).items()]
    groups["fine-tuning"] = [(key, plain_text(value)) for key, value in report["finetune"].items()]
    if folds := report["folds"]:
        spread = f"{number_text(folds['mean'])} ± {number_text(folds['standard_deviation'])}"
        groups["folds"] = [
            ("values", ", ".join(map(number_text, folds["values"]))),
            ("mean ± standard deviation", spread),
        ]
    groups["decoding"] = [(key, plain_text(value)) for key, value in report["decoding"].items()]
    memory = report["peak_memory_gib"]
    groups["time and machine"] = [
        *((f"{stage} (seconds)", f"{seconds:,.1f}") for stage, seconds in report["seconds"].items()),
        *((f"{stage} (kilojoules)", _kilojoules(joules)) for stage, joules in report["joules"].items()),
        ("peak memory", "–" if memory is None else f"{memory:.2f} GiB"),
        ("hardware", plain_text(report["hardware"]) or "–"),
        ("code", plain_text(report["code_version"]) or "–"),
        ("seed", plain_text(report["seed"])),
        *((library, plain_text(version)) for library, version in report["libraries"].items()),
    ]
    return {name: entries for name, entries in groups.items() if entries}


def left_out(report: Mapping[str, Any]) -> str:
    """One line about the test rows that were cut, and those that the model may have seen."""
    test = report["data"].get("test") or {}
    rows, truncated, in_train = (count_text(test.get(key)) for key in ("rows", "truncated", "in_train"))
    line = f"{rows} test rows; truncated to the model's context: {truncated}; also in train, to the letter: {in_train}."
    if members := report["model"].get("ensemble"):
        line += f" The mean of {len(members) + 1} models' answers is scored (--ensemble)."
    if unfinished := test.get("unfinished"):
        line += f" {count_text(unfinished)} answers stopped at the greatest number of new tokens, unfinished."
    if out_of_reach := test.get("out_of_reach"):
        line += f" No accepted answer to {count_text(out_of_reach)} questions is a span that the recipe can give."
    if mended := test.get("mended"):
        line += f" {count_text(mended)} rows were mended as the recipe says."
    if found := test.get("in_corpus"):
        line += (
            f" A piece of {count_text(found['rows_found'])} stands in the pre-training corpus, of "
            f"{count_text(found['rows_checked'])} that are long enough to tell."
        )
    _, baseline = best_baseline(report) or ("", {})
    error = is_error(report["scores"][report["primary_metric"]])
    if detectable := (baseline.get("difference") or {}).get("detectable"):
        line += (
            f" A paired test on these rows finds a difference from the best baseline of {number_text(detectable, error=error)} or "
            "more in four cases of five."
        )
    return " ".join([line, *(f"Warning: {message}." for message in report["warnings"])])


SYNTHETIC = (
    "These texts are made up, generated from a seed. Scores on them show that the route works; "
    "they do not say how well a model reads real text."
)


def classes_heading(report: Mapping[str, Any]) -> str:
    return "By class" if report["confusion"] else "By entity type"


def languages_table(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    # A metric may apply to one language alone, such as CMRC's to Chinese.
    metrics = list(
        dict.fromkeys([*report["scores"], *(m for p in report["by_language"].values() for m in p["scores"])])
    )
    rows = []
    for language, part in report["by_language"].items():
        scores = [score_text(part["scores"][metric]) if metric in part["scores"] else "–" for metric in metrics]
        rows.append((language, count_text(part["rows"]), *scores))
    return ["language", "rows", *map(metric_name, metrics)], rows


def classes_table(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    columns = ["precision", "recall", "f1", *(["partial_f1"] if "partial_f1" in report["classes"][0] else [])]
    rows = [
        (plain_text(c["label"]), *(number_text(c[key]) for key in columns), count_text(c["support"]))
        for c in report["classes"]
    ]
    return ["class" if report["confusion"] else "entity", *map(metric_name, columns), "support"], rows


def lengths_table(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    metric = report["primary_metric"]
    rows = [
        (f"{q['low']:,}–{q['high']:,}", count_text(q["rows"]), score_text(q["scores"][metric]))
        for q in report["by_length"]
        if metric in q["scores"]
    ]
    return ["characters", "rows", f"{metric_name(metric)} [95 %]"], rows


def calibration_line(calibration: Mapping[str, Any]) -> str:
    return (
        f"Expected calibration error {number_text(calibration['ece'])} % (15 bins; Guo et al. 2017), Brier score "
        f"{calibration['brier']:.3f}: how far the stated probabilities are from how often the model is right."
    )


def _calibration_table(calibration: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    rows = [
        (
            f"{b['low']:.0f}–{b['high']:.0f}",
            number_text(b["confidence"]),
            number_text(b["accuracy"]),
            count_text(b["rows"]),
        )
        for b in calibration["bins"]
    ]
    return ["probability, %", "stated, %", "right, %", "rows"], rows


def task_markdown(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of `report.md`, from a report and its predictions."""
    parts = [f"# {md(report['title'])}\n"]
    if report["synthetic"]:
        parts.append(f"**Synthetic data.** {SYNTHETIC}\n")
    parts += [md(left_out(report)) + "\n", "## Scores\n"]
    scores = [(metric_name(m), score_text(s), s.get("signature", "")) for m, s in report["scores"].items()]
    parts.append(md_table(["metric", "score [95 %]", "signature"], scores))
    if report["baselines"]:
        metrics = list(report["scores"])
        lines = []
        for name, baseline in report["baselines"].items():
            difference, cells = baseline.get("difference") or {}, baseline.get("scores", {})
            values = [score_text(cells[m]) if m in cells else "–" for m in metrics]
            shown = score_text(difference, sign=True, error=is_error(report["scores"][report["primary_metric"]]))
            lines.append((name, *values, shown, _p_value(difference.get("p_value"))))
        primary = metric_name(report["primary_metric"])
        header = ["baseline", *map(metric_name, metrics), f"model minus baseline ({primary})", "p"]
        parts += ["## Baselines\n", md_table([md(h) for h in header], lines)]
    if report["by_language"]:
        header, lines = languages_table(report)
        parts += ["## By language\n", md_table([md(h) for h in header], lines)]
    if calibration := report["calibration"]:
        parts += [f"## Calibration\n\n{calibration_line(calibration)}\n", md_table(*_calibration_table(calibration))]
    if report["classes"]:
        header, lines = classes_table(report)
        parts += [f"## {classes_heading(report)}\n", md_table([md(h) for h in header], lines)]
    if report["by_length"]:
        header, lines = lengths_table(report)
        parts += ["## By input length, in quarters of the rows\n", md_table([md(h) for h in header], lines)]
    if report["showcase"]:
        parts += ["## Showcase\n", showcase_md(report["showcase"])]
    parts += ["## Worst examples\n", _examples_md(worst_examples(rows))]
    parts += ["## Random examples\n", _examples_md(random_examples(rows, report["seed"]))]
    parts.append("## Provenance\n")
    for name, entries in settings(report).items():
        parts.append(md_table([md(name), ""], entries))
    return "\n".join(parts)


def write_task_report(directory: Path) -> Path:
    """Writes `directory/report.md` from `report.json` and `predictions.jsonl`, and returns its path.

    Raises:
        UserError: one of the two files is missing or damaged, or the directory cannot be written.
    """
    directory = Path(directory)
    path = directory / "report.md"
    write_text(path, task_markdown(read_report(directory), read_predictions(directory)))
    return path


def write_text(path: Path, text: str) -> None:
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
