"""Build a Hub folder from a checkpoint, verify it as a stranger would, and upload it if asked.

    septet publish --model runs/classification/final --reports reports/classification --output hub/classification
    septet publish ... --repo-id owner/name --no-dry-run

The folder holds the weights (safetensors), the code, the tokenizer, the card, the licence, and `evidence/`: golden inputs
and outputs of every trained head, digests of every tensor and file, and the reports with their predictions.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, finished, read_json, write_json, writing

GOLDEN_TEXTS = (
    "The morning train to Lyon leaves at half past seven.",
    "Où est le chat ? Il dort sur le toit, « comme toujours ».",
    "人工智能改变世界，2026年。",
    "A much shorter one!",
)
COPIED = ("*.safetensors", "*.safetensors.index.json", "*.py", "config.json", "generation_config.json", "token*.json",
          "special_tokens_map.json", "chat_template.jinja")  # fmt: skip


@dataclass(frozen=True)
class PublishConfig:
    model: Path = Path("runs/task/final")
    """a checkpoint folder: a run's final/ or any step_<n>/"""
    output: Path = Path("hub/model")
    """the Hub folder to build"""
    reports: tuple[Path, ...] = ()
    """what `septet evaluate` wrote for this model; they become evidence and the card's numbers"""
    name: str | None = None
    """the model's name on the card; default: the folder's"""
    base_model: str | None = None
    """repository of the model this one was fine-tuned from, for the card"""
    license: str = "apache-2.0"
    """of the weights, as the Hub names licences"""
    repo_id: str | None = None
    """owner/name to upload to"""
    revision: str | None = None
    """branch to upload to; default: main"""
    private: bool = False
    """make a new repository private"""
    dry_run: bool = True
    """with --no-dry-run and --repo-id the verified folder is uploaded; otherwise it is only built and verified"""
    overwrite: bool = False
    """replace what stands at --output"""


def run(config: PublishConfig) -> Path:
    """Builds and verifies the folder, uploads it if asked; returns the folder.

    Raises:
        UserError: a folder that cannot be published, a check that fails, an invalid repository name, or a Hub that
            refuses or does not answer. Nothing is uploaded unless every check has passed.
    """
    from septet.modeling.checkpoint import require_model_folder
    from septet.tasks.harness.report import read_report
    from septet.tasks.hub.verify import check_folder

    _check_upload(config)
    model = require_model_folder(config.model)
    inputs = {"model": model, **{f"report {place.name}": place for place in config.reports}}
    if not finished(config.output, "publish", _identity(config), inputs, config.overwrite):
        reports = [read_report(place) for place in config.reports]
        with writing(config.output, "publish", _identity(config), inputs) as out:
            _build(config, model, out.path)
            checks = _passed(check_folder(out.path), config.output)
            out.counts.update(checks=len(checks), reports=len(reports))
        print(f"publish: {config.output} is built and passes all {out.counts['checks']} checks", flush=True)
    if config.repo_id:
        _upload(config)
    return config.output


def _identity(config: PublishConfig) -> dict[str, Any]:
    """What decides the folder's content: where it is uploaded does not."""
    return {"name": config.name, "base_model": config.base_model, "license": config.license}


def _passed(checks: list[dict[str, Any]], place: Path) -> list[dict[str, Any]]:
    failed = [check for check in checks if not check["ok"]]
    if failed:
        raise UserError(
            f"{place}: cannot be published, {len(failed)} of {len(checks)} checks failed ({failed[0]['check']}: "
            f"{failed[0]['detail']}); mend the model folder and publish again"
        )
    return checks


def _build(config: PublishConfig, model: Path, folder: Path) -> None:
    from septet.data.pack import load_tokenizer
    from septet.tasks.harness.finetune import check_tokenizer
    from septet.tasks.harness.report import read_report
    from septet.tasks.hub.card import project_file, write_card

    for pattern in COPIED:
        for file in sorted(model.glob(pattern)):
            if file.name not in (FILE_NAME, "optimizer.safetensors"):
                shutil.copy2(file, folder / file.name)
    shutil.copy2(project_file("LICENSE"), folder / "LICENSE")
    tokenizer = load_tokenizer(folder)
    reports = []
    for place in config.reports:
        target = folder / "evidence" / place.name
        target.mkdir(parents=True)
        for name in ("report.json", "report.md", "predictions.jsonl"):
            shutil.copy2(place / name, target / name)
        reports.append(read_report(place))
    loaded = read_json(folder / "config.json")
    if not loaded.get("trained_heads"):
        raise UserError(f"{model}: its config.json declares no trained_heads; publish a folder that Septet saved")
    write_card(folder, model, reports, config.name or config.output.name, config.license, config.base_model)
    _write_evidence(folder, tokenizer, loaded["trained_heads"], check_tokenizer)


