/* SPDX-License-Identifier: Apache-2.0
 *
 * loop.c - the surroundings of sdlib/src/verbs for the explorer: connections and links that come and end, and Python. Device and other host are in
 * loop_wire.c, what the threads sleep on is in loop_system.c; all of them are states in memory.
 */
#include <string.h>
#include "loop_inside.h"

struct loop_state l;
static struct sd_device device;
struct sd_queue queue[2]; /* the second one comes after the first one */
static struct sd_mirrored conn[2];
static struct sd_mirrored *carried[2][2], *watched[2][2];
static struct sd_seg second;
static struct ibv_context context;
static struct ibv_cq cq;
static struct ibv_qp qp[2];
static struct ibv_mr pool;
static struct sd_threads *threads; /* are given back once, and part of the state all the same */

struct loop_script loop_script;
u32 loop_watches;

/* ---------------------------------------------------------------------------------- Python */

static void nudge(void) { l.nudged = 1; }
static bool called(long nothing) { return (void)nothing, l.nudged || l.event[NEWS - KICK]; }

/* What its program says it says to the other host. */
static void hear(const struct sd_loop_event *e)
{
    l.heard += e->kind == SD_LOOP_MESSAGE;
    if (e->kind != SD_LOOP_NEWS || e->queue != l.pair)
        return;
    l.news++;
    conn[0].rest_said = sd_mirrored_rest(&conn[0]);
}

void loop_python(void)
{
    struct sd_loop_event told[2 * BATCH];
    bool busy;

    for (;;) {
        memset(told, 0, sizeof told);
        sd_device_hold(&device);
        int n = sd_device_turn(&device, told, 2 * BATCH, 0, &busy);
        for (int i = 0; i < n; i++)
            hear(&told[i]);
        if (n < 0)
            host_fail("Python is told of less than nothing");
        if (l.nudged) {
            l.nudged = 0;
            sd_mirrored_watch(&conn[0], true);
        }
        if (l.watches < loop_watches) {
            l.watches++;
            sd_mirrored_watch(&conn[0], true);
        }
        memset(told, 0, sizeof told); /* what was on a stack once is part of the state */
        sd_device_release(&device);
        if (!called(0) && l.watches == loop_watches)
            host_wait(called, 0, false);
    }
}

/* ---------------------------------------------------------- links and connections that end */

/* Of memory that is given back: whoever goes on with it comes to grief. */
#define POISON 0xdd

bool loop_is_gone(const volatile void *p)
{
    return l.unmapped && (const volatile u8 *)p >= (u8 *)&w.seg && (const volatile u8 *)p < (u8 *)(&w.seg + 1);
}

static bool is_touched(const volatile void *p) { return mc_thread() && loop_is_gone(p); } /* the program has a mapping of its own */

void __wrap_free(void *p)
{
    if (p == threads)
        memset(p, POISON, sizeof *threads);
}

/* As sd_queue_open(). */
static void open_queue(u32 i)
{
    l.pair = qp[i].qp_num = 1 + i;
    l.numbered = 0;
    queue[i] = (struct sd_queue){.device = &device, .qp = &qp[i], .pool = &pool, .messages = l.messages, .carried = carried[i], .watched = watched[i],
                                 .size = 2, .depth = WIRE, .posted = 1, .done = 1};
    device.queues = &queue[i];
}

/* As Link.close(): what was under way is lost or not, and nobody knows. */
static void break_link(void)
{
    sd_queue_leave(&queue[0]);
    memset(&queue[0], POISON, sizeof queue[0]);
    sd_mirrored_live(&conn[0], false);
    l.pair = 0;
    if (loop_script.lost)
        l.sent = l.seen;
}

/* Each says how far the other's bytes have arrived, and goes on from there; the first words say how many doorbells were asked for. */
static void link_again(void)
{
    u32 missing;

    open_queue(1);
    if (sd_queue_carry(&queue[1], &conn[0]))
        host_fail("no memory");
    missing = l.came - (u32)(conn[0].landed - START);
    conn[0].sent = START + l.sent;
    conn[0].head_said = load_acq(&w.seg.dir[1].head);
    l.bells = conn[0].asked;
    sd_mirrored_live(&conn[0], true);
    sd_queue_live(&queue[1]);
    sd_mirrored_watch(&conn[0], true);
    if (missing)
        wire_brings((struct arriving){.slot = 1, .size = missing});
    host_changed();
}

static void locked(void (*what)(void))
{
    sd_device_hold(&device);
    what();
    sd_device_release(&device);
}

void loop_link_breaks(void)
{
    host_point("the link breaks");
    locked(break_link);
    host_point("there is another one");
    locked(link_again);
    loop_python();
}

/* As Connections.free(). */
static void forget_connection(void)
{
    sd_queue_drop(&queue[0], 1);
    memset(&conn[0], POISON, sizeof conn[0]);
    l.unmapped = 1;
}

static void close_pair(void)
{
    break_link();
    memset(&conn[0], POISON, sizeof conn[0]);
    l.unmapped = 1;
}

