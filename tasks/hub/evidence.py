"""What a published folder is checked against: golden inputs and outputs, a generation, and digests of every tensor and file.

`stranger.py`, of which each folder holds a copy, compares; the format is described there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from septet.data.manifest import write_json

GOLDEN_TEXTS = (
    "The morning train to Lyon leaves at half past seven.",
    "Où est le chat ? Il dort sur le toit, « comme toujours ».",
    "人工智能改变世界，2026年。",
    "A much shorter one!",
)


def write_evidence(
    folder: Path,
    tokenizer: Any,
    models: Iterable[tuple[str, Any]],
    trained_heads: list[str],
    kind: str = "model",
    tensors: dict[str, str] | None = None,
    **facts: Any,
) -> None:
    """Writes `evidence/` into a folder that is complete but for it.

    Args:
        models: class name as the folder has it, and the model in float32 whose outputs are golden; one is held at a time.
        tensors: digests by name, where they are not those of the folder's safetensors.
        facts: what else `conformance.json` says.
    """
    from safetensors.torch import load_file, save_file

    from septet.tasks.hub import stranger

    golden: dict[str, Any] = {}
    conformance: dict[str, Any] = {"kind": kind, "trained_heads": trained_heads, **facts}
    for name, model in models:
        golden |= golden_outputs(name, model, tokenizer)
        if name.endswith("ForCausalLM"):
            conformance["generation"] = generation(model, golden[f"{name}.input_ids"], golden[f"{name}.attention_mask"])
    evidence = folder / "evidence"
    evidence.mkdir(exist_ok=True)
    save_file(golden, evidence / "golden.safetensors")
    shutil.copyfile(Path(stranger.__file__), evidence / "verify.py")
    if tensors is None:
        tensors = {}
        for shard in sorted(folder.glob("*.safetensors")):
            tensors |= {key: stranger.tensor_digest(value) for key, value in load_file(shard).items()}
    conformance |= {
        "tensors": tensors,
        "encodings": {text: tokenizer(text)["input_ids"] for text in GOLDEN_TEXTS},
        "libraries": libraries(),
        "files": {
            file.relative_to(folder).as_posix(): stranger.sha256(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != "conformance.json"
        },
    }
    write_json(evidence / "conformance.json", conformance)


def golden_outputs(name: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Token ids and mask (4, T) of `GOLDEN_TEXTS`, padded at the right, and the model's outputs for them."""
    import torch

    from septet.tasks.hub import stranger

    batch = tokenizer(
        list(GOLDEN_TEXTS),
        padding=True,
        truncation=True,
        max_length=min(48, model.config.max_position_embeddings),
        padding_side="right",
        return_tensors="pt",
    )
    with torch.no_grad():
        outputs = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    found = {key: batch[key] for key in ("input_ids", "attention_mask")}
    found |= {key: outputs[key].float().contiguous() for key in stranger.HEADS[name][1]}
    return {f"{name}.{key}": value for key, value in found.items()}


def generation(model: Any, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
    """How the model goes on, greedily, with the first golden text."""
    import torch

    context = model.config.max_position_embeddings
    ids = input_ids[:1, : min(int(attention_mask[0].sum()), context // 2)]
    room = min(16, context - ids.shape[1])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=room)
    return {
        "input_ids": ids[0].tolist(),
        "output_ids": out[0, ids.shape[1] :].tolist(),
        "max_new_tokens": room,
    }


def libraries() -> dict[str, str]:
    """Versions that the golden outputs were made with."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}
