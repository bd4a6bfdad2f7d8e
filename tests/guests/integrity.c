#include <arpa/inet.h>
/* SPDX-License-Identifier: Apache-2.0
 *
 * integrity server PORT BYTES SEED | integrity client PORT BYTES SEED [KILL_AFTER]
 *
 * Sends BYTES pseudo-random bytes in random chunk sizes while receiving as many, in one thread with poll, with random
 * pauses on both sides so that both park, empty and full. The stream starts on plain TCP: both say hello before.
 * Prints `sent N HASH` and `received N HASH`, HASH being SHA-256 of the bytes in that direction; whoever drives both
 * sides compares them. With KILL_AFTER the client kills itself with SIGKILL once it has sent that many bytes and read
 * all that it asked the server for; the server's `received` line then says how far it came before EOF.
 * $STAY names a file: until it exists, both send on however many BYTES it takes, and read until the other one's end.
 */
#include "guest.h"
#include "sha256.h"

enum { CHUNK = 200000 };

struct half {
    struct prng r;
    struct sha256 sum;
    uint64_t left, done, pause_at;
    unsigned char buf[CHUNK];
    size_t at, len;
};

static struct half out, in;
static struct prng pauses;

/* A pause of 0 to 3 ms about every 8 MiB, and one in thirty-two of them is long enough for the peer to stop spinning
 * and to fill its buffers. */
static void maybe_pause(struct half *h)
{
    if (h->done < h->pause_at)
        return;
    h->pause_at = h->done + prng_next(&pauses) % (16u << 20);
    sleep_ms(prng_next(&pauses) % 32 == 0 ? 60 : (long)(prng_next(&pauses) % 4));
}

/* Whether bytes may end now. */
static bool may_end(void)
{
    const char *stay = getenv("STAY");

    return !stay || access(stay, F_OK) == 0;
}

static bool step_out(int fd)
{
    struct half *h = &out;
    if (h->at == h->len) {
        if (h->left <= CHUNK && !may_end())
            h->left += 10 * CHUNK;
        /* Many small chunks, some of more than a ring. */
        uint64_t r = prng_next(&h->r), n = r % 4 == 0 ? (r >> 8) % CHUNK + 1 : (r >> 8) % 9000 + 1;
        h->len = n < h->left ? n : h->left;
        h->at = 0;
        for (size_t i = 0; i < h->len; i += 8) {
            uint64_t word = prng_next(&h->r);
            memcpy(h->buf + i, &word, h->len - i < 8 ? h->len - i : 8);
        }
        sha256_add(&h->sum, h->buf, h->len);
    }
    ssize_t n = write(fd, h->buf + h->at, h->len - h->at);
    if (n < 0) {
        CHECK(errno == EAGAIN);
        return false;
    }
    h->at += (size_t)n;
    h->left -= (size_t)n;
    h->done += (uint64_t)n;
    maybe_pause(h);
    return true;
}

static bool step_in(int fd)
{
    struct half *h = &in;
    size_t want = prng_next(&h->r) % CHUNK + 1;
    ssize_t n = read(fd, h->buf, want < h->left ? want : h->left);
    if (n <= 0) {
        CHECK(n == 0 || errno == EAGAIN);
        if (n == 0)
            h->left = 0;
        return n == 0;
    }
    sha256_add(&h->sum, h->buf, (size_t)n);
    h->left -= (size_t)n;
    h->done += (uint64_t)n;
    maybe_pause(h);
    return true;
}

static void transfer(int fd, uint64_t kill_after)
{
    while (out.left > 0 || in.left > 0) {
        if (kill_after && out.done >= kill_after && out.at == out.len)
            break;
        struct pollfd p = {fd, (short)((in.left ? POLLIN : 0) | (out.left ? POLLOUT : 0)), 0};
        CHECK(poll(&p, 1, 600000) == 1); /* a link may be down meanwhile, on a machine that has other things to do */
        bool progress = false;
        if (out.left && (p.revents & POLLOUT)) {
            progress |= step_out(fd);
            if (out.left == 0 && getenv("STAY"))
                CHECK(shutdown(fd, SHUT_WR) == 0);
        }
        if (in.left && (p.revents & (POLLIN | POLLHUP | POLLERR)))
            progress |= step_in(fd);
        CHECK(progress || (p.revents & (POLLIN | POLLOUT)));
    }
}

static int open_side(bool server, uint16_t port)
{
    const char *other = getenv("ADDRESS"); /* of the server; else both are on this host */
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port),
                               .sin_addr.s_addr = other ? inet_addr(other) : htonl(INADDR_LOOPBACK)};
    if (!server)
        return connect_loopback(&addr);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    CHECK(bind(listener, (struct sockaddr *)&addr, sizeof addr) == 0 && listen(listener, 1) == 0);
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    close(listener);
    return fd;
}

static void tell(const char *what, struct half *h)
{
    char text[65];
    sha256_end(&h->sum, text);
    printf("%s %llu %s\n", what, (unsigned long long)h->done, text);
    fflush(stdout);
}

/* $GO names a file: until it exists, the two only say that they are there. */
static void until_go(int fd, bool server)
{
    const char *go = getenv("GO");
    char c = 'p';

    while (go && c != 'g') {
        if (!server) {
            c = access(go, F_OK) == 0 ? 'g' : 'p';
            CHECK(write(fd, &c, 1) == 1);
            usleep(5000);
        }
        CHECK(read(fd, &c, 1) == 1);
        if (server)
            CHECK(write(fd, &c, 1) == 1);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc >= 5);
    bool server = strcmp(argv[1], "server") == 0;
    uint64_t bytes = strtoull(argv[3], NULL, 0), seed = strtoull(argv[4], NULL, 0);
    uint64_t kill_after = argc > 5 ? strtoull(argv[5], NULL, 0) : 0;
    int fd = open_side(server, (uint16_t)atoi(argv[2]));
    until_go(fd, server);
    CHECK(fd >= 0);
    say(fd, "hello");
    expect(fd, "hello");
    out.r.state = seed * 2 + 1, in.r.state = seed * 3 + 7, pauses.state = seed * 5 + 11;
    sha256_start(&out.sum);
    sha256_start(&in.sum);
    out.left = in.left = bytes;
    set_nonblock(fd, true);
    if (argc > 5 || (server && argc == 5 && getenv("ONE_WAY")))
        *(server ? &out.left : &in.left) = 0;
    if (getenv("STAY"))
        in.left = UINT64_MAX;
    transfer(fd, kill_after);
    if (kill_after) {
        tell("sent", &out);
        kill(getpid(), SIGKILL);
    }
    if (in.left == 0 && in.done == bytes && shutdown(fd, SHUT_WR) == 0) {
        set_nonblock(fd, false);
        expect_eof(fd);
    }
    tell("sent", &out);
    tell("received", &in);
    return 0;
}
