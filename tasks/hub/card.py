"""The model card: every number comes from a manifest or a report; what is unknown is left out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from septet.data.manifest import read_json

PIPELINES = {
    "SeptetForCausalLM": "text-generation",
    "SeptetForMaskedLM": "fill-mask",
    "SeptetForPreTraining": "fill-mask",
    "SeptetForSequenceClassification": "text-classification",
    "SeptetForTokenClassification": "token-classification",
    "SeptetForQuestionAnswering": "question-answering",
}
TASK_TYPES = {"qa": "question-answering", "classification": "text-classification", "ner": "token-classification"}


def project_file(name: str) -> Path:
    """A file that ships at the project's root: `model_card.md` or `LICENSE`."""
    places = [Path(__file__).resolve().parents[2] / name, Path(sys.prefix) / "share" / "septet" / name]
    return next(place for place in places if place.is_file())


def card_data(
    config: Mapping[str, Any], reports: Sequence[Mapping[str, Any]], name: str, license_id: str, base_model: str | None
) -> Any:
    """The card's metadata, with one result in `model-index` for each metric of each report."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for report in reports:
        dataset = "septet-sample" if report["synthetic"] else Path(report["data"]["test"]["path"]).parent.name
        for metric, score in report["scores"].items():
            results.append(
                EvalResult(
                    task_type=TASK_TYPES.get(report["task"], report["task"]),
                    task_name=report["title"],
                    dataset_type=dataset,
                    dataset_name=f"{dataset} (synthetic)" if report["synthetic"] else dataset,
                    dataset_split=Path(report["data"]["test"]["path"]).name.split(".")[0],
                    metric_type=metric,
                    metric_name=metric,
                    metric_value=round(score["value"], 2),
                )
            )
    languages = sorted({lang for report in reports for lang in report["languages"]}) or ["en", "fr", "zh"]
    return ModelCardData(
        language=languages,
        license=license_id,
        library_name="transformers",
        pipeline_tag=PIPELINES.get(config["trained_heads"][0]),
        tags=["septet", "custom_code", *sorted({report["task"] for report in reports})],
        base_model=base_model,
        model_name=name,
        eval_results=results or None,
    )


def write_card(
    folder: Path, model: Path, reports: Sequence[Mapping[str, Any]], name: str, license_id: str, base_model: str | None
) -> None:
    """Writes `README.md` into a Hub folder from `model_card.md`, the run's manifest and the reports."""
    from huggingface_hub import ModelCard

    from septet.tasks.harness.finetune import read_run
    from septet.tasks.harness.report import summary_table

    config = read_json(model / "config.json")
    run = read_run(model)
    synthetic = any(report["synthetic"] for report in reports) or "sample" in str(run.get("inputs", {}))
    pretraining = read_run(Path(run["inputs"]["base"]["path"])) if run.get("stage") == "finetune" else run
    card = ModelCard.from_template(
        card_data(config, reports, name, license_id, base_model),
        template_path=str(project_file("model_card.md")),
        name=name,
        config=config,
        heads=config["trained_heads"],
        run=run,
        pretraining=pretraining if pretraining.get("stage") == "pretrain" else {},
        reports=reports,
        summary=summary_table(reports) if reports else "",
        synthetic=synthetic,
    )
    card.save(folder / "README.md")
