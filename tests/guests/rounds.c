/* SPDX-License-Identifier: Apache-2.0
 *
 * rounds server ADDRESS PORT | rounds client ADDRESS PORT GO SIZE COUNT STREAM_BYTES
 *
 * For figures between hosts (tests/hosts/figures.py). Round trips until the file GO exists; then COUNT of them are measured, and a stream of so
 * many bytes to the server, which answers with one byte. Prints `rtt_us MEDIAN P90` and `stream_mib_s X`.
 */
#include "guest.h"

enum { CHUNK = 65536 };

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void serve(struct sockaddr_in *to)
{
    static char buf[CHUNK];
    int one = 1, l = socket(AF_INET, SOCK_STREAM, 0), s;
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    CHECK(bind(l, (struct sockaddr *)to, sizeof *to) == 0 && listen(l, 1) == 0);
    CHECK((s = accept(l, NULL, NULL)) >= 0);
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (;;) { /* size, then count (0: a stream of size bytes) */
        uint64_t head[2];
        ssize_t n = read(s, head, sizeof head);
        if (n == 0)
            return;
        CHECK(n > 0);
        read_all(s, (char *)head + n, sizeof head - (size_t)n);
        if (head[1]) {
            for (uint64_t i = 0; i < head[1]; i++) {
                read_all(s, buf, head[0]);
                write_all(s, buf, head[0]);
            }
        } else {
            while (head[0]) {
                n = read(s, buf, sizeof buf);
                CHECK(n > 0);
                head[0] -= (uint64_t)n;
            }
            write_all(s, "x", 1);
        }
    }
}

static void rounds(int s, uint64_t size, uint64_t count, double *took)
{
    static char buf[CHUNK];
    uint64_t head[2] = {size, count};
    write_all(s, head, sizeof head);
    for (uint64_t i = 0; i < count; i++) {
        double t = now_s();
        write_all(s, buf, size);
        read_all(s, buf, size);
        took[i] = (now_s() - t) * 1e6;
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    int one = 1;
    CHECK(argc > 3);
    to.sin_addr.s_addr = inet_addr(argv[2]);
    to.sin_port = htons((uint16_t)atoi(argv[3]));
    if (!strcmp(argv[1], "server")) {
        serve(&to);
        return 0;
    }
    CHECK(argc > 7);
    uint64_t size = strtoull(argv[5], NULL, 10), count = strtoull(argv[6], NULL, 10), bytes = strtoull(argv[7], NULL, 10);
    double *took = calloc(count + 1, sizeof *took);
    CHECK(took && size <= CHUNK);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(s, (struct sockaddr *)&to, sizeof to) == 0);
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    do {
        rounds(s, size, 1, took);
        sleep_ms(5);
    } while (access(argv[4], F_OK) != 0);
    rounds(s, size, count, took);
    qsort(took, count, sizeof *took, compare);
    printf("rtt_us %.1f %.1f\n", took[count / 2], took[count * 9 / 10]);
    static char buf[CHUNK];
    uint64_t head[2] = {bytes, 0};
    double t = now_s();
    write_all(s, head, sizeof head);
    for (uint64_t left = bytes; left;) {
        uint64_t n = left < CHUNK ? left : CHUNK;
        write_all(s, buf, n);
        left -= n;
    }
    read_all(s, buf, 1);
    printf("stream_mib_s %.2f\n", (double)bytes / 1048576 / (now_s() - t));
    return 0;
}
