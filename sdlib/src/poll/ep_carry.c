/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_carry.c - epoll sets that are older than the library: they lived through execve, or the program has been running before it.
 *
 * Before an exec the kernel's registrations are the program's own again (sd_ep_before_exec). The new image knows nothing of them, and a set in which nobody
 * arms the rings would never wake up: so it reads what is registered from /proc/self/fdinfo and registers its connections anew, by the program's own way.
 */
#include "poll/epoll.h"

#define TEXT_BYTES (128u * 1024) /* about 1200 registrations; more are read again */
#define TEXT_MAX (TEXT_BYTES << 6)

static u64 number(const u8 **p, const u8 *end, u32 base)
{
    u64 n = 0;

    while (*p < end && **p == ' ')
        (*p)++;
    for (; *p < end; (*p)++) {
        u32 c = **p, digit = c - '0' < 10 ? c - '0' : c - 'a' < 6 ? c - 'a' + 10 : 99;
        if (digit >= base)
            break;
        n = n * base + digit;
    }
    return n;
}

/* Behind `name` in the line that starts at *p; false: the line has no such field. */
static bool field(const u8 **p, const u8 *end, const char *name)
{
    const u8 *at = *p;

    while (at < end && *at == ' ')
        at++;
    for (; *name; name++, at++)
        if (at >= end || *at != (u8)*name)
            return false;
    *p = at;
    return true;
}

static long read_fdinfo(int epfd, u8 *text, u32 room)
{
    char path[40] = "/proc/self/fdinfo/";
    long fd, r, len = 0;

    sd_decimal(path + 18, (u32)epfd);
    fd = SYS4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    while (len < (long)room && (r = SYS3(__NR_read, fd, text + len, room - len)) > 0)
        len += r;
    SYS1(__NR_close, fd);
    return len;
}

/* A one-shot that has fired and was not armed again. */
static void again_off(int epfd, int fd, struct sd_tcb *t)
{
    struct ep *ep = sd_epoll_of((u64)epfd);
    struct sock *s = sd_sock_of((u64)fd);
    struct reg *r = ep && s ? reg_find(s, ep, fd) : NULL;
    u64 old;

    if (!r)
        return;
    ep_structure_lock(&old);
    r->off = true;
    ep_settle(r, PEND_TOUCH | PEND_SYNC, t);
    ep_structure_unlock(&old);
}

/* "tfd:        5 events:       19 data:                5  pos:0 ino:.. sdev:.." */
static void again(int epfd, const u8 *p, const u8 *end, struct sd_tcb *t)
{
    struct epoll_event ev;
    struct sd_frame f = {.rdi = (u64)epfd, .rsi = EPOLL_CTL_ADD, .r10 = (u64)&ev};
    struct ep *inner;

    if (!field(&p, end, "tfd:"))
        return;
    f.rdx = number(&p, end, 10);
    if (!field(&p, end, "events:"))
        return;
    ev.events = (u32)number(&p, end, 16);
    if (!field(&p, end, "data:"))
        return;
    ev.data = number(&p, end, 16);
    if ((inner = sd_epoll_of(f.rdx)))
        ep_watch(inner); /* nothing in it is on a ring yet */
    if (!sd_sock_of(f.rdx) || SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_DEL, f.rdx, NULL) != 0)
        return;
    sd_epoll_ctl(&f, t);
    if ((ev.events & EPOLLONESHOT) && !(ev.events & ~PRIVATE_BITS))
        again_off(epfd, (int)f.rdx, t);
}

/* The kernel makes the text when it is first read, and keeps it: a part of it is none. */
static long all_fdinfo(int epfd, u8 **text, u32 *room)
{
    long len = -ENOMEM;

    for (*room = TEXT_BYTES; *room <= TEXT_MAX; *room <<= 2) {
        *text = sd_alloc(*room);
        len = *text ? read_fdinfo(epfd, *text, *room) : -ENOMEM;
        if (len < (long)*room)
            break;
        sd_free(*text, *room);
        *text = NULL;
    }
    return *text ? len : -ENOMEM;
}

void sd_ep_carried(int epfd)
{
    u32 room;
    u8 *text = NULL;
    long len = all_fdinfo(epfd, &text, &room);
    const u8 *end = text + (len > 0 ? len : 0);

    for (const u8 *p = text; p < end;) {
        const u8 *line = p;
        while (p < end && *p != '\n')
            p++;
        again(epfd, line, p, sd_self());
        p++;
    }
    sd_free(text, room);
}

/* A set of a program that has been running: as if we had seen it made. */
void sd_ep_adopt(int epfd, int first)
{
    u64 old;

    ep_structure_lock(&old);
    if (first == epfd)
        ep_new(epfd, sd_self());
    else if (sd_epoll_of((u64)first))
        sd_epoll_dup((u64)first, (u64)epfd);
    ep_structure_unlock(&old);
}
