/* SPDX-License-Identifier: Apache-2.0
 *
 * held.c - bytes that a program holds back (TCP_CORK, MSG_MORE; ring/cork.h) on their way to another host.
 *
 * The monitor is the consumer of its host's copy, so it uncovers what has been held for as long as TCP does: nobody of the program's may be running then.
 * The time counts from when we have seen them first, which the program's doorbell has us do if we sleep [C3]. Another tail means that those were
 * uncovered, and what is held now is younger.
 */
#include "ring/cork.h"
#include "verbs/verbs.h"

#define HELD_NS (SD_CORK_US * 1000ull)

uint64_t sd_mirrored_held(struct sd_mirrored *m, bool over)
{
    struct sd_dir *out = sd_out_of(m);
    u64 tail = load_acq(&out->tail), now;

    if (likely(!sd_cork_held(out, m->ring_bytes))) {
        m->held_since = 0;
        return 0;
    }
    now = sd_verbs_now();
    if (!m->held_since || m->held_tail != tail) {
        m->held_since = now;
        m->held_tail = tail;
    }
    if (!over && now - m->held_since < HELD_NS)
        return m->held_since + HELD_NS;
    sd_cork_uncover(out, m->ring_bytes, m->ring_bytes); /* [C2] */
    m->held_since = 0;
    return 0;
}
