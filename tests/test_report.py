"""The report shows what report.json says, loads nothing from outside, and lets no text of the data become markup."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from septet.data.errors import UserError
from septet.tasks.harness import examples
from septet.tasks.harness import report as report_of
from septet.tasks.harness import report_page as page

EVIL = '<script>alert("x")</script>'
TASKS = {
    "translation": "bleu",
    "classification": "accuracy",
    "qa": "exact_match",
    "summarization": "rougeL",
    "ner": "entity_f1",
}
LABELS = ["科技", "体育", "财经"]


def _score(value: float, spread: float = 2.5) -> dict:
    return {"value": value, "low": value - spread, "high": value + 0.8 * spread}


def _prediction_row(task: str, number: int, rng: random.Random) -> dict:
    """An invented example; every third is wrong, in its own way."""
    wrong = number % 3 == 0
    row = {"id": f"{task}-{number}", "lang": "zh", "truncated": number == 6}
    if task == "translation":
        reference = f"La lampe numéro {number} éclaire le quai du port."
        row |= {
            "lang": "fr",
            "input": {"en": f"Lamp number {number} lights the quay of the harbour."},
            "reference": reference,
        }
        row |= {
            "prediction": "La lampe le le quai." if wrong else reference,
            "baselines": {"copy source": row["input"]["en"]},
        }
    elif task == "classification":
        label = LABELS[number % 2]
        top = 0.5 + 0.4 * rng.random()
        guess = LABELS[2] if wrong else label
        rest = {other: (1 - top) / 2 for other in LABELS if other != guess}
        row |= {"input": {"text": "新机器发布了。" * (1 + number % 7)}, "reference": label, "prediction": guess}
        row |= {"baselines": {"majority": LABELS[0]}, "probabilities": {guess: top, **rest}}
    elif task == "qa":
        row |= {
            "input": {"question": "谁管灯塔？", "context": f"灯塔由林青管理，共有{number}级台阶。"},
            "reference": ["林青"],
        }
        row |= {"prediction": "灯塔由林" if wrong else "林青", "baselines": {"first sentence": "灯塔由林青管理"}}
    elif task == "summarization":
        row |= {
            "input": {"document": f"第{number}号船今天早上离开港口，船长说天气很好。" * 4},
            "reference": f"第{number}号船离港。",
        }
        row |= {"prediction": "船船船" if wrong else f"第{number}号船离港。", "baselines": {"lead": "船今天"}}
    else:
        tokens = list("张三去北京旅游")
        tags = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O", "O"]
        guess = ["O"] * (number % 7) + tags[number % 7 :] if wrong else tags
        row |= {"input": {"tokens": tokens}, "reference": tags, "prediction": guess, "baselines": {"all O": ["O"] * 7}}
    return row


def _report(task: str, rows: int) -> dict:
    metric, value = TASKS[task], 30.3 + 10 * len(task) % 50
    report = {
        "schema_version": 1,
        "task": task,
        "title": task.capitalize(),
        "synthetic": True,
        "model": {"path": f"runs/{task}/final", "num_parameters": 2_345_678, "architecture": "SeptetForCausalLM"},
        "data": {
            "train": {"path": f"sample/{task}", "sha256": "a1" * 32, "rows": 4000},
            "test": {"path": f"sample/{task}", "sha256": "b2" * 32, "rows": rows, "truncated": 1, "in_train": 0},
        },
        "languages": ["en", "zh"],
        "seed": 3,
        "code_version": "0.1.0",
        "decoding": {"num_beams": 4, "max_new_tokens": 64},
        "finetune": {"learning_rate": 3e-4, "epochs": 3, "tokens_per_step": 4096},
        "primary_metric": metric,
        "scores": {metric: {**_score(value), "signature": "nrefs:1|tok:13a"}, "chrf": _score(value + 7.1)},
        "baselines": {
            "trivial": {
                "scores": {metric: _score(12.4), "chrf": _score(20.2)},
                "difference": {"value": value - 12.4, "low": value - 15.4, "high": value - 9.4, "p_value": 0.0002},
            },
            "weaker": {
                "scores": {metric: _score(3.1)},
                "difference": {"value": value - 3.1, "low": value - 6, "high": value, "p_value": 0.0},
            },
        },
        "by_language": {lang: {"rows": rows // 2, "scores": {metric: _score(value)}} for lang in ("en", "zh")},
        "curves": {
            "train_loss": [[step, 4 / (1 + step / 60) + 0.5] for step in range(0, 1500, 2)],
            "validation_loss": [[step, 4 / (1 + step / 70) + 0.7] for step in range(0, 1500, 150)],
        },
        "showcase": [{"title": f"Show {task}", "input": "张三去北京旅游", "prediction": f"answer of {task}\nline 2"}],
        "seconds": {"finetune": 110.0, "predict": 28.0},
        "peak_memory_gib": 1.234,
        "hardware": "2 CPU cores",
        "libraries": {"torch": "2.13.0"},
    }
    report["model"] |= {"fingerprint": "c3" * 32, "adapter": False}
    report["warnings"] = ["rougeL: the tokenizer keeps nothing of 1 texts, such as '*'"]
    if task == "classification":
        report["classes"] = [
            {"label": label, "precision": 81.5, "recall": 77.7, "f1": 79.6, "support": 11} for label in LABELS
        ]
        report["confusion"] = {"labels": LABELS, "matrix": [[20, 0, 3], [1, 17, 4], [0, 0, 6]]}
    if task == "ner":
        report["classes"] = [
            {"label": kind, "precision": 91.5, "recall": 87.7, "f1": 89.6, "support": 45} for kind in ("PER", "LOC")
        ]
    return report


def _write(directory: Path, report: dict, rows: list[dict]) -> None:
    directory.mkdir(parents=True)
    (directory / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (directory / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Invented evaluations of the five tasks, and a pre-training run beside them."""
    rng = random.Random(0)
    for task in TASKS:
        rows = [_prediction_row(task, number, rng) for number in range(45)]
        _write(tmp_path / "reports" / task, _report(task, len(rows)), rows)
    run = tmp_path / "pretrain"
    (run / "final").mkdir(parents=True)
    log = [{"step": s, "loss": 9 / (1 + s / 80) + 2, "tokens_per_second": 9000.0 + s} for s in range(1, 1000)]
    log += [
        {"step": s, "validation": {lang: {"loss": 3.0, "bits_per_byte": 1 + k / 5 + 90 / (s + 30)}}}
        for s in range(100, 1001, 100)
        for k, lang in enumerate(("en", "fr", "zh"))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
    return tmp_path / "reports"


class _Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _render(reports: Path, **options) -> str:
    return page.run(page.ReportConfig(reports=reports, **options)).read_text(encoding="utf-8")


def test_page_is_self_contained(reports: Path) -> None:
    html = _render(reports, run=reports.parent / "pretrain")
    tags = _Page(html).tags
    links = [
        value for _, attrs in tags for key, value in attrs.items() if key in ("src", "href", "srcset", "data", "action")
    ]
    pictures = [link for link in links if link.startswith("data:image/svg+xml;base64,")]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert len(pictures) == 2 * (len(TASKS) + 2)  # light and dark; a curve a task, loss and bits per byte of the run
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"https?://|url\(|@import", html)


