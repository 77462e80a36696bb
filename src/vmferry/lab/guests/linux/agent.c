/* SPDX-License-Identifier: Apache-2.0
 *
 * The guest agent, and a file system for it to freeze.
 *
 * `noted NUMBER MONO_US` is printed only after NUMBER is durable in the file `notes` of that file system.
 * The agent's hook, which is this program once more, prints `freezing MONO_US` before the agent freezes anything
 * and `thawed MONO_US` after it has thawed everything.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"

#define NOTES "/fs/notes"
#define PORT "/dev/vport0p2"
#define DELAY "/run/freeze-delay"
#define WORDS "/run/words" /* of the hook: it is a process of its own, and a channel has one writer */

static unsigned long long first_note;
static volatile int noting, closing;
static pid_t agent;

static int write_note(unsigned long long number)
{
    char line[32];
    int length = snprintf(line, sizeof line, "%020llu\n", number);
    int fd = open(NOTES, O_WRONLY | O_CREAT | O_DSYNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return -1;
    int done = pwrite(fd, line, length, 0) == length ? 0 : -1;
    close(fd);
    return done;
}

static void *write_notes(void *unused)
{
    (void)unused;
    for (unsigned long long number = first_note; !closing; number++) {
        if (write_note(number))
            say("error note %llu %d", number, errno);
        else
            say("noted %llu %llu", number, (unsigned long long)mono_us());
        usleep(100000);
    }
    noting = 0;
    return NULL;
}

void take_notes(uint64_t first_number)
{
    char disk[8], path[32];
    if (!option("lab.fs", disk, sizeof disk))
        return;
    snprintf(path, sizeof path, "/dev/%s", disk);
    close(open_when_there(path, O_RDONLY));
    if (mount(path, "/fs", "ext4", 0, NULL)) {
        say("error mount %s %d", path, errno);
        return;
    }
    noting = 1;
    first_note = first_number;
    start(write_notes, NULL);
}

void close_notes(void)
{
    closing = 1;
    for (int tries = 0; noting && tries < 100; tries++)
        usleep(10000); /* no longer: a frozen file system lets no note end */
    umount2("/fs", 0);
}

static void *wait_for_agent(void *unused)
{
    int status;
    (void)unused;
    waitpid(agent, &status, 0);
    say("error agent ended %d", status);
    return NULL;
}

void start_agent(void)
{
    char unused[8];
    if (!option("lab.agent", unused, sizeof unused))
        return;
    /* Not opened by us: libvirt would take the agent for connected before it runs. */
    for (int tries = 0; access(PORT, F_OK) && tries < 1000; tries++)
        usleep(10000);
    agent = fork();
    if (agent == 0) {
        int nowhere = open("/dev/null", O_RDWR);
        for (int fd = 0; fd < 3; fd++)
            dup2(nowhere, fd);
        execl("/sbin/qemu-ga", "qemu-ga", "-m", "virtio-serial", "-p", PORT, "-t", "/run", "-l",
              "/run/agent.log", "-F/init", NULL);
        _exit(errno);
    }
    start(wait_for_agent, NULL);
}

void signal_agent(int number)
{
    if (agent > 0)
        kill(agent, number);
}

void delay_freeze(int seconds)
{
    FILE *file = fopen(DELAY, "w");
    if (file) {
        fprintf(file, "%d\n", seconds);
        fclose(file);
    }
}

static unsigned delay_of_freeze(void)
{
    unsigned seconds = 0;
    FILE *file = fopen(DELAY, "r");
    if (file) {
        if (fscanf(file, "%u", &seconds) != 1)
            seconds = 0;
        fclose(file);
    }
    return seconds;
}

int open_hooks_words(void)
{
    mkfifo(WORDS, 0600);
    return open(WORDS, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

void pass_on_hooks_words(int fd)
{
    char word[32]; /* the hook is called for one moment at a time, and its line is one write */
    ssize_t length = read(fd, word, sizeof word);
    if (length > 1)
        say("%.*s", (int)length - 1, word);
}

int be_freeze_hook(const char *moment)
{
    int thaws = !strcmp(moment, "thaw");
    int words = open(WORDS, O_WRONLY | O_CLOEXEC);
    dprintf(words, "%s %llu\n", thaws ? "thawed" : "freezing", (unsigned long long)mono_us());
    close(words);
    if (thaws)
        return 0;
    sleep(delay_of_freeze()); /* a database that takes its time to come to rest */
    return 0;
}
