/* SPDX-License-Identifier: Apache-2.0
 *
 * carried.c - which connections a queue pair carries, by the slot that the other host names, and which of them the loop looks at (sd_verbs.h).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "verbs/verbs.h"

/* Where `slot` is, or would be. */
static u32 place_of(const struct sd_queue *q, u32 slot)
{
    u32 low = 0, high = q->count;

    while (low < high) {
        u32 mid = (low + high) / 2;
        if (q->carried[mid]->slot < slot)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

struct sd_mirrored *sd_queue_find(const struct sd_queue *q, u32 slot)
{
    u32 at = place_of(q, slot);

    return at < q->count && q->carried[at]->slot == slot ? q->carried[at] : NULL;
}

void sd_queue_unwatch(struct sd_queue *q, struct sd_mirrored *m)
{
    struct sd_mirrored *last;

    sd_threads_uncall(m);
    if (!m->place)
        return;
    last = q->watched[--q->watching];
    q->watched[m->place - 1] = last;
    last->place = m->place;
    m->place = 0;
}

void sd_mirrored_watch(struct sd_mirrored *m, bool watched)
{
    struct sd_queue *q = m->queue;

    if (!watched && q && q->device->threads)
        return; /* they know which ones they sleep on */
    m->watched = watched;
    if (!q)
        return;
    if (!watched) {
        sd_queue_unwatch(q, m);
    } else if (!m->place) {
        q->watched[q->watching++] = m;
        m->place = q->watching;
        sd_threads_changed(q->device);
    }
}

static bool grow(struct sd_mirrored ***list, u32 size)
{
    void *more = realloc(*list, size * sizeof **list);

    if (more)
        *list = more;
    return more;
}

int sd_queue_carry(struct sd_queue *q, struct sd_mirrored *m)
{
    u32 at = place_of(q, m->slot);

    if (at < q->count && q->carried[at]->slot == m->slot)
        return 0;
    if (q->count == q->size) {
        u32 size = q->size ? 2 * q->size : 16;
        if (!grow(&q->carried, size) || !grow(&q->watched, size))
            return -ENOMEM;
        q->size = size;
    }
    memmove(q->carried + at + 1, q->carried + at, (q->count - at) * sizeof *q->carried);
    q->carried[at] = m;
    q->count++;
    m->queue = q;
    m->noted = 0;
    sd_mirrored_watch(m, m->watched);
    return 0;
}

void sd_queue_drop(struct sd_queue *q, uint32_t slot)
{
    u32 at = place_of(q, slot);

    if (at == q->count || q->carried[at]->slot != slot)
        return;
    sd_queue_unwatch(q, q->carried[at]);
    q->carried[at]->queue = NULL;
    memmove(q->carried + at, q->carried + at + 1, (--q->count - at) * sizeof *q->carried);
}

void sd_queue_leave(struct sd_queue *q)
{
    struct sd_queue **at = &q->device->queues;

    while (*at && *at != q)
        at = &(*at)->next;
    if (*at)
        *at = q->next;
    for (u32 i = 0; i < q->count; i++) {
        sd_threads_uncall(q->carried[i]);
        q->carried[i]->queue = NULL;
        q->carried[i]->place = 0;
    }
}

void sd_queue_live(struct sd_queue *q)
{
    q->live = true;
    sd_threads_changed(q->device);
}
