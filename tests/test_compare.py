"""Two evaluations side by side: planted differences are found, chance is called noise, other rows are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from septet.data.errors import UserError
from septet.tasks.harness.compare import CompareConfig, run
from septet.tasks.harness.metrics import difference


def evaluation(folder: Path, correct: np.ndarray, task: str = "classification", first_id: int = 0) -> Path:
    """An evaluation of a two-class task that is right where `correct` (n,) says so."""
    folder.mkdir()
    rows = []
    for number, right in enumerate(correct):
        label = "sport" if number % 2 else "science"
        wrong = "science" if number % 2 else "sport"
        rows.append(
            {"id": f"row-{first_id + number}", "lang": "en", "input": {"text": f"text {number}"}, "reference": label}
        )
        rows[-1] |= {"prediction": label if right else wrong, "baselines": {}, "truncated": False}
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = {
        "schema_version": 1, "task": task, "title": "Topics", "primary_metric": "accuracy", "seed": 3,
        "model": {"num_parameters": 1234}, "data": {}, "scores": {"accuracy": {"value": 100 * float(np.mean(correct))}},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def cells(text: str, metric: str) -> list[str]:
    line = next(line for line in text.split("\n") if line.strip("| *").startswith(metric))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_planted_difference_is_beyond_noise(tmp_path: Path, capsys) -> None:
    good, bad = np.arange(200) % 10 != 0, np.arange(200) % 10 > 3  # 90 and 60 of 100
    a, b = evaluation(tmp_path / "a", good), evaluation(tmp_path / "b", bad)
    text = run(CompareConfig(a, b, output=tmp_path / "out.md"))
    assert capsys.readouterr().out == text == (tmp_path / "out.md").read_text()
    name, value_a, value_b, shown, p_value, detectable, verdict = cells(text, "accuracy")
    assert (name, value_a, value_b, verdict) == ("**accuracy**", "90.00", "60.00", "a is better")
    labels = ["sport" if n % 2 else "science" for n in range(200)]
    others = ["science" if n % 2 else "sport" for n in range(200)]
    predictions = [np.where(right, labels, others).tolist() for right in (good, bad)]
    found = difference("classification", "accuracy", *predictions, labels, "en", seed=0)
    assert shown == "+30.00 [{low:+.2f}, {high:+.2f}]".format(**found) and float(p_value) == round(found["p_value"], 3)
    assert float(detectable) == round(found["detectable"], 2) > 0 and "### " not in text
    assert {line.split("|")[1].strip(" *") for line in text.split("\n") if line.startswith("|")} >= {
        "macro_f1",
        "weighted_f1",
    }
    assert cells(run(CompareConfig(b, a)), "accuracy")[3].startswith("−30.00 [−")
    assert cells(run(CompareConfig(b, a)), "accuracy")[6] == "b is better"


def test_several_languages_get_a_table_each(tmp_path: Path) -> None:
    """System a is right in English alone, b in French alone."""
    french = np.arange(120) % 3 == 0
    a, b = evaluation(tmp_path / "a", ~french), evaluation(tmp_path / "b", french)
    for folder in (a, b):
        lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        lines = [{**line, "lang": "fr" if is_french else "en"} for line, is_french in zip(lines, french, strict=True)]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole, english, french_part = run(CompareConfig(a, b)).split("### ")
    assert (english[:2], french_part[:2]) == ("en", "fr")
    assert [cells(part, "accuracy")[1:3] for part in (whole, english, french_part)] == [
        ["66.67", "33.33"], ["100.00", "0.00"], ["0.00", "100.00"],
    ]  # fmt: skip
    assert cells(french_part, "accuracy")[-1] == "b is better"


def test_of_errors_the_lower_one_is_better(tmp_path: Path) -> None:
    folders = []
    for name, error in (("near", 0.01), ("far", 0.3)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {
                "id": str(n),
                "lang": "en",
                "input": {"text": "x"},
                "reference": n / 60,
                "prediction": n / 60 + error * (-1) ** n,
            }
            for n in range(60)
        ]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = {"schema_version": 1, "task": "regression", "title": "Numbers", "primary_metric": "rmse", "model": {}}
        report |= {"data": {}, "scores": {"rmse": {"value": error}}}
        (folder / "report.json").write_text(json.dumps(report))
        folders.append(folder)
    text = run(CompareConfig(*folders))
    assert cells(text, "rmse")[1:3] == ["0.01", "0.3"] and cells(text, "rmse")[3].startswith("−0.29 [")
    assert cells(text, "rmse")[-1] == "a is better" == cells(text, "pearson")[-1]


def test_chance_is_called_noise(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    a = evaluation(tmp_path / "a", generator.random(150) < 0.7)
    b = evaluation(tmp_path / "b", generator.random(150) < 0.7)
    assert cells(run(CompareConfig(a, b)), "accuracy")[6] == "within noise"
    assert cells(run(CompareConfig(a, a)), "accuracy")[3:] == ["+0.00 [+0.00, +0.00]", "1.000", "0.00", "within noise"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == 2 * ["predictions.jsonl"] + 2 * [
        "report.json"
    ]


def test_other_tasks_and_other_rows_are_refused(tmp_path: Path) -> None:
    right = np.ones(20, dtype=bool)
    a = evaluation(tmp_path / "a", right)
    others = {
        "of the task 'classification'.*of 'ner'": evaluation(tmp_path / "task", right, task="ner"),
        "row 1: id is 'row-0' in .* and 'row-5'": evaluation(tmp_path / "ids", right, first_id=5),
        "holds 20 rows, .* 19": evaluation(tmp_path / "fewer", right[1:]),
    }
    relabelled = evaluation(tmp_path / "labels", right)
    text = (relabelled / "predictions.jsonl").read_text()
    (relabelled / "predictions.jsonl").write_text(text.replace('"reference": "sport"', '"reference": "science"', 1))
    others["row 2: reference is 'sport' in .* and 'science'"] = relabelled
    other_texts = evaluation(tmp_path / "texts", right)
    text = (other_texts / "predictions.jsonl").read_text()
    (other_texts / "predictions.jsonl").write_text(text.replace("text 3", "another text"))
    others["row 4: input is .*text 3.* and .*another text"] = other_texts
    for message, b in others.items():
        with pytest.raises(UserError, match=message):
            run(CompareConfig(a, b))
    with pytest.raises(UserError, match="no such file"):
        run(CompareConfig(a, tmp_path / "nowhere"))
