/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

#define CODE 0x08
#define DATA "0x10"
#define TIMER_VECTOR 0x20
#define INTERRUPT_GATE 0x8e
#define PIT_HZ 1193182
#define ALL 0xff

struct gate {
    u16 low, selector;
    u8 zero, kind;
    u16 high;
} __attribute__((packed));

struct table {
    u16 limit;
    const void *at;
} __attribute__((packed));

static const u64 segments[] = {0, 0x00cf9a000000ffffull, 0x00cf92000000ffffull}; /* flat: none, code, data */
static struct gate gates[TIMER_VECTOR + 1];

/* The interrupt ends the rest: its frame is dropped, since a KVM that has to emulate knows no iret here. */
void tick(void);
__asm__(".globl rest\nrest: sti\n hlt\n"
        "tick: add $12, %esp\n mov $0x20, %al\n out %al, $0x20\n ret\n");

static void load_tables(void)
{
    struct table of_segments = {sizeof segments - 1, segments}, of_gates = {sizeof gates - 1, gates};
    u32 at = (u32)tick;
    gates[TIMER_VECTOR] = (struct gate){at, CODE, 0, INTERRUPT_GATE, at >> 16};
    __asm__ volatile("lgdt %0\n ljmp $0x08, $1f\n"
                     "1: mov $" DATA ", %%ax\n mov %%ax, %%ds\n mov %%ax, %%es\n mov %%ax, %%ss\n"
                     "mov %%ax, %%fs\n mov %%ax, %%gs\n lidt %1" ::"m"(of_segments),
                     "m"(of_gates)
                     : "eax", "memory");
}

void start_timer(u32 hz)
{
    load_tables();
    outb(0x20, 0x11); /* first controller: vectors from 0x20 on, the second one at its line 2, all but the timer off */
    outb(0x21, TIMER_VECTOR);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0x21, ALL & ~1);
    outb(0xa1, ALL);
    outb(0x43, 0x34); /* channel 0, low byte and high byte, again and again */
    outb(0x40, (PIT_HZ / hz) & 0xff);
    outb(0x40, (PIT_HZ / hz) >> 8);
}
