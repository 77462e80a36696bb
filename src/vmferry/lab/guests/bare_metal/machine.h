/* SPDX-License-Identifier: Apache-2.0
 *
 * The bare guest's machine: ports, console, clocks, disks. No libc. Everything is polled; one interrupt, a
 * timer's, ends a rest.
 */
#ifndef MACHINE_H
#define MACHINE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define BLOCK 4096

/* machine.c */
void outb(u16 port, u8 value);
void outl(u16 port, u32 value);
u8 inb(u16 port);
u32 inl(u16 port);
u64 mono_us(void);       /* stands still while the guest does */
u32 clock_second(void);  /* of the host's clock, 0 to 59; 255 while it changes */
u32 host_seconds(void);  /* since 2025, months taken for 31 days: for numbers that grow, and for edges */
u32 divide(u64 *number, u32 by); /* leaves the quotient there, gives the remainder */

void say(const char *format, ...); /* one whole line of %s, %u (u32) and %U (u64) */
int heard(char *line, u32 size);   /* a line from the second port: has one come? */
void power_off(void);

/* rest.c: a guest that polls ports all the time costs its host a whole CPU */
void start_timer(u32 hz); /* 19 at least: it counts 16 bits */
void rest(void); /* until the timer ticks */

/* disks.c */
#define MOST_BLOCKS 16
int write_disk(u32 disk, u32 block, const void *content); /* an aligned block of 4 KiB of hda to hdd, durable; 0 or -1 */
int read_disk(u32 disk, u32 block, void *content, u32 blocks); /* as they are on the medium; 0 or -1 */

/* lease.c: what shows a second copy of this guest */
void take_lease(u64 number);
void hold_lease(void);

#endif
