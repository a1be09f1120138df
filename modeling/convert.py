"""Take a Llama or Qwen3 checkpoint as a Septet one, or write a Septet checkpoint in a form that others read.

    septet import Qwen/Qwen3-0.6B --output runs/imported
    septet export runs/pretrain/final --to qwen3 --output exported

Septet with QK-norm is Qwen3, without it Llama, name by name: the weights go over as they are. `gguf` is for llama.cpp,
`onnx` for onnxruntime, `litert` for TensorFlow's runtime on devices, `word2vec` has the input embeddings alone. What the
other side cannot represent is refused, and what was written is read again before it counts as done.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from septet.data.errors import UserError, run_cli, suggestion
from septet.data.manifest import finished, read_json, write_json, writing

MAX_LOGIT_DIFFERENCE = 1e-4  # of float32 logits, or of the largest one where that is above 1
SHARED_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rope_parameters", "rms_norm_eps", "attention_dropout",
    "initializer_range", "tie_word_embeddings", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
WINDOW_FIELDS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")  # Qwen3's, not Llama's
QK_NORM = {"llama": False, "qwen3": True}
# The module that writes each other format, and the packages that it imports.
FOREIGN = {
    "gguf": ("export_gguf", ("gguf",)),
    "onnx": ("export_graph", ("onnx", "onnxscript", "onnxruntime")),
    "litert": ("export_graph", ("litert_torch", "ai_edge_litert")),
    "word2vec": ("export_word2vec", ()),
}
INSTALL = {
    # Its xdsl 0.28 asks for an older typing-extensions than this package's tyro does, but runs with the newer.
    "litert": 'pip install "litert-torch>=0.10" && pip install --upgrade typing-extensions',
}
# What Llama and Qwen3 can have and Septet cannot.
REFUSED = {
    "attention_bias": "biases in the attention projections",
    "mlp_bias": "biases in the feed-forward",
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
    pad_token: str | None = None
    """a special token of the vocabulary to pad with, where the tokenizer has none or pads with eos"""
    overwrite: bool = False
    """replace what stands at --output"""


@dataclass(frozen=True)
class ExportConfig:
    model: Annotated[Path, tyro.conf.Positional]
    """a Septet checkpoint: a run's final/, a step_<n>/, or a published folder"""
    to: Literal["qwen3", "llama", "gguf", "onnx", "litert", "word2vec"] = "qwen3"
    """qwen3 for a model with QK-norm, llama for one without: both load without remote code; gguf for llama.cpp;
    onnx and litert for the graph of any head, without a cache; word2vec for the input embeddings"""
    output: Path = Path("exported")
    """folder for what is written"""
    sequence_length: int = 128
    """litert: tokens in a row, which its graph fixes; shorter texts are padded"""
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
    shared = shared_fields(valid(folder, native_class.config_class.from_pretrained, folder), kind)
    shared["pad_token_id"] = padding_id(folder, shared, config.pad_token)
    wanted = valid(folder, SeptetConfig, **shared, qk_norm=QK_NORM[kind], trained_heads=["SeptetForCausalLM"])
    _convert(config, "import", folder, native_class, SeptetForCausalLM, wanted, config.pad_token)
    if (config.output / "tokenizer.json").is_file() and wanted.pad_token_id in (None, *eos_ids(shared)):
        print(
            "import: it has no pad token of its own, which fine-tuning needs; give one of its special tokens that texts "
            "never hold: --overwrite --pad-token TOKEN",
            flush=True,
        )
    return config.output


def export_model(config: ExportConfig) -> Path:
    """Writes the checkpoint in another format; returns its folder.

    Raises:
        UserError: no Septet checkpoint there, one that the target cannot represent, a package that is not installed,
            or outputs that differ.
    """
    from septet.modeling.checkpoint import require_model_folder

    require_model_folder(config.model)
    described = read_json(config.model / "config.json")
    if described.get("model_type") != "septet":
        raise UserError(f"{config.model}: is a {described.get('model_type')!r} model, not a Septet one; give another")
    require_representable(config.model, described, config.to)
    module, packages = FOREIGN.get(config.to, ("", ()))
    require_packages(config.to, packages)
    if finished(config.output, "export", config, {"model": config.model}, config.overwrite):
        return config.output

    from septet.modeling import modeling_septet
    from septet.modeling.configuration_septet import SeptetConfig

    source_config = valid(config.model, SeptetConfig.from_pretrained, config.model)
    if not module:
        native_class, native_config = native_classes(config.to)
        wanted = valid(config.model, native_config, **shared_fields(source_config, config.to))
        _convert(config, "export", config.model, modeling_septet.SeptetForCausalLM, native_class, wanted)
        return config.output

    head = "SeptetForCausalLM" if config.to == "gguf" else head_of(config.model, described)
    write = getattr(importlib.import_module(f"septet.modeling.{module}"), f"write_{config.to}")
    with writing(config.output, "export", config, {"model": config.model}) as out:
        line = write(config, getattr(modeling_septet, head), source_config, out)
    print(f"export: {line}; {config.output}", flush=True)
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
            f"{model}: no such folder, and the Hub does not give it ({one_line(error)}); check the name, or log in"
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
    if described.get("quantization_config"):
        raise UserError(f"{folder}: its weights are quantised; {target} is written from the full ones; give those")
    if target == "word2vec":
        return
    heads, rope = described.get("trained_heads"), described.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", "default")
    if target in ("onnx", "litert"):
        head = head_of(folder, described)
        if heads and head != "SeptetModel" and head not in heads:
            raise UserError(f"{folder}: its {head} is untrained (trained: {', '.join(heads)}); fine-tune it first")
        if rope_type == "dynamic":
            raise UserError(
                f"{folder}: its dynamic rotary scaling changes with the length of the text, which a graph cannot "
                f"hold; set rope_parameters to another kind, or pass --to {'qwen3' if _qk_norm(described) else 'llama'}"
            )
        return

    mode = described.get("attention_mode")
    if mode not in (None, "causal"):
        raise UserError(
            f"{folder}: attention_mode is {mode!r}; {target} reads causally only, and would read its prompts otherwise "
            "than in training; export a causal checkpoint, or pass --to onnx"
        )
    if heads and "SeptetForCausalLM" not in heads:
        raise UserError(
            f"{folder}: was trained as {', '.join(heads)}; {target} takes the causal head, which is not among them; "
            "export a checkpoint with a trained causal head, or pass --to onnx"
        )
    if described.get("use_sliding_window") and target != "qwen3":
        reader = "llama.cpp reads these models whole" if target == "gguf" else "llama has none"
        raise UserError(f"{folder}: has sliding windows; {reader}; pass --to qwen3 (with QK-norm) or onnx")
    if target == "gguf":
        kind = "qwen3" if _qk_norm(described) else "llama"
        known = ("default", "linear", "yarn") if kind == "qwen3" else ("default", "linear", "yarn", "llama3")
        if rope_type not in known:
            raise UserError(
                f"{folder}: its rotary scaling is {rope_type!r}; llama.cpp has {', '.join(known)} for this "
                f"architecture; pass --to {kind}"
            )
        if described.get("hidden_act", "silu") not in ("silu", "swish"):
            raise UserError(
                f"{folder}: hidden_act is {described['hidden_act']!r}; llama.cpp computes silu here; pass --to {kind}"
            )
        return
    if _qk_norm(described) != QK_NORM[target]:
        other = "qwen3" if target == "llama" else "llama"
        has = "has no QK-norm" if target == "llama" else "normalises queries and keys"
        raise UserError(f"{folder}: qk_norm is {_qk_norm(described)}; {target} {has}; pass --to {other}")


def _qk_norm(described: dict[str, Any]) -> bool:
    return described.get("qk_norm") is not False


def head_of(folder: Path, described: dict[str, Any]) -> str:
    """The Septet class that saved a checkpoint; a `UserError` where that is no class of ours."""
    from septet.modeling.modeling_septet import __all__ as known

    name = (described.get("architectures") or ["SeptetForCausalLM"])[0]
    if name not in known:
        raise UserError(f"{folder}: its architecture is {name!r}; {suggestion(str(name), known)}")
    return name


def require_packages(target: str, names: tuple[str, ...]) -> None:
    """Raises a `UserError` with the pip command where a format's packages are not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        install = INSTALL.get(target, 'pip install "septet[export]"')
        raise UserError(f"--to {target}: needs {', '.join(missing)}, not installed here; {install}")


def native_classes(kind: str) -> tuple[Any, Any]:
    """(model class, configuration class) of transformers."""
    import transformers

    name = {"llama": "Llama", "qwen3": "Qwen3"}[kind]
    return getattr(transformers, f"{name}ForCausalLM"), getattr(transformers, f"{name}Config")


def shared_fields(config: Any, kind: str) -> dict[str, Any]:
    """The configuration fields of one name in Septet and in Llama or Qwen3."""
    names = (*SHARED_FIELDS, *(WINDOW_FIELDS if kind == "qwen3" else ()))
    return {name: getattr(config, name) for name in names}


def valid(folder: Path, make_config: Callable[..., Any], *args: Any, **fields: Any) -> Any:
    """A configuration; a `UserError` where the class's own rules refuse the shape."""
    try:
        return make_config(*args, **fields)
    except Exception as error:  # huggingface_hub's strict dataclasses raise errors of their own
        raise UserError(f"{folder}: its config.json cannot be taken over: {one_line(error)}; give another") from error


# ---- the conversion ---------------------------------------------------------------------------------------------------


def _convert(
    config: Any,
    stage: str,
    folder: Path,
    source_class: Any,
    target_class: Any,
    wanted: Any,
    pad_token: str | None = None,
) -> None:
    """Reads with one class, writes with the other, reads what was written, compares."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    with writing(config.output, stage, config, {"model": folder}) as out:
        source = load(source_class, folder)
        dtype = stored_dtype(folder)
        expected = logits_of(source)
        target = transplanted(source, target_class, wanted)
        del source
        if pad_token is not None:
            target.generation_config.pad_token_id = wanted.pad_token_id
        target.to(dtype).save_pretrained(out.path)
        out.counts["num_parameters"] = sum(p.numel() for p in target.parameters())
        del target  # so that a large model is in memory once
        copy_tokenizer(folder, out.path)
        if pad_token is not None:
            pad_with(out.path, pad_token)
        difference = agreement(folder, logits_of(load(target_class, out.path)), expected)
        out.counts.update(max_logit_difference=difference, dtype=str(dtype).removeprefix("torch."))
    print(
        f"{stage}: {out.counts['num_parameters']:,} parameters in {out.counts['dtype']}; logits differ by at most "
        f"{difference:.2g}; {config.output}",
        flush=True,
    )


def eos_ids(fields: dict[str, Any]) -> list[int | None]:
    """The ids that end a text, of which a configuration may have one or several."""
    given = fields["eos_token_id"]
    return given if isinstance(given, list) else [given]


def padding_id(folder: Path, fields: dict[str, Any], token: str | None) -> int | None:
    """The id to pad with: of the token asked for, else the configuration's, else the tokenizer's.

    Raises:
        UserError: the token asked for is none of the special ones, or ends a text.
    """
    from septet.data.pack import read_tokenizer

    if token is None:
        known = fields["pad_token_id"] is not None or not (folder / "tokenizer.json").is_file()
        return fields["pad_token_id"] if known else read_tokenizer(folder).pad_token_id
    tokenizer = read_tokenizer(folder)
    special = {str(added): number for number, added in tokenizer.added_tokens_decoder.items()}
    if token not in special:
        raise UserError(
            f"{folder}: {token!r} is none of its special tokens, which a pad token must be, since texts hold all others; "
            f"give another, such as {list(special)[:12]}"
        )
    if special[token] in (tokenizer.eos_token_id, *eos_ids(fields)):
        raise UserError(f"{folder}: {token!r} is its eos; a model padded with that never learns to stop; give another")
    return special[token]


def pad_with(folder: Path, token: str) -> None:
    """Sets the pad token in the files where transformers looks for it, and leaves everything else as it is."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            write_json(folder / name, {**read_json(folder / name), "pad_token": token})


def copy_tokenizer(folder: Path, target: Path) -> None:
    """Copies the tokenizer's files as they are."""
    for pattern in TOKENIZER_FILES:
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


def agreement(folder: Path, got: Any, expected: Any) -> float:
    """The largest difference between two tensors of outputs; a `UserError` where it is more than rounding."""
    difference = float((got - expected).abs().max())
    limit = MAX_LOGIT_DIFFERENCE * max(1.0, float(expected.abs().max()))
    if not difference <= limit:
        raise UserError(
            f"{folder}: the logits differ by {difference:.3g} after the conversion; at most {limit:.3g} is rounding; "
            "nothing was written; its configuration has something that this version does not know"
        )
    return difference


def stored_dtype(folder: Path) -> Any:
    """The type of the stored weights, or float32, which loses nothing, where there are several."""
    import torch

    from septet.modeling.checkpoint import stored_tensors

    found = {tensor.dtype for tensor in stored_tensors(folder).values()}
    known = {"BF16": torch.bfloat16, "F16": torch.float16}
    return known.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def load(model_class: Any, folder: Path, **options: Any) -> Any:
    """The model in float32, which holds bfloat16 and float16 exactly, in eval mode.

    Raises:
        UserError: weights that are damaged, or are not those of the configuration; the message names the tensor.
    """
    import torch

    from septet.modeling.checkpoint import check_weights

    check_weights(folder, model_class, valid(folder, model_class.config_class.from_pretrained, folder))
    try:
        model = model_class.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be loaded ({one_line(error)}); download or save it again") from error
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


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, for a message to the user."""
    return " ".join(str(error).split())[:300]


def run(config: ImportConfig | ExportConfig) -> Path:
    """`import_model` or `export_model`."""
    return import_model(config) if isinstance(config, ImportConfig) else export_model(config)


if __name__ == "__main__":
    subcommand = tyro.conf.subcommand
    run_cli(run, Annotated[ImportConfig, subcommand("import")] | Annotated[ExportConfig, subcommand("export")])
