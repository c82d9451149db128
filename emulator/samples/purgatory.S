# The sample purgatory: what runs between two kernels, in the shape that the kexec loader expects.
#
# An ET_REL file with the symbols that kexec-tools patches. It checks the SHA-256 digest of what
# was loaded, keeps a crashed kernel's first 64 KiB, tells the new kernel by the flag whether to
# stay where it was loaded, and enters it. The code is our own.
# Build: README.md beside this file.

    .include "macros.S"

# Switches (as --defsym NAME=VALUE). The first are mechanisms of their time:
    .macro switch name, default
    .ifndef \name
    .set \name, \default
    .endif
    .endm
    switch SENDS, 2             # 0: no flag; 1: __kdump_flag, by r6; 2: __run_at_load, as merged;
                                # 3: the thread's snippet 2 as posted; 4: as it was meant
    switch RESTORE, 0           # 1: put the kernel's first word, which the loader left out, to 0
    switch SPINLOOP, 0x38       # where this kernel's secondaries look; 0x8 in 2008
# The others are mistakes:
    switch WRONG_OFFSET, 0      # the flag goes to 0x58
    switch WRONG_WIDTH, 0       # the flag of 4 bytes is loaded as 8, and stored as 4
    switch BAD_DIGEST, 0        # the digest is not the one that the loader noted
    switch CLOBBER, 0           # low memory is cleared while secondaries spin there
    switch REENTER, 0           # secondaries are called here once more, and enter at this offset ..
    switch REENTER_R3, 0        # .. with r3 so much too large
    switch BY_SECONDARY, 0      # a secondary writes the flag, after so many turns of a loop
    switch NO_DELAY, 0          # nobody waits for the secondaries
    .set CALLS_BACK, REENTER | BY_SECONDARY

    .set REGIONS, 16            # rows of sha256_regions, as in kexec-tools
    .set BACKUP_BYTES, 0x10000

# address_of RT, NAME: the 64-bit address, by the five relocations that need no TOC.
    .macro address_of rt, name
    lis \rt, \name@highest
    ori \rt, \rt, \name@higher
    sldi \rt, \rt, 32
    oris \rt, \rt, \name@h
    ori \rt, \rt, \name@l
    .endm

# toc_address_of RT, NAME: the same by r2.
    .macro toc_address_of rt, name
    addis \rt, 2, \name@toc@ha
    addi \rt, \rt, \name@toc@l
    .endm

# The loader replaces these 0x100 bytes, but for the first word, by the new kernel's. The old
# kernel copies them to 0, and sends the secondaries to 0x60 there.
    .text
    .balign 256
    .globl purgatory_start
    .if SENDS >= 2
    .globl run_at_load
    .endif
purgatory_start:                # boot CPU; r3 = its physical id, r4 = this address, r5 = 0
    b master
    .if SENDS == 2
    .org purgatory_start + 0x5c
run_at_load:                    # the new kernel's flag, as the loader has decided it
    .long 0
    .size run_at_load, 4
    .endif
    .org purgatory_start + 0x60
slave:
    b slave
    .org purgatory_start + 0x100
    .size purgatory_start, 0x100

master:                         # local, so that the branch above needs no relocation
    isync
    mr 17, 3
    .if SENDS == 1
    mr 18, 6                    # 0xfeed1234 if the old kernel has crashed
    .endif
    address_of 6, my_toc
    ld 2, 0(6)
    address_of 6, stack
    ld 1, 0(6)
    addi 1, 1, -112
    call purgatory

    .if CALLS_BACK
    address_of 6, slave_again
    std 6, SPINLOOP(0)          # the hold loop lets the secondaries go: to us
    .endif
    .if NO_DELAY == 0
    lis 6, 1                    # 65,536 passes: time for the secondaries to reach their loop
    mtctr 6
1:  bdnz 1b
    .endif
    .if CLOBBER
    li 6, 32
    mtctr 6
    li 6, 0
    li 7, 0
1:  stdx 7, 0, 6
    addi 6, 6, 8
    bdnz 1b
    .endif

    address_of 6, dt_offset
    ld 16, 0(6)
    li 4, 20                    # the device tree's version; boot_cpuid_phys came with 2
    load_be32 5, 16, 4
    cmpwi 5, 2
    blt 1f
    li 4, 28
    store_be32 17, 16, 4        # boot_cpuid_phys
