/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_msg.c - lists of pieces, message headers and control messages, as i386 lays them out (int80.c).
 *
 * Control messages have a header of 12 bytes there, and are aligned to 4; what is in them is the same, but for times.
 */
#include "gate/int80.h"
#include "sock/sock.h"

#define IOV_MAX 1024u
#define CONTROL_MAX (1u << 17)
#define SCM_RIGHTS 1
#define SCM_TIMESTAMP 29
#define SCM_TIMESTAMPNS 35
#define SCM_TIMESTAMPING 37

struct iovec32 {
    u32 base, len;
};

struct msghdr32 {
    u32 name;
    i32 namelen;
    u32 iov, iovlen, control, controllen, flags;
};

struct mmsghdr32 {
    struct msghdr32 hdr;
    u32 len;
};

struct cmsghdr32 {
    u32 len;
    i32 level, type;
};

struct cmsghdr {
    u64 len;
    i32 level, type;
};

static u64 up(u64 n, u64 to) { return (n + to - 1) & ~(to - 1); }

long sd_int80_vectors(struct sd_int80 *c, u32 from, u64 n, struct iovec **out)
{
    struct iovec32 v;

    if (c->niov + n <= ARRAY_LEN(c->iov)) {
        *out = c->iov + c->niov;
        c->niov += (u32)n;
    } else {
        *out = sd_int80_room(c, n * sizeof **out);
    }
    if (!*out)
        return -ENOMEM;
    for (u64 i = 0; i < n; i++) {
        if (sd_get32(&v, from + i * sizeof v, sizeof v))
            return -EFAULT;
        if ((i32)v.len < 0)
            return -EINVAL;
        (*out)[i] = (struct iovec){(u8 *)(u64)v.base, v.len};
    }
    return 0;
}

/* ---------------------------------------------------------- control messages */

static long control_out(struct sd_int80 *c, struct msghdr *m, u64 from, u64 left)
{
    struct cmsghdr32 h;
    struct cmsghdr *to;
    u8 *out;

    if (left > CONTROL_MAX)
        return -ENOBUFS;
    out = sd_int80_room(c, 2 * left + sizeof *to); /* a header is longer by a third, and alignment adds 4 bytes at most */
    if (!out)
        return -ENOMEM;
    m->control = out;
    while (left >= sizeof h) {
        if (sd_get32(&h, from, sizeof h))
            return -EFAULT;
        if (h.len < sizeof h || h.len > left)
            return -EINVAL;
        to = (struct cmsghdr *)out;
        *to = (struct cmsghdr){h.len + sizeof *to - sizeof h, h.level, h.type};
        if (sd_copy_user(to + 1, (const void *)(from + sizeof h), h.len - sizeof h))
            return -EFAULT;
        out += up(to->len, 8);
        from += up(h.len, 4);
        left -= min_u64(up(h.len, 4), left);
    }
    m->controllen = (u64)(out - (u8 *)m->control);
    return m->controllen ? 0 : -EINVAL;
}

/* Room for what would fit there: of one message exactly as much, so that as many descriptors come. */
static long control_in(struct sd_int80 *c, struct msghdr *m, u64 len)
{
    if (len < sizeof(struct cmsghdr32))
        return 0; /* none fits: MSG_CTRUNC */
    len = min_u64(len, CONTROL_MAX);
    m->controllen = len < 28 ? len + 4 : 2 * len + 16;
    m->control = sd_int80_room(c, m->controllen);
    return m->control ? 0 : -ENOMEM;
}

static void close_fds(const i32 *fd, u64 n)
{
    for (u64 i = 0; i < n; i++) {
        struct sd_frame f = {.rax = __NR_close, .rdi = (u32)fd[i]};
        if (sd_call_handler(&f, sd_self()) == SD_PASS)
            SYS1(__NR_close, fd[i]);
    }
}

/* Seconds and fractions, of 64 bits each, become 32 bits in place. */
static u64 short_times(void *data, u64 bytes)
{
    const i64 *from = data;
    i32 *to = data;

    for (u64 i = 0; i < bytes / 8; i++)
        to[i] = (i32)from[i];
    return bytes / 8 * 4;
}

