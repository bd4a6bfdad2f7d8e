/* SPDX-License-Identifier: Apache-2.0
 *
 * strangers.c - a program whose peers are mostly not under sdrun does not offer each of its connections.
 *
 * An offer and its withdrawal take supervisor and monitor milliseconds, and are in vain if the peer never offers its end. Nobody can know that
 * before, so what has come of the last ones is counted, in memory of the whole family of forks: `strangers` goes up by one with each connection that ends
 * without its peer having come, to CREDIT below zero with one that has. So a server that has one peer under sdrun among sixteen offers all, as ever.
 *
 *   below IN_VAIN         offered as the policy says
 *   n times IN_VAIN       offered after 2^n times as many operations, or EARLY_US << n microseconds after it would have been, whichever comes first;
 *                         n is MOST_SHIFT at most: 64 times, a quarter of a second
 *   one of PROBES         is offered as the policy says, whatever has been. Both ends take the same ones, by their ports: two programs of which each has
 *                         become patient with others, and whose connections with each other are short, find out.
 *
 * Only where the policy's value is the one that comes with us: who has set `upgrade` gets what he says.
 */
#include "sock/sock.h"

#define IN_VAIN 8
#define MOST_SHIFT 6u
#define MOST (IN_VAIN * (i32)(MOST_SHIFT + 1))
#define EARLY_US 4000ull
#define CREDIT 16
#define MOST_CREDIT (-8 * CREDIT)
#define PROBES 32u

/* Several may count at once, and one of them is lost: it is a habit, no sum. */
void sd_peer_stayed_away(void)
{
    i32 n = load_rlx(&g.area[0]->strangers);

    if (n < MOST)
        store_rlx(&g.area[0]->strangers, n + 1);
}

void sd_peer_came(void)
{
    i32 n = load_rlx(&g.area[0]->strangers);

    n = (n < 0 ? n : 0) - CREDIT;
    store_rlx(&g.area[0]->strangers, n > MOST_CREDIT ? n : MOST_CREDIT);
}

/* The same at both ends. Ports stand at one place in the addresses of either family. */
static bool is_probe(int fd)
{
    u16 ours[64] = {0}, theirs[64] = {0};
    i32 len = sizeof ours, peer_len = sizeof theirs;

    if (SYS3(__NR_getsockname, fd, ours, &len) < 0 || SYS3(__NR_getpeername, fd, theirs, &peer_len) < 0)
        return false;
    return sd_mix((u64)(ours[1] ^ theirs[1])) % PROBES == 0;
}

/* To TCP and back it went with a peer that is under sdrun. */
static bool is_acquainted(const struct sd_block *b)
{
    return load_rlx(&b->tx_mode) != SD_MODE_TCP || load_rlx(&b->rx_mode) != SD_MODE_TCP || load_rlx(&b->given);
}

bool sd_waits_longer(struct sock *s, int fd, u32 ops)
{
    u32 n = (u32)load_rlx(&g.area[0]->strangers) / IN_VAIN, shift = n < MOST_SHIFT ? n : MOST_SHIFT;
    u64 now = sd_tsc();

    if (!n || is_acquainted(s->b))
        return false;
    if (!s->due_tsc)
        s->due_tsc = is_probe(fd) ? 1 : now | 1;
    return ops < g.cfg->upgrade_n << shift && now - s->due_tsc < (EARLY_US << shift) * g.tsc_per_us;
}
