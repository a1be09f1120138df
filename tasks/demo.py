"""The whole route on the embedded sample: text, tokenizer, pre-training, five tasks, one report, verified Hub folders.

    septet demo --output build/demo

Everything is small enough for two CPU cores and a quarter of an hour, and nothing is faked: the same stages, on the same
code, take real text and real task sets. What was done is not done again; a stopped demo goes on where it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from septet.data.errors import UserError, run_cli
from septet.data.manifest import read_json

TASKS = ("translation", "classification", "qa", "summarization", "ner")
LANGUAGES = ("en", "fr", "zh")
# Passes over the sample's train splits: as few as the scores allow, since the whole must fit into a quarter of an hour. The
# test rows' names are none of train's, so the tagger must not learn those by heart.
OPTIONS: dict[str, dict[str, float]] = {
    "translation": {"epochs": 2},
    "classification": {"epochs": 1},
    "qa": {"epochs": 3},
    "summarization": {"epochs": 2},
    "ner": {"epochs": 6, "token_replacement": 0.3},
}


@dataclass(frozen=True)
class DemoConfig:
    output: Path = Path("build/demo")
    """where everything goes"""
    steps: int = 300
    """optimizer steps of pre-training, 4,096 tokens each"""
    seed: int = 0
    """of the sample, the pre-training and the fine-tuning"""


def run(config: DemoConfig) -> Path:
    """Runs every stage; returns the output directory.

    Raises:
        UserError: a stage failed; its own message says why.
    """
    started = time.time()
    root = Path(config.output)
    base = root / "runs" / "pretrain" / "final"
    _prepare(config, root)
    _pretrain(config, root)

    from septet.tasks.harness import finetune, predict, report_page
    from septet.tasks.hub import publish

    for task in TASKS:
        data, run_folder = root / "sample" / task, root / "runs" / task
        finetune.run(
            finetune.FinetuneConfig(
                task, base=base, data=str(data), output=run_folder, seed=config.seed, resume=True, **OPTIONS[task]
            )
        )
        predict.run(
            predict.EvaluateConfig(
                task,
                model=run_folder / "final",
                data=str(data),
                output=root / "reports" / task,
                showcase=root / "sample" / "showcase.json",
            )
        )
    page = report_page.run(report_page.ReportConfig(reports=root / "reports", run=root / "runs" / "pretrain"))
    reports = tuple(root / "reports" / task for task in TASKS)
    publish.run(publish.PublishConfig(model=base, output=root / "hub" / "base"))
    for task, folder in zip(TASKS, reports, strict=True):
        model = root / "runs" / task / "final"
        publish.run(publish.PublishConfig(model=model, output=root / "hub" / task, reports=(folder,)))

    print(f"\nThe demo is done in {(time.time() - started) / 60:.1f} minutes. What the five models say:\n")
    for folder in reports:
        for item in read_json(folder / "report.json")["showcase"]:
            print(f"  {item['title']}\n    {_short(item['input'])}\n    -> {item['prediction']}")
    print(f"\nThe report: {page}\nThe Hub folders: {root / 'hub'}/{{base,{','.join(TASKS)}}}", flush=True)
    return root


def _short(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _prepare(config: DemoConfig, root: Path) -> None:
    from septet.data import corpus, pack, sample, tokenizer

    sample.run(sample.SampleConfig(output=root / "sample", seed=config.seed))
    text = root / "sample" / "pretrain"
    corpus.run(
        corpus.CorpusConfig(
            inputs=tuple(str(text / f"{lang}.jsonl.gz") for lang in LANGUAGES),
            validation_inputs=tuple(str(text / f"{lang}_validation.jsonl.gz") for lang in LANGUAGES),
            decontaminate=tuple(str(root / "sample" / task) for task in TASKS),
            licenses={"septet-sample": "Apache-2.0"},
            output=root / "corpus",
        )
    )
    tokenizer.run(tokenizer.TokenizerConfig(corpus=root / "corpus", output=root / "tokenizer", vocab_size=4096))
    pack.run(
        pack.PackConfig(
            corpus=root / "corpus", tokenizer=root / "tokenizer", output=root / "packed", sequence_length=256
        )
    )


def _pretrain(config: DemoConfig, root: Path) -> None:
    """As a user would: `accelerate launch`, with the machine's cores."""
    machine = Path(__file__).resolve().parent.parent / "accelerate_configs" / "cpu.yaml"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--num_cpu_threads_per_process", str(os.cpu_count() or 1)]
    command += ["--config_file", str(machine)] if machine.is_file() else ["--cpu", "--num_processes", "1"]
    command += ["-m", "septet.modeling.pretrain", "--preset", "nano", "--objective", "joint"]
    command += ["--data", str(root / "packed"), "--output", str(root / "runs" / "pretrain"), "--resume"]
    command += ["--steps", str(config.steps), "--tokens-per-step", "4096", "--micro-batch-size", "16"]
    command += ["--save-every", "100", "--validate-every", "100", "--seed", str(config.seed)]
    if subprocess.run(command, check=False).returncode:
        raise UserError("pre-training stopped; its message stands above; mend that, and run the demo again to go on")


if __name__ == "__main__":
    run_cli(run, DemoConfig)
