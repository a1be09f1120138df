"""In and out of the Llama and Qwen3 world without a changed weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from septet.data.errors import UserError
from septet.modeling.convert import ExportConfig, ImportConfig, export_model, import_model
from septet.modeling.modeling_septet import SeptetForCausalLM
from septet.modeling.presets import PRESETS

NATIVE = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def native(kind: str, folder: Path, **fields) -> Path:
    torch.manual_seed(0)
    config_class, model_class = NATIVE.get(kind, (MistralConfig, MistralForCausalLM))
    settings = {**PRESETS["tiny"], "vocab_size": 200, "max_position_embeddings": 64, **fields}
    model_class(config_class(**settings)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_round_trip_changes_no_weight(kind: str, tied: bool, tmp_path: Path) -> None:
    source = native(kind, tmp_path / "native", tie_word_embeddings=tied, rope_theta=50_000.0)
    imported = import_model(ImportConfig(str(source), tmp_path / "septet"))
    exported = export_model(ExportConfig(imported, kind, tmp_path / "back"))
    before, after = load_file(source / "model.safetensors"), load_file(exported / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    ids = torch.arange(40)[None]
    models = [
        SeptetForCausalLM.from_pretrained(imported),
        *map(AutoModelForCausalLM.from_pretrained, (source, exported)),
    ]
    logits = [model.eval()(ids).logits for model in models]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert torch.equal(logits[1], logits[2])
    assert type(models[2]).__name__ == NATIVE[kind][1].__name__
    assert not list(exported.glob("*.py"))


def test_what_cannot_be_expressed_is_refused(tmp_path: Path) -> None:
    biased = native("llama", tmp_path / "biased", attention_bias=True)
    with pytest.raises(UserError, match="attention_bias is True; Septet can only express False"):
        import_model(ImportConfig(str(biased), tmp_path / "out"))
    other = native("mistral", tmp_path / "other")
    with pytest.raises(UserError, match="is a mistral model; llama and qwen3 can be imported"):
        import_model(ImportConfig(str(other), tmp_path / "out"))
    septet = import_model(ImportConfig(str(native("qwen3", tmp_path / "qwen3")), tmp_path / "septet"))
    with pytest.raises(UserError, match="qk_norm is True; a llama model can only express False"):
        export_model(ExportConfig(septet, "llama", tmp_path / "out"))
    model = SeptetForCausalLM.from_pretrained(septet, attention_mode="prefix")
    model.save_pretrained(tmp_path / "prefix")
    for name in ("configuration_septet.py", "modeling_septet.py"):
        (tmp_path / "prefix" / name).write_bytes((septet / name).read_bytes())
    with pytest.raises(UserError, match="attention_mode is 'prefix'; a qwen3 model can only express 'causal'"):
        export_model(ExportConfig(tmp_path / "prefix", "qwen3", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pickles_are_not_read(tmp_path: Path) -> None:
    source = native("llama", tmp_path / "native")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no safetensors"):
        import_model(ImportConfig(str(source), tmp_path / "out"))
