/* SPDX-License-Identifier: Apache-2.0
 *
 * scenes_epoll.c - scenarios of a program that waits in epoll_wait, by the library's own calls: for a sender, while the connection moves to the ring and
 * back, and while other threads change the set, take bytes, or wait in it, too.
 */
#include <string.h>
#include "poll/epoll.h"
#include "scene.h"

/* ---------------------------------------------------------------- programs */

static void set_ctl(int op, u32 side, u32 events, u64 data)
{
    struct epoll_event ev = {events, data};
    struct sd_frame f = {.rdi = SET_FD(0), .rsi = (u64)op, .rdx = FD_OF(side), .r10 = (u64)&ev};
    long r = sd_epoll_ctl(&f, sd_self());

    if (r == SD_PASS)
        r = SYS4(__NR_epoll_ctl, SET_FD(0), op, FD_OF(side), &ev);
    if (r < 0)
        host_fail("epoll_ctl has failed");
}

static struct epoll_event set_wait(int ms)
{
    struct epoll_event ev = {0, 0};
    struct sd_frame f = {.rdi = SET_FD(0), .rsi = (u64)&ev, .rdx = 1, .r10 = (u64)ms};
    long r = sd_epoll_wait(&f, sd_self());

    if (r == SD_PASS)
        r = SYS6(__NR_epoll_pwait, SET_FD(0), &ev, 1, ms, NULL, 8);
    if (r < 0 || (r == 0 && ms < 0))
        host_fail("epoll_wait has failed");
    return ev;
}

/* What is registered is what is told. */
static u32 wait_for_side(u32 side)
{
    struct epoll_event ev = set_wait(-1);

    if (ev.data != side)
        host_fail("epoll_wait has told of something else");
    return ev.events;
}

static void level_gets(u32 side, u32 want)
{
    while (!got(side, want)) {
        wait_for_side(side);
        take(side, 1, MSG_DONTWAIT);
    }
}

static void edge_gets(u32 side, u32 want)
{
    while (!got(side, want)) {
        wait_for_side(side);
        while (take(side, 3, MSG_DONTWAIT) > 0)
            ;
    }
}

static void oneshot_gets(u32 side, u32 want)
{
    while (!got(side, want)) {
        wait_for_side(side);
        take(side, 1, MSG_DONTWAIT);
        if (!got(side, want))
            set_ctl(EPOLL_CTL_MOD, side, POLLIN | EPOLLONESHOT, side);
    }
}

static void a_sends_twice(void) { put(0, "a", 0), put(0, "b", 0); }
static void b_level_2(void) { level_gets(1, 2); }
static void b_level_4(void) { level_gets(1, 4); }
static void b_edge_2(void) { edge_gets(1, 2); }
static void b_edge_4(void) { edge_gets(1, 4); }
static void b_oneshot_2(void) { oneshot_gets(1, 2); }
static void b_oneshot_4(void) { oneshot_gets(1, 4); }
static void b_level_all(void)
{
    while (!prog.eof[1]) {
        wait_for_side(1);
        take(1, 3, MSG_DONTWAIT);
    }
}

static void a_sends_and_closes(void)
{
    put(0, "ab", 0);
    sd_hint_say(&w.sock[0].e, SD_HINT_CLOSED);
    SYS2(__NR_shutdown, FD_OF(0), SHUT_RDWR);
}

static void a_up_and_back(void) { put(0, "a", 0), back(0), put(0, "b", 0); }
static void a_goes_back(void) { put(0, "a", 0), put(0, "b", 0), back(0), put(0, "cd", 0); }

static void b_has_ab(void) { expect(1, "ab"); }
static void b_has_abcd(void) { expect(1, "abcd"); }
static void b_has_xyab(void) { expect(1, "xyab"); }
static void b_has_6(void) { expect(1, "abcdef"); }

static void b_gets_6(void) { get(1, 6); }

