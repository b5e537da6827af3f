"""Features of all kinds, and least squares at every step: what each select_residual must stand."""

import numpy as np
import torch
from hypothesis import strategies as st

KINDS = ["plain", "duplicates", "zeros", "low rank", "range", "alike"]
# Energies are certain to sqrt(eps) of the row's own; where less is left, they are computed afresh.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}


def features_of(kind, n, d, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) * np.exp(rng.uniform(-1, 1, (n, 1)))
    if kind == "duplicates":
        rows = rows[rng.integers(0, n, n)]
    if kind == "zeros":
        rows[rng.random(n) < 0.3] = 0
    if kind == "low rank":
        rank = 1 + int(rng.integers(0, max(1, min(n, d) // 2)))
        rows = rng.standard_normal((n, rank)) @ rows[:rank]
    if kind == "range":
        rows *= 10.0 ** rng.uniform(-5, 5, (n, 1))
    if kind == "alike":
        rows = rows[:1] + 10.0 ** rng.uniform(-3, 0) * rows
    return torch.tensor(rows)


@st.composite
def problems(draw, sizes, widths):
    """Features of all kinds, weights with zeros among them, a count and sometimes a row to start with."""
    n, d = draw(sizes), draw(widths)
    seed = draw(st.integers(0, 2**32 - 1))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    features = features_of(draw(st.sampled_from(KINDS)), n, d, seed).to(dtype)
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0, 1, n) ** draw(st.sampled_from([0, 1, 6])) * (
        rng.random(n) >= draw(st.sampled_from([0, 0.3]))
    )
    first = draw(st.none() | st.integers(0, n - 1))
    return features, torch.tensor(weight), draw(st.integers(1, n)), first


def left_by_least_squares(features, kept):
    """||v_i - P_S v_i||^2 in double, by numpy's SVD of the kept rows at length 1."""
    rows = features.double().numpy()
    norms = np.linalg.norm(rows[kept], axis=1, keepdims=True)
    basis = rows[kept][norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    if len(basis):
        _, sizes, directions = np.linalg.svd(basis, full_matrices=False)
        directions = directions[sizes > 1e-13 * sizes[0]]
        for _ in range(2):
            rows = rows - (rows @ directions.T) @ directions
    return (rows**2).sum(axis=1)


def certify(features, weight, order, first, steps):
    """At each of the steps, the row taken is within rounding of the best."""
    assert len(set(order)) == len(order)
    own = (features.double().numpy() ** 2).sum(axis=1)
    eps, weight = torch.finfo(features.dtype).eps, weight.numpy()
    for step in steps:
        if step == 0 and first is not None:
            assert order[0] == first
            continue
        scores = weight * left_by_least_squares(features, order[:step])
        scores[order[:step]] = 0
        rounding = 1e4 * eps**2 * (weight * own).max()
        certain = scores - weight * (200 * eps) ** 2 * own  # what may be rounding of the row itself
        assert scores[order[step]] >= certain.max() * (1 - TOLERANCE[features.dtype]) - rounding
