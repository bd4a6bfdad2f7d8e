/* SPDX-License-Identifier: Apache-2.0
 *
 * scenes_bells.c - scenarios of one connection and two programs: who sleeps is woken, bytes keep their order on the way to the ring and back,
 * held bytes go in time, and the end is seen.
 */
#include <string.h>
#include "poll/poll.h"
#include "scene.h"

/* ------------------------------------------------------------------- setup */

/* And no more fit into the kernel's buffers: a doorbell behind them gets EAGAIN. */
static void tcp_is_full(void)
{
    tcp_bytes_on_the_way();
    w.net.dir[0].cap = 2;
}

static void tx_on_ring_only(void)
{
    on_rings();
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
    on_rings();
    *(u32 *)&w.seg.dir[0].prod_fenced = 1;
    *(u32 *)&w.sock[0].e.tx_fence = 2;
}

static void peer_is_here(void)
{
    on_rings();
    *(u32 *)&w.seg.dir[0].prod_cpu = 1;
}

static void peer_is_here_fencing(void)
{
    fencing();
    *(u32 *)&w.seg.dir[0].prod_cpu = 1;
}

/* Side 0 has handed out handles for two connections. */
static void two_connections(void)
{
    u64 handle;

    g.mt = 0;
    g.pid = 1;
    for (u32 i = 0; i < SIDES; i++) {
        w.block[i].peer_tree = 1u << 31 | 1;
        w.sock[i].ent = 1 + i;
    }
    handle = (u64)((u32)sd_mix(g.pid) | 1) << 32; /* nap.c, at time 0 */
    world_second();
    mc_part(&w.second, sizeof w.second);
    *(u64 *)&w.seg.dir[0].handle = handle | w.sock[0].ent;
    *(u64 *)&w.second.seg.dir[0].handle = handle | w.second.sock[0].ent;
    mc_share(&w.second.seg.dir[0].nap);
    mc_name(&w.second.seg.dir[0].nap, "home.nap");
    mc_name(&w.seg.dir[0].nap_at, "0.nap_at");
}

static void two_are_here(void)
{
    peer_is_here();
    two_connections();
}

static void two_are_here_fencing(void)
{
    peer_is_here_fencing();
    two_connections();
}

static void naps_end(void)
{
    shared_by_threads(1, 1);
    *(u32 *)&w.seg.dir[0].prod_cpu = 1;
    w.futex.ends = 1;
}

/* Only who closes ends the nap. */
static void naps_for_ever(void)
{
    shared_by_threads(1, 1);
    *(u32 *)&w.seg.dir[0].prod_cpu = 1;
    mc_share(&w.sock[1].napping);
    mc_share(&prog.word[0]);
    mc_name(&w.sock[1].napping, "napping");
}

static void fencing_ends(void)
{
    fencing();
    *(u32 *)&w.sock[0].e.tx_fence = 1;
}

static void asleep_by_name(void)
{
    on_rings();
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

static void a_sends_twice(void) { put(0, "a", 0), put(0, "b", 0); }
static void a_fences_midway(void)
{
    put(0, "a", 0);
    if (sd_fence_begin(&w.sock[0].e))
        sd_fence_say(&w.sock[0].e);
    put(0, "b", 0);
}
static void a_sends_thrice(void) { put(0, "a", 0), put(0, "b", 0), put(0, "c", 0); }
static void b_gets_1(void) { get(1, 1); }
static void b_has_a(void) { expect(1, "a"); }
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

/* As poll.c does it, which sleeps on the descriptor where it may not nap or nothing has come. */
static void nap_for(u32 side)
{
    struct sock *s = &w.sock[side];

    if (!sd_nap_possible(s, false) || sd_nap(&s, 1, false, true, &sd_learn_process, 0) <= 0)
        wait_for(side, POLLIN);
}

static void b_naps_for_2(void)
{
    while (!got(1, 2))
        if (take(1, 3, MSG_DONTWAIT) == -EAGAIN)
            nap_for(1);
}

/* On the word of the other connection, which is the first of the set. */
static void b_naps_on_both_for_2(void)
{
    struct sock *set[] = {&w.second.sock[1], &w.sock[1]};

    while (!got(1, 2)) {
        if (take(1, 3, MSG_DONTWAIT) != -EAGAIN)
            continue;
        if (!sd_nap_possible(set[0], false) || !sd_nap_possible(set[1], false) || sd_nap(set, 2, false, true, &sd_learn_process, 0) <= 0)
            wait_for(1, POLLIN);
    }
}

static void b_naps_once(void)
{
    struct sock *s = &w.sock[1];

    if (sd_nap_possible(s, false))
        sd_nap(&s, 1, false, true, &sd_learn_process, 0);
}

/* In a call that would hold the file in the kernel [N3]. */
static void b_naps_beside(void)
{
    struct sock *s = &w.sock[1];
    u32 n = sd_nap_enter(&s, 1);

    store_rel(&prog.word[0], 1);
    if (sd_nap_possible(s, false))
        sd_nap(&s, 1, false, true, &sd_learn_process, 0);
    store_rel(&prog.word[0], 2);
    sd_nap_leave(&s, n, 0);
}

static void b_closes(void)
{
    while (!load_acq(&prog.word[0]))
        cpu_relax();
    if (load_acq(&w.sock[1].napping))
        sd_nap_await(&w.sock[1]);
    if (load_acq(&prog.word[0]) == 1)
        host_fail("a file is closed under a napper");
}

static void b_has_nothing(void) { expect(1, ""); }
static void a_sends_1(void) { put(0, "a", 0); }

/* As epoll_wait does it (ep_cool.c), asleep under a name that never comes again [W4]; 0: without one. */
static void sleep_named(u64 name)
{
    struct sock *s = &w.sock[1];
    struct pollfd p = {FD_OF(1), POLLIN, 0};
    u32 armed = sd_arm(s, POLLIN) | (name ? SD_ARM_NAMED : 0);

    if (name)
        sd_rx_asleep(&s->e, name);
    if (armed & SD_ARM_BARRIER)
        sd_membarrier();
    if (!sd_rx_news(&s->e, 0))
        SYS5(__NR_ppoll, &p, 1, NULL, 0, 8);
    sd_disarm(s, armed);
    sd_look_at_kernel(s, FD_OF(1));
}

static void b_sleeps_for_1(void)
{
    while (!got(1, 1))
        if (take(1, 1, MSG_DONTWAIT) == -EAGAIN)
            sleep_named(0);
}

static void sleep_named_for(u32 want)
{
    while (!got(1, want))
        if (take(1, 1, MSG_DONTWAIT) == -EAGAIN)
            sleep_named(++prog.plain[0]);
}

static void b_sleeps_for_2(void) { sleep_named_for(2); }
static void b_sleeps_for_3(void) { sleep_named_for(3); }

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
    on_rings();
    g.tsc_per_us = 0;
    w.sock[0].mss = w.sock[1].mss = 2;
    for (u32 i = 0; i < SIDES; i++)
        mc_name(&w.seg.dir[i].held, i ? "1.held" : "0.held");
}

