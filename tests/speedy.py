"""What the tests of the speed benchmark share: presets at tiny widths, and a clock that stands still."""

from conftest import tiny_llava, tiny_prompt
from foveate.bench.speed import presets
from foveate.bench.speed.subject import Subject

LANGUAGE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def shrink_presets(monkeypatch):
    """Every preset as it is but for its widths and depths."""
    for name in ("VICUNA_7B", "QWEN2_HALF_B", "QWEN2_7B"):
        monkeypatch.setattr(presets, name, {**getattr(presets, name), **LANGUAGE})
    monkeypatch.setattr(presets, "CLIP_LARGE", {**presets.CLIP_LARGE, **TOWER})
    make = presets._qwen

    def qwen(tower, language, section, tied):
        small = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "fullatt_block_indexes": [1],
        }
        return make(small, language, [2, 3, 3], tied)

    monkeypatch.setattr(presets, "_qwen", qwen)


def tiny_subject(attention="sdpa"):
    """36 visual tokens, and 14 of text."""
    model = tiny_llava()
    model.set_attn_implementation(attention)
    return Subject(
        "tiny", "tiny", model, None, None, lambda size, batch: tiny_prompt((1,) * batch, text=(7, 7, 7)), [None]
    )


class Still:
    """A clock that goes on by a second at every mark, and by what it is told."""

    def __init__(self):
        self.now = 0.0

    def mark(self):
        self.now += 1.0
        return self.now

    def seconds(self, start, stop):
        return stop - start
