"""The code that one CPU has translated, and what makes translations wrong.

What it is: the pages that a CPU fetched code from, as they were then; the copies of those that it
may write itself; and the dropping of translations. What it is not: the noticing, which is native
(`native._open_code_page`, `native.on_page_write`), or the CPU's engine (`cpu`).

Three things make a translation wrong and are not seen by Unicorn: another CPU writes the code; a
write goes through the MMIO window of a watched page; the CPU itself writes a second time to a page
that holds code, because Unicorn watches for the first only.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from emulator import native
from emulator.cpu import PAGE_BYTES, Cpu, State


class CodePages:
    """The code pages of one CPU.

    Args:
        cpu: whose. ram: what all CPUs share. state: the array that the native hooks work on.
    """

    def __init__(self, cpu: Cpu, ram: mmap.mmap, state: State) -> None:
        self._cpu, self._ram, self._state = cpu, ram, state
        pages = len(ram) // PAGE_BYTES
        self._fetched: dict[int, bytes] = {}
        """Physical pages it has fetched code from, as they were then."""
        self._prepared = np.zeros(pages, np.uint8)
        """For each page native.PREPARED_* of the aliases under which it may be fetched."""
        self._opened = np.zeros(pages, np.uint16)
        """For each page 1 + the number of its copy, 0 if there is none."""
        self._copies = np.zeros(native.OPENED_MAX * PAGE_BYTES, np.uint8)
        self._opened_count = 0

    def enter(self, switched: bool) -> None:
        """Make them those that the native hooks speak of; `switched`: another CPU ran between."""
        if switched:
            self._drop_stale()
        s = self._state
        s[native.PREPARED_ADDR] = self._prepared.ctypes.data
        s[native.OPENED_ADDR] = self._opened.ctypes.data
        s[native.COPIES_ADDR] = self._copies.ctypes.data
        s[native.OPENED_COUNT] = self._opened_count
        s[native.FETCH_COUNT] = 0

    def leave(self) -> None:
        """Note the pages that were fetched from, for `enter`."""
        s = self._state
        self._opened_count = int(s[native.OPENED_COUNT])
        count = int(s[native.FETCH_COUNT])
        if max(count, len(self._fetched)) > native.FETCHED_MAX:  # start over with what is known
            self._cpu.drop_all_code()
            self._cpu.flush_tlb()
            self._fetched.clear()
        pages = s[native.FETCHED : native.FETCHED + min(count, native.FETCHED_MAX)]
        for page in np.unique(pages).tolist():
            self._fetched[page] = self._ram[page : page + PAGE_BYTES]

    def note_prepared(self, page: int, alias: int) -> None:
        """Its code hooks stand under this alias."""
        self._prepared[page // PAGE_BYTES] |= alias

    def forget_written(self, watch_pages: Sequence[int]) -> None:
        """Drop the translations of code that the CPU itself wrote."""
        written = int(self._state[native.WATCH_WRITTEN])
        for n, page in enumerate(watch_pages):
            if written >> n & 1:
                self._drop_page(page)
        if not written & native.CODE_WRITTEN:
            return
        stale = int(self._state[native.STALE_PAGE])
        if stale >= 0:
            self._drop_page(stale)
        else:
            self._drop_everything()

    def _drop_stale(self) -> None:
        """Drop the translations of pages that others wrote since this CPU ran last."""
        for page, content in self._fetched.items():
            if self._ram[page : page + PAGE_BYTES] != content:
                self._drop_page(page)
                self._fetched[page] = self._ram[page : page + PAGE_BYTES]

    def _drop_everything(self) -> None:
        """Drop every translation and all that is known about pages that may be written."""
        self._cpu.drop_all_code()
        self._cpu.flush_tlb()
        self._prepared[:] = 0
        self._opened[:] = 0
        self._state[native.OPENED_COUNT] = 0

    def _drop_page(self, page: int) -> None:
        """Drop every translation of a physical page, whatever address it ran under."""
        s = self._state
        s[native.PROBE] = page
        ea = native.PROBE_EA | page
        self._cpu.drop_code(ea, ea + PAGE_BYTES)
        s[native.PROBE] = -1
        self._cpu.flush_tlb()
        self._prepared[page // PAGE_BYTES] = 0
        slot = int(self._opened[page // PAGE_BYTES])
        if slot:
            at = (slot - 1) * PAGE_BYTES
            now = np.frombuffer(self._ram, np.uint8, PAGE_BYTES, page)
            self._copies[at : at + PAGE_BYTES] = now
