/* SPDX-License-Identifier: Apache-2.0
 *
 * The lab guest's own program, run by the kernel as /init.
 *
 * Promise: a line `ack DISK NUMBER PLACE MONO_US BLOCKS TOOK_US` is said only after the BLOCKS blocks of
 * 4 KiB from block PLACE of DISK, stamped with NUMBER, were written with O_DIRECT | O_DSYNC, so are durable.
 * `erasing DISK NUMBER PLACE BLOCKS` is said before blocks are zeroed or discarded, `zeroed` of the same words once
 * they durably read as zeros; a discard is not acknowledged: the blocks may hold what they held, or zeros.
 * lab/guests/verdict.py reads the disks afterwards and looks for each of them.
 *
 * Told by the kernel command line:
 *   lab.modules=a,b            loaded from /modules, in this order
 *   lab.write=vda:START:LEN,.. regions in MiB; nothing outside them is written
 *   lab.rate=N                 writes a second and disk, 0: as many as possible
 *   lab.erase=N                one act in N is no write: blocks are zeroed or discarded (stamp.c); 0: none is
 *   lab.touch=MIB lab.dirty=MIB_S   memory filled at the start, and rewritten each second
 *   lab.fs=vdc                 an ext4 disk: mounted, and a note taken on it 10 times a second (agent.c)
 *   lab.lease=vdc              a disk that all hosts see: the guest's lease, see lease.c
 *   lab.channel                say `up`, and all after it, on a virtio channel instead of ttyS0
 *   lab.agent                  start /sbin/qemu-ga
 *   lab.probe                  say `up` and power off
 * and by lines `SEQ COMMAND [ARGUMENT]` on ttyS1, answered with `done SEQ`: stop, go, rate N, dirty N,
 * agent-stop, agent-go, freeze-delay SECONDS, poweroff.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest.h"

#define EPOCH_2025 1735689600

volatile int rate, dirty_mib_s;
int erase_one_in;

void start(void *(*work)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, argument))
        say("error thread %d", errno);
}

int open_when_there(const char *path, int flags)
{
    int fd;
    for (int tries = 0; tries < 1000; tries++) {
        if ((fd = open(path, flags | O_CLOEXEC)) >= 0)
            return fd;
        usleep(10000); /* SCSI disks and channels come a little after their module */
    }
    say("error open %s %d", path, errno);
    return -1;
}

static void make_folders(void)
{
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mkdir("/run", 0755);
    mkdir("/fs", 0755);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
}

int main(int count, char **words)
{
    char unused[8];
    if (count == 2 && getpid() != 1)
        return be_freeze_hook(words[1]);
    make_folders();
    open_console();
    load_modules();
    open_channel();
    /* Restarts go on above the numbers of the boot before: the clock has moved, and no disk does 10^6 writes/s. */
    uint64_t number = (host_seconds() - EPOCH_2025) * 1000000ULL;
    say("%s", ""); /* ends what firmware, or a boot cut short, left of a line */
    say("up %llu %llu", (unsigned long long)number, (unsigned long long)mono_us());
    if (option("lab.probe", unused, sizeof unused))
        power_off();
    rate = number_option("lab.rate");
    erase_one_in = number_option("lab.erase");
    dirty_mib_s = number_option("lab.dirty");
    fill_memory((uint64_t)number_option("lab.touch") * MIB);
    watch_host_clock();
    add_disks(number);
    take_lease(number);
    take_notes(number);
    start_agent();
    start_writing();
    listen_for_ever();
}
