/* SPDX-License-Identifier: Apache-2.0
 *
 * Commands on ttyS1, the power button, and what the agent's hook wants said.
 */
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

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
    else if (!strcmp(command, "agent-stop"))
        signal_agent(SIGSTOP);
    else if (!strcmp(command, "agent-go"))
        signal_agent(SIGCONT);
    else if (!strcmp(command, "freeze-delay"))
        delay_freeze(argument);
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

void listen_for_ever(void)
{
    struct pollfd from[10] = {{.fd = open_raw_tty("/dev/ttyS1"), .events = POLLIN},
                              {.fd = open_hooks_words(), .events = POLLIN}};
    int count = 2;
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
        if (from[1].revents & POLLIN)
            pass_on_hooks_words(from[1].fd);
        for (int i = 2; i < count; i++)
            if (from[i].revents & POLLIN)
                take_keys(from[i].fd);
    }
}
