"""foveate: keep only the visual tokens a vision-language model needs.

    pruned = foveate.prune(model, inputs, foveate.SPARE(), keep=64)
    model.generate(**pruned)

    with foveate.attach(model, foveate.ResPrune(), keep=0.11):
        model.generate(**inputs)

Importing it does nothing: torch is loaded with the first name that needs it, transformers with the first model.
"""

from typing import TYPE_CHECKING

from foveate.lazy import lazy

if TYPE_CHECKING:
    from foveate import select
    from foveate.attach import Attached, attach
    from foveate.budget import Budget
    from foveate.chat.turns import continued
    from foveate.errors import (
        FoveateError,
        InvalidBudget,
        InvalidFeatures,
        InvalidInputs,
        InvalidOption,
        MissingSignal,
        UnsupportedModel,
    )
    from foveate.families import FAMILIES
    from foveate.methods import (
        DART,
        DPP,
        INSIDE,
        METHODS,
        RRQR,
        SCOPE,
        SPARE,
        AveragePool,
        CDPruner,
        Compose,
        DivPrune,
        DownsampledImage,
        EachImage,
        FasterVLM,
        FastV,
        Inside,
        Method,
        NormTopK,
        PruMerge,
        PruMergePlus,
        PyramidDrop,
        Random,
        RelevanceTopK,
        ResPrune,
        SparseVLM,
        ToMe,
        UniformGrid,
        VisionZip,
        VisPruner,
    )
    from foveate.prune import prune
    from foveate.pruned import Pruned, Report
    from foveate.tokens import Signal, VisualTokens

__version__ = "0.1.0"

__all__ = [
    "DART",
    "DPP",
    "FAMILIES",
    "INSIDE",
    "METHODS",
    "RRQR",
    "SCOPE",
    "SPARE",
    "Attached",
    "AveragePool",
    "Budget",
    "CDPruner",
    "Compose",
    "DivPrune",
    "DownsampledImage",
    "EachImage",
    "FastV",
    "FasterVLM",
    "FoveateError",
    "Inside",
    "InvalidBudget",
    "InvalidFeatures",
    "InvalidInputs",
    "InvalidOption",
    "Method",
    "MissingSignal",
    "NormTopK",
    "PruMerge",
    "PruMergePlus",
    "Pruned",
    "PyramidDrop",
    "Random",
    "RelevanceTopK",
    "Report",
    "ResPrune",
    "Signal",
    "SparseVLM",
    "ToMe",
    "UniformGrid",
    "UnsupportedModel",
    "VisPruner",
    "VisionZip",
    "VisualTokens",
    "attach",
    "continued",
    "prune",
    "select",
]

_HOMES = {
    "attach": ("Attached", "attach"),
    "budget": ("Budget",),
    "errors": tuple(name for name in __all__ if name.startswith(("Foveate", "Invalid", "Missing", "Unsupported"))),
    "families": ("FAMILIES",),
    "prune": ("prune",),
    "pruned": ("Pruned", "Report"),
    "tokens": ("Signal", "VisualTokens"),
    "chat.turns": ("continued",),
    "": ("select",),
}
# All others are methods.
lazy(
    __name__,
    {**dict.fromkeys(__all__, "methods"), **{name: home for home, names in _HOMES.items() for name in names}},
)
