/* SPDX-License-Identifier: Apache-2.0
 *
 * The host's clock, which runs on while the guest is stopped.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <sys/io.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define SECOND_US 1000000
#define NEAR_US 15000 /* so long before an edge is due it is looked for closely */
#define CLOSE_LOOK_US 1000
#define LOOK_US 100000 /* else: each look costs an emulated machine a tenth of a millisecond and more */

static int reach_clock(void) /* each thread for itself */
{
    if (!ioperm(0x70, 2, 1))
        return 0;
    say("error rtc %d", errno);
    return -1;
}

static int rtc_register(int number)
{
    outb(number, 0x70);
    return inb(0x71);
}

static int rtc_number(int number)
{
    int value = rtc_register(number);
    return rtc_register(0x0b) & 4 ? value : (value >> 4) * 10 + (value & 15);
}

time_t host_seconds(void)
{
    struct tm t = {0};
    if (reach_clock())
        return 0;
    while (rtc_register(0x0a) & 0x80)
        ; /* an update is under way */
    t.tm_sec = rtc_number(0);
    t.tm_min = rtc_number(2);
    t.tm_hour = rtc_number(4);
    t.tm_mday = rtc_number(7);
    t.tm_mon = rtc_number(8) - 1;
    t.tm_year = rtc_number(9) + 100;
    return timegm(&t);
}

static useconds_t until_next_look(uint64_t now, uint64_t due)
{
    int64_t left = (int64_t)(due - now) - NEAR_US;
    return left > LOOK_US ? LOOK_US : left < CLOSE_LOOK_US ? CLOSE_LOOK_US : left;
}

static void *watch(void *unused)
{
    struct sched_param first = {.sched_priority = 10};
    (void)unused;
    sched_setscheduler(0, SCHED_FIFO, &first); /* a busy guest must not blur the edges */
    if (reach_clock())
        return NULL;
    int second = rtc_register(0);
    uint64_t due = 0; /* the next edge, at the soonest, if the guest does not stand before it */
    for (uint64_t before = mono_us();;) {
        usleep(until_next_look(before, due));
        int now_second = rtc_register(0x0a) & 0x80 ? second : rtc_register(0);
        uint64_t now = mono_us();
        if (now_second != second) {
            time_t seconds = host_seconds();
            second = rtc_register(0);
            due = before + SECOND_US;
            say("edge %lld %llu %llu", (long long)seconds, (unsigned long long)now,
                (unsigned long long)(now - before));
        }
        before = now;
    }
    return NULL;
}

void watch_host_clock(void)
{
    start(watch, NULL);
}
