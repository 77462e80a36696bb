/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>

#include "machine.h"

#define CONSOLE 0x3f8
#define COMMANDS 0x2f8
#define CONSOLE_QUEUE 16
#define POWER 0x604 /* PM1a control, where SeaBIOS puts it */
#define TIMER 0x608 /* ACPI's timer: stands still with the guest, which the TSC does not everywhere */
#define TIMER_BITS 0xffffff
#define TIMER_HZ 3579545

void outb(u16 port, u8 value) { __asm__ volatile("outb %0,%1" ::"a"(value), "Nd"(port)); }
void outl(u16 port, u32 value) { __asm__ volatile("outl %0,%1" ::"a"(value), "Nd"(port)); }
static void outw(u16 port, u16 value) { __asm__ volatile("outw %0,%1" ::"a"(value), "Nd"(port)); }

u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1,%0" : "=a"(value) : "Nd"(port));
    return value;
}

u32 inl(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1,%0" : "=a"(value) : "Nd"(port));
    return value;
}

/* clocks */

u32 divide(u64 *number, u32 by)
{
    u32 high = *number >> 32, low = *number, rest;
    u32 high_quotient = high / by;
    __asm__("divl %4" : "=a"(low), "=d"(rest) : "a"(low), "d"(high % by), "r"(by));
    *number = (u64)high_quotient << 32 | low;
    return rest;
}

u64 mono_us(void) /* asked more often than the timer wraps, every 4.7 s */
{
    static u64 ticks;
    static u32 before;
    u32 now = inl(TIMER) & TIMER_BITS;
    ticks += (now - before) & TIMER_BITS;
    before = now;
    u64 us = ticks * 1000000;
    divide(&us, TIMER_HZ);
    return us;
}

static u32 clock_register(u8 number)
{
    outb(0x70, number);
    u8 value = inb(0x71);
    return (value >> 4) * 10 + (value & 15); /* SeaBIOS leaves it in BCD */
}

u32 clock_second(void)
{
    outb(0x70, 0x0a);
    return inb(0x71) & 0x80 ? 255 : clock_register(0);
}

u32 host_seconds(void)
{
    while (clock_second() == 255)
        ;
    u32 days = ((clock_register(9) - 25) * 12 + clock_register(8) - 1) * 31 + clock_register(7) - 1;
    return ((days * 24 + clock_register(4)) * 60 + clock_register(2)) * 60 + clock_register(0);
}

/* console and commands */

static void put(char letter) /* the port is asked once for each filling of its queue: asking costs as much as telling */
{
    static u32 room;
    if (!room) {
        outb(CONSOLE + 2, 1); /* a queue, if it has none yet */
        while (!(inb(CONSOLE + 5) & 0x20))
            ;
        room = CONSOLE_QUEUE;
    }
    room--;
    outb(CONSOLE, letter);
}

static void put_number(u64 number)
{
    char digits[20];
    int count = 0;
    do
        digits[count++] = '0' + divide(&number, 10);
    while (number);
    while (count)
        put(digits[--count]);
}

void say(const char *format, ...)
{
    va_list fields;
    va_start(fields, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 'u':
            put_number(va_arg(fields, u32));
            break;
        case 'U':
            put_number(va_arg(fields, u64));
            break;
        case 's':
            for (const char *text = va_arg(fields, const char *); *text; text++)
                put(*text);
        }
    }
    va_end(fields);
    put('\n');
}

int heard(char *line, u32 size)
{
    static u32 length;
    while ((inb(COMMANDS + 5) & 0x81) == 1) { /* all ones: there is no such port */
        char letter = inb(COMMANDS);
        if (letter == '\n') {
            line[length] = 0;
            length = 0;
            return 1;
        }
        if (length < size - 1)
            line[length++] = letter;
    }
    return 0;
}

void power_off(void)
{
    say("bye %U", mono_us());
    outw(POWER, 0x2000);
    for (;;)
        __asm__ volatile("hlt");
}
