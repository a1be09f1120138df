"""What can be wrong with a published folder, planted one at a time: for the tests, and for `benchmarks/verify_truth.py`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Defect:
    """How it is planted, and a piece of what the check says that finds it."""

    plant: Callable[[Path], object]
    message: str
    runs: bool = False
    """shows only when the folder is loaded"""
    digests: bool = False
    """it is the digests that find it; the others are found though the digests were renewed"""
    tested: bool = True
    """among the tests; the rest is left to the benchmark, since each costs a process"""


def edit_json(path: Path, **changes: object) -> None:
    """Other values for some keys; None takes one away."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_tensor(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1

    edit_weights(folder, change)


def halve(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensor.half() for name, tensor in tensors.items()})


def swap_tokens(folder: Path) -> None:
    """Another tokenizer of the same size: two letters have each other's ids."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def initialise_in_place(folder: Path) -> None:
    """Code that, when a new head gets its first weights, draws all others anew as well."""
    edit_text(
        folder / "modeling_septet.py",
        "        super()._init_weights(module)\n",
        "        super()._init_weights(module)\n"
        "        for parameter in self.model.parameters() if hasattr(self, 'model') else ():\n"
        "            parameter.data.normal_()\n",
    )


def without(path: Path, auto_class: str) -> dict[str, str]:
    """A configuration's `auto_map` but for one class."""
    return {name: target for name, target in json.loads(path.read_text())["auto_map"].items() if name != auto_class}


def without_golden(folder: Path, prefix: str) -> None:
    path = folder / "evidence" / "golden.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith(prefix)}, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def edit_card_number(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(re.sub(r"value: (\d)", r"value: 9\1", card.read_text(), count=1))


