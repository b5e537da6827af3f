"""The gain of pruning at batch 1: a prefill that is compiled for the one length that pruning leaves.

At batch 1 a fast GPU waits for Python to launch the layers (docs/gpu/performance.md). A compiled decoder launches
a few fused kernels instead. It is compiled again for each length of prompt; ``keep=64`` gives images of any size
the same 64 tokens, so that only the text changes it: pad it on the left to a few lengths. Decoding stays as it is.

On a GPU take ``backend="inductor"``, the default. Do not add ``mode="reduce-overhead"``: its CUDA graphs reuse the
memory that the KV cache lies in. No GPU was at hand to measure the gain; a test holds the logits and the answer
equal to those of the stock decoder, on a CPU.

    python examples/compiled_prefill.py [BACKEND]    # on mini; aot_eager needs no compiler
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import foveate
from foveate import mini


@contextmanager
def compiled_prefill(model: Any, backend: str = "inductor") -> Iterator[None]:
    """Inside the block, prompts go through a compiled decoder, and single tokens through the stock one."""
    decoder = model.get_decoder()
    stock = decoder.forward
    fast = torch.compile(stock, backend=backend, dynamic=False)

    def forward(*arguments: Any, **options: Any) -> Any:
        one_token = options["inputs_embeds"].shape[1] == 1
        return (stock if one_token else fast)(*arguments, **options)

    decoder.forward = forward
    try:
        yield
    finally:
        decoder.forward = stock


if __name__ == "__main__":
    model, processor = mini.load()
    image = Image.open(Path(__file__).parent / "scene.png").convert("RGB")
    text = "USER: <image>\nWhat letter is on the yellow star? ASSISTANT:"
    inputs = processor(images=image, text=text, return_tensors="pt")
    pruned = foveate.prune(model, inputs, foveate.SPARE(), keep=64, processor=processor)
    with compiled_prefill(model, *(sys.argv[1:] or ["aot_eager"])):
        for run in ("compiling", "compiled"):
            start = time.perf_counter()
            answer = model.generate(**pruned, max_new_tokens=8, do_sample=False)
            seconds = time.perf_counter() - start
            print(f"{run}: {seconds:.2f} s, {processor.decode(answer[0], skip_special_tokens=True)}")
