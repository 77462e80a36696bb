/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernel command line tells the guest, and the modules that it names.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

int option(const char *name, char *value, size_t size)
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

long number_option(const char *name)
{
    char value[32];
    return option(name, value, sizeof value) ? atol(value) : 0;
}

void load_modules(void)
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
