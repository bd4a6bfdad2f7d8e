/* SPDX-License-Identifier: Apache-2.0
 *
 * carry.c - connections that an exec has left: the next image takes them over by the list that the supervisor has kept.
 */
#include "poll/poll.h"
#include "sock/sock.h"

static bool carried_over(const struct sd_area *a, u32 index)
{
    u32 state = index < SD_AREA_BLOCKS ? load_acq(&a->block[index].state) : SD_BLOCK_FREE;

    return state != SD_BLOCK_FREE && state != SD_BLOCK_PINNED;
}

/* The connection of entry `i`, which may be a duplicate of an earlier one; NULL: its block is over, or its segment cannot be mapped. */
static struct sock *take_over(const struct sd_carry *c, u32 i)
{
    struct sd_area *a = sd_area_get(c[i].block >> 16);
    u32 index = c[i].block & 0xffff;
    struct sock *s = NULL;

    if (!a || !carried_over(a, index))
        return NULL;
    for (u32 k = 0; k < i && !s; k++)
        if (c[k].block == c[i].block)
            s = sd_sock_of((u64)c[k].fd);
    if (s)
        return s;
    s = sd_sock_carried(c[i].block, &a->block[index]);
    if (s && load_rlx(&s->b->state) == SD_BLOCK_ATTACHED)
        return sd_map_segment(s, c[i].fd) ? s : NULL;
    if (s && load_rlx(&s->b->users) <= 1) { /* threads that the exec has ended in a receive or send are in no other's way */
        store_rlx(&s->b->rx_plain, 0);
        store_rlx(&s->b->tx_plain, 0);
    }
    return s;
}

void sd_socks_carried(const struct sd_carry *c, u32 n)
{
    sd_area_get(0);
    sd_parts_after_exec();
    for (u32 i = 0; i < n; i++) {
        struct sock *s;

        if (c[i].block == SD_CARRY_EPOLL && sd_epoll_of((u64)c[i].fd))
            continue; /* sd_ep_find() has been there */
        if (c[i].block == SD_CARRY_AREAS)
            continue;
        sd_fdkind[c[i].fd & 0xffff] = 0;
        if (c[i].block == SD_CARRY_EPOLL)
            continue;
        s = take_over(c, i);
        if (s)
            sd_fd_install(c[i].fd, s);
    }
    for (u32 i = 0; i < n; i++)
        if (c[i].block == SD_CARRY_EPOLL)
            sd_ep_carried(c[i].fd);
}
