"""The state that comes with a window is the state that is asked for alone."""

from __future__ import annotations

import random
from pathlib import Path

from app.samples import sample_spec
from app.sessions import SessionPool
from emulator.samples import SAMPLES
from emulator.trace import ImageFile, TraceReader


def test_state_with_a_window_equals_the_state_alone(tmp_path: Path) -> None:
    sample = next(sample for sample in SAMPLES if sample.cpus > 1)
    images = [
        ImageFile("kernel", sample.kernel, sample.kernel_bytes()),
        ImageFile("purgatory", sample.purgatory, sample.purgatory_bytes()),
    ]
    path = tmp_path / "run.bootflow"
    with SessionPool(keep_spare=False) as pool:
        assert pool.record("run", path, sample_spec(sample), images).status == "finished"
        with TraceReader(path) as reader:
            last = reader.last_tick
        pick = random.Random(4)
        for tick in (0, 1, last, *(pick.randrange(last) for _ in range(12))):
            alone = pool.query("run", path, {"q": "state", "tick": tick})
            question = {"q": "window", "tick": tick, "before": 28, "after": 28}
            plain = pool.query("run", path, question)
            both = pool.query("run", path, question | {"state": True})
            assert both["state"] == alone, tick
            assert both["steps"] == plain["steps"]
            assert "state" not in plain
