/* SPDX-License-Identifier: Apache-2.0
 *
 * bell.c - doorbells between hosts, as the monitor's loop sends them, or the supervisor for it: [H2] and [H3] of sock/far.h.
 *
 * A program over there sleeps until this byte arrives, so all that it takes is done here at once. The program's socket is held for
 * microseconds: a close() of the program is never late.
 */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "ring/bell.h"
#include "sd_py.h"

#define OF_A_THREAD 0x80 /* PIDFD_THREAD, Linux 6.9 */
#define FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL)
#define CLOSE_NS 20000000

int sd_far_take(int tid, int fd, uint64_t cookie)
{
    int pidfd = (int)syscall(SYS_pidfd_open, tid, OF_A_THREAD), taken;
    uint64_t found = 0;
    socklen_t size = sizeof found;

    if (pidfd < 0) /* the thread that the process is known by has the same descriptors, but for unshare() */
        pidfd = (int)syscall(SYS_pidfd_open, tid, 0);
    if (pidfd < 0)
        return -errno;
    taken = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
    if (taken < 0)
        taken = -errno;
    close(pidfd);
    if (taken >= 0 && (getsockopt(taken, SOL_SOCKET, SO_COOKIE, &found, &size) < 0 || found != cookie)) {
        close(taken);
        return -ENOTSOCK;
    }
    return taken;
}

/* A descriptor that may be the last one of a program that lingers (SO_LINGER): its close would wait for as long as the program likes. A signal ends the
 * wait, and the socket is closed all the same; the timer repeats, for one that comes before the call sleeps. */
static void hurry(int number) { (void)number; }

static bool make_timer(timer_t *timer)
{
    struct sigaction act = {.sa_handler = hurry};
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 3};

    event._sigev_un._tid = (int)syscall(SYS_gettid);
    return sigaction(event.sigev_signo, &act, NULL) == 0 && timer_create(CLOCK_MONOTONIC, &event, timer) == 0;
}

static void close_soon(int sock)
{
    static __thread timer_t timer;
    static __thread bool made;
    struct itimerspec soon = {{0, CLOSE_NS}, {0, CLOSE_NS}}, never = {{0, 0}, {0, 0}};

    if (!made && !(made = make_timer(&timer))) {
        close(sock);
        return;
    }
    timer_settime(timer, 0, &soon, NULL);
    close(sock);
    timer_settime(timer, 0, &never, NULL);
}

static int send_bell(struct sd_seg *seg, int sock)
{
    struct sd_mark greeting = {.magic = SD_GREET_MAGIC, .far_id = {seg->far_id[0], seg->far_id[1]}};
    ssize_t n;

    if (load_rlx(&seg->greeted))
        return send(sock, "", 1, FLAGS) < 0 ? errno : 0;
    n = send(sock, &greeting, sizeof greeting, FLAGS);
    if (n < 0)
        return errno;
    if (n != sizeof greeting)
        shutdown(sock, SHUT_RDWR); /* the kernel takes such a short message whole, or not at all */
    store_rlx(&seg->greeted, 1);
    return 0;
}

static int ring(struct sd_seg *seg, u32 side, u32 number, int sock, u32 who)
{
    int result;

    if (load_rlx(&seg->bells_rung) == number)
        return 0;
    result = sock < 0 ? ENOTCONN : !sd_copy_ring_enter(seg, side, who) ? EALREADY : send_bell(seg, sock);
    sd_copy_ring_leave(seg, who);
    if (result != EAGAIN)
        store_rlx(&seg->bells_rung, number);
    return result;
}

int sd_far_bell(int segment, uint32_t side, uint32_t number, int sock)
{
    struct sd_seg *seg = mmap(NULL, SD_SEG_HDR_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, segment, 0);
    int result;

    if (seg == MAP_FAILED)
        return errno;
    result = ring(seg, side, number, sock, SD_RINGING_SUPERVISOR);
    munmap(seg, SD_SEG_HDR_BYTES);
    return result;
}

int sd_far_ring(void *segment, uint32_t side, uint32_t number, int tid, int fd, uint64_t cookie)
{
    int sock = sd_far_take(tid, fd, cookie), result;

    if (sock < 0)
        return sock;
    result = ring(segment, side, number, sock, SD_RINGING_MONITOR);
    close_soon(sock);
    return result;
}
