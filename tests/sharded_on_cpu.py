"""Launched in place of a module, runs it with FSDP over gloo: accelerate shards on GPUs and the like only, and with
`use_cpu` silently runs plain data-parallel. Everything behind that one choice is its own code and PyTorch's.

    accelerate launch --config_file FSDP_ON_CPU.yaml tests/sharded_on_cpu.py -m sightline_trainer.dpo ...
"""

import os
import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

_begin = AcceleratorState.__init__


def _sharding(state: Any, *args: Any, fsdp_plugin: Any = None, **more: Any) -> None:
    _begin(state, *args, fsdp_plugin=fsdp_plugin, **more)
    if fsdp_plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
        # As AcceleratorState does with several GPUs.
        state.distributed_type = DistributedType.FSDP
        if state._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(state._mixed_precision)
        state.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert sys.argv[1] == "-m"
    AcceleratorState.__init__ = _sharding  # type: ignore[method-assign]
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
