/* SPDX-License-Identifier: Apache-2.0
 *
 * task.h - what /proc says of a thread.
 */
#ifndef SD_TASK_H
#define SD_TASK_H

#include "base/base.h"
#include "base/linux.h"

/* /proc/TID/`name`, ended by a 0: how many bytes; 0: nothing is known. */
static inline u64 sd_task_read(u32 tid, const char *name, char *text, u64 room)
{
    char path[40] = "/proc/";
    u32 at = 6 + sd_decimal(path + 6, tid);
    long fd, n;

    for (path[at++] = '/'; *name; name++)
        path[at++] = *name;
    fd = SYS4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    n = SYS3(__NR_read, fd, text, room - 1);
    SYS1(__NR_close, fd);
    text[n > 0 ? n : 0] = 0;
    return n > 0 ? (u64)n : 0;
}

enum sd_task { SD_TASK_UNKNOWN, SD_TASK_RUNS, SD_TASK_SLEEPS };
enum { SD_TASK_NR, SD_TASK_ARG, SD_TASK_SP = 7, SD_TASK_WORDS };

/* One word of /proc/TID/syscall, and where the next one begins. */
static inline u64 sd_task_number(const char **at, u32 base)
{
    u64 n = 0;

    for (;; (*at)++) {
        u32 digit = (u32)(u8)**at - '0';
        if (base == 16 && digit >= 'a' - '0' && digit <= 'f' - '0')
            digit -= 'a' - '0' - 10;
        if (digit >= base)
            break;
        n = n * base + digit;
    }
    *at += **at == ' ';
    *at += (*at)[0] == '0' && (*at)[1] == 'x' ? 2 : 0;
    return n;
}

/* The call in which it sleeps: number, six arguments, stack pointer. One that is stopped in no call has the number -1. */
static inline enum sd_task sd_task_call(u32 tid, u64 word[SD_TASK_WORDS])
{
    char text[256];
    const char *p = text;

    if (!sd_task_read(tid, "syscall", text, sizeof text))
        return SD_TASK_UNKNOWN;
    if (text[0] == 'r')
        return SD_TASK_RUNS; /* "running" */
    for (u32 i = 0; i < SD_TASK_WORDS; i++)
        word[i] = text[0] == '-' ? (u64)-1 : sd_task_number(&p, i ? 16 : 10);
    return SD_TASK_SLEEPS;
}

#endif
