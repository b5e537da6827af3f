"""foveate: keep only the visual tokens a vision-language model needs.

    pruned = foveate.prune(model, inputs, foveate.SPARE(), keep=64)
    model.generate(**pruned)

    with foveate.attach(model, foveate.ResPrune(), keep=0.11):
        model.generate(**inputs)

Importing it loads torch, and does nothing else: no model, no transformers, nothing patched.
"""

from foveate import select
from foveate.attach import Attached, attach
from foveate.budget import Budget
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
    METHODS,
    RRQR,
    SPARE,
    AveragePool,
    DownsampledImage,
    Method,
    NormTopK,
    PruMerge,
    PruMergePlus,
    Random,
    RelevanceTopK,
    ResPrune,
    ToMe,
    UniformGrid,
    VisionZip,
)
from foveate.prune import prune
from foveate.pruned import Pruned, Report
from foveate.tokens import Signal, VisualTokens
from foveate.turns import continued

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "METHODS",
    "RRQR",
    "SPARE",
    "Attached",
    "AveragePool",
    "Budget",
    "DownsampledImage",
    "FoveateError",
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
    "Random",
    "RelevanceTopK",
    "Report",
    "ResPrune",
    "Signal",
    "ToMe",
    "UniformGrid",
    "UnsupportedModel",
    "VisionZip",
    "VisualTokens",
    "attach",
    "continued",
    "prune",
    "select",
]
