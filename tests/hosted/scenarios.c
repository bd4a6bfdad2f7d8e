/* SPDX-License-Identifier: Apache-2.0
 *
 * scenarios.c - what is explored: small programs that call sdlib/src/sock as the handlers of the system calls do.
 *
 * The ring has four bytes and its counters start three below the wrap. Every scenario ends with the same question: has each program got
 * exactly the bytes that were sent to it? That nobody sleeps for ever, and that there is at most one doorbell, is asked at every step.
 */
#include <string.h>
#include "explore.h"
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

static long send_once(u32 side, struct iovec *v, u32 flags)
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

static void put(u32 side, const char *bytes, u32 flags)
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
static bool got(u32 side, u32 want)
{
    return prog.ngot[side] >= want || prog.eof[side];
}

static long take(u32 side, u32 most, u32 flags)
{
    u8 bytes[8];
    struct iovec v = {bytes, most};
    long r = receive_once(side, &v, flags);

    for (long i = 0; i < r; i++) {
        if (!bytes[i])
            host_fail("a doorbell has reached the program");
        prog.got[side][prog.ngot[side]++] = bytes[i];
    }
    if (r == 0 || (r == -ECONNRESET && w.reset))
        prog.eof[side] = 1;
    else if (r < 0 && r != -EAGAIN)
        host_fail("receive has failed");
    return r;
}

static void get(u32 side, u32 want)
{
    while (!got(side, want))
        take(side, 3, 0);
}

/* As poll(2) does it, with the library's own poll.c. */
static void wait_for(u32 side, u32 events)
{
    struct pollfd k = {FD_OF(side), (int16_t)events, 0};
    struct sd_pollitem item = {0};
    struct sd_pollset p = {.k = &k, .item = &item, .n = 1};
    struct sd_deadline d = {.ns = SD_FOREVER};
    struct sd_mask m = {0};

    p.ours = sd_pollitem_find(&item, k.fd);
    item.want = events;
    item.care = events | POLLERR | POLLHUP;
    if (sd_pollset_wait(&p, &d, &m) < 0)
        host_fail("poll has failed");
}

/* Counts that sleepers leave behind cost a doorbell for every message. One for room may stay, which whoever sees room takes back. */
static void nobody_is_armed(void)
{
    for (u32 d = 0; d < SIDES; d++)
        if (*(u32 *)&w.seg.dir[d].rx_armed || *(u32 *)&w.seg.dir[d].tx_armed != *(u32 *)&w.block[d].tx_wait)
            host_fail("a sleeper has not taken back its count");
}

static void expect(u32 side, const char *bytes)
{
    if (prog.ngot[side] != strlen(bytes) || memcmp(prog.got[side], bytes, strlen(bytes)))
        host_fail("bytes are lost, doubled or in the wrong order");
    if (prog.all_switched)
        nobody_is_armed();
}

/* ------------------------------------------------------------------- setup */

static void on_tcp(void)
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
static void on_ring(void)
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

static void tcp_bytes_on_the_way(void)
{
    on_tcp();
    memcpy(w.net.dir[0].data, "xy", 2);
    w.net.dir[0].written = 2;
}

/* And no more fit into the kernel's buffers: a doorbell behind them gets EAGAIN. */
static void tcp_is_full(void)
{
    tcp_bytes_on_the_way();
    w.net.dir[0].cap = 2;
}

static void tx_on_ring_only(void)
{
    on_ring();
    g.mt = 0;
    prog.all_switched = 0; /* one count is born with each ring */
    *(u64 *)&w.seg.dir[1].sw_ring = 0;
    *(u32 *)&w.seg.dir[1].rx_armed = 1;
    *(u32 *)&w.seg.dir[1].arrived = 0;
    *(u32 *)&w.block[0].rx_mode = *(u32 *)&w.block[1].tx_mode = SD_MODE_TCP;
}

/* The first producer fences [W3], for one message more. */
static void fencing(void)
{
    on_ring();
    *(u32 *)&w.seg.dir[0].prod_fenced = 1;
    *(u32 *)&w.sock[0].e.tx_fence = 2;
}

static void fencing_ends(void)
{
    fencing();
    *(u32 *)&w.sock[0].e.tx_fence = 1;
}

