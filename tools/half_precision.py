"""The table of docs/methods.md that tells what half precision does to each method's selection.

    python tools/half_precision.py

Features and signals of the stored vectors (tests/golden) are rounded to bfloat16 or float16, each method ranks
them, and the sets are compared with its own of the vectors in float64: of the vectors as they are, and rounded
likewise. Kinds with exact ties (duplicates, zero rows, rank-deficient) are left out.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from foveate import METHODS, VisualTokens

ROOT = Path(__file__).parent.parent
GOLDEN, PAGE = ROOT / "tests" / "golden", ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- tools/half_precision.py -->", "<!-- end -->"
NAMES = ("spare", "resprune", "rrqr", "dpp", "cdpruner", "divprune", "scope", "fastervlm", "vispruner", "dart")
KINDS = ("clustered", "gaussian", "lowrank", "dynrange")
BUDGETS = (64, 128, 192)
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END, 1)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


def table() -> str:
    """The table, as Markdown."""
    images = list(images_of(576))
    lines = [
        "| method | "
        + " | ".join(f"{half}, of its own rounding | {half}, of the original" for half in HALVES)
        + " |",
        "|---|" + "---:|" * 2 * len(HALVES),
    ]
    for name in NAMES:
        cells = []
        for dtype in HALVES.values():
            shares = [overlaps(name, image, dtype, k) for image in images for k in BUDGETS]
            cells += [cell([share[i] for share in shares]) for i in range(2)]
        lines.append(f"| {METHODS[name].__name__} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(shares: list[float]) -> str:
    """The mean overlap in per cent, and the least."""
    return f"{100 * sum(shares) / len(shares):.1f} ({100 * min(shares):.1f})"


def overlaps(name: str, image: VisualTokens, dtype: torch.dtype, k: int) -> tuple[float, float]:
    """Share of the k tokens in common with float64's: of the rounded image, and of the image as it is."""
    half = as_dtype(image, dtype)
    method = METHODS[name]()
    kept = set(method.rank(half, k).tolist())
    assert len(kept) == k
    exact = (as_dtype(half, torch.float64), image)
    return tuple(len(kept & set(method.rank(other, k).tolist())) / k for other in exact)  # type: ignore[return-value]


def as_dtype(image: VisualTokens, dtype: torch.dtype) -> VisualTokens:
    """The image with features and signals rounded, as a model in that precision has them."""
    changed = {signal.value: image.signal(signal).to(dtype) for signal in image.signals}
    return replace(image, features=image.features.to(dtype), **changed)


def images_of(n: int) -> Iterator[VisualTokens]:
    """The stored images of n tokens, of the kinds with generic margins, in float64."""
    for path in sorted((GOLDEN / "methods").glob(f"*_t{n}_d*.npz")):
        if not path.name.startswith(KINDS):
            continue
        with np.load(path) as archive:
            arrays = {name: archive[name].astype(np.float64) for name in archive.files if name != "meta"}
            assert json.loads(bytes(archive["meta"]))
        if "in/V" not in arrays:
            with np.load(GOLDEN / path.name) as archive:
                arrays["in/V"] = archive["in/V"].astype(np.float64)
        features = torch.tensor(arrays["in/V"])
        yield VisualTokens(
            features=features,
            grids=((24, n // 24),),
            cls_attention=torch.tensor(arrays["in/attn_cls"][:, 1:].mean(axis=0)),
            question=features[:3].clone(),
            clip_relevance=-torch.tensor(arrays["cdpruner/relevance_raw64"]),
            patches=features,
        )


if __name__ == "__main__":
    main()
