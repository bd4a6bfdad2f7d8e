/* SPDX-License-Identifier: Apache-2.0
 *
 * loop.c - the surroundings of sdlib/src/verbs for the explorer: POSIX threads, eventfds, poll, futex_waitv and a device, all of them states in memory.
 *
 * The C library's functions that the loop calls are wrapped by the linker (tests/hostedbuild.py). Which thread holds the lock, and who sleeps on what,
 * is part of the world that the explorer copies; a call that may sleep is a point at which others may come first.
 */
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include "verbs/threads.h"
#include "loop.h"

enum { KICK = 100, NEWS, CHANNEL };
enum { DEVICE_T = 1, CALLER_T, PYTHON_T, FAR_T };
enum { WIRE = 8, SLEPT_ON = CALLED_MOST + 1 };
#define START ((u64)0 - 3)

struct arriving {
    u32 record, slot, size, index;
};

/* Everything of the surroundings that changes. */
struct state {
    u32 lock, waiting, released; /* 1 + holder; of the condition, by thread */
    u32 event[2];
    u32 told, armed; /* the completion channel */
    u32 put, taken;
    struct arriving wire[WIRE];
    u32 sleepers, woken;
    u64 slept_on[SLEPT_ON];
    u32 nudged, heard, watches, came;
    u32 sent, seen, bells, rung; /* bytes: arrived over there, read there; doorbells asked for by us, sent by them */
    u64 credit;                  /* what we have said last of our program's reading */
    u8 messages[2 * WIRE * SD_VERBS_MESSAGE];
};

static struct state l;
static struct sd_device device;
static struct sd_queue queue;
static struct sd_mirrored conn[2];
static struct sd_mirrored *carried[2], *watched[2];
static struct sd_seg second;
static struct ibv_context context;
static struct ibv_cq cq;
static struct ibv_qp qp;
static struct ibv_mr pool;
static void *(*started[2])(void *);

struct loop_script loop_script;
u32 loop_watches;

/* -------------------------------------------------------------------- POSIX threads */

static bool unlocked(long nothing) { return (void)nothing, !l.lock; }

int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
    (void)m;
    host_point("lock");
    while (l.lock)
        host_sleep(unlocked, 0, false);
    l.lock = 1 + mc_thread();
    return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *m)
{
    (void)m;
    mc_rmw(&l.lock, 4, MC_XCHG, 0); /* a full barrier, of this thread */
    host_changed();
    return 0;
}

static bool released(long thread) { return l.released >> thread & 1; }

int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
    (void)c;
    l.waiting |= 1u << mc_thread();
    __wrap_pthread_mutex_unlock(m);
    host_wait(released, mc_thread(), false);
    l.released &= ~(1u << mc_thread());
    return __wrap_pthread_mutex_lock(m);
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
    (void)c;
    l.released |= l.waiting;
    l.waiting = 0;
    host_changed();
    return 0;
}

int __wrap_pthread_mutex_init(pthread_mutex_t *m, const pthread_mutexattr_t *a) { return (void)m, (void)a, 0; }
int __wrap_pthread_cond_init(pthread_cond_t *c, const pthread_condattr_t *a) { return (void)c, (void)a, 0; }
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old) { return (void)how, (void)set, (void)old, 0; }
int __wrap_pthread_join(pthread_t thread, void **value) { return (void)thread, (void)value, 0; }

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *a, void *(*what)(void *), void *arg)
{
    (void)thread, (void)a, (void)arg;
    started[started[0] ? 1 : 0] = what;
    return 0;
}

/* ------------------------------------------------------------------------ system calls */

int __wrap_eventfd(unsigned count, int flags)
{
    (void)count, (void)flags;
    return started[0] ? -1 : device.threads ? -1 : l.event[0]++ ? KICK : NEWS;
}

int __wrap_eventfd_write(int fd, eventfd_t n)
{
    (void)n;
    host_point("eventfd_write");
    l.event[fd - KICK] = 1;
    host_changed();
    return 0;
}

int __wrap_eventfd_read(int fd, eventfd_t *n)
{
    host_point("eventfd_read");
    *n = l.event[fd - KICK];
    l.event[fd - KICK] = 0;
    return 0;
}

int __wrap_close(int fd) { return (void)fd, 0; }
int __wrap_sched_yield(void) { return mc_relax(), 0; }
int __wrap_nanosleep(const struct timespec *t, struct timespec *left) { return (void)t, (void)left, mc_relax(), 0; }

int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
    (void)clock;
    *t = (struct timespec){(time_t)(w.now_ns / 1000000000), (long)(w.now_ns % 1000000000)};
    return 0;
}

static bool readable_fd(int fd) { return fd == CHANNEL ? l.told : fd >= 0 && l.event[fd - KICK]; }
static bool poll_ends(long with_channel) { return readable_fd(KICK) || (with_channel && readable_fd(CHANNEL)); }

