"""The kernel of `select_residual` on a GPU: a symmetric matrix in tiles, and dependent steps by who comes last.

Programs of one image fill the tiles of its Gram matrix. Each then counts itself, and the one that counts
last runs up to ``PANEL`` steps of pivoted Cholesky; nobody waits. A further launch takes the panel out of
the matrix (``FRESH`` false), and again the last one runs the next steps.

The matrix and the factor are in units of the features, energies relative to the row's own. Steps stop, and
their count is all the caller learns, as soon as rounding could change a choice or nothing is left.
"""

import triton
import triton.language as tl

VANISHED = tl.constexpr(1e-30)  # of the best score there was: from here on float32 loses digits of weights
LEAST, MOST = tl.constexpr(1e-28), tl.constexpr(1e30)  # squared lengths whose products are exact in float32


@triton.jit(do_not_specialize=["start", "stop"])  # no compilation per budget
def select_kernel(
    features, weight, first, gram, factor, state, order, arrived, n, d, pitch, start, stop,
    stride_item, stride_row, stride_column,
    FRESH: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_FIRST: tl.constexpr, BY_LENGTH: tl.constexpr,
    OPERAND: tl.constexpr, SUM: tl.constexpr, TIE: tl.constexpr, DOUBT: tl.constexpr, LOST: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, PANEL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Steps ``start`` to ``start + PANEL`` of all images: grid (tiles of the lower half, images)."""
    item = tl.program_id(1).to(tl.int64)
    gram += item * n * pitch
    factor += item * PANEL * pitch
    state += item * 3 * pitch
    order += item * (stop + 1)
    going = True
    if not FRESH:
        going = tl.load(order + stop) == start  # else this image stopped before
    if going:
        row, column = _tile_of(tl.program_id(0))
        if FRESH:
            own = features + item * stride_item
            _gram_tile(
                own, gram, n, d, pitch, row, column, stride_row, stride_column, OPERAND, SUM, TILE, CHUNK
            )  # fmt: skip
        else:
            _trailing_tile(gram, factor, n, pitch, row, column, SUM, TILE, PANEL)
    tl.debug_barrier()  # all threads' stores, before one thread's release
    arrived += start // PANEL * tl.num_programs(1) + item
    place = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    if going & (place == tl.num_programs(0) - 1):
        if FRESH:
            _begin(weight + item * n, gram, state, n, pitch, HAS_WEIGHT, BY_LENGTH, SUM, BLOCK)
            tl.debug_barrier()
        _steps(
            first + item, gram, factor, state, order, n, pitch, start, stop,
            HAS_FIRST, SUM, TIE, DOUBT, LOST, PANEL, ROWS, BLOCK,
        )  # fmt: skip


@triton.jit
def _tile_of(number):
    """Row and column of a tile of the lower half, counted row by row."""
    row = ((tl.sqrt(8.0 * number + 1.0) - 1.0) * 0.5).to(tl.int32)
    row += ((row + 1) * (row + 2) // 2 <= number).to(tl.int32)  # the root is rounded
    row -= (row * (row + 1) // 2 > number).to(tl.int32)
    return row, number - row * (row + 1) // 2


@triton.jit
def _gram_tile(
    features, gram, n, d, pitch, row, column, stride_row, stride_column,
    OPERAND: tl.constexpr, SUM: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    rows, columns, inner = row * TILE + tl.arange(0, TILE), column * TILE + tl.arange(0, TILE), tl.arange(0, CHUNK)
    left = features + rows[:, None].to(tl.int64) * stride_row + inner[None, :].to(tl.int64) * stride_column
    right = features + columns[None, :].to(tl.int64) * stride_row + inner[:, None].to(tl.int64) * stride_column
    tile = tl.full((TILE, TILE), 0, SUM)
    for done in range(0, d, CHUNK):
        inside = inner < d - done
        one = tl.load(left, mask=(rows[:, None] < n) & inside[None, :], other=0.0).to(OPERAND)
        other = tl.load(right, mask=(columns[None, :] < n) & inside[:, None], other=0.0).to(OPERAND)
        tile = tl.dot(one, other, tile, input_precision="ieee", out_dtype=SUM)
        left += CHUNK * stride_column
        right += CHUNK * stride_column
    if row == column:
        tile = _marked(features, tile, n, d, row, stride_row, stride_column, OPERAND, TILE, CHUNK)
    _store_twice(gram, tile, n, pitch, row, column, TILE)


@triton.jit
def _marked(
    features, tile, n, d, row, stride_row, stride_column,
    OPERAND: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile of the diagonal, NaN where a row that is not zero is of a length whose products lose digits."""
    rows, inner = row * TILE + tl.arange(0, TILE), tl.arange(0, CHUNK)
    diagonal = tl.arange(0, TILE)[:, None] == tl.arange(0, TILE)[None, :]
    length = tl.sum(tl.where(diagonal, tile, 0.0), axis=1)
    odd = (rows < n) & ~((length >= LEAST) & (length <= MOST))  # NaN is
    if tl.max(odd.to(tl.int32), axis=0) > 0:
        left = features + rows[:, None].to(tl.int64) * stride_row + inner[None, :].to(tl.int64) * stride_column
        filled = tl.full((TILE,), 0, tl.int32)
        for done in range(0, d, CHUNK):
            mask = (rows[:, None] < n) & (inner < d - done)[None, :]
            one = tl.load(left, mask=mask, other=0.0).to(OPERAND)
            filled = tl.maximum(filled, tl.max((one != 0.0).to(tl.int32), axis=1))
            left += CHUNK * stride_column
        tile = tl.where(diagonal & (odd & (filled > 0))[:, None], float("nan"), tile)
    return tile


@triton.jit
def _trailing_tile(
    gram, factor, n, pitch, row, column, SUM: tl.constexpr, TILE: tl.constexpr, PANEL: tl.constexpr
):  # fmt: skip
    rows, columns, steps = row * TILE + tl.arange(0, TILE), column * TILE + tl.arange(0, TILE), tl.arange(0, 16)
    known = tl.full((TILE, TILE), 0, SUM)
    for done in range(0, PANEL, 16):
        line = (done + steps) * pitch
        one = tl.load(factor + line[None, :] + rows[:, None], mask=rows[:, None] < n, other=0.0)
        other = tl.load(factor + line[:, None] + columns[None, :], mask=columns[None, :] < n, other=0.0)
        known = tl.dot(one, other, known, input_precision="ieee", out_dtype=SUM)
    mask = (rows[:, None] < n) & (columns[None, :] < n)
    tile = tl.load(gram + rows[:, None] * pitch + columns[None, :], mask=mask, other=0.0)
    _store_twice(gram, tile - known, n, pitch, row, column, TILE)


@triton.jit
def _store_twice(gram, tile, n, pitch, row, column, TILE: tl.constexpr):
    rows, columns = row * TILE + tl.arange(0, TILE), column * TILE + tl.arange(0, TILE)
    mask = (rows[:, None] < n) & (columns[None, :] < n)
    tl.store(gram + rows[:, None] * pitch + columns[None, :], tile, mask=mask)
    if row != column:  # a column is read as a row, which is contiguous
        tl.store(gram + columns[:, None] * pitch + rows[None, :], tl.trans(tile), mask=tl.trans(mask))


@triton.jit
def _begin(
    weight, gram, state, n, pitch,
    HAS_WEIGHT: tl.constexpr, BY_LENGTH: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """State of the first step: energies, weights of free rows (the largest 1), inverse lengths."""
    index = tl.arange(0, BLOCK)
    inside = index < n
    length = tl.load(gram + index * (pitch + 1), mask=inside, other=0.0, cache_modifier=".cg")
    score = tl.full((BLOCK,), 1, tl.float64)
    if HAS_WEIGHT:
        score = tl.load(weight + index, mask=inside, other=0.0)
    if BY_LENGTH:
        score *= length
    score = tl.where(length > 0, score, 0.0)  # NaN too
    peak = tl.max(score, axis=0)
    score = tl.where(peak > 0, score / tl.where(peak > 0, peak, 1.0), 0.0)
    fine = tl.max((length != length).to(tl.int32), axis=0) == 0
    padded, safe = index < pitch, tl.where(length > 0, length, 1.0)
    tl.store(state + index, (length > 0).to(SUM), mask=padded)
    tl.store(state + pitch + index, tl.where(fine, score, -1.0).to(SUM), mask=padded)  # no step at all
    tl.store(state + 2 * pitch + index, tl.where(length > 0, 1 / tl.sqrt(safe), 0.0), mask=padded)


@triton.jit
def _steps(
    first, gram, factor, state, order, n, pitch, start, stop,
    HAS_FIRST: tl.constexpr, SUM: tl.constexpr, TIE: tl.constexpr, DOUBT: tl.constexpr, LOST: tl.constexpr,
    PANEL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.arange(0, BLOCK)
    padded = index < pitch  # a multiple of 16, so that loads are wide
    energy = tl.load(state + index, mask=padded, other=0.0)
    weight = tl.load(state + pitch + index, mask=padded, other=0.0)
    inverse = tl.load(state + 2 * pitch + index, mask=padded, other=0.0)
    heaviest = tl.max(weight, axis=0)  # or more: rows kept since count until it matters
    going = tl.min(weight, axis=0) >= 0
    step = start
    end = tl.minimum(start + PANEL, stop)
    while going & (step < end):
        scores = weight * energy
        best = tl.max(scores, axis=0)
        chosen = tl.min(tl.where(scores >= best * (1 - TIE), index, BLOCK), axis=0)
        going = best > VANISHED
        if HAS_FIRST:
            chosen = tl.where(step == 0, tl.load(first).to(tl.int32), chosen)
            going = going | (step == 0)
        pivot = tl.sum(tl.where(index == chosen, energy, 0.0), axis=0)
        going = going & ((pivot > DOUBT) | (step == 0))
        if best <= heaviest * (DOUBT + LOST):  # a row of uncertain energy could win
            heaviest = tl.max(weight, axis=0)
            rivals = tl.where((energy <= DOUBT) & (weight > 0), weight * (energy + LOST), 0.0)
            going = going & ((tl.max(rivals, axis=0) < best) | (step == 0))
        if going:
            own = tl.load(state + 2 * pitch + chosen)
            share = _column(gram, factor, n, pitch, chosen, step - start, ROWS, BLOCK)
            share *= tl.where(pivot > 0, own / tl.sqrt(tl.where(pivot > 0, pivot, 1.0)), 0.0)
            tl.store(factor + (step - start) * pitch + index, share, mask=padded)
            share *= inverse
            energy -= share * share
            weight = tl.where(index == chosen, 0.0, weight)
            tl.store(order + step, chosen)
            tl.debug_barrier()  # the next step reads the factor by other threads
            step += 1
    tl.store(order + stop, step)
    tl.store(state + index, energy, mask=padded)
    tl.store(state + pitch + index, weight, mask=padded)


@triton.jit
def _column(gram, factor, n, pitch, chosen, count, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The column of a row without the part of the rows kept in this panel."""
    index, lines = tl.arange(0, BLOCK), tl.arange(0, ROWS)
    padded = index < pitch
    column = tl.load(gram + chosen * pitch + index, mask=padded, other=0.0, cache_modifier=".cg")
    for done in range(0, count, ROWS):
        line = done + lines
        share = tl.load(factor + line * pitch + chosen, mask=line < count, other=0.0)
        known = (line < count)[:, None] & padded[None, :]
        block = tl.load(factor + line[:, None] * pitch + index[None, :], mask=known, other=0.0)
        column -= tl.sum(block * share[:, None], axis=0)
    return tl.where(index < n, column, 0.0)  # between n and pitch the matrix was never written
