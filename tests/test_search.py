"""Searches for options and cross-validation: they go on where they stopped, and their sums are right."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from septet.data.documents import write_jsonl
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
    ],
)
def test_spaces_that_are_none(space: dict, message: str, base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        search.run(SearchConfig(**options(base, data, tmp_path / "study"), space=space))
    assert not (tmp_path / "study").exists()


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


def predict_rows(model: Path, data: Path, output: Path) -> list[dict]:
    predict.run(predict.EvaluateConfig("classification", model, data=str(data), output=output))
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().split("\n") if line]
