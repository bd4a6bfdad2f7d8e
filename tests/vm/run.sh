#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# In the guest (tests/vm/guest.py), from the work tree: the tests of tests/hosts with real verbs. Arguments are pytest's; or --figures.
set -euo pipefail
bash tests/vm/rxe.sh
# Emulated, everything takes a hundred times longer, on a machine that has other things to do. No test waits for so long that comes about.
export SDRUN_START_S=300 SDRUN_LEAVE_S=300 SDRUN_HOSTS_VERBS=1 SDRUN_PATIENCE=${SDRUN_PATIENCE:-6}
counter=/sys/class/infiniband/rxa/ports/1/hw_counters/sent_pkts
before=$(cat $counter)
if [ "${1:-}" = --figures ]; then
    .venv/bin/python -m tests.hosts.figures
else
    .venv/bin/python -m pytest -q -p no:cacheprovider --timeout 1800 --reruns 1 tests/hosts "$@"
fi
sent=$(($(cat $counter) - before))
# The device's own count, so that no fallback can pass for RDMA.
[ "$sent" -gt 100 ] || { echo "only $sent packets by RDMA" >&2; exit 1; }
