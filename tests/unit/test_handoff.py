"""The hand-off tables: complete, unambiguous, sourced."""

import pytest

from emulator import handoff


def test_stage_letters_and_ids_are_the_published_ones() -> None:
    published = "O hand-over H hold P purgatory D digest K head R relocate C copy E early_setup"
    published += " S start_kernel J joins X stopped"
    words = published.split()
    assert [(s.letter, s.id) for s in handoff.STAGES] == list(
        zip(words[::2], words[1::2], strict=True)
    )
    assert len(handoff.STAGE_BY_LETTER) == len(handoff.STAGE_BY_ID) == len(handoff.STAGES)


@pytest.mark.parametrize(
    "table", ["LOW_FIELDS", "FLAGS", "PURGATORY_SYMBOLS", "ENTRY_CONTRACTS", "STAGES"]
)
def test_every_row_says_where_it_comes_from(table: str) -> None:
    rows = getattr(handoff, table)
    assert rows
    assert all(row.source for row in rows)


def test_abi_offsets() -> None:
    at = {row.name: row.at for row in handoff.LOW_FIELDS}
    assert at["__run_at_load"] == handoff.FLAG_OFFSET == 0x5C
    assert at["__secondary_hold"] == handoff.SECONDARY_ENTRY == 0x60
    assert at["__secondary_hold_spinloop"] is None
    assert handoff.RUN_AT_ZERO_MAGIC.to_bytes(4, "big") == b"run0"
