/* SPDX-License-Identifier: Apache-2.0
 *
 * loop_stress.c - the monitor's loop in C with its threads, as it is, under ThreadSanitizer or AddressSanitizer: two processes, each with a device of
 * sockets (softverbs.c), programs that write and read rings of their own copies, and somebody in Python's place.
 *
 *   loop_stress LIBRARY BYTES      $SOFTVERBS: a folder
 *
 * More connections than the loop sleeps on, so that they make way for each other. Every byte is compared.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "verbs/threads.h"

enum { CONNECTIONS = 5, RING = 4096, EVENTS = 64 };

#define CHECK(c) do { if (!(c)) { fprintf(stderr, "side %u: %s, line %d, errno %d\n", side, #c, __LINE__, errno); _exit(3); } } while (0)

struct one {
    struct sd_mirrored m;
    void *segment;
    struct sd_py_end *writer, *reader;
    pthread_t threads[2];
    _Atomic u32 nudged;
};

struct told { /* to the other process */
    u32 number, rkey[CONNECTIONS];
    u64 address[CONNECTIONS];
};

static struct one all[CONNECTIONS];
static u32 side;
static u64 bytes;
static int nudges;
static _Atomic u32 over;
static struct sd_device *device;
static struct sd_queue *queue;

/* ------------------------------------------------------------------------- programs */

static u8 byte_at(u64 connection, u64 from, u64 n) { return (u8)((n * 131 + (n >> 8) + connection * 7 + from * 101) % 251); }

/* As sd_far_nudge(). */
static void nudge(struct one *o, struct sd_py_end *end)
{
    struct sd_seg *seg = o->segment;

    if (!sd_py_bell_take(end))
        return;
    if (load_acq(&seg->direct)) {
        syscall(SYS_futex, &seg->dir[side].bell, FUTEX_WAKE, 1, NULL, NULL, 0);
    } else {
        store_rel(&o->nudged, 1);
        eventfd_write(nudges, 1);
    }
}

static void pause_for(u32 us) { usleep(us); }

static void *write_all(void *arg)
{
    struct one *o = arg;
    u64 which = (u64)(o - all), done = 0;
    unsigned dice = (unsigned)(which + 1 + 10 * side);
    u8 piece[700];

    while (done < bytes) {
        u64 n = min_u64(1 + (u64)rand_r(&dice) % sizeof piece, bytes - done);
        for (u64 i = 0; i < n; i++)
            piece[i] = byte_at(which, side, done + i);
        int64_t put = sd_py_put(o->writer, piece, n);
        CHECK(put >= 0);
        done += (u64)put;
        if (put && sd_py_data_wanted(o->writer))
            nudge(o, o->writer);
        if (!put || rand_r(&dice) % 8 == 0)
            pause_for(rand_r(&dice) % 400);
    }
    return NULL;
}

static void *read_all(void *arg)
{
    struct one *o = arg;
    u64 which = (u64)(o - all), done = 0;
    unsigned dice = (unsigned)(which + 100 + 10 * side);
    u8 piece[900];

    while (done < bytes) {
        int64_t got = sd_py_take(o->reader, piece, 1 + (u64)rand_r(&dice) % sizeof piece);
        CHECK(got >= 0);
        for (int64_t i = 0; i < got; i++)
            CHECK(piece[i] == byte_at(which, !side, done + (u64)i));
        done += (u64)got;
        if (got && sd_py_room_wanted(o->reader))
            nudge(o, o->reader);
        if (!got)
            pause_for(rand_r(&dice) % 300);
    }
    atomic_fetch_add(&over, 1);
    eventfd_write(nudges, 1);
    return NULL;
}

/* ------------------------------------------------------------------------ the monitor */

