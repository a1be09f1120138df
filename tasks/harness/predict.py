"""Evaluate a fine-tuned checkpoint: predictions, scores with intervals, baselines beside them, a report.

    septet evaluate classification --model runs/classification/final --data build/demo/sample/classification --output reports/classification

Scores are computed from predictions.jsonl and the reference data alone: scoring again needs no model.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import SCHEMA_VERSION, code_version, fingerprint, finished, read_json, write_json, writing


@dataclass(frozen=True)
class EvaluateConfig:
    task: Annotated[str, tyro.conf.Positional]
    """translation, classification, multilabel, regression, qa, generative_qa, summarization or ner"""
    model: Path = Path("runs/task/final")
    """a fine-tuned checkpoint"""
    ensemble: tuple[Path, ...] = ()
    """more checkpoints of the same task and labels, other seeds for example: the mean of all answers is scored
    (classification, multilabel, regression)"""
    data: str = "data"
    """the task's set, as for finetune; its train split serves the baselines"""
    output: Path = Path("reports/task")
    """where predictions.jsonl, report.json and report.md go"""
    split: str | None = None
    """which split to score; default: test if a folder has one, else validation (the tests of many Hub sets have no labels)"""
    batch_size: int = 32
    """sequences at once"""
    max_rows: int | None = None
    """score the first so many rows"""
    columns: dict[str, str] = field(default_factory=dict)
    """role and column, as for finetune"""
    lang: Literal["en", "fr", "zh"] | None = None
    """language of rows without a `lang` column"""
    source_lang: str = "en"
    """translation: from"""
    target_lang: str = "fr"
    """translation: to"""
    corpus: Path | None = None
    """the corpus that the model was pre-trained on (`septet corpus`): the report counts the test rows found in it"""
    showcase: Path | None = None
    """a JSON file with inputs by task that the report shows with the model's answers"""
    title: str | None = None
    """of the report; default: the task's"""
    seed: int = 0
    """of the bootstrap"""
    overwrite: bool = False
    """replace what stands at --output"""


