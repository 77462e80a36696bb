/* SPDX-License-Identifier: Apache-2.0
 *
 * IDE by bus master DMA (PIIX): written word by word, a block would leave the guest two thousand times.
 */
#include "machine.h"

#define SECTORS_PER_BLOCK 8
#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
#define PIIX_IDE 0x80000900 /* bus 0, device 1, function 1: where -M pc has it */
#define COMMAND_REGISTER 0x04
#define BUS_MASTER_BASE 0x20
#define IO_AND_MASTER 5
#define TO_MEMORY 8
#define START 1
#define RUNS 1
#define FAILED 2
#define CLEAR 6
#define READ_DMA 0xc8
#define WRITE_DMA 0xca
#define FLUSH 0xe7
#define QUICK_LOOKS 16

static struct {
    const void *at;
    u16 bytes, last;
} list __attribute__((aligned(8)));

static u32 pci(u8 number)
{
    outl(PCI_ADDRESS, PIIX_IDE | number);
    return inl(PCI_DATA);
}

static u16 bus_master(u32 disk)
{
    static u16 base;
    if (!base) {
        base = pci(BUS_MASTER_BASE) & 0xfff0;
        u32 command = pci(COMMAND_REGISTER);
        outl(PCI_DATA, command | IO_AND_MASTER);
        list.last = 0x8000;
    }
    return base + (disk < 2 ? 0 : 8);
}

static u16 channel(u32 disk)
{
    return disk < 2 ? 0x1f0 : 0x170;
}

static u8 wait_while(u16 port, u8 bits) /* gives what it last read there */
{
    u8 status;
    for (u32 looks = 0; (status = inb(port)) & bits; looks++)
        if (looks > QUICK_LOOKS)
            rest();
    return status;
}

static int ready(u16 ide)
{
    u8 status = wait_while(ide + 7, 0x80);
    return status & 0x21 || !(status & 0x40) ? -1 : 0;
}

static int command(u32 disk, u32 sector, u8 sectors, u8 code)
{
    u16 ide = channel(disk);
    outb(ide + 6, 0xe0 | (disk & 1) << 4 | (sector >> 24 & 15));
    outb(ide + 2, sectors);
    outb(ide + 3, sector);
    outb(ide + 4, sector >> 8);
    outb(ide + 5, sector >> 16);
    outb(ide + 7, code);
    return code == FLUSH ? ready(ide) : 0;
}

static int transfer(u32 disk, u32 number, const void *content, u32 blocks, u8 code, u8 direction)
{
    u16 master = bus_master(disk);
    list.at = content;
    list.bytes = blocks * BLOCK; /* 0 means the 64 KiB that are the most */
    outb(master, direction);
    outl(master + 4, (u32)&list);
    outb(master + 2, CLEAR);
    command(disk, number * SECTORS_PER_BLOCK, blocks * SECTORS_PER_BLOCK, code);
    __asm__ volatile("" ::: "memory"); /* what is sent has to be in memory by now */
    outb(master, direction | START);
    u8 status = wait_while(master + 2, RUNS);
    outb(master, direction);
    return status & FAILED ? -1 : ready(channel(disk));
}

int write_disk(u32 disk, u32 number, const void *content)
{
    return transfer(disk, number, content, 1, WRITE_DMA, 0) || command(disk, 0, 0, FLUSH) ? -1 : 0;
}

int read_disk(u32 disk, u32 number, void *content, u32 blocks)
{
    return transfer(disk, number, content, blocks, READ_DMA, TO_MEMORY);
}