def renew_digests(folder: Path) -> None:
    """As somebody would who covers up what they changed, or who published it so."""
    import hashlib

    path = folder / "evidence" / "conformance.json"
    conformance = json.loads(path.read_text())
    for name in list(conformance["files"]):
        if (folder / name).is_file():
            conformance["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(conformance))


def plant_generation(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("import torch\n")


CODE, CONFIG, GENERATION = "modeling_septet.py", "config.json", "generation_config.json"
# Of a fine-tuned classifier with a report.
OF_TUNED = {
    "missing code": Defect(lambda d: (d / CODE).unlink(), "modeling_septet.py is missing"),
    "a pickle": Defect(lambda d: (d / "extra.bin").write_bytes(b"x"), "extra.bin is a pickle"),
    "a symbolic link": Defect(lambda d: (d / "link.txt").symlink_to("/etc/hostname"), "link.txt is a symbolic link"),
    "no licence": Defect(lambda d: (d / "LICENSE").unlink(), "LICENSE is missing"),
    "no weights": Defect(lambda d: (d / "model.safetensors").unlink(), "safetensors is missing"),
    "foreign import": Defect(lambda d: edit_text(d / CODE, "import torch\n", "import torch\nimport requests\n"), "imports requests"),
    "import of septet": Defect(lambda d: edit_text(d / CODE, "import torch\n", "import septet\nimport torch\n"), "imports septet"),
    "relative import of nothing": Defect(lambda d: edit_text(d / CODE, "from .configuration_septet", "from .elsewhere"), "imports .elsewhere"),
    "an index that points out of the folder": Defect(lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}'), "leads out of the folder"),
    "a header that no file can hold": Defect(lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}"), "its header"),
    "code of another repository": Defect(lambda d: edit_text(d / CONFIG, '"modeling_septet.SeptetModel"', '"org/other--modeling_septet.SeptetModel"'), "is not code of this folder"),
    "code in a deeper folder": Defect(lambda d: edit_text(d / CONFIG, '"modeling_septet.SeptetModel"', '"evidence/modeling_septet.SeptetModel"'), "is not code of this folder"),
    "code for the tokenizer": Defect(lambda d: edit_json(d / "tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", None]}), "the tokenizer needs none"),
    "code that transformers looks for by itself": Defect(plant_generation, "holds code, custom_generate/generate.py"),
    "code that came along": Defect(lambda d: (d / "setup.py").write_text("import torch\n"), "holds code, setup.py"),
    "truncated weights": Defect(lambda d: truncate(d / "model.safetensors"), "model.safetensors has changed", digests=True),
    "edited card number": Defect(edit_card_number, "the card states"),
    "edited report": Defect(lambda d: edit_text(next(d.glob("evidence/*/report.json")), '"task"', '"tusk"'), "report.json has changed", digests=True),
    "a file nobody published": Defect(lambda d: (d / "adapter_config.json").write_text("{}"), "adapter_config.json was not published"),
    "card without metadata": Defect(lambda d: (d / "README.md").write_text("# hello"), "no metadata"),
}  # fmt: skip
# Of a base model with all its heads.
OF_BASE = {
    "changed tensor": Defect(edit_tensor, "was loaded with other values", runs=True),
    "head without its tensor": Defect(lambda d: edit_weights(d, lambda t: t.pop("nsp_head.weight")), "declared as trained, but lacks ['nsp_head.weight']", runs=True),
    "pad equal to eos": Defect(lambda d: edit_json(d / "tokenizer_config.json", pad_token="<|eos|>"), "pad equals eos", runs=True),
    "no pad": Defect(lambda d: edit_json(d / "tokenizer_config.json", pad_token=None), "the tokenizer has no pad token", runs=True, tested=False),
    "no do_sample": Defect(lambda d: edit_json(d / GENERATION, do_sample=None), "do_sample", runs=True),
    "untied head": Defect(lambda d: edit_json(d / CONFIG, tie_word_embeddings=False), "lacks ['lm_head.weight']", runs=True),
    "no eos to stop at": Defect(lambda d: edit_json(d / GENERATION, eos_token_id=None), "has eos_token_id None", runs=True),
    "weights of another type": Defect(lambda d: edit_weights(d, halve), "was loaded with other values", runs=True, tested=False),
    "swapped tokenizer": Defect(swap_tokens, "is encoded otherwise", runs=True, tested=False),
    "initialisation in place": Defect(initialise_in_place, "was loaded with other values", runs=True),
    "a rotary base of nothing": Defect(lambda d: edit_json(d / CONFIG, rope_parameters={"rope_type": "default", "rope_theta": 1e-300}), "are not finite", runs=True),
    "another rotary base": Defect(lambda d: edit_json(d / CONFIG, rope_parameters={"rope_type": "default", "rope_theta": 500.0}), "its outputs differ", runs=True, tested=False),
    "another epsilon": Defect(lambda d: edit_json(d / CONFIG, rms_norm_eps=1e-3), "its outputs differ", runs=True, tested=False),
    "a shape of other weights": Defect(lambda d: edit_json(d / CONFIG, intermediate_size=96), "ignore_mismatched_sizes", runs=True, tested=False),
    "an Auto class with another head": Defect(lambda d: edit_text(d / CONFIG, '"modeling_septet.SeptetForMaskedLM"', '"modeling_septet.SeptetForPreTraining"'), "no Auto class for SeptetForMaskedLM", runs=True, tested=False),
    "sampling by other settings": Defect(lambda d: edit_json(d / GENERATION, repetition_penalty=3.0), "generates", runs=True, tested=False),
    "a mistake in the code": Defect(lambda d: edit_text(d / CODE, "self.act_fn(gate) * up", "self.act_fn(gate) + up"), "its outputs differ", runs=True, tested=False),
    "code that does not run": Defect(lambda d: edit_text(d / CODE, "class SeptetModel(", "raise RuntimeError\nclass SeptetModel("), "RuntimeError", runs=True, tested=False),
    "an Auto class taken away": Defect(lambda d: edit_json(d / CONFIG, auto_map=without(d / CONFIG, "AutoModelForMaskedLM")), "no Auto class for SeptetForMaskedLM", runs=True, tested=False),
    "no golden outputs of a head": Defect(lambda d: without_golden(d, "SeptetForMaskedLM."), "has no golden outputs of it", runs=True, tested=False),
    "no generation to compare with": Defect(lambda d: edit_json(d / "evidence" / "conformance.json", generation=None), "has no generation of it", runs=True, tested=False),
    "code that ends the process": Defect(lambda d: edit_text(d / "configuration_septet.py", "@strict\n", "raise SystemExit(0)\n@strict\n"), "SystemExit", runs=True),
    "truncated weights, digests renewed": Defect(lambda d: truncate(d / "model.safetensors"), "Error", runs=True, tested=False),
}  # fmt: skip


def change_a_digit(path: Path, draw: random.Random) -> None:
    text = path.read_text()
    place = draw.choice([match.start() for match in re.finditer(r"\d", text)])
    path.write_text(text[:place] + str((int(text[place]) + draw.randint(1, 9)) % 10) + text[place + 1 :])


def change_a_row(folder: Path, draw: random.Random, key: str | None) -> None:
    """Another prediction or label in one row of the classifier's predictions; without a key one row less."""
    [path] = folder.glob("evidence/*/predictions.jsonl")
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    row, labels = draw.choice(rows), sorted({row["reference"] for row in rows})
    if key:
        row[key] = draw.choice([label for label in labels if label != row[key]])
    else:
        rows.remove(row)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


TAMPERED: dict[str, Callable[[Path, random.Random], None]] = {
    "a digit of the card": lambda folder, draw: change_a_digit(folder / "README.md", draw),
    "a prediction": lambda folder, draw: change_a_row(folder, draw, "prediction"),
    "a label": lambda folder, draw: change_a_row(folder, draw, "reference"),
    "a row": lambda folder, draw: change_a_row(folder, draw, None),
}
