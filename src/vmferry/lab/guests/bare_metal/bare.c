/* SPDX-License-Identifier: Apache-2.0
 *
 * A guest without an operating system, for hosts whose KVM runs no stock kernel: 32 bits, no paging.
 *
 * It keeps the promise of guest/main.c: a line `ack DISK NUMBER PLACE MONO_US BLOCKS` is printed only after that
 * block of 4 KiB, stamped, is durable; and `edge` tells of the host's clock as guest/clock.c does. Besides, it walks
 * through its memory: each page must hold what was written there last. A page that was lost on the way is an error.
 *
 * Told by the multiboot command line: lab.write=hda:START:LEN,.. lab.rate=N lab.touch=MIB lab.dirty=MIB_S;
 * lab.lease=hdc (see lease.c); lab.probe (say `up` and power off);
 * and by lines `SEQ COMMAND` on the second serial port, answered with `done SEQ`: stop, go, poweroff.
 */
#include "machine.h"

#define MIB (1024 * 1024)
#define PAGES_PER_MIB (MIB / BLOCK)
#define MEMORY ((u8 *)(16 * MIB))
#define DISKS 2
#define FILLED 63 /* every so many words of the filler one is not zero */
#define LEAST_HZ 20
#define MOST_HZ 200
#define FILL_HZ 4000 /* while memory is filled each read is waited for */
#define LOOKS_A_WRITE 4
#define MOST_US 1000000 /* a pause is not made up for by a burst */

struct multiboot {
    u32 magic, flags, sum;
};
__attribute__((section(".multiboot"), used)) static const struct multiboot header = {0x1BADB002, 3, -(0x1BADB002u + 3)};

u32 stack[4096];
void run(const u32 *told);
__asm__(".globl enter\nenter: mov $stack + 16384, %esp\n cld\n push %ebx\n call run\n");

struct stamp { /* as struct stamp in guest/stamp.c */
    char magic[8];
    u64 number, place, previous;
    char disk[8];
    u64 mono_us;
    u32 blocks, index;
    u32 filler[1008];
    u32 unused, crc32;
};
_Static_assert(sizeof(struct stamp) == BLOCK, "a stamp fills its block");

struct disk {
    char name[8];
    u32 first, blocks, at;
    u64 number, previous;
};

static struct disk disks[DISKS];
static u32 writing = 1, crc_table[256], crc_zeros[4][256];
static struct stamp stamp __attribute__((aligned(BLOCK))) = {.magic = "VMFSTAM", .blocks = 1};
static u32 pages, page, pass = 1;

/* words */

void *memcpy(void *to, const void *from, u32 count)
{
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(count)::"memory");
    return to;
}

void *memset(void *to, int value, u32 count)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(value) : "memory");
    return to;
}

static const char *after(const char *text, const char *name) /* what follows the name, or 0 */
{
    for (; *text; text++) {
        u32 same = 0;
        while (name[same] && text[same] == name[same])
            same++;
        if (!name[same])
            return text + same;
    }
    return 0;
}

static u32 read_number(const char **text)
{
    u32 number = 0;
    for (; **text >= '0' && **text <= '9'; ++*text)
        number = number * 10 + **text - '0';
    return number;
}

static u32 option(const char *line, const char *name)
{
    const char *at = after(line, name);
    return at ? read_number(&at) : 0;
}

/* writes */

static void make_crc_table(void)
{
    for (u32 i = 0; i < 256; i++) {
        u32 c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[i] = c;
    }
    u32 of_bit[32];
    for (int bit = 0; bit < 32; bit++) {
        u32 c = 1u << bit;
        for (u32 zero = 0; zero < (FILLED - 1) * 4; zero++)
            c = crc_table[c & 0xff] ^ (c >> 8);
        of_bit[bit] = c;
    }
    for (u32 byte = 0; byte < 4; byte++)
        for (u32 i = 1; i < 256; i++)
            crc_zeros[byte][i] = crc_zeros[byte][i & (i - 1)] ^ of_bit[byte * 8 + __builtin_ctz(i)];
}

static u32 crc_of(u32 c, const void *content, u32 length)
{
    for (const u8 *p = content; length--; p++)
        c = crc_table[(c ^ *p) & 0xff] ^ (c >> 8);
    return c;
}

/* As zlib.crc32 of all but its own field. Where KVM emulates, 4 KiB byte by byte would be 24 ms of CPU: the zeros
   between two filled words are one step. */
static u32 crc_of_stamp(void)
{
    u32 c = crc_of(~0u, &stamp, (u32)((u8 *)stamp.filler - (u8 *)&stamp));
    for (u32 i = 0; i < 1008; i += FILLED) {
        c = crc_of(c, &stamp.filler[i], 4);
        c = crc_zeros[0][c & 0xff] ^ crc_zeros[1][c >> 8 & 0xff] ^ crc_zeros[2][c >> 16 & 0xff] ^ crc_zeros[3][c >> 24];
    }
    return ~crc_of(c, &stamp.unused, 4);
}