static void asleep_by_name(void)
{
    on_ring();
    g.mt = 0;
    w.block[0].peer_tree = 1u << 31;
}

static void asleep_by_name_fenced(void)
{
    fencing();
    g.mt = 0;
    w.block[0].peer_tree = 1u << 31;
}

/* ---------------------------------------------------------------- arming */

static void a_sends_1(void) { put(0, "a", 0); }
static void a_sends_twice(void) { put(0, "a", 0), put(0, "b", 0); }
static void a_fences_midway(void)
{
    put(0, "a", 0);
    if (sd_fence_begin(&w.sock[0].e))
        sd_fence_say(&w.sock[0].e);
    put(0, "b", 0);
}
static void a_sends_thrice(void) { put(0, "a", 0), put(0, "b", 0), put(0, "c", 0); }
static void b_gets_3(void) { get(1, 3); }
static void b_has_abc(void) { expect(1, "abc"); }
static void b_gets_2(void) { get(1, 2); }
static void b_has_ab(void) { expect(1, "ab"); }

static void a_sends_6(void) { put(0, "abcdef", 0); }
static void b_gets_6(void) { get(1, 6); }
static void b_has_6(void) { expect(1, "abcdef"); }

static void b_polls_2(void)
{
    while (!got(1, 2))
        if (take(1, 3, MSG_DONTWAIT) == -EAGAIN)
            wait_for(1, POLLIN);
}

/* As epoll_wait does it (ep_hot.c), asleep under a name that never comes again [W4]. */
static void sleep_named(u64 name)
{
    struct sock *s = &w.sock[1];
    struct pollfd p = {FD_OF(1), POLLIN, 0};
    u32 armed = sd_arm(s, POLLIN) | SD_ARM_NAMED;

    sd_rx_asleep(&s->e, name);
    if (armed & SD_ARM_BARRIER)
        sd_membarrier();
    if (!sd_rx_news(&s->e, 0))
        SYS5(__NR_ppoll, &p, 1, NULL, 0, 8);
    sd_disarm(s, armed);
    sd_look_at_kernel(s, FD_OF(1));
}

static void b_sleeps_for_3(void)
{
    while (!got(1, 3))
        if (take(1, 1, MSG_DONTWAIT) == -EAGAIN)
            sleep_named(++prog.plain[0]);
}

/* A whole set of side 1 sleeps, armed, and does not run. */
static void sleeps_as_7(void)
{
    asleep_by_name();
    w.block[0].peer_tree |= 1;
    *(u32 *)&w.seg.dir[0].rx_armed = 1;
    *(u64 *)&w.seg.dir[0].sleep = 7;
}

/* Another peer, of another tree, goes by the same name: it was not told. */
static void a_sends_to_two_trees(void)
{
    put(0, "a", 0);
    sd_look_at_kernel(&w.sock[1], FD_OF(1));
    w.block[0].peer_tree += 1;
    put(0, "b", 0);
}

static void b_sends_1(void) { put(1, "x", 0); }

static void was_rung_for(void)
{
    if (!net_bells_unread(0))
        host_fail("another's name has kept it asleep");
}

static void a_polls_6(void)
{
    static const char bytes[] = "abcdef";

    for (u32 sent = 0; sent < 6;) {
        struct iovec v = {(u8 *)bytes + sent, 6 - sent};
        long r = send_once(0, &v, MSG_DONTWAIT);
        if (r > 0)
            sent += (u32)r;
        else
            wait_for(0, POLLOUT);
    }
}

/* ------------------------------------------------------------- the switch */

static void b_gets_4(void) { get(1, 4); }
static void b_has_xyab(void) { expect(1, "xyab"); }

static void b_polls_4(void)
{
    while (!got(1, 4))
        if (take(1, 3, MSG_DONTWAIT) == -EAGAIN)
            wait_for(1, POLLIN);
}

static void back(u32 side)
{
    mc_mark(MARK_BACK);
    sd_tx_back(&w.sock[side], FD_OF(side), SD_REASON_flag);
}

static void a_up_and_back(void) { put(0, "a", 0), back(0), put(0, "b", 0); }
static void a_goes_back(void) { put(0, "a", 0), put(0, "b", 0), back(0), put(0, "cd", 0); }
static void b_has_abcd(void) { expect(1, "abcd"); }

