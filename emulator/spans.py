"""Which function a CPU was in, and for how long: spans from (tick, cpu, block start) rows.

What it is: pure; `spans_of` names and merges rows, `squeeze` brings any number of spans down to
what a timeline can show. What it is not: a picture.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from emulator.symbols import AddressMap

Span = dict[str, Any]


def spans_of(names: AddressMap, rows: npt.NDArray[np.int64], end: int) -> list[Span]:
    """Merge (tick, cpu, block start) rows into spans of one function on one CPU.

    Args:
        names: of the run, as they stand at the end of the stretch.
        rows: ticks are global; one CPU runs at a time, so a row ends where the next begins.
        end: tick at which the last row ends.

    Returns:
        {"cpu", "from", "to", "symbol", "blocks"}, ascending; `blocks`: how many rows it was made
        of.
    """
    if not len(rows):
        return []
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    nips, which = np.unique(rows[:, 2], return_inverse=True)
    symbols = [names.name_at(int(nip) % (1 << 64)).partition("+")[0] for nip in nips]
    ids = {symbol: n for n, symbol in enumerate(dict.fromkeys(symbols))}
    function = np.array([ids[symbol] for symbol in symbols], np.int64)[which.reshape(-1)]
    change = np.ones(len(rows), bool)
    change[1:] = (function[1:] != function[:-1]) | (rows[1:, 1] != rows[:-1, 1])
    at = np.flatnonzero(change)
    known = list(ids)
    ticks, cpus = rows[at, 0].tolist(), rows[at, 1].tolist()
    counts = np.diff(np.append(at, len(rows))).tolist()
    return [
        {"cpu": cpu, "from": start, "to": to, "symbol": known[name], "blocks": count}
        for cpu, start, to, name, count in zip(
            cpus, ticks, [*ticks[1:], end], function[at].tolist(), counts, strict=True
        )
        if to > start
    ]


def squeeze(spans: list[Span], begin: int, end: int, width: int, most: int) -> list[Span]:
    """Bring spans down to one a column and CPU, where there are more.

    Args:
        spans: ascending, disjoint.
        begin: first tick shown.
        end: tick after the last.
        width: columns to show them in.
        most: spans a CPU may have.

    Returns:
        per CPU the same spans if they are few enough; else for each column the function that took
        most of it, with `others`: how many more were in it, merged with equal neighbours.
    """
    result: list[Span] = []
    for cpu in sorted({span["cpu"] for span in spans}):
        own = [span for span in spans if span["cpu"] == cpu]
        result += own if len(own) <= most else _columns(own, begin, end, min(width, most))
    return sorted(result, key=lambda span: (span["from"], span["cpu"]))


def _columns(spans: list[Span], begin: int, end: int, width: int) -> list[Span]:
    shares: list[Counter[str]] = [Counter() for _ in range(width)]
    bounds: list[list[int]] = [[end, begin] for _ in range(width)]
    scale = width / (end - begin)
    for span in spans:
        first = int((span["from"] - begin) * scale)
        last = min(width - 1, int((span["to"] - 1 - begin) * scale))
        for column in range(first, last + 1):
            lo = max(span["from"], begin + int(column / scale))
            hi = min(span["to"], begin + int((column + 1) / scale))
            shares[column][span["symbol"]] += max(hi - lo, 1)
            bounds[column][0] = min(bounds[column][0], lo)
            bounds[column][1] = max(bounds[column][1], hi)
    merged: list[Span] = []
    for share, (lo, hi) in zip(shares, bounds, strict=True):
        if not share:
            continue
        symbol = share.most_common(1)[0][0]
        others = len(share) - 1
        if merged and merged[-1]["symbol"] == symbol and merged[-1]["to"] >= lo:
            merged[-1]["to"] = hi
            merged[-1]["others"] = max(merged[-1]["others"], others)
        else:
            row = {"cpu": spans[0]["cpu"], "from": lo, "to": hi, "symbol": symbol, "others": others}
            merged.append(row)
    return merged
