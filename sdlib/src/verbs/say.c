/* SPDX-License-Identifier: Apache-2.0
 *
 * say.c - what the loop says to the other monitor by itself, and does for it (sd_verbs.h): doorbells and credits, which programs wait for.
 *
 * Words tell the same as numbers (mirror.py): whatever was said here, the next ones say again. So nothing may go out here while words wait for room, and
 * nothing that arrives be heeded here while words wait for Python: it would be taken for newer than it is.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include "verbs/verbs.h"

/* The program that reads this copy sleeps: ask the other host for a doorbell [B1]. */
bool sd_say_sleeps(struct sd_queue *q, struct sd_mirrored *m)
{
    struct ibv_send_wr wr = {.opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .imm_data = htonl(m->far_slot)};

    if (!load_acq(&sd_into(m)->sw_ring) || load_acq(&sd_into(m)->sw_back))
        return true; /* it sleeps on TCP, or looks by itself */
    if (!m->worded || m->asked != m->asked_said || q->behind || !sd_queue_room(q, SPARE))
        return false;
    if (!sd_copy_bell_take(m->copy, m->side))
        return true;
    store_rlx(&((struct sd_seg *)m->copy)->bells_asked, ++m->asked); /* to outlive us */
    wr.wr.rdma.remote_addr = m->far_address;
    wr.wr.rdma.rkey = m->far_rkey;
    if (sd_queue_post(q, &wr, 0) < 0)
        return false;
    m->asked_said = m->asked;
    q->bells++;
    return true;
}

/* The other one asks for a doorbell. What cannot be done here and now, its supervisor is asked for, who finds the socket wherever it is. */
bool sd_say_rings(struct sd_queue *q, struct sd_mirrored *m)
{
    int r;

    if (!m || !m->live || !m->tid || m->ringing || m->wanted != m->rung || q->device->untold)
        return false;
    r = sd_far_ring(m->copy, m->side, m->rung + 1, m->tid, m->fd, m->cookie);
    if (r < 0)
        m->tid = 0;
    if (r < 0 || r == EAGAIN)
        return false;
    m->wanted = ++m->rung;
    q->rings++;
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
