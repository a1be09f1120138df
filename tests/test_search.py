"""Searches for options and cross-validation: they go on where they stopped, and their sums are right."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from septet.data.documents import read_rows, write_jsonl
from septet.data.errors import UserError
from septet.modeling.checkpoint import save_model
from septet.modeling.modeling_septet import SeptetForPreTraining
from septet.tasks.harness import cross_validate, predict, search
from septet.tasks.harness.cross_validate import CrossValidateConfig
from septet.tasks.harness.search import SearchConfig
from septet.tasks.harness.task import Reading, get_task, read_examples

optuna = pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def base(config, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "final"
    save_model(SeptetForPreTraining(type(config)(**{**config.to_dict(), "trained_heads": []})), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    rows = [
        {"text": f"{'It rained goals' if n % 3 == 0 else 'Stew'} number {n}", "label": "ab"[n % 3 == 0], "lang": "en"}
        for n in range(42)
    ]
    write_jsonl(folder / "train.jsonl.gz", rows[:30])
    write_jsonl(folder / "validation.jsonl.gz", rows[30:])
    return folder


def options(base: Path, data: Path, output: Path) -> dict:
    return {"task": "classification", "base": base, "data": str(data), "output": output, "epochs": 2, "batch_size": 8}


def study_of(folder: Path):
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.log"))
    return optuna.load_study(study_name="classification", storage=optuna.storages.JournalStorage(backend))


SPACE = {"learning_rate": "1e-4:1e-2:log", "dropout": "0.0,0.1"}


def test_a_study_goes_on_and_keeps_the_best(base: Path, data: Path, tmp_path: Path, capsys) -> None:
    config = SearchConfig(**options(base, data, tmp_path / "study"), trials=2, space=SPACE, prune=False)
    search.run(config)
    page = search.run(dataclasses.replace(config, trials=3))
    study = study_of(tmp_path / "study")
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert len({t.params["learning_rate"] for t in study.trials}) == 3
    run = json.loads((tmp_path / "study" / "best" / "manifest.json").read_text())
    assert run["config"]["learning_rate"] == pytest.approx(study.best_params["learning_rate"])
    assert run["counts"]["validation_score"][-1][1] == pytest.approx(study.best_value)
    assert sorted(p.name for p in (tmp_path / "study").iterdir() if p.is_dir()) == ["best"]
    text = page.read_text()
    assert f"{study.best_value:.4g}" in text
    assert text.count("data:image/png") >= 2
    capsys.readouterr()
    search.run(dataclasses.replace(config, trials=3))  # enough: nothing is trained
    assert "search: trial" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds another study \(epochs was 2, now 3\)"):
        search.run(dataclasses.replace(config, epochs=3))


def test_what_is_proposed_follows_from_the_seed(base: Path, data: Path, tmp_path: Path) -> None:
    proposed = []
    for name, trials in (("at once", (2,)), ("in two", (1, 2))):
        config = SearchConfig(**{**options(base, data, tmp_path / name), "epochs": 1}, space=SPACE, prune=False)
        for number in trials:
            search.run(dataclasses.replace(config, trials=number))
        log = [json.loads(line) for line in (tmp_path / name / "study.log").read_text().split("\n") if line]
        proposed.append([entry["param_value_internal"] for entry in log if "param_value_internal" in entry])
    assert len(proposed[0]) == 4
    assert proposed[0] == proposed[1]


def test_a_trial_whose_process_died_is_done_again(base: Path, data: Path, tmp_path: Path) -> None:
    config = SearchConfig(**{**options(base, data, tmp_path / "study"), "epochs": 1}, trials=1, space=SPACE)
    kill = (
        "import os, signal, sys\n"
        "from septet.tasks.harness import finetune, search\n"
        "finetune.run = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"search.run(search.SearchConfig(task='classification', base={str(base)!r}, data={str(data)!r}, "
        f"output=search.Path({str(tmp_path / 'study')!r}), epochs=1, batch_size=8, trials=1, space={SPACE!r}))\n"
    )
    assert subprocess.run([sys.executable, "-c", kill], check=False).returncode == -9
    search.run(config)
    trials = study_of(tmp_path / "study").trials
    assert [t.state.name for t in trials] == ["FAIL", "COMPLETE"]
    assert trials[0].params == trials[1].params


def test_a_bad_trial_is_given_up(base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([[0.5, 0.6], [0.5, 0.6], [0.5, 0.6], [0.5, 0.6], [0.1, 0.1]])

    def pretended(config, on_epoch) -> None:
        for epoch, score in enumerate(next(scores), start=1):
            on_epoch(epoch, score)

    monkeypatch.setattr(search.finetune, "run", pretended)
    search.run(SearchConfig(**options(base, data, tmp_path / "study"), trials=5, space=SPACE))
    trials = study_of(tmp_path / "study").trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 4 + ["PRUNED"]
    assert "given up" in (tmp_path / "study" / "index.html").read_text()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rat": "1:2"}, "is no option with numbers or names; did you mean 'learning_rate'"),
        ({"learning_rate": "2:1"}, "must be LOW:HIGH"),
        ({"learning_rate": "0:1:log"}, "with LOW above 0"),
        ({"batch_size": "8:16:cube"}, "must be LOW:HIGH"),
        ({"batch_size": "a:b"}, "must be LOW:HIGH"),
        ({"loss": "cross_entropy,focall"}, "'focall' is no value of it; did you mean 'focal'"),
        ({"attention_mode": "casual,bidirectional"}, "'casual' is no value of it; did you mean 'causal'"),
        ({"tune_thresholds": "yes,no"}, "'yes' is no value of it"),
        ({"batch_size": "8,many"}, "'many' is no value of it"),
    ],
)
def test_spaces_that_are_none(space: dict, message: str, base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        search.run(SearchConfig(**options(base, data, tmp_path / "study"), space=space))
    assert not (tmp_path / "study").exists()


def test_a_study_whose_trials_all_diverge_says_so(base: Path, data: Path, tmp_path: Path) -> None:
    config = SearchConfig(**options(base, data, tmp_path / "study"), trials=2, space={"learning_rate": "1e29,1e30"})
    with pytest.raises(UserError, match="no trial came to an end, 2 were given up, as those are that diverge"):
        search.run(config)
    assert [t.state.name for t in study_of(tmp_path / "study").trials] == ["PRUNED"] * 2


def test_a_study_on_other_data_is_another_study(base: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(data, folder)
    config = SearchConfig(**{**options(base, folder, tmp_path / "study"), "epochs": 1}, trials=1, space=SPACE)
    search.begin(config, tmp_path / "study")
    search.begin(config, tmp_path / "study")
    write_jsonl(folder / "validation.jsonl.gz", [{"text": "Stew", "label": "a", "lang": "en"}])
    with pytest.raises(UserError, match="holds another study \\(digest of validation was "):
        search.begin(config, tmp_path / "study")


def test_a_study_may_begin_while_another_process_begins_it(base: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / ".search.json.123.tmp").write_text("{")
    search.begin(SearchConfig(**options(base, data, tmp_path / "study")), tmp_path / "study")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        search.begin(SearchConfig(**options(base, data, tmp_path / "other")), tmp_path / "other")


def test_folds_hold_the_classes_evenly(data: Path) -> None:
    task = get_task("classification")
    examples = read_examples(task, data, "train", Reading({}))
    parts = cross_validate.parts(task, examples, 5, seed=0)
    assert sorted(i for part in parts for i in part) == list(range(30))
    assert [sum(examples[i].reference == "b" for i in part) for part in parts] == [2] * 5
    assert cross_validate.parts(task, examples, 5, seed=1) != parts


def test_cross_validation_scores_every_row_once(base: Path, data: Path, tmp_path: Path, capsys) -> None:
    config = CrossValidateConfig(**{**options(base, data, tmp_path / "folds"), "epochs": 1}, folds=3)
    folder = cross_validate.run(config)
    report = json.loads((folder / "report.json").read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().split("\n") if line]
    assert [row["id"] for row in rows] == [f"train-{n}" for n in range(30)]
    assert report["data"]["test"]["rows"] == 30
    right = 100 * sum(row["prediction"] == row["reference"] for row in rows) / 30
    assert report["scores"]["accuracy"]["value"] == pytest.approx(right)
    assert len(report["folds"]["values"]) == 3
    assert "mean ± standard deviation" in (folder / "report.md").read_text()
    model = tmp_path / "folds" / "fold_2" / "run" / "final"
    held_out = {row["id"] for row in predict_rows(model, tmp_path / "folds" / "fold_2" / "data", tmp_path / "again")}
    assert len(held_out) == 10
    capsys.readouterr()
    cross_validate.run(config)
    assert capsys.readouterr().out.count("is finished") == 3
    with pytest.raises(UserError, match="--folds 31: must be 2 to 30"):
        cross_validate.run(dataclasses.replace(config, folds=31))


def cross_validated(base: Path, rows: list[dict], output: Path, **more) -> tuple[dict, list[dict]]:
    """The report and the predictions of a cross-validation over these rows."""
    write_jsonl(output / "set" / "train.jsonl.gz", rows)
    given = {**options(base, output / "set", output / "folds"), "epochs": 1, "folds": 3, **more}
    folder = cross_validate.run(CrossValidateConfig(**given))
    lines = (folder / "predictions.jsonl").read_text().split("\n")
    return json.loads((folder / "report.json").read_text()), [json.loads(line) for line in lines if line]


ROWS = [
    {"text": f"{'Goal' if n % 2 else 'Stew'} {n}", "label": "ab"[n % 2], "lang": ("en", "fr")[n % 2]} for n in range(24)
]


def test_rows_of_one_id_stay_apart_and_the_folds_sums_are_right(base: Path, tmp_path: Path) -> None:
    rows = [{**row, "id": f"document {n // 4}"} for n, row in enumerate([*ROWS, *ROWS[:3]])]
    report, predicted = cross_validated(base, rows, tmp_path)
    assert [row["input"]["text"] for row in predicted] == [row["text"] for row in rows]
    single = [json.loads((tmp_path / "folds" / f"fold_{n}" / "report" / "report.json").read_text()) for n in (1, 2, 3)]
    for name in ("rows", "in_train", "truncated"):
        assert report["data"]["test"][name] == sum(fold["data"]["test"][name] for fold in single)
    assert report["data"]["test"]["in_train"] > 0  # three texts stand there twice
    assert report["languages"] == ["en", "fr"] and report["validation_score"] == []
    assert report["seconds"]["finetune"] == pytest.approx(sum(fold["seconds"]["finetune"] for fold in single))
    assert "fingerprint" not in report["model"]


def test_what_is_chosen_on_validation_is_not_chosen_on_the_rows_that_are_scored(base: Path, tmp_path: Path) -> None:
    cross_validated(base, ROWS, tmp_path, tune_thresholds=True)
    parts = []
    for number in (1, 2, 3):
        folder = tmp_path / "folds" / f"fold_{number}" / "data"
        texts = [
            {row["text"] for row in read_rows(folder / f"{name}.jsonl.gz")} for name in ("train", "validation", "test")
        ]
        assert sum(map(len, texts)) == len(set.union(*texts)) == 24
        parts.append(texts[2])
    assert len(set.union(*parts)) == 24
    with pytest.raises(UserError, match="--folds 2: with --early-stopping or --tune-thresholds one fold is scored"):
        cross_validated(base, ROWS, tmp_path / "two", early_stopping=1, folds=2)


def test_labels_and_columns_that_folds_cannot_hold(base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"fold \d: label 'rare' is in the set.*every fold's model must have met every label"
    ):
        cross_validated(base, [*ROWS, {"text": "x", "label": "rare", "lang": "en"}], tmp_path / "rare")
    assert not (tmp_path / "rare" / "folds").exists()
    every = [{"text": f"Stew {n}", "label": "abc"[n % 3], "lang": "en"} for n in range(12)]
    report, _ = cross_validated(base, every, tmp_path / "many", folds=6)  # more folds than rows of a class
    assert len(report["folds"]["values"]) == 6
    table = datasets.Dataset.from_list([{**row, "when": datetime.datetime(2026, 1, 1)} for row in ROWS])
    (tmp_path / "parquet").mkdir()
    table.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    given = {**options(base, tmp_path / "parquet", tmp_path / "times"), "epochs": 1, "folds": 2}
    cross_validate.run(CrossValidateConfig(**given))


def predict_rows(model: Path, data: Path, output: Path) -> list[dict]:
    predict.run(predict.EvaluateConfig("classification", model, data=str(data), output=output))
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().split("\n") if line]
