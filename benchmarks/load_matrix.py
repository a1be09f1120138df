"""Load published folders with many releases of transformers, in every way that people do, and compare with what was
published.

    python benchmarks/load_matrix.py build/demo/hub/base build/demo/hub/ner --output build/load_matrix

Each release has an environment of its own: transformers and what it asks for come from PyPI, torch, accelerate and peft
from the environment that runs this. In it a process without Septet (`python -I`) loads every Auto class of the folder

plain          `from_pretrained(folder, trust_remote_code=True)`
low memory     with `low_cpu_mem_usage=True`
device map     with `device_map="cpu"`
bfloat16       with `dtype=torch.bfloat16`
saved again    from a folder that `save_pretrained` made of it
adapter        with a LoRA adapter of peft on top, which changes nothing yet, saved and loaded
pipeline       by `transformers.pipeline` on a text, for the heads that have one

and a cell is good if a declared head has all its tensors bit for bit (in the type asked for) and, in float32, the golden
outputs within 1e-5, and any other head lacks exactly its own tensors. Older releases must refuse the folder and say why.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (5, 5)
WAYS = ("plain", "low memory", "device map", "bfloat16", "saved again", "adapter", "pipeline")
PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


# ---- in the release's environment, without Septet


def stranger() -> Any:
    """The checks that `septet verify` runs, by their path."""
    spec = importlib.util.spec_from_file_location("stranger", ROOT / "tasks/hub/stranger.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_everything(folder: Path) -> None:
    """Prints one JSON object a cell: {"auto", "way", "ok", "detail"}."""
    import torch
    import transformers
    from safetensors.torch import load_file

    check = stranger()
    sys.meta_path.insert(0, check.NotInstalled())
    transformers.utils.logging.set_verbosity_error()
    conformance = json.loads((folder / "evidence" / "conformance.json").read_text(encoding="utf-8"))
    golden = load_file(folder / "evidence" / "golden.safetensors")
    tensors: dict[str, Any] = {}
    for shard in folder.glob("*.safetensors"):
        tensors.update(load_file(shard))
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    except Exception as error:
        print(json.dumps({"auto": "AutoConfig", "way": "plain", "ok": False, "detail": f"{error}"[:300]}), flush=True)
        return
    text = next(iter(conformance["encodings"]))

    def compared(model: Any, missing: list[str], name: str, dtype: Any = torch.float32) -> str:
        """What is wrong with a loaded head raises; what is right is returned."""
        state = model.state_dict()
        for key, tensor in tensors.items():
            own = key if key in state else key.removeprefix("model.")
            if own in state and own not in missing:
                check.require(torch.equal(state[own], tensor.to(state[own].dtype)), f"{key} has other values")
        check.only_its_own_is_missing(name, missing, config, conformance)
        if f"{name}.input_ids" not in golden:
            return f"{len(missing)} new"
        if dtype != torch.float32:
            return "equal"
        with torch.no_grad():
            inputs = {key: golden[f"{name}.{key}"] for key in ("input_ids", "attention_mask")}
            result = model.eval()(**inputs)
        worst = max(float((result[k].float() - golden[f"{name}.{k}"]).abs().max()) for k in check.HEADS[name][1])
        check.require(worst <= check.LOGITS_TOLERANCE, f"outputs differ by {worst:.2g}")
        return f"within {worst:.1g}"

    for auto_class, target in sorted(config.auto_map.items()):
        name = target.split(".")[-1]
        if name not in check.HEADS or not hasattr(transformers, auto_class):
            continue
        auto = getattr(transformers, auto_class)

        def load(place: Path = folder, auto: Any = auto, **options: Any) -> tuple[Any, list[str]]:
            options = {"dtype": torch.float32, **options}
            model, info = auto.from_pretrained(place, trust_remote_code=True, output_loading_info=True, **options)
            return model, sorted(info["missing_keys"])

        def saved_again(name: str = name, load: Any = load) -> str:
            model, missing = load()
            with tempfile.TemporaryDirectory() as place:
                model.save_pretrained(place)
                again, still = load(Path(place))
                check.require(not still, f"lacks {still[:3]} after it was saved")
                return compared(again, missing, name)

        def adapter(name: str = name, load: Any = load) -> str:
            from peft import LoraConfig, PeftModel, get_peft_model

            model, missing = load()
            with tempfile.TemporaryDirectory() as place:
                get_peft_model(model, LoraConfig(target_modules="all-linear")).save_pretrained(place)
                base, _ = load()
                merged = PeftModel.from_pretrained(base, place).merge_and_unload()
            return compared(merged, missing, name)

        def pipeline(auto_class: str = auto_class) -> str:
            made = transformers.pipeline(PIPELINES[auto_class], str(folder), trust_remote_code=True)
            given = f"{text} {made.tokenizer.mask_token}" if auto_class == "AutoModelForMaskedLM" else text
            return type(made(given)).__name__

        cells: dict[str, Callable[[], str]] = {
            "plain": lambda load=load, name=name: compared(*load(), name),
            "low memory": lambda load=load, name=name: compared(*load(low_cpu_mem_usage=True), name),
            "device map": lambda load=load, name=name: compared(*load(device_map="cpu"), name),
            "bfloat16": lambda load=load, name=name: compared(*load(dtype=torch.bfloat16), name, torch.bfloat16),
            "saved again": saved_again,
            "adapter": adapter,
        }
        if auto_class in PIPELINES and name in conformance["trained_heads"]:
            cells["pipeline"] = pipeline
        for way, action in cells.items():
            try:
                row = {"ok": True, "detail": action()}
            except Exception as error:
                row = {"ok": False, "detail": f"{type(error).__name__}: {error}".split("\n")[0][:300]}
            print(json.dumps({"auto": auto_class, "way": way, **row}), flush=True)


# ---- environments


@dataclass(frozen=True)
class Config:
    folders: tyro.conf.Positional[tuple[Path, ...]]
    """folders that `septet publish` built"""
    output: Path = Path("build/load_matrix")
    """environments and results.jsonl"""
    releases: tuple[str, ...] = ()
    """of transformers; default: the newest of each minor release from 5.5 on that PyPI has, at most ten"""
    refused: tuple[str, ...] = ("4.57.6", "5.0.0")
    """releases that must refuse"""


def newest_of_each_minor() -> list[str]:
    """Releases from `OLDEST` on, as `pip index` lists them."""
    command = [sys.executable, "-m", "pip", "index", "versions", "transformers"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    versions = [tuple(map(int, v.split("."))) for v in re.findall(r"\b\d+\.\d+\.\d+(?=,|$)", listed, re.MULTILINE)]
    newest: dict[tuple[int, int], tuple[int, ...]] = {}
    for version in sorted(versions):
        if version[:2] >= OLDEST:
            newest[version[:2]] = version
    chosen = [".".join(map(str, version)) for version in newest.values()]
    return chosen if len(chosen) <= 10 else [chosen[0], *chosen[-9:]]


def environment(release: str, place: Path) -> Path:
    """The Python of an environment with this release; what else is imported comes from the one that runs this."""
    python = place / "bin" / "python"
    if not (place / ".done").is_file():
        venv.create(place, with_pip=False, clear=True)
        own = Path(
            subprocess.run(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                capture_output=True, text=True, check=True,
            ).stdout.strip()
        )  # fmt: skip
        command = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            f"transformers=={release}",
        ]
        subprocess.run(command, check=True)
        (own / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")  # after its own, on sys.path
        (place / ".done").write_text("")
    return python


def main(config: Config) -> None:
    config.output.mkdir(parents=True, exist_ok=True)
    releases = list(config.releases) or newest_of_each_minor()
    results = []
    for release in [*config.refused, *releases]:
        python = environment(release, config.output.resolve() / release)
        for folder in config.folders:
            with tempfile.TemporaryDirectory() as home:
                variables = {"PATH": os.environ["PATH"], "HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
                command = [str(python), "-I", str(Path(__file__).resolve()), "--in-release", str(folder.resolve())]
                done = subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, check=False)
            cells = [json.loads(line) for line in done.stdout.split("\n") if line.startswith('{"auto"')]
            if not cells:
                reason = (done.stderr.strip().split("\n") or [""])[-1]
                cells = [{"auto": "process", "way": "plain", "ok": False, "detail": reason[:300]}]
            results += [{"release": release, "folder": folder.name, **cell} for cell in cells]
            bad = [cell for cell in cells if not cell["ok"]]
            note = "; ".join(f"{cell['auto']}, {cell['way']}: {cell['detail']}" for cell in bad[:3])
            print(f"{release:8} {folder.name:16} {len(cells) - len(bad):3} of {len(cells):3} {note}", flush=True)
    with open(config.output / "results.jsonl", "w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in results)
    print(table(results, releases))
    said = {row["release"]: row["detail"] for row in results if row["release"] in config.refused and not row["ok"]}
    torch = importlib.metadata.version("torch")
    print(f"\ntorch {torch}; refused: " + "; ".join(f"{release}: {detail}" for release, detail in said.items()))


def table(results: list[dict[str, Any]], releases: list[str]) -> str:
    """Releases by ways: good cells of all."""
    lines = ["| transformers | " + " | ".join(WAYS) + " |", "|---|" + "---|" * len(WAYS)]
    for release in releases:
        cells = []
        for way in WAYS:
            rows = [row for row in results if row["release"] == release and row["way"] == way]
            cells.append(f"{sum(row['ok'] for row in rows)} of {len(rows)}" if rows else "–")
        lines.append(f"| {release} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-release"]:
        load_everything(Path(sys.argv[2]))
    else:
        main(tyro.cli(Config, description=__doc__))
