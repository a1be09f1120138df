"""Take a Llama or Qwen3 checkpoint as a Septet one, or write a Septet checkpoint as plain Qwen3 or Llama.

    septet import Qwen/Qwen3-0.6B --output runs/imported
    septet export runs/pretrain/final --to qwen3 --output exported

Septet with QK-norm is Qwen3, without it Llama, name by name: the weights go over as they are. What the other side cannot
represent is refused, and what was written is read again and must give the source's logits before it counts as done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from septet.data.errors import UserError, run_cli
from septet.data.manifest import finished, read_json, writing

MAX_LOGIT_DIFFERENCE = 1e-4  # of float32 logits, or of the largest one where that is above 1
SHARED_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rope_parameters", "rms_norm_eps", "attention_dropout",
    "initializer_range", "tie_word_embeddings", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
QK_NORM = {"llama": False, "qwen3": True}
# What Llama and Qwen3 can have and Septet cannot.
REFUSED = {
    "attention_bias": "biases in the attention projections",
    "mlp_bias": "biases in the feed-forward",
    "use_sliding_window": "sliding-window attention",
    "quantization_config": "quantised weights",
}
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*"
)  # fmt: skip


@dataclass(frozen=True)
class ImportConfig:
    model: Annotated[str, tyro.conf.Positional]
    """a folder with a Llama or Qwen3 checkpoint in safetensors, or owner/name of one on the Hub"""
    output: Path = Path("runs/imported")
    """folder for the Septet checkpoint"""
    overwrite: bool = False
    """replace what stands at --output"""


@dataclass(frozen=True)
class ExportConfig:
    model: Annotated[Path, tyro.conf.Positional]
    """a Septet checkpoint: a run's final/, a step_<n>/, or a published folder"""
    to: Literal["qwen3", "llama"] = "qwen3"
    """qwen3 for a model with QK-norm, llama for one without"""
    output: Path = Path("exported")
    """folder for the plain checkpoint, which loads without remote code"""
    overwrite: bool = False
    """replace what stands at --output"""


def import_model(config: ImportConfig) -> Path:
    """Writes the Septet checkpoint; returns its folder.

    Raises:
        UserError: no checkpoint there, another architecture, a feature in `REFUSED`, or logits that differ.
    """
    folder = find_source(config.model)
    kind = native_kind(folder)
    if finished(config.output, "import", config, {"model": folder}, config.overwrite):
        return config.output

    from septet.modeling import register
    from septet.modeling.configuration_septet import SeptetConfig
    from septet.modeling.modeling_septet import SeptetForCausalLM

    register()  # what is saved then carries its code
    native_class, _ = native_classes(kind)
    shared = shared_fields(valid(folder, native_class.config_class.from_pretrained, folder))
    wanted = valid(folder, SeptetConfig, **shared, qk_norm=QK_NORM[kind], trained_heads=["SeptetForCausalLM"])
    _convert(config, "import", folder, native_class, SeptetForCausalLM, wanted)
    return config.output


def export_model(config: ExportConfig) -> Path:
    """Writes the Qwen3 or Llama checkpoint; returns its folder.

    Raises:
        UserError: no Septet checkpoint there, one that the target cannot represent, or logits that differ.
    """
    from septet.modeling.checkpoint import require_model_folder

    require_model_folder(config.model)
    described = read_json(config.model / "config.json")
    if described.get("model_type") != "septet":
        raise UserError(f"{config.model}: is a {described.get('model_type')!r} model, not a Septet one; give another")
    require_representable(config.model, described, config.to)
    if finished(config.output, "export", config, {"model": config.model}, config.overwrite):
        return config.output

    from septet.modeling.configuration_septet import SeptetConfig
    from septet.modeling.modeling_septet import SeptetForCausalLM

    native_class, native_config = native_classes(config.to)
    shared = shared_fields(valid(config.model, SeptetConfig.from_pretrained, config.model))
    wanted = valid(config.model, native_config, **shared)
    _convert(config, "export", config.model, SeptetForCausalLM, native_class, wanted)
    return config.output


# ---- what can go over -------------------------------------------------------------------------------------------------


def find_source(model: str) -> Path:
    """The folder itself, or the snapshot of a Hub repository (safetensors, configuration and tokenizer alone)."""
    if Path(model).is_dir():
        return Path(model)
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(f"{model}: no such folder, and no owner/name of the Hub; check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        patterns = ["*.json", "*.safetensors", *TOKENIZER_FILES]
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{model}: no such folder, and the Hub does not give it ({_one_line(error)}); check the name, or log in"
        ) from error


def native_kind(folder: Path) -> str:
    """`llama` or `qwen3`, after a check that Septet can represent what the configuration says."""
    from septet.modeling.checkpoint import require_model_folder

    require_model_folder(folder)
    described = read_json(folder / "config.json")
    kinds = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
    architectures = described.get("architectures") or [None]
    if architectures[0] not in kinds:
        raise UserError(f"{folder}: its architecture is {architectures[0]}; only {' and '.join(kinds)} can be imported")
    for key, what in REFUSED.items():
        if described.get(key):
            raise UserError(
                f"{folder}: {key} is {described[key]!r:.60}; Septet has no {what}; import another checkpoint"
            )
    return kinds[architectures[0]]


