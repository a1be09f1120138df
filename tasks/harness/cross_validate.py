"""Cross-validation for small sets: fine-tune k times, each time without one k-th of train, and score all of it.

    septet cross-validate classification --folds 5 --base runs/pretrain/final --data DATA --output runs/folds

The folds hold the classes in equal shares where rows have one label. `OUTPUT/report` is an ordinary evaluation over the
rows of train, each predicted by the model that had not seen it; its interval is that of the rows, and the spread over the
folds stands beside it. A fold that is finished is not done again; the folds' models stay, and can answer together
(`septet evaluate --ensemble`).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from septet.data.documents import read_rows, write_jsonl
from septet.data.errors import UserError, run_cli
from septet.data.manifest import read_json, write_json, writing
from septet.tasks.harness import finetune, predict
from septet.tasks.harness.finetune import FinetuneConfig
from septet.tasks.harness.task import Reading, get_task, read_examples, split_file


@dataclass(frozen=True)
class CrossValidateConfig(FinetuneConfig):
    folds: int = 5
    """parts of train; the model is fine-tuned as often"""


def run(config: CrossValidateConfig) -> Path:
    """Fine-tunes and evaluates each fold; returns the directory of the report over all of them.

    Raises:
        UserError: fewer than 2 folds, fewer rows than folds, a set of the Hub, and what `finetune` and `evaluate` raise.
    """
    if config.data.startswith("hub:"):
        raise UserError(f"{config.data}: folds are cut from a folder's train file; save the set as a folder first")
    task = get_task(config.task)
    file = split_file(Path(config.data), "train")
    reading = Reading(config.columns, config.lang, config.source_lang, config.target_lang)
    examples = read_examples(task, config.data, "train", reading, config.max_rows)
    if not 2 <= config.folds <= len(examples):
        raise UserError(
            f"--folds {config.folds}: must be 2 to {len(examples)}, the number of rows; give another number"
        )
    rows = [{"id": f"train-{number}", **row} for number, row in enumerate(read_rows(file)[: len(examples)])]
    options = {f.name: getattr(config, f.name) for f in fields(FinetuneConfig)}
    reports = []
    for number, held_out in enumerate(parts(task, examples, config.folds, config.seed), start=1):
        folder = config.output / f"fold_{number}"
        chosen = set(held_out)
        write_jsonl(folder / "data" / "train.jsonl.gz", (row for i, row in enumerate(rows) if i not in chosen))
        write_jsonl(folder / "data" / "validation.jsonl.gz", (rows[i] for i in held_out))
        print(f"cross-validate: fold {number} of {config.folds}, {len(held_out):,} rows held out", flush=True)
        place = {"data": str(folder / "data"), "output": folder / "run", "max_rows": None}
        finetune.run(FinetuneConfig(**{**options, **place, "resume": (folder / "run").exists()}))
        reports.append(folder / "report")
        predict.run(
            predict.EvaluateConfig(
                config.task,
                folder / "run" / "final",
                data=place["data"],
                output=reports[-1],
                split="validation",
                columns=config.columns,
                lang=config.lang,
                source_lang=config.source_lang,
                target_lang=config.target_lang,
                seed=config.seed,
                overwrite=True,
            )
        )
    return together(config, task, reports, [example.id for example in examples])


def parts(task: Any, examples: list[Any], folds: int, seed: int) -> list[list[int]]:
    """Row numbers of each fold, drawn by the seed."""
    import warnings

    from sklearn.model_selection import KFold, StratifiedKFold

    labels = [example.reference for example in examples]
    by_label = task.balances == "one"
    splitter = (StratifiedKFold if by_label else KFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # its rows are spread as far as they go
        return [held_out.tolist() for _, held_out in splitter.split(labels, labels if by_label else None)]


def together(config: CrossValidateConfig, task: Any, reports: list[Path], ids: list[str]) -> Path:
    """One evaluation over the rows of all folds, in the order of train."""
    from septet.tasks.harness.report import read_predictions, write_task_report

    output = config.output / "report"
    found: dict[str, dict[str, Any]] = {}
    single = [read_json(folder / "report.json") for folder in reports]
    for folder in reports:
        found |= {row["id"]: row for row in read_predictions(folder)}
    rows = [found[name] for name in ids]
    values = [report["scores"][task.primary_metric]["value"] for report in single]
    with writing(output, "evaluate", config, {f"fold {n}": folder for n, folder in enumerate(reports, start=1)}) as out:
        write_jsonl(out.path / "predictions.jsonl", rows)
        test = {**single[0]["data"]["test"], "path": predict.shown_path(split_file(Path(config.data), "train"))}
        cut = sum(report["data"]["test"]["truncated"] for report in single)
        report = {
            **single[0],
            "title": f"{task.title}, {config.folds} folds",
            "data": {"test": {**test, "sha256": "", "rows": len(rows), "truncated": cut}},
            "folds": {
                "values": values, "mean": statistics.mean(values), "standard_deviation": statistics.stdev(values),
            },
            "curves": {},
            "seconds": {name: sum(r["seconds"][name] for r in single) for name in single[0]["seconds"]},
            **predict.scores(task, rows, config.seed),
        }  # fmt: skip
        write_json(out.path / "report.json", report)
        write_task_report(out.path)
        out.counts.update(rows=len(rows), folds=values)
    spread = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    print(
        f"cross-validate: {task.primary_metric} {spread} over {len(values)} folds; {output / 'report.md'}", flush=True
    )
    return output


if __name__ == "__main__":
    run_cli(run, CrossValidateConfig)
