"""Engines in this process, stock transformers beside them, and requests for both."""

import gc
import os
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import transformers as hf
from vllm import LLM, SamplingParams

import foveate
from checkpoints import IMAGE, VIDEO, write

NEW = 8
SIZES = ((48, 32), (32, 48), (40, 40))
QUESTIONS = ("How many dogs are on the sofa?", "What is the cat's name?", "Is the ball red?")
MODELS = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """By name, the folder of a checkpoint and the model in it."""
    return cache(lambda name: _written(name, tmp_path_factory.mktemp(name)))


def _written(name, folder):
    model = write(name, folder)
    return folder, model, hf.AutoProcessor.from_pretrained(folder)


@pytest.fixture
def logged(caplog):
    """`caplog` of the plugin's own messages: the tests set vLLM to warnings."""
    with caplog.at_level("INFO", logger="vllm.foveate"):
        yield caplog


def picture(index):
    pixels = np.random.default_rng(index).integers(0, 256, (*SIZES[index % len(SIZES)][::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chat(pictures, question):
    return [
        {"role": "user", "content": [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]}
    ]


class Bench:
    """One checkpoint, asked through both."""

    def __init__(self, folder, model, processor, engine):
        self.folder, self.model, self.processor, self.engine = folder, model, processor, engine

    def text(self, pictures, question):
        return self.processor.apply_chat_template(chat(pictures, question), add_generation_prompt=True)

    def request(self, pictures, question, **options):
        """A prompt for vLLM. ``options`` are mm_processor_kwargs."""
        return {
            "prompt": self.text(pictures, question),
            "multi_modal_data": {"image": list(pictures)} if pictures else {},
            **({"mm_processor_kwargs": options} if options else {}),
        }

    def answers(self, requests, new=NEW):
        """The tokens vLLM answers with, all requests in one call."""
        bias = dict.fromkeys((IMAGE, VIDEO), -100.0)
        sampling = SamplingParams(
            temperature=0, max_tokens=new, ignore_eos=True, logit_bias=bias, detokenize=False
        )
        self.outputs = self.engine.generate(requests, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in self.outputs]

    @torch.no_grad()
    def expected(self, pictures, asked, method=None, keep=None, new=NEW, **options):
        """What stock transformers answers, pruned by `foveate.prune` if there is a method."""
        inputs = dict(
            self.processor(images=list(pictures) or None, text=self.text(pictures, asked), return_tensors="pt")
        )
        if method is not None:
            inputs = foveate.prune(self.model, inputs, method, keep=keep, **options)
        length = inputs["input_ids"].shape[1]
        found = self.model.generate(**inputs, max_new_tokens=new, do_sample=False, suppress_tokens=[IMAGE, VIDEO])
        return found[0, length:].tolist()


ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "block_size": 32,
    "enable_prefix_caching": True,
    "distributed_executor_backend": "uni",
    "seed": 0,
}


@contextmanager
def opened(folders, name, foveate_options, **options):
    """A `Bench` whose engine prunes as ``foveate_options`` say, stock if they are None."""
    folder, model, processor = folders(name)
    overrides = {} if foveate_options is None else {"hf_overrides": {"foveate": foveate_options}}
    limits = {"image": 3, "video": 0}
    engine = LLM(str(folder), **{**ENGINE, "limit_mm_per_prompt": limits, **overrides, **options})
    try:
        yield Bench(folder, model, processor, engine)
    finally:
        engine.llm_engine.engine_core.shutdown()
        del engine
        gc.collect()
