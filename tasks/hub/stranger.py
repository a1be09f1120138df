"""Check a published folder as somebody who has only torch and transformers: `python -I evidence/verify.py`, in the folder.

A copy lies in each published folder under that name; `septet verify` runs its own, in a process apart, in an empty
directory, with empty caches. It imports nothing of Septet but what lies in the folder (read the `.py` files there first:
this runs them), writes nothing there, and prints one JSON object a check: {"check", "ok", "detail"}.

`evidence/conformance.json` says what kind of folder it is: a model; an adapter, which also needs peft and the model that
it adapts (its name on the Hub stands in adapter_config.json; a folder can be given instead, as the second argument; of
either only weights are read); or a model in another form, which has no code: qwen3, llama, gguf (needs gguf, and is run
if xllamacpp is there), onnx (needs onnxruntime). The last line is the check "end". All this finds mistakes and tampering;
code that is written to deceive can print what it likes, which is why it must be read.
"""

import ast
import hashlib
import importlib.abc
import json
import re
import sys
import urllib.request
from collections import Counter
from pathlib import Path

LOGITS_TOLERANCE = 1e-5
GRAPH_TOLERANCE = 1e-4  # of a graph in another runtime: of the largest output, or of 1
ALLOWED_IMPORTS = {"torch", "transformers", "huggingface_hub", "collections", "dataclasses", "math", "typing"}
MAX_HEADER_BYTES = 100_000_000  # as safetensors itself has it
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".joblib")
# Written after the list of files, here or by the Hub.
NOT_LISTED = ("evidence/conformance.json", "manifest.json", ".gitattributes")
TASK_TYPES = {"qa": "question-answering", "classification": "text-classification", "ner": "token-classification"}
# What each head adds to the decoder, and which of its outputs are compared.
HEADS = {
    "SeptetModel": ((), ("last_hidden_state",)),
    "SeptetForCausalLM": (("lm_head.",), ("logits",)),
    "SeptetForMaskedLM": (("lm_head.",), ("logits",)),
    "SeptetForNextSentencePrediction": (("nsp_head.",), ("logits",)),
    "SeptetForPreTraining": (("lm_head.", "nsp_head."), ("prediction_logits", "seq_relationship_logits")),
    "SeptetForSequenceClassification": (("classifier.",), ("logits",)),
    "SeptetForTokenClassification": (("token_classifier.",), ("logits",)),
    "SeptetForQuestionAnswering": (("qa_outputs.",), ("start_logits", "end_logits")),
    "Qwen3ForCausalLM": (("lm_head.",), ("logits",)),
    "LlamaForCausalLM": (("lm_head.",), ("logits",)),
}
LIBRARIES = ("transformers", "peft", "gguf", "onnx")
CODE = ("configuration_septet.py", "modeling_septet.py")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
# What each kind of folder must hold besides card, licence and evidence.
NEEDED = {
    "model": ("config.json", *CODE, *TOKENIZER, "*.safetensors"),
    "adapter": ("config.json", *CODE, *TOKENIZER, "adapter_config.json", "adapter_model.safetensors"),
    "qwen3": ("config.json", *TOKENIZER, "*.safetensors"),
    "llama": ("config.json", *TOKENIZER, "*.safetensors"),
    "gguf": ("*.gguf",),
    "onnx": ("model.onnx", *TOKENIZER),
}


