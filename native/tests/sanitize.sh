#!/bin/sh
# Builds the loader with each set of sanitizers, without Python, and runs its tests and the fuzz
# target under them. Build trees go to build/ beside native/, or to the folder named by $1.
set -eu
native=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=${1:-$native/../build}
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1
for sanitize in address,undefined thread; do
  tree=$build/native-$(echo "$sanitize" | tr , -)
  cmake -S "$native" -B "$tree" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DSTOKER_EXTENSION=OFF -DSTOKER_TESTS=ON -DSTOKER_SANITIZE="$sanitize" >/dev/null
  cmake --build "$tree"
  ctest --test-dir "$tree" --output-on-failure
done
