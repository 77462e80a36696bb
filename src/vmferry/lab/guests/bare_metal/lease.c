/* SPDX-License-Identifier: Apache-2.0
 *
 * The lease, as guest/lease.c has it, on hdc: read back before each acknowledgement, then written anew.
 */
#include "machine.h"

#define LEASE 2

static struct {
    u64 sequence, mono_us;
    u8 rest[BLOCK - 16];
} own __attribute__((aligned(BLOCK))), found __attribute__((aligned(BLOCK)));
static int held;

static void write_record(u64 sequence)
{
    own.sequence = sequence;
    own.mono_us = mono_us();
    if (write_disk(LEASE, 0, &own))
        say("error lease 5");
}

void take_lease(u64 number)
{
    held = 1;
    write_record(number);
}

void hold_lease(void)
{
    if (!held)
        return;
    if (read_disk(LEASE, 0, &found, 1))
        say("error lease 5");
    else if (found.sequence != own.sequence || found.mono_us != own.mono_us)
        say("second-writer %U %U %U %U", own.sequence, own.mono_us, found.sequence, found.mono_us);
    write_record(own.sequence + 1);
}
