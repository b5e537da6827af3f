"""The language model of mini over many questions that share an image: transformers' numbers, in less time.

Every question sees the image and itself, as a prompt of its own would. The image's keys and values are computed
once; linear layers run over all tokens in one flat list without padding, the last layer only over the tokens in
front of answers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration


@dataclass
class Pack:
    """Questions behind images; B images, P prefix tokens each (opening, then patches), M text tokens in all.

    Attributes:
        opening: ids [o] of the tokens in front of the image.
        places: positions [B, P] of the prefix.
        bias: [B, P] added to the attention scores of the prefix.
        ids, positions: [M] of the text.
        row: [M], the question of each text token, numbered through all images; the same number for each image.
        offset: [M], the token's place in its question.
        questions: how many per image.
        target: [M], the token that follows, or -100 away from answers.
        weight: [M] of the loss.
    """

    opening: Tensor
    places: Tensor
    bias: Tensor
    ids: Tensor
    positions: Tensor
    row: Tensor
    offset: Tensor
    target: Tensor
    weight: Tensor
    questions: int

    def to(self, device: torch.device) -> Pack:
        """The same on another device."""
        values = (getattr(self, field.name) for field in fields(self))
        return Pack(*(value.to(device) if isinstance(value, Tensor) else value for value in values))

    def renamed(self, names: Tensor) -> Pack:
        """The same with other words, by image: `names` [B, V]."""
        image = self.row // self.questions
        target = torch.where(self.target < 0, self.target, names[image, self.target.clamp(min=0)])
        return replace(self, ids=names[image, self.ids], target=target)


def answer_logits(model: LlavaForConditionalGeneration, packed: Pack, image: Tensor) -> Tensor:
    """[answer tokens, vocabulary] logits; `image` [B, n, D] are the projected patches."""
    llama, embed = model.model.language_model, model.get_input_embeddings()
    batch, prefix = packed.places.shape
    head = embed(packed.opening)[None].expand(batch, -1, -1)
    states = torch.cat([torch.cat([head, image], dim=1).flatten(0, 1), embed(packed.ids)])
    rotation = _rotation(llama.config, torch.cat([packed.places.flatten(), packed.positions]))
    wanted = batch * prefix + (packed.target >= 0).nonzero()[:, 0]
    for layer in llama.layers[:-1]:
        states = _layer(layer, states, rotation, packed, None)
    states = _layer(llama.layers[-1], states, rotation, packed, wanted)
    return model.lm_head(_norm(llama.norm, states))


def answer_loss(logits: Tensor, packed: Pack) -> Tensor:
    """Weighted cross entropy of the answers."""
    wanted = packed.target >= 0
    loss = functional.cross_entropy(logits, packed.target[wanted], reduction="none")
    weight = packed.weight[wanted]
    return (loss * weight).sum() / weight.sum()


def _layer(layer, states: Tensor, rotation: tuple[Tensor, Tensor], packed: Pack, wanted: Tensor | None) -> Tensor:
    """One decoder layer over flat states; with `wanted`, only those rows come out."""
    attention = layer.self_attn
    weights = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    mixed = functional.linear(_norm(layer.input_layernorm, states), weights)
    query, key, value = mixed.view(len(states), 3, -1, attention.head_dim).unbind(1)
    attended = _attend(
        _rotate(query, rotation), _rotate(key, rotation), value, packed, text_only=wanted is not None
    )
    if wanted is not None:
        states = states[wanted]
        attended = attended[wanted - packed.places.numel()]
    states = states + functional.linear(attended, attention.o_proj.weight)
    inner = _norm(layer.post_attention_layernorm, states)
    gate, up = functional.linear(inner, torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])).chunk(
        2, -1
    )
    return states + functional.linear(functional.silu(gate) * up, layer.mlp.down_proj.weight)


def _attend(query: Tensor, key: Tensor, value: Tensor, packed: Pack, *, text_only: bool) -> Tensor:
    """Flat [tokens, H, d] to [tokens, H * d]; with `text_only`, of the text tokens alone."""
    batch, prefix = packed.places.shape
    heads, size = query.shape[1:]
    cut, count = batch * prefix, packed.questions
    length = int(packed.offset.max()) + 1

    def image(part: Tensor) -> Tensor:  # [B, H, P, d]
        return part[:cut].view(batch, prefix, heads, size).transpose(1, 2)

    def text(part: Tensor) -> Tensor:  # [B * Q, H, T, d]
        padded = part.new_zeros(batch * count * length, heads, size)
        padded = padded.index_copy(0, slots, part[cut:])
        return padded.view(batch * count, length, heads, size).transpose(1, 2)

    slots = packed.row * length + packed.offset
    key_image, value_image = image(key), image(value)
    query_text, key_text, value_text = text(query), text(key), text(value)

    def by_image(part: Tensor) -> Tensor:  # [B * Q, H, T, x] -> [B, H, Q * T, x]
        return part.view(batch, count, heads, length, -1).transpose(1, 2).reshape(batch, heads, count * length, -1)

    def by_question(part: Tensor) -> Tensor:
        return part.view(batch, heads, count, length, -1).transpose(1, 2).reshape(batch * count, heads, length, -1)

    scale = size**-0.5
    far = by_image(query_text * scale) @ key_image.transpose(-1, -2) + packed.bias[:, None, None, :]
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    near = ((query_text * scale) @ key_text.transpose(-1, -2)).masked_fill(later, float("-inf"))
    share = torch.cat([far, by_image(near)], dim=-1).softmax(-1)
    found = by_question(share[..., :prefix] @ value_image) + by_question(share[..., prefix:]) @ value_text
    answer = found.transpose(1, 2).reshape(batch * count * length, heads * size)[slots]
    if text_only:
        return answer
    seen = functional.scaled_dot_product_attention(
        image(query), key_image, value_image, attn_mask=_mask(packed.bias)
    )
    return torch.cat([seen.transpose(1, 2).reshape(cut, heads * size), answer])


def _mask(bias: Tensor) -> Tensor:
    """[B, 1, P, P]: causal, with the keys' bias."""
    later = torch.ones(bias.shape[1], bias.shape[1], dtype=torch.bool, device=bias.device).triu(1)
    return bias[:, None, None, :].masked_fill(later, float("-inf"))


def _norm(module, states: Tensor) -> Tensor:
    return functional.rms_norm(states, states.shape[-1:], module.weight, module.variance_epsilon)


def _rotation(config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [tokens, 1, d] of the rotary positions."""
    size = config.hidden_size // config.num_attention_heads
    base = config.rope_parameters["rope_theta"]
    rates = base ** -(torch.arange(0, size, 2, device=positions.device).float() / size)
    angles = (positions[:, None].float() * rates).repeat(1, 2)[:, None]
    return angles.cos(), angles.sin()


def _rotate(part: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotation
    one, two = part.chunk(2, dim=-1)
    return part * cosine + torch.cat([-two, one], dim=-1) * sine
