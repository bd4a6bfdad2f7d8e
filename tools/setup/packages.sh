#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Install the Debian packages of a list, those that are missing and nothing else.
#
#   packages.sh LIST      LIST has lines `WHAT PACKAGE`: WHAT is a command or an absolute path (may be a glob)
#                         whose presence means that PACKAGE is not needed.
#
# Services of the installed packages are not started: the tests run their own, on their own ports.
set -euo pipefail

list=$1
missing=()
while read -r what package; do
    case $what in
        '' | '#'*) continue ;;
        /*) compgen -G "$what" >/dev/null || missing+=("$package") ;;
        *) PATH=$PATH:/usr/sbin:/sbin command -v "$what" >/dev/null || missing+=("$package") ;;
    esac
done <"$list"
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "packages.sh: this system has no apt-get; install what corresponds to: ${missing[*]}" >&2
    exit 1
fi
root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "packages.sh: need root or sudo to install: ${missing[*]}" >&2
        exit 1
    fi
    root=(sudo)
fi

# invoke-rc.d asks this program before it starts a service; 101 means "not allowed".
rc=/usr/sbin/policy-rc.d
if [ ! -e "$rc" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$rc" >/dev/null
    "${root[@]}" chmod 755 "$rc"
    trap '"${root[@]}" rm -f "$rc"' EXIT
fi

# Debian's own updates run in the first minutes of many a machine, and have dpkg's lock meanwhile.
install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends "${missing[@]}")
echo "installing Debian packages: ${missing[*]}"
log=$(mktemp)
if ! "${install[@]}" </dev/null >"$log" 2>&1; then
    # Most often the package lists are missing (containers) or old.
    "${root[@]}" apt-get update -q </dev/null >>"$log" 2>&1 || true
    if ! "${install[@]}" </dev/null >>"$log" 2>&1; then
        tail -n 30 "$log" >&2
        echo "packages.sh: apt-get could not install: ${missing[*]}" >&2
        rm -f "$log"
        exit 1
    fi
fi
rm -f "$log"
