/* SPDX-License-Identifier: Apache-2.0
 *
 * What the guest says: on a virtio channel, to which a line is one write, or on ttyS0, where QEMU writes each byte.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <termios.h>
#include <unistd.h>

#include "guest.h"

#define CHANNEL "/dev/vport0p1"

static int console = 1;
static pthread_mutex_t line_lock = PTHREAD_MUTEX_INITIALIZER;

uint64_t mono_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ULL + t.tv_nsec / 1000;
}

void say(const char *format, ...)
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

int open_raw_tty(const char *path)
{
    int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios mode;
    if (fd >= 0 && tcgetattr(fd, &mode) == 0) {
        cfmakeraw(&mode);
        cfsetspeed(&mode, B115200);
        mode.c_cflag |= CLOCAL | CREAD;
        tcsetattr(fd, TCSANOW, &mode);
    }
    return fd;
}

void open_console(void)
{
    console = open_raw_tty("/dev/ttyS0");
}

void open_channel(void)
{
    char unused[8];
    int channel = option("lab.channel", unused, sizeof unused) ? open_when_there(CHANNEL, O_WRONLY) : -1;
    if (channel >= 0)
        console = channel;
}

void power_off(void)
{
    say("bye %llu", (unsigned long long)mono_us());
    tcdrain(console);
    usleep(50000); /* a channel has no drain: QEMU takes the line when it gets to it */
    close_notes();
    sync();
    reboot(RB_POWER_OFF);
}
