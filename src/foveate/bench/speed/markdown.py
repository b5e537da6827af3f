"""The page `docs/performance.md`: every number comes from the summary."""

from typing import Any

from foveate.bench.quality.cells import DASH, table
from foveate.bench.speed.cells import added, layers, milliseconds, share, size, speedup
from foveate.bench.speed.contestants import STOCK
from foveate.bench.speed.summary import PAYS
from foveate.bench.speed.tables import COLUMNS, context_line

Plain = dict[str, Any]

READING = (
    "*Stock* is `model.generate(**inputs)`, foveate not involved; *our path* keeps all tokens, so that what "
    "foveate adds is seen by itself. All arms run on one model instance: one attention backend, precision, "
    "batch and prompt.",
    "All are cut at the same points. *Encode* goes from the call to the decoder's first entry, with "
    "`generate`'s own preparations and without *select*, which is text relevance, selection and shrinking. "
    "*Prefill* goes from there to the first new token, with what a method does between the layers. Together "
    "they are *first token*; with the decoding, *end to end*.",
    "Each arm passes once per round, in an order drawn for that round; ratios are taken within a round. Times "
    "are medians with quartiles. Ratios are medians with an interval between order statistics; **faster** and "
    "**slower** are said only where it leaves out 1 with a confidence of 95 %, for which it takes 6 rounds.",
    "*Pruning adds*, beside the vision encoder: the time of select; the operations that it launches; and the "
    "reads, values for which the host waits until a GPU has done all that it was given. The selection engine "
    "counts as one operation. What a method does between the layers is part of its prefill.",
    "Where no row is padded and positions have one axis, our path puts one masked column in front of the "
    "prompt, which keeps `generate` from taking the mask away: attention is given a mask where stock's is not.",
    "*KV cache* is what the layers hold at the end, prompt and answer, so shorter later layers count. *Memory* "
    "is the most in use at once, above weights and inputs, in a pass that is not timed. What a method loads once, "
    "a CLIP text tower or a tagger of words, is there before and not counted.",
)
MEANINGLESS = (
    "Weights are random, and pixels are noise: what a layer costs does not depend on them, but which tokens "
    "are kept and what is answered mean nothing here. Without a tokenizer of its own the model is given one of "
    "the question's words alone: relevance is computed at its full cost, on embeddings that say nothing. No "
    "CLIP text tower is run: SPARE measures relevance in the language model's space."
)


def as_markdown(data: Plain, command: str, plots: dict[str, str]) -> str:
    """The page.

    Args:
        data: as `summarise` returns it.
        command: what writes it again.
        plots: file names of the plots, by ``stages`` and ``break_even``.
    """
    parts = [
        "# Speed: what pruning saves, and what it costs",
        f"Written by `{command}`: all numbers come from its results.",
        context_line(data),
        "\n".join(f"- {line}" for line in [*READING, *_meaningless(data)]),
        f"![Prefill and end to end, by arm]({plots['stages']})",
        *(_case(case) for case in data["cases"]),
        _break_even(data, plots),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _meaningless(data: Plain) -> list[str]:
    return [MEANINGLESS] if data["context"]["question"] is not None else []


def _case(case: Plain) -> str:
    rows = case["rows"]
    times = [
        [row["label"], *(milliseconds(row["seconds"][name], spread=True) for name in (*COLUMNS, *PAYS))]
        for row in rows
    ]
    ratios = [
        [row["label"], *(speedup(row["speedup"][name]) for name in ("prefill", *PAYS, "decode_per_token"))]
        for row in rows
        if row["key"] != STOCK
    ]
    needs = [
        [
            row["label"],
            share(row["select_of_prefill"]),
            added(row),
            size(row["kv_bytes"]),
            size(row["memory"]),
            layers(row["tokens_per_layer"]),
        ]
        for row in rows
    ]
    return "\n\n".join(
        [
            f"## {case['tokens']} visual tokens, batch {case['batch']}",
            f"Milliseconds, median and quartiles of {case['repeats']}:",
            table(["arm", *COLUMNS.values(), "first token", "end to end"], times),
            "Times as fast as stock:",
            table(["arm", "prefill", "to the first token", "end to end", "decode"], ratios),
            "What is needed:",
            table(["arm", "select, of its prefill", "pruning adds", "KV cache", "memory", "visual tokens"], needs),
            f"Options as decided: {', '.join(f'`{name}`' for name in _decided(rows))}.",
        ]
    )


def _decided(rows: list[Plain]) -> list[str]:
    """The methods, each once, with their ``auto`` options as they were."""
    return list(dict.fromkeys(row["decided"] for row in rows if row["keep"] is not None))


def _break_even(data: Plain, plots: dict[str, str]) -> str:
    """By visual tokens, and by batch where several were measured."""
    parts = [
        "## Where pruning starts to pay",
        "From where on an arm is faster than stock wherever it was measured, the interval leaving out 1; "
        f"{DASH} where it is not at the largest.",
    ]
    by_tokens, by_batch = data["break_even"], data["break_even_batch"]
    if not by_tokens:
        return ""
    parts += [
        f"![Times as fast as stock over visual tokens and budgets]({plots['break_even']})",
        "By visual tokens of an image:",
        _pays(by_tokens, "batch"),
    ]
    if "batches" in plots:
        parts += [
            f"![Times as fast as stock over the batch]({plots['batches']})",
            "By batch:",
            _pays(by_batch, "tokens"),
        ]
    return "\n\n".join(parts)


def _pays(entries: list[Plain], at: str) -> str:
    rows = [
        [
            entry["label"],
            str(entry[at]),
            ", ".join(map(str, entry["measured"])),
            *(DASH if entry[name] is None else f"from {entry[name]}" for name in PAYS),
        ]
        for entry in entries
    ]
    return table(["arm", "visual tokens" if at == "tokens" else at, "measured", "first token", "end to end"], rows)
