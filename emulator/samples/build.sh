#!/bin/bash
# Build the sample images into the folder given: build.sh OUT
# Needs binutils for powerpc64le-linux-gnu and powerpc64-linux-gnu; the same source gives the same
# bytes, so that a test can compare them with the committed files.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="$(cd "$1" && pwd)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" # an object's file name ends up in the symbol table

LE="0 powerpc64le-linux-gnu"
BE="1 powerpc64-linux-gnu"

kernel() { # kernel NAME ORDER [SWITCH=VALUE ...]
    local name="$1" order="$2" start=0 flags="" at
    shift 2
    read -r big tools <<<"$order"
    for at in "$@"; do
        flags="$flags --defsym $at"
        case "$at" in PHYSICAL_START=*) start="${at#*=}" ;; esac
    done
    "$tools-as" -mpower8 --strip-local-absolute -I "$here" --defsym "BIG=$big" $flags \
        -o kernel.o "$here/kernel.S"
    sed "s/PHYSICAL_START/$start/" "$here/kernel.lds" > kernel.lds # no symbol for it in the file
    "$tools-ld" --build-id=none --no-warn-rwx-segments -z max-page-size=0x1000 \
        -T kernel.lds -o "$out/kernel-$name.elf" kernel.o
    chmod 644 "$out/kernel-$name.elf"
}

purgatory() { # purgatory NAME ORDER [SWITCH=VALUE ...]
    local name="$1" order="$2" flags="" at
    shift 2
    read -r big tools <<<"$order"
    for at in "$@"; do flags="$flags --defsym $at"; done
    "$tools-as" -mpower8 --strip-local-absolute -I "$here" --defsym "BIG=$big" $flags \
        -o purgatory.o "$here/purgatory.S"
    "$tools-ld" -r -e purgatory_start -o "$out/purgatory-$name.ro" purgatory.o
    chmod 644 "$out/purgatory-$name.ro"
}

# What runs today.
kernel le "$LE"
kernel be "$BE"
purgatory le "$LE"
purgatory be "$BE"

# The kernels of 2008, and one that does not show its flag.
kernel noflag-be "$BE" OLD=1 FLAG=0 RELEASE=1 PHYSICAL_START=0x2000000
kernel noflag0-be "$BE" OLD=1 FLAG=0 RELEASE=1
kernel kdumpflag-be "$BE" OLD=1 FLAG=1 RELEASE=2
kernel runatload-be "$BE" OLD=1 FLAG=2 RELEASE=2
kernel iseries-be "$BE" OLD=1 FLAG=2 RELEASE=2 ISERIES=1
kernel nomagic-be "$BE" OLD=1 FLAG=2 RELEASE=2 MAGIC=0
kernel nomagic-le "$LE" MAGIC=0

# Purgatories of the thread.
purgatory noflag-be "$BE" SENDS=0
purgatory kdumpflag-be "$BE" SENDS=1
purgatory posted-be "$BE" SENDS=3
purgatory posted-le "$LE" SENDS=3
purgatory meant-be "$BE" SENDS=4
purgatory meant-le "$LE" SENDS=4
purgatory restores-be "$BE" RESTORE=1
purgatory restores-le "$LE" RESTORE=1

# Purgatories with a mistake.
purgatory late-be "$BE" BY_SECONDARY=0x40000
purgatory late-le "$LE" BY_SECONDARY=0x40000
purgatory race-be "$BE" BY_SECONDARY=1 NO_DELAY=1
purgatory waits-be "$BE" BY_SECONDARY=1
purgatory offset-be "$BE" WRONG_OFFSET=1
purgatory offset-le "$LE" WRONG_OFFSET=1
purgatory width-be "$BE" WRONG_WIDTH=1
purgatory width-le "$LE" WRONG_WIDTH=1
purgatory clobber-be "$BE" CLOBBER=1
purgatory clobber-le "$LE" CLOBBER=1
purgatory below-be "$BE" REENTER=0x5c
purgatory wrongid-be "$BE" REENTER=0x60 REENTER_R3=1
purgatory wrongid-le "$LE" REENTER=0x60 REENTER_R3=1
purgatory digest-be "$BE" BAD_DIGEST=1
purgatory digest-le "$LE" BAD_DIGEST=1