class NotInstalled(importlib.abc.MetaPathFinder):
    """The stranger has no `septet` package: a checkpoint that needs it fails here as it would there."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "septet":
            raise ModuleNotFoundError("the published code needs the package `septet`, which a stranger does not have")


def report(check, ok, detail=""):
    print(json.dumps({"check": check, "ok": bool(ok), "detail": str(detail)}), flush=True)
    return bool(ok)


def attempt(check, action):
    """Runs `action`, which returns a detail or raises with the reason."""
    try:
        return report(check, True, action() or "")
    except (Exception, SystemExit) as error:
        return report(check, False, f"{type(error).__name__}: {error}".split("\n")[0][:300])


def require(condition, reason):
    if not condition:
        raise ValueError(reason)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as stream:  # in blocks: a shard may hold tens of gigabytes
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tensor_digest(tensor):
    """SHA-256 over type, shape and bytes."""
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    data = tensor.detach().contiguous().view(-1).view(__import__("torch").uint8).numpy().tobytes()
    return hashlib.sha256(head + data).hexdigest()


# ---- what can be seen without running the folder's code


def published(folder, pattern="*"):
    """The files of a folder but those of git and huggingface_hub, where a repository is cloned or downloaded."""
    tools = (folder / ".git", folder / ".cache")
    return [path for path in folder.rglob(pattern) if path.is_file() and not any(map(path.is_relative_to, tools))]


def files_are_plain(folder):
    """No links, no pickles, no name that leads out of the folder, no header that a reader would choke on."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        require(not path.is_symlink(), f"{name} is a symbolic link; a published folder holds plain files")
        require(path.suffix not in PICKLES, f"{name} is a pickle, which can run code when it is read; use safetensors")
        if path.suffix == ".safetensors":
            with open(path, "rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
            limit = min(MAX_HEADER_BYTES, path.stat().st_size - 8)
            require(2 <= length <= limit, f"{name}: its header claims {length} bytes, at most {limit} can be")
        if path.name.endswith(".index.json"):
            for file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values():
                require(Path(file).name == file, f"{name} names {file!r}, which leads out of the folder")
    return f"{sum(p.is_file() for p in folder.rglob('*'))} files"


def needed_files_are_there(folder, kind):
    require(kind in NEEDED, f"a folder of the kind {kind!r} is not known here; use the verify.py of its own evidence/")
    for name in (*NEEDED[kind], "README.md", "LICENSE", "evidence/golden.safetensors"):
        require(list(folder.glob(name)), f"{name} is missing")


def code_is_the_folders_own(folder, kind):
    """What is run is what lies here and was looked at: no code of another repository or of a deeper folder."""
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        auto_map = content.get("auto_map") or {}
        require(not auto_map or name == "config.json", f"{name} names code; the tokenizer needs none")
        require(not auto_map or "modeling_septet.py" in NEEDED[kind], f"{name} names code, which this kind never needs")
        for auto_class, target in auto_map.items():
            module, _, _ = str(target).partition(".")
            require(f"{module}.py" in CODE, f"{name}: {auto_class} is {target!r}, which is not code of this folder")


def imports_are_allowed(folder, kind):
    code_is_the_folders_own(folder, kind)
    allowed = CODE if "modeling_septet.py" in NEEDED[kind] else ()
    for file in sorted(
        published(folder, "*.py")
    ):  # transformers also runs custom_generate/generate.py, if there is one
        name = file.relative_to(folder).as_posix()
        if name == "evidence/verify.py":
            continue
        require(name in allowed, f"holds code, {name}, which this kind of folder never needs")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.ImportFrom):
                require(
                    (folder / f"{node.module}.py").is_file(), f"{file.name} imports .{node.module}, which is not there"
                )
            for name in names:
                require(
                    name.split(".")[0] in ALLOWED_IMPORTS, f"{file.name} imports {name}; a stranger may not have it"
                )


def digests_are_as_published(folder, conformance):
    for name, digest in conformance["files"].items():
        require(".." not in Path(name).parts and not Path(name).is_absolute(), f"{name!r} leads out of the folder")
        require((folder / name).is_file(), f"{name} is missing")
        require(sha256(folder / name) == digest, f"{name} has changed since it was published (sha256 differs)")
    known = {*conformance["files"], *NOT_LISTED}
    for path in published(folder):  # an adapter or a second tokenizer would change what is loaded
        name = path.relative_to(folder).as_posix()
        require(name in known, f"{name} was not published with the rest")
    return f"{len(conformance['files'])} files"


def same_code(folder, conformance):
    """Whether each file of code is the one that was published."""
    return all(conformance["files"].get(file.name) == sha256(file) for file in folder.glob("*.py"))


def card_results(report):
    """(task type, dataset, split, metric, value) of each score of a report, as the card's `model-index` states it."""
    test = report["data"]["test"]
    place = Path(test["path"])
    dataset = "septet-sample" if report.get("synthetic") else place.parent.name
    if test["path"].startswith("hub:"):
        dataset = test["path"].removeprefix("hub:").partition(":")[0]
    task = TASK_TYPES.get(report["task"], report["task"])
    split = test.get("split") or place.name.split(".")[0]
    return [(task, dataset, split, name, rounded(score)) for name, score in report["scores"].items()]


def rounded(score):
    """Two decimals; of an error, whose unit may be any, three digits."""
    value = score["value"]
    return round(value, 2) if score.get("higher_is_better", True) else float(f"{value:.3g}")


