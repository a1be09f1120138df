"""Starts pre-training on CPU ranks with what Accelerate offers on accelerators alone: FSDP2, HSDP, tensor parallelism.

Accelerate takes FSDP2 on a CPU for plain data parallelism without a word; with its state told that the device is
another kind of accelerator it shards for real, over gloo. This is for tests; it is no way to train.

    python sharded_run.py '{"dp_shard_size": 2}' --preset tiny ...
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from typing import Any


def rank(sizes: dict[str, int]) -> None:
    """What one rank does; `sizes` are fields of Accelerate's ParallelismConfig."""
    import accelerate
    from accelerate.state import DistributedType, PartialState
    from accelerate.utils import FullyShardedDataParallelPlugin, ParallelismConfig

    from septet.data.errors import run_cli
    from septet.modeling import pretrain

    is_sharded = "dp_shard_size" in sizes
    if is_sharded:
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        os.environ["FSDP_VERSION"] = "2"
        os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
        os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "SeptetDecoderLayer"
        os.environ["FSDP_RESHARD_AFTER_FORWARD"] = "true"
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_XPU
    plain = accelerate.Accelerator

    def on_cpu(**options: Any) -> Any:
        plugin = FullyShardedDataParallelPlugin() if is_sharded else None
        return plain(fsdp_plugin=plugin, parallelism_config=ParallelismConfig(**sizes), **options)

    accelerate.Accelerator = on_cpu
    run_cli(pretrain.run, pretrain.PretrainConfig)


def main() -> None:
    """Forks the ranks, so that what they import is imported once, and waits for them."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    sizes = json.loads(sys.argv.pop(1))
    world = math.prod(sizes.values())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(world):
        child = os.fork()
        if child == 0:
            places = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ.update({k: str(v) for k, v in {**places, "MASTER_PORT": port}.items()}, MASTER_ADDR="127.0.0.1")
            try:
                rank(sizes)
            except SystemExit as error:
                os._exit(1 if error.code else 0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]  # all are waited for
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
