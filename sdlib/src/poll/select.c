/* SPDX-License-Identifier: Apache-2.0
 *
 * select.c - select(2) and pselect6(2), turned into entries for the core in poll.c.
 *
 * Which bits make a descriptor readable, writable or exceptional is fs/select.c: POLLIN_SET, POLLOUT_SET, POLLEX_SET.
 */
#include "poll/poll.h"

#define IN_SET (POLLRDNORM | POLLRDBAND | POLLIN | POLLHUP | POLLERR)
#define OUT_SET (POLLWRBAND | POLLWRNORM | POLLOUT | POLLERR)
#define EX_SET POLLPRI
#define MAX_FD 65536u /* size of the descriptor table that fd/ keeps */
#define ON_STACK 32

struct sets {
    u64 *in, *out, *ex;
    u32 nfds;
};

static u64 word(const u64 *set, u32 w)
{
    return set ? set[w] : 0;
}

/* The bits of word w that count. */
static u64 all_bits(const struct sets *st, u32 w)
{
    u64 bits = word(st->in, w) | word(st->out, w) | word(st->ex, w);
    u32 rest = st->nfds - w * 64;
    return rest < 64 ? bits & ((1ull << rest) - 1) : bits;
}

static u32 words(const struct sets *st)
{
    return (st->nfds + 63) / 64;
}

/* Number of descriptors in the sets; *ours: one of them matters to us. */
static u32 count(const struct sets *st, bool *ours)
{
    struct sd_pollitem it;
    u32 n = 0;
    *ours = false;
    for (u32 w = 0; w < words(st); w++)
        for (u64 bits = all_bits(st, w); bits; bits &= bits - 1, n++)
            *ours |= sd_pollitem_find(&it, (int)(w * 64 + (u32)__builtin_ctzll(bits)));
    return n;
}

static void fill(struct sd_pollset *p, const struct sets *st)
{
    u32 n = 0;
    for (u32 w = 0; w < words(st); w++) {
        for (u64 bits = all_bits(st, w); bits && n < p->n; bits &= bits - 1, n++) {
            u32 b = (u32)__builtin_ctzll(bits);
            struct sd_pollitem *it = &p->item[n];
            p->k[n] = (struct pollfd){.fd = (i32)(w * 64 + b)};
            p->ours += sd_pollitem_hold(p, it, p->k[n].fd);
            it->care = (word(st->in, w) >> b & 1 ? IN_SET : 0) | (word(st->out, w) >> b & 1 ? OUT_SET : 0)
                | (word(st->ex, w) >> b & 1 ? EX_SET : 0);
            it->want = it->care & ~(u32)(POLLERR | POLLHUP); /* these two the kernel always adds itself */
            it->back = w * 64 + b;
        }
    }
    p->n = n;
}

static long put(u64 *set, u32 fd)
{
    set[fd / 64] |= 1ull << (fd % 64);
    return 1;
}

/* Writes the answer into the program's sets. Before the first write nothing may fail any more. */
static long tell(const struct sd_pollset *p, const struct sets *st)
{
    long bits = 0;
    for (u32 w = 0; w < words(st); w++) {
        if (st->in)
            st->in[w] = 0;
        if (st->out)
            st->out[w] = 0;
        if (st->ex)
            st->ex[w] = 0;
    }
    for (u32 i = 0; i < p->n; i++) {
        u32 got = (u16)p->k[i].revents, care = p->item[i].care, fd = p->item[i].back;
        if (st->in && (care & POLLIN) && (got & IN_SET))
            bits += put(st->in, fd);
        if (st->out && (care & POLLOUT) && (got & OUT_SET))
            bits += put(st->out, fd);
        if (st->ex && (care & POLLPRI) && (got & EX_SET))
            bits += put(st->ex, fd);
    }
    return bits;
}

static long wait_and_tell(struct sd_pollset *p, const struct sets *st, struct sd_deadline *d, const struct sd_mask *m)
{
    fill(p, st);
    long r = sd_pollset_wait(p, d, m);
    sd_pollset_count(p);
    if (r < 0)
        return r;
    for (u32 i = 0; i < p->n; i++)
        if (p->k[i].revents & POLLNVAL)
            return -EBADF;
    return tell(p, st);
}

static NOINLINE long select_small(const struct sets *st, u32 n, struct sd_deadline *d, const struct sd_mask *m)
{
    struct pollfd k[ON_STACK];
    struct sd_pollitem item[ON_STACK];
    struct sd_pollset p = {.k = k, .item = item, .n = n};
    return wait_and_tell(&p, st, d, m);
}

