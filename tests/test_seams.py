"""What the library relies on in transformers beyond its documented interface, a test for each name.

A failure here says which name moved, and what to change in ``foveate/hf/names.py``.
"""

import copy
import inspect
import re
import subprocess
import sys
from dataclasses import fields, make_dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

import foveate
from conftest import CACHE, tiny_llava, tiny_prompt
from foveate.families import FAMILIES
from foveate.hf import names
from zoo import ZOO

SOURCE = Path(foveate.__file__).parent
OTHER = "past_key_values" if CACHE == "cache" else "cache"
BUILT = {kind: name for name, animal in ZOO.items() if (kind := name.split("-")[0]) in FAMILIES}


def takes(function, *arguments):
    return set(arguments) <= set(inspect.signature(function).parameters)


def module(path):
    return import_module(f"transformers.{path}")


def decoder(model):
    return model.get_decoder()


def _set_alone(config):
    config._attn_implementation = {"": "other"}
    parts = (config.text_config, config.vision_config)
    return config._attn_implementation == "other" and all(part._attn_implementation != "other" for part in parts)


def written(cache):
    cache.note = 1
    return cache


# What is relied on: a test of a tiny LLaVA, and what a maintainer does when it fails.
LLAVA_SEAMS = {
    "a model takes its cache": (
        lambda model: any(takes(type(model).forward, name) for name in names.CACHE),
        "add the new name of the cache argument to names.CACHE",
    ),
    "a decoder takes its cache": (
        lambda model: any(takes(type(decoder(model)).forward, name) for name in names.CACHE),
        "add the new name of the cache argument to names.CACHE",
    ),
    "an attention layer takes its cache": (
        lambda model: any(takes(type(decoder(model).layers[0].self_attn).forward, name) for name in names.CACHE),
        "add the new name of the cache argument to names.CACHE",
    ),
    "a model takes encoded images": (
        lambda model: takes(type(model).forward, names.ENCODED),
        "names.ENCODED is what forward() takes in place of pixels: write its new name there",
    ),
    "generate() returns a cache": (
        lambda model: all(
            any(field.name in names.CACHE for field in fields(getattr(transformers.generation.utils, output)))
            for output in ("GenerateDecoderOnlyOutput", "GenerateBeamDecoderOnlyOutput")
        ),
        "add the new field of generate()'s outputs to names.CACHE",
    ),
    "generate() hands a model its cache by the name that forward has": (
        lambda model: (
            takes(type(model).prepare_inputs_for_generation, "past_key_values")
            or takes(type(model).prepare_inputs_for_generation, "cache")
            or takes(transformers.GenerationMixin.prepare_inputs_for_generation, CACHE)
        ),
        "names.cache_argument: generate() and forward() no longer share a name",
    ),
    "a cache has layers that say how much they hold": (
        lambda model: (
            hasattr(transformers.DynamicCache(), "layers") and callable(transformers.DynamicCache().get_seq_length)
        ),
        "names.uneven reads cache.layers and get_seq_length()",
    ),
    "masks are made by create_causal_mask": (
        lambda model: (
            takes(module("masking_utils").create_causal_mask, "config", "attention_mask", "layer_idx")
            and any(takes(module("masking_utils").create_causal_mask, name) for name in names.CACHE)
        ),
        "names.causal_mask calls it: adapt the arguments there",
    ),
    "attention functions are registered": (
        lambda model: callable(module("modeling_utils").AttentionInterface.register),
        "names.attention_functions finds the table: adapt the path there",
    ),
    "a config says which attention function runs": (
        lambda model: isinstance(decoder(model).config._attn_implementation, str),
        "hf/attention.py watches a layer by a copy of its config that names our function: adapt it",
    ),
    "a decoder layer is a norm, then attention": (
        lambda model: (
            hasattr(decoder(model).layers[0], "input_layernorm") and hasattr(decoder(model).layers[0], "self_attn")
        ),
        "inside/scores.py runs input_layernorm and self_attn once more: adapt it",
    ),
    "a modeling file knows the table of attention functions, and the eager one": (
        lambda model: (
            {names.ATTENTION_TABLE, names.EAGER_ATTENTION}
            <= set(inspect.unwrap(type(decoder(model).layers[0].self_attn).forward).__globals__)
        ),
        "hf/attention.py calls what a layer would have called: adapt names.ATTENTION_TABLE, names.EAGER_ATTENTION",
    ),
    "a config's backend is set alone, and those of its parts are left": (
        lambda model: _set_alone(copy.deepcopy(model.config)),
        "hf/attention.py sets config._attn_implementation to {'': name}: adapt it",
    ),
    "a decoder layer takes states, mask and positions by these names": (
        lambda model: takes(
            type(decoder(model).layers[0]).forward, "hidden_states", "attention_mask", "position_embeddings"
        ),
        "inside/passing.py cuts these arguments: adapt it",
    ),
    "a decoder takes embeddings": (
        lambda model: takes(type(decoder(model)).forward, "inputs_embeds"),
        "inside/dropping.py reads inputs_embeds: adapt it",
    ),
    "an encoder returns features as pooler_output": (
        lambda model: hasattr(
            model.model.get_image_features(pixel_values=torch.zeros(1, 3, 24, 24), return_dict=True),
            "pooler_output",
        ),
        "names.features reads it: write the new name there",
    ),
    "a tower's layers and their attention are where they were": (
        lambda model: names.tower_attention(model, -1) is not None,
        "add the new path to names.TOWER_LAYERS or names.TOWER_ATTENTION",
    ),
    "generate() merges its processors and criteria with the caller's by type": (
        lambda model: takes(getattr(type(model), names.MERGE), "default_list", "custom_list"),
        "attach shows it the caller's own objects: adapt names.MERGE and its arguments",
    ),
    "a cache keeps what is written on it, in copies too": (
        lambda model: copy.deepcopy(written(transformers.DynamicCache())).note == 1,
        "chat/memory.py writes on the cache what it holds: find another place",
    ),
    "a cache's layer says how long it is, and keeps [B, H, T, d] keys": (
        lambda model: (
            names.plain_keys(names.cache_in(model(**tiny_prompt(), use_cache=True)).layers[0]).dim() == 4
        ),
        "chat/mark.py tells rows apart by their keys",
    ),
    "a config says which attention runs": (
        lambda model: names.flash(model) is False,
        "names.flash reads _attn_implementation: write the new name there",
    ),
    "a projector is where it was": (
        lambda model: hasattr(model.model, "multi_modal_projector"),
        "families/llava.py names the projector",
    ),
    "LLaVA-NeXT counts and lays out tiles": (
        lambda model: all(
            hasattr(module("models.llava_next.modeling_llava_next"), name)
            for name in ("get_anyres_image_grid_shape", "image_size_to_num_patches")
        ),
        "families/anyres.py asks these functions",
    ),
}


