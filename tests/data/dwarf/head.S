# Two sections, a macro, and an instruction without a line of its own.
	.macro twice reg
	add \reg, \reg, \reg
	add \reg, \reg, \reg
	.endm

	.section ".head.text", "ax"
	.globl _start
_start:
	li 3, 5
	twice 3
	nop
	b .

	.text
	li 4, 1
	nop