static NOINLINE long select_big(const struct sets *st, u32 n, struct sd_deadline *d, const struct sd_mask *m)
{
    u64 bytes = n * (sizeof(struct pollfd) + sizeof(struct sd_pollitem));
    u8 *mem = sd_alloc(bytes);
    if (!mem)
        return -ENOMEM;
    struct sd_pollset p = {.item = (void *)mem, .k = (void *)(mem + n * sizeof(struct sd_pollitem)), .n = n};
    long r = wait_and_tell(&p, st, d, m);
    sd_free(mem, bytes);
    return r;
}

#define USUAL 1024 /* descriptors in the C library's fd_set */

/* How far the kernel's table reaches: it looks at no bit behind, and writes none, whatever the program says. Some say what RLIMIT_NOFILE says, with
 * sets that are much smaller. */
static u32 table_size(void)
{
    static const char name[] = "\nFDSize:\t";
    char text[640]; /* names, ids and FDSize come first */
    u32 size = 0;
    long fd = SYS4(__NR_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC, 0), len, at, k;

    if (fd < 0)
        return USUAL;
    len = SYS3(__NR_read, fd, text, sizeof text);
    SYS1(__NR_close, fd);
    for (at = 0; at + (long)sizeof name < len; at++) {
        for (k = 0; name[k] && text[at + k] == name[k]; k++)
            ;
        if (name[k])
            continue;
        for (k += at; k < len && text[k] >= '0' && text[k] <= '9'; k++)
            size = size * 10 + (u32)(text[k] - '0');
        return size;
    }
    return USUAL;
}

u32 sd_select_bits(u32 n)
{
    u32 bits = n < MAX_FD ? n : MAX_FD;

    return likely(n <= USUAL) ? bits : (u32)min_u64(bits, table_size());
}

static bool sets_of(struct sets *st, const struct sd_frame *f)
{
    i32 n = (i32)f->rdi;
    st->in = (u64 *)f->rsi;
    st->out = (u64 *)f->rdx;
    st->ex = (u64 *)f->r10;
    st->nfds = n > 0 ? sd_select_bits((u32)n) : 0;
    return n > 0 && !(st->in && sd_bad_ptr(st->in)) && !(st->out && sd_bad_ptr(st->out))
        && !(st->ex && sd_bad_ptr(st->ex));
}

static long run(const struct sets *st, u32 n, struct sd_deadline *d, const struct sd_mask *m)
{
    return n <= ON_STACK ? select_small(st, n, d, m) : select_big(st, n, d, m);
}

SD_CALL(sd_select)
{
    i64 *tv = (i64 *)f->r8; /* struct timeval: seconds, microseconds */
    struct sd_deadline d = {.ns = SD_FOREVER};
    struct sd_mask m = {0};
    struct timespec64 ts;
    struct sets st;
    bool ours;
    if (t->foreign || !sets_of(&st, f) || (tv && sd_bad_ptr(tv)))
        return SD_PASS;
    u32 n = count(&st, &ours);
    if (!ours)
        return SD_PASS;
    if (tv) {
        if (tv[0] < 0 || tv[1] < 0)
            return SD_PASS; /* EINVAL */
        ts.sec = tv[0] + tv[1] / 1000000; /* the kernel takes more than a second of microseconds */
        ts.nsec = tv[1] % 1000000 * 1000;
        if (!sd_deadline_ts(&d, &ts))
            return SD_PASS;
    }
    long r = run(&st, n, &d, &m);
    if (tv && d.from_tsc) {
        sd_ns_ts(sd_deadline_left(&d), &ts);
        tv[0] = ts.sec;
        tv[1] = ts.nsec / 1000;
    }
    return r;
}

struct sigset_arg {
    const void *set;
    u64 size;
};

SD_CALL(sd_pselect6)
{
    struct timespec64 *ts = (struct timespec64 *)f->r8;
    const struct sigset_arg *arg = (const struct sigset_arg *)f->r9;
    struct sigset_arg copy = {NULL, 8};
    struct sd_deadline d;
    struct sd_mask m;
    struct sets st;
    bool ours = false;
    u32 n = 0;
    if (arg) {
        if (sd_bad_ptr(arg))
            return SD_PASS;
        copy = *arg;
        if (copy.set && (copy.size != 8 || sd_bad_ptr(copy.set)))
            return SD_PASS;
    }
    sd_mask_init(&m, copy.set, copy.size);
    if (!t->foreign && sets_of(&st, f) && !(ts && sd_bad_ptr(ts)))
        n = count(&st, &ours);
    if (!ours || !sd_deadline_ts(&d, ts)) {
        copy.set = m.set;
        return m.copied ? SYS6(__NR_pselect6, f->rdi, f->rsi, f->rdx, f->r10, f->r8, &copy) : SD_PASS;
    }
    long r = run(&st, n, &d, &m);
    if (ts && d.from_tsc)
        sd_ns_ts(sd_deadline_left(&d), ts);
    return r;
}