static void make(struct one *o, u32 slot)
{
    struct sd_seg *seg;

    o->segment = mmap(NULL, SD_SEG_HDR_BYTES + 2 * RING, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(o->segment != MAP_FAILED);
    sd_py_format(o->segment, RING);
    sd_copy_init(o->segment, side, 1, slot);
    seg = o->segment;
    for (u32 d = 0; d < 2; d++) {
        store_rlx(&seg->dir[d].sw_ring, 1);
        store_rlx(&seg->attached[d], 1);
    }
    store_rlx(&seg->dir[!side].rx_armed, 0); /* its reader looks by itself */
    store_rlx(&seg->heard, 1);
    o->writer = sd_py_open(o->segment, SD_SEG_HDR_BYTES + 2 * RING, side);
    o->reader = sd_py_open(o->segment, SD_SEG_HDR_BYTES + 2 * RING, side);
    CHECK(o->writer && o->reader);
    o->m = (struct sd_mirrored){.copy = o->segment, .ring_bytes = RING, .slot = slot, .far_slot = slot, .side = side, .worded = 1};
    o->m.rest_said = sd_mirrored_rest(&o->m);
}

static void open_all(const char *library, int other)
{
    struct sd_region in, out;
    struct told mine = {0}, theirs;
    struct sd_route route = {.mtu = 3, .timeout = 14, .retries = 6};

    device = sd_device_open(library, "soft", 1, 0, 8192);
    CHECK(device && sd_device_start(device, 0) == 0);
    queue = sd_queue_open(device, 64, 64);
    CHECK(queue);
    mine.number = sd_queue_number(queue);
    for (u32 i = 0; i < CONNECTIONS; i++) {
        struct one *o = &all[i];
        u8 *rings = (u8 *)o->segment + SD_SEG_HDR_BYTES;
        CHECK(sd_queue_register(queue, rings + !side * RING, RING, true, &in) == 0);
        CHECK(sd_queue_register(queue, rings + side * RING, RING, false, &out) == 0);
        o->m.lkey = out.lkey;
        mine.rkey[i] = in.rkey;
        mine.address[i] = (uintptr_t)rings + !side * RING;
    }
    CHECK(write(other, &mine, sizeof mine) == sizeof mine && read(other, &theirs, sizeof theirs) == sizeof theirs);
    route.number = theirs.number;
    CHECK(sd_queue_connect(queue, &route) == 0);
    for (u32 i = 0; i < CONNECTIONS; i++) {
        all[i].m.far_rkey = theirs.rkey[i];
        all[i].m.far_address = theirs.address[i];
        CHECK(sd_queue_carry(queue, &all[i].m) == 0);
        sd_mirrored_live(&all[i].m, true);
        sd_mirrored_watch(&all[i].m, true);
    }
    CHECK(write(other, "c", 1) == 1 && read(other, &theirs, 1) == 1); /* both know each other */
    sd_queue_live(queue);
}

/* In Python's place: hears of news, and has those watched whose programs have said something. */
static void serve(void)
{
    static struct sd_loop_event events[EVENTS];
    struct pollfd p[] = {{sd_device_news(device), POLLIN, 0}, {nudges, POLLIN, 0}};
    eventfd_t count;
    bool busy;

    sd_device_release(device);
    poll(p, 2, 20);
    if (p[1].revents)
        eventfd_read(nudges, &count);
    sd_device_hold(device);
    int n = sd_device_turn(device, events, EVENTS, 0, &busy);
    for (int i = 0; i < n; i++) {
        CHECK(events[i].kind != SD_LOOP_FAILED && events[i].kind != SD_LOOP_LIES && events[i].kind != SD_LOOP_BROKEN);
        CHECK(events[i].kind != SD_LOOP_MESSAGE || !events[i].size);
    }
    for (u32 i = 0; i < CONNECTIONS; i++)
        if (atomic_exchange(&all[i].nudged, 0))
            sd_mirrored_watch(&all[i].m, true);
}

static int run(const char *library, int other)
{
    char word;

    nudges = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (u32 i = 0; i < CONNECTIONS; i++)
        make(&all[i], i + 1);
    CHECK(sd_py_membarrier() == 0);
    open_all(library, other);
    for (u32 i = 0; i < CONNECTIONS; i++) {
        CHECK(pthread_create(&all[i].threads[0], NULL, write_all, &all[i]) == 0);
        CHECK(pthread_create(&all[i].threads[1], NULL, read_all, &all[i]) == 0);
    }
    while (over < CONNECTIONS) {
        struct pollfd alive = {other, 0, 0};
        CHECK(poll(&alive, 1, 0) == 0); /* a sanitizer may have ended the other one */
        serve();
    }
    CHECK(write(other, "d", 1) == 1); /* ours have read all; theirs may not have */
    fcntl(other, F_SETFL, O_NONBLOCK);
    for (ssize_t r; (r = read(other, &word, 1)) != 1; serve())
        CHECK(r < 0 && errno == EAGAIN);
    for (u32 i = 0; i < CONNECTIONS; i++)
        for (u32 k = 0; k < 2; k++)
            pthread_join(all[i].threads[k], NULL);
    sd_device_stop(device);
    fcntl(other, F_SETFL, 0); /* what the other one still posts finds our queue pair */
    CHECK(write(other, "e", 1) == 1 && read(other, &word, 1) == 1);
    sd_queue_close(queue);
    sd_device_close(device);
    return 0;
}

int main(int argc, char **argv)
{
    int pair[2], status = 0;
    pid_t child;

    if (argc != 3 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        return 2;
    bytes = strtoull(argv[2], NULL, 0);
    child = fork();
    if (child < 0)
        return 2;
    side = child ? 0 : 1;
    close(pair[!side]);
    int r = run(argv[1], pair[side]);
    if (!child)
        return r;
    waitpid(child, &status, 0);
    printf("%u connections, %llu bytes each way\n", CONNECTIONS, (unsigned long long)bytes);
    return r || status;
}
