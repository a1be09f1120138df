"""An OpenAI-compatible server for a checkpoint that generates: transformers' own, told where Septet's classes are.

    septet serve-api runs/pretrain/final
    curl 127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "The cat", "max_tokens": 20}'

`transformers serve` looks a model's class up in the transformers package alone, and so fails on every model that brings its
own code. /v1/completions takes any checkpoint; /v1/chat/completions needs a tokenizer with a chat template.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from septet.data.errors import UserError, run_cli


@dataclass(frozen=True)
class ServeApiConfig:
    model: Annotated[Path, tyro.conf.Positional]
    """a checkpoint folder whose causal language-model head is trained"""
    host: str = "127.0.0.1"
    """the address to listen on; 0.0.0.0 lets other machines in, and nobody is asked for a password"""
    port: int = 8000
    """the port to listen on"""
    device: str = "auto"
    """where the model runs: auto, cpu, cuda:0 ..."""
    continuous_batching: bool = False
    """answer requests together, with paged attention"""


def run(config: ServeApiConfig) -> None:
    """Serves until it is stopped with Ctrl-C. The code is this package's, not the folder's.

    Raises:
        UserError: a folder that is no checkpoint or does not generate, a port that is taken, or no server installed.
    """
    from septet.data.manifest import read_json
    from septet.modeling.checkpoint import require_model_folder

    folder = require_model_folder(config.model)
    described = read_json(folder / "config.json")
    heads = described.get("trained_heads") or []
    if "SeptetForCausalLM" not in heads:
        raise UserError(
            f"{folder}: has no trained SeptetForCausalLM, but {heads}; give a checkpoint that generates text"
        )
    try:
        socket.create_server((config.host, config.port)).close()
    except OSError as error:
        raise UserError(
            f"--port {config.port}: cannot be had on {config.host} ({error.strerror}); give another"
        ) from error

    from transformers.cli.serve import Serve
    from transformers.cli.serving import model_manager
    from transformers.utils.import_utils import is_serve_available

    from septet.modeling import register
    from septet.modeling.modeling_septet import SeptetForCausalLM

    if not is_serve_available():
        raise UserError("serve-api: the server's libraries are not installed; pip install 'transformers[serving]'")
    register()
    # Serve looks the class up in this module object; `sys.modules` may hold another once peft is imported.
    setattr(model_manager.transformers, described["architectures"][0], SeptetForCausalLM)
    Serve(
        str(folder),
        host=config.host,
        port=config.port,
        device=config.device,
        continuous_batching=config.continuous_batching,
    )


if __name__ == "__main__":
    run_cli(run, ServeApiConfig)