def card_says_what_the_reports_say(folder):
    import yaml

    text = (folder / "README.md").read_text(encoding="utf-8")
    match = re.match(r"\A---\n(.*?)\n---\n", text, re.DOTALL)
    require(match, "README.md has no metadata (YAML between two lines of ---)")
    data = yaml.safe_load(match.group(1))
    require(data.get("library_name") in LIBRARIES, f"library_name is {data.get('library_name')!r}")
    results = [result for entry in data.get("model-index") or [] for result in entry["results"]]
    stated = Counter(
        (r["task"]["type"], r["dataset"]["type"], r["dataset"].get("split"), m["type"], m["value"])
        for r in results
        for m in r["metrics"]
    )
    proved = Counter(
        result
        for path in (folder / "evidence").glob("*/report.json")
        for result in card_results(json.loads(path.read_text(encoding="utf-8")))
    )
    for task, dataset, _, metric, value in stated - proved:
        raise ValueError(f"the card states {metric} {value} for {task} on {dataset}, but no report in evidence/ does")
    for task, dataset, _, metric, value in proved - stated:
        raise ValueError(f"a report has {metric} {value} for {task} on {dataset}, but the card does not state it")
    return f"{stated.total()} numbers"


# ---- what shows when it runs


def tokenizer_fits(tokenizer, config, conformance):
    require(tokenizer.pad_token_id is not None, "the tokenizer has no pad token")
    require(tokenizer.eos_token_id is not None, "the tokenizer has no eos token")
    require(tokenizer.pad_token_id != tokenizer.eos_token_id, "pad equals eos; a model trained so never learns to stop")
    require(len(tokenizer) <= config.vocab_size, f"{len(tokenizer)} tokens, the model has {config.vocab_size}")
    for name in ("pad", "bos", "eos"):
        ours, models = getattr(tokenizer, f"{name}_token_id"), getattr(config, f"{name}_token_id")
        require(ours == models, f"{name} is {ours} for the tokenizer, {models} for the model")
    require(conformance["encodings"], "evidence/conformance.json has no encodings to compare with")
    for text, ids in conformance["encodings"].items():
        require(tokenizer(text)["input_ids"] == ids, f"{text[:30]!r} is encoded otherwise than when it was published")
        require(
            tokenizer.decode(ids, skip_special_tokens=True) == text, f"{text[:30]!r} does not come back from its ids"
        )


def only_its_own_is_missing(name, missing, config, conformance):
    """A head that was trained lacks nothing, any other exactly the tensors that it adds."""
    tied = ("lm_head.",) if config.tie_word_embeddings else ()
    own, present = HEADS[name][0], conformance["tensors"]
    if name == "SeptetForQuestionAnswering" and getattr(config, "exact_match_embedding", False):
        own = (*own, "match_embeddings.")
    if name in conformance["trained_heads"] or name == "SeptetModel":
        require(not missing, f"is declared as trained, but lacks {missing[:3]}")
    else:
        allowed = [p for p in own if p not in tied and not any(key.startswith(p) for key in present)]
        strange = [key for key in missing if not key.startswith(tuple(allowed) or ("\0",))]
        require(not strange, f"lacks {strange[:3]}, which are not its own new tensors ({', '.join(allowed) or 'none'})")
        require(
            all(any(key.startswith(p) for key in missing) for p in allowed),
            f"{allowed} are neither in the checkpoint nor reported as new",
        )


def compare(result, name, golden, tolerance=LOGITS_TOLERANCE, masked=False):
    """The largest difference between a head's outputs and the golden ones, of the largest output or of 1."""
    expected, mask = {key: golden[f"{name}.{key}"] for key in HEADS[name][1]}, golden[f"{name}.attention_mask"].bool()
    worst = 0.0
    for key, value in expected.items():
        difference = (result[key].float() - value).abs()
        by_token = masked and value.shape[:2] == mask.shape
        difference = difference[mask] if by_token else difference
        require(difference.isfinite().all(), f"its {key} are not finite (NaN or infinity)")
        worst = max(worst, float(difference.max()))
    largest = max(1.0, *(float(value.abs().max()) for value in expected.values()))
    require(worst <= tolerance * largest, f"its outputs differ from what training saw by {worst:.2g}")
    return f"outputs within {worst:.1g}"


