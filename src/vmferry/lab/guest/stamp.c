/* SPDX-License-Identifier: Apache-2.0
 *
 * The lab guest's only program, run by the kernel as /init.
 *
 * Promise: a line `ack DISK NUMBER PLACE MONO_US BLOCKS` is printed only after the BLOCKS blocks of 4 KiB
 * from block PLACE of DISK, stamped with NUMBER, were written with O_DIRECT | O_DSYNC, so are durable.
 * lab/verdict.py reads the disks afterwards and looks for each of them.
 *
 * Told by the kernel command line:
 *   lab.modules=a,b            loaded from /modules, in this order
 *   lab.write=vda:START:LEN,.. regions in MiB; nothing outside them is written
 *   lab.rate=N                 writes a second and disk, 0: as many as possible
 *   lab.touch=MIB lab.dirty=MIB_S   memory filled at the start, and rewritten each second
 *   lab.probe                  say `up` and power off
 * and by lines `SEQ COMMAND [ARGUMENT]` on ttyS1, answered with `done SEQ`: stop, go, rate N, dirty N, poweroff.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define MIB (1024 * 1024)
#define BLOCKS_PER_MIB (MIB / BLOCK)
#define MAX_RUN 16 /* blocks of the larger writes */
#define LARGE_ONE_IN 16
#define MAX_DISKS 8
#define EPOCH_2025 1735689600

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
static int disk_count, console = 1;
static volatile int writing = 1, parked, rate, dirty_mib_s;
static uint8_t *memory;
static uint64_t memory_bytes;
static uint32_t crc_table[256];
static pthread_mutex_t line_lock = PTHREAD_MUTEX_INITIALIZER, gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_moved = PTHREAD_COND_INITIALIZER;

/* -- telling */

static uint64_t mono_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ULL + t.tv_nsec / 1000;
}

static void say(const char *format, ...)
{
    char line[256];
    va_list fields;
    va_start(fields, format);
    int length = vsnprintf(line, sizeof line - 1, format, fields);
    va_end(fields);
    line[length++] = '\n';
    pthread_mutex_lock(&line_lock);
    for (int sent = 0; sent < length;) {
        ssize_t n = write(console, line + sent, length - sent);
        if (n > 0)
            sent += n;
        else if (errno != EINTR && errno != EAGAIN)
            break;
    }
    pthread_mutex_unlock(&line_lock);
}

static int open_raw_tty(const char *path)
{
    int fd = open(path, O_RDWR | O_NOCTTY);
    struct termios mode;
    if (fd >= 0 && tcgetattr(fd, &mode) == 0) {
        cfmakeraw(&mode);
        cfsetspeed(&mode, B115200);
        mode.c_cflag |= CLOCAL | CREAD;
        tcsetattr(fd, TCSANOW, &mode);
    }
    return fd;
}

static void power_off(void)
{
    say("bye %llu", (unsigned long long)mono_us());
    tcdrain(console);
    sync();
    reboot(RB_POWER_OFF);
}

/* -- stamping */

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