def test_page_shows_every_task_with_the_values_of_its_report(reports: Path) -> None:
    page_ = _Page(_render(reports))
    ids = {attrs["id"] for tag, attrs in page_.tags if tag == "section"}
    assert ids == {"showcase", *TASKS}
    titles = re.findall("|".join(task.capitalize() for task in TASKS), page_.text)
    assert titles[:5] == [task.capitalize() for task in TASKS]
    for task, metric in TASKS.items():
        report = json.loads((reports / task / "report.json").read_text())
        score, difference = report["scores"][metric], report["baselines"]["trivial"]["difference"]
        assert f"{score['value']:.1f}" in page_.text
        assert f"[{score['low']:.1f}, {score['high']:.1f}]" in page_.text
        assert f"+{difference['value']:.1f}" in page_.text
        assert f"answer of {task}\nline 2" in page_.text
    assert "< 0.001" in page_.text and "synthetic" in page_.text
    assert "45 test rows; truncated to the model's context: 1; also in train, to the letter: 0." in page_.text
    assert "b2" * 32 in page_.text and "c3" * 32 in page_.text


def test_summary_table_names_the_best_baseline_and_the_minutes(reports: Path) -> None:
    report = report_of.read_report(reports / "translation")
    header, _, row, end = report_of.summary_table([report]).split("\n")
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    value = report["scores"]["bleu"]["value"]
    assert cells["task"] == "Translation (synthetic data)"
    assert cells["score [95 %]"].replace("\\", "") == f"{value:.1f} [{value - 2.5:.1f}, {value + 2:.1f}]"
    assert (cells["best baseline"], cells["test rows"], cells["minutes"]) == ("trivial: 12.4", "45", "2.3")
    assert end == ""


