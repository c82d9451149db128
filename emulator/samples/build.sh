#!/bin/bash
# Build the sample pairs into the folder given: build.sh OUT
# Needs binutils for powerpc64le-linux-gnu and powerpc64-linux-gnu; the same source gives the same
# bytes, so that a test can compare them with the committed files.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="$(cd "$1" && pwd)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" # an object's file name ends up in the symbol table

build() { # build BYTE-ORDER BIG TOOLS
    local as="$3-as -mpower8 --strip-local-absolute -I $here --defsym BIG=$2"
    $as -o kernel.o "$here/kernel.S"
    "$3-ld" --build-id=none --no-warn-rwx-segments -z max-page-size=0x1000 \
        -T "$here/kernel.lds" -o "$out/kernel-$1.elf" kernel.o
    $as -o purgatory.o "$here/purgatory.S"
    "$3-ld" -r -e purgatory_start -o "$out/purgatory-$1.ro" purgatory.o
    chmod 644 "$out/kernel-$1.elf" "$out/purgatory-$1.ro"
}

build le 0 powerpc64le-linux-gnu
build be 1 powerpc64-linux-gnu
