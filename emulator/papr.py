"""TABLE: what a hypercall answers, and the flags of those for the hashed page table.

What it is: numbers that the PAPR defines. What it is not: behaviour (`firmware`, `hashtable`).
Source: LoPAR 1.1, 14.5.4.1 (page frame table access) and 14.5.3 (return codes); Linux
arch/powerpc/include/asm/hvcall.h.
"""

from __future__ import annotations

from typing import Final

U64: Final = (1 << 64) - 1

H_SUCCESS: Final = 0
H_FUNCTION: Final = -2 & U64
H_PARAMETER: Final = -4 & U64
H_PTEG_FULL: Final = -6 & U64
H_NOT_FOUND: Final = -7 & U64

H_EXACT: Final = 1 << 24
"""H_ENTER: this very entry, not any of its group."""
H_READ_4: Final = 1 << 37
H_AVPN: Final = 1 << 32
"""H_REMOVE, H_PROTECT: only if the entry's AVPN is the one given."""
H_ANDCOND: Final = 1 << 33
"""H_REMOVE: only if the entry and the mask given have no bit in common."""

BULK_TYPE: Final = 3 << 62
BULK_REQUEST: Final = 1 << 62
BULK_RESPONSE: Final = 2 << 62
BULK_END: Final = 3 << 62
BULK_CODE_SHIFT: Final = 60
BULK_NOT_FOUND: Final = 1
BULK_PARAMETER: Final = 2
BULK_RC_SHIFT: Final = 51
"""From R and C of an entry's second doubleword to bits 4:5 of the response."""
BULK_FLAGS: Final = 3 << 56
BULK_ANDCOND: Final = 1 << 56
BULK_AVPN: Final = 2 << 56
BULK_INDEX: Final = (1 << 56) - 1
BULK_PAIRS: Final = 4

PROCESS_TABLE_OPERATION: Final = 0x18
PROCESS_TABLE_NEW: Final = 0x18
PROCESS_TABLE_DEREGISTER: Final = 0x10
PROCESS_TABLE_TYPE: Final = 0x06
PROCESS_TABLE_RADIX: Final = 0x04
PROCESS_TABLE_HASH: Final = 0x00
"""H_REGISTER_PROC_TBL: the hash MMU with an SLB, and no table."""
