"""The model's part: images are encoded as ever, and rows are kept of what comes out.

Stands before a stock class of vLLM. All it overrides are methods of vLLM's public protocols (`SupportsMultiModal`,
`SupportsMRoPE`, `SupportsEncoderCudaGraph`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from foveate.errors import InvalidFeatures
from foveate.families.layout import Layout
from foveate.methods import Method, UniformGrid
from foveate.methods.base import with_last
from foveate.tokens import Signal, VisualTokens
from foveate.vllm.batches import batches
from foveate.vllm.choice import FIELD, KEY, Choice, servable
from foveate.vllm.layout import layout_of
from foveate.vllm.positions import Offsets, with_offsets
from foveate.vllm.ranks import chosen_by_first
from foveate.vllm.unpruned import unpruned

logger = init_logger("vllm.foveate")


class PruningModel:
    """Mixed into a stock model, which comes after it in the order of classes."""

    config: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        scheduler, compilation = vllm_config.scheduler_config, vllm_config.compilation_config
        self.encoder_budget: int = scheduler.max_num_encoder_input_tokens
        tokens = max(scheduler.max_num_batched_tokens, compilation.max_cudagraph_capture_size or 0)
        configured = getattr(vllm_config.model_config.hf_config, KEY, None) is not None
        self.offsets = Offsets(tokens) if configured else None

    # What a kind of model tells

    def width(self) -> int:
        """Columns of an encoder's row."""
        return self.hidden()

    def hidden(self) -> int:
        """Columns of the features that the language model reads, and methods rank."""
        return int(self.config.get_text_config().hidden_size)

    def offsets_of(self, layout: Layout) -> Tensor:
        """``[N, 3]``: where each token stands, relative to the image's first."""
        raise NotImplementedError

    def stock_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        """Positions ``[3, L]`` of the unpruned prompt, and what to add to the count for tokens to come."""
        found: tuple[Tensor, int] = super().get_mrope_input_positions(tokens, features)  # type: ignore[misc]
        return found

    def part(self, fields: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        """The encoder's inputs of images ``start`` to ``stop``."""
        return {name: value[start:stop] for name, value in fields.items()}

    # vLLM's protocols

    def embed_multimodal(self, **fields: Any) -> Any:
        """Per image the rows that are kept, with their offsets; what has no choice is the stock's."""
        written = fields.pop(FIELD, None)
        if written is None:
            return super().embed_multimodal(**fields)  # type: ignore[misc]
        choices = [Choice.of_tensor(text) for text in written]
        layouts = [layout_of(self.config, _of_image(fields, index)) for index in range(len(choices))]
        kept: list[Tensor] = []
        for start, stop in batches([len(layout.locked) for layout in layouts], self.encoder_budget):
            rows = super().embed_multimodal(**self.part(fields, start, stop))  # type: ignore[misc]
            own = zip(rows, choices[start:stop], layouts[start:stop], strict=True)
            kept += [self.pruned(*image) for image in own]
        return tuple(kept)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """The stock's, of rows without their offsets, which `forward` will use."""
        if self.offsets is not None and multimodal_embeddings is not None and is_multimodal is not None:
            multimodal_embeddings = self.offsets.write(multimodal_embeddings, is_multimodal, self.width())
        embedded: Tensor = super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **named: Any,
    ) -> Any:
        """The stock's, kept tokens at their own positions."""
        if self.offsets is not None:
            positions = self.axes(self.offsets.moved(positions))
        return super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds, **named
        )

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of the unpruned prompt; all that is kept of an image has that of its first token."""
        if self.offsets is None:
            return self.stock_positions(input_tokens, mm_features)
        whole = unpruned(input_tokens, mm_features, lambda fields: len(layout_of(self.config, fields).locked))
        positions, delta = self.stock_positions(whole.tokens, whole.features)
        return positions[:, whole.columns], delta + len(whole.tokens) - len(input_tokens)

    # One image

    def axes(self, positions: Tensor) -> Tensor:
        """Of positions ``[3, L]``, what the language model reads."""
        return positions

    def pruned(self, rows: Tensor, choice: Choice, layout: Layout) -> Tensor:
        """``[k, W + 6]`` of an image's ``rows [N, W]``."""
        method, k = servable(choice.method), choice.count(len(rows))
        question = None
        if Signal.QUESTION in method.needs:  # on all ranks: an embedding that is spread over them communicates
            question = self.words(torch.tensor(choice.nouns, dtype=torch.long, device=rows.device))
        locked = layout.locked.nonzero().flatten().to(rows.device)
        free = (~layout.locked).nonzero().flatten().to(rows.device)
        features = rows[:, : self.hidden()]
        tokens = VisualTokens(features[free], layout.grids, family=self.config.model_type, question=question)

        def order() -> Tensor:
            ranked = free[_order(tokens, method, k - len(locked))] if k > len(locked) else free[:0]
            return (
                with_last(torch.cat([locked, ranked]), len(rows)) if choice.hold else torch.cat([locked, ranked])
            )

        kept = chosen_by_first(order, k, rows.device).sort().values
        return with_offsets(rows[kept], self.offsets_of(layout).to(rows.device)[kept])

    def words(self, ids: Tensor) -> Tensor:
        """Embeddings ``[M, D]`` of a question's tokens: the model's own, without an adapter.

        With --enable-lora the layer is wrapped in one that adds the adapter of whichever request stands at the
        same place in the step's batch, and an image's rows are shared by requests of different adapters.
        """
        layers = self.get_language_model().modules()  # type: ignore[attr-defined]
        kinds = (layer for layer in layers if isinstance(layer, VocabParallelEmbedding))
        embedded: Tensor = next(layer for layer in kinds if not isinstance(layer, ParallelLMHead))(ids)
        return embedded


def _order(tokens: VisualTokens, method: Method, k: int) -> Tensor:
    """`Method.rank`; spread evenly where the method refuses the features, too late to refuse the request."""
    if k == len(tokens.features):
        return torch.arange(k, device=tokens.features.device)
    try:
        if not bool(torch.isfinite(tokens.features).all()):
            raise InvalidFeatures("the vision encoder gave NaN or infinite values")
        return method.rank(tokens, k)
    except InvalidFeatures as error:
        logger.error("foveate keeps an even grid of an image, in the place of %s: %s", method, error)
        return UniformGrid().rank(tokens, k)


def _of_image(fields: Mapping[str, Sequence[Any] | Tensor], index: int) -> dict[str, Any]:
    """Those of an image's fields that `layout_of` reads."""
    return {name: fields[name][index] for name in ("image_grid_thw", "image_sizes") if name in fields}
