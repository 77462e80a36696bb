/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that is filled at the start, rewritten at a rate, and looked at: it must stay as written.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <unistd.h>

#include "guest.h"

static uint8_t *memory;
static uint64_t memory_bytes;

static void fill_page(uint64_t page, uint64_t pass)
{
    uint64_t *words = (uint64_t *)(memory + page * BLOCK);
    words[0] = words[511] = pass;
}

static void *dirty_memory(void *unused)
{
    uint64_t pages = memory_bytes / BLOCK, seed = 88172645463325252ULL, pass = 1, page = 0;
    (void)unused;
    for (uint64_t *word = (uint64_t *)memory, *end = word + memory_bytes / 8; word < end; word++)
        *word = next_random(&seed); /* nothing that could be sent as zeros */
    for (uint64_t i = 0; i < pages; i++)
        fill_page(i, 1);
    say("touched %llu", (unsigned long long)(memory_bytes / MIB));
    for (;;) {
        usleep(10000);
        uint64_t batch = (uint64_t)dirty_mib_s * BLOCKS_PER_MIB / 100;
        for (uint64_t i = 0; i < batch; i++) {
            uint64_t *words = (uint64_t *)(memory + page * BLOCK);
            if (words[0] != pass || words[511] != pass)
                say("error memory page %llu", (unsigned long long)page);
            fill_page(page, pass + 1);
            if (++page == pages) {
                page = 0;
                pass++;
            }
        }
    }
    return NULL;
}

void fill_memory(uint64_t bytes)
{
    memory_bytes = bytes;
    if (memory_bytes && (memory = aligned_alloc(BLOCK, memory_bytes)))
        start(dirty_memory, NULL);
}
