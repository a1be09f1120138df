"""Build a Hub folder from a checkpoint, verify it as a stranger would, and upload it if asked.

    septet publish --model runs/classification/final --reports reports/classification --output hub/classification
    septet publish ... --repo-id owner/name --no-dry-run

The folder holds the weights (safetensors), the code, the tokenizer, the card, the licence, and `evidence/`: golden inputs
and outputs of every trained head, digests of every tensor and file, the reports with their predictions, and `verify.py`,
which checks all that where Septet is not installed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from septet.data.errors import UserError, run_cli
from septet.data.manifest import FILE_NAME, fingerprint, finished, read_json, write_json, writing

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
    tag: str | None = None
    """name of this release, as v1.0, by which --revision finds it for ever"""
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
    from septet.tasks.hub.verify import check_folder

    _check_upload(config)
    model = require_model_folder(config.model)
    places = _report_folders(config.reports, model)
    inputs = {"model": model, **{f"report {name}": place for name, place in places.items()}}
    if not finished(config.output, "publish", _identity(config), inputs, config.overwrite):
        with writing(config.output, "publish", _identity(config), inputs) as out:
            _build(config, model, places, out.path)
            checks = _passed(check_folder(out.path), config.output)
            out.counts.update(checks=len(checks), reports=len(places))
        print(f"publish: {config.output} is built and passes all {out.counts['checks']} checks", flush=True)
    elif config.repo_id:  # it was built some time ago: what goes up is what passes now
        _passed(check_folder(config.output), config.output)
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
        was, digest = read_report(place)["model"].get("fingerprint"), fingerprint(model)
        if was != digest:
            raise UserError(
                f"--reports {place}: is on another model (fingerprint {str(was)[:12]}, {model} has {digest[:12]}); "
                "evaluate the folder that is to be published"
            )
    return places


def _copy(file: Path, root: Path, target: Path) -> None:
    """Copies a file of `root`; a link that leads out of it could publish anything on this machine."""
    if not file.is_file():
        raise UserError(f"{file}: is missing; run the stage that makes {root} again")
    if not file.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{file}: is a link out of {root}; put the file itself there (cp -rL makes such a copy)")
    shutil.copyfile(file, target)


def _build(config: PublishConfig, model: Path, places: dict[str, Path], folder: Path) -> None:
    from septet.data.pack import load_tokenizer
    from septet.tasks.harness.finetune import check_tokenizer
    from septet.tasks.hub import stranger
    from septet.tasks.hub.card import project_file, write_card

    for pattern in COPIED:
        for file in sorted(model.glob(pattern)):
            if file.name not in (FILE_NAME, "optimizer.safetensors"):
                _copy(file, model, folder / file.name)
    shutil.copyfile(project_file("LICENSE"), folder / "LICENSE")
    tokenizer = load_tokenizer(folder)
    for name, place in places.items():
        target = folder / "evidence" / name
        target.mkdir(parents=True)
        for part in ("report.json", "report.md", "predictions.jsonl"):
            _copy(place / part, place, target / part)
    loaded = read_json(folder / "config.json")
    if not loaded.get("trained_heads"):
        raise UserError(f"{model}: its config.json declares no trained_heads; publish a folder that Septet saved")
    if "SeptetForCausalLM" in loaded["trained_heads"]:
        _complete_generation_settings(folder / "generation_config.json", loaded)
    write_card(folder, model, config.name or config.output.name, config.license, config.base_model)
    shutil.copyfile(Path(stranger.__file__), folder / "evidence" / "verify.py")
    _write_evidence(folder, tokenizer, loaded["trained_heads"], check_tokenizer)


def _complete_generation_settings(path: Path, config: dict[str, Any]) -> None:
    """Where the file exists, transformers asks the model's configuration for nothing more: without eos in it no answer
    ends, and without do_sample the pipeline samples."""
    ids = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = read_json(path) if path.is_file() else {}
    write_json(path, {**ids, "do_sample": False, **settings})


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
            context = model.config.max_position_embeddings
            ids = batch["input_ids"][:1, : min(int(batch["attention_mask"][0].sum()), context // 2)]
            room = min(16, context - ids.shape[1])
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
    """One commit with every file of the verified folder, which is then downloaded again and verified; in a dry run, what
    it would hold."""
    files = sorted(p for p in config.output.rglob("*") if p.is_file() and p.name != FILE_NAME)
    megabytes = sum(p.stat().st_size for p in files) / 1e6
    if config.dry_run:
        print(f"publish: dry run; would upload {len(files)} files, {megabytes:.1f} MB, to {config.repo_id}:")
        for file in files:
            print(f"  {file.relative_to(config.output)}")
        return
    from huggingface_hub import HfApi

    from septet.tasks.hub.verify import check_folder, download

    api = HfApi()
    with _hub_errors(config):
        repo_id = api.create_repo(config.repo_id, private=config.private, exist_ok=True).repo_id
        if config.tag and any(tag.name == config.tag for tag in api.list_repo_refs(repo_id).tags):
            raise UserError(
                f"--tag {config.tag}: {repo_id} has one of that name; a release stays what it was, name another"
            )
        if config.revision and not config.revision.startswith("refs/"):
            api.create_branch(repo_id, branch=config.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=config.output,
            revision=config.revision,
            ignore_patterns=[FILE_NAME],
            commit_message=f"Publish {config.output.name} with Septet",
        )
    print(f"publish: {len(files)} files, {megabytes:.1f} MB, are at {commit.commit_url}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        failed = [check for check in check_folder(download(repo_id, commit.oid, Path(place))) if not check["ok"]]
    if failed:
        raise UserError(
            f"{repo_id}: what comes back is not what was sent ({failed[0]['check']}: {failed[0]['detail']}); "
            "run the same command again, and tell nobody of this revision until it passes"
        )
    if config.tag:
        with _hub_errors(config):
            api.create_tag(repo_id, tag=config.tag, revision=commit.oid)
    print(f"publish: it was downloaded again, and passes; load it with revision={commit.oid!r}", flush=True)


@contextmanager
def _hub_errors(config: PublishConfig) -> Iterator[None]:
    """What the client raises as a `UserError`: its own errors, the system's, and those of whichever HTTP library it uses."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{config.repo_id}: the upload failed ({reason}); check the name, the network and your login "
            f"(HF_TOKEN or `hf auth login`), and run the same command again; {config.output} is untouched"
        ) from error


if __name__ == "__main__":
    run_cli(run, PublishConfig)
