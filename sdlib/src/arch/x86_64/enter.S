/* SPDX-License-Identifier: Apache-2.0
 *
 * enter.S - from a slot of gate.S into C, and back: the ordinary way, the short ways, the child of a clone, injection.
 */

/* ---- into C ----
 * rcx = P of the slot. The frame goes below the red zone of the program's stack; the C code runs on the thread's own.
 * struct sd_frame in sd.h has this layout, lowest address first.
 *
 * A signal handler may come in between any two instructions. It must find either level 0 and nothing of ours on the library stack, or a
 * level that covers us: so the level goes up before rsp moves to that stack, and down only after rsp has left it. r12 keeps the level
 * that we found: a nested entry that was left by siglongjmp has not put it back.
 *
 * The thread's block is found through gs, whose base is the block's distance from sd_nobody: so a thread without one (base 0) finds sd_nobody,
 * whose top is 0 and whose level is not, and rdgsbase, which costs as much as twenty other instructions, is not needed. The block lies where the
 * stack of level 0 begins: its top is its own address. */
#define TCB_TOP 0
#define TCB_LEVEL 8
#define TCB_ALT_LO 32
#define TCB_ALT_HI 40
#define TCB_FRAME0 64
/* What sahf and an addition bring back, and what is always so. popfq, which takes several times as long as that, is for the others, DF and TF say. */
#define FLAGS_USUAL 0xad7                    /* CF PF AF ZF SF OF; IF and bit 1 */

#include "unwind.h"

    .text
    .globl sd_entry
    .hidden sd_entry
sd_entry:
    .cfi_startproc simple
    .cfi_def_cfa %rsp, 0                     /* right at the beginning, and from rbx on: in between nobody sleeps */
    lea     -128(%rsp), %rsp
    push    %rcx
    pushfq
    push    %rdi
    push    %rsi
    push    %rdx
    push    %r10
    push    %r8
    push    %r9
    push    %rax
    push    %rbp
    push    %rbx
    push    %r12
    push    %r13                             /* r13 to r15 only for handlers that look: show.c */
    push    %r14
    push    %r15
    cld
    mov     %rsp, %rbx
    .cfi_def_cfa %rbx, 248                   /* the program's rsp; struct sd_frame lies below its red zone */
    .cfi_offset %r15, -248
    .cfi_offset %r14, -240
    .cfi_offset %r13, -232
    .cfi_offset %r12, -224
    .cfi_offset %rbx, -216
    .cfi_offset %rbp, -208
    GOES_ON_FROM_FRAME
    mov     %gs:sd_nobody+TCB_TOP(%rip), %rbp
    test    %rbp, %rbp
    jz      .Lnew_thread
.Lhave_tcb:
    cmp     TCB_ALT_HI(%rbp), %rbx           /* on the program's sigaltstack we stay: the kernel must see that it is in use */
    jb      .Lmaybe_alt
.Lnot_alt:
    mov     TCB_LEVEL(%rbp), %r12d
    test    %r12d, %r12d
    jnz     .Lnested
    mov     %rbx, TCB_FRAME0(%rbp)
    movl    $1, TCB_LEVEL(%rbp)
    mov     TCB_TOP(%rbp), %rsp
.Lon_stack:
    mov     %rbx, %rdi
    mov     %rbp, %rsi
    call    sd_dispatch                      /* leaves rax and the way on in the frame */
    .globl sd_leave_c
    .hidden sd_leave_c
sd_leave_c:                                  /* also from fault.c: rbx, rbp and r12 as here, r13 to r15 the program's */
    mov     %rbx, %rsp
    mov     %r12d, TCB_LEVEL(%rbp)
.Lout:
    lea     24(%rsp), %rsp
    pop     %r12
    pop     %rbx
    pop     %rbp
    pop     %rax
    pop     %r9
    pop     %r8
    pop     %r10
    pop     %rdx
    pop     %rsi
    pop     %rdi
    mov     (%rsp), %r11d
    test    $~FLAGS_USUAL, %r11d
    jnz     .Lrare_flags
    mov     %rax, %rcx
    mov     (%rsp), %ah
    bt      $11, %r11d
    setc    %al
    add     $0x7f, %al                       /* OF */
    sahf
    mov     %rcx, %rax
    mov     8(%rsp), %rcx
    lea     144(%rsp), %rsp
    jmp     *%rcx
.Lrare_flags:
    popfq
    pop     %rcx
    lea     128(%rsp), %rsp
    jmp     *%rcx
.Lnew_thread:
    mov     %rsp, %rdi
    and     $-16, %rsp
    call    sd_tcb_new                       /* on the program's stack; returns the TCB, sets gs */
    mov     %rbx, %rsp
    mov     %rax, %rbp
    test    %rbp, %rbp
    jnz     .Lhave_tcb
    jmp     .Lout                            /* no memory for a stack: this one call goes to the kernel as it is */
.Lmaybe_alt:
    cmp     TCB_ALT_LO(%rbp), %rbx
    jb      .Lnot_alt
.Lnested:
    mov     %rbp, %rdi
    mov     %rbx, %rsi
    and     $-16, %rsp
    call    sd_pick_stack                    /* drops abandoned levels, takes one; returns where the stack starts */
    mov     TCB_LEVEL(%rbp), %r12d
    dec     %r12d
    mov     %rax, %rsp
    jmp     .Lon_stack
    .cfi_endproc