1:  address_of 6, opal_base
    ld 8, 0(6)
    address_of 6, opal_entry
    ld 9, 0(6)
    address_of 6, kernel
    ld 4, 0(6)
    .if SENDS == 1              # kexec-tools of October 2008
    lis 6, 0
    ori 6, 6, 0xfeed
    sldi 6, 6, 16
    ori 6, 6, 0x1234
    cmpd 18, 6
    bne 2f
    li 7, 1
    std 7, 0x18(4)              # __kdump_flag, 64 bits
2:
    .endif
    .if SENDS == 2
    address_of 6, run_at_load
    .if WRONG_WIDTH
    ld 7, 0(6)
    .else
    lwz 7, 0(6)
    .endif
    .if WRONG_OFFSET
    stw 7, 0x58(4)
    .elseif BY_SECONDARY == 0
    stw 7, 0x5c(4)              # the flag goes into the new kernel itself
    .endif
    .endif
    .if SENDS >= 3              # the thread's code snippet 2, word for word but for LOADADDR
    address_of 6, run_at_load
    ld 18, 0(6)
    .if SENDS == 3
    cmpd 18, 1                  # as posted: r18 with r1
    .else
    cmpdi 18, 1                 # as meant: r18 with the number 1
    .endif
    bne skip
    li 7, 1
    stw 7, 92(4)                # mark __run_at_load flag at kernel
skip:
    .endif
    .if RESTORE | (SENDS == 1) | (SENDS >= 3)
    lwz 7, 0(4)                 # get the first instruction that we stole
    stw 7, 0(0)                 # and put it in the slave loop at 0
    .endif
    mr 3, 16                    # r3 = device tree, r4 = kernel, r5 = 0: the kernel's entry ABI
    .if BIG
    li 5, 0
    mtctr 4
    bctr
    .else
    mtsrr0 4
    mfmsr 5
    clrrdi 5, 5, 1              # a kernel is entered big-endian
    mtsrr1 5
    li 5, 0
    rfid
    .endif
    .size master, . - master

    .if CALLS_BACK
# slave_again: a secondary that the hold loop let go; r3 = its physical id, in its kernel's order.
slave_again:
    mr 24, 3
    li 5, 0
    std 5, SPINLOOP(0)          # once is enough
    .if BY_SECONDARY
    lis 5, BY_SECONDARY >> 16
    ori 5, 5, BY_SECONDARY & 0xffff
    mtctr 5
1:  bdnz 1b
    address_of 6, kernel
    ld 6, 0(6)
    address_of 7, run_at_load
    lwz 7, 0(7)
    stw 7, 0x5c(6)
    .endif
    addi 3, 24, REENTER_R3
    li 4, 1
    .if REENTER
    li 10, REENTER
    .else
    li 10, 0x60
    .endif
    mfmsr 11
    clrrdi 11, 11, 1            # big-endian, as kexec_wait sends them
    mtsrr0 10
    mtsrr1 11
    rfid
    .size slave_again, . - slave_again
    .endif

# purgatory: greet if asked to, check the digest unless told not to, save a crashed kernel's start.
func purgatory
    .if BIG == 0
0:  addis 2, 12, (.TOC. - 0b)@ha    # for a caller from another module; ours has set r2
    addi 2, 2, (.TOC. - 0b)@l
    .localentry purgatory, . - 0b
    .endif
    mflr 28
    toc_address_of 30, greeting
    li 29, greeting_end - greeting
    call debug_text
    toc_address_of 4, skip_checks
    lwz 4, 0(4)
    cmpwi 4, 0
    bne 1f
    call verify_sha256_digest
    cmpwi 3, 0
    bne 3f
1:  toc_address_of 4, panic_kernel
    lwz 4, 0(4)
    cmpwi 4, 0
    beq 2f
    call crashdump_backup_memory
2:  mtlr 28
    blr
3:  toc_address_of 30, mismatch
    li 29, mismatch_end - mismatch
    call debug_text
digest_mismatch:
    b .                         # never start a kernel that was overwritten in memory
endfunc purgatory

