/* SPDX-License-Identifier: Apache-2.0
 *
 * gate.S - the only system call instructions of the library, and the way in from a call site.
 *
 * Theory of operation
 * -------------------
 * Every call site of the program that we have seen owns one slot: 128 bytes of constant code, and one word
 * `sd_slot_ret[i]` that says where the program goes on. A patched site jumps to its slot; a site that still traps gets there
 * because the SIGSYS handler sets rip to it and returns. Either way the slot starts with exactly the state in which the
 * kernel would have seen the call: all registers, flags and the stack are the program's. Only rcx and r11, which `syscall`
 * destroys anyway, are ours.
 *
 * The slot looks the call's number up in sd_class[], which gives the distance from P to where it goes on:
 *   P  the bare instruction. No stack, no flags, no memory: a thread may have given its stack back (musl's detached
 *      exit), a handler may be returning (rt_sigreturn reads its frame at rsp).
 *   F  the C code, on the library's own stack.
 *   Q  looks the descriptor in rdi up in sd_fdkind[]: again P or F.
 *   C  bare like P, but the call may return twice: the child goes to sd_child before it goes back.
 *   R  what sd_fdkind[] says of a connection that is on the ring: sd_fast, which sends and receives in few instructions.
 *   S  the same where others share the connection: threads, or other processes.
 *   D  F for a stub that knows the number and comes here directly: rcx is not set yet.
 * Only lea, mov, movz and jmp are used up to here: none of them changes the flags. The number is cut to 16 bits and so
 * is the descriptor; where that cut lied (x32 numbers, descriptors above 65535), the C code finds out and sends it to P.
 */
#define SD_SLOTS 4096
#define SLOT_P 30
#define OFF_F 8
#define OFF_Q 13
#define OFF_C 43
#define OFF_R 68
#define OFF_D 73
#define OFF_S 85
#define UC_RIP_AT 168         /* of the context, struct ucontext */
#define SHOWN_BYTES 352       /* struct sd_shown; a multiple of 16 */
#define ROOM32_BYTES 832       /* struct sd_room32; a multiple of 16 */
#define SD_LIB_HIGH 0x551000  /* SD_LIB_BASE >> SD_LIB_WINDOW */
#define OWN_ALT_BYTES 65536   /* SD_OWN_ALT */
#define TCB_OWN_ALT 216       /* asserted in sd.h, as the others */
#define CHILD_BELOW 152       /* int80_child.c: BELOW; its 16 registers are the upper part */

#include "unwind.h"

    .section .gate, "ax", @progbits
    .globl sd_slots
    .hidden sd_slots
    .balign 128
sd_slots:
    .cfi_startproc simple
    .cfi_def_cfa %rsp, 0
    GOES_ON_FROM_SLOT
    .set i, 0
    .rept SD_SLOTS
    .balign 128, 0xcc
    lea     sd_class(%rip), %rcx
    movzwl  %ax, %r11d
    movzbl  (%rcx,%r11), %r11d
    lea     1f(%rip), %rcx
    lea     (%rcx,%r11), %r11
    jmp     *%r11
1:  syscall                                  /* P = slot + 30 */
    jmp     *(sd_slot_ret + 8 * i)(%rip)
    jmp     sd_entry                         /* F = P + 8 */
    movzwl  %di, %r11d                       /* Q = P + 13 */
    lea     sd_fdkind(%rip), %rcx
    movzbl  (%rcx,%r11), %r11d
    lea     1b(%rip), %rcx
    lea     (%rcx,%r11), %r11
    jmp     *%r11
    syscall                                  /* C = P + 43 */
    mov     %rax, %rcx
    jrcxz   2f
    jmp     *(sd_slot_ret + 8 * i)(%rip)
2:  lea     1b(%rip), %rcx
    jmp     sd_child
    jmp     sd_fast                          /* R = P + 68 */
    lea     1b(%rip), %rcx                   /* D = P + 73 */
    jmp     sd_entry
    jmp     sd_shared                        /* S = P + 85 */
    .set i, i + 1
    .endr
    .balign 128, 0xcc
    .cfi_endproc

/* Asserted at run time by sd_init (the assembler cannot: branches are relaxed late): the offsets of the first slot. */
    .globl sd_slot_offsets_ok
    .hidden sd_slot_offsets_ok
