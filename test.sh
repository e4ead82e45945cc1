#!/usr/bin/env bash
# Checks ACE Music Studio: set-up, ruff check, ruff format --check, and the tests.
#   ./test.sh             the fast tests
#   ./test.sh --slow      the slow ones too
#   ./test.sh -k key      other arguments go to pytest
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
. "$ROOT/tools/setup.sh"

slow=""
extra=""
for argument in "$@"; do
    case $argument in
    --slow) slow=yes ;;
    *) extra="$extra $argument" ;;
    esac
done

set_up test
find_browser
cd -- "$ROOT"

failed=""
say "ruff check"
"$VENV/bin/python" -m ruff check . || failed="$failed, ruff check"
say "ruff format --check"
"$VENV/bin/python" -m ruff format --check . || failed="$failed, ruff format --check"
say "pytest"
# -rsR lists every skipped test with its reason, and every page test that had a second try. A worker for each core, up
# to four, takes file after file.
status=0
"$VENV/bin/python" -m pytest -rsR -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@" || status=$?
case $status in
0) ;;
5) failed="$failed, pytest (no test was chosen)" ;;
1) failed="$failed, pytest" ;;
*) failed="$failed, pytest (it stopped before its end)" ;;
esac

say ""
if [ -n "$slow" ]; then
    say "Ran in $SECONDS s: ruff check, ruff format --check, the fast tests and the slow tests. Not those marked long (-m long) or gpu (-m gpu)."
else
    say "Ran in $SECONDS s: ruff check, ruff format --check and the fast tests. Not the slow tests: ./test.sh --slow adds them."
fi
[ -z "$extra" ] || say "pytest was given$extra, so these may not be all of them."
command -v "${ACE_STUDIO_CHROMIUM:-}" >/dev/null || say "The page tests had no browser."
if [ -n "$failed" ]; then
    say "Failed: ${failed#, }."
    exit 1
fi
say "Nothing failed."