static uint64_t next_random(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
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
    ssize_t done = pwrite(d->fd, buffer, (size_t)run * BLOCK, place * BLOCK);
    if (done != (ssize_t)run * BLOCK) {
        say("error write %s %llu %d %llu", d->name, (unsigned long long)place, done < 0 ? errno : 0,
            (unsigned long long)mono_us());
        usleep(100000);
        return;
    }
    say("ack %s %llu %llu %llu %u", d->name, (unsigned long long)d->number, (unsigned long long)place,
        (unsigned long long)mono_us(), run);
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

static void stop_writing(void)
{
    pthread_mutex_lock(&gate);
    writing = 0;
    while (parked < disk_count)
        pthread_cond_wait(&gate_moved, &gate);
    pthread_mutex_unlock(&gate);
    say("stopped %llu", (unsigned long long)mono_us());
}

static void go_on_writing(void)
{
    say("going %llu", (unsigned long long)mono_us());
    pthread_mutex_lock(&gate);
    writing = 1;
    pthread_cond_broadcast(&gate_moved);
    pthread_mutex_unlock(&gate);
}

/* -- memory */

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

/* -- the host's clock, which runs on while the guest is stopped */

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

static time_t rtc_seconds(void)
{
    struct tm t = {0};
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

static void *watch_clock(void *unused)
{
    struct sched_param first = {.sched_priority = 10};
    (void)unused;
    sched_setscheduler(0, SCHED_FIFO, &first); /* a busy guest must not blur the edges */
    if (ioperm(0x70, 2, 1)) {
        say("error rtc %d", errno);
        return NULL;
    }
    int second = rtc_register(0);
    for (uint64_t before = mono_us();;) {
        usleep(1000);
        int now_second = rtc_register(0x0a) & 0x80 ? second : rtc_register(0);
        uint64_t now = mono_us();
        if (now_second != second) {
            time_t seconds = rtc_seconds();
            second = rtc_register(0);
            say("edge %lld %llu %llu", (long long)seconds, (unsigned long long)now,
                (unsigned long long)(now - before));
        }
        before = now;
    }
    return NULL;
}

/* -- starting */

static int option(const char *name, char *value, size_t size)
{
    static char line[4096];
    if (!line[0]) {
        int fd = open("/proc/cmdline", O_RDONLY);
        ssize_t n = read(fd, line, sizeof line - 1);
        close(fd);
        line[n > 0 ? n : 0] = 0;
    }
    const char *at = strstr(line, name);
    if (!at)
        return 0;
    at += strlen(name);
    size_t length = *at == '=' ? strcspn(++at, " \n") : 0;
    snprintf(value, size, "%.*s", (int)length, at);
    return 1;
}

static long number_option(const char *name)
{
    char value[32];
    return option(name, value, sizeof value) ? atol(value) : 0;
}

static void load_modules(void)
{
    char names[1024], path[256];
    if (!option("lab.modules", names, sizeof names))
        return;
    for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
        snprintf(path, sizeof path, "/modules/%s.ko", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue; /* built into this kernel */
        if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
            say("error module %s %d", name, errno);
        close(fd);
    }
}

static int open_disk(const char *name)
{
    char path[32];
    int fd;
    snprintf(path, sizeof path, "/dev/%s", name);
    for (int tries = 0; tries < 1000; tries++) {
        if ((fd = open(path, O_RDWR | O_DIRECT | O_DSYNC)) >= 0)
            return fd;
        usleep(10000); /* SCSI disks come a little after their module */
    }
    say("error open %s %d", name, errno);
    return -1;
}

static void add_disk(char *spec, uint64_t number)
{
    struct disk *d = &disks[disk_count];
    unsigned long start, length;
    if (sscanf(spec, "%7[^:]:%lu:%lu", d->name, &start, &length) != 3 || (d->fd = open_disk(d->name)) < 0)
        return;
    d->first = start * BLOCKS_PER_MIB;
    d->blocks = length * BLOCKS_PER_MIB;
    d->number = number;
    d->random = number * 2654435761u + disk_count + 1;
    d->written = calloc(d->blocks, sizeof *d->written);
    disk_count++;
}

static void add_disks(uint64_t number)
{
    char specs[1024], *rest = specs, *spec;
    if (!option("lab.write", specs, sizeof specs))
        return;
    while ((spec = strsep(&rest, ",")) && disk_count < MAX_DISKS)
        add_disk(spec, number);
}

static void start(void *(*work)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, argument))
        say("error thread %d", errno);
}

/* -- listening */

static void obey(char *line)
{
    char sequence[32], command[32];
    int argument = 0;
    if (sscanf(line, "%31s %31s %d", sequence, command, &argument) < 2)
        return;
    if (!strcmp(command, "stop"))
        stop_writing();
    else if (!strcmp(command, "go"))
        go_on_writing();
    else if (!strcmp(command, "rate"))
        rate = argument;
    else if (!strcmp(command, "dirty"))
        dirty_mib_s = argument;
    say("done %s", sequence);
    if (!strcmp(command, "poweroff"))
        power_off();
}

static void take_commands(int fd)
{
    static char line[256];
    static int length;
    char c;
    if (read(fd, &c, 1) != 1)
        return;
    if (c == '\n') {
        line[length] = 0;
        length = 0;
        obey(line);
    } else if (length < (int)sizeof line - 1) {
        line[length++] = c;
    }
}

static void take_keys(int fd)
{
    struct input_event event;
    if (read(fd, &event, sizeof event) == sizeof event && event.type == EV_KEY && event.code == KEY_POWER &&
        event.value == 1)
        power_off();
}

static void listen_for_ever(void)
{
    struct pollfd from[9] = {{.fd = open_raw_tty("/dev/ttyS1"), .events = POLLIN}};
    int count = 1;
    char path[32];
    for (int i = 0; i < 8; i++) {
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            from[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    for (;;) {
        if (poll(from, count, -1) < 1)
            continue;
        if (from[0].revents & POLLIN)
            take_commands(from[0].fd);
        for (int i = 1; i < count; i++)
            if (from[i].revents & POLLIN)
                take_keys(from[i].fd);
    }
}

int main(void)
{
    char unused[8];
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    console = open_raw_tty("/dev/ttyS0");
    make_crc_table();
    load_modules();
    if (ioperm(0x70, 2, 1))
        say("error rtc %d", errno);
    /* Restarts go on above the numbers of the boot before: the clock has moved, and no disk does 10^6 writes/s. */
    uint64_t number = (rtc_seconds() - EPOCH_2025) * 1000000ULL;
    say(""); /* ends what firmware, or a boot cut short, left of a line */
    say("up %llu %llu", (unsigned long long)number, (unsigned long long)mono_us());
    if (option("lab.probe", unused, sizeof unused))
        power_off();
    rate = number_option("lab.rate");
    dirty_mib_s = number_option("lab.dirty");
    memory_bytes = (uint64_t)number_option("lab.touch") * MIB;
    if (memory_bytes && (memory = aligned_alloc(BLOCK, memory_bytes)))
        start(dirty_memory, NULL);
    start(watch_clock, NULL);
    add_disks(number);
    for (int i = 0; i < disk_count; i++)
        start(write_disk, &disks[i]);
    listen_for_ever();
}
