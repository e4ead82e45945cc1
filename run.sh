#!/usr/bin/env bash
# Starts ACE Music Studio: makes .venv and installs requirements.txt where that is not done yet, then runs app.py,
# which prints its address. Arguments go to app.py.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
. "$ROOT/tools/setup.sh"

set_up run
cd -- "$ROOT"
exec "$VENV/bin/python" app.py "$@"