static void a_holds(void) { put(0, "a", MSG_MORE); }
static void a_holds_and_sends(void) { put(0, "a", MSG_MORE), put(0, "b", 0); }
static void a_holds_and_goes_back(void) { put(0, "a", 0), put(0, "b", MSG_MORE), back(0), put(0, "cd", 0); }

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

const struct scenario scenes_bells[] = {
    {"wake-up", on_rings, {a_sends_twice, b_gets_2}, b_has_ab},
    {"wake-up-poll", on_rings, {a_sends_twice, b_polls_2}, b_has_ab},
    {"wake-up-nap", peer_is_here, {a_sends_twice, b_naps_for_2}, b_has_ab},
    {"wake-up-nap-fenced", peer_is_here_fencing, {a_sends_twice, b_naps_for_2}, b_has_ab},
    {"wake-up-nap-set", two_are_here, {a_sends_twice, b_naps_on_both_for_2}, b_has_ab},
    {"wake-up-nap-set-fenced", two_are_here_fencing, {a_sends_twice, b_naps_on_both_for_2}, b_has_ab},
    {"nap-beside-sleeper", naps_end, {a_sends_1, b_sleeps_for_1, b_naps_once}, b_has_a},
    {"nap-and-close", naps_for_ever, {b_closes, b_naps_beside}, b_has_nothing},
    {"wake-up-fenced", fencing, {a_sends_twice, b_gets_2}, b_has_ab},
    {"wake-up-fence-ends", fencing_ends, {a_sends_twice, b_gets_2}, b_has_ab},
    {"wake-up-fence-begins", on_rings, {a_fences_midway, b_polls_2}, b_has_ab},
    {"wake-up-named", asleep_by_name, {a_sends_thrice, b_sleeps_for_3}, b_has_abc},
    {"wake-up-named-fenced", asleep_by_name_fenced, {a_sends_twice, b_sleeps_for_2}, b_has_ab},
    {"two-trees", sleeps_as_7, {a_sends_to_two_trees, b_sends_1}, was_rung_for},
    {"start-over", on_rings, {a_sends_thrice, b_gets_3}, b_has_abc},
    {"room", on_rings, {a_sends_6, b_gets_6}, b_has_6},
    {"room-poll", on_rings, {a_polls_6, b_gets_6}, b_has_6},
    {"room-bell-switches", tx_on_ring_only, {a_sends_6, b_gets_6}, b_has_6},
    {"switch", tcp_bytes_on_the_way, {a_sends_twice, b_gets_4}, b_has_xyab},
    {"switch-poll", tcp_bytes_on_the_way, {a_sends_twice, b_polls_4}, b_has_xyab},
    {"switch-full", tcp_is_full, {a_sends_twice, b_polls_4}, b_has_xyab},
    {"switch-both", on_tcp, {a_asks, b_answers}, both_have},
    {"up-and-back", on_tcp, {a_up_and_back, b_gets_2}, b_has_ab},
    {"up-and-back-poll", on_tcp, {a_up_and_back, b_polls_2}, b_has_ab},
    {"back", on_rings, {a_goes_back, b_gets_4}, b_has_abcd},
    {"back-poll", on_rings, {a_goes_back, b_polls_4}, b_has_abcd},
    {"back-while-other-waits", on_rings, {a_sends_6, b_goes_back_and_gets_6}, b_has_6},
    {"cork-alone", corking, {a_holds, b_gets_1}, b_has_a},
    {"cork", corking, {a_holds_and_sends, b_gets_2}, b_has_ab},
    {"cork-poll", corking, {a_holds_and_sends, b_polls_2}, b_has_ab},
    {"cork-back", corking, {a_holds_and_goes_back, b_gets_4}, b_has_abcd},
    {"close", on_rings, {a_sends_and_closes, b_gets_all}, b_has_ab},
    {"half-close", on_rings, {a_sends_6, b_shuts_and_gets_6}, stays_on_ring},
    {"half-close-poll", on_rings, {a_polls_6, b_shuts_and_gets_6}, stays_on_ring},
    {0},
};