sd_slot_offsets_ok:
    xor     %eax, %eax
    cmpw    $0x050f, sd_slots + SLOT_P(%rip)
    jne     1f
    cmpb    $0xe9, sd_slots + SLOT_P + OFF_F(%rip)
    jne     1f
    cmpw    $0x0f44, sd_slots + SLOT_P + OFF_Q(%rip)
    jne     1f
    cmpw    $0x050f, sd_slots + SLOT_P + OFF_C(%rip)
    jne     1f
    cmpb    $0xe9, sd_slots + SLOT_P + OFF_R(%rip)
    jne     1f
    cmpw    $0x8d48, sd_slots + SLOT_P + OFF_D(%rip)
    jne     1f
    cmpb    $0xe9, sd_slots + SLOT_P + OFF_S(%rip)
    jne     1f
    inc     %eax
1:  ret

/* long sd_sys(nr, a, b, c, d, e, f) */
    .globl sd_sys
    .hidden sd_sys
sd_sys:
    .cfi_startproc
    mov     %rdi, %rax
    mov     %rsi, %rdi
    mov     %rdx, %rsi
    mov     %rcx, %rdx
    mov     %r8, %r10
    mov     %r9, %r8
    mov     8(%rsp), %r9
    syscall
    .globl sd_sys_ret
    .hidden sd_sys_ret
sd_sys_ret:
    ret
    .cfi_endproc

/* long sd_int80(const u64 *reg): struct ucontext's registers, r8 first */
    .globl sd_int80
    .hidden sd_int80
sd_int80:
    .cfi_startproc
    push    %rbx
    push    %rbp
    .cfi_def_cfa_offset 24
    .cfi_offset %rbx, -16
    .cfi_offset %rbp, -24
    mov     %rdi, %r11
    mov     104(%r11), %rax
    mov     88(%r11), %rbx
    mov     112(%r11), %rcx
    mov     96(%r11), %rdx
    mov     72(%r11), %rsi
    mov     64(%r11), %rdi
    mov     80(%r11), %rbp
    int     $0x80
    pop     %rbp
    pop     %rbx
    ret
    .cfi_endproc

/* long sd_sys_from(sp, nr, a, b): made where the stack pointer is that. All signals are blocked. */
    .globl sd_sys_from
    .hidden sd_sys_from
sd_sys_from:
    .cfi_startproc
    push    %rbx
    .cfi_def_cfa_offset 16
    .cfi_offset %rbx, -16
    mov     %rsp, %rbx
    .cfi_def_cfa_register %rbx
    mov     %rdi, %rsp
    mov     %rsi, %rax
    mov     %rdx, %rdi
    mov     %rcx, %rsi
    syscall
    mov     %rbx, %rsp
    .cfi_def_cfa_register %rsp
    pop     %rbx
    .cfi_def_cfa_offset 8
    ret
    .cfi_endproc

/* long sd_child_on(nr, a, b, c, d, e): a clone whose child has a stack of its own, on which int80_child.c has left the registers to begin with */
    .globl sd_child_on
    .hidden sd_child_on
sd_child_on:
    .cfi_startproc
    mov     %rdi, %rax
    mov     %rsi, %rdi
    mov     %rdx, %rsi
    mov     %rcx, %rdx
    mov     %r8, %r10
    mov     %r9, %r8
    syscall
    test    %rax, %rax
    jz      1f
    ret
    .cfi_undefined %rip
1:  mov     %rsp, %rbx
    and     $-16, %rsp
    mov     %gs:sd_nobody(%rip), %rdi        /* sd_tcb.top */
    call    sd_child_start
    lea     CHILD_BELOW-128(%rbx), %rsp
    pop     %r15
    pop     %r14
    pop     %r13
    pop     %r12
    pop     %r11
    pop     %r10
    pop     %r9
    pop     %r8
    pop     %rbp
    pop     %rdi
    pop     %rsi
    pop     %rdx
    pop     %rcx
    pop     %rbx
    xor     %eax, %eax
    popfq
    ret
    .cfi_endproc

    .globl sd_restorer
    .hidden sd_restorer
sd_restorer:
    mov     $15, %eax                        /* rt_sigreturn */
    syscall
    hlt

/* The program's handlers. On the frame that the kernel has made for them, registers as it has set them: rdi, rsi, rdx, and rax = 0. Whatever
 * was interrupted outside of the library is the program's own business. */
    .globl sd_signal
    .hidden sd_signal