/* Waits for room with the other end of the connection in the set: edge triggered after a send that found none. */
static void a_polls_6(void)
{
    static const char bytes[] = "abcdef";

    for (u32 sent = 0; sent < 6;) {
        struct iovec v = {(u8 *)bytes + sent, 6 - sent};
        long r = send_once(0, &v, MSG_DONTWAIT);
        if (r > 0)
            sent += (u32)r;
        else
            wait_for_side(0);
    }
}

/* ------------------------------------------------------------------- setup */

static void register_1(u32 events)
{
    struct ep *ep;

    w.epoll_calls = 1;
    set_ctl(EPOLL_CTL_ADD, 1, events, 1);
    ep = w.set[0].ep;
    mc_name(&ep->owner, "owner");
    mc_name(&ep->pending, "pending");
    mc_name(&ep->parked, "ep.parked");
    mc_name(&ep->named, "named");
}

static void level(void) { on_rings(), register_1(POLLIN); }
static void level_asks(void) { level(), w.epoll_calls = 15; }
static void level_idles(void) { level(), w.epoll_calls = 0; }
static void edge(void) { on_rings(), register_1(POLLIN | EPOLLET); }
static void edge_both(void) { on_rings(), register_1(POLLIN | POLLOUT | POLLRDHUP | EPOLLET); }
static void oneshot(void) { on_rings(), register_1(POLLIN | EPOLLONESHOT); }
static void level_tcp(void) { tcp_bytes_on_the_way(), register_1(POLLIN); }
static void edge_tcp(void) { tcp_bytes_on_the_way(), register_1(POLLIN | EPOLLET); }
static void oneshot_tcp(void) { tcp_bytes_on_the_way(), register_1(POLLIN | EPOLLONESHOT); }
static void up_level(void) { on_tcp(), register_1(POLLIN); }
static void up_edge(void) { on_tcp(), register_1(POLLIN | EPOLLET); }

static void room(u32 events)
{
    on_rings();
    w.epoll_calls = 1;
    set_ctl(EPOLL_CTL_ADD, 0, events, 0);
}
static void room_level(void) { room(POLLOUT); }
static void room_both(void) { room(POLLIN | POLLOUT | EPOLLET); }

/* ----------------------------------------------------------------- threads */

/* Of side 1, which share the set. Of the token only its word is shared: how it changes hands is explored elsewhere. */
static void threads(u32 events)
{
    on_rings();
    g.mt = 1;
    bells_at_most = 2;
    mc_share(&w.sock[1].parked);
    mc_name(&w.sock[1].parked, "parked");
    mc_share(&hosted_area.part[2].park);
    mc_share(&hosted_area.part[3].park);
    mc_share_sets();
    if (events)
        register_1(events);
}

static void threads_level(void) { threads(POLLIN); }
static void threads_edge(void) { threads(POLLIN | EPOLLET); }
static void threads_oneshot(void) { threads(POLLIN | EPOLLONESHOT); }
static void threads_deaf(void) { threads(POLLPRI); }
static void threads_empty(void)
{
    struct sd_frame f = {0};

    threads(0);
    w.epoll_calls = 1;
    sd_epoll_create1(&f, sd_self());
}

/* Who does not get the lock at once leaves a note [E3]. */
static void impatient(void) { g.tsc_per_us = 0; }
static void impatient_level(void) { threads_level(), impatient(); }
static void impatient_deaf(void) { threads_deaf(), impatient(); }
static void impatient_empty(void) { threads_empty(), impatient(); }

/* Bytes that are there already. */
static void there(u32 n)
{
    w.sock[0].e.tx_ring[1] = 'a';
    w.sock[0].e.tx_ring[2] = 'b';
    *(u64 *)&w.seg.dir[0].tail += n;
}

static void there_oneshot(void) { threads_oneshot(), there(2); }
static void there_impatient(void) { threads_level(), there(2), impatient(); }
static void there_edge(void) { threads_edge(), there(1); }
static void to_be_closed(void)
{
    threads_level();
    prog.in_vain = 1; /* until the kernel has closed it, too */
    mc_share(&w.sock[1].held);
    mc_share(&w.sock[1].dead);
    mc_name(&w.sock[1].held, "held");
    mc_name(&w.sock[1].dead, "dead");
}
static void fencing(void)
{
    threads_level();
    *(u32 *)&w.seg.dir[0].prod_fenced = 1;
    *(u32 *)&w.sock[0].e.tx_fence = 100;
}

