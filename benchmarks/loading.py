"""How much memory loading takes: a sharded checkpoint of 7B-shaped layers, read by a fresh process.

    python benchmarks/loading.py --output build/loading
    python benchmarks/loading.py --gigabytes 14.3

The checkpoint has as many of the 7B's 32 layers as fit the given size, half of the free disk and a third of the free
memory; it is written tensor by tensor, so that this process never holds a whole shard. A process of its own then calls
`AutoModelForCausalLM.from_pretrained(folder, dtype="auto")` and touches every weight.

Two peaks are given, each over the bytes of the tensors. `resident` is the kernel's high-water mark (`VmHWM`): it counts
the pages of the mapped file as well, which the kernel takes back when it needs them. `anonymous` is what only swapping
could take back (`RssAnon`, sampled). Each stands there for the whole process, Python and its libraries included (about
0.4 GB), and for the load alone. The target, 1.1 times the size, is held against the larger: the whole process, resident.
The file lies in the page cache, having just been written; a cold disk adds its own time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

TARGET = 1.1
GIGABYTE = 10**9


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="the checkpoint's size at most, in 10^9 bytes")
    parser.add_argument("--shard-gigabytes", type=float, default=1.0, help="a shard's size at most")
    parser.add_argument("--output", type=Path, default=Path("build/loading"), help="folder for loading.json")
    parser.add_argument("--seconds-between-samples", type=float, default=0.005)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # the fresh process: the folder to load
    return parser.parse_args(arguments)


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().split("\n"):
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def free_memory() -> int:
    lines = Path("/proc/meminfo").read_text().split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def tensors_of(layers: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The 7B's configuration with fewer layers, and the names and shapes of its tensors."""
    import torch

    from septet.modeling.modeling_septet import SeptetForCausalLM
    from septet.modeling.presets import preset_config

    config = preset_config("7b", num_hidden_layers=layers)
    config.dtype, config.architectures, config.trained_heads = "bfloat16", ["SeptetForCausalLM"], ["SeptetForCausalLM"]
    with torch.device("meta"):
        model = SeptetForCausalLM(config)
    return config, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def size_of(shapes: dict[str, tuple[int, ...]]) -> int:
    from math import prod

    return 2 * sum(prod(shape) for shape in shapes.values())


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], rows: int = 4096) -> None:
    """The safetensors format (an 8-byte length, a JSON header, the bytes), a slab of a tensor at a time."""
    import torch

    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + size_of({name: shape})
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for shape in shapes.values():
            slab = torch.empty((min(rows, shape[0]), *shape[1:]), dtype=torch.bfloat16).normal_(std=0.02)
            for first in range(0, shape[0], rows):
                file.write(slab[: shape[0] - first].view(torch.uint8).numpy())


def write_checkpoint(folder: Path, config: Any, shapes: dict[str, tuple[int, ...]], shard_bytes: float) -> int:
    """Shards, their index, the configuration and the code beside them; returns the number of shards."""
    from septet.modeling import configuration_septet, modeling_septet

    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and size_of({**shards[-1], name: shape}) > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_shard(folder / name, shard)
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": size_of(shapes)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    for module in (configuration_septet, modeling_septet):
        shutil.copy(module.__file__, folder)
    return len(shards)


def load(folder: Path, seconds_between_samples: float) -> dict[str, float]:
    """Loads the folder as a stranger does and watches this process' memory meanwhile."""
    import torch
    import transformers.models.auto.modeling_auto

    # The model's class and its imports stand before the load, so that what they take is not counted as the weights'.
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with torch.device("meta"):
        transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    before = {"resident": status("VmRSS"), "anonymous": status("RssAnon")}
    anonymous, done = [before["anonymous"]], threading.Event()

    def watch() -> None:
        while not done.wait(seconds_between_samples):
            anonymous.append(status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    loaded = time.perf_counter()
    total = sum(parameter.float().sum().item() for parameter in small_parts(model))
    touched = time.perf_counter()
    anonymous.append(status("RssAnon"))
    done.set()
    watcher.join()
    assert total, "the weights are all zero"
    return {
        "seconds": loaded - started,
        "seconds_to_read_every_weight_once": touched - loaded,
        "before_resident_bytes": before["resident"],
        "before_anonymous_bytes": before["anonymous"],
        "peak_resident_bytes": status("VmHWM"),
        "peak_anonymous_bytes": max(anonymous),
        "after_anonymous_bytes": anonymous[-1],
    }


def small_parts(model: Any) -> Any:
    """Every weight in parts of a few megabytes: reading them must not take the memory that is measured."""
    for parameter in model.parameters():
        yield from parameter.detach().flatten().split(2**20)


def main(options: argparse.Namespace) -> Path:
    options.output.mkdir(parents=True, exist_ok=True)
    folder = options.output / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    disk, memory = shutil.disk_usage(options.output).free, free_memory()
    limit = min(options.gigabytes * GIGABYTE, disk / 2, memory / 3)
    one, two = (size_of(tensors_of(layers)[1]) for layers in (1, 2))
    layers = min(32, 1 + int((limit - one) // (two - one)))
    if layers < 1:
        raise SystemExit(
            f"one 7B layer with its embeddings takes {one / GIGABYTE:.1f} GB; at most {limit / GIGABYTE:.1f} GB are allowed "
            f"(--gigabytes {options.gigabytes}, half of {disk / GIGABYTE:.0f} GB of disk, a third of "
            f"{memory / GIGABYTE:.0f} GB of memory)"
        )
    config, shapes = tensors_of(layers)
    size = size_of(shapes)
    folder.mkdir()
    try:
        print(f"writing {layers} layers, {size / GIGABYTE:.2f} GB, to {folder}", file=sys.stderr, flush=True)
        shards = write_checkpoint(folder, config, shapes, options.shard_gigabytes * GIGABYTE)
        command = [sys.executable, __file__, "--load", str(folder), "--seconds-between-samples",
                   str(options.seconds_between_samples)]  # fmt: skip
        environment = {**os.environ, "HF_MODULES_CACHE": str(options.output / "modules"), "HF_HUB_OFFLINE": "1"}
        answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(options.output / "modules", ignore_errors=True)
    found = json.loads(answer)
    ratios = {
        name: {
            "process": found[f"peak_{name}_bytes"] / size,
            "load_alone": (found[f"peak_{name}_bytes"] - found[f"before_{name}_bytes"]) / size,
        }
        for name in ("resident", "anonymous")
    }
    import torch
    import transformers

    report = {
        "layers": layers, "parameters": size // 2, "bytes": size, "shards": shards, "dtype": "bfloat16", **found,
        "over_the_size": ratios, "target": TARGET,
        "target_holds": max(ratio["process"] for ratio in ratios.values()) <= TARGET,
        "hardware": f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}",
        "libraries": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip
    place = options.output / "loading.json"
    place.write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"{size / GIGABYTE:.2f} GB in {shards} shards loaded in {found['seconds']:.1f} s; peak over the size: "
        + ", ".join(f"{name} {ratio['process']:.3f} ({ratio['load_alone']:.3f} without what stood there before)"
                    for name, ratio in ratios.items())
        + f"; at most {TARGET}: {'yes' if report['target_holds'] else 'no'}; {place}"
    )  # fmt: skip
    return place


if __name__ == "__main__":
    arguments = parse()
    if arguments.load:
        print(json.dumps(load(arguments.load, arguments.seconds_between_samples)))
    else:
        main(arguments)
