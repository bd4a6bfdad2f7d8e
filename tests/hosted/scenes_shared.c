/* SPDX-License-Identifier: Apache-2.0
 *
 * scenes_shared.c - scenarios of threads that share an end: tokens, the short way of the shared, and a sleeper beside one who looks.
 */
#include <string.h>
#include "scene.h"

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

static void token_biased(void)
{
    shared_by_threads(1, SD_DIR_RX);
    *(u64 *)&w.block[1].token[SD_DIR_RX] = sd_tok_next(0, SD_TOK_BIASED, 1, 0);
}

/* The short way of the shared (fast_shared.c): the first participant is the owner, and what it needs is planned. */
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

/* It waits exclusively, and is chosen; no thread of the looker's own process sleeps. */
static void in_company_exclusive(void)
{
    in_company();
    *(u32 *)&w.sock[1].parked = 0;
    w.block[1].exclusive = 1;
}

/* One byte is too little for poll. Nobody's time-out ends. */
static void in_company_low(void)
{
    on_rings();
    g.mt = 1;
    *(u32 *)&w.sock[1].parked = 1;
    w.block[1].rcvlowat = 2;
    prog.all_switched = 0;
    bells_at_most = 2;
}

static void b_polls_2(void)
{
    while (!got(1, 2)) {
        wait_for(1, POLLIN);
        take(1, 2, MSG_DONTWAIT);
    }
}

static void b_has_ab(void) { expect(1, "ab"); }
static void a_sends_1(void) { put(0, "a", 0); }
static void a_sends_twice(void) { put(0, "a", 0), put(0, "b", 0); }
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

/* [B3] Who sleeps for an edge knows of the bytes that are there, takes none, and hears of each that comes. As epoll_wait does it (ep_cool.c); of the kernel's edges
 * it is enough that whatever arrives is one. */
static bool edge(long seen) { return w.net.dir[0].arrived > (u32)seen; }

static u64 published(void) { return load_acq(&w.seg.dir[0].tail) + 3; }

/* One byte is there, and its doorbell, of which everybody has been told. */
static void in_company_known(void)
{
    in_company();
    *(u64 *)&w.seg.dir[0].tail += 1;
    w.sock[0].e.tx_ring[1] = 'k';
    *(u32 *)&w.seg.dir[0].bell = SD_BELL_RUNG;
    w.net.dir[0].written = w.net.dir[0].arrived = 1;
}

static void edges_until(u64 last)
{
    struct sock *s = &w.sock[1];
    u64 known = 1;
    u32 heard = 1;

    while (known < last) {
        u32 armed = sd_arm(s, POLLIN);
        if (sd_bell_stays(s))
            sd_bell_was_heard(s, FD_OF(1));
        else if (sd_bell_due(&s->e))
            heard = w.net.dir[0].read; /* the kernel is asked anew, and tells of what lies there */
        sd_membarrier();
        if (published() == known)
            host_wait(edge, heard, false);
        sd_disarm(s, armed);
        heard = w.net.dir[0].arrived;
        known = published();
        sd_look_at_kernel(s, FD_OF(1));
    }
}

/* [B4] Each waits exclusively in a set of its own, as epoll_wait does it: the kernel tells the sets in turn, until it has woken somebody. */
static void tell_sets(u32 side)
{
    for (u64 t = 1; t < THREADS && side == 1; t++) {
        bool sleeps = prog.plain[0] >> t & 1;
        prog.plain[1] |= 1ull << t;
        prog.plain[0] &= ~(1ull << t);
        if (sleeps)
            return;
    }
}

static void two_wait_exclusively(void)
{
    in_company_exclusive();
    *(u32 *)&w.seg.dir[0].rx_armed = 0;
    *(u32 *)&w.seg.dir[0].exclusive = 1;
    prog.all_switched = 0;
    hosted_readable = tell_sets;
}

static bool told(long thread) { return (prog.plain[1] >> thread & 1) && (net_ready(1) & POLLIN); }

/* One message is for each of them, and nobody takes any. */
static void waits_exclusively(void)
{
    struct sock *s = &w.sock[1];
    u64 me = 1ull << mc_thread();
    u32 armed = sd_arm(s, POLLIN);

    sd_part_of(sd_self());
    sd_membarrier();
    if (!sd_rx_news(&s->e, 0)) {
        host_point("epoll_wait");
        if (!told(mc_thread()))
            prog.plain[0] |= me;
        host_wait(told, mc_thread(), false);
        prog.plain[0] &= ~me;
    }
    sd_disarm(s, armed);
    sd_look_at_kernel(s, FD_OF(1));
}

static void a_publishes_twice(void) { publish("a"), publish("b"); }

/* That nobody sleeps on is asked at every step. */
static void both_are_there(void)
{
    if (*(u64 *)&w.seg.dir[0].tail + 3 != 2 || *(u64 *)&w.seg.dir[0].head + 3 != 0)
        host_fail("somebody has taken a byte");
}

