/* SPDX-License-Identifier: Apache-2.0
 * SO_RCVTIMEO and SO_SNDTIMEO end a wait with EAGAIN; a signal ends it with EINTR, or not at all with SA_RESTART. */
#include "guest.h"
#include <sys/time.h>

static volatile sig_atomic_t alarms;
static void on_alarm(int signal) { alarms += signal == SIGALRM; }

static void alarm_in(long ms, int flags)
{
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = flags};
    struct itimerval t = {{0, 0}, {0, ms * 1000}};
    CHECK(sigaction(SIGALRM, &act, NULL) == 0 && setitimer(ITIMER_REAL, &t, NULL) == 0);
}

static void set_timeout(int fd, int which, long ms)
{
    struct timeval t = {ms / 1000, ms % 1000 * 1000};
    CHECK(setsockopt(fd, SOL_SOCKET, which, &t, sizeof t) == 0);
}

static void accepted(int fd)
{
    char c;
    set_timeout(fd, SO_RCVTIMEO, 80);
    double start = now_s();
    CHECK(recv(fd, &c, 1, 0) == -1 && errno == EAGAIN);
    CHECK(now_s() - start > 0.07 && now_s() - start < 5);
    set_timeout(fd, SO_RCVTIMEO, 0);
    alarm_in(50, 0);
    CHECK(read(fd, &c, 1) == -1 && errno == EINTR && alarms == 1);
    say(fd, "g");
    alarm_in(50, SA_RESTART);
    CHECK(read(fd, &c, 1) == 1 && c == 'x' && alarms == 2);
    static char junk[1 << 16];
    set_timeout(fd, SO_SNDTIMEO, 80); /* nobody reads now */
    start = now_s();
    ssize_t n;
    do
        n = send(fd, junk, sizeof junk, 0);
    while (n > 0 && now_s() - start < 20);
    CHECK(n == -1 && errno == EAGAIN);
    set_timeout(fd, SO_SNDTIMEO, 10000);
    do { /* TCP's buffers may have grown a little meanwhile */
        alarm_in(50, SA_RESTART); /* with a time limit it ends a send all the same */
        n = send(fd, junk, sizeof junk, 0);
    } while (n > 0 && now_s() - start < 20);
    CHECK(n == -1 && errno == EINTR && alarms >= 3);
    CHECK(send(fd, junk, sizeof junk, 0) > 0); /* there is room in time */
    CHECK(shutdown(fd, SHUT_WR) == 0);
}

static void connected(int fd)
{
    expect(fd, "g");
    sleep_ms(150);
    say(fd, "x");
    sleep_ms(100);
    char c;
    CHECK(recv(fd, &c, 1, MSG_PEEK) == 1);
    sleep_ms(1200);
    static char junk[1 << 16];
    while (recv(fd, junk, sizeof junk, 0) > 0)
        ;
}

int main(void) { return guest_main(accepted, connected); }