static void a_asks(void) { put(0, "a", 0), get(0, 1); }
static void b_answers(void) { get(1, 1), put(1, "b", 0); }
static void both_have(void) { expect(1, "a"), expect(0, "b"); }

static void b_goes_back_and_gets_6(void) { back(1), get(1, 6); }

/* --------------------------------------------------------------- held bytes */

/* Segments of two bytes; and the time to hold them is always over. */
static void corking(void)
{
    on_ring();
    g.tsc_per_us = 0;
    w.sock[0].mss = w.sock[1].mss = 2;
    for (u32 i = 0; i < SIDES; i++)
        mc_name(&w.seg.dir[i].held, i ? "1.held" : "0.held");
}

static void a_holds(void) { put(0, "a", MSG_MORE); }
static void a_holds_and_sends(void) { put(0, "a", MSG_MORE), put(0, "b", 0); }
static void a_holds_and_goes_back(void) { put(0, "a", 0), put(0, "b", MSG_MORE), back(0), put(0, "cd", 0); }
static void b_gets_1(void) { get(1, 1); }
static void b_has_a(void) { expect(1, "a"); }

/* ------------------------------------------------------------------- recall */

static void recalling(void)
{
    on_ring();
    for (u32 i = 0; i < SIDES; i++)
        mc_name(&w.seg.dir[i].go_back, i ? "1.go_back" : "0.go_back");
}

static void a_sends_abcd(void) { put(0, "ab", 0), put(0, "cd", 0); }
static void a_sends_and_waits(void) { put(0, "ab", 0), get(0, 1); }

/* Its socket goes to somebody who cannot see the ring; that one's receive finds on TCP what was unread. Or nobody has sent it there, and the ring has it. */
static void b_recalls_and_gets_4(void)
{
    if (sd_recall(&w.sock[1], FD_OF(1)) && w.block[1].rx_mode != SD_MODE_BACK)
        host_fail("called back, and not there");
    get(1, 4);
}

static void b_recalls_and_answers(void)
{
    get(1, 1);
    sd_recall(&w.sock[1], FD_OF(1));
    get(1, 2);
    put(1, "x", 0);
}

static void recalled(void)
{
    expect(1, "ab");
    expect(0, "x");
}

/* [S6] The same when TCP bytes in front of the ring are unread. Here no supervisor can help, so a peer that is slow is not waited for: a reset. */
static void recalling_early(void)
{
    tcp_bytes_on_the_way();
    hosted_supervised = true;
    mc_name(&w.seg.dir[0].go_back, "0.go_back");
    mc_name(&w.seg.dir[0].bell_first, "0.bell_first");
}

static void put_or_be_reset(u32 side, const char *byte)
{
    struct iovec v = {(u8 *)byte, 1};

    if (send_once(side, &v, 0) != 1 && !w.reset)
        host_fail("send has failed");
}

static void a_sends_or_is_reset(void)
{
    put(0, "ab", 0);
    put_or_be_reset(0, "c");
}

static void b_recalls_unread(void)
{
    get(1, 1);
    sd_recall(&w.sock[1], FD_OF(1));
    if (w.reset)
        return;
    get(1, 5);
}

static void recalled_or_reset(void)
{
    if (w.reset)
        return;
    expect(1, "xyabc");
}

/* -------------------------------------------------------------------- given */

/* Side 1 goes to another program, which has it alone then. When side 0 takes the connection for one that may be offered anew, no doorbell is on its way
 * any more. Nobody offers it here. */
static void nothing_is_left(void)
{
    if (*(u32 *)&w.block[0].state != SD_BLOCK_TCP)
        return;
    mc_mark(MARK_AGAIN);
    for (u32 d = 0; d < SIDES; d++)
        if (net_bells_unread(d))
            host_fail("a doorbell of the old rings is left");
}

static void giving(void)
{
    recalling();
    *(u32 *)&w.block[1].given = SD_GIVEN_ONCE;
}

static void giving_young(void)
{
    on_tcp();
    mc_name(&w.seg.dir[0].go_back, "0.go_back");
    *(u32 *)&w.block[1].given = SD_GIVEN_ONCE;
}