# debug_text: r29 bytes at r30 to the console, if the loader has set `debug`.
func debug_text
    toc_address_of 4, debug
    lwz 4, 0(4)
    cmpwi 4, 0
    beqlr
    console_text
    blr
endfunc debug_text

# crashdump_backup_memory: the first 64 KiB of a crashed kernel, to where the dump will find them.
func crashdump_backup_memory
    toc_address_of 4, backup_start
    ld 4, 0(4)
    cmpdi 4, 0
    beqlr
    lis 5, BACKUP_BYTES >> 19   # 8 bytes a pass
    ori 5, 5, (BACKUP_BYTES >> 3) & 0xffff
    mtctr 5
    addi 4, 4, -8
    li 6, -8
1:  ldu 5, 8(6)
    stdu 5, 8(4)
    bdnz 1b
    blr
endfunc crashdump_backup_memory

# verify_sha256_digest: r3 = 0 if the regions have the digest that the loader has noted, else 1.
# r24 row, r25 rows left, r26 bytes so far, r27 block, r23 bytes in it, r22/r21 region.
func verify_sha256_digest
    mflr 20
    .if BAD_DIGEST
    toc_address_of 3, sha256_digest
    lbz 4, 0(3)
    xori 4, 4, 1
    stb 4, 0(3)
    .endif
    toc_address_of 3, sha256_state
    toc_address_of 4, sha256_initial
    li 5, 8
    mtctr 5
    addi 3, 3, -4
    addi 4, 4, -4
1:  lwzu 5, 4(4)
    stwu 5, 4(3)
    bdnz 1b
    toc_address_of 27, sha256_block
    toc_address_of 24, sha256_regions
    li 25, REGIONS
    li 26, 0
    li 23, 0
2:  ld 22, 0(24)                # start
    ld 21, 8(24)                # length, 0 in unused rows
    add 26, 26, 21
3:  cmpdi 21, 0
    beq 4f
    lbz 5, 0(22)
    call sha256_update
    addi 22, 22, 1
    addi 21, 21, -1
    b 3b
4:  addi 24, 24, 16
    addi 25, 25, -1
    cmpdi 25, 0
    bne 2b
    li 5, 0x80                  # the end: 0x80, zeros, the length in bits, big end first
    call sha256_update
5:  cmpdi 23, 56
    beq 6f
    li 5, 0
    call sha256_update
    b 5b
6:  sldi 26, 26, 3
    li 25, 8
7:  rotldi 26, 26, 8
    clrldi 5, 26, 56
    call sha256_update
    addi 25, 25, -1
    cmpdi 25, 0
    bne 7b
    toc_address_of 5, sha256_state
    toc_address_of 6, sha256_digest
    li 7, 0
    li 3, 0
8:  lwzx 8, 5, 7
    load_be32 9, 6, 7
    cmplw 8, 9
    beq 9f
    li 3, 1
9:  addi 7, 7, 4
    cmpdi 7, 32
    bne 8b
    mtlr 20
    blr
endfunc verify_sha256_digest

# sha256_update: one byte, r5, into the block at r27 with r23 bytes; a full block is digested.
func sha256_update
    stbx 5, 27, 23
    addi 23, 23, 1
    cmpdi 23, 64
    bnelr
    li 23, 0
    .if BIG
    b .sha256_process
    .else
    b sha256_process
    .endif
endfunc sha256_update

# sha256_process: the block at r27 into sha256_state (FIPS 180-4, 6.2.2).
# Changes r0, r3-r12, CTR; keeps r14-r21 on the stack. Upper halves of registers are not kept
# clean: rotations and stores look at the lower 32 bits only.
func sha256_process
    stdu 1, -144(1)
    .irp r, 14,15,16,17,18,19,20,21
    std \r, 48 + 8 * (\r - 14)(1)
    .endr
    toc_address_of 5, sha256_schedule
    li 7, 0
1:  load_be32 8, 27, 7          # words 0..15 are the block
    stwx 8, 5, 7
    addi 7, 7, 4
    cmpdi 7, 64
    bne 1b
    addi 6, 5, 64
    li 0, 48
    mtctr 0