/* Another process has it, too: no ghosts. */
static void of_two_processes(void)
{
    threads_level();
    *(u32 *)&w.block[1].users = 2;
}
static void to_be_closed_impatient(void) { to_be_closed(), impatient(); }

static void b_polls_2(void)
{
    while (!got(1, 2)) {
        struct pollfd k = {SET_FD(0), POLLIN, 0};
        struct sd_pollitem item = {0};
        struct sd_pollset p = {.k = &k, .item = &item, .n = 1};
        struct sd_deadline d = {.ns = SD_FOREVER};
        struct sd_mask m = {0};
        p.ours = sd_pollitem_hold(&p, &item, k.fd);
        item.want = POLLIN;
        item.care = POLLIN | POLLERR | POLLHUP;
        if (sd_pollset_wait(&p, &d, &m) != 1)
            host_fail("poll has failed");
        if (set_wait(0).events)
            while (take(1, 1, MSG_DONTWAIT) > 0)
                ;
    }
}

static void a_publishes_1(void) { publish("a"); }
static void a_publishes_both(void) { publish("ab"); }
static void b_follows(void) { publish("b"); }

static void waits_for_1(void)
{
    sd_part_of(sd_self());
    do
        set_wait(-1);
    while (take(1, 1, MSG_DONTWAIT) != 1);
}

static void oneshot_for_1(void)
{
    sd_part_of(sd_self());
    for (bool done = false; !done;) {
        wait_for_side(1);
        done = take(1, 1, MSG_DONTWAIT) == 1;
        set_ctl(EPOLL_CTL_MOD, 1, POLLIN | EPOLLONESHOT, 1);
    }
}

static void looks(void) { sd_look_at_kernel(&w.sock[1], FD_OF(1)), sd_look_at_kernel(&w.sock[1], FD_OF(1)); }
static void takes_1(void) { sd_part_of(sd_self()), take(1, 1, MSG_DONTWAIT); }
static void adds(void) { set_ctl(EPOLL_CTL_ADD, 1, POLLIN, 1); }
static void adds_edge(void) { set_ctl(EPOLL_CTL_ADD, 1, POLLIN | EPOLLET, 1); }
static void modifies(void) { set_ctl(EPOLL_CTL_MOD, 1, POLLIN, 1); }
static void modifies_edge(void) { set_ctl(EPOLL_CTL_MOD, 1, POLLIN | EPOLLET, 1); }
static void waits_once(void) { set_wait(-1), prog.plain[0] = 1; }

/* Nothing wakes who sleeps on it then: it is killed. */
static void closes(void)
{
    struct sock *s = &w.sock[1];

    sd_ep_fd_closed(s, FD_OF(1));
    host_point("close");
    sets_forget(1);
    atomic_store(&s->dead, 1);
    sd_sock_reap(s);
    host_wait(NULL, 0, true);
    prog.killed[1] = 1;
}
static void is_freed(void)
{
    if (w.sock[1].b && prog.plain[0])
        host_fail("it is not freed");
}
static void replaces(void) { set_ctl(EPOLL_CTL_DEL, 1, 0, 0), adds(); }

static void replaces_late(void) { replaces(), a_publishes_1(); }

static void b_has_a(void) { expect(1, "a"); }
static void each_byte_once(void)
{
    u32 seen = 0;

    for (u32 i = 0; i < prog.ngot[1]; i++) {
        u32 bit = 1u << (prog.got[1][i] - 'a');
        if (!(bit & 3) || (seen & bit))
            host_fail("bytes are lost or doubled");
        seen |= bit;
    }
}

