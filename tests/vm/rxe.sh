# SPDX-License-Identifier: Apache-2.0
# In the guest: two hosts' RDMA devices, rxa with 10.1.0.1 and rxb with 10.1.0.2, over a veth pair in one network namespace (soft RoCE of
# these kernels knows no other). Policy routing sends what one says to the other over the wire instead of through loopback.
# A third host, without RDMA, comes in by vc (tests/hosts/world.py).
#
#   rxe.sh            all of it
#   rxe.sh routes     what the kernel forgets when a link goes down
set -e
routes() {
    ip -batch - <<X
route replace 10.1.0.2/32 dev va src 10.1.0.1 table 100
route replace 10.1.0.1/32 dev vb src 10.1.0.2 table 101
neigh replace 10.1.0.2 lladdr 02:00:00:00:00:0b dev va
neigh replace 10.1.0.1 lladdr 02:00:00:00:00:0a dev vb
X
}
if [ "${1:-}" = routes ]; then
    routes
    exit
fi
modprobe -a rdma_rxe veth sch_netem 2>/dev/null || modprobe -a rdma_rxe veth
sysctl -qw net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.accept_local=1
ip -batch - <<X
link add va address 02:00:00:00:00:0a mtu 4200 type veth peer name vb address 02:00:00:00:00:0b mtu 4200
addr add 10.1.0.1/24 dev va
addr add 10.1.0.2/24 dev vb
link set va up
link set vb up
rule add pref 10 iif va lookup local
rule add pref 11 iif vb lookup local
rule add pref 12 iif vc lookup local
rule add pref 30 to 10.1.0.2 lookup 100
rule add pref 31 to 10.1.0.1 lookup 101
rule add pref 100 lookup local
rule del pref 0
X
routes
rdma link add rxa type rxe netdev va
rdma link add rxb type rxe netdev vb
