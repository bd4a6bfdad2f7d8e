/* SPDX-License-Identifier: Apache-2.0
 *
 * maps.c - what is mapped where, as /proc/self/maps tells it.
 *
 * The descriptor lives for microseconds and only while a site is looked at for the first time. Linux 6.11 answers for one address
 * with an ioctl; older kernels make us read the text. One static buffer: callers hold the patch lock.
 */
#include "gate/gate.h"

#define AT_FDCWD (-100)
#define BUFFER_BYTES 32768
#define REACH (1ull << 30)
#define NAME_BYTES 8u
#define LOWEST 0x20000ull /* above vm.mmap_min_addr */

struct procmap_query { /* linux/fs.h */
    u64 size, query_flags, query_addr;
    u64 vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
    u32 dev_major, dev_minor, vma_name_size, build_id_size;
    u64 vma_name_addr, build_id_addr;
};
_Static_assert(sizeof(struct procmap_query) == 104, "linux/fs.h");
#define PROCMAP_QUERY 0xc0686611u
#define VMA_RWXS 15u
#define VMA_RX 5u

struct line {
    u64 lo, hi, inode;
    char perms[4];
    char name[NAME_BYTES]; /* its beginning; '[' when the kernel made it */
};

static char buffer[BUFFER_BYTES];
static u64 have, pos;

static int next_char(int fd)
{
    if (pos == have) {
        long n = SYS3(__NR_read, fd, buffer, BUFFER_BYTES);
        if (n <= 0)
            return -1;
        have = (u64)n;
        pos = 0;
    }
    return buffer[pos++];
}

/* A number in hexadecimal or decimal, and the character behind it. */
static u64 number(int fd, u32 base, int *end)
{
    u64 value = 0;
    for (;;) {
        int c = next_char(fd);
        u32 digit = c >= '0' && c <= '9' ? (u32)(c - '0') : c >= 'a' && c <= 'f' ? (u32)(c - 'a') + 10 : 99;
        if (digit >= base) {
            *end = c;
            return value;
        }
        value = value * base + digit;
    }
}

/* lo-hi perms offset major:minor inode [name] */
static bool next_line(int fd, struct line *l)
{
    int c;
    sd_zero(l->name, NAME_BYTES);
    l->lo = number(fd, 16, &c);
    if (c != '-')
        return false;
    l->hi = number(fd, 16, &c);
    for (u32 i = 0; i < 4; i++)
        l->perms[i] = (char)next_char(fd);
    next_char(fd);
    for (u32 i = 0; i < 3; i++)
        number(fd, 16, &c);
    l->inode = number(fd, 10, &c);
    while (c == ' ')
        c = next_char(fd);
    for (u32 i = 0; c != '\n' && c >= 0; i++, c = next_char(fd))
        if (i < NAME_BYTES)
            l->name[i] = (char)c;
    return true;
}

/* The kernel's own code for us, where a clock that it cannot read there becomes a system call. (VM_MAYWRITE: made for breakpoints.) */
static bool is_vdso(const char *name)
{
    static const char vdso[] = "[vdso]";
    for (u32 i = 0; vdso[i]; i++)
        if (name[i] != vdso[i])
            return false;
    return true;
}

static bool is_stack(const char *name) { return name[0] == '[' && name[1] == 's'; }

static int open_maps(void)
{
    have = pos = 0;
    return (int)SYS4(__NR_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
}

static bool read_mapping(int fd, u64 addr, struct sd_mapping *m)
{
    struct line l;
    while (next_line(fd, &l)) {
        if (addr < l.lo || addr >= l.hi)
            continue;
        m->lo = l.lo;
        m->hi = l.hi;
        m->vdso = is_vdso(l.name);
        m->text = (l.inode || m->vdso) && l.perms[0] == 'r' && l.perms[1] == '-' && l.perms[2] == 'x' && l.perms[3] == 'p';
        return true;
    }
    return false;
}

bool sd_find_mapping(u64 addr, struct sd_mapping *m)
{
    int fd = open_maps();
    bool found = true;
    if (fd < 0)
        return false;
    struct procmap_query q = { .size = sizeof q, .query_addr = addr, .vma_name_size = BUFFER_BYTES, .vma_name_addr = (u64)buffer };
    if (SYS3(__NR_ioctl, fd, PROCMAP_QUERY, &q) == 0) {
        *m = (struct sd_mapping){ .lo = q.vma_start, .hi = q.vma_end, .vdso = q.vma_name_size && is_vdso(buffer) };
        m->text = (q.inode || m->vdso) && (q.vma_flags & VMA_RWXS) == VMA_RX;
    } else {
        found = read_mapping(fd, addr, m);
    }
    SYS1(__NR_close, fd);
    return found;
}

u64 sd_find_gap(u64 addr, u64 bytes)
{
    int fd = open_maps();
    u64 end = LOWEST, best = 0;
    struct line l;
    if (fd < 0)
        return 0;
    while (next_line(fd, &l) && l.lo <= addr) {
        /* At the upper end of a gap: the heap below it keeps its room to grow. */
        if (l.lo > end && l.lo - end >= 3 * bytes && !is_stack(l.name) && addr - l.lo < REACH)
            best = l.lo - 2 * bytes;
        end = l.hi;
    }
    SYS1(__NR_close, fd);
    return best;
}
