"""Publishing: a sound folder passes as a stranger sees it, each planted defect is found, and what is uploaded comes back."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hub_double
import pytest
import torch
from hub_defects import OF_BASE, OF_TUNED, TAMPERED, edit_json, edit_tensor, edit_text, renew_digests
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.modeling.checkpoint import save_model
from septet.modeling.modeling_septet import SeptetForCausalLM, SeptetForPreTraining
from septet.modeling.objectives import OBJECTIVES
from septet.tasks.harness import finetune, predict
from septet.tasks.harness.report import read_report
from septet.tasks.hub import card, claims, publish, verify
from septet.tasks.hub.upload import UploadConfig

TEXTS = [{"text": f"{'Goal' if n % 2 else 'Stew'} number {n}", "label": "sports" if n % 2 else "cooking", "lang": "en"} for n in range(30)]  # fmt: skip


@pytest.fixture(scope="module")
def base(config, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "final"
    config = type(config)(**{**config.to_dict(), "trained_heads": OBJECTIVES["joint"][1]})
    save_model(SeptetForPreTraining(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def hub(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Published folders of a base model and of a classifier with its report."""
    root = tmp_path_factory.mktemp("hub")
    for split, rows in (("train", TEXTS[:20]), ("validation", TEXTS[20:])):
        write_jsonl(root / "classification" / f"{split}.jsonl.gz", rows)
    data = str(root / "classification")
    finetune.run(finetune.FinetuneConfig("classification", base=base, data=data, output=root / "run", epochs=1))
    model = root / "run" / "final"
    predict.run(
        predict.EvaluateConfig("classification", model=model, data=data, output=root / "reports" / "classification")
    )
    publish.run(publish.PublishConfig(model=base, output=root / "base"))
    publish.run(
        publish.PublishConfig(model=model, output=root / "tuned", reports=(root / "reports" / "classification",))
    )
    report = root / "reports" / "classification"
    return {"base": root / "base", "tuned": root / "tuned", "model": model, "report": report}


