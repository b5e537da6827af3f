"""The front end's part: what is asked for becomes a choice per image, its placeholders and its identity in caches.

The hooks with an underscore are vLLM's own (`BaseMultiModalProcessor`): `foveate.vllm.names` lists them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems
from vllm.multimodal.processing import BaseMultiModalProcessor, ProcessorInputs

from foveate.errors import FoveateError
from foveate.text.nouns import noun_ids
from foveate.text.question import question_at
from foveate.text.tokenizer import template_of
from foveate.tokens import Signal
from foveate.vllm.choice import FIELD, KEY, Choice, Request, servable
from foveate.vllm.layout import layout_of

ENABLE = (
    "this server was started without foveate: allowed once it is started with --hf-overrides '{\"foveate\": {}}'"
)
Options = Mapping[str, Any]


class PruningProcessor(BaseMultiModalProcessor):
    """Stands before a stock processor of a model; without a configuration it hands everything on."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        """The stock `apply`, with the choices in the place of what was asked for.

        Raises:
            ValueError: what is asked for is not allowed; vLLM's server answers with status 400.
        """
        options = dict(inputs.hf_processor_mm_kwargs)
        default = getattr(self.info.ctx.model_config.hf_config, KEY, None)
        if default is None and KEY not in options:
            return super().apply(inputs, timing_ctx)
        if default is None:
            raise ValueError(f"{KEY}={json.dumps(options[KEY], default=repr)}: {ENABLE}")
        try:
            options[KEY] = self._choices(inputs, Request.read(default), options)
            choices = [Choice.parse(text) for text in options[KEY]]
            self.check(inputs.mm_data_items.get("image"), choices, _stock(inputs))
        except FoveateError as error:
            raise ValueError(str(error)) from error
        return super().apply(replace(inputs, hf_processor_mm_kwargs=options), timing_ctx)

    def get_dummy_inputs(self, *arguments: Any, **named: Any) -> ProcessorInputs:
        """The stock's, not pruned: budgets and memory are measured for images that a request wants whole."""
        inputs = super().get_dummy_inputs(*arguments, **named)
        if getattr(self.info.ctx.model_config.hf_config, KEY, None) is None:
            return inputs
        return replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, KEY: None})

    def check(self, images: Any, choices: Sequence[Choice], options: Options) -> None:
        """Refuse what a kind of model cannot do.

        Args:
            images: vLLM's items, or None.
            choices: of each that is pruned.
            options: of the stock processor.

        Raises:
            ValueError: what, and what is allowed.
        """

    def _choices(self, inputs: ProcessorInputs, default: Request, options: Options) -> list[str]:
        """Per image, its choice as text; empty where nothing is to be pruned."""
        asked = options.get(KEY, default)
        if asked is None:
            return []
        request = asked if isinstance(asked, Request) else Request.read(asked, default)
        images = inputs.mm_data_items.get("image")
        if request.keep is None:
            if KEY in options:
                raise ValueError(
                    f"keep=null: allowed is a count or a fraction, or {KEY}=null (no object) for all tokens"
                )
            return []
        if not images:
            return []
        if isinstance(images, (EmbeddingItems, DictEmbeddingItems)):
            raise ValueError(
                f"image embeddings made elsewhere cannot be pruned: allowed are images, or {KEY}=null"
            )
        return [choice.text() for choice in self._choices_of(request, list(inputs.prompt), len(images))]

    def _choices_of(self, request: Request, prompt: list[int], images: int) -> list[Choice]:
        image_token = int(self.info.get_hf_config().image_token_id)
        nouns: list[tuple[int, ...]] = [()] * images
        if Signal.QUESTION in servable(request.method).needs:
            tokenizer = self.info.get_tokenizer()
            questions = [request.query] * images
            if request.query is None:
                # Not the last turn's, as in `foveate.prune`: the choice is part of the image's identity in vLLM's
                # caches, so it must not change while a conversation goes on.
                template = template_of(self.info.get_hf_processor())
                questions = [*question_at(tokenizer, prompt, {image_token}, images, template)]
            nouns = [noun_ids(tokenizer, str(question))[0] for question in questions]
        # The last token's query writes the first token of the answer, here an image's.
        last = images - 1 if prompt[-1:] == [image_token] else -1
        keep = 0 if request.keep is None else request.keep
        return [Choice(request.method, keep, own, hold=index == last) for index, own in enumerate(nouns)]

    # Identity: the choice is part of an image's, so that no cache gives one request's tokens to another.

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> Any:
        choices = inputs.hf_processor_mm_kwargs.get(KEY)
        hashes = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=_stock(inputs)))
        if not choices:
            return hashes
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        pruned = [
            MultiModalHasher.hash_kwargs(algorithm, image=image, foveate=choice)
            for image, choice in zip(hashes["image"], choices, strict=True)
        ]
        return {**hashes, "image": pruned}

    def _get_cache_missing_processor_kwargs(self, inputs: ProcessorInputs, mm_is_cached: Any) -> Options:
        stock: dict[str, Any] = super()._get_cache_missing_processor_kwargs(
            replace(inputs, hf_processor_mm_kwargs=_stock(inputs)), mm_is_cached
        )
        choices = inputs.hf_processor_mm_kwargs.get(KEY)
        if not choices:
            return stock
        missing = [choice for choice, hit in zip(choices, mm_is_cached["image"], strict=True) if not hit]
        return {**stock, KEY: missing}

    # Fields: the choice travels with the pixels.

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Options) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, _without(hf_kwargs))
        if choices := hf_kwargs.get(KEY):
            processed[FIELD] = [Choice.tensor(choice) for choice in choices]
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Options) -> Mapping[str, Any]:
        fields: dict[str, Any] = super()._get_mm_fields_config(hf_inputs, _without(hf_processor_mm_kwargs))
        if not hf_processor_mm_kwargs.get(KEY):
            return fields
        # On the CPU, vLLM keeps it for images whose tokens a prefix cache holds: positions need it.
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    # The prompt: as many placeholders as tokens will be kept.

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Options, out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates: list[Any] = super()._get_prompt_updates(mm_items, _without(hf_processor_mm_kwargs), out_mm_kwargs)
        choices = [Choice.parse(text) for text in hf_processor_mm_kwargs.get(KEY) or ()]
        if not choices:
            return updates
        return [
            replace(update, replacement=self._shorter(update.replacement, choices, out_mm_kwargs))
            if update.modality == "image"
            else update
            for update in updates
        ]

    def _shorter(self, stock: Any, choices: Sequence[Choice], out_mm_kwargs: Any) -> Any:
        config = self.info.get_hf_config()

        def replacement(index: int) -> list[int]:
            full = list(stock(index))
            fields = {name: element.data for name, element in out_mm_kwargs["image"][index].items()}
            locked = layout_of(config, fields).locked
            if len(locked) != len(full):
                raise ValueError(f"image {index}: vLLM counts {len(full)} tokens, transformers {len(locked)}")
            choice = choices[index]
            least = int(locked.sum()) + (choice.hold and not bool(locked[-1]))
            return full[: choice.count(len(full), least)]

        return replacement


def _stock(inputs: ProcessorInputs) -> dict[str, Any]:
    return _without(inputs.hf_processor_mm_kwargs)


def _without(options: Options) -> dict[str, Any]:
    """The options that the stock processor knows.

    It would warn of ours, and build a new processor for each of its values.
    """
    return {name: value for name, value in options.items() if name != KEY}
