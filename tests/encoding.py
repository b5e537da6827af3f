"""What the vision encoders gave, image by image: for tests of signals, against the whole."""

from dataclasses import dataclass, replace

import torch

from foveate.families import family_of
from foveate.flow.encode import encode
from foveate.flow.images import images_of
from foveate.flow.prompt import Prompt
from foveate.tokens import VisualTokens


@dataclass(eq=False)
class EncodedImage:
    """One image, locked tokens and all; scores of locked tokens are 0."""

    tokens: VisualTokens
    locked: torch.Tensor

    def __getattr__(self, name):
        return getattr(self.tokens, name)

    def frames(self):
        """Each grid by itself, of tokens that have no locked rows."""
        sizes, tensors = [height * width for height, width in self.grids], {}
        for name, value in vars(self.tokens).items():
            if isinstance(value, torch.Tensor) and len(value) == len(self.locked):
                tensors[name] = value.split(sizes)
        return [
            replace(self.tokens, grids=(grid,), **{name: parts[number] for name, parts in tensors.items()})
            for number, grid in enumerate(self.grids)
        ]

    def unlocked(self):
        """What a method ranks."""
        free = {
            name: value[~self.locked]
            for name, value in vars(self.tokens).items()
            if isinstance(value, torch.Tensor) and len(value) == len(self.locked)
        }
        return replace(self.tokens, **free)


@dataclass(eq=False)
class EncodedPrompt:
    images: list
    rows: list
    kinds: list
    patches: list | None
    deepstack: list


def encoded_prompt(model, inputs, signals=frozenset(), family=None):
    family = family or family_of(model)
    prompt = Prompt.read(model, family, inputs)
    encoded = encode(model, family, prompt, signals)
    images = images_of(model, family, prompt, encoded.counts, encoded.kinds)
    free = torch.cat([~image.locked for image in images])
    split = lambda values: list(values.split(list(encoded.counts)))  # noqa: E731
    values = {"features": split(encoded.features)}
    for signal, scores in encoded.signals.items():
        whole = scores.new_zeros(len(free), *scores.shape[1:])
        whole[free] = scores
        values[signal.value] = split(whole)
    patches = None if encoded.patches is None else split(encoded.patches)
    if patches is not None and any(signal.value == "patches" for signal in signals):
        values["patches"] = patches
    found = [
        EncodedImage(
            VisualTokens(
                grids=image.grids,
                family=model.config.model_type,
                **{name: parts[number] for name, parts in values.items()},
            ),
            image.locked,
        )
        for number, image in enumerate(images)
    ]
    layers = [split(layer) for layer in encoded.deepstack]
    deepstack = [[layer[number] for layer in layers] for number in range(len(images))]
    return EncodedPrompt(found, [image.row for image in images], list(encoded.kinds), patches, deepstack)


def carried(family, model, inputs, kind, sequences):
    """`Family.carry` per image, of the tokens that are not locked."""
    prompt = Prompt.read(model, family, inputs)
    whole = family.carry(model, prompt.known, kind, torch.cat(list(sequences)), [len(part) for part in sequences])
    counts = encode(model, family, prompt, frozenset()).counts
    sizes = [int((~layout.locked).sum()) for layout in family.layouts(model, prompt.known, kind, counts)]
    return list(whole.split(sizes))
