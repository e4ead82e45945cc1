#!/usr/bin/env bash
# Checks ACE Music Studio: set-up, ruff check, ruff format --check, mypy, the JavaScript of static/, and the tests.
#   ./test.sh             the fast tests: about 4 minutes of pytest on two cores
#   ./test.sh --slow      the slow ones too, and what compares numbers as on other processors, as in CI: 18 minutes
#   ./test.sh -k key      other arguments go to pytest
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
. "$ROOT/tools/setup.sh"

size=fast
extra=""
for argument in "$@"; do
    shift
    if [ "$argument" = --slow ]; then
        size=slow
        continue
    fi
    extra="$extra $argument"
    set -- "$@" "$argument"
done
[ $size = fast ] || set -- --slow "$@"

# What runs beside something else writes here, and is shown once it has ended.
outputs=$(mktemp -d)
scripts="" types="" numbers=""

clean_up() {
    # shellcheck disable=SC2086 # these are process numbers, or nothing
    kill $scripts $types $numbers 2>/dev/null || true
    rm -rf -- "$outputs"
}
trap clean_up EXIT

end_of() { # process, output: shows what it said; true if it succeeded
    local status=0
    wait "$1" || status=$?
    cat "$outputs/$2"
    return $status
}

check_javascript() { # its status is the sum of 1 for biome and 2 for node --test
    local failed=0
    say "biome"
    { install_biome && (cd tests/javascript && npm run --silent check); } || failed=1
    say "node --test"
    (cd tests/javascript && npm run --silent test) || failed=$((failed + 2))
    return $failed
}

cd -- "$ROOT"
# pip keeps one core busy.
install_browser &
browser=$!
if find_node; then
    check_javascript >"$outputs/scripts" 2>&1 &
    scripts=$!
fi
set_up test
wait $browser
find_browser
# Each process that a test starts would compile every module again.
unset PYTHONDONTWRITEBYTECODE

failed=""
say "ruff check"
"$VENV/bin/python" -m ruff check . || failed="$failed, ruff check"
say "ruff format --check"
"$VENV/bin/python" -m ruff format --check . || failed="$failed, ruff format --check"
# It and what compares numbers take what the others leave of the cores: the page tests wait for their browser.
nice -n 19 "$VENV/bin/python" -m mypy >"$outputs/types" 2>&1 &
types=$!
javascript=""
if [ -n "$scripts" ]; then
    javascript=checked
    status=0
    end_of $scripts scripts || status=$?
    [ $((status & 1)) = 0 ] || failed="$failed, biome"
    [ $((status & 2)) = 0 ] || failed="$failed, node --test"
    scripts=""
fi
say "pytest"
# A worker for each core and one more, up to four: the page tests wait for their browser a third of the time.
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
workers=$((cores < 3 ? cores + 1 : 4))
# All slow tests: what compares numbers runs beside them, as on three processors, so it need not run here as well.
if [ $size = slow ] && [ -z "$extra" ]; then
    set -- "$@" -m "not gpu and not matrix and not numbers"
    PYTHON="$VENV/bin/python" nice -n 19 bash tools/processors.sh >"$outputs/numbers" 2>&1 &
    numbers=$!
fi
# -rsfE lists at the end what was skipped, and last of all what failed. Each worker takes file after file.
status=0
"$VENV/bin/python" -m pytest -rsfE --durations 10 -n $workers --dist loadfile --no-loadscope-reorder "$@" ||
    status=$?
case $status in
0) ;;
5) failed="$failed, pytest (no test was chosen)" ;;
1) failed="$failed, pytest" ;;
*) failed="$failed, pytest (it stopped before its end)" ;;
esac
say "mypy"
end_of $types types || failed="$failed, mypy"
types=""
if [ -n "$numbers" ]; then
    say "pytest as on other processors"
    end_of $numbers numbers || failed="$failed, pytest as on another processor"
    numbers=""
fi

say ""
ran="Ran in $SECONDS s: ruff check, ruff format --check, mypy${javascript:+, biome, node --test}"
case $size in
fast) say "$ran and the fast tests. Not the slow tests: ./test.sh --slow adds them." ;;
slow) say "$ran, the fast tests and the slow tests. Not those that need a GPU and the real weights (-m gpu)." ;;
esac
[ -z "$extra" ] || say "pytest was given$extra, so these may not be all of them."
[ -n "$javascript" ] || say "The JavaScript was not checked: that needs Node $OLDEST_NODE or newer, with npm."
command -v "${ACE_STUDIO_CHROMIUM:-}" >/dev/null || say "The page tests had no browser."
if [ -n "$failed" ]; then
    say "Failed: ${failed#, }."
    exit 1
fi
say "Nothing failed."
