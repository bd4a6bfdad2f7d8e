/* SPDX-License-Identifier: Apache-2.0
 *
 * int80_segment: clone with CLONE_SETTLS by int $0x80 in a 64-bit program: a child has the segment, and its parent has what it had.
 */
#include "guest.h"
#include <asm/ldt.h>
#include <sched.h>
#include <sys/mman.h>

enum { CLONE = 120, SET_THREAD_AREA = 243, GET_THREAD_AREA = 244 };

static long int80(long nr, long a, long b, long c, long d, long e)
{
    __asm__ volatile("int $0x80" : "+a"(nr) : "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory", "r8", "r9", "r10", "r11");
    return nr;
}

static struct user_desc *low;

static struct user_desc segment(unsigned number, unsigned base)
{
    return (struct user_desc){.entry_number = number, .base_addr = base, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
}

static unsigned base_of(unsigned number)
{
    low[1] = (struct user_desc){.entry_number = number};
    CHECK(int80(GET_THREAD_AREA, (long)&low[1], 0, 0, 0, 0) == 0);
    return low[1].base_addr;
}

static long child_with(unsigned number, unsigned base, long stack)
{
    *low = segment(number, base);
    return int80(CLONE, SIGCHLD | CLONE_SETTLS, stack, 0, (long)low, 0);
}

static void one(unsigned number, unsigned base)
{
    unsigned before = base_of(number);
    long child = child_with(number, base, 0);
    int status;

    CHECK(child >= 0);
    if (child == 0)
        _exit(base_of(number) == base ? 42 : 1);
    CHECK(waitpid((pid_t)child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 42);
    CHECK(base_of(number) == before);
}

int main(void)
{
    CHECK(close(socket(AF_INET, SOCK_STREAM, 0)) == 0);
    low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED);
    one(12, 0x1000);
    *low = segment(13, 0x5000);
    CHECK(int80(SET_THREAD_AREA, (long)low, 0, 0, 0, 0) == 0);
    one(13, 0x2000);
    one(14, 0x3000);
    CHECK(child_with((unsigned)-1, 0x1000, 0) == -EINVAL && child_with(5, 0x1000, 0) == -EINVAL);
    CHECK(int80(CLONE, SIGCHLD | CLONE_SETTLS, 0, 0, 0, 0) == -EFAULT);
    CHECK(base_of(12) == 0 && base_of(13) == 0x5000);
    puts("ok");
    return 0;
}
