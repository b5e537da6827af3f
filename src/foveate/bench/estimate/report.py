"""An estimate as plain data, as tables, and in one sentence."""

from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from foveate.bench.defaults import Speed
from foveate.bench.estimate import cost
from foveate.bench.estimate.cost import Case, Stage
from foveate.bench.estimate.gpus import Device
from foveate.bench.estimate.sizes import Sizes
from foveate.bench.speed.cells import milliseconds, size
from foveate.bench.tables import plain_table

Plain = dict[str, Any]
NAMES = {"tower": "vision tower", "choosing": "choosing", "prefill": "prefill", "decode": "decode, per token"}


def estimate(model: str, sizes: Sizes, device: Device, case: Case) -> Plain:
    """All that is estimated: times in milliseconds, memory in bytes.

    Args:
        model: its name, for people.
        sizes: of the model.
        device: what computes.
        case: the pruned prompt; the whole one is made of it.
    """
    whole = replace(case, kept=case.tokens)
    both = {"all": whole, "pruned": case}
    found = {
        "model": model,
        "device": asdict(device),
        **asdict(case),
        "stages": {
            name: {arm: _plain(cost.stages(sizes, device, one)[name]) for arm, one in both.items()}
            for name in NAMES
        },
        "first_token": {arm: 1000 * cost.first_token(sizes, device, one) for arm, one in both.items()},
        "kv_cache": {arm: cost.cached(sizes, one, Speed.NEW_TOKENS) * device.bytes for arm, one in both.items()},
        "weights": sizes.total * device.bytes,
        "sooner": cost.sooner(sizes, device, case),
        "pays_from_batch": cost.pays_from_batch(sizes, device, case),
        "pays_from_tokens": cost.pays_from_tokens(sizes, device, case),
    }
    return {**found, "verdict": verdict(found)}


def verdict(found: Plain) -> str:
    """Where pruning pays, in one sentence."""
    batch, tokens, kept = found["batch"], found["tokens"], found["kept"]
    ratio = found["sooner"]
    bound = found["stages"]["prefill"]["pruned" if ratio >= cost.PAYS else "all"]["bound"]
    begin = f"On {found['device']['name']}, keeping {kept} of {tokens} tokens at batch {batch} "
    if ratio >= cost.PAYS:
        begin += f"brings the first token {ratio:.2f}x as soon (the pruned prefill is bound by {bound})"
    elif bound == "launches":
        before, after = (size(found["kv_cache"][arm]) for arm in ("all", "pruned"))
        begin += (
            f"saves memory alone (KV cache {before} -> {after}; the first token comes {ratio:.2f}x as soon), for "
            "the prefill is bound by launches"
        )
    else:
        begin += f"brings the first token only {ratio:.2f}x as soon, for the vision tower takes most of it"
    return f"{begin}; it pays {_from(found)}."


def _from(found: Plain) -> str:
    batch, tokens = found["pays_from_batch"], found["pays_from_tokens"]
    share = f"{100 * found['kept'] / found['tokens']:.0f} %"
    by_batch = f"from batch {batch} on at {found['tokens']} tokens" if batch else "at no batch up to 128"
    by_tokens = (
        f"from about {tokens} tokens on at batch {found['batch']} when {share} are kept"
        if tokens
        else f"at batch {found['batch']} with no number of tokens up to {cost.TOKENS[-1]}"
    )
    return f"{by_batch}, and {by_tokens}"


def estimate_table(found: Plain) -> Table:
    """Each stage with all tokens and with those kept: ms, and what bounds it; then the cache."""
    title = f"{found['model']}, batch {found['batch']}, {found['text']} tokens of text: ms, and what bounds them"
    table = plain_table("stage", title=title)
    for arm in (f"all {found['tokens']}", f"{found['kept']} kept"):
        table.add_column(arm, justify="right", no_wrap=True)
        table.add_column("bound by", no_wrap=True)
    for name, label in NAMES.items():
        cells = [found["stages"][name][arm] for arm in ("all", "pruned")]
        table.add_row(label, *(text for cell in cells for text in _cells(cell)))
    totals, caches = found["first_token"], found["kv_cache"]
    table.add_row("first token", _ms(totals["all"]), "", _ms(totals["pruned"]), "")
    table.add_row(f"KV cache, {Speed.NEW_TOKENS} new tokens", size(caches["all"]), "", size(caches["pruned"]), "")
    return table


def notes(found: Plain) -> list[str]:
    """The sentence, what stands behind the numbers, and whether the model fits."""
    device = found["device"]
    figures = (
        f"{device['name']}: {device['flops'] / 1e12:.3g} TFLOP/s and {device['bandwidth'] / 1e9:.0f} GB/s, "
        f"{1000 * device['layer']:.2f} ms to launch a decoder layer"
    )
    lines = [
        found["verdict"],
        f"Estimated, not measured (docs/estimate.md says how far off). {figures}.",
    ]
    needed = found["weights"] + found["kv_cache"]["all"]
    if device["memory"] is not None and needed > device["memory"]:
        lines.append(f"weights and cache take {size(needed)}: more than this device has")
    return lines


def _plain(stage: Stage) -> Plain:
    causes = {name: 1000 * getattr(stage, name) for name in ("arithmetic", "bandwidth", "launches")}
    return {"ms": 1000 * stage.seconds, "bound": stage.bound if stage.seconds else None, **causes}


def _cells(cell: Plain) -> tuple[str, str]:
    return _ms(cell["ms"]), cell["bound"] or ""


def _ms(value: float) -> str:
    return milliseconds({"median": value / 1000, "quartiles": [0, 0]})
