#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# ltp.sh DIRECTORY CALL...: a release of the Linux Test Project, fetched and built as far as the calls need it.
# Not being able to fetch or build it is no error: the tests say that they were skipped.
set -euo pipefail
directory=$1; shift
RELEASE=20260529
SOURCE=${LTP_GIT:-https://github.com/linux-test-project/ltp}

if [ ! -d "$directory/lib" ]; then
    if ! timeout 120 git clone -q --depth 1 --branch "$RELEASE" "$SOURCE" "$directory"; then
        echo "ltp.sh: $SOURCE cannot be reached" >&2
        exit 0
    fi
fi
log=$PWD/$directory.log
build() {
    cd "$directory"
    if [ ! -f include/mk/config.mk ]; then
        make -s autotools
        ./configure -q
    fi
    make -s -j2 -C lib
    for call in "$@"; do
        make -s -j2 -C "testcases/kernel/syscalls/$call"
    done
}
if ! (build "$@") >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "ltp.sh: $directory cannot be built here" >&2
fi
