/* SPDX-License-Identifier: Apache-2.0
 *
 * linger.c - what py/bell.c does with the last descriptor of a connection that lingers, and whose peer does not read. Prints for how many ms it waited.
 */
#include "../../sdlib/src/py/bell.c"
#include <netinet/in.h>
#include <stdio.h>

int main(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger linger = {1, 30};
    static char bytes[1 << 20];
    socklen_t size = sizeof to;
    struct timespec begin, end;
    int l = socket(AF_INET, SOCK_STREAM, 0), s = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(l, (struct sockaddr *)&to, sizeof to) || listen(l, 1) || getsockname(l, (struct sockaddr *)&to, &size) ||
        connect(s, (struct sockaddr *)&to, sizeof to) || accept(l, NULL, NULL) < 0)
        return 1;
    while (send(s, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
    setsockopt(s, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    close_soon(s);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%ld\n", (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
    return 0;
}
