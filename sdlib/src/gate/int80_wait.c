/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_wait.c - time-outs of 32 bits, and select's sets, which i386 counts in words of 32 bits (int80.c).
 */
#include "gate/int80.h"
#include "poll/poll.h"

struct time32 {
    i32 sec, frac;
};

struct set_arg32 { /* pselect6's last argument */
    u32 set, size;
};

/* *arg points to a struct timespec of i386: from here on to one of ours. */
long sd_int80_time(struct sd_int80 *c, u64 *arg)
{
    struct time32 t;

    if (!*arg)
        return 0;
    if (sd_get32(&t, *arg, sizeof t))
        return -EFAULT;
    c->user_ts = *arg;
    c->ts = (struct timespec64){t.sec, t.frac};
    c->tell = c->tell ? c->tell : SD_TELL_TIME;
    *arg = (u64)&c->ts;
    return 0;
}

/* What is left of it, as the kernel tells: never an error. (select's is a struct timeval: seconds and microseconds, here as there.) */
static void tell_time(const struct sd_int80 *c)
{
    struct time32 t = {(i32)c->ts.sec, (i32)c->ts.nsec};

    if (c->user_ts)
        sd_put32(c->user_ts, &t, sizeof t);
}

static u64 bytes_of(const struct sd_int80 *c) { return (c->bits + 31) / 32 * 4; }

static long sets_in(struct sd_int80 *c)
{
    u64 *arg[3] = {&c->f.rsi, &c->f.rdx, &c->f.r10}, words;
    i32 n = (i32)c->f.rdi;

    c->bits = n > 0 ? sd_select_bits((u32)n) : 0;
    c->tell = SD_TELL_SETS;
    words = (c->bits + 63) / 64;
    c->sets = sd_int80_room(c, 24 * (words ? words : 1));
    if (!c->sets)
        return -ENOMEM;
    for (u32 i = 0; i < 3; i++) {
        u64 *set = c->sets + i * words;
        c->set[i] = (u32)*arg[i];
        if (!c->set[i])
            continue;
        if (words)
            set[words - 1] = 0;
        if (sd_get32(set, c->set[i], bytes_of(c)))
            return -EFAULT;
        *arg[i] = (u64)set;
    }
    if (n > 0)
        c->f.rdi = c->bits;
    return 0;
}

/* pselect6: pointer and size of a set of signals lie in memory. */
static long mask_in(struct sd_int80 *c)
{
    struct set_arg32 a;

    if (!c->f.r9)
        return 0;
    if (sd_get32(&a, c->f.r9, sizeof a))
        return -EFAULT;
    c->pair[0] = a.set;
    c->pair[1] = a.size;
    c->f.r9 = (u64)c->pair;
    return 0;
}

/* select: all arguments lie in memory in the old form. */
long sd_int80_select(struct sd_int80 *c)
{
    u32 arg[5];
    long r;

    if (c->nr == 82) {
        if (sd_get32(arg, (u32)c->f.rdi, sizeof arg))
            return -EFAULT;
        c->f.rdi = arg[0], c->f.rsi = arg[1], c->f.rdx = arg[2], c->f.r10 = arg[3], c->f.r8 = arg[4];
    }
    r = sets_in(c);
    if (!r && (u32)c->f.rax == __NR_pselect6)
        r = mask_in(c);
    return r || c->nr == 413 ? r : sd_int80_time(c, &c->f.r8); /* 413: its time-out has 64 bits */
}

long sd_int80_wait_told(struct sd_int80 *c, long r)
{
    tell_time(c);
    if (c->tell != SD_TELL_SETS || r < 0)
        return r;
    for (u32 i = 0; i < 3; i++)
        if (c->set[i] && sd_put32(c->set[i], c->sets + i * ((c->bits + 63) / 64), bytes_of(c)))
            return -EFAULT;
    return r;
}
