#!/usr/bin/env bash
# Three curl calls that show whether a studio makes songs: start one, wait for it, fetch it.
#   docker/smoke.sh [address]     http://127.0.0.1:7860 unless named
set -euo pipefail

STUDIO=${1:-http://127.0.0.1:7860}
WAIT_SECONDS=${SMOKE_WAIT_SECONDS:-1800}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

event=$(
    curl -fsS "$STUDIO/gradio_api/call/v2/generate" -H "Content-Type: application/json" \
        -d '{"prompt": "warm lofi piano", "instrumental": true, "duration": 10, "seed": 7, "options": {"steps": 8}}' |
        cut -d'"' -f4
) || fail "No song could be started at $STUDIO."

curl -fsSN --max-time "$WAIT_SECONDS" "$STUDIO/gradio_api/call/v2/generate/$event" >"$folder/events.txt" ||
    fail "The song was not done within $WAIT_SECONDS seconds."

answer=$(grep -A1 "^event: complete" "$folder/events.txt") ||
    fail "The song failed:" "$(grep -A1 "^event: error" "$folder/events.txt" || tail -n 2 "$folder/events.txt")"
url=$(grep -o '"url": "[^"]*"' <<<"$answer" | head -n 1 | cut -d'"' -f4)

curl -fsS -o "$folder/song.wav" "$url" || fail "The song could not be fetched from $url."
[ "$(head -c 4 "$folder/song.wav")" = RIFF ] || fail "What came from $url is no WAV file."
echo "A song of $(wc -c <"$folder/song.wav" | tr -d ' ') bytes was made and fetched."