def require_representable(folder: Path, described: dict[str, Any], target: str) -> None:
    """Raises a `UserError` where the target's architecture reads or computes otherwise than this checkpoint."""
    mode, qk_norm, heads = (described.get(key) for key in ("attention_mode", "qk_norm", "trained_heads"))
    if mode not in (None, "causal"):
        raise UserError(
            f"{folder}: attention_mode is {mode!r}; {target} reads causally only, and would read its prompts otherwise "
            "than in training; export a causal checkpoint"
        )
    if heads and "SeptetForCausalLM" not in heads:
        raise UserError(
            f"{folder}: was trained as {', '.join(heads)}; {target} takes the causal head, which is not among them; "
            "export a checkpoint with a trained causal head"
        )
    if (qk_norm is not False) != QK_NORM[target]:
        other = "qwen3" if target == "llama" else "llama"
        has = "has no QK-norm" if target == "llama" else "normalises queries and keys"
        raise UserError(f"{folder}: qk_norm is {qk_norm is not False}; {target} {has}; pass --to {other}")


def native_classes(kind: str) -> tuple[Any, Any]:
    """(model class, configuration class) of transformers."""
    import transformers

    name = {"llama": "Llama", "qwen3": "Qwen3"}[kind]
    return getattr(transformers, f"{name}ForCausalLM"), getattr(transformers, f"{name}Config")


def shared_fields(config: Any) -> dict[str, Any]:
    """The configuration fields that mean the same in Septet, Llama and Qwen3."""
    return {name: getattr(config, name) for name in SHARED_FIELDS}


def valid(folder: Path, make_config: Callable[..., Any], *args: Any, **fields: Any) -> Any:
    """A configuration; a `UserError` where the class's own rules refuse the shape."""
    try:
        return make_config(*args, **fields)
    except Exception as error:  # huggingface_hub's strict dataclasses raise errors of their own
        raise UserError(f"{folder}: its config.json cannot be taken over: {_one_line(error)}; give another") from error


# ---- the conversion ---------------------------------------------------------------------------------------------------


def _convert(config: Any, stage: str, folder: Path, source_class: Any, target_class: Any, wanted: Any) -> None:
    """Reads with one class, writes with the other, reads what was written, compares."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    dtype = stored_dtype(folder)
    with writing(config.output, stage, config, {"model": folder}) as out:
        source = load(source_class, folder)
        expected = logits_of(source)
        target = transplanted(source, target_class, wanted)
        del source
        target.to(dtype).save_pretrained(out.path)
        out.counts["num_parameters"] = sum(p.numel() for p in target.parameters())
        del target  # so that a large model is in memory once
        for pattern in TOKENIZER_FILES:
            for file in folder.glob(pattern):
                shutil.copyfile(file, out.path / file.name)
        difference = float((logits_of(load(target_class, out.path)) - expected).abs().max())
        limit = MAX_LOGIT_DIFFERENCE * max(1.0, float(expected.abs().max()))
        if not difference <= limit:
            raise UserError(
                f"{folder}: the logits differ by {difference:.3g} after the {stage}; at most {limit:.3g} is rounding; "
                "nothing was written; its configuration has something that this version does not know"
            )
        out.counts.update(max_logit_difference=difference, dtype=str(dtype).removeprefix("torch."))
    print(
        f"{stage}: {out.counts['num_parameters']:,} parameters in {out.counts['dtype']}; logits differ by at most "
        f"{difference:.2g}; {config.output}",
        flush=True,
    )


def stored_dtype(folder: Path) -> Any:
    """The type of the stored weights, or float32, which loses nothing, where there are several."""
    import torch
    from safetensors import safe_open

    found = set()
    for path in folder.glob("model*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:  # safetensors raises its own type
            raise UserError(f"{path}: is damaged ({_one_line(error)}); download or save it again") from error
    return (
        {"BF16": torch.bfloat16, "F16": torch.float16}.get(found.pop(), torch.float32)
        if len(found) == 1
        else torch.float32
    )


def load(model_class: Any, folder: Path) -> Any:
    """The model in float32, which holds bfloat16 and float16 exactly, in eval mode.

    Raises:
        UserError: weights that cannot be read, or that are not all there.
    """
    import torch

    try:
        model, info = model_class.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be loaded ({_one_line(error)}); download or save it again") from error
    if info["missing_keys"]:
        raise UserError(f"{folder}: its weights lack {sorted(info['missing_keys'])[0]}; download or save it again")
    return model.eval()


def transplanted(source: Any, target_class: Any, wanted: Any) -> Any:
    """A `target_class` with the source's own tensors, to be saved; heads that it does not have stay behind."""
    import torch

    with torch.device("meta"):
        target = target_class(wanted)
    state = source.state_dict()
    target.load_state_dict({name: state[name] for name in target.state_dict()}, assign=True)
    target.tie_weights()
    target.generation_config = source.generation_config
    return target


def logits_of(model: Any) -> Any:
    """(2, T, V) logits of random token ids, the same ones for every model of one vocabulary and length."""
    import torch

    length = min(64, model.config.max_position_embeddings)
    ids = torch.randint(model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids).logits


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def run(config: ImportConfig | ExportConfig) -> Path:
    """`import_model` or `export_model`."""
    return import_model(config) if isinstance(config, ImportConfig) else export_model(config)


if __name__ == "__main__":
    subcommand = tyro.conf.subcommand
    run_cli(run, Annotated[ImportConfig, subcommand("import")] | Annotated[ExportConfig, subcommand("export")])
