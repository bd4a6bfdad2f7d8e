/* SPDX-License-Identifier: Apache-2.0
 *
 * sd_py.h - what Python can call of sdlib/src/ring: one end of a segment, without a socket and without injecting anything.
 *
 * Each function is the ring's own of a similar name (ring/ring.h, ring/bell.h, ring/switch.h say what it means); src/py/end.c only gives it
 * types that cffi knows. Positions of the TCP stream come from the caller, who may have a real connection or pretend to.
 * Counts are >= 0 or SD_PY_BROKEN: the peer has written an index that no honest one can.
 */
#ifndef SD_PY_H
#define SD_PY_H

#ifndef SD_CFFI
#include <stdbool.h>
#include <stdint.h>
struct sd_mark;
#endif

#define SD_PY_BROKEN (-1)

/* What a consumer has to do (enum sd_sw). */
enum sd_py_step { SD_PY_TCP = 0, SD_PY_DRAIN = 1, SD_PY_RING = 2, SD_PY_BAD = 3 };

/* One buffer of a vectored call (struct iovec). */
struct sd_py_buffer {
    uint8_t *base;
    uint64_t bytes;
};

struct sd_py_end; /* this end's private half: what the peer cannot change */

/* ---- time */

uint64_t sd_py_tsc(void);

/* ---- segment */

void sd_py_format(void *segment, uint32_t ring_bytes);
/* Both indices of direction `dir`, for tests that start just below the wrap. Before anybody has opened the segment. */
void sd_py_start_at(void *segment, uint32_t dir, uint64_t counter);
/* NULL if the header is not what file_bytes allow, or out of memory. The memory must outlive the end. */
struct sd_py_end *sd_py_open(void *segment, uint64_t file_bytes, uint32_t side);
void sd_py_close(struct sd_py_end *end);

/* ---- bytes */

int64_t sd_py_readable(struct sd_py_end *end);
int64_t sd_py_writable(struct sd_py_end *end);
int64_t sd_py_put(struct sd_py_end *end, const uint8_t *data, uint64_t n);
int64_t sd_py_take(struct sd_py_end *end, uint8_t *data, uint64_t n);
int64_t sd_py_peek(struct sd_py_end *end, uint8_t *data, uint64_t n);
/* As sendmsg and recvmsg: `skip` bytes of the buffers are done with already. */
int64_t sd_py_gather(struct sd_py_end *end, struct sd_py_buffer *buffers, uint64_t count, uint64_t skip);
int64_t sd_py_scatter(struct sd_py_end *end, struct sd_py_buffer *buffers, uint64_t count, uint64_t skip);

/* ---- sleeping and waking */

bool sd_py_rx_arm(struct sd_py_end *end);
void sd_py_rx_disarm(struct sd_py_end *end);
bool sd_py_rx_news(struct sd_py_end *end);
void sd_py_tx_arm(struct sd_py_end *end);
void sd_py_tx_disarm(struct sd_py_end *end);
bool sd_py_data_wanted(struct sd_py_end *end);
bool sd_py_fence_begin(struct sd_py_end *end);
void sd_py_fence_say(struct sd_py_end *end);
void sd_py_fence_end(struct sd_py_end *end);
bool sd_py_room_wanted(struct sd_py_end *end);
/* So many bytes of ours are unread at most. */
void sd_py_tx_most(struct sd_py_end *end, uint64_t most);
bool sd_py_bell_take(struct sd_py_end *end);
void sd_py_bell_give_back(struct sd_py_end *end);
bool sd_py_bell_due(struct sd_py_end *end);
void sd_py_bell_eaten(struct sd_py_end *end);
bool sd_py_bell_hear(struct sd_py_end *end);
/* membarrier(GLOBAL_EXPEDITED), registering first. 0 or -errno. */
int sd_py_membarrier(void);

/* ---- the switch */

void sd_py_attached_say(struct sd_py_end *end);
bool sd_py_attached_said(struct sd_py_end *end, uint32_t side);
void sd_py_sw_publish(struct sd_py_end *end, uint64_t tcp_pos);
bool sd_py_sw_published(struct sd_py_end *end);
enum sd_py_step sd_py_sw_decide(struct sd_py_end *end, uint64_t tcp_pos, uint64_t *left);
void sd_py_sw_arrive(struct sd_py_end *end);
bool sd_py_back_announce(struct sd_py_end *end);
void sd_py_back_publish(struct sd_py_end *end, uint64_t tcp_pos);
bool sd_py_back_asked(struct sd_py_end *end);
bool sd_py_back_published(struct sd_py_end *end);
bool sd_py_bells_over(struct sd_py_end *end);
bool sd_py_back_reached(struct sd_py_end *end);
uint64_t sd_py_back_left(struct sd_py_end *end, uint64_t tcp_pos);
void sd_py_hint_say(struct sd_py_end *end, uint32_t hint);
uint32_t sd_py_end_error(struct sd_py_end *end, uint32_t err);

/* ---- recall ([S5], ring/switch.h), by the supervisor of the producer on `side`, whose threads stand still */

struct sd_recalled {
    uint64_t ring_bytes; /* in: as the file's size says */
    uint64_t tcp_pos;    /* in: bytes that this end has written to TCP */
    uint64_t bytes, at;  /* out: so many are unread, from this place in the ring on */
    bool ring;           /* out: a doorbell goes first */
    bool broken;         /* out: the other end cannot be given its bytes as they were: reset it ([S6]) */
};