def test_nothing_from_data_becomes_markup(tmp_path: Path) -> None:
    def poison(value):
        if isinstance(value, dict):
            return {
                EVIL + key if key in ("en", "text", "trivial", "learning_rate", "chrf", "train_loss") else key: poison(
                    v
                )
                for key, v in value.items()
            }
        if isinstance(value, list):
            return [poison(item) for item in value]
        if isinstance(value, str):
            return value[:2] + EVIL if value[:2] in ("B-", "I-") else EVIL + value
        return value

    folders = {task: f"{task}<script>alert('x')" for task in TASKS}
    for task, metric in TASKS.items():
        report = poison(_report(task, 9))
        report |= {"task": task, "primary_metric": metric}
        rows = [poison(_prediction_row(task, number, random.Random(0))) for number in range(9)]
        _write(tmp_path / "re<b>ports" / folders[task], report, rows)
    html = _render(tmp_path / "re<b>ports")
    assert "script" not in {tag for tag, _ in _Page(html).tags} and "re<b>ports" not in html
    assert "<script" not in html and html.count("&lt;script&gt;") > 100
    markdown = (tmp_path / "re<b>ports" / "index.md").read_text()
    assert "<script" not in markdown
    for folder in folders.values():
        assert "<script" not in report_of.write_task_report(tmp_path / "re<b>ports" / folder).read_text()


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        (  # wrong with the highest confidence first; right ones never
            [("a", "b", 0.6), ("a", "b", 0.9), ("a", "a", 0.99), ("b", "a", 0.7)],
            [1, 3, 0],
        ),
        (  # the longer a correct answer is missed, the worse; the best of several references counts
            [
                (["the red lamp"], "lamp", None),
                (["The lamp", "sea"], "a sea", None),
                ([], "something", None),
                (["北京"], "北", None),
            ],
            [2, 0, 3],
        ),
        (
            [
                ("A quiet harbour.", "A quiet harbour.", None),
                ("A quiet harbour.", "zzz", None),
                ("Lamps.", "Lamp.", None),
            ],
            [1, 2],
        ),
        (  # the right words in another order are wrong; an answer without words counts as no answer
            [
                (["Paris France"], "France Paris", None),
                (["the", "cat"], "", None),
                (["the"], "", None),
            ],
            [1, 0],
        ),
        ([(["O", "B-PER"], ["O", "O"], None), (["O", "B-PER"], ["B-LOC"], None), (["O"], ["O"], None)], [1, 0]),
    ],
    ids=["classification", "qa", "text", "order", "ner"],
)
def test_worst_examples_are_wrong_and_sorted(planted: list, expected: list[int]) -> None:
    rows = []
    for number, (reference, prediction, probability) in enumerate(planted):
        rows.append(
            {
                "id": number,
                "lang": "zh" if "北京" in reference else "en",
                "input": {},
                "reference": reference,
                "prediction": prediction,
            }
        )
        if probability:
            rows[-1]["probabilities"] = {prediction: probability}
    assert [row["id"] for row in examples.worst_examples(rows)] == expected


def test_random_examples_depend_on_the_seed_alone() -> None:
    rows = [{"id": number} for number in range(50)]
    assert examples.random_examples(rows, 1) == examples.random_examples(rows, 1) != examples.random_examples(rows, 2)
    assert examples.random_examples(rows[:2], 1) in (rows[:2], rows[1::-1])


def test_rows_fall_into_quarters_by_the_length_of_their_input() -> None:
    rows = [{"input": {"text": "x" * n, "tokens": ["y", "yz"]}} for n in range(1, 41)]
    quarters = examples.length_quarters(rows[::-1])
    assert [(q["low"], q["high"]) for q in quarters] == [(4, 13), (14, 23), (24, 33), (34, 43)]
    assert quarters[0]["members"] == list(range(30, 40))
    assert examples.length_quarters(rows[:1] * 9) == [{"low": 4, "high": 4, "members": list(range(9))}]


