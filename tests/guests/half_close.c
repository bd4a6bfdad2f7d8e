/* SPDX-License-Identifier: Apache-2.0
 * shutdown: everything sent before it arrives, then EOF; the other direction goes on; EPIPE and SIGPIPE after it. */
#include "guest.h"

static volatile sig_atomic_t pipes;
static void on_pipe(int signal) { pipes += signal == SIGPIPE; }
static unsigned char data[3 << 20], got[3 << 20];

static void accepted(int fd)
{
    struct prng r = {5};
    prng_fill(&r, data, sizeof data);
    read_all(fd, got, sizeof got);
    CHECK(memcmp(got, data, sizeof data) == 0);
    expect_eof(fd);
    expect_eof(fd);
    say(fd, "still here"); /* the half that is open works on, also after a while */
    sleep_ms(30);
    say(fd, "!");
    write_all(fd, data, sizeof data);
    close(fd);
}

static void connected(int fd)
{
    struct prng r = {5};
    prng_fill(&r, data, sizeof data);
    write_all(fd, data, sizeof data);
    CHECK(shutdown(fd, SHUT_WR) == 0);
    signal(SIGPIPE, on_pipe);
    CHECK(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE && pipes == 0);
    CHECK(write(fd, "x", 1) == -1 && errno == EPIPE && pipes == 1);
    expect(fd, "still here!");
    read_all(fd, got, sizeof got);
    CHECK(memcmp(got, data, sizeof data) == 0);
    expect_eof(fd);
    CHECK(shutdown(fd, SHUT_RDWR) == 0 || errno == ENOTCONN);
}

int main(void) { return guest_main(accepted, connected); }
