/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz.c - this side sends, receives, polls, switches and arms while a hostile peer writes anything into any word of the segment.
 *
 * The peer comes in before every single access to a shared word. Header and rings lie in allocations of exactly their size, so that the
 * address sanitizer sees any step outside; the receiving ring must stay as it is, and of the header only our own words may be written. When
 * the peer has become quiet, each call must come to its end: nothing it has left there may hold us in a loop.
 *
 *     fuzz SEED CALLS     a failure prints the seed and the call; the same arguments show it again
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"
#include "poll/poll.h"

#define CALL_BYTES 200

long sd_fast_read(u64 fd, u8 *buf, u64 len);
long sd_fast_write(u64 fd, const u8 *buf, u64 len);
long sd_shared_read(u64 fd, u8 *buf, u64 len);
long sd_shared_write(u64 fd, const u8 *buf, u64 len);

struct sd_seg *seg;
u8 *ring[2];
struct sock sk;
struct net net;
u64 step;
bool inside;

static u8 shadow[RING];
static struct sd_block block;
static struct sd_area area; /* for the participants; the peer cannot see it */
static u64 seed, calls;
static u64 outcome[8];
enum { SENT, RECEIVED, AGAIN, DROPPED, FAILED, ENDED, ON_RING, WENT_BACK };

u64 rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

bool one_in(u64 n) { return rnd() % n == 0; }

static u64 first_seed;
static const char *now = "start";

void host_fail(const char *why)
{
    printf("FAIL seed %llu, call %llu (%s): %s\n", (unsigned long long)first_seed, (unsigned long long)calls, now, why);
    fflush(stdout);
    abort();
}

/* ------------------------------------------------------------------- calls */

static const u32 flag_sets[] = {0, MSG_DONTWAIT, MSG_DONTWAIT, MSG_DONTWAIT | MSG_PEEK, MSG_PEEK, MSG_WAITALL, MSG_TRUNC,
                                MSG_TRUNC | MSG_DONTWAIT, MSG_PEEK | MSG_WAITALL};

/* Buffers of exactly their size; the last may be empty. */
static u64 make_iov(struct iovec *v, u64 n)
{
    u64 sum = 0;

    for (u64 i = 0; i < n; i++) {
        v[i].len = one_in(8) ? 0 : one_in(3) ? 8 : rnd() % CALL_BYTES;
        v[i].base = malloc(v[i].len + !v[i].len);
        memset(v[i].base, 7, v[i].len);
        sum += v[i].len;
    }
    return sum;
}

static void count(long r, u64 most, u32 what)
{
    if (r > (long)most || r < -4095)
        host_fail("an answer that cannot be");
    outcome[r > 0 ? what : r == 0 ? ENDED : r == -EAGAIN ? AGAIN : FAILED]++;
}

static void call_data(bool sending)
{
    struct iovec v[3];
    u64 n = 1 + rnd() % 3, most = make_iov(v, n);
    u32 flags = sending ? (one_in(2) ? MSG_DONTWAIT : 0) : flag_sets[rnd() % ARRAY_LEN(flag_sets)];
    long r;

    now = sending ? "send" : "receive";
    if (most || !sending) {
        r = sending ? sd_tx(&sk, FD, v, n, flags) : sd_rx(&sk, FD, v, n, flags);
        count(r, most, sending ? SENT : RECEIVED);
    }
    for (u64 i = 0; i < n; i++)
        free(v[i].base);
}

/* What the gate tries first. */
static void call_fast(bool sending)
{
    struct iovec v;
    long r;

    sd_fdkind[FD] = SD_KIND_OURS;
    sd_fast_on(&sk, FD);
    if (sd_fdkind[FD] == SD_KIND_OURS)
        return;
    bool shared = sd_fdkind[FD] == SD_KIND_SHARED;
    make_iov(&v, 1);
    now = sending ? "fast send" : "fast receive";
    if (shared)
        r = sending ? sd_shared_write(FD, v.base, v.len) : sd_shared_read(FD, v.base, v.len);
    else
        r = sending ? sd_fast_write(FD, v.base, v.len) : sd_fast_read(FD, v.base, v.len);
    if (r != -4096)
        count(r, v.len, sending ? SENT : RECEIVED);
    free(v.base);
}

static void call_poll(void)
{
    struct pollfd k = {FD, (int16_t)(rnd() & (POLLIN | POLLOUT | POLLRDHUP)), 0};
    struct sd_pollitem item = {0};
    struct sd_pollset p = {.k = &k, .item = &item, .n = 1};
    struct sd_deadline d = {.ns = one_in(2) ? 0 : SD_FOREVER};
    struct sd_mask m = {0};

    now = "poll";
    p.ours = sd_pollitem_find(&item, FD);
    item.want = (u16)k.events;
    item.care = item.want | POLLERR | POLLHUP;
    if (d.ns) /* somebody else wakes the program up in the end */
        net.arrived += one_in(3);
    d.end_ns = d.ns ? 1 : 0;
    sd_pollset_wait(&p, &d, &m);
}