def _write_evidence(folder: Path, tokenizer: Any, trained_heads: list[str], check_tokenizer: Any) -> None:
    """Golden inputs and outputs per head, a generation, and digests: what `stranger.py` compares with."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    from septet.modeling import modeling_septet
    from septet.tasks.hub import stranger

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    golden: dict[str, Any] = {}
    conformance: dict[str, Any] = {"trained_heads": trained_heads}
    for name in ["SeptetModel", *trained_heads]:
        model = getattr(modeling_septet, name).from_pretrained(folder, dtype=torch.float32).eval()
        check_tokenizer(tokenizer, model.config, folder)
        length = min(48, model.config.max_position_embeddings)
        batch = tokenizer(
            list(GOLDEN_TEXTS),
            padding=True,
            truncation=True,
            max_length=length,
            padding_side="right",
            return_tensors="pt",
        )
        with torch.no_grad():
            outputs = model(**batch)
        golden[f"{name}.input_ids"], golden[f"{name}.attention_mask"] = batch["input_ids"], batch["attention_mask"]
        for key in stranger.HEADS[name][1]:
            golden[f"{name}.{key}"] = outputs[key].float().contiguous()
        if name == "SeptetForCausalLM":
            settings_path = folder / "generation_config.json"
            settings = read_json(settings_path) if settings_path.is_file() else {}
            if "do_sample" not in settings:  # the pipeline's own default samples
                write_json(settings_path, {**settings, "do_sample": False})
            ids = batch["input_ids"][:1, : int(batch["attention_mask"][0].sum())]
            room = min(16, model.config.max_position_embeddings - ids.shape[1])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=room)
            conformance["generation"] = {
                "input_ids": ids[0].tolist(),
                "output_ids": out[0, ids.shape[1] :].tolist(),
                "max_new_tokens": room,
            }
    evidence = folder / "evidence"
    evidence.mkdir(exist_ok=True)
    save_file(golden, evidence / "golden.safetensors")
    tensors: dict[str, str] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors.update({key: stranger.tensor_digest(value) for key, value in load_file(shard).items()})
    conformance |= {
        "tensors": tensors,
        "encodings": {text: tokenizer(text)["input_ids"] for text in GOLDEN_TEXTS},
        "libraries": {"torch": torch.__version__, "transformers": transformers.__version__},
        "files": {
            str(file.relative_to(folder)): stranger.sha256(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != "conformance.json"
        },
    }
    write_json(evidence / "conformance.json", conformance)


def _check_upload(config: PublishConfig) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if config.repo_id is None:
        if not config.dry_run:
            raise UserError("--no-dry-run: nowhere to upload to; give --repo-id owner/name, or leave the dry run on")
        return
    try:
        validate_repo_id(config.repo_id)
    except HFValidationError as error:
        raise UserError(f"--repo-id {config.repo_id!r}: {str(error).split('. ')[0]}; write owner/name") from error


def _upload(config: PublishConfig) -> None:
    """One commit with every file of the verified folder, or in a dry run what it would hold."""
    files = sorted(p for p in config.output.rglob("*") if p.is_file() and p.name != FILE_NAME)
    megabytes = sum(p.stat().st_size for p in files) / 1e6
    if config.dry_run:
        print(f"publish: dry run; would upload {len(files)} files, {megabytes:.1f} MB, to {config.repo_id}:")
        for file in files:
            print(f"  {file.relative_to(config.output)}")
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(config.repo_id, private=config.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=config.repo_id,
            folder_path=config.output,
            revision=config.revision,
            ignore_patterns=[FILE_NAME],
            commit_message=f"Publish {config.output.name} with Septet",
        )
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{config.repo_id}: the upload failed ({reason}); check the name, the network and your login "
            f"(HF_TOKEN or `hf auth login`), and run the same command again; {config.output} is untouched"
        ) from error
    print(f"publish: {len(files)} files, {megabytes:.1f} MB, are at {commit.commit_url}", flush=True)


if __name__ == "__main__":
    run_cli(run, PublishConfig)
