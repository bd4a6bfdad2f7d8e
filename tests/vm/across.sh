#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# In one of two guests (tests/vm/two.py): host a or b, with an RDMA device of its own on the wire that joins them. Behind a there is a third host
# without RDMA or sdrun, a namespace.
#
#   across.sh a|b STEP...
set -euo pipefail
name=$1
modprobe -a virtio_net rdma_rxe veth
mkdir -p /run/meet
mount -t 9p -o trans=virtio,version=9p2000.L,msize=65536,cache=none meet /run/meet
wire=$(basename /sys/bus/virtio/drivers/virtio_net/virtio*/net/*)
if [ "$name" = a ]; then
    ip -batch - <<X
addr add 10.1.0.1/24 dev $wire
netns add c
link add vc type veth peer name eth0 netns c
addr add 10.1.1.1/24 dev vc
link set vc up
X
    ip -n c -batch - <<X
addr add 10.1.1.3/24 dev eth0
link set eth0 up
route add default via 10.1.1.1
X
    sysctl -qw net.ipv4.ip_forward=1
else
    ip addr add 10.1.0.2/24 dev "$wire"
fi
ip link set "$wire" up
[ "$name" = a ] || ip route add 10.1.1.0/24 via 10.1.0.1
rdma link add "rx$name" type rxe netdev "$wire"
# Emulated, everything takes a hundred times longer; see run.sh.
export SDRUN_START_S=300 SDRUN_LEAVE_S=300 SDRUN_HOSTS_VERBS=1 SDRUN_PATIENCE=${SDRUN_PATIENCE:-6}
exec .venv/bin/python -m tests.vm.across "$@"
