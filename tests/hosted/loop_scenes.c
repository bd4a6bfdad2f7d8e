/* SPDX-License-Identifier: Apache-2.0
 *
 * loop_scenes.c - scenarios of the monitor's loop in C (sdlib/src/verbs): who sleeps is woken by programs, by the device and by Python.
 */
#include "loop.h"

static void put_one(void) { put(0, "a", 0); }
static void put_two(void) { put(0, "a", 0), put(0, "b", 0); }
static void get_one(void) { get(0, 1); }
static void nothing(void) { }

static void silent(void)
{
    loop_begin(true, LOOP_SENDS);
    loop_script.silent = true;
}

static void sent(u32 n)
{
    loop_settled();
    if (loop_sent() != n)
        host_fail("bytes are lost, doubled or still held back");
}

static void one_sent(void) { sent(1); }
static void two_sent(void) { sent(2); }

/* Nobody of the program's is there any more when the time is over. */
static void corked(void)
{
    silent();
    w.block[0].opt_saved = SD_SAVED_CORK;
    w.sock[0].mss = 8;
    mc_share(&w.seg.dir[0].held);
}

/* The ring is full, of bytes that have still to be sent. */
static void full(void)
{
    loop_begin(false, LOOP_WAITS | LOOP_RECEIVES);
    *(u64 *)&w.seg.dir[0].tail += 4;
}

static void room_was_told(void)
{
    if (loop_sent() < 4 || loop_sent() > 5 || *(u64 *)&w.seg.dir[0].tail - *(u64 *)&w.seg.dir[0].head > 1)
        host_fail("bytes are lost or doubled");
}

static void one_comes(void)
{
    loop_begin(false, LOOP_RECEIVES);
    loop_script.bytes[0] = 1;
}

static void one_has_come(void)
{
    loop_settled();
    expect(0, "t");
}

static void two_come(void)
{
    loop_begin(false, 0);
    loop_script.bytes[0] = loop_script.bytes[1] = 1;
}

/* More than there is room for until Python has heard of them. */
static void records(void)
{
    loop_begin(false, 0);
    loop_script.records = 3;
}

static void all_heard(void)
{
    loop_settled();
    if (loop_heard() != 3)
        host_fail("Python is not told");
}

/* One more than are slept on: either makes way. Where it is the program's, its supervisor hears when there is news. */
static void crowded(void)
{
    silent();
    loop_second();
    loop_watch(1);
}

static void sent_or_said(void)
{
    if (!loop_nudged())
        one_sent();
}

/* Nobody looks at the program's connection until Python says so, while the loop sleeps. */
static void unwatched(void)
{
    loop_begin(false, 0);
    loop_script.silent = true;
    *(u64 *)&w.seg.dir[0].tail += 1;
    loop_unwatch();
    loop_watches = 1;
}

/* A thread of the program sleeps in some poll, armed, and does not run; another one looks, and takes nothing: what it sleeps for is still to be heard
 * ([B2] of ring/bell.h), also when more comes after the first was ([B3]). */
static void in_company(void)
{
    shared_by_threads(0, SD_DIR_RX);
    loop_begin(false, LOOP_RECEIVES);
    loop_script.bytes[0] = loop_script.bytes[1] = 1;
    *(u32 *)&w.seg.dir[1].rx_armed = 1;
    *(u32 *)&w.sock[0].parked = 1;
    bells_at_most = 2;
}

static void in_company_exclusive(void)
{
    in_company();
    *(u32 *)&w.sock[0].parked = 0;
    w.block[0].exclusive = 1;
}

static void only_look(void)
{
    for (u32 i = 0; i < 3; i++)
        sd_look_at_kernel(&w.sock[0], FD_OF(0));
}

static void sleeper_would_see_it(void)
{
    loop_settled();
    if (*(u64 *)&w.seg.dir[1].tail != *(u64 *)&w.seg.dir[1].head && !net_bells_unread(1))
        host_fail("a sleeper would sleep on");
}

static const struct scenario scenes_loop[] = {
    {"loop-company", in_company, {only_look, loop_device, NULL, NULL, loop_far}, sleeper_would_see_it, .forever = LOOP_FOREVER},
    {"loop-company-exclusive", in_company_exclusive, {only_look, loop_device, NULL, NULL, loop_far}, sleeper_would_see_it, .forever = LOOP_FOREVER},
    {"loop-nudge", silent, {put_one, loop_device, loop_caller}, one_sent, .forever = LOOP_FOREVER},
    {"loop-nudges", silent, {put_two, NULL, loop_caller}, two_sent, .forever = LOOP_FOREVER},
    {"loop-crowded", crowded, {put_one, NULL, loop_caller}, sent_or_said, .forever = LOOP_FOREVER},
    {"loop-held", corked, {put_one, NULL, loop_caller}, one_sent, .forever = LOOP_FOREVER},
    {"loop-room", full, {put_one, loop_device, NULL, NULL, loop_far}, room_was_told, .forever = LOOP_FOREVER},
    {"loop-arrive", one_comes, {get_one, loop_device, NULL, NULL, loop_far}, one_has_come, .forever = LOOP_FOREVER},
    {"loop-arrivals", two_come, {nothing, loop_device, NULL, NULL, loop_far}, loop_settled, .forever = LOOP_FOREVER},
    {"loop-python", records, {nothing, loop_device, NULL, loop_python, loop_far}, all_heard, .forever = LOOP_FOREVER},
    {"loop-watched", unwatched, {nothing, loop_device, NULL, loop_python}, one_sent, .forever = LOOP_FOREVER},
    {0},
};

const struct scenario *const scenes[] = {scenes_loop, scenes_loop_ends, NULL};
