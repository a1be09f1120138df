"""Build a Hub folder from a checkpoint, verify it as a stranger would, and upload it if asked.

    septet publish --model runs/classification/final --reports reports/classification --output hub/classification
    septet publish ... --repo-id owner/name --no-dry-run

The folder holds the weights (safetensors), the code, the tokenizer, the card, the licence, and `evidence/`: golden inputs
and outputs of every trained head, digests of every tensor and file, the reports with their predictions, and `verify.py`,
which checks all that where Septet is not installed. With --adapter-only it holds the adapter alone; with --native more
folders are built beside it, with the same model in forms that need no remote code (`septet.tasks.hub.forms`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, fingerprint, finished, problems, read_json, write_json, writing
from septet.tasks.hub.upload import UploadConfig, check_target, tag, upload

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
CODE_AND_SETTINGS = ("*.py", "config.json", "generation_config.json")
TOKENIZER = ("token*.json", "special_tokens_map.json", "chat_template.jinja")
PRIVATE = (FILE_NAME, "optimizer.safetensors")


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
    """repository of the model this one was fine-tuned from, for the card; with --adapter-only it is loaded from there"""
    adapter_only: bool = False
    """publish the adapter/ of a run with --method lora or qlora in place of the merged weights"""
    native: tuple[Literal["qwen3", "llama", "gguf", "onnx"], ...] = ()
    """build OUTPUT-qwen3 and so on too, for servers that take no remote code, each verified for itself and uploaded to
    REPO_ID-qwen3 and so on"""
    license: str = "apache-2.0"
    """of the weights, as the Hub names licences"""
    license_file: Path | None = None
    """its text, for the repository; Apache 2.0 is at hand"""
    upload: Annotated[UploadConfig, tyro.conf.arg(name="")] = field(default_factory=UploadConfig)
    overwrite: bool = False
    """replace what stands at --output"""


def run(config: PublishConfig) -> Path:
    """Builds and verifies the folder, uploads it if asked; returns the folder.

    Raises:
        UserError: a folder that cannot be published, a check that fails, an invalid repository name, or a Hub that
            refuses or does not answer. Nothing is uploaded unless every check of every folder has passed.
    """
    from septet.modeling.checkpoint import require_model_folder
    from septet.tasks.hub import forms

    check_target(config.upload)
    model = require_model_folder(config.model)
    if (model / FILE_NAME).is_file() and (wrong := problems(model)):
        raise UserError(f"{model}: is not what its {FILE_NAME} lists ({wrong[0]}); make it again, or remove that file")
    reports = _report_folders(config.reports, model)
    named = replace(config, name=config.name or config.output.name)
    build = partial(forms.build_adapter if config.adapter_only else build_model, named, model, reports)
    base = forms.base_of(model) if config.adapter_only else None
    built = {"": _built(config.output, build, _identity(config), model, reports, config, base)}
    for form in config.native:
        place = config.output.with_name(f"{config.output.name}-{form}")
        twin = partial(forms.build_native, named, model, form)
        identity = {**_identity(config), "form": form, "twin_of": forms.twin_of(config)}
        built[f"-{form}"] = _built(place, twin, identity, model, {}, config)
    sent = []
    for suffix, folder in built.items() if config.upload.repo_id else ():
        target = replace(config.upload, repo_id=f"{config.upload.repo_id}{suffix}")
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file() and p.name != FILE_NAME}
        from septet.tasks.hub.verify import check_folder

        sent.append((target, upload(target, files, folder.name, partial(check_folder, base=base))))
    for target, commit in sent:
        tag(target, commit)
    return config.output


def _built(
    output: Path,
    build: Callable[[Path], None],
    identity: dict[str, Any],
    model: Path,
    reports: dict[str, Path],
    config: PublishConfig,
    base: Path | None = None,
) -> Path:
    """A folder that `build` has filled and that passed every check then; and now, if it is to be uploaded."""
    from septet.tasks.hub.verify import check_folder

    inputs = {"model": model, **{f"report {name}": place for name, place in reports.items()}}
    if config.license_file:
        inputs["licence"] = config.license_file
    if not finished(output, "publish", identity, inputs, config.overwrite):
        with writing(output, "publish", identity, inputs) as out:
            build(out.path)
            checks = _passed(check_folder(out.path, base=base), output)
            out.counts.update(checks=len(checks), reports=len(reports))
        print(f"publish: {output} is built and passes all {out.counts['checks']} checks", flush=True)
    elif config.upload.repo_id:  # it was built some time ago: what goes up is what passes now
        _passed(check_folder(output, base=base), output)
    return output


def _identity(config: PublishConfig) -> dict[str, Any]:
    """What decides the folder's content: where it is uploaded does not."""
    named = {"name": config.name, "base_model": config.base_model, "license": config.license}
    return {**named, **({"adapter_only": True} if config.adapter_only else {})}