sd_signal:
    mov     UC_RIP_AT(%rdx), %rax
    shr     $24, %rax                        /* SD_LIB_WINDOW */
    cmp     $SD_LIB_HIGH, %rax
    je      1f
    mov     %rsp, %rax
    sub     %gs:sd_nobody+TCB_OWN_ALT(%rip), %rax
    cmp     $OWN_ALT_BYTES, %rax
    jb      1f                               /* altstack.c */
    lea     sd_signals(%rip), %rax
    mov     (%rax,%rdi,8), %r11
    xor     %eax, %eax
    jmp     *%r11
1:  jmp     sd_signal_inside

/* The signal has interrupted us: the handler gets a context of its own (show.c), in a frame below the kernel's that looks like one of the kernel's. */
    .globl sd_signal_inside
    .hidden sd_signal_inside
sd_signal_inside:
    lea     -SHOWN_BYTES(%rsp), %rsp
    mov     %rsp, %rcx
    push    %rdi
    push    %rsi
    push    %rdx
    call    sd_show                          /* rax: the handler, rdx: its frame */
    mov     %rax, %r11
    mov     %rdx, %rcx
    pop     %rdx
    pop     %rsi
    pop     %rdi
    mov     %rcx, %rsp
    lea     8(%rcx), %rdx                    /* in every frame the context follows the return address */
    xor     %eax, %eax
    jmp     *%r11

/* A handler of 32-bit code (int80_frame.c): below the kernel's frame comes one of i386, on which it begins. */
    .globl sd_signal32
    .hidden sd_signal32
sd_signal32:
    push    %rdi
    push    %rsi
    push    %rdx
    mov     %rdx, %rdi
    call    sd_float32_bytes
    pop     %rdx
    pop     %rsi
    pop     %rdi
    neg     %rax
    lea     -ROOM32_BYTES(%rsp,%rax), %rsp
    and     $-16, %rsp
    mov     %rsp, %rcx
    push    %rdx
    push    %rdx
    call    sd_frame32                       /* rax: struct sd_room32 */
    pop     %rdx
    mov     %rax, %rsp
    mov     UC_RIP_AT-40(%rdx), %rbx         /* the program's: what was interrupted may be ours */
    mov     UC_RIP_AT-48(%rdx), %rbp
    mov     UC_RIP_AT-56(%rdx), %rsi
    mov     UC_RIP_AT-64(%rdx), %rdi
    mov     $0x2b, %eax
    mov     %eax, %ds
    mov     %eax, %es
    pop     %rax
    pop     %rdx
    pop     %rcx
    iretq

/* Where such a handler returns to without dispatch: the context that it was shown is at rsp. */
    .globl sd_signal_back
    .hidden sd_signal_back
sd_signal_back:
    mov     %rsp, %rdi
    call    sd_shown_end
    mov     %rax, %rsp
    jmp     sd_restorer

/* Otherwise. By these bytes unwinders and debuggers know a signal's frame. Outside of the gate: the call traps, and the SIGSYS handler does the same. */
    .text
    .globl sd_signal_return
    .hidden sd_signal_return
sd_signal_return:
    .byte   0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0  /* mov $15, %rax; not the short form */
    syscall
    .globl sd_signal_returned
    .hidden sd_signal_returned
sd_signal_returned:
    hlt

/* long sd_trap(nr, a, b, c, f, t): traps, too; raise.c */
    .globl sd_trap
    .hidden sd_trap
sd_trap:
    mov     %r8, %r10
    mov     %r9, %r8
    mov     %rdi, %rax
    mov     %rsi, %rdi
    mov     %rdx, %rsi
    mov     %rcx, %rdx
    syscall
    .globl sd_trap_done
    .hidden sd_trap_done
sd_trap_done:
    ret
    .section .gate, "ax", @progbits

/* SIGSEGV and SIGBUS, which may be our own: sd_fault_route() says who goes on, on that same frame. */
    .globl sd_signal_fault
    .hidden sd_signal_fault
sd_signal_fault:
    push    %rdi
    push    %rsi
    push    %rdx
    call    sd_fault_route
    pop     %rdx
    pop     %rsi
    pop     %rdi
    mov     %rax, %r11
    xor     %eax, %eax
    jmp     *%r11
    .globl sd_nothing
    .hidden sd_nothing
sd_nothing:
    ret

    .section .note.GNU-stack, "", @progbits
