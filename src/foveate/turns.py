"""The next turn of a conversation, on the cache that generate() returned for a pruned prompt."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.errors import InvalidInputs
from foveate.pruned import Pruned

if TYPE_CHECKING:
    from transformers.generation import GenerateDecoderOnlyOutput

PER_TOKEN = ("token_type_ids", "mm_token_type_ids")


def continued(pruned: Pruned, output: "GenerateDecoderOnlyOutput", following: "Tensor | Pruned") -> dict[str, Any]:
    """Arguments for ``model.generate`` that go on after an answer, its cache kept.

    Positions go on where the unpruned conversation would be. One row at a time: answers of a batch end at
    different lengths.

    Args:
        pruned: the prompt that was answered.
        output: ``model.generate(**pruned, return_dict_in_generate=True)``.
        following: ``[1, M]`` ids of the new turn, from the end of the answer on; or, where it holds new images,
            its own `prune`, of the new turn's inputs alone.

    Raises:
        InvalidInputs: a batch, or an output without its cache.
    """
    if len(output.sequences) != 1:
        raise InvalidInputs(
            f"an output of {len(output.sequences)} sequences: allowed is one conversation at a time"
        )
    if output.past_key_values is None:
        raise InvalidInputs("an output without past_key_values: call generate with return_dict_in_generate=True")
    mask = pruned["attention_mask"]
    answer = output.sequences[:, mask.shape[1] :]
    start = int(mask.sum() + pruned.rope_deltas) + answer.shape[1]
    if isinstance(following, Pruned):
        real = following["attention_mask"][0].bool()
        turn = {name: following[name][:, real] for name in ("input_ids", *PER_TOKEN) if name in following}
        steps = following["position_ids"][..., real]
        steps = steps[1:] if steps.dim() == 3 else steps
    else:
        turn = {
            "input_ids": following,
            **{name: torch.zeros_like(following) for name in PER_TOKEN if name in pruned},
        }
        steps = torch.arange(following.shape[1], device=following.device)[None]
    texts = {
        name: torch.cat(
            [pruned[name], answer if name == "input_ids" else torch.zeros_like(answer), turn[name]], dim=1
        )
        for name in turn
    }
    said = torch.arange(start - answer.shape[1], start, device=answer.device)
    ids = pruned["position_ids"]
    attended = torch.cat([mask, mask.new_ones(1, texts["input_ids"].shape[1] - mask.shape[1])], dim=1)
    if ids.dim() == 3:
        axes = torch.cat([ids[1:], said.expand(3, 1, -1), (steps + start).expand(3, 1, -1)], dim=-1)
        ids = torch.cat([(attended.cumsum(-1) - 1).clamp(min=0)[None], axes])
    else:
        ids = torch.cat([ids, said[None], steps + start], dim=1)
    images = {"mm_encoder_outputs": following["mm_encoder_outputs"]} if isinstance(following, Pruned) else {}
    return {
        **texts,
        **images,
        "attention_mask": attended,
        "position_ids": ids,
        "past_key_values": output.past_key_values,
    }