@pytest.mark.parametrize("what", LLAVA_SEAMS)
def test_a_name_that_is_relied_on_is_there(what):
    holds, cure = LLAVA_SEAMS[what]
    assert holds(tiny_llava()), f"transformers {transformers.__version__}: {what} no longer holds. {cure}."


@pytest.mark.parametrize("kind", BUILT)
def test_each_family_finds_its_tower(kind):
    model = ZOO[BUILT[kind]].build()
    family = FAMILIES[kind]
    tapped = family.attention(model, family.kinds[0])
    assert tapped is not None
    assert {"config"} <= set(vars(tapped)), f"{kind}: {type(tapped).__name__} no longer holds its config"


@pytest.mark.parametrize("kind", [kind for kind in BUILT if kind.startswith(("qwen", "glm4v"))])
def test_positions_of_several_axes_are_the_models_own(kind):
    model = ZOO[BUILT[kind]].build()
    rule = names.rope_index(model)
    assert rule is not None, f"{kind}: names.rope_index looks for get_rope_index and mrope_section"
    assert hasattr(model.base_model, "rope_deltas"), f"{kind}: names.keep_rope_deltas sets rope_deltas"


def test_deepstack_features_are_found_where_the_config_has_them():
    model = ZOO["qwen3_vl"].build()
    decoder_forward = type(model.get_decoder()).forward
    assert takes(decoder_forward, names.DEEPSTACK, names.VISUAL), "names.DEEPSTACK and names.VISUAL moved"
    with pytest.raises(foveate.UnsupportedModel, match="deepstack_features"):
        names.deepstack(model, SimpleNamespace(pooler_output=None))
    assert not names.deepstack(tiny_llava(), SimpleNamespace(pooler_output=None))


def test_no_moving_name_is_read_anywhere_else():
    """A plain look-up by a name that moved gives None without a word: only hf/names.py may look."""
    moving = [*names.CACHE, names.ENCODED, names.DEEPSTACK, names.VISUAL, "deepstack_features", "get_rope_index"]
    moving += ["rope_deltas", "create_causal_mask", "AttentionInterface", "pooler_output"]
    any_of = "|".join(moving)
    look = re.compile(
        rf"""(?:get\(|getattr\([^)]*?,\s*|\[)["'](?:{any_of})["']|\bpast_key_values\b"""
        r"""|import (?:create_causal_mask|AttentionInterface)"""
    )
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] != "vllm" and path.name != "names.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if look.search(line)
    ]
    assert not found, found
    assert look.search('cache = options.get("past_key_values")')
    assert look.search('getattr(output, "cache", None)')


class Renamed(torch.nn.Module):
    """A stand-in for a model of a transformers that calls its cache ``kv``."""

    def __init__(self, model):
        super().__init__()
        self.__dict__["_model"] = model

    def __getattr__(self, name):
        return getattr(self.__dict__["_model"], name)

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, kv=None, mm_encoder_outputs=None):
        raise AssertionError("never run")


