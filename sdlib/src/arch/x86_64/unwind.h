/* SPDX-License-Identifier: Apache-2.0
 *
 * unwind.h - how debuggers find the program from inside of the library: DWARF in sdlib.elf, which is not part of the image.
 *
 * Nothing in here was called: a slot is jumped to, and its jump behind the instruction at P, ff 25 and a displacement, leads to the word that says where the
 * program goes on. So the return address is the word at *(P + 8 + displacement), where the displacement stands at P + 4.
 */
    .cfi_sections .debug_frame

/* P is on top of the stack: dup, +4, 4 bytes of it with their sign, +, +8, the word there. 21 bytes */
#define GOES_ON_FROM_P 0x12, 0x23, 4, 0x94, 4, 0x0c, 0, 0, 0, 0x80, 0x27, 0x0c, 0, 0, 0, 0x80, 0x1c, 0x22, 0x23, 8, 0x06

/* DW_CFA_val_expression of the return address, which is register 16. From rip: & ~127, + SLOT_P. From the frame: the word at rbx + 112 (`next`). */
#define GOES_ON_FROM_SLOT .cfi_escape 0x16, 16, 28, 0x80, 0, 0x09, 0x80, 0x1a, 0x23, 30, GOES_ON_FROM_P
#define GOES_ON_FROM_FRAME .cfi_escape 0x16, 16, 25, 0x73, 0xf0, 0, 0x06, GOES_ON_FROM_P