def test_sound_folders_pass_every_check(hub: dict[str, Path]) -> None:
    before = {p: p.stat().st_mtime_ns for p in hub["base"].rglob("*")}
    for name, trained in (("base", 4), ("tuned", 1)):
        checks = verify.run(verify.VerifyConfig(str(hub[name])))
        assert all(check["ok"] for check in checks)
        compared = [check for check in checks if check["detail"].startswith("outputs within")]
        assert len(compared) == trained + 1  # and the decoder without a head
        assert sum(check["check"].startswith("AutoModel") for check in checks) == 8
    assert {p: p.stat().st_mtime_ns for p in hub["base"].rglob("*")} == before  # verify writes nothing
    settings = json.loads((hub["base"] / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"], settings["do_sample"]) == (2, 0, False)


def test_half_precision_and_a_short_context_can_be_published(config, tokenizer, tmp_path: Path) -> None:
    fields = {**config.to_dict(), "trained_heads": OBJECTIVES["causal"][1], "max_position_embeddings": 16}
    model = SeptetForCausalLM(type(config)(**fields)).to(torch.bfloat16)
    save_model(model, tokenizer, tmp_path / "final")
    folder = publish.run(publish.PublishConfig(model=tmp_path / "final", output=tmp_path / "hub"))
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_the_card_says_what_is_known_and_nothing_else(base: Path, tmp_path: Path) -> None:
    packed, folder = tmp_path / "packed", tmp_path / "run" / "final"
    shutil.copytree(base, folder)
    shutil.copytree(base, tmp_path / "run" / "step_7")
    packed.mkdir()
    (packed / "manifest.json").write_text(json.dumps({"counts": {"train": {"en/septet-sample/story": {}}}}))
    counts = {
        "steps": 1234,
        "tokens": 567_890,
        "num_parameters": 4321,
        "validation": {"en": {"bits_per_byte": 1.875}},
        "training_seconds": 90.0,
        "environment": {"num_processes": 1, "num_threads": 2, "device": "cpu"},
    }
    settings = {"objective": "joint", "tokens_per_step": 512, "optimizer": "muon", "learning_rate": 0.003}
    settings |= {"schedule": "wsd", "seed": 0, "data": str(packed)}
    inputs = {"data": {"path": str(packed)}}
    manifest = {"stage": "pretrain", "config": settings, "inputs": inputs, "counts": counts}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({**manifest, "files": {"final/config.json": {}}}))

    heads = json.loads((base / "config.json").read_text())["trained_heads"]

    def card_of(model: Path, name: str = "name") -> str:
        facts = {"kind": "model", "heads": heads, "name": name, "license": "apache-2.0", "base_model": None}
        card.write_card(tmp_path, model, facts)
        return (tmp_path / "README.md").read_text()

    finished = card_of(folder, "a<script> |b")
    assert "567,890 tokens in 1,234 steps" in finished
    assert "| bits per byte | 1.875 |" in finished
    assert "are synthetic" in finished  # the sample lies two stages back
    assert "# a&lt;script&gt; |b\n" in finished
    halfway = card_of(tmp_path / "run" / "step_7")
    assert "567,890" not in halfway  # those are the tokens of the end of the run
    assert "Nothing was measured" in halfway
    (packed / "manifest.json").write_text(json.dumps({"counts": {"train": {"en/my_sample": {}}}}))
    assert "synthetic" not in card_of(folder)


@pytest.fixture(scope="module")
def stranger():
    """The checks that need no model, in this process: the script is loaded by its path as the child would."""
    spec = importlib.util.spec_from_file_location("stranger", Path(verify.__file__).with_name("stranger.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", OF_TUNED)
def test_defects_that_show_without_running_anything(name: str, hub, stranger, tmp_path: Path) -> None:
    folder, defect = tmp_path / "folder", OF_TUNED[name]
    shutil.copytree(hub["tuned"], folder)
    defect.plant(folder)
    if not defect.digests:
        renew_digests(folder)
    conformance = json.loads((folder / "evidence" / "conformance.json").read_text())
    failures = []
    for check in (
        lambda: stranger.files_are_plain(folder),
        lambda: stranger.needed_files_are_there(folder, "model"),
        lambda: stranger.imports_are_allowed(folder, "model"),
        lambda: stranger.digests_are_as_published(folder, conformance),
        lambda: stranger.card_says_what_the_reports_say(folder),
    ):
        try:
            check()
        except Exception as error:
            failures.append(str(error))
    assert any(defect.message in failure for failure in failures), failures


@pytest.mark.parametrize("name", [name for name, defect in OF_BASE.items() if defect.tested])
def test_defects_that_show_when_it_runs(name: str, hub, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(hub["base"], folder)
    OF_BASE[name].plant(folder)
    renew_digests(folder)
    failed = [check["detail"] for check in verify.check_folder(folder) if not check["ok"]]
    assert any(OF_BASE[name].message in detail for detail in failed), failed


def test_a_tokenizer_of_another_model_is_found(hub, stranger, config, tokenizer) -> None:
    conformance = json.loads((hub["base"] / "evidence" / "conformance.json").read_text())
    stranger.tokenizer_fits(tokenizer, config, conformance)
    swapped = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(swapped)), **tokenizer.special_tokens_map
    )
    with pytest.raises(ValueError, match="is encoded otherwise"):
        stranger.tokenizer_fits(other, config, conformance)
    wrong_ids = type(config)(**{**config.to_dict(), "eos_token_id": 7})
    with pytest.raises(ValueError, match="eos is 2 for the tokenizer, 7 for the model"):
        stranger.tokenizer_fits(tokenizer, wrong_ids, conformance)


def test_two_reports_on_one_task_are_told_apart(hub, stranger, tmp_path: Path) -> None:
    shutil.copytree(hub["tuned"] / "evidence", tmp_path / "evidence")
    first = read_report(tmp_path / "evidence" / "classification")
    second = json.loads(json.dumps(first))
    second["data"]["test"]["path"] = "other/test.jsonl.gz"
    second["scores"]["accuracy"]["value"] = 12.34
    (tmp_path / "evidence" / "other").mkdir()
    (tmp_path / "evidence" / "other" / "report.json").write_text(json.dumps(second))
    facts = {"kind": "model", "name": "name", "license": "apache-2.0", "base_model": None}
    metadata = str(card.card_data(["SeptetForSequenceClassification"], [first, second], facts))
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n")
    assert stranger.card_says_what_the_reports_say(tmp_path) == f"{2 * len(first['scores'])} numbers"
    edit_text(tmp_path / "README.md", "12.34", "92.34")
    with pytest.raises(ValueError, match="the card states accuracy 92.34"):
        stranger.card_says_what_the_reports_say(tmp_path)


def test_a_stranger_checks_the_folder_with_what_lies_in_it(hub: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(hub["tuned"], folder)

    def check() -> subprocess.CompletedProcess:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-I", "evidence/verify.py"]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    (folder / ".git" / "objects").mkdir(parents=True)  # a clone has these
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    sound = check()
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert all(json.loads(line)["ok"] for line in sound.stdout.strip().split("\n"))
    edit_tensor(folder)
    assert check().returncode == 1


def test_every_number_of_a_card_is_computed_again(hub: dict[str, Path], capsys) -> None:
    for name in ("base", "tuned"):
        found = claims.claims(hub[name])
        assert {claim["status"] for claim in found} == {"supported"}
    assert sum(claim["claim"].startswith("classification: ") for claim in found) > 100
    verify.run(verify.VerifyConfig(str(hub["tuned"]), card=True))
    assert f"{len(found):,} supported, 0 drifted, 0 unsupported" in capsys.readouterr().out


def test_numbers_in_another_table_than_theirs_are_found(hub: dict[str, Path], tmp_path: Path) -> None:
    card_text = (hub["tuned"] / "README.md").read_text()
    rows = [line for line in card_text.split("\n") if line.startswith("| macro_")]
    swapped = card_text.replace(rows[0], "\0").replace(rows[1], rows[0]).replace("\0", rows[1])
    found = [claim for claim in claims.lines(swapped, card_text) if claim["status"] != "supported"]
    assert found and {claim["status"] for claim in found} == {"drifted"}
    assert all(claim["status"] == "supported" for claim in claims.lines(card_text, card_text))

    shutil.copytree(hub["tuned"], tmp_path / "hub")
    [report] = (tmp_path / "hub" / "evidence").glob("*/report.md")
    report.write_text(report.read_text().replace("| accuracy | ", "| accuracy | 9"))
    edit_text(report.with_name("report.json"), '"languages": [\n    "en"', '"languages": [\n    "fr"')
    wrong = {claim["claim"] for claim in claims.claims(tmp_path / "hub") if claim["status"] != "supported"}
    assert {"classification: report.md", "classification: languages.0"} <= wrong


def test_a_report_of_numbers_names_its_set_and_keeps_its_digits(stranger) -> None:
    scores = {"rmse": {"value": 0.0034567, "higher_is_better": False}, "pearson": {"value": 87.654}}
    report = {
        "task": "regression",
        "scores": scores,
        "data": {"test": {"path": "hub:stanfordnlp/sst:default", "split": "test"}},
    }
    assert stranger.card_results(report) == [
        ("regression", "stanfordnlp/sst", "test", "rmse", 0.00346),
        ("regression", "stanfordnlp/sst", "test", "pearson", 87.65),
    ]


def test_a_folder_with_other_reports_or_licence_is_another_folder(hub: dict[str, Path], tmp_path: Path) -> None:
    options = {"model": hub["model"], "output": tmp_path / "hub"}
    publish.run(publish.PublishConfig(**options, reports=(hub["report"],)))
    with pytest.raises(UserError, match="was made with the input report classification too"):
        publish.run(publish.PublishConfig(**options))
    with pytest.raises(UserError, match="--license mit: give its text too, with --license-file"):
        publish.run(publish.PublishConfig(**options, license="mit", overwrite=True))
    (tmp_path / "MIT.txt").write_text("Permission is hereby granted")
    publish.run(publish.PublishConfig(**options, license="mit", license_file=tmp_path / "MIT.txt", overwrite=True))
    assert (tmp_path / "hub" / "LICENSE").read_text() == "Permission is hereby granted"
    assert "license: mit" in (tmp_path / "hub" / "README.md").read_text()


def test_a_tag_is_given_when_everything_is_there(hub: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    """The second of two uploads fails: nothing is tagged yet, so that the same command can go on."""
    done: list[str] = []

    def upload(target, *_):
        if target.repo_id.endswith("-qwen3") and len(done) < 2:
            done.append("failed")
            raise UserError("the Hub is out")
        done.append(target.repo_id)
        return "c0ffee"

    monkeypatch.setattr(publish, "upload", upload)
    monkeypatch.setattr(publish, "tag", lambda target, commit: done.append(f"{target.repo_id} = {target.tag}"))
    config = publish.PublishConfig(
        hub["base"].parent / "base_model" / "final", tmp_path / "hub", native=("qwen3",),
        upload=UploadConfig("org/name", tag="v1", dry_run=False),
    )  # fmt: skip
    monkeypatch.setattr(publish, "_built", lambda output, *_: output.mkdir(parents=True, exist_ok=True) or output)
    monkeypatch.setattr("septet.modeling.checkpoint.require_model_folder", Path)
    with pytest.raises(UserError, match="the Hub is out"):
        publish.run(config)
    publish.run(config)
    assert done == ["org/name", "failed", "org/name", "org/name-qwen3", "org/name = v1", "org/name-qwen3 = v1"]


@pytest.mark.parametrize("change", TAMPERED)
def test_a_changed_number_is_found_by_its_digest_and_by_computing_it_again(
    change: str, hub, stranger, tmp_path
) -> None:
    for trial in range(5):
        folder = tmp_path / str(trial)
        shutil.copytree(hub["tuned"], folder)
        TAMPERED[change](folder, random.Random(trial))
        conformance = json.loads((folder / "evidence" / "conformance.json").read_text())
        with pytest.raises(ValueError, match="has changed since it was published"):
            stranger.digests_are_as_published(folder, conformance)
        assert {claim["status"] for claim in claims.claims(folder)} > {
            "supported"
        }  # had somebody changed the digest too


def test_what_nothing_gives_is_unsupported(hub, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(hub["tuned"], folder)
    edit_text(folder / "README.md", "## Limits", "It is the best model in the world, with 99.9 %.\n\n## Limits")
    report = folder / "evidence" / "classification" / "report.json"
    content = json.loads(report.read_text())
    content["scores"]["elegance"] = {"value": 100.0, "low": 99.0, "high": 100.0}
    report.write_text(json.dumps(content))
    unsupported = [claim["claim"] for claim in claims.claims(folder) if claim["status"] == "unsupported"]
    assert "classification: scores.elegance.value" in unsupported
    assert any(claim.startswith("README.md, line") for claim in unsupported)
    edit_json(folder / "evidence" / "card.json", template_sha256="0" * 64)
    assert claims.claims(folder)[-1]["detail"].startswith("the card was written by another version")


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_the_card_is_executed(name: str, hub: dict[str, Path]) -> None:
    text = (hub[name] / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == {"base": 3, "tuned": 1}[name]
    values = f"MODEL, REVISION, TEXT = {str(hub[name])!r}, None, 'The cat sleeps.'\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", values + "\n".join(snippets)], check=True, env=environment, capture_output=True
    )


def test_what_is_uploaded_comes_back(hub: dict[str, Path], tmp_path: Path) -> None:
    """Against a stand-in of the Hub, in processes of their own, since HF_ENDPOINT is read at import."""
    with hub_double.HubDouble() as server:
        environment = {
            **os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
        }  # fmt: skip
        base = [
            sys.executable,
            "-m",
            "septet.tasks.cli",
            "publish",
            "--model",
            str(hub["model"]),
            "--output",
            str(tmp_path / "out"),
        ]

        def run(command: list[str]) -> subprocess.CompletedProcess:
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        dry = run([*base, "--repo-id", "org/name"])
        assert dry.returncode == 0, dry.stderr
        assert "dry run; would upload" in dry.stdout
        assert server.repos == {}
        weights = (tmp_path / "out" / "model.safetensors").read_bytes()
        edit_tensor(tmp_path / "out")
        changed = run([*base, "--repo-id", "org/name", "--no-dry-run"])
        assert changed.returncode == 2
        assert "model.safetensors has changed" in changed.stderr
        assert server.repos == {}
        (tmp_path / "out" / "model.safetensors").write_bytes(weights)
        sent = run([*base, "--repo-id", "org/name", "--no-dry-run", "--tag", "v1"])
        assert sent.returncode == 0, sent.stderr
        assert "it was downloaded again, and passes" in sent.stdout
        assert server.commits == ["org/name"]
        assert server.tags == {"org/name": {"v1": server.sha("org/name")}}
        again = run([*base, "--repo-id", "org/name", "--no-dry-run", "--tag", "v1"])
        assert again.returncode == 2
        assert "--tag v1: org/name has one of that name" in again.stderr
        assert server.commits == ["org/name"]
        uploaded = server.repos["org/name"]
        assert {"model.safetensors", "modeling_septet.py", "README.md", "evidence/conformance.json"} <= set(uploaded)
        assert uploaded["model.safetensors"] == (hub["model"] / "model.safetensors").read_bytes()
        loading = (
            "import sys; from transformers import AutoModelForSequenceClassification as A\n"
            "m, info = A.from_pretrained('org/name', trust_remote_code=True, output_loading_info=True)\n"
            "assert not info['missing_keys'], info\n"
            "import torch; print(m.eval()(torch.arange(16, 30)[None]).logits.tolist())"
        )
        loaded = subprocess.run(
            [sys.executable, "-I", "-c", loading], env=environment, capture_output=True, text=True, check=False
        )
        assert loaded.returncode == 0, loaded.stderr
        from septet.modeling.modeling_septet import SeptetForSequenceClassification

        local = SeptetForSequenceClassification.from_pretrained(hub["model"]).eval()(torch.arange(16, 30)[None]).logits
        torch.testing.assert_close(torch.tensor(json.loads(loaded.stdout)), local.detach(), rtol=0, atol=1e-5)
        for done in (dry, changed, sent, again):
            assert "hf_secret" not in done.stdout + done.stderr
        assert "Bearer hf_secret" in server.tokens_seen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"upload": UploadConfig(dry_run=False)}, "nowhere to upload to"),
        ({"upload": UploadConfig("a/b/c")}, "write owner/name"),
        ({"upload": UploadConfig("a/b", tag="v 1")}, "is no name of a git reference"),
        ({"adapter_only": True}, "holds no adapter"),
        ({"model": Path("nothing")}, "is not a model folder"),
    ],
)
def test_what_cannot_be_published_is_refused(fields: dict, message: str, hub: dict[str, Path], tmp_path: Path) -> None:
    settings = {"model": hub["model"], "output": tmp_path / "out", **fields}
    with pytest.raises(UserError, match=message):
        publish.run(publish.PublishConfig(**settings))
    assert not (tmp_path / "out").exists()


