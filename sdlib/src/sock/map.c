/* SPDX-License-Identifier: Apache-2.0
 *
 * map.c - a segment comes into this process's memory: the first one of a connection, or another in the place of the old one (again.c).
 */
#include "sock/far.h"
#include "sock/sock.h"

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
    at = SYS6(__NR_mmap, s->seg, st[6], PROT_READ | PROT_WRITE, MAP_SHARED | (s->seg ? MAP_FIXED : 0), sfd, 0); /* again.c */
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
