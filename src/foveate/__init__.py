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
