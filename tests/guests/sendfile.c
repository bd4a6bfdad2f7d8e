/* SPDX-License-Identifier: Apache-2.0
 * sendfile from a file, with and without an offset: bytes, result, file position. */
#include "guest.h"
#include <sys/sendfile.h>

enum { SIZE = 1 << 20, FROM = 4097, NEXT = 100000 };
static unsigned char data[SIZE], got[SIZE];

static void accepted(int fd)
{
    struct prng r = {7};
    prng_fill(&r, data, SIZE);
    read_all(fd, got, SIZE - FROM);
    CHECK(memcmp(got, data + FROM, SIZE - FROM) == 0);
    read_all(fd, got, NEXT);
    CHECK(memcmp(got, data, NEXT) == 0);
    expect_eof(fd);
}

static void connected(int fd)
{
    struct prng r = {7};
    char name[] = "/tmp/guest-sendfile-XXXXXX";
    int file = mkstemp(name);
    CHECK(file >= 0 && unlink(name) == 0);
    prng_fill(&r, data, SIZE);
    write_all(file, data, SIZE);
    CHECK(lseek(file, 0, SEEK_SET) == 0);
    off_t at = FROM;
    while (at < SIZE)
        CHECK(sendfile(fd, file, &at, SIZE) > 0);
    CHECK(at == SIZE && lseek(file, 0, SEEK_CUR) == 0);
    CHECK(sendfile(fd, file, &at, SIZE) == 0); /* at the end of the file */
    for (size_t sent = 0; sent < NEXT;) {
        ssize_t n = sendfile(fd, file, NULL, NEXT - sent);
        CHECK(n > 0);
        sent += (size_t)n;
    }
    CHECK(lseek(file, 0, SEEK_CUR) == NEXT);
}

int main(void) { return guest_main(accepted, connected); }