def head_loads(auto_class, name, folder, config, conformance, golden):
    """A trained head loads complete, twice the same, with the golden outputs; any other lacks exactly its own tensors."""
    import torch
    import transformers

    auto, trust = getattr(transformers, auto_class), {"trust_remote_code": has_code(conformance)}
    model, info = auto.from_pretrained(folder, output_loading_info=True, **trust)
    require(type(model).__name__ == name, f"is a {type(model).__name__}, should be a {name}")
    missing, mismatched = sorted(info["missing_keys"]), sorted(map(str, info["mismatched_keys"]))
    require(not mismatched, f"tensors of another shape: {mismatched[:3]}")
    only_its_own_is_missing(name, missing, config, conformance)
    present = conformance["tensors"]
    require(present, "evidence/conformance.json has no digests of tensors")
    state = model.state_dict()
    for key, digest in present.items():
        found = key if key in state else key.removeprefix("model.")
        if found in state and found not in missing:
            require(tensor_digest(state[found]) == digest, f"{key} was loaded with other values than were published")
    if config.tie_word_embeddings and hasattr(model, "lm_head"):
        same = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        require(same, "lm_head should be tied to the embeddings and is not")
    if name not in ("SeptetModel", *conformance["trained_heads"]):
        return f"{len(missing)} new tensors"
    require(f"{name}.input_ids" in golden, "is declared as trained, but evidence/ has no golden outputs of it")
    # Loaded twice the same; the second in float32, the type of the golden outputs, which holds bfloat16's values exactly.
    model = auto.from_pretrained(folder, dtype=torch.float32, **trust).eval()
    again = model.state_dict()
    require(all(torch.equal(again[key], state[key].float()) for key in state), "two loads have different weights")
    with torch.no_grad():
        result = model(input_ids=golden[f"{name}.input_ids"], attention_mask=golden[f"{name}.attention_mask"])
    return compare(result, name, golden)


def generates(folder, conformance):
    import torch
    import transformers

    trust = {"trust_remote_code": has_code(conformance)}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **trust).eval()
    return goes_on(model, folder, conformance)


def goes_on(model, folder, conformance):
    """The generation settings are whole, and the model writes what it wrote when it was published."""
    import torch

    require("generation" in conformance, "a causal head is trained, but evidence/ has no generation of it")
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    require("do_sample" in settings, "generation_config.json must say do_sample: without it the pipeline samples")
    for name in ("eos_token_id", "pad_token_id"):
        ours, models = settings.get(name), getattr(model.config, name)
        same = ours == models or (isinstance(ours, list) and models in ours)  # an answer may end in one of several ways
        require(same, f"generation_config.json has {name} {ours}, the model {models}; no answer would end")
    generation = conformance["generation"]
    ids = torch.tensor([generation["input_ids"]])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=generation["max_new_tokens"]
    )
    new = out[0, ids.shape[1] :].tolist()
    require(
        new == generation["output_ids"], f"generates {new[:8]}, when it was published {generation['output_ids'][:8]}"
    )
    return f"{len(new)} tokens"


