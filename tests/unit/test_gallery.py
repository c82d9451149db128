"""How the gallery's rows stand together: threads, topics, pairs that ask to be compared."""

from __future__ import annotations

from app.canvas import Drawing
from app.pages import GalleryRow, Group, Head, gallery_groups

PICTURE = Drawing(1, 1, "", "", "", ())


def row(name: str, *, beside: str = "", mail: str = "", ended: bool = True) -> GalleryRow:
    head = Head(name, name, "finished", "", (), ended, True, "stay", "", mail)
    return GalleryRow(head, "STAYS", True, "", 1, PICTURE if ended else None, beside=beside)


def names(group: Group) -> list[str]:
    return [r.head.id for r in group.rows]


def test_nothing_is_shown_twice_and_empty_groups_are_not_shown() -> None:
    groups = gallery_groups(
        [row("mine")], [row("s3"), row("s1"), row("s2")], [row("new"), row("a", mail="m@x")],
        [("two", ("s1", "s2")), ("none", ("gone",))],
    )  # fmt: skip
    assert [(g.title, names(g)) for g in groups] == [
        ("Yours", ["mine"]), ("Thread m@x", ["a"]), ("Recent", ["new"]), ("two", ["s1", "s2"]),
        ("Featured", ["s3"]),
    ]  # fmt: skip


def test_neighbours_that_are_to_be_read_beside_are_a_pair() -> None:
    group = Group("t", "", (row("a", beside="b"), row("b", beside="a"), row("c", beside="b")))
    blocks = [([r.head.id for r in rows], pair) for rows, pair in group.blocks]
    assert blocks == [(["a", "b"], ("a", "b")), (["c"], None)]


def test_what_still_runs_cannot_be_compared() -> None:
    group = Group("t", "", (row("a", ended=False), row("b", beside="a")))
    assert [pair for _, pair in group.blocks] == [None, None]


def test_a_thread_of_two_is_a_pair_the_older_first() -> None:
    group = Group("t", "", (row("new", mail="m@x"), row("old", mail="m@x")), "m@x")
    assert group.blocks == ((group.rows, ("old", "new")),)