def run(config: EvaluateConfig) -> Path:
    """Predicts, scores and writes the report; returns its directory.

    Raises:
        UserError: unknown task; a model or set that is missing, damaged or does not fit; labels that train never had.
    """
    from septet.modeling.checkpoint import require_model_folder
    from septet.tasks.harness.contamination import in_corpus, in_train
    from septet.tasks.harness.finetune import check_tokenizer, read_run
    from septet.tasks.harness.generation import DECODING
    from septet.tasks.harness.report import score_text, write_task_report
    from septet.tasks.harness.task import Reading, Task, digest, get_task, has_split, read_examples, split_file

    task = get_task(config.task)
    folders = [require_model_folder(folder) for folder in (config.model, *config.ensemble)]
    model_folder = folders[0]
    for folder in folders:
        head = read_json(folder / "config.json").get("architectures", ["?"])[0]
        if head != task.head:
            raise UserError(
                f"{folder}: is a {head}; {task.name} needs a {task.head}; run `septet finetune {task.name}`"
            )
    if len(folders) > 1 and type(task).combined is Task.combined:
        task.combined([])  # which says so
    is_local = not config.data.startswith("hub:")
    split = config.split or ("test" if is_local and has_split(Path(config.data), "test") else "validation")
    inputs: dict[str, Any] = {"model": model_folder}
    inputs |= {f"ensemble {number}": folder for number, folder in enumerate(folders[1:], start=2)}
    if is_local:
        inputs["test"] = split_file(Path(config.data), split)
    if config.showcase:
        inputs["showcase"] = config.showcase
    if config.corpus:
        inputs["corpus"] = config.corpus
        if not is_local:
            raise UserError(f"--corpus: a set of the Hub is not compared with it; save {config.data} as a folder first")
    if finished(config.output, "evaluate", config, inputs, config.overwrite):
        return config.output
    reading = Reading(config.columns, config.lang, config.source_lang, config.target_lang)
    examples = read_examples(task, config.data, split, reading, config.max_rows)
    run_manifest = read_run(model_folder)
    # The baselines learn from the rows that the model learned from.
    train = read_examples(task, config.data, "train", reading, run_manifest.get("config", {}).get("max_rows"))

    import torch
    from transformers.utils import logging

    from septet.data.pack import load_tokenizer
    from septet.modeling import modeling_septet
    from septet.modeling.energy import EnergyMeter
    from septet.modeling.watch import peak_memory_gib

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def load(folder: Path) -> tuple[Any, Any]:
        tokenizer = load_tokenizer(folder)
        model = getattr(modeling_septet, task.head).from_pretrained(folder, dtype=torch.float32).eval()
        check_tokenizer(tokenizer, model.config, folder)
        task.check(examples, model.config)
        return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer

    model, tokenizer = load(model_folder)

    with writing(config.output, "evaluate", config, inputs) as out:
        started, energy = time.time(), EnergyMeter()
        predictions = task.predict(model, tokenizer, examples, config.batch_size)
        if config.ensemble:
            members = [predictions]
            for folder in folders[1:]:
                other, its_tokenizer = load(folder)
                if other.config.id2label != model.config.id2label:
                    raise UserError(f"{folder}: has other labels than {model_folder}; an ensemble needs the same ones")
                members.append(task.predict(other, its_tokenizer, examples, config.batch_size))
            predictions = task.combined(members)
        seconds, joules = time.time() - started, energy.joules()
        baselines = baseline_predictions(task, train, examples)
        rows = [
            {
                "id": example.id,
                "lang": example.lang,
                "input": example.input,
                "reference": example.reference,
                **prediction,
                "baselines": {name: values[i] for name, values in baselines.items()},
            }
            for i, (example, prediction) in enumerate(zip(examples, predictions, strict=True))
        ]
        with open(out.path / "predictions.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

        generation = getattr(model, "generation_config", None) if task.head == "SeptetForCausalLM" else None
        names = (*DECODING, "do_sample")
        place = inputs.get("test", config.data)
        trained_on = dict(run_manifest.get("inputs", {}).get("train", {}))
        if "path" in trained_on:
            trained_on["path"] = shown_path(trained_on["path"])
        report = {
            "schema_version": SCHEMA_VERSION,
            "task": task.name,
            "title": config.title or task.title,
            "synthetic": is_synthetic(Path(config.data)) if is_local else False,
            "model": {
                "path": shown_path(config.model),
                "num_parameters": model.num_parameters(),
                "architecture": task.head,
                "fingerprint": fingerprint(model_folder),
                "adapter": run_manifest.get("config", {}).get("method", "full") != "full",
                "ensemble": [shown_path(folder) for folder in folders[1:]],
            },
            "data": {
                "train": {
                    **trained_on,
                    "rows": len(train),
                    "truncated": run_manifest.get("counts", {}).get("truncated"),
                },
                "test": {
                    "path": shown_path(place),
                    "split": split,
                    "sha256": fingerprint(Path(place)) if is_local else digest(examples),
                    "rows": len(rows),
                    "truncated": sum(row["truncated"] for row in rows),
                    "unfinished": sum(not row.get("ended", True) for row in rows),
                    "mended": sum(example.mended for example in examples),
                    "out_of_reach": sum(row.get("out_of_reach", False) for row in rows),
                    "in_train": in_train(train, examples),
                    **({"in_corpus": in_corpus(inputs["test"], config.corpus, len(rows))} if config.corpus else {}),
                },
            },
            "languages": sorted({row["lang"] for row in rows}),
            "seed": config.seed,
            "code_version": code_version(),
            "decoding": {n: v for n in names if (v := getattr(generation, n, None)) is not None},
            "finetune": finetune_settings(run_manifest),
            "curves": run_manifest.get("counts", {}).get("curves", {}),
            "validation_score": run_manifest.get("counts", {}).get("validation_score", []),
            "showcase": showcase(task, model, tokenizer, config),
            "seconds": {
                "finetune": run_manifest.get("counts", {}).get("training_seconds", 0.0),
                "predict": round(seconds, 2),
            },
            "joules": {"finetune": run_manifest.get("counts", {}).get("training_joules"), "predict": joules},
            "peak_memory_gib": round(peak_memory_gib(), 3),
            "hardware": hardware(),
            "libraries": libraries(),
            **scores(task, rows, config.seed),
        }
        write_json(out.path / "report.json", report)
        write_task_report(out.path)
        out.counts.update(rows=len(rows))
    main = report["scores"][task.primary_metric]
    beside = "; ".join(
        f"{name} {score_text(baseline['scores'][task.primary_metric]).split(' ')[0]}"
        for name, baseline in report["baselines"].items()
    )
    print(
        f"evaluate {task.name}: {task.primary_metric} {score_text(main)} on {len(rows):,} rows ({beside}); "
        f"{config.output / 'report.md'}",
        flush=True,
    )
    return config.output


def scores(task: Any, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The scored parts of a report, from the rows of predictions.jsonl alone."""
    from septet.tasks.harness import metrics
    from septet.tasks.harness.examples import length_quarters

    family, leading = task.family, (metrics.get(task.family, task.primary_metric),)
    predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    languages = [row["lang"] for row in rows]

    def part(of: Any, members: list[int], given: list[Any] = predictions) -> dict[str, Any]:
        chosen = ([values[i] for i in members] for values in (given, references, languages))
        return metrics.compute(of, *chosen, seed=seed)

    everything = list(range(len(rows)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = part(family, everything)
    said = list(dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning))
    for message in said:
        print(f"evaluate {task.name}: {message}", file=sys.stderr, flush=True)
    with warnings.catch_warnings():  # what follows scores the same rows again, or baselines
        warnings.simplefilter("ignore", UserWarning)
        if task.metric_module:
            _require_same(task, found, predictions, references, languages)
        baselines = {}
        for name in rows[0]["baselines"]:
            theirs = [row["baselines"][name] for row in rows]
            difference = metrics.difference(
                family, task.primary_metric, predictions, theirs, references, languages, seed=seed
            )
            baselines[name] = {"scores": part(family, everything, theirs), "difference": difference}
        by_language = {}
        for lang in sorted(set(languages)):
            members = [i for i in everything if languages[i] == lang]
            by_language[lang] = {"rows": len(members), "scores": part(family, members)}
        by_length = [
            {"low": q["low"], "high": q["high"], "rows": len(q["members"]), "scores": part(leading, q["members"])}
            for q in length_quarters(rows)
        ]
        tables = task.tables(rows)
    return {
        "primary_metric": task.primary_metric,
        "scores": found,
        "baselines": baselines,
        "by_language": by_language,
        "by_length": by_length,
        "warnings": said,
        **tables,
    }


def _require_same(task: Any, found: dict[str, Any], predictions: list, references: list, languages: list) -> None:
    """The headline is what the published `evaluate` module gives; the bootstrap must stand around the same number."""
    from septet.tasks.metrics import load

    module = load(task.metric_module).compute(predictions=predictions, references=references, languages=languages)
    headline, ours = module[task.primary_metric], found[task.primary_metric]["value"]
    if abs(headline - ours) > 1e-6:
        raise RuntimeError(f"{task.primary_metric}: {headline} by the evaluate module, {ours} here")


def baseline_predictions(task: Any, train: list[Any], test: list[Any]) -> dict[str, list[Any]]:
    """What the task's simple systems predict for `test`."""
    from septet.tasks.harness.baselines import baselines

    def as_rows(examples: list[Any]) -> list[dict[str, Any]]:
        return [{"id": e.id, "lang": e.lang, "input": e.input, "reference": e.reference} for e in examples]

    if task.baselines is not None:
        return {name: predict(as_rows(train), as_rows(test)) for name, predict in task.baselines.items()}
    return baselines(task.name, as_rows(train), as_rows(test))


def showcase(task: Any, model: Any, tokenizer: Any, config: EvaluateConfig) -> list[dict[str, str]]:
    """The inputs of --showcase for this task with whatever the model answers."""
    if config.showcase is None:
        return []
    given = read_json(config.showcase).get(task.name)
    if given is None:
        return []
    example = task.showcase(given)
    [prediction] = task.predict(model, tokenizer, [example], 1)
    text = "\n".join(str(given[key]) for key in ("question", "context", "text") if key in given)
    return [{"title": task.title, "input": text, "prediction": task.shown(prediction, example)}]


def shown_path(path: str | Path) -> str:
    """A path for a report that others will read: as it was given, but of an absolute one the last two parts alone."""
    return str(path) if not Path(path).is_absolute() else "/".join(Path(path).parts[-2:])


def is_synthetic(data: Path) -> bool:
    """Whether a task set lies in the embedded sample."""
    return (data.parent / "SOURCE.md").is_file() and (data.parent / "manifest.json").is_file()


def finetune_settings(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the model was fine-tuned with: the configuration, with defaults as they were resolved."""
    left_out = ("base", "data", "columns", "task")
    config = {k: v for k, v in manifest.get("config", {}).items() if v is not None and k not in left_out}
    return {**config, **manifest.get("counts", {}).get("resolved", {})}


def hardware() -> str:
    """Processor, cores, memory and accelerator of this machine, as a report states them."""
    import torch

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB{device}"


def libraries() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    names = ("torch", "transformers", "tokenizers", "sacrebleu", "rouge-score", "seqeval", "scikit-learn", "evaluate")
    return {name: version(name) for name in names}


if __name__ == "__main__":
    run_cli(run, EvaluateConfig)
