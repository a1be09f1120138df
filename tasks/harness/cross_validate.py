"""Cross-validation for small sets: fine-tune k times, each time without one k-th of train, and score all of it.

    septet cross-validate classification --folds 5 --base runs/pretrain/final --data DATA --output runs/folds

The folds hold the classes in equal shares where rows have one label. `OUTPUT/report` is an ordinary evaluation over the
rows of train, each predicted by the model that had not seen it; its interval is that of the rows, and the spread over the
folds stands beside it. Options that choose by a validation set (--early-stopping, --tune-thresholds) get another fold for
it, which the model does not learn from either. A fold that is finished is not done again; the folds' models stay, and can
answer together (`septet evaluate --ensemble`).
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from septet.data.documents import read_rows, write_jsonl
from septet.data.errors import UserError, run_cli
from septet.data.manifest import fingerprint, read_json, write_json, writing
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
    chooses = config.early_stopping > 0 or config.tune_thresholds
    if chooses and config.folds < 3:
        raise UserError(
            f"--folds {config.folds}: with --early-stopping or --tune-thresholds one fold is scored and another chosen by, so "
            "that nothing is left to learn from; give 3 or more"
        )
    wanted = {"id", "lang", *{**task.columns, **config.columns}.values()}
    rows = [
        {"id": f"train-{number}", **{key: row[key] for key in row if key in wanted}}
        for number, row in enumerate(read_rows(file)[: len(examples)])
    ]
    folds = parts(task, examples, config.folds, config.seed)
    splits = []  # row numbers of train, validation and test
    for number, held_out in enumerate(folds):
        validation = folds[(number + 1) % len(folds)] if chooses else held_out
        splits.append(([i for i in range(len(rows)) if i not in {*held_out, *validation}], validation, held_out))
    require_known_labels(task, examples, splits, config)
    options = {f.name: getattr(config, f.name) for f in fields(FinetuneConfig)}
    reports = []
    for number, split in enumerate(splits, start=1):
        folder = config.output / f"fold_{number}"
        for name, chosen in zip(("train", "validation", "test"), split, strict=True):
            write_jsonl(folder / "data" / f"{name}.jsonl.gz", (rows[i] for i in chosen))
        print(f"cross-validate: fold {number} of {config.folds}, {len(split[2]):,} rows held out", flush=True)
        place = {"data": str(folder / "data"), "output": folder / "run", "max_rows": None}
        finetune.run(FinetuneConfig(**{**options, **place, "resume": (folder / "run").exists()}))
        reports.append(folder / "report")
        predict.run(
            predict.EvaluateConfig(
                config.task,
                folder / "run" / "final",
                data=place["data"],
                output=reports[-1],
                split="test",
                columns=config.columns,
                lang=config.lang,
                source_lang=config.source_lang,
                target_lang=config.target_lang,
                seed=config.seed,
                overwrite=True,
            )
        )
    return together(config, task, reports, folds)


def require_known_labels(task: Any, examples: list[Any], splits: list[Any], config: CrossValidateConfig) -> None:
    """Raises a `UserError`, before anything is trained, if a fold holds a label that its train part does not."""
    from types import SimpleNamespace

    from septet.data.pack import load_tokenizer

    tokenizer = load_tokenizer(config.base)
    for number, split in enumerate(splits, start=1):
        train, validation, test = ([examples[i] for i in chosen] for chosen in split)
        try:
            task.check([*validation, *test], SimpleNamespace(**task.config_fields(train, tokenizer)))
        except UserError as error:
            raise UserError(
                f"fold {number}: {error}; every fold's model must have met every label: of a rare one too few rows fall elsewhere "
                "(--seed draws other folds)"
            ) from error


def parts(task: Any, examples: list[Any], folds: int, seed: int) -> list[list[int]]:
    """Row numbers of each fold, drawn by the seed."""
    import warnings

    from sklearn.model_selection import KFold, StratifiedKFold

    labels = [example.reference for example in examples]
    by_label = task.balances == "one" and max(Counter(labels).values()) >= folds
    splitter = (StratifiedKFold if by_label else KFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # its rows are spread as far as they go
        return [held_out.tolist() for _, held_out in splitter.split(labels, labels if by_label else None)]


def together(config: CrossValidateConfig, task: Any, reports: list[Path], folds: list[list[int]]) -> Path:
    """One evaluation over the rows of all folds, in the order of train."""
    from septet.tasks.harness.report import read_predictions, write_task_report

    output = config.output / "report"
    single = [read_json(folder / "report.json") for folder in reports]
    by_number = {
        number: row
        for held_out, folder in zip(folds, reports, strict=True)
        for number, row in zip(held_out, read_predictions(folder), strict=True)
    }
    rows = [by_number[number] for number in sorted(by_number)]
    values = [report["scores"][task.primary_metric]["value"] for report in single]
    file = split_file(Path(config.data), "train")
    counted = ("rows", "truncated", "unfinished", "mended", "out_of_reach", "in_train")
    test = {name: sum(report["data"]["test"][name] for report in single) for name in counted}
    joules = {name: [report["joules"][name] for report in single] for name in single[0]["joules"]}
    with writing(output, "evaluate", config, {f"fold {n}": folder for n, folder in enumerate(reports, start=1)}) as out:
        write_jsonl(out.path / "predictions.jsonl", rows)
        model = {**single[0]["model"], "path": predict.shown_path(config.output / "fold_*")}
        del model["fingerprint"]  # of no single model
        report = {
            **single[0],
            "title": f"{task.title}, {config.folds} folds",
            "synthetic": predict.is_synthetic(Path(config.data)),
            "model": model,
            "data": {"test": {"path": predict.shown_path(file), "sha256": fingerprint(file), **test}},
            "languages": sorted({row["lang"] for row in rows}),
            "folds": {
                "values": values, "mean": statistics.mean(values), "standard_deviation": statistics.stdev(values),
            },
            "curves": {},
            "validation_score": [],
            "seconds": {name: sum(r["seconds"][name] for r in single) for name in single[0]["seconds"]},
            "joules": {name: None if None in parts else sum(parts) for name, parts in joules.items()},
            "peak_memory_gib": max(report["peak_memory_gib"] for report in single),
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
