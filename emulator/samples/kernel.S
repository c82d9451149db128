# The sample kernel: the head of a PowerPC64 Linux kernel, as far as the hand-off sees it.
#
# It is entered like Linux, keeps the low 0x100 bytes of the ABI, reads __run_at_load twice,
# relocates itself, copies itself (or only its vectors) to 0, reaches early_setup and
# start_kernel, and releases its secondaries. After that every CPU spins: there is no system.
# It stays in real mode throughout. Symbols carry the names that Linux gives to the same places,
# so that bootflow recognises them; the code is our own.
# Build: README.md beside this file.

    .include "macros.S"

# Switches (as --defsym NAME=VALUE), for the kernels of other years:
    .macro switch name, default
    .ifndef \name
    .set \name, \default
    .endif
    .endm
    switch OLD, 0               # 1: the head of 2008: no endian trampoline, spinloop at 0x8
    switch FLAG, 2              # 0: none (2.6.27); 1: __kdump_flag (2.6.28-rc1); 2: __run_at_load
    switch MAGIC, 1             # 0: no "run0" at 0x5c (no CRASH_DUMP), although the flag is read
    switch ISERIES, 0           # 1: 0x20 holds the pointer that the iSeries hypervisor reads
    switch RELEASE, 0           # spinloop: 0 = code address; 1 = exactly 1; 2 = descriptor (ELFv1)
    switch PHYSICAL_START, 0    # where a kernel that does not relocate itself is linked to run

    .set FLAG_STAY, 1           # the flag: 1 = stay where loaded, anything else = go to 0
    .set R_PPC64_RELATIVE, 22

# swapped WORD: a big-endian instruction in a little-endian file.
    .macro swapped word
    .long ((\word & 0xff) << 24) | ((\word & 0xff00) << 8) | ((\word >> 8) & 0xff00) | (\word >> 24)
    .endm

# to_native: go on in the kernel's own byte order, whichever the CPU is in. Ten words.
# Read little-endian, the first word is `tdi 0,0,0x48`, which never traps, and the branch after
# it skips the rest. Read big-endian, the same four bytes are `b .+8`, into big-endian code.
# Changes r10, r11, LR, SRR0, SRR1. A big-endian kernel is entered big-endian and needs none.
    .macro to_native
    .if BIG == 0
    tdi 0, 0, 0x48
    b 76f
    swapped 0x429f0005          # bcl 20,31,.+4     LR = address of the next word
    swapped 0x7d4802a6          # mflr r10
    swapped 0x394a001c          # addi r10,r10,28   = label 76
    swapped 0x7d5a03a6          # mtsrr0 r10
    swapped 0x7d6000a6          # mfmsr r11
    swapped 0x696b0001          # xori r11,r11,1    MSR[LE]
    swapped 0x7d7b03a6          # mtsrr1 r11
    swapped 0x4c000024          # rfid
76:
    .endif
    .endm

    .section .head.text, "ax"
    .globl _stext, __start
_stext:
__start:                        # 0x00: boot CPU; r3 = device tree, r4 = where this lies, r5 = 0
    .if OLD
    b __start_initialization_multiplatform
    trap
    .org 0x8
    .else
    to_native
    b __start_initialization_multiplatform
    .org 0x38
    .endif
    .globl __secondary_hold_spinloop, __secondary_hold_acknowledge
__secondary_hold_spinloop:      # 0 = wait; else the address at which a secondary goes on
    .quad 0
__secondary_hold_acknowledge:   # the physical id of the last secondary that has arrived
    .quad 0

    .if FLAG == 1
    .org 0x18
    .globl __kdump_flag
__kdump_flag:
    .quad 0                     # nothing here says that a flag is meant
    .size __kdump_flag, 8
    .endif
    .if ISERIES
    .org 0x20
    .quad hvReleaseData - _stext    # an offset from KERNELBASE
    .endif

    .org 0x5c
    .if FLAG == 2
    .globl __run_at_load
