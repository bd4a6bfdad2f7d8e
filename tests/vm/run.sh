#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# In the guest (tests/vm/guest.py), from the work tree: the tests of tests/hosts with real verbs. Arguments are pytest's; or --figures.
set -euo pipefail
bash tests/vm/rxe.sh
export SDRUN_START_S=120 SDRUN_HOSTS_VERBS=1 SDRUN_HOSTS_LIMIT=${SDRUN_HOSTS_LIMIT:-180}
counter=/sys/class/infiniband/rxa/ports/1/hw_counters/sent_pkts
before=$(cat $counter)
if [ "${1:-}" = --figures ]; then
    .venv/bin/python -m tests.hosts.figures
else
    .venv/bin/python -m pytest -q -p no:cacheprovider --timeout 600 --reruns 1 tests/hosts "$@"
fi
sent=$(($(cat $counter) - before))
# The device's own count, so that no fallback can pass for RDMA.
[ "$sent" -gt 100 ] || { echo "only $sent packets by RDMA" >&2; exit 1; }
