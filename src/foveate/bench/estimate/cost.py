"""The formulas of docs/estimate.md: seconds of each stage by what bounds it, and numbers in the cache."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from foveate.bench.defaults import Speed
from foveate.bench.estimate.gpus import Device
from foveate.bench.estimate.sizes import Sizes

# Launches, as shares of those of one decoder layer; fitted to one H200's host, choosing to SPARE at batch 1.
TOWER_LAYER, WINDOW, CHOOSING = 0.78, 0.055, 6.0
PAYS = 1.1  # times as soon: less than this is not promised
BATCHES, TOKENS = range(1, 129), range(64, 16385, 64)


@dataclass(frozen=True)
class Stage:
    """Seconds of one stage, by what they are spent on.

    Attributes:
        arithmetic: of the products.
        bandwidth: of reading weights and cache.
        launches: of the host.
        ahead: whether the host launches while the device computes.
    """

    arithmetic: float
    bandwidth: float
    launches: float
    ahead: bool

    @property
    def seconds(self) -> float:
        """Reading and computing one after the other, and the host beside them or before them."""
        busy = self.arithmetic + self.bandwidth
        return max(busy, self.launches) if self.ahead else busy + self.launches

    @property
    def bound(self) -> str:
        """What takes longest: ``arithmetic``, ``bandwidth`` or ``launches``."""
        parts = {"arithmetic": self.arithmetic, "bandwidth": self.bandwidth, "launches": self.launches}
        if self.ahead and self.launches < self.arithmetic + self.bandwidth:
            del parts["launches"]
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class Case:
    """A prompt of ``batch`` rows with one image each.

    Attributes:
        batch: rows.
        tokens: visual tokens of an image, as encoded.
        kept: those that the language model is given; all without pruning.
        text: tokens of text in a row.
    """

    batch: int
    tokens: int
    kept: int
    text: int = Speed.TEXT

    @property
    def width(self) -> int:
        """Columns of the prompt."""
        return self.kept + self.text


def tower(sizes: Sizes, device: Device, case: Case) -> Stage:
    """From pixels to visual tokens."""
    patches = case.tokens * sizes.merge
    if sizes.tile:
        patches = ceil(patches / sizes.tile) * sizes.tile
    span = sizes.tile or patches
    windowed = sizes.tower_layers - sizes.whole
    seen = sizes.whole * span + windowed * (sizes.window or 0)
    per_image = 2 * sizes.tower * patches + 4 * patches * sizes.tower_width * seen
    windows = windowed * ceil(patches / sizes.window) if sizes.window else 0
    launches = TOWER_LAYER * sizes.tower_layers + WINDOW * windows * case.batch
    return _stage(device, case.batch * per_image, sizes.tower, 0, launches)


def prefill(sizes: Sizes, device: Device, case: Case) -> Stage:
    """From visual tokens to the first new token; attention is causal, the head sees the last column."""
    per_row = 2 * sizes.decoder * case.width + 2 * case.width**2 * sizes.attention * sizes.layers
    flops = case.batch * (per_row + 2 * sizes.head)
    return _stage(device, flops, sizes.decoder + sizes.head, cached(sizes, case), sizes.layers)


def decode(sizes: Sizes, device: Device, case: Case) -> Stage:
    """One further token of every row."""
    flops = case.batch * (2 * (sizes.decoder + sizes.head) + 4 * case.width * sizes.attention * sizes.layers)
    return _stage(device, flops, sizes.decoder + sizes.head, cached(sizes, case), sizes.layers)


def choosing(device: Device, case: Case) -> Stage:
    """What `foveate.prune` adds beside the encoder; nothing where all tokens are kept."""
    launches = CHOOSING * device.layer if case.kept < case.tokens else 0.0
    return Stage(0.0, 0.0, launches, device.ahead)


def cached(sizes: Sizes, case: Case, new_tokens: int = 1) -> int:
    """Numbers in the KV cache behind an answer: the last new token is never put in."""
    return case.batch * (case.width + new_tokens - 1) * sizes.cache * sizes.layers


def stages(sizes: Sizes, device: Device, case: Case) -> dict[str, Stage]:
    """Every stage, in order; `decode` is of one token."""
    return {
        "tower": tower(sizes, device, case),
        "choosing": choosing(device, case),
        "prefill": prefill(sizes, device, case),
        "decode": decode(sizes, device, case),
    }


def first_token(sizes: Sizes, device: Device, case: Case) -> float:
    """Seconds to the first new token."""
    found = stages(sizes, device, case)
    return sum(found[name].seconds for name in ("tower", "choosing", "prefill"))


def sooner(sizes: Sizes, device: Device, case: Case) -> float:
    """How many times as soon the first token comes as with all tokens."""
    whole = Case(case.batch, case.tokens, case.tokens, case.text)
    return first_token(sizes, device, whole) / first_token(sizes, device, case)


def pays_from_batch(sizes: Sizes, device: Device, case: Case) -> int | None:
    """The smallest batch at which the first token comes `PAYS` times as soon; None if none up to 128 does."""
    return _least(
        (batch, sooner(sizes, device, Case(batch, case.tokens, case.kept, case.text))) for batch in BATCHES
    )


def pays_from_tokens(sizes: Sizes, device: Device, case: Case) -> int | None:
    """The same over visual tokens, of which the same share is kept, at the batch of ``case``."""
    share = case.kept / case.tokens
    return _least(
        (n, sooner(sizes, device, Case(case.batch, n, max(1, round(share * n)), case.text))) for n in TOKENS
    )


def _stage(device: Device, flops: float, weights: int, cache: int, launches: float) -> Stage:
    """Of so many operations, of weights and cached numbers read, and of launches in decoder layers."""
    moved = (weights + cache) * device.bytes
    return Stage(flops / device.flops, moved / device.bandwidth, launches * device.layer, device.ahead)


def _least(ratios: Iterable[tuple[int, float]]) -> int | None:
    return next((place for place, ratio in ratios if ratio >= PAYS), None)
