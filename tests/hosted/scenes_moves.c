/* SPDX-License-Identifier: Apache-2.0
 *
 * scenes_moves.c - scenarios of a connection whose end goes to somebody else: unread bytes are called back to TCP, and who has it alone may offer it anew.
 */
#include "scene.h"

/* ------------------------------------------------------------------- recall */

static void recalling(void)
{
    on_rings();
    for (u32 i = 0; i < SIDES; i++)
        mc_name(&w.seg.dir[i].go_back, i ? "1.go_back" : "0.go_back");
}

static void a_sends_abcd(void) { put(0, "ab", 0), put(0, "cd", 0); }
static void a_sends_and_waits(void) { put(0, "ab", 0), get(0, 1); }

/* Its socket goes to somebody who cannot see the ring; that one's receive finds on TCP what was unread. Or nobody has sent it there, and the ring has it. */
static void b_recalls_and_gets_4(void)
{
    if (sd_recall(&w.sock[1], FD_OF(1), SD_REASON_passed) && w.block[1].rx_mode != SD_MODE_BACK)
        host_fail("called back, and not there");
    get(1, 4);
}

static void b_recalls_and_answers(void)
{
    get(1, 1);
    sd_recall(&w.sock[1], FD_OF(1), SD_REASON_passed);
    get(1, 2);
    put(1, "x", 0);
}

static void b_has_abcd(void) { expect(1, "abcd"); }

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
    sd_recall(&w.sock[1], FD_OF(1), SD_REASON_passed);
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
    if (!sd_recall(&w.sock[1], FD_OF(1), SD_REASON_passed) && *(u32 *)&w.block[1].rx_mode == SD_MODE_TCP && !sd_sw_published(&w.sock[1].e)) {
        sd_back_ask(&w.sock[1].e);
        sd_membarrier();
    }
    sd_recall_tx(&w.sock[1], FD_OF(1), SD_REASON_passed);
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

const struct scenario scenes_moves[] = {
    {"recall", recalling, {a_sends_abcd, b_recalls_and_gets_4}, b_has_abcd},
    {"recall-asleep", recalling, {a_sends_and_waits, b_recalls_and_answers}, recalled},
    {"recall-unread", recalling_early, {a_sends_or_is_reset, b_recalls_unread}, recalled_or_reset},
    {"given", giving, {a_talks, b_is_given}, given},
    {"given-young", giving_young, {a_talks, b_is_given}, given},
    {0},
};
