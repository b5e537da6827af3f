"""What must not be compiled runs as it is, and costs no import of the compiler."""

import subprocess
import sys

import pytest
import torch

from foveate.hf.uncompiled import uncompiled


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_hook_of_a_compiled_model_is_never_traced(wrapped):
    traced = []

    def hook(module, arguments):
        traced.append(torch.compiler.is_compiling())
        return (arguments[0] * 2,) if float(arguments[0].sum()) > 0 else None

    model = torch.nn.Linear(3, 3)
    model.register_forward_pre_hook(uncompiled(hook) if wrapped else hook)
    stock = [model(sign * torch.ones(3)) for sign in (1, -1)]
    traced.clear()
    compiled = torch.compile(model, backend="eager")
    for sign, expected in zip((1, -1), stock, strict=True):
        assert torch.equal(compiled(sign * torch.ones(3)), expected)
    assert any(traced) != wrapped  # the control is traced


def test_the_compiler_is_not_loaded_where_nothing_is_compiled():
    code = (
        "import sys, torch\nfrom foveate.hf.uncompiled import uncompiled\n"
        "assert uncompiled(lambda x: x + 1)(1) == 2\nassert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
