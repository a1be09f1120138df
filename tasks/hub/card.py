"""The model card: every number comes from a manifest or a report; what is unknown is left out.

A card is a function of the folder that it lies in: the reports in `evidence/`, and `evidence/card.json`, which keeps what
configuration and manifests of the runs said. So it can be made again, and compared (`septet.tasks.hub.claims`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from septet.data.errors import UserError
from septet.data.manifest import FILE_NAME, read_json, sha256_of_file, write_json

FACTS = "card.json"
# What a card states of the runs behind a model, by part of their manifests.
_OF_A_RUN = {
    "config": ("objective", "tokens_per_step", "optimizer", "learning_rate", "schedule", "task", "method", "seed"),
    "counts": ("tokens", "steps", "num_parameters", "training_seconds", "environment", "validation", "rows", "resolved",
               "truncated", "training_joules"),
}  # fmt: skip

PIPELINES = {
    "SeptetForCausalLM": "text-generation",
    "SeptetForMaskedLM": "fill-mask",
    "SeptetForPreTraining": "fill-mask",
    "SeptetForSequenceClassification": "text-classification",
    "SeptetForTokenClassification": "token-classification",
    "SeptetForQuestionAnswering": "question-answering",
}

LIBRARIES = {"adapter": "peft", "gguf": "gguf", "onnx": "onnx"}
CODE_TAGS = {"model": ("custom_code",), "adapter": ("custom_code",)}


def project_file(name: str) -> Path:
    """A file that ships at the project's root: `model_card.md` or `LICENSE`."""
    places = [Path(__file__).resolve().parents[2] / name, Path(sys.prefix) / "share" / "septet" / name]
    return next(place for place in places if place.is_file())


def card_data(heads: Sequence[str], reports: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Any:
    """The card's metadata, with one result in `model-index` for each metric of each report."""
    from huggingface_hub import EvalResult, ModelCardData

    from septet.tasks.hub.stranger import card_results

    results = [
        EvalResult(
            task_type=task,
            task_name=report["title"],
            dataset_type=dataset,
            dataset_name=f"{dataset} (synthetic)" if report["synthetic"] else dataset,
            dataset_split=split,
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for report in reports
        for task, dataset, split, metric, value in card_results(report)
    ]
    languages = sorted({lang for report in reports for lang in report["languages"]})
    if not languages and facts.get("pretraining"):
        languages = ["en", "fr", "zh"]
    return ModelCardData(
        language=languages or None,
        license=facts["license"],
        library_name=LIBRARIES.get(facts["kind"], "transformers"),
        pipeline_tag=PIPELINES.get(heads[0]),
        tags=["septet", *CODE_TAGS.get(facts["kind"], ()), *sorted({report["task"] for report in reports})],
        base_model=facts["base_model"],
        model_name=facts["name"],
        eval_results=results or None,
    )


def run_of(model: Path) -> dict[str, Any]:
    """The manifest of the run that ended with `model`; {} for a folder that it does not list, such as a `step_<n>`,
    whose tokens and scores are not those of the end."""
    from septet.tasks.harness.finetune import read_run

    run = read_run(model)
    return run if any(name.startswith(f"{Path(model).name}/") for name in run.get("files", {})) else {}


def is_from_sample(run: Mapping[str, Any], pretraining: Mapping[str, Any]) -> bool:
    """Whether the embedded sample was among the data of either run, as far as they are still there to be asked."""
    from septet.tasks.harness.predict import is_synthetic

    if run.get("stage") == "finetune" and is_synthetic(Path(run["config"]["data"])):
        return True
    packed = Path(pretraining["inputs"]["data"]["path"]) / FILE_NAME if pretraining else None
    sources = read_json(packed)["counts"]["train"] if packed and packed.is_file() else {}
    return any("/septet-sample/" in source for source in sources)


def write_card(folder: Path, model: Path, facts: Mapping[str, Any]) -> None:
    """Writes `README.md` and `evidence/card.json` into a Hub folder whose reports are there.

    Args:
        model: the checkpoint that the folder was made from.
        facts: "kind" (of folder: see `stranger.NEEDED`), "heads", "name", "license", "base_model", and what else the
            kind's template asks for.
    """
    run, reports = run_of(model), reports_in(folder)
    pretraining = run
    synthetic = any(report["synthetic"] for report in reports)
    while pretraining.get("stage") == "finetune":  # on what was fine-tuned before, perhaps
        synthetic |= is_from_sample(pretraining, {})
        pretraining = run_of(Path(pretraining["inputs"]["base"]["path"]))
    pretraining = pretraining if pretraining.get("stage") == "pretrain" else {}
    synthetic |= is_from_sample({}, pretraining)
    (folder / "evidence").mkdir(exist_ok=True)
    stated = {
        **facts,
        "config": read_json(model / "config.json"),
        "synthetic": synthetic,
        "run": _stated(run),
        "pretraining": _stated(pretraining),
        "template_sha256": sha256_of_file(template_of(facts["kind"])),
    }
    write_json(folder / "evidence" / FACTS, stated)
    (folder / "README.md").write_text(card_text(folder, reports), encoding="utf-8", newline="")


def template_of(kind: str) -> Path:
    """The template of a kind of folder's card."""
    if kind == "model":
        return project_file("model_card.md")
    return Path(__file__).with_name("adapter_card.md.j2" if kind == "adapter" else "native_card.md.j2")


def reports_in(folder: Path) -> list[dict[str, Any]]:
    """The reports in `evidence/`, by name."""
    from septet.tasks.harness.report import read_report

    return [read_report(path.parent) for path in sorted((folder / "evidence").glob("*/report.json"))]


def card_text(folder: Path, reports: Sequence[Mapping[str, Any]]) -> str:
    """The card of a Hub folder with these reports, from its kind's template and `evidence/card.json`.

    Raises:
        UserError: `card.json` lacks what the template asks for, or has what it must not.
    """
    import jinja2
    from huggingface_hub import ModelCard

    from septet.tasks.harness.report import summary_table

    facts = read_json(folder / "evidence" / FACTS)
    given = {"reports": reports, "summary": summary_table(reports) if reports else ""}
    try:
        card = ModelCard.from_template(
            card_data(facts["heads"], reports, facts), template_path=str(template_of(facts["kind"])), **given, **facts
        )
    except (KeyError, TypeError, jinja2.TemplateError) as error:
        raise UserError(f"{folder}: no card can be written of evidence/{FACTS} ({error}); publish again") from error
    return str(card)


def _stated(run: Mapping[str, Any]) -> dict[str, Any]:
    if not run:
        return {}
    parts = {part: {k: run[part][k] for k in names if k in run[part]} for part, names in _OF_A_RUN.items()}
    return {"stage": run["stage"], **parts}