const struct scenario scenes_epoll[] = {
    {"epoll-level", level, {a_sends_twice, b_level_2}, b_has_ab},
    {"epoll-level-asks", level_asks, {a_sends_twice, b_level_2}, b_has_ab},
    {"epoll-level-idles", level_idles, {a_sends_twice, b_level_2}, b_has_ab},
    {"epoll-edge", edge, {a_sends_twice, b_edge_2}, b_has_ab},
    {"epoll-edge-both", edge_both, {a_sends_twice, b_edge_2}, b_has_ab},
    {"epoll-oneshot", oneshot, {a_sends_twice, b_oneshot_2}, b_has_ab},
    {"epoll-level-switch", level_tcp, {a_sends_twice, b_level_4}, b_has_xyab},
    {"epoll-edge-switch", edge_tcp, {a_sends_twice, b_edge_4}, b_has_xyab},
    {"epoll-oneshot-switch", oneshot_tcp, {a_sends_twice, b_oneshot_4}, b_has_xyab},
    {"epoll-level-up-and-back", up_level, {a_up_and_back, b_level_2}, b_has_ab},
    {"epoll-edge-up-and-back", up_edge, {a_up_and_back, b_edge_2}, b_has_ab},
    {"epoll-level-back", level, {a_goes_back, b_level_4}, b_has_abcd},
    {"epoll-edge-back", edge, {a_goes_back, b_edge_4}, b_has_abcd},
    {"epoll-oneshot-back", oneshot, {a_goes_back, b_oneshot_4}, b_has_abcd},
    {"epoll-close", level, {a_sends_and_closes, b_level_all}, b_has_ab},
    {"epoll-room", room_level, {a_polls_6, b_gets_6}, b_has_6},
    {"epoll-room-both", room_both, {a_polls_6, b_gets_6}, b_has_6},
    {"epoll-two-wait", threads_level, {a_publishes_both, waits_for_1, waits_for_1}, each_byte_once},
    {"epoll-taken", threads_level, {a_publishes_both, waits_for_1, takes_1}, each_byte_once},
    {"epoll-taken-edge", there_edge, {b_follows, waits_for_1, takes_1}, each_byte_once},
    {"epoll-add", threads_empty, {a_publishes_1, waits_for_1, adds}, b_has_a},
    {"epoll-add-edge", threads_empty, {a_publishes_1, waits_for_1, adds_edge}, b_has_a},
    {"epoll-mod", threads_deaf, {a_publishes_1, waits_for_1, modifies}, b_has_a},
    {"epoll-mod-edge", threads_deaf, {a_publishes_1, waits_for_1, modifies_edge}, b_has_a},
    {"epoll-replace", threads_level, {a_publishes_1, waits_for_1, replaces}, b_has_a},
    {"epoll-two-oneshot-there", there_oneshot, {oneshot_for_1, oneshot_for_1}, each_byte_once},
    {"epoll-taken-noted", impatient_level, {a_publishes_both, waits_for_1, takes_1}, each_byte_once},
    {"epoll-add-noted", impatient_empty, {a_publishes_1, waits_for_1, adds}, b_has_a},
    {"epoll-mod-noted", impatient_deaf, {a_publishes_1, waits_for_1, modifies}, b_has_a},
    {"epoll-replace-noted", there_impatient, {replaces, waits_for_1}, b_has_a},
    {"epoll-replace-late", of_two_processes, {waits_for_1, replaces_late}, b_has_a},
    {"epoll-looked-at", threads_level, {a_publishes_1, waits_for_1, looks}, b_has_a},
    {"epoll-looked-at-fenced", fencing, {a_publishes_1, waits_for_1, looks}, b_has_a},
    {"epoll-closed", to_be_closed, {a_publishes_1, waits_once, closes}, is_freed},
    {"epoll-closed-noted", to_be_closed_impatient, {a_publishes_1, waits_once, closes}, is_freed},
    {"epoll-polled", level, {a_sends_twice, b_polls_2}, b_has_ab},
    {"epoll-polled-edge", edge, {a_sends_twice, b_polls_2}, b_has_ab},
    {0},
};
