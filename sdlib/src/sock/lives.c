/* SPDX-License-Identifier: Apache-2.0
 *
 * lives.c - connections that would be over before rings had paid for themselves, or whose peers mostly do not come, are not offered until they are older.
 *
 * Those of a port are of one kind: the port that was connected to, or that it listens on. What is known about a kind (lives.h) is learnt by the whole family of forks, when
 * a connection ends that had done as much as the policy wants, and when a peer comes. Nothing known: all are offered, as the policy says. A connection that is not is asked about again
 * whenever it has become twice as old.
 *
 * Only where the policy's value is the one that comes with us: who has set `upgrade` gets what he says.
 */
#include "sock/lives.h"
#include "sock/sock.h"

#define WAYS 4u

/* Of the kind that this connection is of; 0: it does not say. Ports stand at one place in the addresses of either family. */
static u32 kind_of(const struct sock *s, int fd)
{
    u16 at[64] = {0};
    i32 len = sizeof at;
    bool connected = s->b->role == 1;

    if (SYS3(connected ? __NR_getpeername : __NR_getsockname, fd, at, &len) < 0 || !at[1])
        return 0;
    return 1u << 16 << connected | at[1];
}

/* Its place, from 1 on. Where all are taken one that others have had is begun anew. */
static u8 place_of(u32 kind)
{
    struct sd_lives *all = g.area[0]->lives;
    u32 first = (u32)sd_mix(kind) % SD_AREA_LIVES;

    for (u32 i = 0; i < WAYS; i++) {
        u32 at = (first + i) % SD_AREA_LIVES;
        if (load_rlx(&all[at].kind) == kind || (!load_rlx(&all[at].kind) && cas_u32(&all[at].kind, 0, kind)))
            return (u8)(at + 1);
    }
    sd_zero((u8 *)&all[first], sizeof all[first]);
    store_rlx(&all[first].kind, kind);
    return (u8)(first + 1);
}

static struct sd_lives *lives_of(const struct sock *s)
{
    return s->lives && g.area[0] ? &g.area[0]->lives[s->lives - 1] : NULL;
}

static u64 age_of(const struct sd_block *b)
{
    return b->messages_tx + b->messages_rx + (b->bytes_tcp + b->bytes_shm_tx + b->bytes_shm_rx) / 16384;
}

/* Has been on a ring, or has come from one. */
static bool is_acquainted(const struct sd_block *b)
{
    return load_rlx(&b->tx_mode) != SD_MODE_TCP || load_rlx(&b->rx_mode) != SD_MODE_TCP || load_rlx(&b->given);
}

bool sd_wait_longer(struct sock *s, int fd, u32 ops)
{
    struct sd_block *b = s->b;
    u64 age = age_of(b);
    u32 kind, why;

    if (!s->lives && g.area[0] && (kind = kind_of(s, fd)))
        s->lives = place_of(kind);
    if (!s->lives || is_acquainted(b))
        return false;
    why = sd_life_says(lives_of(s), age);
    if (b->reason == SD_REASON_none || b->reason == SD_REASON_short_lived || b->reason == SD_REASON_peer_plain)
        b->reason = (u16)why;
    s->due = why ? ops + (u32)((2ull << sd_log2(age)) - age) : 0;
    return why;
}

void sd_peer_came(struct sock *s)
{
    if (s->lives && g.area[0])
        sd_habit(&lives_of(s)->away, false);
}

void sd_lived(struct sock *s, u32 state)
{
    struct sd_lives *l = lives_of(s);

    if (!l)
        return;
    sd_life_ended(l, age_of(s->b));
    if (state == SD_BLOCK_OFFERED)
        sd_habit(&l->away, true);
    s->lives = 0;
}
