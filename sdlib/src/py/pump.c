/* SPDX-License-Identifier: Apache-2.0
 *
 * pump.c - the bytes of a ring whose link is lost go by the program's own TCP connection: [H4] of sock/far.h, in its supervisor.
 *
 * The supervisor is the ring's consumer then, and the program does not notice: it goes on writing into the ring until it finds it empty, and
 * from then on to TCP (sd_tx_back). It holds the ring's token when it looks, so nothing comes behind what it has seen empty.
 */
#include <errno.h>
#include <sys/socket.h>
#include "ring/bell.h"
#include "ring/cork.h"
#include "ring/switch.h"
#include "sd_py.h"

#define MOVING_TRIES 2000000 /* the monitor is in there for nanoseconds, unless it was killed */

static struct sd_dir *out_of(void *segment, u32 side) { return &((struct sd_seg *)segment)->dir[side & 1]; }
static struct sd_dir *into(void *segment, u32 side) { return &((struct sd_seg *)segment)->dir[!(side & 1)]; }

void sd_pump_leave(void *segment, uint32_t side, uint32_t why)
{
    struct sd_seg *seg = segment;

    store_rel(&seg->lost, why);
    store_rel(&seg->direct, 0); /* nudges are ours from here on */
    cas_u32(&out_of(segment, side)->go_back, 0, SD_GO_BACK_CALL);
    atomic_fetch_or(&into(segment, side)->prod_hint, SD_HINT_LEAVING); /* [S4] */
}

enum sd_pump sd_pump_begin(void *segment, uint32_t side, struct sd_mark *mark)
{
    struct sd_seg *seg = segment;
    struct sd_dir *out = out_of(segment, side);

    if (load_acq(&out->sw_back))
        return SD_PUMP_DONE;
    if (!load_acq(&out->sw_ring))
        return SD_PUMP_LATER;
    if (load_acq(&seg->told) && !load_acq(&seg->heard))
        return SD_PUMP_UNKNOWN;
    atomic_exchange(&seg->pumped, SD_PUMPED_LOOKING); /* [H4] the program says LEAVING by a locked instruction, too: one of us sees the other */
    if (load_acq(&out->prod_hint) & SD_HINT_LEAVING) { /* it is on its way itself */
        store_rel(&seg->pumped, 0);
        return SD_PUMP_DONE;
    }
    store_rel(&seg->pumped, SD_PUMPED_MARK);
    for (u32 i = 0; i < MOVING_TRIES && load_acq(&seg->moving); i++)
        cpu_relax();
    *mark = (struct sd_mark){SD_MARK_MAGIC, {seg->far_id[0], seg->far_id[1]}, load_rlx(&out->head)};
    return load_acq(&seg->told) ? SD_PUMP_MARK : SD_PUMP_PLAIN;
}

void sd_pump_go(void *segment) { store_rel(&((struct sd_seg *)segment)->pumped, SD_PUMPED_BYTES); }

enum sd_pump sd_pump_step(void *segment, uint64_t ring_bytes, uint32_t side, int fd)
{
    struct sd_dir *out = out_of(segment, side);
    const u8 *ring = (const u8 *)segment + SD_SEG_HDR_BYTES + (side & 1) * ring_bytes;

    atomic_exchange(&out->bell, 0); /* [B1] whoever nudges from here on has news that we have not seen */
    sd_cork_uncover(out, ring_bytes, ring_bytes); /* who sends now sees that the link is lost, and holds nothing back */
    for (;;) {
        u64 head = load_rlx(&out->head), n = load_acq(&out->tail) - head; /* [R1] */
        u64 at = (head - load_acq(&out->base)) & (ring_bytes - 1);        /* [R3] */
        if (!n)
            return SD_PUMP_DONE;
        if (n > ring_bytes)
            return SD_PUMP_BROKEN;
        ssize_t r = send(fd, ring + at, n < ring_bytes - at ? n : ring_bytes - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0 && errno == EAGAIN)
            return SD_PUMP_LATER;
        if (r < 0) {
            store_rel(&out->head, head + n);
            return SD_PUMP_OVER;
        }
        store_rel(&out->head, head + (u64)r); /* [R2] */
    }
}

bool sd_pump_ended(void *segment, uint32_t side)
{
    struct sd_dir *out = out_of(segment, side);

    return load_acq(&((struct sd_seg *)segment)->pump_end) && load_acq(&out->tail) == load_rlx(&out->head);
}

bool sd_pump_arm(void *segment, uint32_t side)
{
    struct sd_dir *out = out_of(segment, side);

    store_rlx(&out->rx_armed, 1);
    sd_py_membarrier(); /* [W1] */
    return load_acq(&out->tail) != load_rlx(&out->head) || sd_cork_held(out, ((struct sd_seg *)segment)->ring_bytes) || /* [C3] */
           load_acq(&((struct sd_seg *)segment)->pump_end);
}
