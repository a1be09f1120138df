"""Import and export: the weights go over byte for byte, the outputs agree in every format and runtime, and what cannot
be represented, or is damaged, is refused by name."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from septet.data.errors import UserError
from septet.data.pack import load_tokenizer
from septet.modeling import convert, modeling_septet, register
from septet.modeling.convert import ExportConfig, ImportConfig, export_model, import_model
from septet.modeling.modeling_septet import SeptetForCausalLM, SeptetForPreTraining, SeptetForSequenceClassification
from septet.modeling.presets import PRESETS, preset_config

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
WINDOW = {"use_sliding_window": True, "sliding_window": 9}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXTS = [
    "Who reads book 12345? I've read 3.14 of it; don't ask\n\n\t  why!",
    "Il n'a plu que 2 fois l'été dernier ! À bientôt…",
    "上周下了30场雨！谁在读第12本书？ world世界",
    "🚀😶‍🌫️  a <|sep|> b",
]
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


def septet(folder: Path, head: str = "SeptetForCausalLM", tokenizer=None, dtype=torch.float32, **fields) -> Path:
    """A folder with a tiny random Septet model, its weights wide enough for attention to matter."""
    torch.manual_seed(3)
    register()
    config = preset_config("tiny", **{"vocab_size": 400, "max_position_embeddings": 64, **IDS, **fields})
    model = getattr(modeling_septet, head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim == 2 else parameter.add_(0.1 * torch.randn_like(parameter))
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
        ("qwen3", torch.float32, {"rope_parameters": DYNAMIC}),
        ("qwen3", torch.float32, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
        ("qwen3", torch.bfloat16, {"rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 2.0}}),
        ("llama", torch.float32, {"rope_parameters": LLAMA3}),
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

    # Beyond the 64 positions of the configuration, where dynamic scaling begins.
    ids = torch.randint(300, (2, 90), generator=torch.Generator().manual_seed(5))
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


def test_import_gives_a_pad_token(tmp_path: Path, tokenizer, capsys) -> None:
    """SmolLM2 and others pad with their eos, which the recipes refuse."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    ids = {**IDS, "pad_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    source = native("llama", tmp_path / "source", tokenizer=tokenizer, **{**ids, "vocab_size": 400})
    names = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "pad_token": tokenizer.eos_token}
    (source / "special_tokens_map.json").write_text(json.dumps(names))  # as older releases wrote it; it goes before
    out = tmp_path / "out"
    for ordinary in ("<nothing>", tokenizer.convert_ids_to_tokens(300)):
        with pytest.raises(UserError, match="is none of its special tokens"):
            import_model(ImportConfig(str(source), out, pad_token=ordinary))
    with pytest.raises(UserError, match="is its eos"):
        import_model(ImportConfig(str(source), out, pad_token=tokenizer.eos_token))
    with pytest.raises(UserError, match="is not a tokenizer folder"):
        import_model(ImportConfig(str(native("llama", tmp_path / "bare")), out, pad_token="<|pad|>"))
    assert not out.exists()

    import_model(ImportConfig(str(source), out))
    assert "it has no pad token of its own" in capsys.readouterr().out
    with pytest.raises(UserError, match="--pad-token"):
        load_tokenizer(out)
    other, number = "<|source|>", tokenizer.convert_tokens_to_ids("<|source|>")
    import_model(ImportConfig(str(source), out, pad_token=other, overwrite=True))
    assert "no pad token" not in capsys.readouterr().out
    assert load_tokenizer(out).pad_token == other
    assert load_tokenizer(out)("naïve café").input_ids == tokenizer("naïve café").input_ids
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / name).read_text())["pad_token_id"] == number, name

    tokenizer.pad_token = other  # which the configuration does not say
    source = native("llama", tmp_path / "own", tokenizer=tokenizer, **{**ids, "pad_token_id": None, "vocab_size": 400})
    import_model(ImportConfig(str(source), tmp_path / "taken"))
    assert json.loads((tmp_path / "taken" / "config.json").read_text())["pad_token_id"] == number
    import_model(ImportConfig(str(native("llama", tmp_path / "no tokenizer")), tmp_path / "bare out"))
    assert "no pad token" not in capsys.readouterr().out
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="is not a tokenizer folder"):
        import_model(ImportConfig(str(source), tmp_path / "damaged", pad_token=other))


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
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused("a pickle", source)
    assert not (tmp_path / "out").exists()


