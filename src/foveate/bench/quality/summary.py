"""The outcome of a run as plain data: accuracies, paired differences, correlations; all that is reported later."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foveate.bench.quality.correlation import correlate
from foveate.bench.quality.measured import Measured, Row
from foveate.bench.quality.suites import CONTROLS, DEFAULT, RANDOM_SEEDS, Suite, Variant
from foveate.bench.statistics import (
    RESAMPLES,
    Counts,
    Estimate,
    Flags,
    bootstrapped,
    difference,
    ratio,
    resamples,
    wilson,
)

DIGITS = 4
DOWNSAMPLED = "downsample"  # the arm whose wrong answers mark the questions that need detail

Plain = dict[str, Any]


def summarise(measured: Measured, context: Plain) -> Plain:
    """Plain data, all numbers fractions of 1.

    An estimate is ``{"value", "interval", "sign"}``; sign 0 means that the interval includes 0 (1 where it is a
    ratio), and the interval is None where none can be had. ``keep`` is what was really kept, ``asked`` what was
    asked for. Keys: ``context``, ``everything`` (all tokens), ``random`` (by budget), ``suites`` (``rows`` and
    ``differences`` of each), and where the default suite ran ``controls`` (its methods against every control),
    ``detail`` (VTC-Bench's split) and ``energy`` (does reconstruction error predict accuracy).
    """
    counts = resamples(len(measured.skills))
    plan = measured.plan
    data: Plain = {
        "context": {**context, "questions": len(measured.skills), "skills": _tally(measured.skills)},
        "intervals": {"level": 0.95, "resamples": RESAMPLES, "random_seeds": RANDOM_SEEDS},
        "budgets": list(measured.budgets),
        "asked": [budget.keep for budget in plan.budgets],
        "everything": _row(measured, measured.everything, counts),
        "random": [
            {"keep": keep, **_row(measured, measured.random(b), counts), "seeds": _seeds(measured.random(b))}
            for keep, b in measured.budgets.items()
        ],
        "suites": {name: _suite(measured, suite, counts) for name, suite in plan.suites.items()},
    }
    if DEFAULT in plan.suites:
        suite = plan.suites[DEFAULT]
        data["controls"] = _against_controls(measured, suite, counts)
        data["detail"] = _detail(measured, suite)
        data["energy"] = _energy(measured, suite, counts)
    return data


def _suite(measured: Measured, suite: Suite, counts: Counts) -> Plain:
    rows, differences = [], []
    variants = {variant.label: variant for variant in suite.variants}
    for variant in suite.variants:
        for keep, budget in measured.budgets.items():
            row = measured.row(variant, budget)
            against = difference(row.seeds - measured.random(budget).seeds, counts)
            head = {"label": variant.label, "method": variant.spec, "positions": variant.positions}
            rows.append({**head, "keep": keep, **_row(measured, row, counts), "to_random": _plain(against)})
    for one, other in suite.compared:
        for keep, budget in measured.budgets.items():
            gap = measured.row(variants[one], budget).seeds - measured.row(variants[other], budget).seeds
            for skill in (None, *(s for s in suite.apart if s in measured.skills)):
                differences.append(
                    {
                        "of": one,
                        "to": other,
                        "keep": keep,
                        "skill": skill,
                        **_plain(_difference(gap, _flags(measured, skill), counts)),
                    }
                )
    return {"asks": suite.asks, "apart": list(suite.apart), "rows": rows, "differences": differences}


def _row(measured: Measured, row: Row, counts: Counts) -> Plain:
    base = measured.everything.seeds
    skills = {}
    for skill in dict.fromkeys(measured.skills):
        flags = _flags(measured, skill)
        to_all = _difference(row.seeds - base, flags, counts)
        skills[skill] = {**_accuracy(row, flags, counts), "to_all": _plain(to_all)}
    relative = ratio(row.seeds, base[0], counts)
    return {
        "tokens": _rounded(row.tokens),
        **_accuracy(row, np.ones(base.shape[1]), counts),
        "relative": None if relative is None else _plain(relative, about=1.0),
        "to_all": _plain(difference(row.seeds - base, counts)),
        "skills": skills,
    }


def _accuracy(row: Row, flags: Flags, counts: Counts) -> Plain:
    """With Wilson's interval, or of several seeds with that of the bootstrap over seeds and questions."""
    part, chosen = row.seeds[:, flags > 0], counts[:, flags > 0]
    interval = wilson(part[0]) if len(part) == 1 else bootstrapped(part, chosen[chosen.any(axis=1)])
    return {"accuracy": _rounded(float(part.mean())), "interval": _bounds(interval)}


def _difference(gaps: Flags, flags: Flags, counts: Counts) -> Estimate:
    """Over flagged questions; resamples that drew none of them are left out."""
    chosen = counts[:, flags > 0]
    return difference(gaps[..., flags > 0], chosen[chosen.any(axis=1)])


def _against_controls(measured: Measured, suite: Suite, counts: Counts) -> list[Plain]:
    """Each method that is no control, against each control, at each budget."""
    found = []
    for variant in suite.variants:
        for control in CONTROLS if variant.spec not in CONTROLS else ():
            for keep, budget in measured.budgets.items():
                gap = measured.row(variant, budget).seeds - measured.row(Variant(control, control), budget).seeds
                head = {"of": variant.label, "to": control, "keep": keep}
                found.append({**head, **_plain(difference(gap, counts))})
    return found


def _detail(measured: Measured, suite: Suite) -> list[Plain]:
    """Accuracy on the questions that the down-sampled image gets wrong, and on the rest."""
    found = []
    for keep, budget in measured.budgets.items():
        rest = measured.row(Variant(DOWNSAMPLED, DOWNSAMPLED), budget).right
        groups = {"detail": 1 - rest, "rest": rest}
        rows = [("none", measured.everything)]
        rows += [(v.label, measured.row(v, budget)) for v in suite.variants if v.spec != DOWNSAMPLED]
        for group, flags in groups.items():
            n = int(flags.sum())
            counts = resamples(n) if n else np.zeros((0, 0))
            random = measured.random(budget).seeds[:, flags > 0]
            for label, row in rows if n else ():
                part = replace(row, right=row.right[flags > 0], seeds=row.seeds[:, flags > 0])
                head = {"label": label, "keep": keep, "group": group, "n": n}
                against = _plain(difference(part.seeds - random, counts))
                found.append({**head, **_accuracy(part, np.ones(n), counts), "to_random": against})
    return found


def _energy(measured: Measured, suite: Suite, counts: Counts) -> Plain:
    found = correlate(measured, suite, counts)
    return {
        "points": [
            {"label": label, "keep": keep, "kept": _rounded(kept, 9), "accuracy": _rounded(accuracy)}
            for (label, keep), (kept, accuracy) in found.points.items()
        ],
        "over_budgets": [{"label": label, "rho": _maybe(rho)} for label, rho in found.over_budgets.items()],
        "across_methods": [{"keep": keep, "rho": _maybe(rho)} for keep, rho in found.across_methods.items()],
        "per_question": [
            {"label": label, "keep": keep, "rho": _maybe(rho)} for (label, keep), rho in found.per_question.items()
        ],
        "per_question_pooled": [
            {"keep": keep, "rho": _maybe(rho)} for keep, rho in found.per_question_pooled.items()
        ],
        "within_question": [{"keep": keep, "rho": _maybe(rho)} for keep, rho in found.within_question.items()],
        "beyond_method": [{"keep": keep, "rho": _maybe(rho)} for keep, rho in found.beyond_method.items()],
    }


def _flags(measured: Measured, skill: str | None) -> Flags:
    return np.array([skill in (None, known) for known in measured.skills], dtype=np.float64)


def _seeds(row: Row) -> list[float]:
    return [_rounded(float(seed.mean())) for seed in row.seeds]


def _tally(skills: Sequence[str]) -> dict[str, int]:
    return {skill: skills.count(skill) for skill in dict.fromkeys(skills)}


def _plain(estimate: Estimate, about: float = 0.0) -> Plain:
    """An estimate as data; its sign is decided before rounding, about 0 (or 1, for a ratio)."""
    centred = Estimate(estimate.value - about, estimate.low - about, estimate.high - about)
    return {
        "value": _rounded(estimate.value),
        "interval": _bounds(estimate.interval),
        "sign": int(centred.sign),
    }


def _bounds(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [_rounded(bound) for bound in interval]


def _maybe(estimate: Estimate | None) -> Plain | None:
    return None if estimate is None else _plain(estimate)


def _rounded(value: float, digits: int = DIGITS) -> float:
    return round(float(value), digits)
