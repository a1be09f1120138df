"""Check a published folder as somebody who has only torch and transformers: `python -I evidence/verify.py`, in the folder.

A copy lies in each published folder under that name; `septet verify` runs its own, in a process apart, in an empty
directory, with empty caches. It imports nothing of Septet but what lies in the folder (read the `.py` files there first:
this runs them), writes nothing there, and prints one JSON object a check: {"check", "ok", "detail"}.
"""

import ast
import hashlib
import importlib.abc
import json
import re
import sys
from collections import Counter
from pathlib import Path

LOGITS_TOLERANCE = 1e-5
ALLOWED_IMPORTS = {"torch", "transformers", "huggingface_hub", "collections", "dataclasses", "math", "typing"}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".joblib")
# Written after the list of files, here or by the Hub; and `.cache/` is huggingface_hub's, where a repository is downloaded.
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
    except Exception as error:
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


def files_are_plain(folder):
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        require(not path.is_symlink(), f"{name} is a symbolic link; a published folder holds plain files")
        require(path.suffix not in PICKLES, f"{name} is a pickle, which can run code when it is read; use safetensors")
    return f"{sum(p.is_file() for p in folder.rglob('*'))} files"


def needed_files_are_there(folder):
    names = ["config.json", "configuration_septet.py", "modeling_septet.py", "tokenizer.json", "tokenizer_config.json"]
    for name in [*names, "README.md", "LICENSE", "evidence/conformance.json", "evidence/golden.safetensors"]:
        require((folder / name).is_file(), f"{name} is missing")
    require(list(folder.glob("*.safetensors")), "there are no weights (*.safetensors)")


def imports_are_allowed(folder):
    for file in folder.glob("*.py"):
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
        require((folder / name).is_file(), f"{name} is missing")
        require(sha256(folder / name) == digest, f"{name} has changed since it was published (sha256 differs)")
    known = {*conformance["files"], *NOT_LISTED}
    for path in folder.rglob("*"):  # an adapter or a second tokenizer would change what is loaded
        name = path.relative_to(folder).as_posix()
        require(
            not path.is_file() or name in known or name.startswith(".cache/"), f"{name} was not published with the rest"
        )
    return f"{len(conformance['files'])} files"


def card_results(report):
    """(task type, dataset, split, metric, value) of each score of a report, as the card's `model-index` states it."""
    place = Path(report["data"]["test"]["path"])
    dataset = "septet-sample" if report.get("synthetic") else place.parent.name
    task = TASK_TYPES.get(report["task"], report["task"])
    split = place.name.split(".")[0]
    return [(task, dataset, split, name, round(score["value"], 2)) for name, score in report["scores"].items()]


def card_says_what_the_reports_say(folder):
    import yaml

    text = (folder / "README.md").read_text(encoding="utf-8")
    match = re.match(r"\A---\n(.*?)\n---\n", text, re.DOTALL)
    require(match, "README.md has no metadata (YAML between two lines of ---)")
    data = yaml.safe_load(match.group(1))
    require(data.get("library_name") == "transformers", f"library_name is {data.get('library_name')!r}")
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
    for text, ids in conformance["encodings"].items():
        require(tokenizer(text)["input_ids"] == ids, f"{text[:30]!r} is encoded otherwise than when it was published")
        require(
            tokenizer.decode(ids, skip_special_tokens=True) == text, f"{text[:30]!r} does not come back from its ids"
        )


def only_its_own_is_missing(name, missing, config, conformance):
    """A head that was trained lacks nothing, any other exactly the tensors that it adds."""
    tied = ("lm_head.",) if config.tie_word_embeddings else ()
    own, present = HEADS[name][0], conformance["tensors"]
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


def head_loads(auto_class, name, folder, config, conformance, golden):
    """A trained head loads complete, twice the same, with the golden outputs; any other lacks exactly its own tensors."""
    import torch
    import transformers

    auto = getattr(transformers, auto_class)
    model, info = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    require(type(model).__name__ == name, f"is a {type(model).__name__}, should be a {name}")
    missing, mismatched = sorted(info["missing_keys"]), sorted(map(str, info["mismatched_keys"]))
    require(not mismatched, f"tensors of another shape: {mismatched[:3]}")
    only_its_own_is_missing(name, missing, config, conformance)
    outputs, present = HEADS[name][1], conformance["tensors"]
    state = model.state_dict()
    for key, digest in present.items():
        found = key if key in state else key.removeprefix("model.")
        if found in state and found not in missing:
            require(tensor_digest(state[found]) == digest, f"{key} was loaded with other values than were published")
    if config.tie_word_embeddings and hasattr(model, "lm_head"):
        same = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        require(same, "lm_head should be tied to the embeddings and is not")
    if f"{name}.input_ids" not in golden:
        return f"{len(missing)} new tensors"
    # Loaded twice the same; the second in float32, the type of the golden outputs, which holds bfloat16's values exactly.
    model = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    again = model.state_dict()
    require(all(torch.equal(again[key], state[key].float()) for key in state), "two loads have different weights")
    with torch.no_grad():
        result = model(input_ids=golden[f"{name}.input_ids"], attention_mask=golden[f"{name}.attention_mask"])
    worst = 0.0
    for key in outputs:
        worst = max(worst, float((result[key].float() - golden[f"{name}.{key}"]).abs().max()))
    require(worst <= LOGITS_TOLERANCE, f"its outputs differ from what training saw by {worst:.2g}")
    return f"outputs within {worst:.1g}"


def generates(folder, conformance):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    require("do_sample" in settings, "generation_config.json must say do_sample: without it the pipeline samples")
    for name in ("eos_token_id", "pad_token_id"):
        ours, models = settings.get(name), getattr(model.config, name)
        require(ours == models, f"generation_config.json has {name} {ours}, the model {models}; no answer would end")
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


def main(folder):
    sys.meta_path.insert(0, NotInstalled())
    checks = [
        attempt("plain files", lambda: files_are_plain(folder)),
        attempt("needed files", lambda: needed_files_are_there(folder)),
    ]
    if not all(checks):
        return 1  # the rest would only repeat it, or run what should not be run
    conformance = json.loads((folder / "evidence" / "conformance.json").read_text(encoding="utf-8"))
    checks += [
        attempt("imports", lambda: imports_are_allowed(folder)),
        attempt("digests", lambda: digests_are_as_published(folder, conformance)),
        attempt("card", lambda: card_says_what_the_reports_say(folder)),
    ]
    if not checks[2]:
        return 1

    import transformers
    from safetensors.torch import load_file

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        golden = load_file(folder / "evidence" / "golden.safetensors")
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    except Exception as error:
        report("configuration and tokenizer", False, f"{type(error).__name__}: {error}".split("\n")[0][:300])
        return 1
    checks.append(attempt("tokenizer", lambda: tokenizer_fits(tokenizer, config, conformance)))
    for auto_class, target in sorted(config.auto_map.items()):
        name = target.split(".")[-1]
        if name in HEADS:
            arguments = (auto_class, name, folder, config, conformance, golden)
            checks.append(attempt(auto_class, lambda a=arguments: head_loads(*a)))
    if "generation" in conformance:
        checks.append(attempt("generation", lambda: generates(folder, conformance)))
    return 0 if all(checks) else 1


if __name__ == "__main__":
    place = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent.parent
    sys.exit(main(place.resolve()))
