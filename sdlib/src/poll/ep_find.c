/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_find.c - which descriptors are epoll sets, as the kernel says (epoll.h).
 *
 * Sets that the program has made before we came have to be known from the beginning, as those made later are (created() in ep_ctl.c): a thread may sleep on
 * one already, or will before the first socket of ours comes in. In the kernel behind our back it would be handed our tags, and it would not count
 * as one that sleeps, so nobody would arm the rings for it ([E1]).
 *
 * Runs with all threads stopped; its descriptor is gone before they go on. A full table of descriptors is looked through by number, as far as makes sense.
 */
#include "poll/epoll.h"

#define BUFFER_BYTES 2048
#define NAME_AT 19 /* of struct linux_dirent64 */
#define LENGTH_AT 16
#define KNOWN 64
#define BY_NUMBER 256
#define KCMP_FILE 0

bool ep_is_one(int fd)
{
    static const char want[] = "anon_inode:[eventpoll]";
    char path[32] = "/proc/self/fd/", name[sizeof(want) - 1];
    if (sd_epoll_of((u64)(u32)fd))
        return true;
    sd_decimal(path + 14, (u32)fd);
    if (SYS4(__NR_readlinkat, AT_FDCWD, path, name, sizeof(name)) != (long)sizeof(name))
        return false;
    for (u32 i = 0; i < sizeof(name); i++)
        if (name[i] != want[i])
            return false;
    return true;
}

struct found {
    int fd[KNOWN];
    u32 n;
};

static void look_at(struct found *f, int fd)
{
    int first = fd;

    if (sd_epoll_of((u64)(u32)fd) || !ep_is_one(fd))
        return;
    for (u32 i = 0; i < f->n && first == fd; i++)
        if (SYS5(__NR_kcmp, g.pid, g.pid, KCMP_FILE, f->fd[i], fd) == 0)
            first = f->fd[i];
    if (first == fd && f->n < KNOWN)
        f->fd[f->n++] = fd;
    sd_ep_adopt(fd, first);
}

static int number(const u8 *name)
{
    int fd = 0;

    if (*name < '0' || *name > '9')
        return -1;
    for (; *name >= '0' && *name <= '9' && fd < 0x7ffffff; name++)
        fd = fd * 10 + (*name - '0');
    return fd;
}

void sd_ep_find(void)
{
    u8 buffer[BUFFER_BYTES] __attribute__((aligned(8)));
    struct found f;
    long dir = SYS4(__NR_openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_CLOEXEC, 0), bytes;

    f.n = 0;
    for (int fd = 0; fd < BY_NUMBER && dir < 0; fd++)
        look_at(&f, fd);
    if (dir < 0)
        return;
    while ((bytes = SYS3(__NR_getdents64, dir, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < bytes; at += *(u16 *)(buffer + at + LENGTH_AT)) {
            int fd = number(buffer + at + NAME_AT);
            if (fd >= 0 && fd != dir)
                look_at(&f, fd);
        }
    SYS1(__NR_close, dir);
}

/* Out of ourselves: one descriptor more. */
void sd_ep_taken_in(int epfd, int from)
{
    if (sd_epoll_of((u32)from) && SYS5(__NR_kcmp, g.pid, g.pid, KCMP_FILE, from, epfd) == 0)
        sd_epoll_dup((u32)from, (u32)epfd);
    else
        sd_ep_came(epfd);
}
