"""Who came first goes first; nothing here depends on how fast anything runs."""

import threading
import time
from collections.abc import Callable

from app.turns import Turns

PATIENCE = 30.0


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_turns_come_in_the_order_of_asking() -> None:
    turns, order = Turns(2), list[int]()
    assert turns.take(0)
    assert turns.take(0)

    def work(number: int) -> None:
        if turns.take(PATIENCE):
            order.append(number)
            turns.give()

    threads = []
    for number in range(20):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        wait_until(lambda: turns.waiting == len(threads))
    turns.give()  # one at a time goes through, so that the order is that of the turns
    for thread in threads:
        thread.join(PATIENCE)
    assert order == list(range(20))


def test_newcomer_does_not_overtake_who_was_woken() -> None:
    turns, order = Turns(1), list[str]()
    assert turns.take(0)
    woken = threading.Thread(target=lambda: turns.take(PATIENCE) and order.append("first"))
    woken.start()
    wait_until(lambda: turns.waiting == 1)
    turns.give()
    assert not turns.take(0)  # it is the other's already, though that one may not have run yet
    woken.join(PATIENCE)
    assert order == ["first"]
    turns.give()
    assert turns.take(0)


def test_who_gives_up_leaves_the_queue() -> None:
    turns = Turns(1)
    assert turns.take(0)
    assert not turns.take(0.001)
    assert turns.waiting == 0
    turns.give()
    assert turns.take(0)
