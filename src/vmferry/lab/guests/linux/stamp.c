/* SPDX-License-Identifier: Apache-2.0
 *
 * The writes: each stamped with a number, a place and a checksum, durable, and only then acknowledged.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "guest.h"

#define MAX_RUN 16 /* blocks of the larger writes */
#define LARGE_ONE_IN 16
#define MAX_ERASED 64 /* blocks that are zeroed or discarded at once: up to four clusters of an image */
#define MAX_DISKS 8

struct stamp {
    char magic[8];
    uint64_t number;
    uint64_t place;
    uint64_t previous; /* what this boot wrote here before, or 0 */
    char disk[8];
    uint64_t mono_us;
    uint32_t blocks, index; /* of the write that this block belongs to */
    uint64_t filler[504];
    uint32_t unused, crc32;
};
_Static_assert(sizeof(struct stamp) == BLOCK, "a stamp fills its block");

struct disk {
    char name[8];
    int fd;
    uint64_t first, blocks, number, random;
    uint64_t *written; /* the newest number of each place, in this boot */
};

static struct disk disks[MAX_DISKS];
static int disk_count;
static volatile int writing = 1, parked;
static uint32_t crc_table[256];
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_moved = PTHREAD_COND_INITIALIZER;

uint64_t next_random(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[i] = c;
    }
}

static uint32_t crc32_of(const void *data, size_t length) /* as zlib.crc32 */
{
    const uint8_t *p = data;
    uint32_t c = ~0u;
    while (length--)
        c = crc_table[(c ^ *p++) & 0xff] ^ (c >> 8);
    return ~c;
}

static void fill(struct stamp *s, struct disk *d, uint64_t place, uint32_t index, uint32_t blocks)
{
    uint64_t seed = d->number * 0x9E3779B97F4A7C15ULL + index + 1;
    memcpy(s->magic, "VMFSTAMP", 8);
    memcpy(s->disk, d->name, 8);
    s->number = d->number;
    s->place = place + index;
    s->previous = d->written[place + index - d->first];
    s->mono_us = mono_us();
    s->blocks = blocks;
    s->index = index;
    for (int i = 0; i < 504; i++)
        s->filler[i] = next_random(&seed);
    s->crc32 = crc32_of(s, BLOCK - 4);
}

static void write_one(struct disk *d, struct stamp *buffer)
{
    uint32_t run = next_random(&d->random) % LARGE_ONE_IN ? 1 : MAX_RUN;
    uint64_t place = d->first + next_random(&d->random) % (d->blocks - run + 1);
    d->number++;
    for (uint32_t i = 0; i < run; i++)
        fill(buffer + i, d, place, i, run);
    uint64_t began = mono_us();
    ssize_t done = pwrite(d->fd, buffer, (size_t)run * BLOCK, place * BLOCK);
    if (done != (ssize_t)run * BLOCK) {
        say("error write %s %llu %d %llu", d->name, (unsigned long long)place, done < 0 ? errno : 0,
            (unsigned long long)mono_us());
        usleep(100000);
        return;
    }
    uint64_t ended = mono_us();
    hold_lease();
    say("ack %s %llu %llu %llu %u %llu", d->name, (unsigned long long)d->number, (unsigned long long)place,
        (unsigned long long)ended, run, (unsigned long long)(ended - began));
    for (uint32_t i = 0; i < run; i++)
        d->written[place + i - d->first] = d->number;
}

static void erase_one(struct disk *d)
{
    uint32_t run = 1 + next_random(&d->random) % MAX_ERASED;
    uint64_t place = d->first + next_random(&d->random) % (d->blocks - run + 1);
    uint64_t range[2] = {place * BLOCK, (uint64_t)run * BLOCK};
    int discards = next_random(&d->random) % 2;
    d->number++;
    say("erasing %s %llu %llu %u", d->name, (unsigned long long)d->number, (unsigned long long)place, run);
    if (ioctl(d->fd, discards ? BLKDISCARD : BLKZEROOUT, range) || fdatasync(d->fd)) {
        say("error %s %s %llu %d", discards ? "discard" : "zero", d->name, (unsigned long long)place, errno);
        usleep(100000);
        return;
    }
    hold_lease();
    if (discards)
        return;
    say("zeroed %s %llu %llu %u", d->name, (unsigned long long)d->number, (unsigned long long)place, run);
    for (uint32_t i = 0; i < run; i++)
        d->written[place + i - d->first] = d->number;
}

static void wait_at_gate(void)
{
    pthread_mutex_lock(&gate);
    parked++;
    pthread_cond_broadcast(&gate_moved);
    while (!writing)
        pthread_cond_wait(&gate_moved, &gate);
    parked--;
    pthread_mutex_unlock(&gate);
}

static void *write_disk(void *argument)
{
    struct disk *d = argument;
    void *buffer;
    uint64_t next = mono_us();
    if (posix_memalign(&buffer, BLOCK, MAX_RUN * BLOCK))
        return NULL;
    memset(buffer, 0, MAX_RUN * BLOCK);
    for (;;) {
        if (!writing)
            wait_at_gate();
        if (erase_one_in && next_random(&d->random) % erase_one_in == 0)
            erase_one(d);
        else
            write_one(d, buffer);
        if (!rate) {
            next = mono_us();
            continue;
        }
        next += 1000000 / rate;
        uint64_t now = mono_us();
        if (next > now)
            usleep(next - now);
        else
            next = now; /* a slow disk is not made up for by a burst */
    }
    return NULL;
}

void stop_writing(void)
{
    pthread_mutex_lock(&gate);
    writing = 0;
    while (parked < disk_count)
        pthread_cond_wait(&gate_moved, &gate);
    pthread_mutex_unlock(&gate);
    say("stopped %llu", (unsigned long long)mono_us());
}

void go_on_writing(void)
{
    say("going %llu", (unsigned long long)mono_us());
    pthread_mutex_lock(&gate);
    writing = 1;
    pthread_cond_broadcast(&gate_moved);
    pthread_mutex_unlock(&gate);
}

static void add_disk(char *spec, uint64_t number)
{
    struct disk *d = &disks[disk_count];
    unsigned long first, length;
    char path[32];
    if (sscanf(spec, "%7[^:]:%lu:%lu", d->name, &first, &length) != 3)
        return;
    snprintf(path, sizeof path, "/dev/%s", d->name);
    if ((d->fd = open_when_there(path, O_RDWR | O_DIRECT | O_DSYNC)) < 0)
        return;
    d->first = first * BLOCKS_PER_MIB;
    d->blocks = length * BLOCKS_PER_MIB;
    d->number = number;
    d->random = number * 2654435761u + disk_count + 1;
    d->written = calloc(d->blocks, sizeof *d->written);
    disk_count++;
}

void add_disks(uint64_t number)
{
    char specs[1024], *rest = specs, *spec;
    if (!option("lab.write", specs, sizeof specs))
        return;
    make_crc_table();
    while ((spec = strsep(&rest, ",")) && disk_count < MAX_DISKS)
        add_disk(spec, number);
}

void start_writing(void)
{
    for (int i = 0; i < disk_count; i++)
        start(write_disk, &disks[i]);
}