/* ---- messages on the ring ----
 * rcx = P. read, write, sendto and recvfrom: sd_fast_* of sock/fast.c or sd_shared_* of sock/fast_shared.c; whatever is unusual comes back as SD_SLOW with nothing done, and starts over at
 * sd_entry. Flags travel in ax (lahf, seto): pushfq and popfq cost more than the rest. Level and frame as in sd_entry, so that a handler
 * which comes in between is nested, and one that never returns is noticed. */
#define SD_SLOW -4096

.macro SHORT_WAY name
    .globl \name
    .hidden \name
\name:
    lea     -128(%rsp), %rsp
    push    %rax
    push    %rcx
    push    %rdi
    push    %rsi
    push    %rdx
    push    %r10
    push    %r8
    push    %r9
    lahf
    seto    %al
    push    %rax
    mov     %gs:sd_nobody+TCB_TOP(%rip), %r11
    cmpl    $0, %gs:sd_nobody+TCB_LEVEL(%rip) /* not 0 for nobody */
    jne     .Lslow\@
    cmp     TCB_ALT_HI(%r11), %rsp
    jb      .Lfast_alt\@
.Lfast_on\@:
    lea     1(%rsp), %rax                    /* SD_FRAME_SHORT */
    mov     %rax, TCB_FRAME0(%r11)
    mov     64(%rsp), %rax                   /* its number */
    movl    $1, TCB_LEVEL(%r11)
    mov     %r11, %rsp                       /* TCB_TOP: the block lies where its stack begins */
    mov     %r10, %rcx
    sub     $44, %eax                        /* read 0, write 1, sendto 44, recvfrom 45 */
    je      .Lfast_send\@
    jb      .Lfast_plain\@
    dec     %eax
    jnz     .Lfast_other\@
    call    \name\()_recv
.Lfast_done\@:
    mov     %rsp, %r11                       /* the thread's block again */
    mov     TCB_FRAME0(%r11), %rsp
    lea     -1(%rsp), %rsp
    movl    $0, TCB_LEVEL(%r11)
    cmp     $SD_SLOW, %rax
    je      .Lslow\@
    mov     %rax, %r11
    pop     %rax
    add     $0x7f, %al                       /* OF again */
    sahf
    mov     %r11, %rax
    pop     %r9
    pop     %r8
    pop     %r10
    pop     %rdx
    pop     %rsi
    pop     %rdi
    pop     %rcx
    lea     136(%rsp), %rsp
    lea     2(%rcx), %rcx                    /* SD_SLOT_RET */
    jmp     *%rcx
.Lfast_plain\@:
    add     $43, %eax
    jg      .Lfast_other\@
    je      .Lfast_write\@
    call    \name\()_read
    jmp     .Lfast_done\@
.Lfast_write\@:
    call    \name\()_write
    jmp     .Lfast_done\@
.Lfast_send\@:
    call    \name\()_send
    jmp     .Lfast_done\@
.Lfast_other\@:
    mov     $SD_SLOW, %rax
    jmp     .Lfast_done\@
.Lfast_alt\@:
    cmp     TCB_ALT_LO(%r11), %rsp           /* on the program's sigaltstack: sd_entry knows what to do */
    jb      .Lfast_on\@
.Lslow\@:
    pop     %rax
    add     $0x7f, %al
    sahf
    pop     %r9
    pop     %r8
    pop     %r10
    pop     %rdx
    pop     %rsi
    pop     %rdi
    pop     %rcx
    pop     %rax
    lea     128(%rsp), %rsp
    jmp     sd_entry
.endm

SHORT_WAY sd_fast
SHORT_WAY sd_shared

/* ---- the child of fork, vfork, clone ----
 * Runs on the child's stack, rcx = P. The kernel has cleared dispatch in it; gs is still the parent thread's. */
    .globl sd_child
    .hidden sd_child
sd_child:
    lea     -128(%rsp), %rsp
    push    %rcx
    pushfq
    push    %rdi
    push    %rsi
    push    %rdx
    push    %r10
    push    %r8
    push    %r9
    push    %rbx
    cld
    mov     %rsp, %rbx
    and     $-16, %rsp
    mov     %gs:sd_nobody+TCB_TOP(%rip), %rdi
    call    sd_child_start
    mov     %rbx, %rsp
    pop     %rbx
    pop     %r9
    pop     %r8
    pop     %r10
    pop     %rdx
    pop     %rsi
    pop     %rdi
    xor     %eax, %eax
    popfq
    pop     %rcx
    lea     128(%rsp), %rsp
    lea     2(%rcx), %rcx                    /* the jmp behind the instruction at P */
    jmp     *%rcx

/* ---- injection ---- */
    .globl sd_init
sd_init:
    cld
    call    sd_init_c
    int3

    .globl sd_unhook
sd_unhook:
    cld
    call    sd_unhook_c
    int3

    .globl sd_give
sd_give:
    cld
    call    sd_give_c
    int3

/* The supervisor runs sd_init_c, sd_unhook_c and sd_give_c on this stack. */
    .bss
    .balign 4096
    .space  16384
    .globl sd_boot_stack_top
sd_boot_stack_top:

    .section .note.GNU-stack, "", @progbits