def _passed(checks: list[dict[str, Any]], place: Path) -> list[dict[str, Any]]:
    failed = [check for check in checks if not check["ok"]]
    if failed:
        raise UserError(
            f"{place}: cannot be published, {len(failed)} of {len(checks)} checks failed ({failed[0]['check']}: "
            f"{failed[0]['detail']}); mend the model folder and publish again with --overwrite"
        )
    return checks


def _report_folders(reports: tuple[Path, ...], model: Path) -> dict[str, Path]:
    """The reports by the names they get in `evidence/`.

    Raises:
        UserError: two of one name, or a report on another model: the card would state its numbers for this one.
    """
    from septet.tasks.harness.report import read_report

    places: dict[str, Path] = {}
    for place in reports:
        name = Path(place).resolve().name
        if name in places:
            raise UserError(f"--reports {place}: a second report called {name!r}; rename one of the two folders")
        places[name] = Path(place)
        report = read_report(place)
        was, digest = report["model"].get("fingerprint"), fingerprint(model)
        several = "the folds of a cross-validation" if report["folds"] else "an ensemble"
        if report["folds"] or report["model"].get("ensemble"):
            raise UserError(
                f"--reports {place}: scores {several}, not {model} alone; evaluate the folder that is to be published"
            )
        if was != digest:
            raise UserError(
                f"--reports {place}: is on another model (fingerprint {str(was)[:12]}, {model} has {digest[:12]}); "
                "evaluate the folder that is to be published"
            )
    return places


def copy(file: Path, root: Path, target: Path) -> None:
    """Copies a file of `root`; a link that leads out of it could publish anything on this machine."""
    if not file.is_file():
        raise UserError(f"{file}: is missing; run the stage that makes {root} again")
    if not file.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{file}: is a link out of {root}; put the file itself there (cp -rL makes such a copy)")
    shutil.copyfile(file, target)


def copy_matching(patterns: tuple[str, ...], root: Path, folder: Path) -> None:
    """Copies the files of `root` that match, but those that are of use here alone."""
    for pattern in patterns:
        for file in sorted(root.glob(pattern)):
            if file.name not in PRIVATE:
                copy(file, root, folder / file.name)


def build_model(config: PublishConfig, model: Path, reports: dict[str, Path], folder: Path) -> None:
    """Fills `folder` with a checkpoint, its code, its card and its evidence."""
    import torch

    from septet.data.pack import load_tokenizer
    from septet.modeling import modeling_septet
    from septet.tasks.harness.finetune import check_tokenizer
    from septet.tasks.hub.card import write_card
    from septet.tasks.hub.evidence import write_evidence

    copy_matching((*WEIGHTS, *CODE_AND_SETTINGS, *TOKENIZER), model, folder)
    heads = add_common_files(config, model, reports, folder)
    tokenizer = load_tokenizer(folder)
    write_card(folder, model, {"kind": "model", "heads": heads, **card_facts(config)})

    def models() -> Any:
        for name in ["SeptetModel", *heads]:
            loaded = getattr(modeling_septet, name).from_pretrained(folder, dtype=torch.float32)
            check_tokenizer(tokenizer, loaded.config, folder)
            yield name, loaded

    write_evidence(folder, tokenizer, models(), heads)


def add_common_files(config: PublishConfig, model: Path, reports: dict[str, Path], folder: Path) -> list[str]:
    """The licence, the reports, and whole generation settings; returns the trained heads."""
    import transformers

    from septet.tasks.hub.card import project_file

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if config.license_file is None and config.license != "apache-2.0":
        raise UserError(
            f"--license {config.license}: give its text too, with --license-file, since the repository holds it"
        )
    text = config.license_file or project_file("LICENSE")
    copy(text, text.parent, folder / "LICENSE")
    for name, place in reports.items():
        target = folder / "evidence" / name
        target.mkdir(parents=True)
        for part in ("report.json", "report.md", "predictions.jsonl"):
            copy(place / part, place, target / part)
    described = read_json(model / "config.json")
    heads: list[str] = described.get("trained_heads") or []
    if not heads:
        raise UserError(f"{model}: its config.json declares no trained_heads; publish a folder that Septet saved")
    if "SeptetForCausalLM" in heads and (folder / "config.json").is_file():
        complete_generation_settings(folder / "generation_config.json", described)
    return heads


def card_facts(config: PublishConfig) -> dict[str, Any]:
    """What the options say on the card."""
    return {"name": " ".join(str(config.name).split()), "license": config.license, "base_model": config.base_model}


def complete_generation_settings(path: Path, config: dict[str, Any]) -> None:
    """Where the file exists, transformers asks the model's configuration for nothing more: without eos in it no answer
    ends, and without do_sample the pipeline samples."""
    ids = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = read_json(path) if path.is_file() else {}
    write_json(path, {**ids, "do_sample": False, **settings})


if __name__ == "__main__":
    run_cli(run, PublishConfig)
