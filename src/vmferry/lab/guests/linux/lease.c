/* SPDX-License-Identifier: Apache-2.0
 *
 * The lease: a block on a disk that every host of the lab sees, which shows a second copy of this guest.
 *
 * Before each acknowledgement the guest reads there what it wrote last, and writes a new record. A copy that runs
 * at the same time has the same memory, so the same sequence; but its clock started at another instant. Whoever
 * finds a record that is not his own says `second-writer SEQUENCE MONO_US FOUND_SEQUENCE FOUND_MONO_US`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

struct record {
    uint64_t sequence, mono_us;
    uint8_t rest[BLOCK - 16];
};
_Static_assert(sizeof(struct record) == BLOCK, "a record fills its block");

static int lease = -1;
static struct record *own, *found;
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

static void write_record(uint64_t sequence)
{
    own->sequence = sequence;
    own->mono_us = mono_us();
    if (pwrite(lease, own, BLOCK, 0) != BLOCK)
        say("error lease %d", errno);
}

void take_lease(uint64_t number)
{
    char disk[8], path[32];
    if (!option("lab.lease", disk, sizeof disk))
        return;
    snprintf(path, sizeof path, "/dev/%s", disk);
    own = aligned_alloc(BLOCK, BLOCK);
    found = aligned_alloc(BLOCK, BLOCK);
    memset(own, 0, BLOCK);
    lease = open_when_there(path, O_RDWR | O_DIRECT); /* past every cache: the other copy has another */
    write_record(number);
}

void hold_lease(void)
{
    if (lease < 0)
        return;
    pthread_mutex_lock(&one);
    if (pread(lease, found, BLOCK, 0) != BLOCK)
        say("error lease %d", errno);
    else if (found->sequence != own->sequence || found->mono_us != own->mono_us)
        say("second-writer %llu %llu %llu %llu", (unsigned long long)own->sequence, (unsigned long long)own->mono_us,
            (unsigned long long)found->sequence, (unsigned long long)found->mono_us);
    write_record(own->sequence + 1);
    pthread_mutex_unlock(&one);
}
