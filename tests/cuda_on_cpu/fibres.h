// Fibres: many stacks, one thread of the machine, and a switch between them without the kernel.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <vector>

#if !defined(__x86_64__) || defined(CUDA_ON_CPU_UCONTEXT)
#include <ucontext.h>
#define CUDA_ON_CPU_USES_UCONTEXT
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {
namespace {

constexpr size_t PAGE_BYTES = 4096;
constexpr size_t STACK_BYTES = 128 << 10;

// Where a fibre stopped. `stack` and `size` are what AddressSanitizer wants to know of it.
struct Context {
#ifdef CUDA_ON_CPU_USES_UCONTEXT
    ucontext_t machine;
#else
    void* stack_pointer;
#endif
    const void* stack = nullptr;
    size_t size = 0;
    void* fake_stack = nullptr;
};

#ifdef CUDA_ON_CPU_USES_UCONTEXT

inline void prepare(Context& fibre, void* top, void (*entry)()) {
    getcontext(&fibre.machine);
    fibre.machine.uc_stack.ss_sp = const_cast<void*>(fibre.stack);
    fibre.machine.uc_stack.ss_size = static_cast<char*>(top) - static_cast<const char*>(fibre.stack);
    fibre.machine.uc_link = nullptr;
    makecontext(&fibre.machine, entry, 0);
}
inline void swap(Context& from, Context& to) { swapcontext(&from.machine, &to.machine); }

#else

// Pushes what a function must preserve, exchanges the stacks, pops the same from the other one.
extern "C" __attribute__((visibility("hidden"))) void cuda_on_cpu_swap(void** from, void* to);
asm(R"(
    .text
    .hidden cuda_on_cpu_swap
    .globl cuda_on_cpu_swap
    .type cuda_on_cpu_swap, @function
cuda_on_cpu_swap:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_on_cpu_swap, . - cuda_on_cpu_swap
)");

// Lays the stack out as if `entry` had been stopped before its first instruction.
inline void prepare(Context& fibre, void* top, void (*entry)()) {
    void** frame = static_cast<void**>(top);
    *--frame = nullptr;  // where entry would return to: it never does
    *--frame = reinterpret_cast<void*>(entry);
    for (int preserved = 0; preserved < 6; ++preserved) *--frame = nullptr;
    fibre.stack_pointer = frame;
}
inline void swap(Context& from, Context& to) {
    cuda_on_cpu_swap(&from.stack_pointer, to.stack_pointer);
}

#endif

// Stops `from`, goes on with `to`, and returns when something switches back.
inline void switch_to(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.size);
#endif
    swap(from, to);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first words of a fibre. The very first fibre learns the stack of its host.
inline void arrive_from(Context& host) {
#ifdef __SANITIZE_ADDRESS__
    const void* stack;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
    if (host.size == 0) host.stack = stack, host.size = size;
#else
    (void)host;
#endif
}

// Stacks are kept from block to block and from launch to launch. Each ends in a page that may not
// be touched, so that an overflow stops the program instead of changing a neighbour.
class Stacks {
    std::vector<char*> stacks;

public:
    void reserve(size_t count) {
        while (stacks.size() < count) {
            void* memory = mmap(nullptr, PAGE_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED || mprotect(memory, PAGE_BYTES, PROT_NONE)) abort();
            stacks.push_back(static_cast<char*>(memory) + PAGE_BYTES);
        }
    }
    void prepare(size_t number, Context& fibre, void (*entry)()) {
        fibre.stack = stacks[number];
        fibre.size = STACK_BYTES;
        // The lanes of a warp start at different offsets in a page: at the same one, their
        // stacks would fight for the same few sets of the first-level cache.
        char* top = stacks[number] + STACK_BYTES - number % 32 * (PAGE_BYTES / 32);
        cuda_on_cpu::prepare(fibre, top, entry);
    }
    // After an error fibres are dropped half way: their frames are no longer anybody's.
    void forget_frames() {
#ifdef __SANITIZE_ADDRESS__
        for (char* stack : stacks) __asan_unpoison_memory_region(stack, STACK_BYTES);
#endif
    }
};

}  // namespace
}  // namespace cuda_on_cpu