def test_reports_and_links_that_do_not_belong_are_refused(hub: dict[str, Path], base: Path, tmp_path: Path) -> None:
    def refused(message: str, **fields) -> None:
        with pytest.raises(UserError, match=message):
            publish.run(publish.PublishConfig(**{"model": hub["model"], "output": tmp_path / "out", **fields}))
        assert not (tmp_path / "out").exists()

    refused("is on another model", model=base, reports=(hub["report"],))
    for name, part in (
        ("ensemble", {"model": {"ensemble": ["runs/other/final"]}}),
        ("folds", {"folds": {"values": [1]}}),
    ):
        of_several = tmp_path / name
        shutil.copytree(hub["report"], of_several)
        report = json.loads((of_several / "report.json").read_text())
        report |= {key: {**report.get(key, {}), **value} for key, value in part.items()}
        (of_several / "report.json").write_text(json.dumps(report))
        refused("not .* alone; evaluate the folder that is to be published", reports=(of_several,))
    copy = tmp_path / "copy" / "classification"
    shutil.copytree(hub["report"], copy)
    refused("a second report called 'classification'", reports=(hub["report"], copy))
    (copy / "report.md").unlink()
    refused("report.md: is missing", reports=(copy,))
    (copy / "report.md").symlink_to("/etc/hostname")
    refused("report.md: is a link out of", reports=(copy,))
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").symlink_to("/etc/hostname")
    refused("chat_template.jinja: is a link out of", model=tmp_path / "model")
