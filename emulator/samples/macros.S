# What kernel.S and purgatory.S share: one source for both byte orders and both ELF ABIs.
#
# BIG (as --defsym BIG=1) builds the big-endian ELFv1 pair, BIG=0 the little-endian ELFv2 pair.
# Not an include file of Linux or kexec-tools; every line was written for bootflow.

    .if BIG
    .abiversion 1
    .else
    .abiversion 2
    .endif

# func NAME: begin a function. ELFv1 names a function twice: NAME is its descriptor in .opd
# (code, TOC, environment), .NAME is its code. ELFv2 has the code only.
    .macro func name
    .globl \name
    .if BIG
    .pushsection .opd, "aw"
    .balign 8
    .type \name, @function
\name:
    .quad .\name, .TOC.@tocbase, 0
    .size \name, 24
    .popsection
    .globl .\name
    .type .\name, @function
.\name:
    .else
    .type \name, @function
\name:
    .endif
    .endm

    .macro endfunc name
    .if BIG
    .size .\name, . - .\name
    .else
    .size \name, . - \name
    .endif
    .endm

    .macro call name
    .if BIG
    bl .\name
    .else
    bl \name
    .endif
    .endm

# quad_code NAME: the address of the function's code, in either ABI.
    .macro quad_code name
    .if BIG
    .quad .\name
    .else
    .quad \name
    .endif
    .endm

# Loads of data that is big-endian by definition (device tree, SHA-256, hypercall text).
    .macro load_be32 rt, ra, rb
    .if BIG
    lwzx \rt, \ra, \rb
    .else
    lwbrx \rt, \ra, \rb
    .endif
    .endm

    .macro store_be32 rs, ra, rb
    .if BIG
    stwx \rs, \ra, \rb
    .else
    stwbrx \rs, \ra, \rb
    .endif
    .endm

    .macro load_be64 rt, ra, rb
    .if BIG
    ldx \rt, \ra, \rb
    .else
    ldbrx \rt, \ra, \rb
    .endif
    .endm

# console_text: print r29 bytes at r30 with H_PUT_TERM_CHAR (0x58), 16 bytes a call, big end
# first (PAPR, "H_PUT_TERM_CHAR"). The text may be read up to 15 bytes past its end.
# Changes r0, r3-r12, r29, r30, CTR; needs no stack, so that a secondary can use it.
    .macro console_text
77: cmpdi 29, 0
    ble 79f
    li 5, 16
    cmpdi 29, 16
    bge 78f
    mr 5, 29
78: li 3, 0x58
    li 4, 0                 # terminal number 0: the first console
    li 8, 8
    load_be64 6, 0, 30
    load_be64 7, 30, 8
    sc 1
    addi 29, 29, -16
    addi 30, 30, 16
    b 77b
79:
    .endm
