#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# A pod of two containers, made of nothing but unshare: redis in one, redis-benchmark in the other, one monitor outside of both.
#
#     pod.sh DIRECTORY      leaves server.json and client.json there, the reports of both ends
#
# What a container runtime has to do for sdrun is what stands in container(): one network namespace for both ends, and the
# monitor's directory bound to /run/socksdirect. Everything else is each container's own: mounts, processes, IPC, host name.
# compose.yaml beside this file says the same to Docker or Podman. Needs root, sdrun in PATH, and redis.
set -eu
mkdir -p "$1/monitor"
dir=$(realpath "$1")
port=6379
unset XDG_RUNTIME_DIR SOCKSDIRECT_MONITOR
children=
trap 'for pid in $children; do kill "$pid" 2>/dev/null || true; done; wait' EXIT

sdmonitor --socket "$dir/monitor/monitor.sock" &
children="$children $!"
until [ -S "$dir/monitor/monitor.sock" ]; do sleep 0.05; done

unshare --net sh -c 'ip link set lo up; exec sleep 600' &
pod=$!
children="$children $pod"
until nsenter --net="/proc/$pod/ns/net" ip -o link show up 2>/dev/null | grep -q ' lo:'; do sleep 0.05; done

# container NAME COMMAND...
container() {
    nsenter --net="/proc/$pod/ns/net" unshare --mount --pid --ipc --uts --fork --kill-child --mount-proc sh -euc '
        mount -t tmpfs run /run
        mkdir -p /run/socksdirect /run/user/0
        mount --bind "$1" /run/socksdirect
        hostname "$2"
        shift 2
        exec "$@"' sh "$dir/monitor" "$@"
}

container server sdrun --report "$dir/server.json" -- redis-server --port "$port" --save "" --appendonly no --dir "$dir" >"$dir/server.log" &
children="$children $!"
until container probe redis-cli -p "$port" ping >/dev/null 2>&1; do sleep 0.1; done
container client sdrun --report "$dir/client.json" -- redis-benchmark -p "$port" -t get -c 4 -n 100000 -q
container probe redis-cli -p "$port" shutdown nosave || true
until [ -s "$dir/server.json" ]; do sleep 0.1; done
