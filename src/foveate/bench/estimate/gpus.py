"""What public data sheets say of GPUs, and what a model gets of it."""

from dataclasses import dataclass

from foveate.errors import InvalidOption

# Of the data sheet's peak, what all kernels of a layer together reach: fitted to one H200 (docs/estimate.md).
ARITHMETIC, BANDWIDTH = 0.48, 0.8
# Seconds that the host takes to launch one decoder layer of transformers, op by op: the H200's host.
LAYER = 1.1e-3


@dataclass(frozen=True)
class Device:
    """What computes, as a model sees it.

    Attributes:
        name: for people.
        flops: floating-point operations per second, sustained over whole layers.
        bandwidth: bytes per second, sustained.
        layer: seconds in which the host launches one decoder layer.
        bytes: of a weight or of a cached number.
        memory: bytes; None where it is not known.
        ahead: whether the host launches while the device still computes, as with a GPU.
    """

    name: str
    flops: float
    bandwidth: float
    layer: float
    bytes: int = 2
    memory: float | None = None
    ahead: bool = True


@dataclass(frozen=True)
class Sheet:
    """A data sheet's numbers.

    Attributes:
        tflops: dense bf16 with float32 sums, in 10^12 per second; of a T4, which has no bf16, fp16.
        gb_per_s: memory bandwidth, in 10^9 bytes per second.
        gb: memory, in 10^9 bytes.
        source: the vendor's document.
    """

    tflops: float
    gb_per_s: float
    gb: int
    source: str


# "With sparsity" numbers are halved: the sheets of Ada, Hopper and Blackwell print those.
GPUS = {
    "T4": Sheet(65, 300, 16, "NVIDIA T4 data sheet"),
    "A10": Sheet(125, 600, 24, "NVIDIA A10 data sheet"),
    "A40": Sheet(149.7, 696, 48, "NVIDIA A40 data sheet"),
    "A100 40GB": Sheet(312, 1555, 40, "NVIDIA A100 data sheet"),
    "A100 80GB": Sheet(312, 2039, 80, "NVIDIA A100 data sheet, SXM"),
    "L4": Sheet(121, 300, 24, "NVIDIA L4 data sheet"),
    "L40S": Sheet(362, 864, 48, "NVIDIA L40S data sheet"),
    "H100 PCIe": Sheet(756, 2000, 80, "NVIDIA H100 data sheet, PCIe"),
    "H100": Sheet(989, 3350, 80, "NVIDIA H100 data sheet, SXM"),
    "H200": Sheet(989, 4800, 141, "NVIDIA H200 data sheet, SXM"),
    "B200": Sheet(2250, 8000, 180, "NVIDIA DGX B200 data sheet, an eighth of it"),
    "RTX 3090": Sheet(71, 936, 24, "NVIDIA Ampere GA102 white paper"),
    "RTX 4080": Sheet(97.5, 717, 16, "NVIDIA Ada white paper"),
    "RTX 4090": Sheet(165.2, 1008, 24, "NVIDIA Ada white paper"),
    "RTX 5090": Sheet(209.5, 1792, 32, "NVIDIA RTX Blackwell white paper"),
    "MI300X": Sheet(1307, 5300, 192, "AMD Instinct MI300X data sheet"),
}


def gpu(name: str) -> Device:
    """The GPU of a name, upper or lower case, with or without its vendor.

    Raises:
        InvalidOption: it is not in the table.
    """
    wanted = _plain(name)
    for known, sheet in GPUS.items():
        if _plain(known) == wanted:
            flops, bandwidth = ARITHMETIC * sheet.tflops * 1e12, BANDWIDTH * sheet.gb_per_s * 1e9
            return Device(known, flops, bandwidth, LAYER, memory=sheet.gb * 1e9)
    raise InvalidOption(f"gpu {name!r}: allowed are {', '.join(GPUS)}; or measure your own with --measure")


def _plain(name: str) -> str:
    words = name.casefold().replace("-", " ").split()
    return "".join(word for word in words if word not in ("nvidia", "amd", "geforce", "instinct", "sxm"))
