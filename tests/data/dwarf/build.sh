#!/bin/bash
# Build the images with DWARF into the folder given: build.sh OUT
# Needs gcc 12 and binutils 2.40 for powerpc64le-linux-gnu and powerpc64-linux-gnu. NAME.lines beside
# each image is what addr2line says of every instruction, without the directory of the compilation.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
samples="$here/../../../emulator/samples"
out="$(cd "$1" && pwd)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/src"
cp "$here"/*.[chS] "$scratch/src"
cp "$samples"/*.S "$samples"/*.lds "$scratch/src"
cd "$scratch"
map="$scratch=/build/sample"

lines() { # lines FILE TOOLS: FILE.lines
    "$2-objdump" -dz "$1" | sed -n 's/^ *\([0-9a-f]*\):\t.*/\1/p' > addresses
    "$2-addr2line" -e "$1" < addresses | sed 's/ (discriminator.*//; s,^/build/sample/,,' |
        paste -d' ' addresses - | grep -v ':?$' > "$out/$(basename "$1").lines"
}

compile() { # compile TOOLS OPTIONS...: *.o
    local tools="$1" part
    shift
    for part in first second head; do
        "$tools-gcc" -c -Os -ffreestanding -fno-asynchronous-unwind-tables -ffile-prefix-map="$map" \
            -Wa,--debug-prefix-map,"$map" "$@" -o "$part.o" "src/$part".[cS]
    done
}

image() { # image NAME TOOLS OPTIONS...: linked at 0xc000000000000000
    local name="$1" tools="$2"
    shift 2
    compile "$tools" "$@"
    "$tools-ld" --build-id=none -z max-page-size=0x1000 --no-warn-rwx-segments -N \
        -Ttext=0xc000000000001000 --section-start=.head.text=0xc000000000000000 \
        --section-start=.init.text=0xc000000000004000 -o "$name.elf" head.o first.o second.o
    keep "$name.elf" "$tools"
}

keep() { # keep FILE TOOLS: without what lines do not need
    "$2-objcopy" -R .comment -R .debug_loc -R .debug_loclists -R .debug_frame \
        -R .note.GNU-stack -R .gnu.attributes "$1"
    chmod 644 "$1"
    cp "$1" "$out/$1"
    lines "$1" "$2"
}

again() { # again NAME FROM OPTIONS...: the same through objcopy
    local name="$1" from="$2"
    shift 2
    powerpc64-linux-gnu-objcopy "$@" "$from.elf" "$name.elf"
    chmod 644 "$name.elf"
    cp "$name.elf" "$out"
    cp "$out/$from.elf.lines" "$out/$name.elf.lines"
}

LE=powerpc64le-linux-gnu
BE=powerpc64-linux-gnu
image le-5 $LE -gdwarf-5 -Wa,--gdwarf-5
image le-3 $LE -gdwarf-3 -Wa,--gdwarf-3
image be-4 $BE -gdwarf-4 -Wa,--gdwarf-4
image be-2 $BE -gdwarf-2 -gno-as-loc-support
image be-5-64 $BE -gdwarf-5 -gdwarf64 -gno-as-loc-support
image be-5 $BE -gdwarf-5 -Wa,--gdwarf-5
again be-5-noaranges be-5 -R .debug_aranges
again be-5-zlib be-5 --compress-debug-sections=zlib
again be-5-gnu be-5 --compress-debug-sections=zlib-gnu
again be-5-zstd be-5 --compress-debug-sections=zstd || echo "these binutils have no zstd"

# An ET_REL file of several sections with code. Its lines are those of be-4 and le-5: the same
# objects, where the linker puts them there.
for tools in $BE $LE; do
    order=be version=4
    [ $tools = $LE ] && order=le version=5
    compile $tools -gdwarf-$version -Wa,--gdwarf-$version
    $tools-ld -r -o "rel-$order.ro" head.o first.o second.o
    $tools-objcopy -R .comment -R .debug_frame -R .rela.debug_frame "rel-$order.ro"
    chmod 644 "rel-$order.ro"
    cp "rel-$order.ro" "$out"
done

# The samples' kernel and purgatory with -g: they run.
for order in le be; do
    tools=$LE big=0 version=5
    [ $order = be ] && tools=$BE big=1 version=4
    for name in kernel purgatory; do
        $tools-as -mpower8 --strip-local-absolute -I src --defsym BIG=$big --gdwarf-$version \
            --debug-prefix-map "$map" -o $name.o src/$name.S
    done
    sed "s/PHYSICAL_START/0/" src/kernel.lds > kernel.lds
    $tools-ld --build-id=none --no-warn-rwx-segments -z max-page-size=0x1000 -T kernel.lds \
        -o kernel-$order.elf kernel.o
    keep kernel-$order.elf $tools
    $tools-ld -r -e purgatory_start -o purgatory-$order.ro purgatory.o
    chmod 644 purgatory-$order.ro
    cp purgatory-$order.ro "$out"
    lines purgatory-$order.ro $tools
done
