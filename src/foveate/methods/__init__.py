"""The methods: one paper per file, and the table by which all else finds them."""

from foveate.methods.base import Method
from foveate.methods.downsample import DownsampledImage
from foveate.methods.merging import Merging, Resizing
from foveate.methods.norm import NormTopK
from foveate.methods.pool import AveragePool
from foveate.methods.prumerge import PruMerge
from foveate.methods.prumergeplus import PruMergePlus
from foveate.methods.random import Random
from foveate.methods.relevance_top_k import RelevanceTopK
from foveate.methods.resprune import ResPrune
from foveate.methods.rrqr import RRQR
from foveate.methods.spare import SPARE
from foveate.methods.tome import ToMe
from foveate.methods.uniform import UniformGrid
from foveate.methods.visionzip import VisionZip

METHODS: dict[str, type[Method]] = {
    "spare": SPARE,
    "resprune": ResPrune,
    "rrqr": RRQR,
    "random": Random,
    "uniform": UniformGrid,
    "pool": AveragePool,
    "downsample": DownsampledImage,
    "norm": NormTopK,
    "relevance": RelevanceTopK,
    "visionzip": VisionZip,
    "prumerge": PruMerge,
    "prumergeplus": PruMergePlus,
    "tome": ToMe,
}

__all__ = [
    "METHODS",
    "RRQR",
    "SPARE",
    "AveragePool",
    "DownsampledImage",
    "Merging",
    "Method",
    "NormTopK",
    "PruMerge",
    "PruMergePlus",
    "Random",
    "RelevanceTopK",
    "ResPrune",
    "Resizing",
    "ToMe",
    "UniformGrid",
    "VisionZip",
]
