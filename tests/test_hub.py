"""Publishing: a sound folder passes as a stranger sees it, each planted defect is found, and what is uploaded comes back."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.modeling.checkpoint import save_model
from septet.modeling.modeling_septet import SeptetForPreTraining
from septet.modeling.objectives import OBJECTIVES
from septet.tasks.harness import finetune, predict
from septet.tasks.hub import publish, verify

TESTS = Path(__file__).resolve().parent
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
    return {"base": root / "base", "tuned": root / "tuned", "model": model}


def test_sound_folders_pass_every_check(hub: dict[str, Path]) -> None:
    before = {p: p.stat().st_mtime_ns for p in hub["base"].rglob("*")}
    for name, trained in (("base", 4), ("tuned", 1)):
        checks = verify.run(verify.VerifyConfig(str(hub[name])))
        assert all(check["ok"] for check in checks)
        compared = [check for check in checks if check["detail"].startswith("outputs within")]
        assert len(compared) == trained + 1  # and the decoder without a head
        assert sum(check["check"].startswith("AutoModel") for check in checks) == 8
    assert {p: p.stat().st_mtime_ns for p in hub["base"].rglob("*")} == before  # verify writes nothing


def edit_json(path: Path, **changes) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, path, {"format": "pt"})


def without_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors["nsp_head.weight"]
    save_file(tensors, path, {"format": "pt"})


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


STRUCTURAL = {
    "missing code": (lambda d: (d / "modeling_septet.py").unlink(), "modeling_septet.py is missing"),
    "a pickle": (lambda d: (d / "extra.bin").write_bytes(b"x"), "extra.bin is a pickle"),
    "a symbolic link": (lambda d: (d / "link.txt").symlink_to("/etc/hostname"), "link.txt is a symbolic link"),
    "no licence": (lambda d: (d / "LICENSE").unlink(), "LICENSE is missing"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing"),
    "foreign import": (lambda d: edit_text(d / "modeling_septet.py", "import torch\n", "import torch\nimport requests\n"), "imports requests"),
    "import of septet": (lambda d: edit_text(d / "modeling_septet.py", "import torch\n", "import septet\nimport torch\n"), "imports septet"),
    "relative import of nothing": (lambda d: edit_text(d / "modeling_septet.py", "from .configuration_septet", "from .elsewhere"), "imports .elsewhere"),
    "truncated weights": (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]), "model.safetensors has changed"),
    "edited card number": (lambda d: (d / "README.md").write_text(re.sub(r"value: (\d)", r"value: 9\1", (d / "README.md").read_text(), count=1)), "the card states"),
    "edited report": (lambda d: edit_text(d / "evidence" / "classification" / "report.json", '"task"', '"tusk"'), "report.json has changed"),
    "card without metadata": (lambda d: (d / "README.md").write_text("# hello"), "no metadata"),
}  # fmt: skip


@pytest.fixture(scope="module")
def stranger():
    """The checks that need no model, in this process: the script is loaded by its path as the child would."""
    spec = importlib.util.spec_from_file_location("stranger", Path(verify.__file__).with_name("stranger.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("defect", STRUCTURAL)
def test_defects_that_show_without_running_anything(defect: str, hub, stranger, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(hub["tuned"], folder)
    spoil, message = STRUCTURAL[defect]
    spoil(folder)
    conformance = json.loads((folder / "evidence" / "conformance.json").read_text())
    failures = []
    for check in (
        lambda: stranger.files_are_plain(folder),
        lambda: stranger.needed_files_are_there(folder),
        lambda: stranger.imports_are_allowed(folder),
        lambda: stranger.digests_are_as_published(folder, conformance),
        lambda: stranger.card_says_what_the_reports_say(folder),
    ):
        try:
            check()
        except Exception as error:
            failures.append(str(error))
    assert any(message in failure for failure in failures), failures


RUNNING = {
    "changed tensor": (lambda d: edit_tensor(d / "model.safetensors"), "was loaded with other values"),
    "head without its tensor": (lambda d: without_tensor(d / "model.safetensors"), "declared as trained, but lacks ['nsp_head.weight']"),
    "pad equal to eos": (lambda d: edit_json(d / "tokenizer_config.json", pad_token="<|eos|>"), "pad equals eos"),
    "no do_sample": (lambda d: edit_json(d / "generation_config.json", do_sample=None), "do_sample"),
    "untied head": (lambda d: edit_json(d / "config.json", tie_word_embeddings=False), "lacks ['lm_head.weight']"),
    "other ids": (lambda d: edit_json(d / "config.json", eos_token_id=7), "eos is 2 for the tokenizer, 7 for the model"),
}  # fmt: skip


@pytest.mark.parametrize("defect", RUNNING)
def test_defects_that_show_when_it_runs(defect: str, hub, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(hub["base"], folder)
    spoil, message = RUNNING[defect]
    spoil(folder)
    failed = [check["detail"] for check in verify.check_folder(folder) if not check["ok"]]
    assert any("has changed since it was published" in detail for detail in failed)
    assert any(message in detail for detail in failed), failed


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_the_card_is_executed(name: str, hub: dict[str, Path]) -> None:
    card = (hub[name] / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == {"base": 3, "tuned": 1}[name]
    values = f"MODEL, TEXT = {str(hub[name])!r}, 'The cat sleeps.'\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", values + "\n".join(snippets)], check=True, env=environment, capture_output=True
    )


def test_what_is_uploaded_comes_back(hub: dict[str, Path], tmp_path: Path) -> None:
    """Against a stand-in of the Hub, in processes of their own, since HF_ENDPOINT is read at import."""
    spec = importlib.util.spec_from_file_location("hub_double", TESTS / "hub_double.py")
    hub_double = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hub_double)
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
        sent = run([*base, "--repo-id", "org/name", "--no-dry-run"])
        assert sent.returncode == 0, sent.stderr
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
        server.refuse = 403
        refused = run([*base, "--repo-id", "org/name", "--no-dry-run"])
        assert refused.returncode == 2
        assert "org/name: the upload failed" in refused.stderr
        for done in (dry, sent, refused):
            assert "hf_secret" not in done.stdout + done.stderr
        assert "Bearer hf_secret" in server.tokens_seen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dry_run": False}, "nowhere to upload to"),
        ({"repo_id": "a/b/c"}, "write owner/name"),
        ({"model": Path("nothing")}, "is not a model folder"),
    ],
)
def test_what_cannot_be_published_is_refused(fields: dict, message: str, hub: dict[str, Path], tmp_path: Path) -> None:
    settings = {"model": hub["model"], "output": tmp_path / "out", **fields}
    with pytest.raises(UserError, match=message):
        publish.run(publish.PublishConfig(**settings))
    assert not (tmp_path / "out").exists()