static void call_other(void)
{
    u32 armed;
    u64 sleeper;

    switch (rnd() % 8) {
    case 0:
        now = "ready";
        sd_ready(&sk, FD, (u32)(rnd() & (POLLIN | POLLOUT | POLLRDHUP)));
        break;
    case 1:
        now = "arm";
        sleeper = sd_sleeper_enter(&sk, 1);
        armed = sd_arm(&sk, POLLIN | POLLOUT);
        sd_membarrier();
        sd_ready(&sk, FD, 0);
        sd_disarm(&sk, armed);
        sd_sleeper_leave(&sk, sleeper);
        break;
    case 2:
        now = "bell";
        sd_ring_bell(&sk, FD);
        break;
    case 3:
        now = "look";
        sd_look_at_kernel(&sk, FD);
        break;
    case 4:
        if (one_in(20)) {
            now = "back";
            sd_tx_back(&sk, FD, SD_REASON_flag);
        }
        break;
    case 5:
        now = "needs timer";
        sd_needs_timer(&sk, POLLOUT);
        break;
    case 6:
        now = "nap";
        if (sd_nap_possible(&sk, one_in(2)))
            sd_nap(&(struct sock *){&sk}, 1, one_in(2), one_in(2), &sd_learn_process, sd_tsc());
        break;
    default:
        now = "switch";
        sd_rx_poll_switch(&sk, FD);
    }
}

static void one_call(void)
{
    step = 0;
    inside = true;
    switch (rnd() % 8) {
    case 0 ... 1:
        call_data(true);
        break;
    case 2 ... 3:
        call_data(false);
        break;
    case 4:
        call_fast(true);
        break;
    case 5:
        call_fast(false);
        break;
    case 6:
        call_poll();
        break;
    default:
        call_other();
    }
    inside = false;
    if (memcmp(shadow, ring[1], RING))
        host_fail("writes into the ring that it reads");
}

/* ------------------------------------------------------------- connections */

/* A header as the peer left it, in a file of the right or another size. */
static void try_header(void)
{
    u64 n = SD_RING_MIN, bytes = SD_SEG_HDR_BYTES + 2 * n;
    struct sd_seg *h = calloc(1, sizeof *h);
    struct sd_end e;

    sd_seg_init(h, (u32)n);
    for (u64 i = rnd() % 4; i-- > 0;)
        ((u32 *)h)[rnd() % 4] ^= one_in(2) ? 1u << rnd() % 32 : (u32)rnd();
    if (one_in(4))
        bytes = one_in(2) ? rnd() : bytes + rnd() % 3 - 1;
    if (sd_end_open(&e, h, bytes, (u32)(rnd() % 3)) == 0 && SD_SEG_HDR_BYTES + 2 * e.bytes != bytes)
        host_fail("a ring that is not in the file");
    free(h);
}

/* Nobody supervises. */
long sd_hypercall(u32 op, u64 a, u64 b) { return (void)op, (void)a, (void)b, -ENOSYS; }
bool sd_map_segment(struct sock *s, int fd) { return (void)s, (void)fd, false; }
struct sd_tcb *sd_tcbs(void) { return NULL; }

static void connect_again(void)
{
    u64 start = one_in(2) ? 0 - rnd() % 100 : rnd();

    now = "connect";
    memset(seg, 0, sizeof *seg);
    sd_seg_init(seg, RING);
    memset(&net, 0, sizeof net);
    for (u32 i = 0; i < 2; i++) {
        *(u64 *)&seg->dir[i].head = *(u64 *)&seg->dir[i].tail = *(u64 *)&seg->dir[i].held = start;
        *(u32 *)&seg->attached[i] = 1;
    }
    block = (struct sd_block){.state = SD_BLOCK_ATTACHED, .users = one_in(8) ? 2 : 1, .role = 1, .established = 1};
    g.mt = one_in(4);
    sk = (struct sock){.b = &block, .seg = seg};
    sk.e = (struct sd_end){.tx = &seg->dir[0], .rx = &seg->dir[1], .tx_ring = ring[0], .rx_ring = ring[1], .bytes = RING,
                           .tx_bytes = one_in(4) ? RING / 2 : RING, .rx_tail_seen = start, .tx_head_seen = start};
    if (one_in(3)) /* else the switch comes first */
        *(u64 *)&seg->dir[1].sw_ring = 1;
}

int main(int argc, char **argv)
{
    u64 wanted = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000000;

    first_seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    seed = first_seed * 0x9e3779b97f4a7c15 + 1;
    seg = malloc(sizeof *seg);
    g.area[0] = &area;
    ring[0] = malloc(RING);
    ring[1] = malloc(RING);
    for (u32 i = 0; i < RING; i++)
        ring[1][i] = shadow[i] = (u8)(i + 1);
    connect_again();
    for (calls = 0; calls < wanted; calls++) {
        one_call();
        if ((atomic_load(&block.latched) & POLLERR ? one_in(4) : one_in(300))) {
            outcome[DROPPED] += (*(u32 *)&block.latched & POLLERR) != 0;
            outcome[ON_RING] += *(u32 *)&block.rx_mode == SD_MODE_RING;
            outcome[WENT_BACK] += *(u32 *)&block.rx_mode == SD_MODE_BACK;
            try_header();
            connect_again();
        }
    }
    printf("ok seed %llu: %llu calls, %llu sent, %llu received, %llu again, %llu failed, %llu ended, %llu dropped, %llu on ring, %llu back\n",
           (unsigned long long)first_seed, (unsigned long long)calls, (unsigned long long)outcome[SENT], (unsigned long long)outcome[RECEIVED],
           (unsigned long long)outcome[AGAIN], (unsigned long long)outcome[FAILED], (unsigned long long)outcome[ENDED],
           (unsigned long long)outcome[DROPPED], (unsigned long long)outcome[ON_RING], (unsigned long long)outcome[WENT_BACK]);
    free(ring[0]);
    free(ring[1]);
    free(seg);
    return 0;
}
