/* SPDX-License-Identifier: Apache-2.0
 *
 * What the parts of the lab guest's program share; main.c tells what it promises.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define BLOCK 4096
#define MIB (1024 * 1024)
#define BLOCKS_PER_MIB (MIB / BLOCK)

extern volatile int rate, dirty_mib_s; /* set by the kernel command line, then by commands */
extern int erase_one_in;

/* tell.c: the console, then the channel */
uint64_t mono_us(void);
int open_raw_tty(const char *path);
void open_console(void);
void open_channel(void);
void say(const char *format, ...) __attribute__((format(printf, 1, 2))); /* one whole line */
void power_off(void);

/* told.c: the kernel command line */
int option(const char *name, char *value, size_t size);
long number_option(const char *name);
void load_modules(void);

/* stamp.c: the writes that are acknowledged */
void add_disks(uint64_t first_number);
void start_writing(void);
void stop_writing(void);
void go_on_writing(void);

/* lease.c: what shows a second copy of this guest */
void take_lease(uint64_t number);
void hold_lease(void);

/* memory.c, clock.c, agent.c, listen.c */
void fill_memory(uint64_t bytes);
time_t host_seconds(void);
void watch_host_clock(void);
void take_notes(uint64_t first_number);
void close_notes(void);
void start_agent(void);
void signal_agent(int number);
void delay_freeze(int seconds);
int be_freeze_hook(const char *moment);
int open_hooks_words(void);
void pass_on_hooks_words(int fd);
void listen_for_ever(void);

uint64_t next_random(uint64_t *x); /* xorshift, stamp.c */
void start(void *(*work)(void *), void *argument); /* a thread, main.c */
int open_when_there(const char *path, int flags);  /* a device that comes a little after its module, main.c */

#endif
