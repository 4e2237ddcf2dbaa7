"""What the server of ranks.py imports before it forks. Objects of modules are left out of garbage collection."""
# ruff: noqa: F401, E402
import gc

gc.disable()

import pytest
import torch._dynamo
import torch.distributed.fsdp

import agmax_timm.evaluation.validation
import agmax_timm.training.run
import tests.helpers.exact

gc.freeze()
gc.enable()
