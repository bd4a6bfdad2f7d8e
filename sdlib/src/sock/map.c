/* SPDX-License-Identifier: Apache-2.0
 *
 * map.c - a segment comes into this process's memory: the first one of a connection, or another in the place of the old one (again.c).
 */
#include "sock/far.h"
#include "sock/sock.h"

#define PROT_NONE 0
#define MADV_NOHUGEPAGE 15
#define MADV_DONTDUMP 16

/* Of the rings little is ever touched. A program that locks all its future memory (mlockall) would have all of them touched at once: so they come without access,
 * and the kernel touches nothing when a shared mapping gets it. For core dumps it would fill them,
 * and where it makes huge pages of shared memory, of one byte two megabytes. In the place of others they come at once: threads may look there. */
static long map_shared(void *at, u64 bytes, long fd)
{
    long r = SYS6(__NR_mmap, at, bytes, at ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_SHARED | (at ? MAP_FIXED : 0), fd, 0);

    if (r < 0 && r > -4096)
        return r;
    SYS3(__NR_madvise, r, bytes, MADV_DONTDUMP);
    SYS3(__NR_madvise, r, bytes, MADV_NOHUGEPAGE);
    if (at || SYS3(__NR_mprotect, r, bytes, PROT_READ | PROT_WRITE) == 0)
        return r;
    SYS2(__NR_munmap, r, bytes);
    return -ENOMEM;
}

bool sd_map_segment(struct sock *s, int fd)
{
    struct sd_seg *seg;
    struct sd_end e = {0};
    u64 st[18]; /* struct stat: st_size is the seventh word */
    u32 len;
    long sfd, at;

    sfd = sd_hypercall_fd(SD_HC_ATTACH, 0, sd_sock_name(s));
    if (sfd < 0)
        return false;
    if (SYS2(__NR_fstat, sfd, st) < 0) {
        SYS1(__NR_close, sfd);
        return false;
    }
    if (unlikely(s->seg) && st[6] != SD_SEG_HDR_BYTES + 2 * s->e.bytes) {
        if (g.mt) { /* a sleeper may look at the old rings yet */
            SYS1(__NR_close, sfd);
            return false;
        }
        SYS2(__NR_munmap, s->seg, SD_SEG_HDR_BYTES + 2 * s->e.bytes);
        s->seg = NULL;
    }
    at = map_shared(s->seg, st[6], sfd); /* again.c */
    SYS1(__NR_close, sfd);
    if (at < 0 && at > -4096) {
        s->seg = NULL; /* what was there may be gone, too */
        return false;
    }
    seg = (struct sd_seg *)at;
    if (sd_end_open(&e, seg, st[6], s->b->side) < 0) {
        if (!s->seg)
            SYS2(__NR_munmap, at, st[6]);
        return false;
    }
    sd_rx_awake(&e); /* [W4] who slept before an execve does not any more */
    s->e = e;
    s->seg = seg;
    if (unlikely(g.cfg->without & SD_WITHOUT_window))
        s->e.tx_window = ~0ull;
    s->e.tx_past &= !(g.cfg->without & SD_WITHOUT_past);
    if (sd_is_far(s))
        store_rlx(&seg->dir[s->b->side & 1].arrived, 1); /* our side of it: TCP's bytes are told by the mark [H1] */
    len = sizeof s->cookie;
    SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_COOKIE, &s->cookie, &len);
    sd_tx_limit(s, fd);
    return true;
}