2:  lwz 8, -60(6)               # sigma0(w[t-15])
    rotlwi 9, 8, 25
    rotlwi 10, 8, 14
    xor 9, 9, 10
    srwi 10, 8, 3
    xor 9, 9, 10
    lwz 8, -8(6)                # sigma1(w[t-2])
    rotlwi 10, 8, 15
    rotlwi 11, 8, 13
    xor 10, 10, 11
    srwi 11, 8, 10
    xor 10, 10, 11
    add 9, 9, 10
    lwz 10, -64(6)
    add 9, 9, 10
    lwz 10, -28(6)
    add 9, 9, 10
    stw 9, 0(6)
    addi 6, 6, 4
    bdnz 2b
    toc_address_of 4, sha256_state
    .irp r, 14,15,16,17,18,19,20,21
    lwz \r, 4 * (\r - 14)(4)    # a..h
    .endr
    toc_address_of 6, sha256_constants
    addi 5, 5, -4
    addi 6, 6, -4
    li 0, 64
    mtctr 0
3:  rotlwi 7, 18, 26            # Sigma1(e)
    rotlwi 8, 18, 21
    xor 7, 7, 8
    rotlwi 8, 18, 7
    xor 7, 7, 8
    add 7, 7, 21                # + h
    and 8, 18, 19               # + Ch(e, f, g)
    andc 9, 20, 18
    xor 8, 8, 9
    add 7, 7, 8
    lwzu 8, 4(5)                # + w[t]
    add 7, 7, 8
    lwzu 8, 4(6)                # + k[t]
    add 7, 7, 8                 # = t1
    rotlwi 8, 14, 30            # Sigma0(a)
    rotlwi 9, 14, 19
    xor 8, 8, 9
    rotlwi 9, 14, 10
    xor 8, 8, 9
    and 9, 14, 15               # + Maj(a, b, c)
    and 10, 14, 16
    xor 9, 9, 10
    and 10, 15, 16
    xor 9, 9, 10
    add 8, 8, 9                 # = t2
    mr 21, 20
    mr 20, 19
    mr 19, 18
    add 18, 17, 7
    mr 17, 16
    mr 16, 15
    mr 15, 14
    add 14, 7, 8
    bdnz 3b
    .irp r, 14,15,16,17,18,19,20,21
    lwz 7, 4 * (\r - 14)(4)
    add 7, 7, \r
    stw 7, 4 * (\r - 14)(4)
    .endr
    .irp r, 14,15,16,17,18,19,20,21
    ld \r, 48 + 8 * (\r - 14)(1)
    .endr
    addi 1, 1, 144
    blr
endfunc sha256_process

    .section .rodata
    .balign 16
greeting:
    .ascii "I'm in purgatory\n"
greeting_end:
    .balign 16
mismatch:
    .ascii "purgatory: the digest does not match, not starting the kernel\n"
mismatch_end:
    .balign 16
sha256_initial:                 # FIPS 180-4, 5.3.3
    .long 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a
    .long 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
sha256_constants:               # FIPS 180-4, 4.2.2
    .long 0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5
    .long 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5
    .long 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3
    .long 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174
    .long 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc
    .long 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da
    .long 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7
    .long 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967
    .long 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13
    .long 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85
    .long 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3
    .long 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070
    .long 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5
    .long 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3
    .long 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208
    .long 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2

# What the loader patches; names and sizes are those of kexec-tools.
    .macro patched name, size
    .globl \name
    .balign 8
    .type \name, @object
\name:
    .space \size
    .size \name, \size
    .endm

    .data
    .if SENDS >= 3
    patched run_at_load, 8      # the thread's snippet 3 sets it under KEXEC_ON_CRASH
    .endif
    patched sha256_regions, REGIONS * 16    # rows of start, length
    patched sha256_digest, 32
    patched skip_checks, 4
    patched panic_kernel, 4
    patched debug, 4
    patched opal_base, 8
    patched opal_entry, 8
    patched kernel, 8
    patched dt_offset, 8
    patched my_toc, 8
    patched stack, 8
    patched backup_start, 8

    .section .toc, "aw"         # the loader computes r2 from where this section lies
    .balign 8
    .quad purgatory_start

    .bss
    .balign 16
sha256_state:
    .space 32
sha256_block:
    .space 64
sha256_schedule:
    .space 256