DOWN = "model.layers.1.mlp.down_proj.weight"


def add_head(weights: dict) -> None:
    weights["lm_head.bias"] = torch.zeros(300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(DOWN), rf"its weights lack {DOWN}; give the config.json that belongs"),
        (lambda weights: weights.update({DOWN: weights[DOWN].T.contiguous()}), rf"{DOWN} is of shape \[128, 64\]"),
        (lambda weights: weights.update({DOWN: weights[DOWN].to(torch.int8)}), rf"{DOWN} is stored as I8; weights are"),
        (lambda weights: weights.update({DOWN: weights[DOWN].double()}), rf"{DOWN} is stored as F64"),
        (add_head, "holds lm_head.bias, which LlamaForCausalLM does not have"),
    ],
)
def test_weights_that_are_not_the_configuration_s_are_named(change, message: str, tmp_path: Path) -> None:
    source = native("llama", tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message):
        import_model(ImportConfig(str(source), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    """Both ways; the rotary frequencies that older checkpoints hold are no extra tensors."""
    ours = import_model(ImportConfig(str(native("llama", tmp_path / "source")), tmp_path / "ours"))
    weights = load_file(ours / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    half = len(weights) // 2
    shards = {f"model-{i + 1:05}-of-00002.safetensors": dict(part) for i, part in enumerate(
        (list(weights.items())[:half], list(weights.items())[half:]))}  # fmt: skip
    (ours / "model.safetensors").unlink()
    for name, part in shards.items():
        save_file(part, ours / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (ours / "model.safetensors.index.json").write_text(json.dumps(index))
    export = ExportConfig(ours, "llama", tmp_path / "back")
    export_model(export)
    assert tensors(tmp_path / "back") == tensors(tmp_path / "source")

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            export_model(ExportConfig(ours, "llama", tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    second = ours / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-100])
    refused("model-00002-of-00002.safetensors: is damaged")
    second.write_bytes(whole[:5])
    refused("model-00002-of-00002.safetensors: is damaged")
    second.unlink()
    held = next(iter(shards[second.name]))
    refused(rf"model-00002-of-00002.safetensors: is missing, which holds {held}")
    part = dict(shards[second.name])
    lost = part.popitem()[0]
    save_file(part, second, {"format": "pt"})
    refused(rf"model-00002-of-00002.safetensors: lacks {lost}, which model.safetensors.index.json puts there")


def test_weights_that_can_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    """A tied head that is stored too and differs; one file and an index beside it."""
    ours = import_model(ImportConfig(str(native("llama", tmp_path / "source")), tmp_path / "ours"))
    weights, config = load_file(ours / "model.safetensors"), json.loads((ours / "config.json").read_text())
    embeddings = weights["model.embed_tokens.weight"]
    (ours / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    for head, is_same in ((embeddings.clone(), True), (embeddings + 1, False)):
        save_file({**weights, "lm_head.weight": head}, ours / "model.safetensors", {"format": "pt"})
        export = ExportConfig(ours, "llama", tmp_path / f"out{is_same}")
        if is_same:
            export_model(export)
            continue
        with pytest.raises(
            UserError, match="ties lm_head.weight to model.embed_tokens.weight, but both are stored, and"
        ):
            export_model(export)
    (ours / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(weights, "a.safetensors")})
    )
    with pytest.raises(
        UserError, match="has model.safetensors, which transformers reads, and model.safetensors.index.json"
    ):
        export_model(ExportConfig(ours, "llama", tmp_path / "out"))


@pytest.mark.parametrize(
    ("fields", "target", "message"),
    [
        ({"attention_mode": "prefix"}, "qwen3", "attention_mode is 'prefix'"),
        ({"attention_mode": "bidirectional"}, "qwen3", "attention_mode is 'bidirectional'"),
        ({}, "llama", "qk_norm is True; llama has no QK-norm; pass --to qwen3"),
        ({"qk_norm": False}, "qwen3", "qk_norm is False; qwen3 normalises queries and keys; pass --to llama"),
        ({"trained_heads": ["SeptetForSequenceClassification"]}, "qwen3", "trained as SeptetForSequenceClassification"),
        ({"attention_mode": "prefix"}, "gguf", "attention_mode is 'prefix'; gguf reads causally only"),
        ({"attention_mode": "bidirectional"}, "gguf", "attention_mode is 'bidirectional'"),
        ({"trained_heads": ["SeptetForSequenceClassification"]}, "gguf", "gguf takes the causal head"),
        ({"hidden_act": "gelu"}, "gguf", "hidden_act is 'gelu'; llama.cpp computes silu here; pass --to qwen3"),
        ({"rope_parameters": LLAMA3}, "gguf", "rotary scaling is 'llama3'; llama.cpp has default, linear, yarn for"),
        ({"qk_norm": False, "rope_parameters": DYNAMIC}, "gguf", "rotary scaling is 'dynamic'; .*pass --to llama"),
        ({**WINDOW, "qk_norm": False}, "llama", "has sliding windows; llama has none; pass --to qwen3"),
        (WINDOW, "gguf", "has sliding windows; llama.cpp reads these models whole"),
        ({"rope_parameters": DYNAMIC}, "onnx", "its dynamic rotary scaling changes with the length of the text"),
        (
            {"trained_heads": ["SeptetForMaskedLM"]},
            "onnx",
            r"its SeptetFor\w+ is untrained \(trained: SeptetForMaskedLM",
        ),
        ({}, "gguf", "has no tokenizer.json; GGUF holds the tokenizer too"),
        ({}, "word2vec", "has no tokenizer.json, which names the vectors"),
    ],
)
def test_export_refuses_and_says_why(fields: dict, target: str, message: str, tmp_path: Path) -> None:
    for package in convert.FOREIGN.get(target, ("", ()))[1]:
        pytest.importorskip(package)
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


# ---- GGUF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "fields"),
    [
        (torch.float32, {"qk_norm": False, "tie_word_embeddings": False}),
        (torch.float16, {"qk_norm": False}),
        (torch.bfloat16, {"head_dim": 128}),
    ],
)
def test_gguf_reads_back_through_transformers(dtype, fields: dict, tmp_path: Path, tokenizer) -> None:
    pytest.importorskip("gguf")
    ours = septet(tmp_path / "ours", tokenizer=tokenizer, dtype=dtype, **fields)
    out = export_model(ExportConfig(ours, "gguf", tmp_path / "out"))
    ids = torch.randint(400, (2, 40), generator=torch.Generator().manual_seed(5))
    read = transformers.AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
    model = SeptetForCausalLM.from_pretrained(ours, dtype=torch.float32)
    assert type(read).__name__ == ("LlamaForCausalLM" if "qk_norm" in fields else "Qwen3ForCausalLM")
    with torch.no_grad():
        expected = model(ids).logits
        assert expected.std() > 0.5 and (read(ids).logits - expected).abs().max() < 1e-4
    special = ("pad_token_id", "bos_token_id", "eos_token_id", "vocab_size", "max_position_embeddings")
    assert [getattr(read.config, name) for name in special] == [getattr(model.config, name) for name in special]

    back = transformers.AutoTokenizer.from_pretrained(out, gguf_file="model.gguf")
    # transformers' reader does not know the split by its name; vocabulary, merges and special tokens it must.
    back.backend_tokenizer.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    for text in TEXTS:
        assert back(text, add_special_tokens=False).input_ids == tokenizer(text, add_special_tokens=False).input_ids
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["max_logit_difference"] < 1e-4 and counts["tokenizer_pre"] == "deepseek-v3"


@pytest.mark.parametrize("fields", [{}, {"qk_norm": False, "rope_parameters": LLAMA3}])
def test_gguf_that_transformers_cannot_read_is_compared_by_tensors(fields: dict, tmp_path, tokenizer, capsys) -> None:
    gguf = pytest.importorskip("gguf")
    ours = septet(tmp_path / "ours", tokenizer=tokenizer, dtype=torch.bfloat16, **fields)
    out = export_model(ExportConfig(ours, "gguf", tmp_path / "out"))
    assert "tensors read back equal (no logits: transformers' GGUF reader does not know" in capsys.readouterr().out
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(out / "model.gguf").tensors}
    weights = load_file(ours / "model.safetensors")
    query = weights["model.layers.1.self_attn.q_proj.weight"]
    if fields:  # the rows of each head, halves interleaved
        order = [head * 16 + i + half * 8 for head in range(4) for i in range(8) for half in range(2)]
        query = query[order]
        frequencies = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](
            transformers.AutoConfig.from_pretrained(ours), None
        )[0]
        plain = 1e4 ** -(torch.arange(0, 16, 2) / 16)
        assert numpy.allclose(read["rope_freqs.weight"].data, plain / frequencies)
        assert read["rope_freqs.weight"].data.max() == pytest.approx(8)
    assert read["blk.1.attn_q.weight"].tensor_type.name == "BF16"
    assert read["blk.1.attn_q.weight"].data.tobytes() == query.view(torch.uint8).numpy().tobytes()
    assert read["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert torch.equal(torch.tensor(read["output_norm.weight"].data), weights["model.norm.weight"].float())
    assert ("blk.0.attn_q_norm.weight" in read) == (not fields) and "output.weight" not in read


@pytest.mark.parametrize(
    "fields",
    [
        {"qk_norm": False, "tie_word_embeddings": False},
        {},
        {"qk_norm": False, "rope_parameters": LLAMA3},
        {"qk_norm": False, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": {**YARN, "attention_factor": 1.3}},
    ],
)
def test_llama_cpp_runs_the_gguf(fields: dict, tmp_path: Path, tokenizer) -> None:
    """The same token ids with the tokenizer in the file, and the same ten best continuations."""
    xllamacpp = pytest.importorskip("xllamacpp")
    ours = septet(tmp_path / "ours", tokenizer=tokenizer, **fields)
    out = export_model(ExportConfig(ours, "gguf", tmp_path / "out"))
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers = str(out / "model.gguf"), 64, 0
    params.warmup, params.verbosity, params.cpuparams.n_threads = False, 0, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)

    def post(path: str, body: dict) -> dict:
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    for text in TEXTS:
        read = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        assert read["tokens"] == tokenizer(text).input_ids
    ids = torch.randint(16, 384, (1, 60), generator=torch.Generator().manual_seed(5))
    asked = {"n_predict": 1, "n_probs": 10, "temperature": 0, "cache_prompt": False}
    (first,) = post("/completion", {"prompt": ids[0].tolist(), **asked})["completion_probabilities"]
    with torch.no_grad():
        expected = SeptetForCausalLM.from_pretrained(ours)(ids).logits[0, -1].log_softmax(-1)
    assert expected.std() > 0.5
    assert [row["id"] for row in first["top_logprobs"]] == expected.topk(10).indices.tolist()
    assert [row["logprob"] for row in first["top_logprobs"]] == pytest.approx(
        expected.topk(10).values.tolist(), abs=1e-3
    )


def split_tokenizer(tokenizer, folder: Path, steps: list[dict], **model) -> Path:
    """The tokenizer's file with another pre-tokenizer."""
    tokenizer.save_pretrained(folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    described["model"].update(model)
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder


def test_pre_tokenizers_go_by_llama_cpp_s_names(tmp_path: Path, tokenizer) -> None:
    """Where transformers knows the name too, its reader gives the same ids; what has no name is refused and shown."""
    pytest.importorskip("gguf")
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as SPLITS

    ours = septet(tmp_path / "ours", qk_norm=False)
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    gpt2 = {**bytes_alone, "use_regex": True}

    def split(regex: str) -> dict:
        return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}

    known = {
        "gpt-2": ([gpt2], {}),
        "smollm": ([{"type": "Digits", "individual_digits": True}, gpt2], {}),
        "qwen2": ([split(SPLITS["qwen2"]), bytes_alone], {}),
        "llama-bpe": ([split(SPLITS["llama-bpe"]), bytes_alone], {"ignore_merges": True}),
    }
    for name, (steps, model) in known.items():
        split_tokenizer(tokenizer, ours, steps, **model)
        out = export_model(ExportConfig(ours, "gguf", tmp_path / name))
        assert json.loads((out / "manifest.json").read_text())["counts"]["tokenizer_pre"] == name
        if name != "smollm":
            wanted = transformers.PreTrainedTokenizerFast(tokenizer_file=str(ours / "tokenizer.json"))
            read = transformers.AutoTokenizer.from_pretrained(out, gguf_file="model.gguf")
            for text in TEXTS:
                ids = wanted(text, add_special_tokens=False).input_ids
                assert read(text, add_special_tokens=False).input_ids == ids

    def refused(message: str, steps: list[dict], **model) -> None:
        split_tokenizer(tokenizer, ours, steps, **model)
        with pytest.raises(UserError, match=message):
            export_model(ExportConfig(ours, "gguf", tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    refused(r"no pre-tokenizer like this one: .*\\\\d\{7\}.*known: deepseek-v3, smollm", [split(r"\d{7}"), bytes_alone])
    refused("no pre-tokenizer like this one", [split(SPLITS["qwen2"]), bytes_alone], ignore_merges=True)
    refused("no pre-tokenizer like this one", [{**gpt2, "add_prefix_space": True}])
    refused("is no byte-level BPE", [{"type": "Whitespace"}])
    septet(tmp_path / "small", qk_norm=False, vocab_size=300, tokenizer=tokenizer)
    with pytest.raises(UserError, match="has 384 tokens; the model has 300 embeddings"):
        export_model(ExportConfig(tmp_path / "small", "gguf", tmp_path / "out"))
    ours = septet(tmp_path / "ours2", tokenizer=tokenizer, bos_token_id=5)
    with pytest.raises(UserError, match=r"puts \[1\] before and \[\] after a text.*bos \(5\)"):
        export_model(ExportConfig(ours, "gguf", tmp_path / "out"))


@pytest.mark.parametrize(("name", "value"), [("beta_fast", 2.0), ("truncate", False)])
def test_yarn_that_llama_cpp_ignores_is_refused(name: str, value, tmp_path: Path, tokenizer) -> None:
    pytest.importorskip("gguf")
    ours = septet(tmp_path / "ours", tokenizer=tokenizer, rope_parameters={**YARN, name: value})
    with pytest.raises(UserError, match=rf"YaRN scaling has {name} = {value}; llama.cpp takes .*pass --to qwen3"):
        export_model(ExportConfig(ours, "gguf", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_gguf_that_computes_otherwise_leaves_nothing_behind(tmp_path: Path, tokenizer, monkeypatch) -> None:
    pytest.importorskip("gguf")
    from septet.modeling import export_gguf

    ours = septet(tmp_path / "ours", tokenizer=tokenizer, qk_norm=False)
    laid_out = export_gguf.laid_out
    monkeypatch.setattr(export_gguf, "laid_out", lambda kind, *rest: laid_out("qwen3", *rest))  # heads not interleaved
    with pytest.raises(UserError, match="the logits differ by"):
        export_model(ExportConfig(ours, "gguf", tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


# ---- graphs and vectors -----------------------------------------------------------------------------------------------

HEADS = [
    ("SeptetForCausalLM", {"tie_word_embeddings": False, "attention_mode": "prefix"}),
    ("SeptetForSequenceClassification", {"num_labels": 3, "attention_mode": "bidirectional"}),
    ("SeptetForQuestionAnswering", {}),
]


@pytest.mark.parametrize(("head", "fields"), HEADS)
def test_onnxruntime_computes_what_the_model_does(head: str, fields: dict, tmp_path: Path, tokenizer) -> None:
    """On shapes that the exporter did not try, with padding on either side; a prefix-LM takes its prefix."""
    for package in convert.FOREIGN["onnx"][1]:
        pytest.importorskip(package)
    import onnxruntime

    ours = septet(tmp_path / "ours", head, tokenizer, **fields)
    out = export_model(ExportConfig(ours, "onnx", tmp_path / "out"))
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    model = getattr(modeling_septet, head).from_pretrained(ours).eval()
    for batch, length in ((4, 23), (1, 1), (2, 64)):
        ids = torch.randint(400, (batch, length), generator=torch.Generator().manual_seed(length))
        padding = torch.ones_like(ids)
        padding[0, : length // 3] = 0
        padding[-1, length - length // 4 :] = 0
        given = {"input_ids": ids, "attention_mask": padding}
        if fields.get("attention_mode") == "prefix":
            given["prefix_lengths"] = torch.arange(batch) + length // 2
        assert [entry.name for entry in session.get_inputs()] == list(given)
        with torch.no_grad():
            expected = model(**given)
        for name, value in zip(names, session.run(None, {k: v.numpy() for k, v in given.items()}), strict=True):
            kept = padding.bool() if expected[name].shape[:2] == ids.shape else slice(None)
            assert (torch.from_numpy(value)[kept] - expected[name][kept]).abs().max() < 1e-4
    assert names == (["start_logits", "end_logits"] if "Question" in head else ["logits"])
    assert transformers.AutoTokenizer.from_pretrained(out)(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids
    described = json.loads((out / "config.json").read_text())
    assert "auto_map" not in described and described["architectures"] == [head]


@pytest.mark.parametrize(("head", "fields"), HEADS)
def test_litert_computes_what_the_model_does(head: str, fields: dict, tmp_path: Path) -> None:
    for package in convert.FOREIGN["litert"][1]:
        pytest.importorskip(package)
    from ai_edge_litert.interpreter import Interpreter

    ours = septet(tmp_path / "ours", head, **fields)
    with pytest.raises(UserError, match="--sequence-length 65: the model reads 1 to 64 tokens"):
        export_model(ExportConfig(ours, "litert", tmp_path / "out", sequence_length=65))
    out = export_model(ExportConfig(ours, "litert", tmp_path / "out", sequence_length=20))
    ids = torch.randint(400, (1, 20), generator=torch.Generator().manual_seed(20))
    padding = torch.ones_like(ids)
    padding[0, 13:] = 0
    given = {"input_ids": ids, "attention_mask": padding}
    if fields.get("attention_mode") == "prefix":
        given["prefix_lengths"] = torch.tensor([7])
    runner = Interpreter(str(out / "model.tflite")).get_signature_runner()
    got = runner(**{name: value.int().numpy() for name, value in given.items()})
    with torch.no_grad():
        expected = getattr(modeling_septet, head).from_pretrained(ours).eval()(**given)
    for name, value in got.items():
        kept = padding.bool() if expected[name].shape[:2] == ids.shape else slice(None)
        assert (torch.from_numpy(value)[kept] - expected[name][kept]).abs().max() < 1e-4


def test_gensim_reads_the_embeddings(tmp_path: Path, tokenizer) -> None:
    """Any head and reading; tokens with white space are spelled in bytes, and every number comes back as it was."""
    models = pytest.importorskip("gensim.models")
    ours = septet(tmp_path / "ours", "SeptetForMaskedLM", dtype=torch.bfloat16, attention_mode="bidirectional")
    copy = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    copy.save_pretrained(ours)
    described = json.loads((ours / "tokenizer.json").read_text())
    described["added_tokens"].append({**described["added_tokens"][0], "id": 384, "content": "<a b>\u00a0\n"})
    (ours / "tokenizer.json").write_text(json.dumps(described))
    out = export_model(ExportConfig(ours, "word2vec", tmp_path / "out"))
    read = models.KeyedVectors.load_word2vec_format(out / "embeddings.txt")
    weight = load_file(ours / "model.safetensors")["model.embed_tokens.weight"].float().numpy()
    assert len(read) == 385  # of 400 embeddings, those that have a token
    assert numpy.array_equal(read.vectors, weight[:385])
    assert read.index_to_key[:2] == ["<|pad|>", "<|bos|>"] and read.index_to_key[384] == "<aĠb>ÂłĊ"
    assert read.index_to_key[:384] == tokenizer.convert_ids_to_tokens(range(384))

    described["added_tokens"][-1]["content"] = described["added_tokens"][1]["content"] + " "
    described["added_tokens"].append({**described["added_tokens"][0], "id": 385, "content": "<|bos|>Ġ"})
    (ours / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="tokens 384 and 385 are both spelled '<|bos|>Ġ'"):
        export_model(ExportConfig(ours, "word2vec", tmp_path / "other"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gguf", r"--to gguf: needs gguf, not installed here; pip install \"septet\[export\]\""),
        ("onnx", "needs onnx, onnxscript, onnxruntime, not installed"),
        (
            "litert",
            r"needs litert_torch, ai_edge_litert, .*pip install \"litert-torch>=0.10\" && pip install --upgrade",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_pip_command(
    target: str, message: str, tmp_path: Path, monkeypatch
) -> None:
    ours = septet(tmp_path / "ours", qk_norm=False)
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        export_model(ExportConfig(ours, target, tmp_path / "out"))  # type: ignore[arg-type]


def test_quantised_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    ours = septet(tmp_path / "ours")
    described = json.loads((ours / "config.json").read_text())
    (ours / "config.json").write_text(json.dumps({**described, "quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(UserError, match="its weights are quantised; word2vec is written from the full ones"):
        export_model(ExportConfig(ours, "word2vec", tmp_path / "out"))
    (ours / "config.json").write_text(json.dumps({**described, "architectures": ["SeptetForCausalML"]}))
    with pytest.raises(UserError, match="'SeptetForCausalML'; did you mean 'SeptetForCausalLM'"):
        export_model(ExportConfig(ours, "word2vec", tmp_path / "out"))
