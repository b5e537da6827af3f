"""The methods: one paper per file, and the table by which all else finds them."""

from foveate.methods.base import Method
from foveate.methods.cdpruner import CDPruner
from foveate.methods.compose import Compose
from foveate.methods.dart import DART
from foveate.methods.divprune import DivPrune
from foveate.methods.downsample import DownsampledImage
from foveate.methods.dpp import DPP
from foveate.methods.fastervlm import FasterVLM
from foveate.methods.fastv import FastV
from foveate.methods.inside import Inside
from foveate.methods.merging import Merging, Resizing
from foveate.methods.norm import NormTopK
from foveate.methods.pool import AveragePool
from foveate.methods.prumerge import PruMerge
from foveate.methods.prumergeplus import PruMergePlus
from foveate.methods.pyramiddrop import PyramidDrop
from foveate.methods.random import Random
from foveate.methods.relevance_top_k import RelevanceTopK
from foveate.methods.resprune import ResPrune
from foveate.methods.rrqr import RRQR
from foveate.methods.scope import SCOPE
from foveate.methods.spare import SPARE
from foveate.methods.sparsevlm import SparseVLM
from foveate.methods.tome import ToMe
from foveate.methods.uniform import UniformGrid
from foveate.methods.visionzip import VisionZip
from foveate.methods.vispruner import VisPruner

METHODS: dict[str, type[Method]] = {
    "spare": SPARE,
    "resprune": ResPrune,
    "rrqr": RRQR,
    "dpp": DPP,
    "cdpruner": CDPruner,
    "divprune": DivPrune,
    "scope": SCOPE,
    "fastervlm": FasterVLM,
    "vispruner": VisPruner,
    "dart": DART,
    "visionzip": VisionZip,
    "prumerge": PruMerge,
    "prumergeplus": PruMergePlus,
    "tome": ToMe,
    "random": Random,
    "uniform": UniformGrid,
    "pool": AveragePool,
    "downsample": DownsampledImage,
    "norm": NormTopK,
    "relevance": RelevanceTopK,
}

# Those that drop inside the language model: with `attach` alone.
INSIDE: dict[str, type[Inside]] = {"fastv": FastV, "pyramiddrop": PyramidDrop, "sparsevlm": SparseVLM}

__all__ = [
    "DART",
    "DPP",
    "INSIDE",
    "METHODS",
    "RRQR",
    "SCOPE",
    "SPARE",
    "AveragePool",
    "CDPruner",
    "Compose",
    "DivPrune",
    "DownsampledImage",
    "FastV",
    "FasterVLM",
    "Inside",
    "Merging",
    "Method",
    "NormTopK",
    "PruMerge",
    "PruMergePlus",
    "PyramidDrop",
    "Random",
    "RelevanceTopK",
    "ResPrune",
    "Resizing",
    "SparseVLM",
    "ToMe",
    "UniformGrid",
    "VisPruner",
    "VisionZip",
]
