/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * sockmap.bpf.c - every established IPv4 TCP socket of a cgroup goes into a map, and what is sent on one whose other end is in the map, too,
 * is put into that end's receive queue, without going through TCP. The loader is sockmap.c.
 */
#include "../sockmap.h"
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_SOCKHASH);
    __uint(max_entries, SOCKMAP_SIZE);
    __type(key, struct flow);
    __type(value, __u64);
} sockets SEC(".maps");

SEC("sockops")
int add(struct bpf_sock_ops *ops)
{
    struct flow key = {ops->local_ip4, ops->remote_ip4, bpf_htonl(ops->local_port), ops->remote_port};

    if (ops->family == 2 /* AF_INET */ && (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB))
        bpf_sock_hash_update(ops, &sockets, &key, BPF_NOEXIST);
    return 0;
}

SEC("sk_msg")
int redirect(struct sk_msg_md *msg)
{
    struct flow peer = {msg->remote_ip4, msg->local_ip4, msg->remote_port, bpf_htonl(msg->local_port)};

    if (msg->family == 2)
        bpf_msg_redirect_hash(msg, &sockets, &peer, BPF_F_INGRESS);
    return SK_PASS;
}

char _license[] SEC("license") = "GPL";
