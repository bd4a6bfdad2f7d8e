/* SPDX-License-Identifier: Apache-2.0
 *
 * vec.h - between a ring and the buffers of one vectored call. Nothing is committed: the caller does that, or tries again.
 *
 * `skip` bytes of the buffers are done with already. Both return the count of this attempt, SD_BROKEN or SD_FAULT.
 * A receive that consumes nothing takes from `behind` bytes after the head; a send that is held back goes `behind` bytes after the tail.
 * A send takes `most` bytes at the most.
 */
#ifndef SD_VEC_H
#define SD_VEC_H

#include "base/linux.h"
#include "ring/ring.h"

static inline i64 sd_rx_scatter(struct sd_end *e, const struct iovec *iov, u64 n, u64 skip, u64 behind)
{
    i64 got = 0;

    for (u64 i = 0; i < n; i++) {
        if (skip >= iov[i].len) {
            skip -= iov[i].len;
            continue;
        }
        i64 r = sd_rx_copy(e, iov[i].base + skip, iov[i].len - skip, behind + (u64)got);
        if (r < 0)
            return r;
        got += r;
        if ((u64)r < iov[i].len - skip)
            break;
        skip = 0;
    }
    return got;
}

static inline i64 sd_tx_gather(struct sd_end *e, const struct iovec *iov, u64 n, u64 skip, u64 behind, u64 most)
{
    i64 put = 0;

    for (u64 i = 0; i < n; i++) {
        if (skip >= iov[i].len) {
            skip -= iov[i].len;
            continue;
        }
        u64 left = most - (u64)put, len = iov[i].len - skip < left ? iov[i].len - skip : left;
        i64 r = sd_tx_copy(e, iov[i].base + skip, len, behind + (u64)put);
        if (r < 0)
            return r;
        put += r;
        if ((u64)r < iov[i].len - skip)
            break;
        skip = 0;
    }
    return put;
}

#endif