static void edges_until_2(void) { edges_until(2); }
static void edges_until_3(void) { edges_until(3); }
static void b_looks_once(void) { sd_look_at_kernel(&w.sock[1], FD_OF(1)); }
static void b_takes_1(void)
{
    sd_part_of(sd_self());
    if (take(1, 1, MSG_DONTWAIT) == -EAGAIN)
        sd_look_at_kernel(&w.sock[1], FD_OF(1));
}

/* ---------------------------------------------------------- two that sleep */

/* Both threads of side 1 receive a byte, and sleep until it is there. Of the token only its word is shared here: how it changes hands is explored above. */
static void two_sleepers(void)
{
    on_rings();
    g.mt = 1;
    bells_at_most = 2;
    mc_share(&w.sock[1].parked);
    mc_name(&w.sock[1].parked, "parked");
    mc_share(&hosted_area.part[2].park);
    mc_share(&hosted_area.part[3].park);
}

static void a_publishes_1(void) { publish("a"); }
static void a_publishes_both(void) { publish("ab"); }
static void gets_1(void) { sd_part_of(sd_self()), take(1, 1, 0); }
static void polls_for_1(void)
{
    sd_part_of(sd_self());
    while (take(1, 1, MSG_DONTWAIT) == -EAGAIN)
        wait_for(1, POLLIN);
}

/* Participants from the start: only those take the short way. */
static void sends_a(void) { sd_part_of(sd_self()), put(0, "a", 0); }
static void sends_b(void) { sd_part_of(sd_self()), put(0, "b", 0); }
static void takes_1(void) { sd_part_of(sd_self()), take(1, 1, MSG_DONTWAIT); }

/* One waits in poll, and another one closes the connection: it must not be touched then, and is freed when nobody waits any more. */
static void polled_and_closed(void)
{
    two_sleepers();
    prog.all_switched = 0;
    prog.in_vain = 1;
    mc_share(&w.closed[1]);
    mc_share(&w.sock[1].held);
    mc_share(&w.sock[1].dead);
    mc_name(&w.closed[1], "closed");
    mc_name(&w.sock[1].held, "held");
    mc_name(&w.sock[1].dead, "dead");
}

static void polls_once(void)
{
    sd_part_of(sd_self());
    wait_for(1, POLLIN);
    prog.plain[0] = 1;
}

/* Who sleeps in the kernel goes on with the file; a byte wakes it. */
static void closes(void)
{
    struct sock *s = &w.sock[1];

    atomic_store(&w.closed[1], 1);
    atomic_store(&s->dead, 1);
    sd_sock_reap(s);
    host_point("close");
    w.net.dir[0].written++;
    host_changed();
}

static void is_freed(void)
{
    if (w.sock[1].b || !prog.plain[0])
        host_fail("it is not freed");
}

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

const struct scenario scenes_shared[] = {
    {"token", token_biased, {moves_twice, move_head}, head_is_right},
    {"token-killed", token_biased, {moves_twice, move_head}, head_is_right, .mortal = 1},
    {"token-stopped", token_biased, {moves_twice, move_head}, head_is_right, .slow = 2},
    {"two-senders", two_senders, {sends_a, sends_b}, both_were_sent},
    {"two-readers", two_readers, {takes_1, takes_1}, both_were_read},
    {"company", in_company, {a_sends_1, b_only_looks}, sleeper_would_see_it},
    {"company-late", in_company_late, {a_sends_1, b_only_looks}, sleeper_would_see_it},
    {"company-room", in_company_room, {a_takes_4, b_only_looks}, sleeper_would_see_it},
    {"company-room-late", in_company_room_late, {a_takes_4, b_only_looks}, sleeper_would_see_it},
    {"company-exclusive", in_company_exclusive, {a_sends_1, b_only_looks}, sleeper_would_see_it},
    {"company-exclusive-two", two_wait_exclusively, {a_publishes_twice, waits_exclusively, waits_exclusively}, both_are_there},
    {"company-edge", in_company_known, {a_sends_twice, edges_until_3}, sleeper_would_see_it},
    {"company-edge-looks", in_company_known, {a_sends_1, edges_until_2, b_looks_once}, sleeper_would_see_it},
    {"company-edge-taken", in_company_known, {a_sends_1, edges_until_2, b_takes_1}, sleeper_would_see_it},
    {"company-low", in_company_low, {a_sends_twice, b_polls_2}, b_has_ab},
    {"sleepers", two_sleepers, {a_publishes_both, gets_1, gets_1}, both_were_read},
    {"sleepers-poll", two_sleepers, {a_publishes_both, gets_1, polls_for_1}, both_were_read},
    {"polled-and-closed", polled_and_closed, {a_publishes_1, polls_once, closes}, is_freed},
    {"two-readers-stopped", two_readers, {takes_1, takes_1}, both_were_read, .slow = 4},
    {0},
};