bool sd_recall_begin(void *segment, uint32_t side, struct sd_recalled *r);
/* All of them are sent; they stand behind this position of the stream. */
void sd_recall_end(void *segment, uint32_t side, uint64_t tcp_pos);
/* The same for a way back that need not have been asked for: `bytes` are 0 where the peer reads the ring to its end, and then sd_back_end follows. */
void sd_back_begin(void *segment, uint32_t side, struct sd_recalled *r);
void sd_back_end(void *segment, uint32_t side, uint64_t tcp_pos);
/* The consumer on `side` has waited for too long. True: nobody sends again, and it may read the ring. */
bool sd_recall_drop(void *segment, uint32_t side);
/* What the consumer on `side` has not read of a producer that has gone, or is back on TCP and stands still: `bytes` from `at` on. False: the ring is
 * broken. The second: somebody else has taken them. The third: what is to be told behind them, of what the kernel says. */
bool sd_left_begin(void *segment, uint32_t side, struct sd_recalled *r);
void sd_left_end(void *segment, uint32_t side);
uint32_t sd_left_error(void *segment, uint32_t side, uint32_t err);

/* ---- the monitor as the other party in a host's copy of a segment (sock/far.h). `side` is the program's; the copy is mapped whole. */

/* What the program has said. Counters as they are: the program is not trusted with them. */
struct sd_copy_words {
    uint64_t tail, base, head, sw_ring;
    uint32_t hint, go_back, attached, settle_ask, heard;
};

/* A new copy: we read at once, so nobody has to be woken for us; and we fence [W3]. */
void sd_copy_init(void *segment, uint32_t side, uint64_t id0, uint64_t id1);
void sd_copy_read(void *segment, uint32_t side, struct sd_copy_words *words);
/* The other program's words; its bytes and tail come first. */
void sd_copy_tell(void *segment, uint32_t side, const struct sd_copy_words *words);
/* The tail of what has come, the head of what was read over there. True: somebody sleeps, and has to be rung for. */
bool sd_copy_land(void *segment, uint32_t side, uint64_t tail);
bool sd_copy_credit(void *segment, uint32_t side, uint64_t head);
void sd_copy_settle(void *segment, uint32_t answer);
/* [H3] Our switch is about to be said to the other host. */
void sd_copy_told(void *segment);
void sd_copy_lose(void *segment);
/* True: ask the other host for one doorbell now [B1]. */
bool sd_copy_bell_take(void *segment, uint32_t side);
/* One is under way, or lost, and the program waits for what it was asked for. */
bool sd_copy_unheard(void *segment, uint32_t side);
/* Going to sleep, membarrier to follow; and awake. The second: the program shall switch, so that we can ring in its direction. */
void sd_copy_arm(void *segment, uint32_t side, bool data, bool room);
/* [H2] True: `who` (enum sd_ringing) may send a byte on the program's socket, before sd_copy_ring_leave. */
bool sd_copy_ring_enter(void *segment, uint32_t side, uint32_t who);
void sd_copy_ring_leave(void *segment, uint32_t who);
/* A copy of an earlier monitor, which may have been killed at anything. */
void sd_copy_hold(void *segment);
/* A duplicate of a task's descriptor, if that is the socket with this cookie; -errno. */
int sd_far_take(int tid, int fd, uint64_t cookie);
/* The doorbell of that number, if it was not rung before, on the program's socket (-1: it has none). 0 or an errno; but for EAGAIN it is done with,
 * whatever came of it. */
int sd_far_bell(int segment, uint32_t side, uint32_t number, int sock);
/* The same for the monitor's loop, which has the copy mapped and takes the socket from whom its supervisor has found it with. -errno of taking it:
 * not done. */
int sd_far_ring(void *segment, uint32_t side, uint32_t number, int tid, int fd, uint64_t cookie);

/* ---- [H4] the supervisor as the consumer of its program's ring, whose bytes it takes to TCP (src/py/pump.c). `side` is the program's. */

enum sd_pump {
    SD_PUMP_DONE,    /* nothing is in the ring; of begin: the direction is back on TCP, or on its way */
    SD_PUMP_LATER,   /* begin: it has not switched; step: the kernel takes no more now */
    SD_PUMP_MARK,    /* begin: this mark goes first */
    SD_PUMP_PLAIN,   /* begin: the other host does not know of the switch: the bytes go as they are */
    SD_PUMP_UNKNOWN, /* begin: whether it does, nobody knows */
    SD_PUMP_BROKEN,  /* step: no honest program */
    SD_PUMP_OVER,    /* step: the connection is over; what was in the ring is thrown away */
};

/* The monitor gives the copy up (`why`: enum sd_lost): the program is asked to go on by TCP, and looks by itself where a doorbell would have woken it. */
void sd_pump_leave(void *segment, uint32_t side, uint32_t why);
enum sd_pump sd_pump_begin(void *segment, uint32_t side, struct sd_mark *mark);
/* The mark is sent: from now on the program may follow, once the ring is empty. */
void sd_pump_go(void *segment);
enum sd_pump sd_pump_step(void *segment, uint64_t ring_bytes, uint32_t side, int fd);
/* Nothing is in the ring: be told of more. True: there is more by now, or the end. */
bool sd_pump_arm(void *segment, uint32_t side);
bool sd_pump_ended(void *segment, uint32_t side);

#include "sd_verbs.h"

#endif