__run_at_load:
    .if MAGIC
    .long 0x72756e30            # "run0": the kernel knows the flag; run at 0
    .else
    .long 0
    .endif
    .size __run_at_load, 4
    .endif

    .org 0x60
    .globl __secondary_hold
__secondary_hold:               # secondaries, in the copy of these bytes at 0; r3 = physical id
    .if OLD
    mfmsr 24
    ori 24, 24, 2               # MSR[RI]
    mtmsrd 24
    .else
    to_native
    .endif
    mr 24, 3
    std 24, (__secondary_hold_acknowledge - _stext)(0)
    sync
1:  ld 4, (__secondary_hold_spinloop - _stext)(0)
    .if RELEASE == 1
    cmpdi 4, 1
    bne 1b
    lis 4, .generic_secondary_smp_init@highest
    ori 4, 4, .generic_secondary_smp_init@higher
    sldi 4, 4, 32
    oris 4, 4, .generic_secondary_smp_init@high
    ori 4, 4, .generic_secondary_smp_init@l
    .else
    cmpdi 4, 0
    beq 1b
    .endif
    isync                       # nothing from before the release may have been fetched
    .if RELEASE == 2
    ld 4, 0(4)
    .endif
    mtctr 4
    mr 3, 24
    bctr
    .size __secondary_hold, . - __secondary_hold

# The vectors; .org fails if the hold loop above did not fit into the 0x100 bytes that kexec
# copies. Nothing here expects an exception, so each one stops its CPU where it can be seen.
    .irp vector, 100,200,300,380,400,480,500,600,700,800,900,a00,b00,c00,d00,e00,f00
    .org 0x\vector
    .globl exc_real_0x\vector
exc_real_0x\vector:
    b .
    .size exc_real_0x\vector, 4
    .endr

    .org 0x1000
    .globl __end_interrupts
__end_interrupts:               # with the flag set, only what lies before this is copied to 0
    .org 0x1100
    .globl __start_initialization_multiplatform
__start_initialization_multiplatform:
    mr 31, 3                    # device tree, for early_setup
    bcl 20, 31, 1f
1:  mflr 26
    clrldi 26, 26, 4            # r26 = physical address that this runs at
    addi 26, 26, _stext - 1b
    b __after_prom_start

# Decide, relocate, copy: the two readings of the flag that the thread of 2008 is about.
    .macro compare_flag
    .if FLAG == 1
    ld 7, (__kdump_flag - _stext)(26)
    cmpldi 7, FLAG_STAY
    .else
    lwz 7, (__run_at_load - _stext)(26)
    cmplwi 7, FLAG_STAY
    .endif
    .endm
    .globl __after_prom_start
__after_prom_start:
    li 25, -0x4000              # r25 = where to run: 0xc000000000000000 ...
    sldi 25, 25, 48
    .if FLAG
    compare_flag
    bne 1f
    add 25, 25, 26              # ... or there plus the load address
1:  mr 3, 25
    call relocate
    cmpdi 26, 0
    beq start_here_multiplatform    # loaded at 0: nothing to copy
    li 3, 0
    .else
    lis 3, PHYSICAL_START >> 16 # no flag: it runs where it was linked, and copies itself there,
    add 25, 25, 3               # onto itself if that is where it lies
    .endif
    mr 4, 26
    li 6, 0x100                 # 0..0xff belong to the earlier stage: the secondaries spin there
    .if FLAG
    compare_flag
    bne 2f
    li 5, __end_interrupts - _stext
    call copy_and_flush
    b start_here_multiplatform
    .endif
2:  li 5, copy_to_here - _stext
    call copy_and_flush         # this far first, so that the rest is copied by the copy
    addi 8, 3, 3f - _stext
    mtctr 8
    bctr
3:  lis 5, (_end - _stext)@h
    ori 5, 5, (_end - _stext)@l
    call copy_and_flush
    b start_here_multiplatform
    .size __after_prom_start, . - __after_prom_start