@pytest.mark.parametrize(
    "use",
    [
        lambda model: foveate.prune(model, tiny_prompt(), foveate.RRQR(), keep=5),
        lambda model: foveate.attach(model, foveate.RRQR(), keep=5).__enter__(),
        lambda model: foveate.attach(model, foveate.FastV(), keep=5).__enter__(),
        lambda model: foveate.prune(model, tiny_prompt(), foveate.RRQR(), keep=5, family=None),
    ],
)
def test_a_cache_of_an_unknown_name_is_refused(use):
    with pytest.raises(foveate.UnsupportedModel, match=r"Renamed.forward\(\) has no 'cache' or 'past_key_values'"):
        use(Renamed(tiny_llava()))


def test_an_output_whose_cache_has_an_unknown_name_is_refused():
    pruned = foveate.prune(tiny_llava(), tiny_prompt(), foveate.RRQR(), keep=5)
    output = make_dataclass("Output", ["sequences", "kv"])(pruned["input_ids"], object())
    with pytest.raises(foveate.UnsupportedModel, match=f"Output has no .*transformers {transformers.__version__}"):
        foveate.continued(pruned, output, torch.tensor([[5]]))


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (lambda: names.at(object(), "a.b", "c"), "object has no 'a.b' or 'c' in transformers"),
        (
            lambda: names.imported("masking_utils", "no_such_mask"),
            "transformers.masking_utils has no 'no_such_mask'",
        ),
        (lambda: names.imported("no_such_module", "mask"), "transformers.no_such_module has no 'mask'"),
        (lambda: names.parameter(len, "cache"), "len\\(\\) has no 'cache'"),
    ],
)
def test_what_is_not_found_is_named(look, message):
    with pytest.raises(foveate.UnsupportedModel, match=message):
        look()


@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
class TestBothNames:
    """Whichever name a user writes, the same happens: 5.24 understands both, versions before it the old one."""

    @pytest.fixture
    def filled(self, tiny):
        return tiny(**tiny_prompt(), use_cache=True)[CACHE]

    @pytest.mark.parametrize("name", names.CACHE)
    def test_prune_refuses_a_filled_cache(self, tiny, filled, name):
        with pytest.raises(foveate.InvalidInputs, match="filled KV cache"):
            foveate.prune(tiny, {**tiny_prompt(), name: filled}, foveate.RRQR(), keep=5)

    @pytest.mark.parametrize("method", [foveate.RRQR(), foveate.FastV()])
    @pytest.mark.parametrize("name", names.CACHE)
    def test_attach_refuses_a_filled_cache(self, tiny, filled, name, method):
        with foveate.attach(tiny, method, keep=5), pytest.raises(foveate.InvalidInputs, match="filled KV cache"):
            tiny.generate(**tiny_prompt(), **{name: filled}, max_new_tokens=2)

    def test_both_at_once_are_refused(self, tiny, filled):
        both = dict.fromkeys(names.CACHE, filled)
        with pytest.raises(foveate.InvalidInputs, match="given together"):
            foveate.prune(tiny, {**tiny_prompt(), **both}, foveate.RRQR(), keep=5)
        with foveate.attach(tiny, foveate.RRQR(), keep=5):
            for call in (tiny.generate, tiny):
                with pytest.raises(foveate.InvalidInputs, match="given together"):
                    call(input_ids=torch.tensor([[5]]), **both)

    @pytest.mark.parametrize("name", names.CACHE)
    def test_a_step_by_hand_after_fastv_is_refused(self, tiny, name):
        with foveate.attach(tiny, foveate.FastV(), keep=5):
            output = tiny.generate(**tiny_prompt(), max_new_tokens=2, return_dict_in_generate=True)
            with pytest.raises(foveate.InvalidInputs, match="KV cache"):
                tiny(input_ids=torch.tensor([[5]]), **{name: output[CACHE]})

    @pytest.mark.parametrize("name", names.CACHE)
    def test_the_next_turn_inside_attach_is_continued(self, tiny, name):
        inputs, following = tiny_prompt(), torch.tensor([[9, 8, 7]])
        options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
        with foveate.attach(tiny, foveate.RRQR(), keep=5):
            first = tiny.generate(**inputs, **options)
            whole = torch.cat([first.sequences, following], dim=1)
            second = tiny.generate(input_ids=whole, **{name: first[CACHE]}, **options)
        pruned = foveate.prune(tiny, inputs, foveate.RRQR(), keep=5)
        turn = foveate.continued(pruned, tiny.generate(**pruned, **options), following)
        for ours, theirs in zip(second.logits, tiny.generate(**turn, **options).logits, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("method", [foveate.FastV(), foveate.PyramidDrop(), foveate.SparseVLM()])
    def test_generation_goes_on_after_drops(self, tiny, method):
        with foveate.attach(tiny, method, keep=12):
            assert (
                tiny.generate(**tiny_prompt(), max_new_tokens=3).shape[1]
                == tiny_prompt()["input_ids"].shape[1] + 3
            )


def test_importing_the_names_does_not_load_transformers():
    code = "import sys, foveate.hf.names; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
