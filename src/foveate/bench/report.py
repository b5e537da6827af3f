"""Answers and outcomes as plain data, and as Markdown tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from foveate.bench.answers import Answer
from foveate.bench.evaluation import Evaluation
from foveate.bench.machine import versions
from foveate.bench.statistics import Flags, relative, relative_interval, wilson

DIGITS = 4


def as_results(evaluations: Sequence[Evaluation], baseline: Evaluation) -> list[dict[str, Any]]:
    """One entry per outcome, all numbers fractions of 1, all intervals ``[low, high]`` of 95 %.

    Keys: ``method``, ``keep``, ``tokens``, ``n``, ``overall``, ``interval`` (Wilson), ``relative`` to the
    baseline and ``relative_interval`` (paired bootstrap), ``skills``, ``skill_intervals``,
    ``skill_relative``, ``skill_relative_intervals`` (by skill).
    """
    return [_result(evaluation, baseline) for evaluation in evaluations]


def as_markdown(results: Sequence[dict[str, Any]], context: str) -> str:
    """The context, then two tables in per cent: accuracies, and accuracies relative to all tokens."""
    skills = list(results[0]["skills"])
    header = _row(["method", "visual tokens", "overall", *skills]) + "\n" + _row(["---"] * (len(skills) + 3))
    accuracy = [
        [
            percent(result["overall"], result["interval"]),
            *(percent(result["skills"][skill], result["skill_intervals"][skill]) for skill in skills),
        ]
        for result in results
    ]
    ratios = [
        [
            percent(result["relative"], result["relative_interval"]),
            *(percent(result["skill_relative"][s], result["skill_relative_intervals"][s]) for s in skills),
        ]
        for result in results
    ]
    parts = [context]
    captions = ("Accuracy in per cent (95 % interval)", "Relative to all tokens, in per cent (95 % interval)")
    for caption, cells in zip(captions, (accuracy, ratios), strict=True):
        names = [[result["method"], str(result["tokens"])] for result in results]
        rows = [_row(name + row) for name, row in zip(names, cells, strict=True)]
        parts.append("\n".join([f"{caption}:", "", header, *rows]))
    return "\n\n".join(parts)


def context(hardware: str, questions: int, seed: int, split: str) -> str:
    """One line: what was measured, and on what."""
    listed = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"{questions} questions on {split} scenes (seed {seed}) on {hardware}; {listed}."


def as_answers(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """One entry per answer of `ask`, in plain data."""
    return [
        {
            "method": answer.arm.name,
            "keep": answer.tokens[1] if answer.arm.keeps_all else answer.arm.budget.keep,
            "answer": answer.text,
            "visual_tokens": answer.tokens[0],
            "visual_tokens_before": answer.tokens[1],
            "prompt_tokens": answer.prompt,
            "new_tokens": answer.new_tokens,
            "decided": repr(answer.decided),
            "tagger": answer.tagger,
            "seconds": {stage: round(value, 6) for stage, value in answer.seconds.items()},
        }
        for answer in answers
    ]


def percent(share: float | None, interval: Sequence[float] | None = None) -> str:
    """``61.2 (58-65)``; a dash for None."""
    if share is None:
        return "–"
    bounds = f" ({100 * interval[0]:.0f}–{100 * interval[1]:.0f})" if interval else ""
    return f"{100 * share:.1f}{bounds}"


def _result(evaluation: Evaluation, baseline: Evaluation) -> dict[str, Any]:
    right, base = _flags(evaluation), _flags(baseline)
    skills = np.array(evaluation.skills)
    parts = {skill: (right[skills == skill], base[skills == skill]) for skill in dict.fromkeys(evaluation.skills)}
    return {
        "method": evaluation.name,
        "keep": evaluation.keep,
        "tokens": evaluation.tokens,
        "n": len(right),
        "overall": _rounded(float(right.mean())),
        "interval": _rounded(wilson(right)),
        "relative": _rounded(relative(right, base)),
        "relative_interval": _rounded(relative_interval(right, base)),
        "skills": {skill: _rounded(float(part.mean())) for skill, (part, _) in parts.items()},
        "skill_intervals": {skill: _rounded(wilson(part)) for skill, (part, _) in parts.items()},
        "skill_relative": {skill: _rounded(relative(*pair)) for skill, pair in parts.items()},
        "skill_relative_intervals": {skill: _rounded(relative_interval(*pair)) for skill, pair in parts.items()},
    }


def _flags(evaluation: Evaluation) -> Flags:
    return np.array(evaluation.right, dtype=np.float64)


def _rounded(value: float | tuple[float, float] | None) -> Any:
    if isinstance(value, tuple):
        return [round(number, DIGITS) for number in value]
    return None if value is None else round(value, DIGITS)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
