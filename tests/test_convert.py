"""Import and export: the weights go over byte for byte, the logits agree, and what cannot be represented is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from septet.data.errors import UserError
from septet.modeling import convert, register
from septet.modeling.convert import ExportConfig, ImportConfig, export_model, import_model
from septet.modeling.modeling_septet import SeptetForCausalLM, SeptetForPreTraining, SeptetForSequenceClassification
from septet.modeling.presets import PRESETS, preset_config

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FIELDS = {**PRESETS["tiny"], "vocab_size": 300, "max_position_embeddings": 64, "hidden_act": "silu", **IDS}


def native(kind: str, folder: Path, dtype: torch.dtype = torch.float32, tokenizer=None, **fields) -> Path:
    """A folder with a tiny random Llama or Qwen3, its weights wide enough for attention to matter."""
    torch.manual_seed(3)
    model_class, config_class = convert.native_classes(kind)
    model = model_class(config_class(**{**FIELDS, **fields}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(4) if parameter.ndim == 2 else parameter.add_(0.1 * torch.randn_like(parameter))
            assert "bias" not in name or "attention_bias" in fields or "mlp_bias" in fields
    model.to(dtype).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, tuple[str, bytes]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {n: (str(t.dtype), t.contiguous().view(torch.uint8).numpy().tobytes()) for n, t in found.items()}


@pytest.mark.parametrize(
    ("kind", "dtype", "fields"),
    [
        ("qwen3", torch.bfloat16, {}),
        ("llama", torch.float32, {"tie_word_embeddings": False}),
        ("llama", torch.float16, {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}),
    ],
)
def test_there_and_back_is_the_same_checkpoint(kind: str, dtype, fields: dict, tmp_path: Path, tokenizer) -> None:
    source = native(kind, tmp_path / "source", dtype, tokenizer, **fields)
    ours = import_model(ImportConfig(str(source), tmp_path / "ours"))
    back = export_model(ExportConfig(ours, kind, tmp_path / "back"))  # type: ignore[arg-type]

    assert tensors(source) == tensors(ours) == tensors(back)
    assert (back / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
    assert after == before
    described = json.loads((ours / "config.json").read_text())
    assert described["trained_heads"] == ["SeptetForCausalLM"] and described["qk_norm"] is (kind == "qwen3")
    assert {"modeling_septet.py", "configuration_septet.py"} <= {path.name for path in ours.iterdir()}

    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(5))
    padding = torch.ones_like(ids)
    padding[1, :7] = 0
    models = [
        convert.native_classes(kind)[0].from_pretrained(source, dtype=torch.float32),
        SeptetForCausalLM.from_pretrained(ours, dtype=torch.float32),
        transformers.AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32, trust_remote_code=False),
    ]
    with torch.no_grad():
        expected, *others = (model(ids, attention_mask=padding).logits[:, 7:] for model in models)
    assert expected.std() > 0.5
    for logits in others:
        assert (logits - expected).abs().max() < 1e-4


def test_an_exported_model_loads_where_septet_is_not(tmp_path: Path, tokenizer) -> None:
    """The joint checkpoint's other head stays behind; the folder holds no code."""
    torch.manual_seed(0)
    register()
    heads = ["SeptetForCausalLM", "SeptetForPreTraining"]
    config = preset_config("tiny", vocab_size=384, max_position_embeddings=64, trained_heads=heads, hidden_dropout=0.1)
    model = SeptetForPreTraining(config).eval()
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    out = export_model(ExportConfig(tmp_path / "ours", "qwen3", tmp_path / "out"))
    assert not list(out.glob("*.py"))
    program = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "transformers.AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(type(model).__name__, *model(torch.arange(16, 48)[None]).logits[0, -1, :5].tolist())\n"
        "assert not [name for name in sys.modules if name.startswith('septet')]\n"
    )
    command = [sys.executable, "-I", "-c", program, str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    name, *logits = done.stdout.split()
    with torch.no_grad():
        states = model.model(torch.arange(16, 48)[None], attention_mode="causal").last_hidden_state
    assert name == "Qwen3ForCausalLM"
    assert torch.allclose(torch.tensor([float(x) for x in logits]), model.lm_head(states)[0, -1, :5], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 16}, "use_sliding_window is True"),
        ("qwen3", {"head_dim": 9}, "`head_dim`=9"),
    ],
)
def test_import_refuses_by_name(kind: str, fields: dict, message: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if fields.get("head_dim") == 9:  # such a model cannot even run; its configuration is enough
        native(kind, source)
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, **fields}))
    else:
        native(kind, source, **fields)
    with pytest.raises(UserError, match=message):
        import_model(ImportConfig(str(source), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_import_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    def refused(message: str, model: Path | str) -> None:
        with pytest.raises(UserError, match=message):
            import_model(ImportConfig(str(model), tmp_path / "out"))

    refused("no such folder, and no owner/name", tmp_path / "nowhere")
    refused("the Hub does not give it", "nobody/nothing")
    source = native("qwen3", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    refused("GPT2LMHeadModel; only LlamaForCausalLM and Qwen3ForCausalLM", source)
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused("num_hidden_layers.*3.*must be equal", source)
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    refused(r"its weights lack model\.layers\.2\.", source)
    (source / "config.json").write_text(json.dumps(config))
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-100])
    refused("is damaged", source)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused("a pickle", source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "target", "message"),
    [
        ({"attention_mode": "prefix"}, "qwen3", "attention_mode is 'prefix'"),
        ({"attention_mode": "bidirectional"}, "qwen3", "attention_mode is 'bidirectional'"),
        ({}, "llama", "qk_norm is True; llama has no QK-norm; pass --to qwen3"),
        ({"qk_norm": False}, "qwen3", "qk_norm is False; qwen3 normalises queries and keys; pass --to llama"),
        ({"trained_heads": ["SeptetForSequenceClassification"]}, "qwen3", "trained as SeptetForSequenceClassification"),
    ],
)
def test_export_refuses_and_says_why(fields: dict, target: str, message: str, tmp_path: Path) -> None:
    register()
    config = preset_config("tiny", vocab_size=300, max_position_embeddings=64, **fields)
    model_class = SeptetForSequenceClassification if "trained_heads" in fields else SeptetForCausalLM
    model_class(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(UserError, match=message):
        export_model(ExportConfig(tmp_path / "ours", target, tmp_path / "out"))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_logits_that_differ_leave_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    """A field that is not carried over must not pass unnoticed."""
    source = native("qwen3", tmp_path / "source", rms_norm_eps=0.5)
    monkeypatch.setattr(convert, "SHARED_FIELDS", [f for f in convert.SHARED_FIELDS if f != "rms_norm_eps"])
    with pytest.raises(UserError, match="the logits differ by"):
        import_model(ImportConfig(str(source), tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
