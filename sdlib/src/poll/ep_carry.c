/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_carry.c - epoll sets that live through execve.
 *
 * Before it, the kernel's registrations are the program's own again (sd_ep_before_exec). The new image knows nothing of them, and a set in which nobody
 * arms the rings would never wake up: so it reads what is registered from /proc/self/fdinfo and registers its connections anew, by the program's own way.
 */
#include "poll/epoll.h"

#define TEXT_BYTES (128u * 1024) /* about 1200 registrations */

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

static long read_fdinfo(int epfd, u8 *text)
{
    char path[40] = "/proc/self/fdinfo/", digits[12];
    u32 n = 18, k = 0;
    long fd, r, len = 0;

    for (u32 v = (u32)epfd; k == 0 || v; v /= 10)
        digits[k++] = (char)('0' + v % 10);
    while (k)
        path[n++] = digits[--k];
    fd = SYS4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    while (len < (long)TEXT_BYTES && (r = SYS3(__NR_read, fd, text + len, TEXT_BYTES - len)) > 0)
        len += r;
    SYS1(__NR_close, fd);
    return len;
}

/* "tfd:        5 events:       19 data:                5  pos:0 ino:.. sdev:.." */
static void again(int epfd, const u8 *p, const u8 *end, struct sd_tcb *t)
{
    struct epoll_event ev;
    struct sd_frame f = {.rdi = (u64)epfd, .rsi = EPOLL_CTL_ADD, .r10 = (u64)&ev};

    if (!field(&p, end, "tfd:"))
        return;
    f.rdx = number(&p, end, 10);
    if (!field(&p, end, "events:"))
        return;
    ev.events = (u32)number(&p, end, 16);
    if (!field(&p, end, "data:"))
        return;
    ev.data = number(&p, end, 16);
    if (sd_sock_of(f.rdx) && SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_DEL, f.rdx, NULL) == 0)
        sd_epoll_ctl(&f, t);
}

void sd_ep_carried(int epfd)
{
    u8 *text = sd_alloc(TEXT_BYTES);
    long len = text ? read_fdinfo(epfd, text) : -ENOMEM;
    const u8 *end = text + (len > 0 ? len : 0);

    for (const u8 *p = text; p < end;) {
        const u8 *line = p;
        while (p < end && *p != '\n')
            p++;
        again(epfd, line, p, sd_self());
        p++;
    }
    sd_free(text, TEXT_BYTES);
}