/* One of them to the program, which has `left` bytes. How many were written, or -EFAULT. */
static long tell_one(struct cmsghdr *h, u64 to, u64 left, u32 *flags)
{
    u64 n = h->len - sizeof *h, fits = left < sizeof(struct cmsghdr32) ? 0 : left - sizeof(struct cmsghdr32);
    struct cmsghdr32 out = {0, h->level, h->type};

    if (h->level == SOL_SOCKET && (h->type == SCM_TIMESTAMP || h->type == SCM_TIMESTAMPNS || h->type == SCM_TIMESTAMPING))
        n = short_times(h + 1, n);
    if (n > fits) {
        *flags |= MSG_CTRUNC;
        if (h->level == SOL_SOCKET && h->type == SCM_RIGHTS) {
            fits &= ~3ull;
            close_fds((const i32 *)(h + 1) + fits / 4, (n - fits) / 4);
        }
        n = fits;
        if (!n)
            return 0;
    }
    out.len = (u32)(sizeof out + n);
    if (sd_put32(to, &out, sizeof out) || sd_put32(to + sizeof out, h + 1, n))
        return -EFAULT;
    return (long)min_u64(up(out.len, 4), left);
}

static long tell_control(struct msghdr *m, const struct msghdr32 *u, u32 *told)
{
    u64 left = m->controllen, room = u->controllen, to = u->control;
    u8 *at = m->control;

    *told = 0;
    while (m->control && left >= sizeof(struct cmsghdr)) {
        struct cmsghdr *h = (struct cmsghdr *)at;
        long n;
        if (h->len < sizeof *h || h->len > left)
            break;
        n = tell_one(h, to, room, &m->flags);
        if (n < 0)
            return n;
        to += (u64)n;
        room -= (u64)n;
        *told += (u32)n;
        at += up(h->len, 8);
        left -= min_u64(up(h->len, 8), left);
    }
    return 0;
}

/* ------------------------------------------------------------------ headers */

static long header(struct sd_int80 *c, const struct msghdr32 *u, struct msghdr *m, bool sending)
{
    long r;

    if (u->iovlen > IOV_MAX)
        return -EMSGSIZE;
    *m = (struct msghdr){.name = (void *)(u64)u->name, .namelen = u->namelen, .iovlen = u->iovlen, .flags = u->flags};
    r = sd_int80_vectors(c, u->iov, u->iovlen, &m->iov);
    if (!r && u->control && u->controllen)
        r = sending ? control_out(c, m, u->control, u->controllen) : control_in(c, m, u->controllen);
    return r;
}

long sd_int80_message(struct sd_int80 *c, bool sending)
{
    struct msghdr32 u;

    if (sd_get32(&u, c->f.rsi, sizeof u))
        return -EFAULT;
    c->user = c->f.rsi;
    c->f.rsi = (u64)&c->m;
    c->tell = sending ? SD_TELL_NOTHING : SD_TELL_MESSAGE;
    return header(c, &u, &c->m, sending);
}

static long tell(u64 user, struct msghdr *m)
{
    struct msghdr32 u;
    u32 control;

    if (sd_get32(&u, user, sizeof u) || tell_control(m, &u, &control))
        return -EFAULT;
    if (u.name)
        u.namelen = m->namelen;
    u.controllen = control;
    u.flags = m->flags;
    return sd_put32(user, &u, sizeof u) ? -EFAULT : 0;
}

long sd_int80_message_told(struct sd_int80 *c, long r)
{
    long error = r < 0 ? 0 : tell(c->user, &c->m);

    return error ? error : r;
}

long sd_int80_messages(struct sd_int80 *c, bool sending)
{
    u64 n = min_u64((u32)c->f.rdx, IOV_MAX);
    struct mmsghdr *m = n ? sd_int80_room(c, n * sizeof *m) : NULL;
    struct mmsghdr32 u;
    long r;

    c->user = c->f.rsi;
    c->f.rsi = (u64)m;
    c->f.rdx = n;
    c->tell = SD_TELL_MESSAGES;
    if (n && !m)
        return -ENOMEM;
    for (u64 i = 0; i < n; i++) {
        r = sd_get32(&u, c->user + i * sizeof u, sizeof u) ? -EFAULT : header(c, &u.hdr, &m[i].hdr, sending);
        if (r && !i)
            return r;
        if (r) { /* those before it are sent, and the error is found by who goes on there */
            c->f.rdx = i;
            break;
        }
        m[i].len = 0;
    }
    return 0;
}

long sd_int80_messages_told(struct sd_int80 *c, long r)
{
    struct mmsghdr *m = (struct mmsghdr *)c->f.rsi;

    for (long i = 0; i < r; i++) {
        u64 user = c->user + (u64)i * sizeof(struct mmsghdr32);
        if (((u32)c->f.rax == __NR_recvmmsg && tell(user, &m[i].hdr)) || sd_put32(user + offsetof(struct mmsghdr32, len), &m[i].len, 4))
            return i ? i : -EFAULT;
    }
    return r;
}