# copy_and_flush: copy offsets r6..r5 of r4 to r3 and make them fit for execution.
# 64 bytes a pass, so it may overrun its limit, as Linux's does. Leaves r6 behind the last byte.
func copy_and_flush
1:  add 8, 4, 6
    add 9, 3, 6
    li 0, 8
    mtctr 0
    addi 10, 8, -8
    addi 11, 9, -8
2:  ldu 0, 8(10)
    stdu 0, 8(11)
    bdnz 2b
    dcbst 0, 9
    sync
    icbi 0, 9
    addi 6, 6, 64
    cmpld 6, 5
    blt 1b
    sync
    isync
    blr
endfunc copy_and_flush
    .balign 64
    .globl copy_to_here
copy_to_here:

# relocate: add r3 - link address to every pointer that the table names. Works on the image at
# r26. A row is an Elf64_Rela: offset, type, addend; anything but R_PPC64_RELATIVE ends the table.
func relocate
    lis 8, (__rela_dyn_start - _stext)@h
    ori 8, 8, (__rela_dyn_start - _stext)@l
    add 8, 8, 26
1:  ld 9, 8(8)
    cmpldi 9, R_PPC64_RELATIVE
    bne 2f
    ld 10, 0(8)
    clrldi 10, 10, 4            # the link address has nothing below its top four bits
    ld 11, 16(8)
    clrldi 11, 11, 4
    add 11, 11, 3
    stdx 11, 10, 26
    addi 8, 8, 24
    b 1b
2:  blr
endfunc relocate

    .globl start_here_multiplatform
start_here_multiplatform:       # r25 = where the kernel runs from now on
    lis 28, (init_table - _stext)@h
    ori 28, 28, (init_table - _stext)@l
    add 28, 28, 25              # in real mode the CPU ignores the top four bits of an address
    lis 1, (init_stack_end - _stext - 112)@h
    ori 1, 1, (init_stack_end - _stext - 112)@l
    add 1, 1, 25
    ld 12, 0(28)                # a pointer that relocate has patched
    mtctr 12
    mr 3, 31
    bctrl                       # early_setup(device tree)
    .globl start_here_common
start_here_common:
    ld 12, 8(28)
    mtctr 12
    bctr                        # start_kernel()
    .size start_here_multiplatform, . - start_here_multiplatform

# early_setup: look whether r3 is a device tree, and say where the kernel stands.
func early_setup
    mflr 27
    li 4, 0
    load_be32 5, 4, 3
    lis 6, 0xd00d               # FDT magic
    ori 6, 6, 0xfeed
    cmplw 5, 6
    bne .                       # no device tree: stop here, where it can be seen
    ld 30, 32(28)
    li 29, physical_start_value - physical_start_text
    console_text
    ld 30, 40(28)               # 16 hex digits of the address, made in the buffer
    clrldi 5, 25, 4
    li 6, 0
1:  rldicl 7, 5, 4, 60          # the highest four bits
    sldi 5, 5, 4
    addi 7, 7, '0'
    cmpldi 7, '9'
    ble 2f
    addi 7, 7, 'a' - '0' - 10
2:  stbx 7, 30, 6
    addi 6, 6, 1
    cmpldi 6, 16
    blt 1b
    li 29, 17                   # and the line's end behind them
    console_text
    mtlr 27
    blr
endfunc early_setup

# start_kernel: the banner, the release of the secondaries, and the end of this story.
func start_kernel
    ld 30, 24(28)
    li 29, linux_banner_end - linux_banner
    console_text
    call smp_release_cpus
    .globl cpu_idle
cpu_idle:
    b .
endfunc start_kernel

# smp_release_cpus: the word at *physical* 0x38 is what the secondaries read.
func smp_release_cpus
    .if RELEASE == 1
    li 4, 1
    .else
    ld 4, 16(28)
    .endif
    sync                        # what they will execute has to be there before the word is
    std 4, (__secondary_hold_spinloop - _stext)(0)
    sync
    blr
endfunc smp_release_cpus