static void a_talks(void)
{
    put_or_be_reset(0, "a");
    get(0, 1);
    sd_tick(&w.sock[0], FD_OF(0)); /* its next call */
    nothing_is_left();
}

/* pass.c, and the last close; what comes then are the other program's calls. */
static void b_is_given(void)
{
    if (!sd_recall(&w.sock[1], FD_OF(1)) && *(u32 *)&w.block[1].rx_mode == SD_MODE_TCP && !sd_sw_published(&w.sock[1].e)) {
        sd_back_ask(&w.sock[1].e);
        sd_membarrier();
    }
    sd_recall_tx(&w.sock[1], FD_OF(1));
    sd_recall_over(&w.sock[1]);
    if (w.reset)
        return; /* as above: nobody helps */
    get(1, 1);
    put(1, "x", 0);
}

static void given(void)
{
    if (w.reset)
        return;
    expect(1, "a");
    expect(0, "x");
    nothing_is_left();
}

/* ------------------------------------------------------------------ the end */

static void a_sends_and_closes(void)
{
    put(0, "ab", 0);
    sd_hint_say(&w.sock[0].e, SD_HINT_CLOSED);
    SYS2(__NR_shutdown, FD_OF(0), SHUT_RDWR);
}

static void b_gets_all(void)
{
    while (!prog.eof[1])
        take(1, 3, 0);
}

/* What a has to say is not over then; nobody rings for room any more. */
static void b_shuts_and_gets_6(void)
{
    sd_hint_say(&w.sock[1].e, SD_HINT_SHUT_WR);
    w.block[1].tx_shut = 1;
    SYS2(__NR_shutdown, FD_OF(1), SHUT_WR);
    get(1, 6);
}

static void stays_on_ring(void)
{
    b_has_6();
    if (w.block[0].tx_mode != SD_MODE_RING)
        host_fail("the open direction has moved");
}

/* ------------------------------------------------------------------ tokens */

/* One byte of the direction that side 1 reads, taken as ring_take() does. */
static void move_head(void)
{
    struct sock *s = &w.sock[1];
    struct sd_hold h;
    u64 from;
    bool done;

    do {
        sd_take(s, SD_DIR_RX, SD_MARK_OP, &h);
        from = load_rlx(&s->e.rx->head);
        done = sd_commit_index(&h, &s->e.rx->head, from, from + 1);
        if (done && prog.got[1][(from + 3) & 31]++)
            host_fail("two have taken the same byte");
        prog.ngot[1] += done;
        sd_leave(&h);
    } while (!done);
}

static void moves_twice(void) { move_head(), move_head(); }

