#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# In the guest (tests/vm/guest.py), from the work tree: the tests of tests/hosts with real verbs. Arguments are pytest's.
set -euo pipefail
bash tests/vm/rxe.sh
export SDRUN_HOSTS_VERBS=1 SDRUN_HOSTS_LIMIT=${SDRUN_HOSTS_LIMIT:-180}
before=$(cat /sys/class/infiniband/rxa/ports/1/hw_counters/sent_pkts)
.venv/bin/python -m pytest -q -p no:cacheprovider --timeout 600 tests/hosts "$@"
sent=$(($(cat /sys/class/infiniband/rxa/ports/1/hw_counters/sent_pkts) - before))
# The device's own count, so that no fallback can pass for RDMA.
[ "$sent" -gt 100 ] || { echo "only $sent packets by RDMA" >&2; exit 1; }
