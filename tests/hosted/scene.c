/* SPDX-License-Identifier: Apache-2.0
 *
 * scene.c - the programs of every scenario: calls as the handlers of the system calls make them, and where they may begin.
 *
 * The ring has four bytes and its counters start three below the wrap.
 */
#include <string.h>
#include "scene.h"
#include "poll/poll.h"

#define SLOW (-4096l) /* enter.S */
long sd_fast_read(u64 fd, u8 *buf, u64 len);
long sd_fast_write(u64 fd, const u8 *buf, u64 len);
long sd_shared_read(u64 fd, u8 *buf, u64 len);
long sd_shared_write(u64 fd, const u8 *buf, u64 len);

/* ---------------------------------------------------------------- programs */

/* The gate tries the short way first, if it may (fast.c). */
static u8 kind(u32 side)
{
    sd_fdkind[FD_OF(side)] = SD_KIND_OURS;
    sd_fast_on(&w.sock[side], FD_OF(side));
    return sd_fdkind[FD_OF(side)];
}

long send_once(u32 side, struct iovec *v, u32 flags)
{
    u8 k = kind(side);
    long r = k == SD_KIND_FAST ? sd_fast_write((u64)FD_OF(side), v->base, v->len)
           : k == SD_KIND_SHARED ? sd_shared_write((u64)FD_OF(side), v->base, v->len) : SLOW;

    return r == SLOW ? sd_tx(&w.sock[side], FD_OF(side), v, 1, flags) : r;
}

static long receive_once(u32 side, struct iovec *v, u32 flags)
{
    u8 k = kind(side);
    long r = k == SD_KIND_FAST ? sd_fast_read((u64)FD_OF(side), v->base, v->len)
           : k == SD_KIND_SHARED ? sd_shared_read((u64)FD_OF(side), v->base, v->len) : SLOW;

    return r == SLOW ? sd_rx(&w.sock[side], FD_OF(side), v, 1, flags) : r;
}

void put(u32 side, const char *bytes, u32 flags)
{
    u64 n = strlen(bytes);
    struct iovec v = {(u8 *)bytes, n};

    while (v.len) {
        long r = send_once(side, &v, flags);
        if (r == -EAGAIN)
            return;
        if (r <= 0)
            host_fail("send has failed");
        v.base += r;
        v.len -= (u64)r;
    }
}

/* True when `want` bytes are there, or the end. */
bool got(u32 side, u32 want)
{
    return prog.ngot[side] >= want || prog.eof[side];
}

long take(u32 side, u32 most, u32 flags)
{
    u8 bytes[8];
    struct iovec v = {bytes, most};
    long r = receive_once(side, &v, flags);

    for (long i = 0; i < r; i++) {
        if (!bytes[i])
            host_fail("a doorbell has reached the program");
        prog.got[side][prog.ngot[side]++] = bytes[i];
    }
    if (r >= 0)
        mc_got_on();
    if (r == 0 || (r == -ECONNRESET && w.reset))
        prog.eof[side] = 1;
    else if (r < 0 && r != -EAGAIN)
        host_fail("receive has failed");
    return r;
}

void get(u32 side, u32 want)
{
    while (!got(side, want))
        take(side, 3, 0);
}

/* As poll(2) does it, with the library's own poll.c. */
void wait_for(u32 side, u32 events)
{
    struct pollfd k = {FD_OF(side), (int16_t)events, 0};
    struct sd_pollitem item = {0};
    struct sd_pollset p = {.k = &k, .item = &item, .n = 1};
    struct sd_deadline d = {.ns = SD_FOREVER};
    struct sd_mask m = {0};

    p.ours = sd_pollitem_hold(&p, &item, k.fd);
    item.want = events;
    item.care = events | POLLERR | POLLHUP;
    if (sd_pollset_wait(&p, &d, &m) < 0)
        host_fail("poll has failed");
}

void back(u32 side)
{
    mc_mark(MARK_BACK);
    sd_tx_back(&w.sock[side], FD_OF(side), SD_REASON_flag);
}

void publish(const char *bytes)
{
    struct sd_end *e = &w.sock[0].e;
    u64 n = strlen(bytes), tail = load_rlx(&e->tx->tail);

    for (u64 i = 0; i < n; i++)
        e->tx_ring[(tail + i) % e->bytes] = (u8)bytes[i];
    store_rel(&e->tx->tail, tail + n);
    if (load_rlx(&e->tx_fence)) /* [W3] */
        sd_fence();
    if (load_rlx(&e->tx->rx_armed))
        sd_ring_bell(&w.sock[0], FD_OF(0));
}

/* Counts that sleepers leave behind cost a doorbell for every message; what is registered in a set may stay armed. One for room may stay, which whoever sees room takes back. */
static void nobody_is_armed(void)
{
    for (u32 d = 0; d < SIDES; d++)
        if (*(u32 *)&w.seg.dir[d].rx_armed != sets_armed(!d) || *(u32 *)&w.seg.dir[d].tx_armed != *(u32 *)&w.block[d].tx_wait)
            host_fail("a sleeper has not taken back its count");
}

void expect(u32 side, const char *bytes)
{
    if (prog.ngot[side] != strlen(bytes) || memcmp(prog.got[side], bytes, strlen(bytes)))
        host_fail("bytes are lost, doubled or in the wrong order");
    if (prog.all_switched)
        nobody_is_armed();
}

/* ------------------------------------------------------------------- setup */

void on_tcp(void)
{
    static const char *const word[] = {"tail", "sw_ring", "sw_back", "sw_back_at", "prod_hint", "head", "rx_armed", "tx_armed", "bell", "prod_fenced", "base"};
    static char text[SIDES][ARRAY_LEN(word)][24];

    for (u32 d = 0; d < SIDES; d++) {
        struct sd_dir *x = &w.seg.dir[d];
        const volatile void *at[] = {&x->tail, &x->sw_ring, &x->sw_back, &x->sw_back_at, &x->prod_hint, &x->head, &x->rx_armed,
                                     &x->tx_armed, &x->bell, &x->prod_fenced, &x->base};
        for (u32 i = 0; i < ARRAY_LEN(word); i++) {
            text[d][i][0] = (char)('0' + d);
            text[d][i][1] = '.';
            strcpy(text[d][i] + 2, word[i]);
            mc_name(at[i], text[d][i]);
        }
    }
}

/* Both directions have switched, nobody is armed. */
void on_rings(void)
{
    on_tcp();
    for (u32 i = 0; i < SIDES; i++) {
        *(u64 *)&w.seg.dir[i].sw_ring = 1;
        *(u32 *)&w.seg.dir[i].rx_armed = 0;
        *(u32 *)&w.seg.dir[i].arrived = 1;
        *(u32 *)&w.block[i].rx_mode = *(u32 *)&w.block[i].tx_mode = SD_MODE_RING;
    }
    prog.all_switched = 1;
}

void tcp_bytes_on_the_way(void)
{
    on_tcp();
    memcpy(w.net.dir[0].data, "xy", 2);
    w.net.dir[0].written = 2;
}

void shared_by_threads(u32 side, u32 dir)
{
    on_rings();
    g.mt = 1;
    mc_share(&w.block[side].token[dir]);
    mc_name(&w.block[side].token[dir], "token");
    for (u32 i = 1; i <= THREADS; i++) {
        mc_share(&hosted_area.part[i].mark[0]);
        mc_share(&hosted_area.part[i].to[0]);
        mc_name(&hosted_area.part[i].mark[0], "mark");
        mc_name(&hosted_area.part[i].to[0], "to");
    }
}
