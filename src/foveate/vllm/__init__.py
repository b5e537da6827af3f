"""The plugin for vLLM 0.32 and 0.33: image tokens are pruned before the language model sees them.

    vllm serve MODEL --hf-overrides '{"foveate": {"method": "spare", "keep": 64}}'

vLLM calls `register` in each of its processes (entry point ``vllm.general_plugins``). docs/vllm.md tells the rest.
"""

from foveate.vllm.registration import register

__all__ = ["register"]
