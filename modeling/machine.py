"""The processes of a run: Accelerate's state as the machine file says, who reads what, and signals to stop."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from septet.data.errors import UserError

if TYPE_CHECKING:
    from septet.modeling.pretrain import PretrainConfig


def make_accelerator(config: PretrainConfig) -> Any:
    """Accelerate's state of this process, as the machine file says.

    Raises:
        UserError: the file asks for what the loop cannot do.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import AORecipeKwargs, DistributedType

    handlers = []
    if (
        os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp8"
        and os.environ.get("ACCELERATE_FP8_BACKEND", "").upper() == "AO"
    ):
        # The layers' products alone: the loss reads the head's weight itself.
        handlers.append(AORecipeKwargs(module_filter_func=lambda module, name: ".layers." in name))
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        log_with=config.tracker,
        project_dir=config.output if config.tracker else None,
        kwargs_handlers=handlers,
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != accelerator.num_processes:
        raise UserError(
            f"{asked} processes were started, and each of them is alone: Accelerate does not see the machine file's "
            f"devices; check `accelerate env`, or launch one process"
        )
    layout = accelerator.parallelism_config
    if layout is not None and layout.cp_size * layout.sp_size > 1:
        raise UserError(
            "context parallelism (cp_size, sp_size above 1): packed documents are read under a mask, which ring "
            "attention does not take; use FSDP2 with --activation-checkpointing, or shorter sequences"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError(
            "DeepSpeed: its partitioned weights are not in torch's distributed checkpoints, which exact resume needs; "
            "FSDP2 shards the same three things (accelerate_configs/fsdp2_8gpu.yaml)"
        )
    if layout is not None and layout.tp_enabled and accelerator.is_fsdp2:
        try:
            from transformers.integrations.tensor_parallel import ReplicateParallel  # noqa: F401
        except ImportError as error:
            raise UserError(
                "tensor parallelism with FSDP2 (tp_size and dp_shard_size above 1): this Accelerate prepares it with a "
                "class that this transformers no longer has; use one of the two, or releases that fit"
            ) from error
    if accelerator.mixed_precision == "fp16":
        raise UserError(
            "mixed_precision fp16: its loss scale is no part of a checkpoint, and its overflows would stop the run; give bf16"
        )
    if accelerator.is_fsdp2:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        plugin = accelerator.state.fsdp_plugin
        if plugin.activation_checkpointing:
            raise UserError(
                "fsdp_activation_checkpointing draws new dropout masks when it computes a layer again; leave it out of the "
                "machine file, and pass --activation-checkpointing"
            )
        if accelerator.mixed_precision == "bf16":  # Accelerate's own policy adds gradients up in bfloat16 too
            plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    return accelerator


@dataclass(frozen=True)
class Readers:
    """Which processes read which samples: those that share matrices (tensor parallelism) read the same ones."""

    count: int
    """how many read different samples"""
    rank: int
    """which of them this process is"""
    speaks: bool
    """whether this process is the one to count its samples; one of those that read the same"""

    @classmethod
    def of(cls, accelerator: Any) -> Readers:
        layout = accelerator.parallelism_config
        shared = layout.non_data_parallel_size if layout is not None else 1
        rank, place = divmod(accelerator.process_index, shared)
        return cls(accelerator.num_processes // shared, rank, place == 0)


def describe_environment(accelerator: Any) -> dict[str, Any]:
    """What must be the same for weights that are the same byte for byte."""
    import torch

    layout = accelerator.parallelism_config
    return {
        "torch": torch.__version__,
        "num_processes": accelerator.num_processes,
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else accelerator.device.type,
        "compiled": str(accelerator.state.dynamo_plugin.backend.value).lower(),
        "mixed_precision": accelerator.mixed_precision,
        "layout": str(accelerator.distributed_type.value).lower(),
        "sizes": {name: size for name, size in layout._sizes.items() if size > 1} if layout is not None else {},
    }


class StopSignal:
    """Set by SIGTERM and SIGUSR1, as schedulers send them before they kill: the run saves and stops after the step."""

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # where alone Python takes signals
            self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *error: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _ask(self, *_: Any) -> None:
        self.asked = 1
