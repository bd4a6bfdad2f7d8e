/* SPDX-License-Identifier: Apache-2.0
 *
 * say.c - what the loop says to the other monitor by itself, and does for it (sd_verbs.h): doorbells and credits, which programs wait for.
 *
 * Words tell the same as numbers (mirror.py): whatever was said here, the next ones say again. So nothing may go out here while words wait for room, and no
 * credit that arrives be heeded here while words wait for Python: they would be taken for newer than they are.
 */
#include <errno.h>
#include <string.h>
#include "verbs/verbs.h"

/* The program that reads this copy sleeps: ask the other host for a doorbell [B1]. By how many that makes, so that the same said twice is nothing new, and
 * nothing is missed when one ask is overtaken by another. */
bool sd_say_sleeps(struct sd_queue *q, struct sd_mirrored *m)
{
    u8 record[SD_BELL_RECORD_BYTES] = {SD_BELL_RECORD};

    if (!load_acq(&sd_into(m)->sw_ring) || load_acq(&sd_into(m)->sw_back))
        return true; /* it sleeps on TCP, or looks by itself */
    if (!m->worded || q->behind || !sd_queue_room(q, SPARE))
        return false;
    if (!sd_copy_bell_take(m->copy, m->side))
        return true;
    store_rlx(&((struct sd_seg *)m->copy)->bells_asked, ++m->asked); /* to outlive us */
    memcpy(record + 1, &m->far_slot, 4);
    memcpy(record + 5, &m->asked, 4);
    if (sd_queue_send(q, record, sizeof record) < 0)
        return false;
    m->asked_said = m->asked;
    q->bells++;
    return true;
}

/* What cannot be done here and now, the program's supervisor is asked for, who finds the socket wherever it is. */
static bool ring(struct sd_queue *q, struct sd_mirrored *m)
{
    int r;

    if (!m->tid || m->ringing)
        return false;
    r = sd_far_ring(m->copy, m->side, m->rung + 1, m->tid, m->fd, m->cookie);
    if (r < 0)
        m->tid = 0;
    if (r < 0 || r == EAGAIN)
        return false;
    m->rung++;
    q->rings++;
    return true;
}

/* The other one asks for a doorbell. */
bool sd_heard_bell(struct sd_queue *q, const u8 *body, u32 size)
{
    struct sd_mirrored *m;
    u32 slot, asked;

    if (size != SD_BELL_RECORD_BYTES || body[0] != SD_BELL_RECORD)
        return false;
    memcpy(&slot, body + 1, 4);
    memcpy(&asked, body + 5, 4);
    m = sd_queue_find(q, slot);
    if (!m || !m->live)
        return false;
    if ((i32)(asked - m->wanted) > 0)
        m->wanted = asked;
    if (m->wanted - m->rung > SD_BELLS_MOST)
        m->rung = m->wanted - SD_BELLS_MOST;
    while (m->wanted != m->rung)
        if (!ring(q, m))
            return false;
    return true;
}

/* How far the program has read. */
bool sd_say_credit(struct sd_queue *q, struct sd_mirrored *m)
{
    u64 head = load_acq(&sd_into(m)->head); /* [R2] */
    u8 record[SD_CREDIT_BYTES] = {SD_CREDIT};

    if (!m->worded || q->behind || !sd_queue_room(q, SPARE) || m->landed - head > m->ring_bytes)
        return false;
    memcpy(record + 1, &m->far_slot, 4);
    memcpy(record + 5, &head, 8);
    if (sd_queue_send(q, record, sizeof record) < 0)
        return false;
    m->head_said = head;
    q->credits++;
    return true;
}

bool sd_heard_credit(struct sd_queue *q, const u8 *body, u32 size)
{
    struct sd_mirrored *m;
    u64 head, before;
    u32 slot;

    if (size != SD_CREDIT_BYTES || body[0] != SD_CREDIT || q->device->untold)
        return false;
    memcpy(&slot, body + 1, 4);
    memcpy(&head, body + 5, 8);
    m = sd_queue_find(q, slot);
    if (!m || !m->live)
        return false;
    before = load_rlx(&sd_out_of(m)->head);
    if (head - before > m->sent - before)
        return false; /* it has read what was never sent: Python says so */
    return head == before || !sd_copy_credit(m->copy, m->side, head) || sd_say_sleeps(q, m);
}
