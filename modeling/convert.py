"""Take a Llama or Qwen3 checkpoint as a Septet one, and write one back that loads without remote code.

    septet import --model path/to/llama --output runs/imported
    septet export --model runs/pretrain/final --to qwen3 --output build/qwen3

Septet's parameters have Llama's names, so weights go over as they are; Qwen3 is Septet with QK-norm, Llama without. What
one side cannot express is refused by name, and the logits of both are compared before anything is called done.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from septet.data.errors import UserError, run_cli
from septet.data.manifest import finished, writing

SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rope_parameters", "rms_norm_eps", "tie_word_embeddings",
    "attention_dropout", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
LOGITS_TOLERANCE = 1e-4
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab*",
    "merges.txt",
)


@dataclass(frozen=True)
class ImportConfig:
    model: str
    """a folder with a Llama or Qwen3 checkpoint in safetensors, or owner/name on the Hub"""
    output: Path = Path("runs/imported")
    """where the Septet checkpoint goes"""
    overwrite: bool = False
    """replace what stands at --output"""


@dataclass(frozen=True)
class ExportConfig:
    model: Path = Path("runs/pretrain/final")
    """a Septet checkpoint with a trained causal head"""
    to: Literal["qwen3", "llama"] = "qwen3"
    """qwen3: models with QK-norm, as Septet's presets have; llama: models without"""
    output: Path = Path("build/export")
    """where the plain checkpoint goes"""
    overwrite: bool = False
    """replace what stands at --output"""


def import_model(config: ImportConfig) -> Path:
    """Writes the Septet checkpoint; returns its folder.

    Raises:
        UserError: another architecture, something that Septet cannot express, or logits that differ.
    """
    source = _source_folder(config.model)
    if finished(config.output, "import", config, {"model": source}, config.overwrite):
        return config.output
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from septet.modeling import register
    from septet.modeling.configuration_septet import SeptetConfig
    from septet.modeling.modeling_septet import SeptetForCausalLM

    logging.disable_progress_bar()
    theirs_config = AutoConfig.from_pretrained(source)
    if theirs_config.model_type not in ("llama", "qwen3"):
        raise UserError(f"{config.model}: is a {theirs_config.model_type} model; llama and qwen3 can be imported")
    _refuse(config.model, theirs_config, {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "pretraining_tp": 1})  # fmt: skip
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    fields = {name: getattr(theirs_config, name) for name in SHAPE if getattr(theirs_config, name, None) is not None}
    ours_config = SeptetConfig(
        **fields, qk_norm=theirs_config.model_type == "qwen3", trained_heads=["SeptetForCausalLM"]
    )
    ours = SeptetForCausalLM(ours_config).to(theirs.dtype).eval()
    ours.load_state_dict(theirs.state_dict())
    difference = _logits_difference(ours, theirs)
    register()
    with writing(config.output, "import", config, {"model": source}) as out:
        _copy_tokenizer(source, out.path)
        ours.generation_config = theirs.generation_config
        ours.save_pretrained(out.path)
        out.counts.update(num_parameters=ours.num_parameters(), logits_difference=difference)
    print(
        f"import: {ours.num_parameters():,} parameters ({torch.finfo(ours.dtype).bits} bits), logits within "
        f"{difference:.1g} of {theirs_config.model_type}'s; {config.output}"
    )
    return config.output


def export_model(config: ExportConfig) -> Path:
    """Writes the plain checkpoint; returns its folder.

    Raises:
        UserError: a model that the target cannot express (QK-norm, direction of reading, heads), or logits that differ.
    """
    from septet.modeling.checkpoint import require_model_folder

    source = require_model_folder(config.model)
    if finished(config.output, "export", config, {"model": source}, config.overwrite):
        return config.output
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    from septet.modeling.configuration_septet import SeptetConfig
    from septet.modeling.modeling_septet import SeptetForCausalLM

    logging.disable_progress_bar()
    ours_config = SeptetConfig.from_pretrained(source)
    if "SeptetForCausalLM" not in (ours_config.trained_heads or []):
        raise UserError(
            f"{source}: has no trained causal head ({ours_config.trained_heads}); only that one can be exported"
        )
    _refuse(
        config.model, ours_config, {"attention_mode": "causal", "qk_norm": config.to == "qwen3"}, f"a {config.to} model"
    )
    ours = SeptetForCausalLM.from_pretrained(source).eval()
    config_class, model_class = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[
        config.to
    ]
    theirs = model_class(config_class(**{name: getattr(ours_config, name) for name in SHAPE})).to(ours.dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    difference = _logits_difference(ours, theirs)
    with writing(config.output, "export", config, {"model": source}) as out:
        _copy_tokenizer(source, out.path)
        theirs.generation_config = ours.generation_config
        theirs.save_pretrained(out.path)
        out.counts.update(num_parameters=theirs.num_parameters(), logits_difference=difference)
    print(f"export: {config.output} is a {config.to} checkpoint; logits within {difference:.1g} of Septet's")
    return config.output


def _refuse(place: Any, config: Any, needed: dict[str, Any], what: str = "Septet") -> None:
    for name, value in needed.items():
        if hasattr(config, name) and getattr(config, name) != value:
            raise UserError(
                f"{place}: {name} is {getattr(config, name)!r}; {what} can only express {value!r}; it cannot be converted"
            )


def _logits_difference(ours: Any, theirs: Any) -> float:
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        0, ours.config.vocab_size, (2, min(64, ours.config.max_position_embeddings)), generator=generator
    )
    with torch.no_grad():
        difference = float((ours(ids).logits.float() - theirs(ids).logits.float()).abs().max())
    if not difference <= LOGITS_TOLERANCE * (1 if ours.dtype == torch.float32 else 1e3):
        raise UserError(
            f"the logits of the two models differ by {difference:.2g}; the conversion is wrong and nothing was written"
        )
    return difference


def _source_folder(model: str) -> Path:
    if Path(model).is_dir():
        folder = Path(model)
    else:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja", "merges.txt"]))
        except Exception as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"{model}: is no folder here, and the Hub gives none ({reason}); check the name") from error
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{model}: holds no safetensors; pickles are not read; convert it with save_pretrained first")
    return folder


def _copy_tokenizer(source: Path, target: Path) -> None:
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copy2(file, target / file.name)


if __name__ == "__main__":
    import sys

    verb = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if verb not in ("import", "export"):
        raise SystemExit("usage: python -m septet.modeling.convert import|export [options]")
    run_cli(*((import_model, ImportConfig) if verb == "import" else (export_model, ExportConfig)))
