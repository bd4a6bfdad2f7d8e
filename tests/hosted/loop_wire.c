/* SPDX-License-Identifier: Apache-2.0
 *
 * loop_wire.c - the monitor's device and the other host, for the explorer: what one sends is counted, what the other says arrives as completions.
 */
#include <string.h>
#include "loop_inside.h"

/* ---------------------------------------------------------------------------- the device */

int wire_poll(struct ibv_cq *c, int most, struct ibv_wc *wc)
{
    int n = 0;

    (void)c;
    for (; n < most && l.taken != l.put; n++) {
        const struct arriving *a = &l.wire[l.taken++ % WIRE];
        wc[n] = (struct ibv_wc){.wr_id = RECEIVE | a->index, .qp_num = a->pair, .byte_len = a->size,
                                .imm_data = __builtin_bswap32(a->slot << SD_NUMBER_BITS | (u8)a->number),
                                .opcode = a->record ? IBV_WC_RECV : IBV_WC_RECV_RDMA_WITH_IMM};
    }
    return n;
}

int wire_post(struct ibv_qp *q, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    u64 head;

    (void)bad;
    if (q->qp_num != l.pair)
        host_fail("a request of a queue pair that is closed");
    if (wr->opcode == IBV_WR_SEND_WITH_IMM && *(u8 *)(uintptr_t)wr->sg_list->addr == SD_BELL_RECORD) {
        l.bells++;
        memset((void *)(uintptr_t)wr->sg_list->addr, 0, SD_BELL_RECORD_BYTES); /* what was in a buffer once is part of the state */
    } else if (wr->opcode == IBV_WR_SEND_WITH_IMM) {
        memcpy(&head, (u8 *)(uintptr_t)wr->sg_list->addr + 5, 8);
        l.credit = head;
    } else {
        l.sent += wr->sg_list->length;
    }
    queue[l.pair - 1].done = queue[l.pair - 1].posted + 1; /* what has completions is another matter */
    host_changed();
    return 0;
}

int sd_queue_receive(struct sd_queue *q, u32 index) { return (void)q, (void)index, 0; }
int sd_device_fd(struct sd_device *d) { return (void)d, CHANNEL; }

int sd_device_arm(struct sd_device *d)
{
    (void)d;
    host_point("arm the channel");
    l.told = 0;
    l.armed = 1;
    return 0;
}

int sd_far_ring(void *segment, u32 side, u32 number, int tid, int fd, u64 cookie)
{
    (void)segment, (void)side, (void)number, (void)tid, (void)fd, (void)cookie;
    return EAGAIN;
}

/* Without a queue pair it waits over there. */
void wire_brings(struct arriving a)
{
    if (!l.pair)
        return;
    if (l.put - l.taken == WIRE)
        host_fail("the test's wire is full");
    a.pair = l.pair;
    a.number = l.numbered++;
    l.wire[l.put++ % WIRE] = a;
    if (l.armed) {
        l.armed = 0;
        l.told = 1;
    }
    host_changed();
}

/* -------------------------------------------------------------------------- the other host */

static void write_bytes(u32 n)
{
    static const char text[] = "tuvwxyz";

    for (u32 i = 0; i < n; i++) {
        w.ring[1][(START + l.came) & 3] = (u8)text[l.came % 7];
        l.came++;
    }
    wire_brings((struct arriving){.slot = 1, .size = n});
}

static void say_read(void)
{
    u8 *body = l.messages + (l.put % WIRE) * SD_VERBS_MESSAGE;
    u64 head = START + l.sent;
    u32 slot = 1;

    body[0] = SD_CREDIT;
    memcpy(body + 1, &slot, 4);
    memcpy(body + 5, &head, 8);
    l.seen = l.sent;
    wire_brings((struct arriving){.record = 1, .size = SD_CREDIT_BYTES, .index = l.put % WIRE});
}

static void ring_here(void)
{
    struct stream *st = &w.net.dir[1];

    st->data[st->written++] = 0;
    st->arrived++;
    l.rung++;
    bells_sent++;
    host_changed();
}

static bool something(long nothing)
{
    (void)nothing;
    return l.pair && (l.bells != l.rung || (l.sent != l.seen && !loop_script.silent));
}

void loop_far(void)
{
    for (u32 i = 0; i < ARRAY_LEN(loop_script.bytes) && loop_script.bytes[i]; i++) {
        host_point("the other host writes");
        write_bytes(loop_script.bytes[i]);
    }
    for (u32 i = 0; i < loop_script.records; i++) {
        host_point("the other host speaks");
        l.messages[(l.put % WIRE) * SD_VERBS_MESSAGE] = 99;
        wire_brings((struct arriving){.record = 1, .size = 1, .index = l.put % WIRE});
    }
    if (loop_script.second) {
        host_point("the other host writes to the second");
        wire_brings((struct arriving){.slot = 2, .size = loop_script.second});
    }
    for (;;) {
        host_point("the other host looks");
        if (!something(0))
            host_wait(something, 0, false);
        if (l.bells != l.rung)
            ring_here();
        else
            say_read();
    }
}