def test_scores_by_length_find_a_planted_dependence() -> None:
    from septet.tasks.harness.predict import scores
    from septet.tasks.harness.task import get_task

    rows = [
        {"lang": "en", "input": {"text": "x" * n}, "reference": "ab"[n % 2], "prediction": "ab"[n % 2] if n <= 20 else "c",
         "probabilities": {"a": 0.3, "b": 0.3, "c": 0.3}, "baselines": {}}
        for n in range(1, 41)
    ]  # fmt: skip
    found = scores(get_task("classification"), rows, seed=0)
    assert [q["scores"]["macro_f1"]["value"] for q in found["by_length"]] == [100, 100, 0, 0]
    assert [list(q["scores"]) for q in found["by_length"]] == 4 * [["macro_f1"]]


def test_an_error_is_better_if_lower_and_keeps_its_unit(tmp_path: Path) -> None:
    """A baseline with a fiftieth of another's error is the best one, and the model, better still, is not called worse."""

    def score(value: float) -> dict:
        return {"value": value, "low": 0.9 * value, "high": 1.1 * value, "higher_is_better": False}

    report = _report("classification", 9) | {
        "primary_metric": "rmse",
        "scores": {"rmse": score(0.0392), "chrf": _score(41.7)},
    }
    report["baselines"] = {
        name: {
            "scores": {"rmse": score(value)},
            "difference": {"value": -value, "low": -value, "high": -0.01, "p_value": 0.01},
        }
        for name, value in (("worse", 4.5), ("mean", 0.0825))
    }
    _write(
        tmp_path / "r" / "numbers",
        report | {"by_language": {}},
        [_prediction_row("classification", n, random.Random(0)) for n in range(9)],
    )
    assert report_of.best_baseline(report)[0] == "mean"
    text = _Page(_render(tmp_path / "r")).text
    assert "In 1 of 1 evaluations the model is better than its best baseline" in text
    assert "rmse in the unit of what is predicted" in text
    assert "0.0392 [0.0353, 0.0431]" in text and "−0.0825 [−0.0825, −0.01]" in text
    markdown = report_of.write_task_report(tmp_path / "r" / "numbers").read_text().replace("\\", "")
    assert "| rmse | 0.0392 [0.0353, 0.0431] |" in markdown and "| chrF | 41.7 [39.2, 43.7] |" in markdown


def test_runs_that_differ_in_their_seed_are_one_line_and_others_are_not(tmp_path: Path) -> None:
    rows = [_prediction_row("ner", n, random.Random(0)) for n in range(9)]
    for seed, value in ((0, 80.0), (1, 82.0), (2, 84.0)):
        report = _report("ner", 9)
        report["finetune"] |= {"seed": seed, "output": f"runs/{seed}"}
        report["scores"]["entity_f1"]["value"] = value
        report["model"]["fingerprint"] = str(seed)
        _write(tmp_path / "r" / f"ner{seed}", report, rows)
    report["finetune"] |= {"seed": 3, "epochs": 9}  # another system
    _write(tmp_path / "r" / "other", report, rows)
    html = _render(tmp_path / "r")
    assert "82.0 ± 2.0" in html and "80.0, 82.0, 84.0" in html and "[77.0, 87.0]" in html  # t of 2 degrees is 4.30
    markdown = (tmp_path / "r" / "index.md").read_text()
    assert markdown.count("82.0 ± 2.0") == 1 and "| Ner | 3 | entity F1 |" in markdown
    [group] = page.seed_groups([report_of.read_report(place) for place in sorted((tmp_path / "r").glob("*/"))])
    assert group["seeds"] == 3


