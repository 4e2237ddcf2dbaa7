"""Imports of the server of ranks.py before it forks. The garbage collector ignores objects of modules."""
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
