/* SPDX-License-Identifier: Apache-2.0
 *
 * maps.c - /proc/self/maps, read a line at a time without memory of its own.
 *
 * Looks for the mapping that holds an address, and for a hole near it where a page of stubs fits: the nearest below by preference,
 * since what lies directly above a program may be its heap, which grows.
 */
#include "gate/gate.h"

struct reader {
    long fd;
    i32 at, len;
    u8 buf[512];
};

static int next_byte(struct reader *r)
{
    if (r->at == r->len) {
        r->len = (i32)SYS3(__NR_read, r->fd, r->buf, sizeof r->buf);
        r->at = 0;
        if (r->len <= 0)
            return -1;
    }
    return r->buf[r->at++];
}

static int hex(struct reader *r, u64 *v)
{
    int c;

    *v = 0;
    while ((c = next_byte(r)) >= 0) {
        if (c >= '0' && c <= '9')
            *v = *v << 4 | (u64)(c - '0');
        else if (c >= 'a' && c <= 'f')
            *v = *v << 4 | (u64)(c - 'a' + 10);
        else
            break;
    }
    return c;
}

/* "lo-hi rwxp offset maj:min inode path\n" */
static bool line(struct reader *r, struct sd_map *m)
{
    u64 junk, inode = 0;
    int c;

    if (hex(r, &m->lo) != '-' || hex(r, &m->hi) != ' ')
        return false;
    m->prot = 0;
    while ((c = next_byte(r)) > ' ')
        m->prot |= c == 'r' ? PROT_READ : c == 'w' ? PROT_WRITE : c == 'x' ? PROT_EXEC : c == 's' ? 8 : 0;
    if (hex(r, &junk) != ' ' || hex(r, &junk) != ':' || hex(r, &junk) != ' ')
        return false;
    while ((c = next_byte(r)) >= '0' && c <= '9')
        inode = inode * 10 + (u64)(c - '0');
    m->file = inode != 0;
    while (c >= 0 && c != '\n')
        c = next_byte(r);
    return true;
}

#define REACH 0x70000000ull /* less than 2 GiB: the module itself may be large */

bool sd_map_find(u64 addr, struct sd_map *m, u64 *hole)
{
    struct reader r = {.fd = SYS4(__NR_openat, -100, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0)};
    struct sd_map l;
    u64 end = 0x10000; /* vm.mmap_min_addr and a margin */
    bool found = false;

    *hole = 0;
    if (r.fd < 0)
        return false;
    while (line(&r, &l)) {
        /* A guard page on either side, so that no neighbour grows into it. */
        if (l.lo > end && l.lo - end >= 3 * 4096) {
            u64 cand = l.lo - 2 * 4096;
            if (cand <= addr && addr - cand < REACH)
                *hole = cand;
            else if (!*hole && cand > addr && cand - addr < REACH)
                *hole = cand;
        }
        if (addr >= l.lo && addr < l.hi) {
            *m = l;
            found = true;
        }
        end = l.hi;
        if (found && *hole)
            break;
    }
    SYS1(__NR_close, r.fd);
    return found;
}