def test_fine_tuning_counts_once_and_sections_have_anchors_of_their_own(tmp_path: Path) -> None:
    rows = [_prediction_row("ner", n, random.Random(0)) for n in range(9)]
    for name in ("ner.v1", "ner v1"):
        _write(tmp_path / "r" / name, _report("ner", 9), rows)
    page_ = _Page(_render(tmp_path / "r"))
    ids = [attrs["id"] for tag, attrs in page_.tags if tag == "section"]
    assert sorted(ids) == ["ner-v1", "ner-v1-2", "showcase"]
    assert {attrs["href"] for tag, attrs in page_.tags if tag == "a"} == {"#ner-v1", "#ner-v1-2"}
    facts = re.search(r"minutes, all evaluations\s*([\d.]+)", page_.text)
    assert "Ner (ner.v1)" in page_.text and "Ner (ner v1)" in page_.text
    assert float(facts[1]) == pytest.approx((110 + 2 * 28) / 60, abs=0.05)


def test_an_ensemble_and_what_was_left_out_are_said(reports: Path) -> None:
    report = json.loads((reports / "qa" / "report.json").read_text())
    report["model"]["ensemble"] = ["runs/other/final", "runs/third/final"]
    report["data"]["test"] |= {"unfinished": 4, "mended": 7}
    report["warnings"] = ["f1: the tokenizer keeps nothing of 2 texts"]
    report["by_language"]["zh"]["scores"]["cmrc_f1"] = _score(55.5)
    (reports / "qa" / "report.json").write_text(json.dumps(report))
    text = _Page(_render(reports)).text
    markdown = report_of.write_task_report(reports / "qa").read_text().replace("\\", "")
    for shown in (text, markdown):
        assert "The mean of 3 models' answers is scored" in shown and "runs/third/final" in shown
        assert "4 answers stopped at the greatest number of new tokens" in shown and "7 rows were mended" in shown
        assert "Warning: f1: the tokenizer keeps nothing of 2 texts." in shown
        assert "cmrc F1" in shown and "55.5 [53.0, 57.5]" in shown


def test_entities_are_cut_out_of_their_sentence() -> None:
    tags = ["B-PER", "I-PER", "B-PER", "O"]
    assert examples.segments(tags, list("张三李说"), "zh") == [("张三", "PER"), ("李", "PER"), ("说", None)]
    english = examples.segments(tags, ["Ann", "Lee", "Bo", "sang"], "en")
    assert "".join(text for text, _ in english) == "Ann Lee Bo sang"
    assert [text for text, entity in english if entity] == ["Ann Lee", "Bo"]


def test_task_report_has_scores_examples_and_provenance(reports: Path) -> None:
    text = report_of.write_task_report(reports / "ner").read_text(encoding="utf-8").replace("\\", "")
    for part in ("## Baselines", "## By language", "## By entity type", "| PER | 91.5 | 87.7 | 89.6 | 45 |"):
        assert part in text
    assert "[张三: PER]去[北京: LOC]旅游" in text
    assert "b2" * 32 in text and "2 CPU cores" in text and "3 of 7 tags wrong" in text
    assert [path.name for path in reports.glob("ner/.*")] == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "report.json").write_text("{"), "qa/report.json: is not readable JSON"),
        (lambda d: (d / "report.json").write_text('{"schema_version": 2}'), "schema version 2"),
        (lambda d: (d / "report.json").write_text('{"schema_version": 1, "task": "qa"}'), "title is None"),
        (lambda d: (d / "predictions.jsonl").unlink(), "qa/predictions.jsonl: cannot be read"),
        (lambda d: (d / "predictions.jsonl").write_text("\n"), "line 1: is not JSON"),
        (lambda d: (d / "predictions.jsonl").write_text('{"id": 1}\n'), "line 1: has no 'lang'"),
        (lambda d: (d / "predictions.jsonl").write_bytes(b"\xff\n"), "line 1: is not JSON"),
    ],
)
def test_damage_is_named_and_the_old_page_stays(reports: Path, damage, message: str) -> None:
    (reports / "index.html").write_text("before")
    damage(reports / "qa")
    with pytest.raises(UserError, match=re.escape(message)):
        page.run(page.ReportConfig(reports=reports))
    assert (reports / "index.html").read_text() == "before"


def test_no_reports_and_no_curves_are_user_errors(reports: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \*/report.json"):
        page.run(page.ReportConfig(reports=reports / "ner"))
    with pytest.raises(UserError, match=r"report.json: no such file"):
        report_of.write_task_report(reports / "nowhere")
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read"):
        page.run(page.ReportConfig(reports=reports, run=reports))
