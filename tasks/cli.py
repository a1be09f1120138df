"""The `septet` command: one verb a stage, each of which is also `python -m septet.<package>.<module>`."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass

from septet.data.errors import run_cli, suggestion


@dataclass(frozen=True)
class Verb:
    """Where a verb's `run` and configuration live, and what it does in half a line."""

    module: str
    config: str
    help: str
    function: str = "run"


VERBS = {
    "sample": Verb("data.sample", "SampleConfig", "write the embedded synthetic sample: text and five task sets"),
    "corpus": Verb("data.corpus", "CorpusConfig", "clean, filter and de-duplicate documents"),
    "tokenizer": Verb("data.tokenizer", "TokenizerConfig", "train a byte-level BPE on a corpus"),
    "pack": Verb("data.pack", "PackConfig", "pack a corpus into sequences of one length"),
    "pretrain": Verb(
        "modeling.pretrain", "PretrainConfig", "pre-train (or: accelerate launch -m septet.modeling.pretrain)"
    ),
    "certify": Verb("modeling.certify", "CertifyConfig", "prove what a pre-training run has seen and saved"),
    "plan": Verb("modeling.plan", "PlanConfig", "memory, days and money of a pre-training run"),
    "import": Verb(
        "modeling.convert", "ImportConfig", "take a Llama or Qwen3 checkpoint as a Septet one", "import_model"
    ),
    "export": Verb(
        "modeling.convert",
        "ExportConfig",
        "write as plain Qwen3, Llama, GGUF, ONNX, LiteRT or word2vec",
        "export_model",
    ),
    "finetune": Verb("tasks.harness.finetune", "FinetuneConfig", "fine-tune on a task, whole or by LoRA"),
    "cross-validate": Verb(
        "tasks.harness.cross_validate", "CrossValidateConfig", "fine-tune and score a small set in folds"
    ),
    "search": Verb("tasks.harness.search", "SearchConfig", "look for fine-tuning options with optuna"),
    "evaluate": Verb("tasks.harness.predict", "EvaluateConfig", "predict, score and report"),
    "compare": Verb("tasks.harness.compare", "CompareConfig", "two reports side by side, with paired tests"),
    "report": Verb("tasks.harness.report_page", "ReportConfig", "one page over all tasks"),
    "publish": Verb("tasks.hub.publish", "PublishConfig", "build a Hub folder, verify it, upload it if asked"),
    "publish-data": Verb(
        "tasks.hub.publish_data", "PublishDataConfig", "upload a corpus or a packed set, if it is sound"
    ),
    "publish-space": Verb("tasks.hub.publish_space", "PublishSpaceConfig", "upload a page to try published models"),
    "verify": Verb("tasks.hub.verify", "VerifyConfig", "load a published folder as a stranger would, and check it"),
    "serve": Verb("tasks.hub.serve", "ServeConfig", "a page on this machine to try fine-tuned models"),
    "serve-api": Verb(
        "tasks.hub.serve_api", "ServeApiConfig", "an OpenAI-compatible server for a checkpoint that generates"
    ),
    "demo": Verb("tasks.demo", "DemoConfig", "the whole route on the embedded sample"),
}


def usage() -> str:
    """The help text of the command itself."""
    lines = ["septet: from raw text to a published, verified language model, in English, French and Chinese", ""]
    lines += ["usage: septet VERB [options]      septet VERB --help explains a verb", ""]
    lines += [f"  {name:<14} {verb.help}" for name, verb in VERBS.items()]
    lines += ["", "The route, on the embedded sample: septet demo"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Runs the verb that the command line names."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return
    name, *rest = arguments
    if name not in VERBS:
        print(f"septet: error: verb {name!r} is unknown; {suggestion(name, VERBS)}", file=sys.stderr)
        raise SystemExit(2)
    if name in ("pretrain", "finetune", "demo"):
        # Threads that wait for each other sleep instead of spinning: as fast on a quiet machine (0.7 s a step of the
        # demo's model on two cores), and beside one other busy process 1.3 s instead of 2.0. (Decoding row by row waits
        # too often for that.)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    verb = VERBS[name]
    module = importlib.import_module(f"septet.{verb.module}")
    run_cli(getattr(module, verb.function), getattr(module, verb.config), rest, prog=f"septet {name}")


if __name__ == "__main__":
    main()
