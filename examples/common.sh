# SPDX-License-Identifier: Apache-2.0
# What the examples share. `run.sh` starts everything as it is; `run.sh sdrun --` starts the same programs under sdrun: that is the whole difference.
# EXAMPLE_REPORTS=DIRECTORY also keeps sdrun's reports there.
set -euo pipefail
before=("$@")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d /tmp/sd-example-XXXXXX)
children=()

# The latest first, each in its own way; then the folder goes.
finish() {
    local status=$?
    if [ "$status" != 0 ]; then tail -n 20 "$work"/*.log >&2 || true; fi
    for ((i = ${#children[@]} - 1; i >= 0; i--)); do
        kill "${children[i]}" 2>/dev/null || true
        wait "${children[i]}" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap finish EXIT

# under NAME COMMAND...: in the foreground.
under() {
    local name=$1 words=("${before[@]}")
    shift
    if [ ${#words[@]} -gt 0 ] && [ -n "${EXAMPLE_REPORTS:-}" ]; then
        words=("${words[0]}" --report "$EXAMPLE_REPORTS/$name.json" "${words[@]:1}")
    fi
    exec "${words[@]}" "$@"
}

# start NAME COMMAND...: in the background, until the example ends.
start() {
    (under "$@") >"$work/$1.log" 2>&1 &
    children+=($!)
}

# until_answers HOST PORT
until_answers() {
    for _ in $(seq 300); do
        if (: >"/dev/tcp/$1/$2") 2>/dev/null; then return; fi
        sleep 0.1
    done
    cat "$work"/*.log >&2
    exit 1
}
