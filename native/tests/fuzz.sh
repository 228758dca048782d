#!/bin/sh
# Fuzzes the header parser under AddressSanitizer and UBSan: fuzz.sh SECONDS [SEED].
set -eu
native=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tree=$native/../build/native-address-undefined
export UBSAN_OPTIONS=print_stacktrace=1
cmake -S "$native" -B "$tree" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DSTOKER_EXTENSION=OFF -DSTOKER_TESTS=ON -DSTOKER_SANITIZE=address,undefined >/dev/null
cmake --build "$tree" --target header_fuzz
"$tree/tests/header_fuzz" "$1" "${2:-$(date +%s)}"