# generic_secondary_smp_init: r3 = physical id. Report on the console, be counted, and spin.
func generic_secondary_smp_init
    mr 24, 3
    bcl 20, 31, 1f
1:  mflr 23
    addi 23, 23, _stext - 1b    # where this kernel runs; nobody has told this CPU
    lis 22, (cpus_here - _stext)@h
    ori 22, 22, (cpus_here - _stext)@l
    add 23, 23, 22
2:  lwarx 5, 0, 23
    addi 5, 5, 1
    stwcx. 5, 0, 23
    bne- 2b
    rldicl 5, 24, 60, 60        # two hex digits of the id
    cmpldi 5, 10
    blt 3f
    addi 5, 5, 'a' - '0' - 10
3:  clrldi 9, 24, 60
    cmpldi 9, 10
    blt 4f
    addi 9, 9, 'a' - '0' - 10
4:  sldi 5, 5, 8
    add 9, 9, 5
    sldi 9, 9, 32
    lis 6, 0x7365               # "seco"
    ori 6, 6, 0x636f
    sldi 6, 6, 32
    oris 6, 6, 0x6e64           # "ndar"
    ori 6, 6, 0x6172
    lis 7, 0x7920               # "y 00"
    ori 7, 7, 0x3030
    sldi 7, 7, 32
    oris 7, 7, 0x2069           # " in", line end
    ori 7, 7, 0x6e0a
    add 7, 7, 9
    li 3, 0x58                  # H_PUT_TERM_CHAR
    li 4, 0
    li 5, 16
    sc 1
    .globl secondary_idle
secondary_idle:
    b .
endfunc generic_secondary_smp_init

    .data
    .balign 16
    .globl linux_banner
linux_banner:
    .ascii "Linux version 0.1-bootflow-sample (bootflow's own kernel head)\n"
linux_banner_end:
    .size linux_banner, . - linux_banner
    .balign 16
physical_start_text:
    .ascii "physical_start = 0x"
physical_start_value:
    .balign 16
hex_buffer:
    .ascii "0000000000000000\n"
    .balign 16

# Pointers with link addresses, which relocate makes true; the offsets are used above.
    .globl init_table
init_table:
    quad_code early_setup                   # 0
    quad_code start_kernel                  # 8
    .if RELEASE == 2
    .quad generic_secondary_smp_init        # 16, its descriptor
    .else
    quad_code generic_secondary_smp_init    # 16
    .endif
    .quad linux_banner                      # 24
    .quad physical_start_text               # 32
    .quad hex_buffer                        # 40
    .size init_table, . - init_table
    .if ISERIES
    .globl hvReleaseData
hvReleaseData:                  # what the hypervisor finds by the pointer at 0x20
    .ascii "bootflow's own, and no hypervisor"
    .balign 8
    .size hvReleaseData, . - hvReleaseData
    .endif
    .globl cpus_here
cpus_here:                      # how many secondaries have come out of the hold loop
    .long 0, 0
    .size cpus_here, 8

# The table that relocate walks, with the layout of .rela.dyn. Written out by hand, because a
# linker makes such rows only for a position-independent executable.
    .macro relative offset, target
    .quad init_table + \offset, R_PPC64_RELATIVE
    .quad \target
    .endm
    .macro relative_code offset, name
    .quad init_table + \offset, R_PPC64_RELATIVE
    quad_code \name
    .endm
    .section .relocations, "a"
    .globl __rela_dyn_start
__rela_dyn_start:
    relative_code 0, early_setup
    relative_code 8, start_kernel
    .if RELEASE == 2
    relative 16, generic_secondary_smp_init
    .quad generic_secondary_smp_init, R_PPC64_RELATIVE
    quad_code generic_secondary_smp_init
    .else
    relative_code 16, generic_secondary_smp_init
    .endif
    relative 24, linux_banner
    relative 32, physical_start_text
    relative 40, hex_buffer
    .quad 0, 0, 0

    .bss
    .balign 16
init_stack:
    .space 4096
init_stack_end:
