"""The other forms of a model that `septet publish` builds: its adapter alone, and forms that need no remote code.

A native form is what `septet export` writes, with a card, the licence and evidence: outputs of the Septet model itself,
which it has to give too.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from septet.data.errors import UserError
from septet.data.manifest import FILE_NAME, fingerprint, read_json, write_json

if TYPE_CHECKING:
    from septet.tasks.hub.publish import PublishConfig

CLASSES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "gguf": "SeptetForCausalLM"}


def base_of(model: Path) -> Path:
    """The checkpoint on this machine that the run of `model` started from.

    Raises:
        UserError: the run's manifest or the base is not there any more, or the base is another one by now.
    """
    from septet.modeling.checkpoint import require_model_folder
    from septet.tasks.harness.finetune import read_run

    run = read_run(model)
    if run.get("stage") != "finetune":
        raise UserError(f"{model}: no run of `septet finetune` stands around it; give a run's final/")
    base = require_model_folder(Path(run["inputs"]["base"]["path"]))
    was, digest = run["inputs"]["base"]["sha256"], fingerprint(base)
    if was != digest:
        raise UserError(
            f"{base}: is not the checkpoint that {model} was adapted from (fingerprint {digest[:12]}, then {was[:12]}); "
            "fine-tune again"
        )
    return base


def build_adapter(config: PublishConfig, model: Path, reports: dict[str, Path], folder: Path) -> None:
    """Fills `folder` with the adapter of the run whose `final/` is `model`: the merged weights stay here.

    Raises:
        UserError: the run has no adapter, or --base-model does not say where its base is to be had.
    """
    import torch
    from peft import PeftModel

    from septet.data.pack import load_tokenizer
    from septet.modeling import modeling_septet
    from septet.modeling.configuration_septet import SeptetConfig
    from septet.modeling.convert import agreement
    from septet.tasks.hub.card import write_card
    from septet.tasks.hub.evidence import golden_outputs, write_evidence
    from septet.tasks.hub.publish import (
        CODE_AND_SETTINGS,
        TOKENIZER,
        add_common_files,
        card_facts,
        copy,
        copy_matching,
    )

    source = model.parent / "adapter"
    if not (source / "adapter_config.json").is_file():
        raise UserError(f"--adapter-only: {source} holds no adapter; fine-tune with --method lora or qlora")
    if not config.base_model:
        raise UserError("--adapter-only: needs --base-model owner/name, from where the adapted model is loaded")
    copy_matching((*CODE_AND_SETTINGS, *TOKENIZER), model, folder)
    copy(source / "adapter_model.safetensors", source, folder / "adapter_model.safetensors")
    settings = read_json(source / "adapter_config.json")
    write_json(folder / "adapter_config.json", {**settings, "base_model_name_or_path": config.base_model})
    heads = add_common_files(config, model, reports, folder)
    auto_class = next(
        auto for auto, name in read_json(model / "config.json")["auto_map"].items() if name.endswith(f".{heads[0]}")
    )
    kept = {key: settings.get(key) for key in ("r", "lora_alpha")}
    facts = {"kind": "adapter", "heads": heads, "auto_class": auto_class, "adapter": kept, **card_facts(config)}
    write_card(folder, model, facts)
    head, tokenizer = getattr(modeling_septet, heads[0]), load_tokenizer(folder)
    adapted = head.from_pretrained(base_of(model), config=SeptetConfig.from_pretrained(folder), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(adapted, folder).eval()
    merged = golden_outputs(heads[0], head.from_pretrained(model, dtype=torch.float32), tokenizer)
    for key, value in golden_outputs(heads[0], adapted, tokenizer).items():
        agreement(source, value.float(), merged[key].float())  # the adapter is that of the model whose scores are given
    write_evidence(folder, tokenizer, [(heads[0], adapted)], heads[:1], kind="adapter")


def twin_of(config: PublishConfig) -> str | None:
    """The repository that a native form's card names as its original."""
    return config.upload.repo_id or config.base_model


def build_native(config: PublishConfig, model: Path, form: str, folder: Path) -> None:
    """Fills `folder` with `model` as `septet export --to <form>` writes it.

    Raises:
        UserError: the form cannot represent the model, or a package that writes it is not installed.
    """
    import torch

    from septet.data.pack import load_tokenizer
    from septet.modeling import modeling_septet
    from septet.modeling.convert import ExportConfig, export_model, head_of
    from septet.tasks.hub.card import write_card
    from septet.tasks.hub.evidence import write_evidence
    from septet.tasks.hub.publish import TOKENIZER, add_common_files, card_facts, copy_matching

    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        exported = export_model(ExportConfig(model, form, Path(place) / "exported"))
        for file in sorted(p for p in exported.rglob("*") if p.is_file() and p.name != FILE_NAME):
            target = folder / file.relative_to(exported)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    add_common_files(config, model, {}, folder)
    if form != "gguf":
        copy_matching(TOKENIZER, model, folder)
    ours = "SeptetForCausalLM" if form != "onnx" else head_of(model, read_json(model / "config.json"))
    named = CLASSES.get(form, ours)
    facts = {**card_facts(config), "base_model": twin_of(config), "name": f"{config.name} ({form})"}
    write_card(folder, model, {"kind": form, "heads": [ours], **facts})
    loaded = getattr(modeling_septet, ours).from_pretrained(model, dtype=torch.float32)
    tensors = {"gguf": _gguf_digests, "onnx": lambda _: {}}.get(form, lambda _: None)(folder)
    write_evidence(folder, load_tokenizer(model), [(named, loaded)], [named], kind=form, tensors=tensors)


def _gguf_digests(folder: Path) -> dict[str, str]:
    from gguf import GGUFReader

    reader: Any = GGUFReader(folder / "model.gguf")
    return {tensor.name: hashlib.sha256(tensor.data.tobytes()).hexdigest() for tensor in reader.tensors}