def adapter_fits(folder, base, conformance, golden):
    """On top of the model that it adapts, of which only the weights are read, the adapter gives the golden outputs."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    name = conformance["trained_heads"][0]
    place = base or json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    if Path(place).is_dir():
        files_are_plain(Path(place))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    head = get_class_from_dynamic_module(f"modeling_septet.{name}", str(folder))
    model = head.from_pretrained(place, config=config, dtype=torch.float32, use_safetensors=True)
    model = PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        result = model(input_ids=golden[f"{name}.input_ids"], attention_mask=golden[f"{name}.attention_mask"])
    try:
        found = compare(result, name, golden)
    except ValueError as error:
        raise ValueError(f"{error}; is {place} the model that it was trained on?") from error
    return found + (f"; goes on with {goes_on(model, folder, conformance)}" if name.endswith("ForCausalLM") else "")


def graph_runs(folder, conformance, golden):
    """The ONNX graph gives the golden outputs."""
    import onnxruntime
    import torch

    name = conformance["trained_heads"][0]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    keys = [output.name for output in session.get_outputs()]
    given = {key: golden[f"{name}.{key}"].numpy() for key in ("input_ids", "attention_mask")}
    if any(entry.name == "prefix_lengths" for entry in session.get_inputs()):
        given["prefix_lengths"] = golden[f"{name}.attention_mask"].sum(1).numpy() * 0
    result = dict(zip(keys, map(torch.from_numpy, session.run(keys, given)), strict=True))
    return compare(result, name, golden, GRAPH_TOLERANCE, masked=True)


def gguf_reads(folder, conformance):
    """The GGUF file holds the tensors that were written, and, where llama.cpp is at hand, goes on as the model did."""
    from gguf import GGUFReader

    [path] = folder.glob("*.gguf")
    reader = GGUFReader(path)
    found = {tensor.name: hashlib.sha256(tensor.data.tobytes()).hexdigest() for tensor in reader.tensors}
    require(found and found == conformance["tensors"], "its tensors are not those that were written")
    try:
        import xllamacpp
    except ImportError:
        return f"{len(found)} tensors; read, not run: xllamacpp is not installed"
    generation, params = conformance["generation"], xllamacpp.CommonParams()
    params.model.path, params.n_gpu_layers, params.warmup, params.verbosity = str(path), 0, False, 0
    params.n_ctx = len(generation["input_ids"]) + generation["max_new_tokens"] + 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # as exact as the model's
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    asked = {"prompt": generation["input_ids"], "n_predict": generation["max_new_tokens"], "temperature": 0}
    body = json.dumps({**asked, "cache_prompt": False, "return_tokens": True}).encode()
    request = urllib.request.Request(server.listening_address + "/completion", body)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=300) as answer:
        tokens = json.loads(answer.read())["tokens"]
    expected = generation["output_ids"]  # of which llama.cpp leaves out an eos at the end
    is_whole = len(expected) - 1 <= len(tokens) and tokens == expected[: len(tokens)]
    require(
        tokens and is_whole,
        f"goes on with {tokens[:8]} ({len(tokens)}), the model with {expected[:8]} ({len(expected)})",
    )
    return f"{len(found)} tensors; llama.cpp goes on with the model's {len(tokens)} tokens"


def has_code(conformance):
    return "modeling_septet.py" in NEEDED[conformance.get("kind", "model")]


def loads(folder, conformance, golden, base):
    """What is seen when a folder that transformers reads is loaded; a list of results."""
    import transformers

    trust = {"trust_remote_code": has_code(conformance)}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **trust)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **trust)
    except (Exception, SystemExit) as error:
        return [report("configuration and tokenizer", False, f"{type(error).__name__}: {error}".split("\n")[0][:300])]
    checks = [attempt("tokenizer", lambda: tokenizer_fits(tokenizer, config, conformance))]
    if conformance.get("kind") == "adapter":
        return [*checks, attempt("adapter", lambda: adapter_fits(folder, base, conformance, golden))]
    heads = getattr(config, "auto_map", None) or {"AutoModelForCausalLM": conformance["trained_heads"][0]}
    named = {target.split(".")[-1] for target in heads.values()}
    unnamed = [name for name in ("SeptetModel", *conformance["trained_heads"]) if name not in named]
    if has_code(conformance) and unnamed:
        checks.append(report("Auto classes", False, f"config.json has no Auto class for {', '.join(unnamed)}"))
    for auto_class, target in sorted(heads.items()):
        name = target.split(".")[-1]
        if name in HEADS:
            arguments = (auto_class, name, folder, config, conformance, golden)
            checks.append(attempt(auto_class, lambda a=arguments: head_loads(*a)))
    if any(name.endswith("ForCausalLM") for name in conformance["trained_heads"]):
        checks.append(attempt("generation", lambda: generates(folder, conformance)))
    return checks


def main(folder, base=None):
    sys.meta_path.insert(0, NotInstalled())
    if not attempt("plain files", lambda: files_are_plain(folder)):
        return 1  # the rest would only repeat it, or run what should not be run
    try:
        conformance = json.loads((folder / "evidence" / "conformance.json").read_text(encoding="utf-8"))
        kind = conformance.get("kind", "model")
    except (OSError, ValueError, AttributeError) as error:
        report("needed files", False, f"evidence/conformance.json is missing or damaged ({error})")
        return 1
    if not attempt("needed files", lambda: needed_files_are_there(folder, kind)):
        return 1
    checks = [
        attempt("imports", lambda: imports_are_allowed(folder, kind)),
        attempt("digests", lambda: digests_are_as_published(folder, conformance)),
        attempt("card", lambda: card_says_what_the_reports_say(folder)),
    ]
    if not checks[0] or not same_code(folder, conformance):
        return 1  # what would be run is not what was published

    import transformers
    from safetensors.torch import load_file

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        golden = load_file(folder / "evidence" / "golden.safetensors")
    except Exception as error:
        report("golden outputs", False, f"evidence/golden.safetensors cannot be read ({error})")
        return 1
    if kind == "gguf":
        checks.append(attempt("GGUF", lambda: gguf_reads(folder, conformance)))
    elif kind == "onnx":
        checks.append(attempt("ONNX", lambda: graph_runs(folder, conformance, golden)))
    else:
        checks += loads(folder, conformance, golden, base)
    report("end", True)
    return 0 if all(checks) else 1


if __name__ == "__main__":
    place = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent.parent
    sys.exit(main(place.resolve(), *sys.argv[2:3]))