static void shared_by_threads(u32 side, u32 dir)
{
    on_ring();
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

static void token_biased(void)
{
    shared_by_threads(1, SD_DIR_RX);
    *(u64 *)&w.block[1].token[SD_DIR_RX] = sd_tok_next(0, SD_TOK_BIASED, 1, 0);
}

/* The short way of the shared (fast.c): the first participant is the owner, and what it needs is planned. */
static void two_senders(void)
{
    shared_by_threads(0, SD_DIR_TX);
    *(u64 *)&w.block[0].token[SD_DIR_TX] = sd_tok_next(0, SD_TOK_BIASED, 1, 0);
    w.sock[0].e.tx_from = *(u64 *)&w.seg.dir[0].tail;
    w.sock[0].e.tx_place = w.sock[0].e.tx_ring + 1; /* counters start three below the wrap, and the ring has four bytes */
    w.sock[0].e.tx_room = 3;
    w.sock[0].e.tx_span = 2;
}

static void two_readers(void)
{
    token_biased();
    w.sock[0].e.tx_ring[1] = 'a';
    w.sock[0].e.tx_ring[2] = 'b';
    *(u64 *)&w.seg.dir[0].tail += 2;
}

/* ----------------------------------------------------------------- company */

/* A thread of side 1 sleeps in some poll, armed, and does not run; another one looks, and takes nothing. */
static void in_company(void)
{
    shared_by_threads(1, SD_DIR_RX);
    *(u32 *)&w.seg.dir[0].rx_armed = 1;
    *(u32 *)&w.sock[1].parked = 1;
    bells_at_most = 2;
}

/* The doorbell of bytes that are read already has not been eaten yet. */
static void in_company_late(void)
{
    in_company();
    *(u32 *)&w.seg.dir[0].bell = 1;
    w.net.dir[0].written = 1;
}

/* It sleeps until there is room. */
static void in_company_room(void)
{
    in_company();
    *(u32 *)&w.seg.dir[0].rx_armed = 0;
    *(u32 *)&w.seg.dir[1].tx_armed = 1;
    *(u64 *)&w.seg.dir[1].tail += 4;
    for (u32 i = 0; i < 4; i++)
        w.sock[1].e.tx_ring[i] = 'r';
}

static void in_company_room_late(void)
{
    in_company_room();
    *(u32 *)&w.seg.dir[0].bell = 1;
    w.net.dir[0].written = 1;
}

static void a_takes_4(void) { take(0, 4, 0); }

static void b_only_looks(void)
{
    sd_look_at_kernel(&w.sock[1], FD_OF(1));
    sd_look_at_kernel(&w.sock[1], FD_OF(1));
}

/* When it runs, the kernel must say that there is something to read. */
static void sleeper_would_see_it(void)
{
    if (!net_bells_unread(0))
        host_fail("a sleeper would sleep on");
}

/* ---------------------------------------------------- up again, on other rings */

/* The link to another host was lost, and everything in the rings is read: our direction is back on TCP already, the other one goes there at the next
 * receive, and finds a byte. Whoever of two threads finds both directions back offers anew, and maps; once that is attached, the other end switches to
 * the new ring: a greeting by TCP, and two bytes. Nobody may go on with what he has seen of the old one. */
static const struct sd_mark greeting = {.magic = SD_GREET_MAGIC, .far_id = {7, 8}};

static void new_rings(void)
{
    w.seg.far_id[0] = 7;
    w.seg.far_id[1] = 8;
    *(u32 *)&w.seg.attached[1] = 0;
}

/* Our monitor is nudged when we have attached. */
static void other_end_switches(void)
{
    struct stream *st = &w.net.dir[0];

    if (*(u32 *)&w.seg.lost || !*(u32 *)&w.seg.attached[1] || *(u64 *)&w.seg.dir[0].sw_ring)
        return;
    w.ring[0][0] = 'n';
    w.ring[0][1] = 'm';
    *(u64 *)&w.seg.dir[0].tail = 2;
    *(u64 *)&w.seg.dir[0].sw_ring = st->written + 1;
    *(u32 *)&w.seg.dir[0].bell = 1;
    memcpy(st->data + st->written, &greeting, sizeof greeting);
    st->written = st->arrived = st->written + (u32)sizeof greeting;
    host_changed();
}

/* Two threads have it, and a byte by TCP is unread. */
static void on_another_host(void)
{
    struct sd_block *b = &w.block[1];

    shared_by_threads(1, SD_DIR_RX);
    mc_share(&b->token[SD_DIR_TX]);
    const volatile void *words[] = {&b->state, &b->rx_mode, &b->tx_mode, &b->rx_plain, &w.sock[1].attaching};
    static const char *const text[] = {"state", "rx_mode", "tx_mode", "rx_plain", "attaching"};
    for (u32 i = 0; i < ARRAY_LEN(words); i++) {
        mc_share(words[i]);
        mc_name(words[i], text[i]);
    }
    for (u32 i = 0; i < THREADS; i++) {
        mc_share(&w.tcb[i].level);
        mc_share(&w.tcb[i].use[0]);
        mc_name(&w.tcb[i].level, "level");
        mc_name(&w.tcb[i].use[0], "use");
        w.tcb[i].level = 0;
    }
    hosted_config.upgrade = SD_UPGRADE_EAGER;
    hosted_supervised = true;
    hosted_new_rings = new_rings;
    hosted_nudged = other_end_switches;
    b->far = 1;
    w.net.dir[0].data[0] = 'x';
    w.net.dir[0].written = w.net.dir[0].arrived = 1;
}

static void paired(void)
{
    on_another_host();
    *(u32 *)&w.block[1].state = SD_BLOCK_PAIRED;
    *(u32 *)&w.block[1].rx_mode = *(u32 *)&w.block[1].tx_mode = SD_MODE_TCP;
    w.sock[1].seg = NULL;
    *(u32 *)&w.seg.lost = 1; /* there is none yet */
}

static void lost_and_found(void)
{
    struct sd_dir *in = &w.seg.dir[0];

    on_another_host();
    *(u32 *)&w.block[1].rx_mode = SD_MODE_RING;
    *(u32 *)&w.block[1].tx_mode = SD_MODE_BACK;
    *(u32 *)&w.seg.lost = 1;
    *(u64 *)&in->sw_ring = 1;
    *(u64 *)&in->sw_back_at = *(u64 *)&in->tail;
    *(u64 *)&in->sw_back = 1;
}

/* As the gate and sd_sock_enter do it; without the short way, which has marks of its own. */
static void come_in(struct sd_tcb *t)
{
    store_rlx((_Atomic u32 *)&t->level, 1);
    store_rel(&t->use[0], &w.sock[1]);
}

static void go_out(struct sd_tcb *t)
{
    store_rel(&t->use[0], NULL);
    store_rlx((_Atomic u32 *)&t->level, 0);
}

/* What two receives in a row come to, but for the bytes. */
static void back_and_up(void)
{
    come_in(sd_self());
    sd_rx_back(&w.sock[1], FD_OF(1));
    sd_tick(&w.sock[1], FD_OF(1));
    go_out(sd_self());
}

static void one_receive(void);
static void two_receives(void) { one_receive(), one_receive(); }

static void one_receive(void)
{
    struct sd_tcb *t = sd_self();
    u8 byte = 0;
    struct iovec v = {&byte, 1};
    long r;

    come_in(t);
    r = sd_rx(&w.sock[1], FD_OF(1), &v, 1, MSG_DONTWAIT);
    go_out(t);
    if (r == 1 && !byte)
        host_fail("a doorbell has reached the program");
    if (r == 1)
        prog.got[1][prog.ngot[1]++] = byte;
    else if (r != -EAGAIN)
        host_fail("receive has failed");
}

/* Each byte has one reader, and nobody reads what no ring has had. */
static void each_byte_once(void)
{
    static const char bytes[] = "xnm";
    u32 seen = 0;

    for (u32 i = 0; i < prog.ngot[1]; i++) {
        const char *at = memchr(bytes, prog.got[1][i], 3);
        u32 bit = at ? 1u << (at - bytes) : 0;
        if (!bit || (seen & bit))
            host_fail("bytes are lost, doubled or of another ring");
        seen |= bit;
    }
    if (w.block[1].state == SD_BLOCK_ATTACHED && w.block[1].rx_mode == SD_MODE_RING && !w.seg.lost)
        mc_mark(MARK_AGAIN);
}

/* Participants from the start: only those take the short way. */
static void sends_a(void) { sd_part_of(sd_self()), put(0, "a", 0); }
static void sends_b(void) { sd_part_of(sd_self()), put(0, "b", 0); }
static void takes_1(void) { sd_part_of(sd_self()), take(1, 1, MSG_DONTWAIT); }

static void both_were_sent(void)
{
    const u8 *ring = w.sock[0].e.tx_ring;

    if (*(u64 *)&w.seg.dir[0].tail + 3 != 2 || ring[1] + ring[2] != 'a' + 'b')
        host_fail("bytes are lost, doubled or in the wrong place");
}

static void both_were_read(void)
{
    if (prog.ngot[1] != 2 || prog.got[1][0] + prog.got[1][1] != 'a' + 'b')
        host_fail("bytes are lost or doubled");
}

/* Who was killed may have taken one byte of which nobody knows. */
static void head_is_right(void)
{
    u64 moved = *(u64 *)&w.seg.dir[0].head + 3, known = prog.ngot[1], dead = prog.killed[0] + prog.killed[1] + prog.killed[2];

    if (moved < known || moved > known + dead)
        host_fail("the index has not moved as often as it was told");
}

const struct scenario scenarios[] = {
    {"wake-up", on_ring, {a_sends_twice, b_gets_2}, b_has_ab},
    {"wake-up-poll", on_ring, {a_sends_twice, b_polls_2}, b_has_ab},
    {"wake-up-fenced", fencing, {a_sends_twice, b_gets_2}, b_has_ab},
    {"wake-up-fence-ends", fencing_ends, {a_sends_twice, b_gets_2}, b_has_ab},
    {"wake-up-fence-begins", on_ring, {a_fences_midway, b_polls_2}, b_has_ab},
    {"wake-up-named", asleep_by_name, {a_sends_thrice, b_sleeps_for_3}, b_has_abc},
    {"wake-up-named-fenced", asleep_by_name_fenced, {a_sends_thrice, b_sleeps_for_3}, b_has_abc},
    {"two-trees", sleeps_as_7, {a_sends_to_two_trees, b_sends_1}, was_rung_for},
    {"start-over", on_ring, {a_sends_thrice, b_gets_3}, b_has_abc},
    {"room", on_ring, {a_sends_6, b_gets_6}, b_has_6},
    {"room-poll", on_ring, {a_polls_6, b_gets_6}, b_has_6},
    {"room-bell-switches", tx_on_ring_only, {a_sends_6, b_gets_6}, b_has_6},
    {"switch", tcp_bytes_on_the_way, {a_sends_twice, b_gets_4}, b_has_xyab},
    {"switch-poll", tcp_bytes_on_the_way, {a_sends_twice, b_polls_4}, b_has_xyab},
    {"switch-full", tcp_is_full, {a_sends_twice, b_polls_4}, b_has_xyab},
    {"switch-both", on_tcp, {a_asks, b_answers}, both_have},
    {"up-and-back", on_tcp, {a_up_and_back, b_gets_2}, b_has_ab},
    {"up-and-back-poll", on_tcp, {a_up_and_back, b_polls_2}, b_has_ab},
    {"back", on_ring, {a_goes_back, b_gets_4}, b_has_abcd},
    {"back-poll", on_ring, {a_goes_back, b_polls_4}, b_has_abcd},
    {"back-while-other-waits", on_ring, {a_sends_6, b_goes_back_and_gets_6}, b_has_6},
    {"cork-alone", corking, {a_holds, b_gets_1}, b_has_a},
    {"cork", corking, {a_holds_and_sends, b_gets_2}, b_has_ab},
    {"cork-poll", corking, {a_holds_and_sends, b_polls_2}, b_has_ab},
    {"cork-back", corking, {a_holds_and_goes_back, b_gets_4}, b_has_abcd},
    {"recall", recalling, {a_sends_abcd, b_recalls_and_gets_4}, b_has_abcd},
    {"recall-asleep", recalling, {a_sends_and_waits, b_recalls_and_answers}, recalled},
    {"recall-unread", recalling_early, {a_sends_or_is_reset, b_recalls_unread}, recalled_or_reset},
    {"given", giving, {a_talks, b_is_given}, given},
    {"given-young", giving_young, {a_talks, b_is_given}, given},
    {"close", on_ring, {a_sends_and_closes, b_gets_all}, b_has_ab},
    {"half-close", on_ring, {a_sends_6, b_shuts_and_gets_6}, stays_on_ring},
    {"half-close-poll", on_ring, {a_polls_6, b_shuts_and_gets_6}, stays_on_ring},
    {"token", token_biased, {moves_twice, move_head}, head_is_right},
    {"token-killed", token_biased, {moves_twice, move_head}, head_is_right, .mortal = 1},
    {"token-stopped", token_biased, {moves_twice, move_head}, head_is_right, .slow = 2},
    {"two-senders", two_senders, {sends_a, sends_b}, both_were_sent},
    {"two-readers", two_readers, {takes_1, takes_1}, both_were_read},
    {"company", in_company, {a_sends_1, b_only_looks}, sleeper_would_see_it},
    {"company-late", in_company_late, {a_sends_1, b_only_looks}, sleeper_would_see_it},
    {"company-room", in_company_room, {a_takes_4, b_only_looks}, sleeper_would_see_it},
    {"company-room-late", in_company_room_late, {a_takes_4, b_only_looks}, sleeper_would_see_it},
    {"attach-shared", paired, {one_receive, one_receive}, each_byte_once},
    {"again", lost_and_found, {back_and_up, two_receives}, each_byte_once},
    {"two-readers-stopped", two_readers, {takes_1, takes_1}, both_were_read, .slow = 4},
    {0},
};
