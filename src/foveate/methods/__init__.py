"""The methods: one paper per file, and the table by which all else finds them."""

from foveate.methods.base import Method
from foveate.methods.compose import Compose
from foveate.methods.controls.downsample import DownsampledImage
from foveate.methods.controls.norm import NormTopK
from foveate.methods.controls.pool import AveragePool
from foveate.methods.controls.random import Random
from foveate.methods.controls.relevance_top_k import RelevanceTopK
from foveate.methods.controls.uniform import UniformGrid
from foveate.methods.inside import Inside
from foveate.methods.inside.fastv import FastV
from foveate.methods.inside.pyramiddrop import PyramidDrop
from foveate.methods.inside.sparsevlm import SparseVLM
from foveate.methods.merging import Merging, Resizing
from foveate.methods.merging.prumerge import PruMerge
from foveate.methods.merging.prumergeplus import PruMergePlus
from foveate.methods.merging.tome import ToMe
from foveate.methods.merging.visionzip import VisionZip
from foveate.methods.selecting.cdpruner import CDPruner
from foveate.methods.selecting.dart import DART
from foveate.methods.selecting.divprune import DivPrune
from foveate.methods.selecting.dpp import DPP
from foveate.methods.selecting.fastervlm import FasterVLM
from foveate.methods.selecting.resprune import ResPrune
from foveate.methods.selecting.rrqr import RRQR
from foveate.methods.selecting.scope import SCOPE
from foveate.methods.selecting.spare import SPARE
from foveate.methods.selecting.vispruner import VisPruner

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