int __wrap_poll(struct pollfd *p, unsigned long n, int ms)
{
    int ready = 0;

    host_point("poll");
    if (ms && !poll_ends(p[1].fd == CHANNEL))
        host_sleep(poll_ends, p[1].fd == CHANNEL, ms > 0);
    for (unsigned long i = 0; i < n; i++)
        ready += (p[i].revents = (short)(readable_fd(p[i].fd) ? 1 : 0));
    return ready;
}

struct waiter { /* of threads.c */
    u64 value, address;
    u32 flags, reserved;
};

static bool futex_woken(long nothing) { return (void)nothing, l.woken; }

static long futex_waitv(const struct waiter *v, u32 n, bool timed)
{
    if (!n)
        return -EINVAL;
    host_point("futex_waitv");
    for (u32 i = 0; i < n; i++) {
        if (*(volatile u32 *)v[i].address != v[i].value)
            return -EAGAIN;
        l.slept_on[i] = v[i].address;
    }
    l.sleepers = n;
    l.woken = 0;
    host_sleep(futex_woken, 0, timed);
    l.sleepers = l.woken = 0;
    memset(l.slept_on, 0, sizeof l.slept_on);
    return 0;
}

static bool wake_at(u64 at)
{
    for (u32 i = 0; i < l.sleepers; i++)
        if (l.slept_on[i] == at && !l.woken) {
            l.woken = 1;
            host_changed();
            return true;
        }
    return false;
}

long __wrap_syscall(long nr, ...)
{
    va_list more;
    u64 a, b, c, d;
    long r = 0;

    va_start(more, nr);
    a = va_arg(more, u64), b = va_arg(more, u64), c = va_arg(more, u64), d = va_arg(more, u64);
    va_end(more);
    (void)c;
    if (nr == SYS_futex) {
        host_point("futex wake");
        wake_at(a);
    } else {
        r = futex_waitv((const struct waiter *)a, (u32)b, d != 0);
    }
    errno = r < 0 ? (int)-r : 0;
    return r < 0 ? -1 : r;
}

int sd_py_membarrier(void) { return host_membarrier(), 0; }

/* ---------------------------------------------------------------------------- the device */

static int poll_cq(struct ibv_cq *c, int most, struct ibv_wc *wc)
{
    int n = 0;

    (void)c;
    for (; n < most && l.taken != l.put; n++) {
        u8 number = (u8)l.taken;
        const struct arriving *a = &l.wire[l.taken++ % WIRE];
        wc[n] = (struct ibv_wc){.wr_id = RECEIVE | a->index, .qp_num = 1, .byte_len = a->size, .imm_data = __builtin_bswap32(a->slot << SD_NUMBER_BITS | number),
                                .opcode = a->record ? IBV_WC_RECV : IBV_WC_RECV_RDMA_WITH_IMM};
    }
    return n;
}

static int post_send(struct ibv_qp *q, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    u64 head;

    (void)q, (void)bad;
    if (wr->opcode == IBV_WR_SEND_WITH_IMM && *(u8 *)(uintptr_t)wr->sg_list->addr == SD_BELL_RECORD) {
        l.bells++;
        memset((void *)(uintptr_t)wr->sg_list->addr, 0, SD_BELL_RECORD_BYTES); /* what was in a buffer once is part of the state */
    } else if (wr->opcode == IBV_WR_SEND_WITH_IMM) {
        memcpy(&head, (u8 *)(uintptr_t)wr->sg_list->addr + 5, 8);
        l.credit = head;
    } else {
        l.sent += wr->sg_list->length;
    }
    queue.done = queue.posted + 1; /* what has completions is another matter */
    host_changed();
    return 0;
}

int sd_queue_receive(struct sd_queue *q, u32 index) { return (void)q, (void)index, 0; }
int sd_device_fd(struct sd_device *d) { return (void)d, CHANNEL; }

int sd_device_arm(struct sd_device *d)
{
    (void)d;
    host_point("arm the channel");
    l.told = 0;
    l.armed = 1;
    return 0;
}

int sd_far_ring(void *segment, u32 side, u32 number, int tid, int fd, u64 cookie)
{
    (void)segment, (void)side, (void)number, (void)tid, (void)fd, (void)cookie;
    return EAGAIN;
}

static void arrive(struct arriving a)
{
    if (l.put - l.taken == WIRE)
        host_fail("the test's wire is full");
    l.wire[l.put++ % WIRE] = a;
    if (l.armed) {
        l.armed = 0;
        l.told = 1;
    }
    host_changed();
}

/* -------------------------------------------------------------------------- the other host */

