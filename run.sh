#!/usr/bin/env bash
# Starts ACE Music Studio: makes .venv and installs requirements.txt where that is not done yet (with --ray
# requirements-ray.txt, with --media requirements-media.txt, too), then runs app.py, which prints its address. Arguments go to app.py.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
. "$ROOT/tools/setup.sh"

kind=run
for argument in "$@"; do
    case $argument in
    --ray | --ray=*) kind=ray ;;
    --media) WANTS_MEDIA=yes ;;
    esac
done
[ -z "${ACE_STUDIO_RAY:-}" ] || kind=ray

# What a program reads from standard output is not ours to write on, and its files are where it is.
case ${1:-} in
make | cover | extend | edit | lyrics)
    set_up "$kind" >&2
    exec "$VENV/bin/python" "$ROOT/app.py" "$@"
    ;;
--daemon) set_up "$kind" >&2 ;;
*) set_up "$kind" ;;
esac
cd -- "$ROOT"
exec "$VENV/bin/python" app.py "$@"
