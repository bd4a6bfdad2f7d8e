/* SPDX-License-Identifier: Apache-2.0
 *
 * lives.h - is it worth it to offer a connection? What is known about connections like it, and the sum that is done with that. No system calls.
 *
 * Rings cost a connection COST_NS of CPU time (supervisor, monitor, mapping: each end's half), and save it SAVES_NS an operation; both are measured, docs/performance.md,
 * "What a switch costs". So it has to go on for WORTH operations. How long it will is known of those before it, which went to the same port, or came from the
 * same listener: of all that were as old as this one now, which part was over before it had become twice as old.
 *
 * Age and life count calls that have sent or received something, and as one more each 16 KiB, which save as much.
 */
#ifndef SD_LIVES_H
#define SD_LIVES_H

#include "base/base.h"
#include "sd_abi.h"

#define COST_NS 2700000u
#define SAVES_NS 4200u
#define WORTH (COST_NS / SAVES_NS)
#define AHEAD 12u         /* so far is looked: 2^12 operations, from there on to four times its age */
#define OLD_STRANGER 12u  /* as old as that it is offered whether its like were paired or not, */
#define OLD 14u           /* and in any case: what an offer costs is then little against what it has done */
#define QUICK 2           /* what came last counts a quarter */
#define UNIT 255u

static inline u32 sd_log2(u64 n)
{
    return n ? 63u - (u32)__builtin_clzll(n) : 0;
}

/* Parts of UNIT; it gets to either end of the range. Several may count at once, and one of them is lost: it is a habit, no sum. */
static inline void sd_habit(SD_ATOMIC uint8_t *of, bool happened)
{
    u32 was = load_rlx(of), to = happened ? UNIT : 0;

    store_rlx(of, (u8)(happened ? was + ((to - was + (1u << QUICK) - 1) >> QUICK) : was - ((was + (1u << QUICK) - 1) >> QUICK)));
}

/* One has ended. */
static inline void sd_life_ended(struct sd_lives *l, u64 life)
{
    u32 last = sd_log2(life);

    for (u32 k = SD_LIVES_FROM; k < SD_LIVES_FROM + SD_LIVES_AGES && k <= last; k++)
        sd_habit(&l->ends[k - SD_LIVES_FROM], k == last);
}

/* Operations that one of that age may still do, as far as is looked. Nothing known: all of them. */
static inline u64 sd_life_ahead(const struct sd_lives *l, u64 age)
{
    u32 k = sd_log2(age), end = k + 2 > AHEAD ? k + 2 : AHEAD;
    u64 alive = 1u << 16, sum = 0;

    for (; k < end; k++) {
        u32 at = k < SD_LIVES_FROM ? 0 : k - SD_LIVES_FROM, part = at < SD_LIVES_AGES ? load_rlx(&l->ends[at]) : 0;
        u64 dies = alive * part / UNIT;
        alive -= dies;
        sum += (alive << k) + (dies << k) / 2;
    }
    return sum >> 16;
}

/* enum sd_reason why it is not, SD_REASON_none: it is. */
static inline u32 sd_life_says(const struct sd_lives *l, u64 age)
{
    u32 old = sd_log2(age), away = old < OLD_STRANGER ? load_rlx(&l->away) : 0;

    if (old >= OLD || sd_life_ahead(l, age) * (UNIT - away) / UNIT >= WORTH)
        return SD_REASON_none;
    return away > UNIT / 2 ? SD_REASON_peer_plain : SD_REASON_short_lived;
}

#endif
