#!/usr/bin/env bash
# Runs the tests that compare numbers (marked `numbers`) as on other processors: tools/processors.sh [pytest arguments]
#
# torch, oneDNN and MKL choose their code by what the processor can do, and the number of threads decides in which order
# sums are taken. Each can be held to less than what is there, so one machine stands in for several.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
cd -- "$ROOT"

has() { grep -qw "$1" /proc/cpuinfo 2>/dev/null; }

files=$(grep -rl --include='test_*.py' 'mark\.numbers' tests)
outputs=$(mktemp -d)
processes=()
trap 'kill "${processes[@]}" 2>/dev/null || true; rm -rf -- "$outputs"' EXIT
runs=0

as() { # a processor's name, the variables that make this one of it, pytest's arguments after --
    name=$1
    shift
    variables=""
    while [ "$1" != -- ]; do
        variables="$variables $1"
        shift
    done
    shift
    runs=$((runs + 1))
    names[runs]=$name
    printf 'as %s:%s\n' "$name" "$variables" >"$outputs/$runs"
    # shellcheck disable=SC2086 # no value and no file's name has a space
    env $variables "$PYTHON" -m pytest --slow -m "numbers and not gpu and not matrix" -q -p no:xdist $files "$@" \
        >>"$outputs/$runs" 2>&1 &
    processes[runs]=$!
}

# All at the same time, each in a process of its own: loading torch and the tests takes longer than many of the tests.
# Only what this processor has can be asked for; what is asked for beyond that would end the process.
if has sse4_1; then
    as "one without AVX" ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
        OMP_NUM_THREADS=1 -- "$@"
fi
if has avx2; then
    as "one with AVX2 and no bfloat16" ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        OMP_NUM_THREADS=1 -- "$@"
fi
# More threads than cores: those that wait must sleep, not spin.
as "one with three cores" ONEDNN_MAX_CPU_ISA=AVX512_CORE OMP_NUM_THREADS=3 OMP_WAIT_POLICY=PASSIVE -- "$@"
if ! has avx2; then
    as "one with two cores" OMP_NUM_THREADS=2 -- "$@"
    as "one with a single core" OMP_NUM_THREADS=1 -- "$@"
fi

failed=""
for ((run = 1; run <= runs; run++)); do
    wait "${processes[run]}" || failed="$failed, ${names[run]}"
    cat "$outputs/$run"
done
if [ -n "$failed" ]; then
    printf 'Failed as %s.\n' "${failed#, }"
    exit 1
fi
