/* SPDX-License-Identifier: Apache-2.0
 *
 * option.c - options with which the kernel gives more than bytes, or not all of them: a connection that has one stays on TCP, or goes back to it.
 *
 * Receive timestamps are control messages about packets, a filter is asked about each packet (doorbells, too), and SO_PEEK_OFF moves a place in the
 * kernel's queue. Accepted sockets inherit them, so the kernel is asked before a connection is offered, not only when one is set.
 */
#include "sock/sock.h"

#define TCP_REPAIR 19
#define TCP_REPAIR_ON 1
#define TCP_REPAIR_OFF_NO_WP (-1)
#define SO_ATTACH_FILTER 26 /* and SO_GET_FILTER */
#define SO_TIMESTAMP_OLD 29
#define SO_TIMESTAMPNS_OLD 35
#define SO_TIMESTAMPING_OLD 37
#define SO_ATTACH_BPF 50
#define SO_TIMESTAMP_NEW 63
#define SO_TIMESTAMPNS_NEW 64
#define SO_TIMESTAMPING_NEW 65

static bool is_on(int fd, u64 name)
{
    return sd_get_int(fd, SOL_SOCKET, (int)name) != 0; /* 0 also where the kernel does not know it */
}

static bool has_filter(int fd)
{
    u32 instructions = 0;
    long r = SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_ATTACH_FILTER, NULL, &instructions);

    return instructions || r == -EACCES; /* which is no classic one, and not shown */
}


bool sd_option_keeps(int fd)
{
    return is_on(fd, SO_TIMESTAMP_OLD) || is_on(fd, SO_TIMESTAMPNS_OLD) || is_on(fd, SO_TIMESTAMPING_OLD) || is_on(fd, SO_TIMESTAMP_NEW) ||
           is_on(fd, SO_TIMESTAMPNS_NEW) || has_filter(fd) || sd_peek_offset(fd) >= 0;
}

/* The offset counts from the first unread byte, which may be in the ring. It is moved by all that is looked at and read of the kernel's queue, so it is
 * the program's again only when what is ours there has gone. */
static void peek_from(struct sock *s, int fd)
{
    i32 at = sd_peek_offset(fd);

    if (at < 0 || !sd_attached(s))
        return;
    sd_set_int(fd, SOL_SOCKET, SO_PEEK_OFF, -1);
    sd_recall(s, fd, SD_REASON_option);
    sd_set_int(fd, SOL_SOCKET, SO_PEEK_OFF, at);
}

/* The kernel shows its own queues then, and takes bytes into them: so all are to be there. In that mode it gives none, so it is left meanwhile. */
static void repaired(struct sock *s, int fd)
{
    i32 value = (i32)sd_get_int(fd, SOL_TCP, TCP_REPAIR);

    if (value != TCP_REPAIR_ON)
        return;
    if (!sd_attached(s)) {
        sd_go_back(s, fd, SD_REASON_option);
        return;
    }
    sd_set_int(fd, SOL_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP);
    sd_off_the_ring(s, fd, SD_REASON_option);
    sd_fast_off();
    if (!s->b->reason)
        s->b->reason = SD_REASON_option;
    sd_set_int(fd, SOL_TCP, TCP_REPAIR, value);
}

/* The kernel has set it. */
void sd_option_set(struct sock *s, int fd, u64 level, u64 name)
{
    if ((u32)level == SOL_TCP && (u32)name == TCP_REPAIR)
        repaired(s, fd);
    if (level != SOL_SOCKET)
        return;
    switch ((u32)name) {
    case SO_PEEK_OFF:
        peek_from(s, fd);
        __attribute__((fallthrough));
    case SO_ATTACH_FILTER:
    case SO_ATTACH_BPF:
    case SO_TIMESTAMP_OLD:
    case SO_TIMESTAMPNS_OLD:
    case SO_TIMESTAMPING_OLD:
    case SO_TIMESTAMP_NEW:
    case SO_TIMESTAMPNS_NEW:
    case SO_TIMESTAMPING_NEW:
        if (sd_option_keeps(fd))
            sd_go_back(s, fd, SD_REASON_option);
    }
}
