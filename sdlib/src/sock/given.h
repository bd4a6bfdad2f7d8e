/* SPDX-License-Identifier: Apache-2.0
 *
 * given.h - what a data call is given: looked at before anything is done, as the kernel would refuse it (calls.c, messages.c).
 */
#ifndef SD_GIVEN_H
#define SD_GIVEN_H

#include "base/user.h"
#include "sock/sock.h"

/* What the kernel would refuse at once. What looks good and is not mapped is found where it is used (base/user.h). */
static inline bool sd_bad_range(u64 p, u64 len) { return (p + len) >> 47 || p + len < p || (len && p < 4096); }

/* So much one call moves at most. send and recv look no further for where it would end; read and write do. */
#define SD_MOST_BYTES 0x7ffff000ull

/* Of what is read before anything is moved, and where a count may have to be told. */
static inline bool sd_is_given(u64 p, u64 len)
{
    if (sd_bad_range(p, len))
        return false;
    for (; len > 4096; p += 4096, len -= 4096)
        if (!sd_readable((u8 *)p))
            return false;
    return !len || sd_readable_all((u8 *)p, len);
}

/* Room for what is received. MSG_TRUNC throws it away, and looks only whether the addresses are a program's: proxies say NULL. */
static inline bool sd_bad_room(u64 p, u64 len, u32 flags) { return flags & MSG_TRUNC ? (p + len) >> 47 || p + len < p : sd_bad_range(p, len); }

/* The same for a vector: 0, -EFAULT, or -EINVAL for a length that is no ssize_t. */
long sd_bad_iov(const struct iovec *iov, u64 n, u32 flags);

/* The call is over, and what it has held may go. */
static inline long sd_done(struct sock *s, long r)
{
    sd_sock_put(s);
    return r;
}

#endif