static void write_bytes(u32 n)
{
    static const char text[] = "tuvwxyz";

    for (u32 i = 0; i < n; i++) {
        w.ring[1][(START + l.came) & 3] = (u8)text[l.came % 7];
        l.came++;
    }
    arrive((struct arriving){.slot = 1, .size = n});
}

static void say_read(void)
{
    u8 *body = l.messages + (l.put % WIRE) * SD_VERBS_MESSAGE;
    u64 head = START + l.sent;
    u32 slot = 1;

    body[0] = SD_CREDIT;
    memcpy(body + 1, &slot, 4);
    memcpy(body + 5, &head, 8);
    l.seen = l.sent;
    arrive((struct arriving){.record = 1, .size = SD_CREDIT_BYTES, .index = l.put % WIRE});
}

static void ring_here(void)
{
    struct stream *st = &w.net.dir[1];

    st->data[st->written++] = 0;
    st->arrived++;
    l.rung++;
    bells_sent++;
    host_changed();
}

static bool something(long nothing)
{
    (void)nothing;
    return l.bells != l.rung || (l.sent != l.seen && !loop_script.silent);
}

void loop_far(void)
{
    for (u32 i = 0; i < ARRAY_LEN(loop_script.bytes) && loop_script.bytes[i]; i++) {
        host_point("the other host writes");
        write_bytes(loop_script.bytes[i]);
    }
    for (u32 i = 0; i < loop_script.records; i++) {
        host_point("the other host speaks");
        l.messages[(l.put % WIRE) * SD_VERBS_MESSAGE] = 99;
        arrive((struct arriving){.record = 1, .size = 1, .index = l.put % WIRE});
    }
    if (loop_script.second) {
        host_point("the other host writes to the second");
        arrive((struct arriving){.slot = 2, .size = loop_script.second});
    }
    for (;;) {
        host_point("the other host looks");
        if (!something(0))
            host_wait(something, 0, false);
        if (l.bells != l.rung)
            ring_here();
        else
            say_read();
    }
}

/* ---------------------------------------------------------------------------------- Python */

static void nudge(void) { l.nudged = 1; }
static bool called(long nothing) { return (void)nothing, l.nudged || l.event[NEWS - KICK]; }

void loop_python(void)
{
    struct sd_loop_event told[2 * BATCH];
    bool busy;

    for (;;) {
        memset(told, 0, sizeof told);
        sd_device_hold(&device);
        int n = sd_device_turn(&device, told, 2 * BATCH, 0, &busy);
        for (int i = 0; i < n; i++)
            l.heard += told[i].kind == SD_LOOP_MESSAGE;
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

/* ---------------------------------------------------------------------------------- setup */

void loop_device(void) { started[0](&device); }
void loop_caller(void) { started[1](&device); }

static void one(u32 i, void *copy)
{
    conn[i] = (struct sd_mirrored){.sent = START, .landed = START, .head_said = START, .copy = copy, .ring_bytes = 4, .slot = 1 + i,
                                   .far_slot = 1 + i, .live = 1, .worded = 1, .tid = 1};
    conn[i].rest_said = sd_mirrored_rest(&conn[i]);
    if (sd_queue_carry(&queue, &conn[i]))
        host_fail("no memory");
    sd_mirrored_watch(&conn[i], true);
}

static void forget(void)
{
    device.turns = device.looks = 0;
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
    hosted_futex_wake = wake_at;
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
    memset(started, 0, sizeof started);
    loop_script = (struct loop_script){0};
    loop_watches = 0;
    context.ops.poll_cq = poll_cq;
    context.ops.post_send = post_send;
    cq.context = qp.context = &context;
    qp.qp_num = 1;
    device = (struct sd_device){.cq = &cq, .queues = &queue};
    queue = (struct sd_queue){.device = &device, .qp = &qp, .pool = &pool, .messages = l.messages, .carried = carried, .watched = watched,
                              .size = 2, .depth = WIRE, .posted = 1, .done = 1};
    if (sd_device_start(&device, 0))
        host_fail("no threads");
    device.threads->calls = caller;
    l.event[0] = l.event[1] = 0;
    one(0, &w.seg);
    sd_queue_live(&queue);
    mc_part(&l, sizeof l);
    mc_part(&device, sizeof device);
    mc_part(&queue, sizeof queue);
    mc_part(conn, sizeof conn);
    mc_part(watched, sizeof watched);
    mc_part(&second, sizeof second);
    mc_part(device.threads, sizeof *device.threads);
    mc_share(&device.threads->python_wants);
    mc_share(&device.threads->control);
    mc_few();
    mc_forget = forget;
    mc_share(&w.seg.direct);
    share(&w.seg.dir[0], words & LOOP_SENDS, words & LOOP_WAITS);
    share(&w.seg.dir[1], words & LOOP_RECEIVES, false);
    sd_device_release(&device);
}

static void drop(u32 i)
{
    sd_queue_unwatch(&queue, &conn[i]);
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