static void add_disks(const char *line, u64 number)
{
    const char *at = after(line, "lab.write=");
    while (at && at[0] == 'h' && at[1] == 'd') {
        u32 index = at[2] - 'a';
        if (index >= DISKS)
            return;
        struct disk *d = &disks[index];
        memcpy(d->name, at, 3);
        at += 4; /* hda: */
        d->first = read_number(&at) * PAGES_PER_MIB;
        at++;
        d->blocks = read_number(&at) * PAGES_PER_MIB;
        d->number = number;
        if (*at == ',')
            at++;
    }
}

static void write_one(struct disk *d, u32 index)
{
    u32 place = d->first + d->at;
    d->at = (d->at + 7919) % d->blocks; /* all over the region; a prime, so every place has its turn */
    stamp.magic[7] = 'P';
    stamp.number = ++d->number;
    stamp.place = place;
    stamp.mono_us = mono_us();
    memcpy(stamp.disk, d->name, sizeof d->name);
    for (u32 i = 0; i < 1008; i += FILLED)
        stamp.filler[i] = d->number + i;
    stamp.crc32 = crc_of_stamp();
    if (write_disk(index, place, &stamp))
        say("error write %s %u 5 %U", d->name, place, mono_us());
    else {
        hold_lease();
        say("ack %s %U %u %U 1", d->name, d->number, place, mono_us());
    }
}

/* memory */

static void walk(u32 count)
{
    for (; pages && count; count--) {
        volatile u32 *at = (u32 *)(MEMORY + page * BLOCK);
        if (at[0] != pass || at[1023] != pass)
            say("error memory page %u", page);
        at[0] = at[1023] = pass + 1;
        if (++page == pages) {
            page = 0;
            pass++;
            say("walked %u", pass);
        }
    }
}

static u32 pages_due(u32 mib_s, u64 us)
{
    u64 due = (us < MOST_US ? us : MOST_US) * mib_s * PAGES_PER_MIB;
    divide(&due, 1000000);
    return due;
}

/* With what its first disk begins with, as a page cache is; walk() counts with each page's first and last word. */
static void touch(u32 mib)
{
    u32 disk = 0;
    while (disk < DISKS && !disks[disk].blocks)
        disk++;
    pages = mib * PAGES_PER_MIB;
    for (u32 i = 0; disk < DISKS && disks[disk].first && i < pages; i += MOST_BLOCKS)
        if (read_disk(disk, i % disks[disk].first, MEMORY + i * BLOCK, MOST_BLOCKS))
            say("error read %s %u", disks[disk].name, i % disks[disk].first);
    for (u32 i = 0; i < pages; i++) {
        volatile u32 *at = (u32 *)(MEMORY + i * BLOCK);
        at[0] = at[1023] = 1;
    }
    if (pages)
        say("touched %u", mib);
}

/* what is told */

static void look_at_clock(u32 *second, u64 *before)
{
    u32 now_second = clock_second();
    u64 now = mono_us();
    if (now_second != *second && now_second != 255) {
        say("edge %u %U %U", host_seconds(), now, now - *before);
        *second = clock_second();
    }
    *before = now;
}

/* Each look is work for a KVM that emulates: a guest that seldom writes looks seldom. */
static u32 looks_hz(u32 rate)
{
    return rate && rate * LOOKS_A_WRITE < MOST_HZ ? rate * LOOKS_A_WRITE + LEAST_HZ : MOST_HZ;
}

static void obey(const char *line)
{
    char sequence[9] = {0};
    for (u32 i = 0; i < 8 && line[i] && line[i] != ' '; i++)
        sequence[i] = line[i];
    if (after(line, " stop")) {
        writing = 0;
        say("stopped %U", mono_us());
    } else if (after(line, " go")) {
        writing = 1;
        say("going %U", mono_us());
    }
    say("done %s", sequence);
    if (after(line, " poweroff"))
        power_off();
}

void run(const u32 *told)
{
    static char line[64];
    const char *words = (const char *)told[4];
    u32 rate = option(words, "lab.rate="), dirty_mib_s = option(words, "lab.dirty="), second = 255;
    u64 number = (u64)host_seconds() * 1000000, next = mono_us(), before = next, walked = next;
    say("");
    say("up %U %U", number, mono_us());
    if (after(words, "lab.probe"))
        power_off();
    start_timer(FILL_HZ);
    make_crc_table();
    add_disks(words, number);
    if (after(words, "lab.lease="))
        take_lease(number);
    touch(option(words, "lab.touch="));
    start_timer(looks_hz(rate));
    for (;;) {
        look_at_clock(&second, &before);
        if (heard(line, sizeof line))
            obey(line);
        u64 now = mono_us();
        u32 due = pages_due(dirty_mib_s, now - walked);
        if (due) {
            walk(due);
            walked = now;
        }
        if (!writing || now < next) {
            rest();
            continue;
        }
        for (u32 i = 0; i < DISKS; i++)
            if (disks[i].blocks)
                write_one(&disks[i], i);
        u64 wait = 1000000;
        if (rate)
            divide(&wait, rate);
        next = rate ? now + wait : now;
    }
}
