/* SPDX-License-Identifier: Apache-2.0
 *
 * loop_scenes_ends.c - scenarios of the monitor's loop in C: queue pairs are closed, connections and the loop itself end, at any moment.
 */
#include "loop.h"

static void put_one(void) { put(0, "a", 0); }
static void nothing(void) { }

/* ------------------------------------------------------------------------ another link */

static void silent(void)
{
    loop_begin(false, LOOP_SENDS);
    loop_script.silent = true;
}

static void silent_lost(void)
{
    silent();
    loop_script.lost = true;
}

static void one_sent(void)
{
    loop_settled();
    if (loop_sent() != 1)
        host_fail("bytes are lost or doubled");
}

/* The program has said something of which the other host does not know. */
static void something_is_said(void)
{
    loop_begin(false, 0);
    *(u32 *)&w.seg.dir[0].prod_hint = SD_HINT_SHUT_WR;
}

static void python_knows(void)
{
    loop_settled();
    if (!loop_news())
        host_fail("Python is not told");
}

/* ---------------------------------------------------------------------------- the end */

static void called(void) { loop_begin(true, LOOP_SENDS); }

const struct scenario scenes_loop_ends[] = {
    {"loop-breaks", silent, {put_one, loop_device, NULL, loop_link_breaks}, one_sent, .forever = LOOP_FOREVER},
    {"loop-breaks-lost", silent_lost, {put_one, loop_device, NULL, loop_link_breaks}, one_sent, .forever = LOOP_FOREVER},
    {"loop-breaks-news", something_is_said, {nothing, loop_device, NULL, loop_link_breaks}, python_knows, .forever = LOOP_FOREVER},
    {"loop-forgets", called, {put_one, loop_device, loop_caller, loop_host_is_forgotten}, loop_over, .forever = LOOP_FOREVER},
    {"loop-connection-ends", called, {put_one, loop_device, loop_caller, loop_connection_ends}, loop_over, .forever = LOOP_FOREVER},
    {"loop-ends", called, {put_one, loop_device, loop_caller, loop_ends}, loop_over},
    {0},
};
