"""An adapter alone, and forms without remote code: each says what the model itself says, and is checked for itself."""

from __future__ import annotations

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
from test_hub import TEXTS

from septet.data.documents import write_jsonl
from septet.data.errors import UserError
from septet.data.manifest import fingerprint
from septet.modeling.checkpoint import save_model
from septet.modeling.modeling_septet import SeptetForCausalLM
from septet.tasks.harness import finetune
from septet.tasks.hub import claims, publish, verify
from septet.tasks.hub.forms import base_of
from septet.tasks.hub.upload import UploadConfig


@pytest.fixture(scope="module")
def base(config, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "final"
    fields = {**config.to_dict(), "trained_heads": ["SeptetForCausalLM"], "initializer_range": 0.2}
    save_model(SeptetForCausalLM(type(config)(**fields)), tokenizer, folder)
    return folder


def executed(folder: Path, **values: str) -> str:
    """What the card's Python lines print."""
    [snippet] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + snippet
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def failures(folder: Path, base: Path | None = None) -> str:
    return " ".join(check["detail"] for check in verify.check_folder(folder, base=base) if not check["ok"])


def spoiled(path: Path, key: str) -> None:
    tensors = load_file(path)
    tensors[key] = tensors[key] * 1.5 + 0.1
    save_file(tensors, path, {"format": "pt"})


def test_an_adapter_is_published_alone(base: Path, tmp_path: Path) -> None:
    for split, rows in (("train", TEXTS[:20]), ("validation", TEXTS[20:])):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl.gz", rows)
    run = tmp_path / "run"
    options = finetune.FinetuneConfig("classification", base=base, data=str(tmp_path / "data"), output=run, epochs=1)
    finetune.run(finetune.replace(options, method="lora"))
    wanted = publish.PublishConfig(run / "final", tmp_path / "hub", adapter_only=True)
    with pytest.raises(UserError, match="needs --base-model owner/name"):
        publish.run(wanted)
    folder = publish.run(publish.replace(wanted, base_model="org/base"))
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "LICENSE", "evidence"} <= names
    assert "model.safetensors" not in names
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    verify.run(verify.VerifyConfig(str(folder), base=base, card=True))
    assert {claim["status"] for claim in claims.claims(folder)} == {"supported"}
    executed(folder, MODEL=str(folder), BASE=str(base), TEXT="Goal number 3")

    tensors = load_file(folder / "adapter_model.safetensors")
    spoiled(folder / "adapter_model.safetensors", next(key for key in tensors if "lora_B" in key))
    found = failures(folder, base)
    assert "adapter_model.safetensors has changed" in found
    assert "its outputs differ" in found
    assert f"is {base} the model that it was trained on?" in found


def test_a_base_that_has_changed_is_refused(base: Path, tmp_path: Path) -> None:
    final, other = tmp_path / "run" / "final", tmp_path / "base"
    shutil.copytree(base, final)
    shutil.copytree(base, other)
    inputs = {"base": {"path": str(other), "sha256": fingerprint(other)}}
    manifest = {"stage": "finetune", "config": {}, "inputs": inputs, "files": {}}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert base_of(final) == other
    spoiled(other / "model.safetensors", "model.norm.weight")
    with pytest.raises(UserError, match="is not the checkpoint that .* was adapted from"):
        base_of(final)


def test_native_forms_say_what_the_model_says(base: Path, tmp_path: Path, capsys) -> None:
    forms = ("qwen3", "gguf", "onnx")
    publish.run(publish.PublishConfig(base, tmp_path / "hub", native=forms, upload=UploadConfig("org/name")))
    printed = capsys.readouterr().out
    for form in forms:
        assert f"to the model org/name-{form}:" in printed  # dry run
        folder = tmp_path / f"hub-{form}"
        assert not list(folder.glob("*.py"))  # nothing to trust
        assert "base_model: org/name" in (folder / "README.md").read_text()
        assert {claim["status"] for claim in claims.claims(folder)} == {"supported"}
    assert "llama.cpp goes on with the model's" in printed or "xllamacpp is not installed" in printed
    assert executed(tmp_path / "hub-qwen3", MODEL=str(tmp_path / "hub-qwen3"), TEXT="The cat")
    assert "array" in executed(tmp_path / "hub-onnx", MODEL=str(tmp_path / "hub-onnx"), TEXT="The cat")

    spoiled(tmp_path / "hub-qwen3" / "model.safetensors", "model.norm.weight")
    assert "was loaded with other values" in failures(tmp_path / "hub-qwen3")
    gguf = tmp_path / "hub-gguf" / "model.gguf"
    gguf.write_bytes(gguf.read_bytes()[:-4] + b"\0\0\0\1")
    assert "its tensors are not those that were written" in failures(tmp_path / "hub-gguf")
    (tmp_path / "hub-onnx" / "modeling_septet.py").write_text("import os\n")
    assert "holds code, modeling_septet.py, which this kind of folder never needs" in failures(tmp_path / "hub-onnx")
    with pytest.raises(UserError, match="pass --to qwen3"):
        publish.run(publish.PublishConfig(base, tmp_path / "hub", native=("llama",)))
    assert not (tmp_path / "hub-llama").exists()