void loop_connection_ends(void)
{
    host_point("the connection ends");
    locked(forget_connection);
}

void loop_host_is_forgotten(void)
{
    host_point("the link is closed");
    locked(close_pair);
}

void loop_ends(void)
{
    host_point("we leave");
    sd_device_hold(&device);
    sd_device_stop(&device);
}

/* ---------------------------------------------------------------------------------- setup */

void loop_device(void) { loop_thread(0, &device); }
void loop_caller(void) { loop_thread(1, &device); }

static void one(u32 i, void *copy)
{
    conn[i] = (struct sd_mirrored){.sent = START, .landed = START, .head_said = START, .copy = copy, .ring_bytes = 4, .slot = 1 + i,
                                   .far_slot = 1 + i, .live = 1, .worded = 1, .tid = 1};
    conn[i].rest_said = sd_mirrored_rest(&conn[i]);
    if (sd_queue_carry(&queue[0], &conn[i]))
        host_fail("no memory");
    sd_mirrored_watch(&conn[i], true);
}

static void forget(void)
{
    device.turns = device.looks = 0;
    if (!l.unmapped)
        conn[0].last = conn[1].last = 0;
}

static void is_far(void)
{
    w.block[0].far = 1;
    prog.all_switched = 0; /* our monitor is armed at the end, too */
    *(u32 *)&w.seg.heard = *(u32 *)&w.seg.told = *(u32 *)&w.seg.greeted = 1;
    *(u32 *)&w.seg.dir[1].prod_fenced = 1; /* as sd_copy_init() */
    w.now_ns = 1;
    hosted_supervised = true;
    hosted_nudged = nudge;
    hosted_futex_wake = loop_wake_at;
}

static void share(struct sd_dir *d, bool data, bool room)
{
    if (data) {
        mc_share(&d->tail);
        mc_share(&d->rx_armed);
        mc_share(&d->bell);
    }
    if (room || (data && d == &w.seg.dir[1]))
        mc_share(&d->head);
    if (room)
        mc_share(&d->tx_armed);
}

void loop_begin(bool caller, u32 words)
{
    on_rings();
    is_far();
    memset(&l, 0, sizeof l);
    loop_threads_begin();
    loop_script = (struct loop_script){0};
    loop_watches = 0;
    context.ops.poll_cq = wire_poll;
    context.ops.post_send = wire_post;
    cq.context = qp[0].context = qp[1].context = &context;
    device = (struct sd_device){.cq = &cq};
    open_queue(0);
    if (sd_device_start(&device, 0))
        host_fail("no threads");
    threads = device.threads;
    threads->calls = caller;
    l.event[0] = l.event[1] = 0;
    one(0, &w.seg);
    sd_queue_live(&queue[0]);
    mc_part(&l, sizeof l);
    mc_part(&device, sizeof device);
    mc_part(queue, sizeof queue);
    mc_part(conn, sizeof conn);
    mc_part(carried, sizeof carried);
    mc_part(watched, sizeof watched);
    mc_part(&second, sizeof second);
    mc_part(threads, sizeof *threads);
    mc_share(&threads->python_wants);
    mc_share(&threads->control);
    mc_gone = is_touched;
    mc_few();
    mc_forget = forget;
    mc_share(&w.seg.direct);
    share(&w.seg.dir[0], words & LOOP_SENDS, words & LOOP_WAITS);
    share(&w.seg.dir[1], words & LOOP_RECEIVES, false);
    sd_device_release(&device);
}

static void drop(u32 i)
{
    sd_queue_unwatch(&queue[0], &conn[i]);
    conn[i].watched = 0;
}

void loop_second(void)
{
    memset(&second, 0, sizeof second);
    second.dir[0] = w.seg.dir[0];
    second.dir[1] = w.seg.dir[1];
    one(1, &second);
    drop(1);
}

void loop_watch(u32 i) { sd_mirrored_watch(&conn[i], true); }
void loop_unwatch(void) { drop(0); }

u32 loop_sent(void) { return l.sent; }
u32 loop_heard(void) { return l.heard; }
bool loop_nudged(void) { return l.nudged; }

u32 loop_news(void) { return l.news; }

void loop_over(void)
{
    if (l.lock)
        host_fail("somebody sleeps with the lock");
    if (*(u32 *)&w.seg.direct)
        host_fail("a lost wake-up: a program wakes who does not sleep there any more");
}

void loop_settled(void)
{
    const struct sd_threads *t = device.threads;

    if (l.lock)
        host_fail("somebody sleeps with the lock");
    static char why[] = "Python is not told of event  0";
    if (t->queued) {
        why[sizeof why - 2] = (char)('0' + t->queue[0].kind);
        host_fail(why);
    }
    if (l.taken != l.put)
        host_fail("a lost wake-up: completions are left");
    if (*(u64 *)&w.seg.dir[0].tail != conn[0].sent)
        host_fail("a lost wake-up: bytes are left");
}
