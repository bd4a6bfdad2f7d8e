/* SPDX-License-Identifier: Apache-2.0
 * O_NONBLOCK and FIONBIO: EAGAIN when empty and when full, FIONREAD, POLLOUT when there is room again. */
#include "guest.h"

static unsigned char chunk[8192];

static void accepted(int fd)
{
    char c;
    set_nonblock(fd, true);
    CHECK(read(fd, &c, 1) == -1 && errno == EAGAIN);
    int on = 0;
    CHECK(ioctl(fd, FIONBIO, &on) == 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK) == 0);
    on = 1;
    CHECK(ioctl(fd, FIONBIO, &on) == 0 && (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    CHECK(recv(fd, &c, 1, 0) == -1 && errno == EAGAIN);
    int waiting = -1;
    CHECK(ioctl(fd, FIONREAD, &waiting) == 0 && waiting == 0);
    set_nonblock(fd, false);
    say(fd, "go");
    struct pollfd p = {fd, POLLIN, 0};
    do {
        CHECK(poll(&p, 1, 5000) == 1);
        CHECK(ioctl(fd, FIONREAD, &waiting) == 0);
    } while (waiting < 1234);
    CHECK(waiting == 1234);
    read_all(fd, chunk, 1000);
    CHECK(ioctl(fd, FIONREAD, &waiting) == 0 && waiting == 234);
    read_all(fd, chunk, 234);

    say(fd, "fill");
    uint64_t sum = 0;
    sleep_ms(300); /* the other side fills the stream until it would block */
    struct prng r = {99};
    unsigned char want[sizeof chunk];
    say(fd, "!");
    for (ssize_t n; (n = read(fd, chunk, sizeof chunk)) > 0; sum += (uint64_t)n) {
        prng_fill(&r, want, (size_t)n);
        CHECK(memcmp(chunk, want, (size_t)n) == 0);
    }
    CHECK(sum > 0);
}

static void connected(int fd)
{
    static unsigned char data[64 << 20];
    struct prng r = {99};
    expect(fd, "go");
    memset(chunk, 1, sizeof chunk);
    CHECK(write(fd, chunk, 1234) == 1234);
    expect(fd, "fill");
    prng_fill(&r, data, sizeof data);
    set_nonblock(fd, true);
    size_t sent = 0;
    for (ssize_t n; sent < sizeof data; sent += (size_t)n) {
        n = write(fd, data + sent, 5000 < sizeof data - sent ? 5000 : sizeof data - sent);
        if (n < 0) {
            CHECK(errno == EAGAIN);
            break;
        }
        CHECK(n > 0);
    }
    CHECK(sent < sizeof data); /* it did fill up */
    struct pollfd p = {fd, POLLOUT, 0};
    CHECK(poll(&p, 1, 0) == 0);
    char c;
    p.events = POLLIN;
    CHECK(poll(&p, 1, 5000) == 1 && read(fd, &c, 1) == 1 && c == '!');
    p.events = POLLOUT;
    CHECK(poll(&p, 1, 10000) == 1 && (p.revents & POLLOUT));
    for (int more = 0; more < 200; more++) {
        CHECK(poll(&p, 1, 10000) == 1);
        ssize_t n = write(fd, data + sent, 5000);
        CHECK(n > 0 || (n == -1 && errno == EAGAIN));
        sent += n > 0 ? (size_t)n : 0;
    }
    CHECK(shutdown(fd, SHUT_WR) == 0);
}

int main(void) { return guest_main(accepted, connected); }
