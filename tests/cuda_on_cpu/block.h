// One block at a time: its threads as fibres, its barriers, and the operations of its warps.
//
// A thread runs until it has to wait. In a warp operation it hands over to another lane of its
// warp; the last lane to arrive goes on without a switch, so that an operation costs one switch
// per lane. When no lane of the warp can go on, all of them must be at a barrier of the block (or
// gone), and another warp runs. Nothing runs in between: what one order of the threads does is
// repeatable, and what depends on the order shows when the order is changed.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>

#include "fibres.h"

struct uint3 {
    unsigned x, y, z;
};

namespace cuda_on_cpu {
namespace {

constexpr unsigned LANES = 32;
constexpr unsigned FULL_MASK = 0xffffffffu;
constexpr unsigned MAX_THREADS = 1024;
constexpr size_t ERROR_BYTES = 1024;

// What unwritten shared memory holds: a NaN as float and as double, a wild number as int.
constexpr uint32_t UNWRITTEN = 0x7ff5a5a5u;

// A place in the kernel's source; as a default argument, the place of the call.
struct Place {
    const char* file;
    int line;
    static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
    bool operator==(const Place& other) const {
        return line == other.line && (file == other.file || !strcmp(file, other.file));
    }
};

enum Order { FORWARD, REVERSE, SHUFFLE };

struct Launch {
    uint3 grid, block;
    size_t shared_bytes;
    int order;
    uint64_t seed;
};

struct Warp;

struct Thread {
    Context context;
    uint3 index;
    unsigned lane;
    Warp* warp;
    // Where it waits, if it does: the last operation it has come to.
    const char* operation;
    unsigned mask;
    Place place;
};

constexpr const char* EXITED = "exited";

// What one lane gives to the others: up to 40 bytes, for a tensor-core instruction.
struct alignas(16) Slot {
    unsigned char bytes[48];
    template <class T>
    T as() const {
        static_assert(sizeof(T) <= sizeof bytes);
        T value;
        memcpy(&value, bytes, sizeof(T));
        return value;
    }
};

// One exchange among lanes.
struct Round {
    Slot slots[LANES];
    unsigned votes;
};

// The lanes that one mask names. Two rounds in turn suffice: a third begins only when every lane
// has come to the second, and so has read the first.
struct Group {
    unsigned mask;
    unsigned arrived = 0;
    unsigned turn = 0;
    const Thread* first = nullptr;
    Round rounds[2];
    explicit Group(unsigned mask) : mask(mask) {}
};

struct Warp {
    unsigned number;
    unsigned existing;  // lanes, as bits
    unsigned ready;     // lanes that can run
    uint64_t intervals;  // between operations of all lanes, so far
    Thread* lanes;
    std::deque<Group> groups;

    Group& group(unsigned mask) {
        for (Group& group : groups)
            if (group.mask == mask) return group;
        return groups.emplace_back(mask);
    }
};

struct Block {
    const char* kernel;
    Launch launch;
    uint3 index;
    Thread* current;
    void* shared_memory;

    Context host;
    Stacks stacks;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    unsigned ready_warps;
    uint64_t random;
    void (*body)(const void*);
    const void* arguments;
    char* error;

    // The barrier of the block, and how many intervals there have been, ever.
    uint64_t intervals;
    unsigned arrived, votes, result;
    const Thread* first_arrived;
    const Thread* exited;
};

Block block;

// All lanes of the current warp have come to the same point: what they did since the last one can
// be put together (counting.h).
inline void warp_is_together();

// Ends the launch: the host goes on with the message, the block's fibres are dropped.
[[noreturn]] __attribute__((format(printf, 1, 2), noinline, cold)) void fail(
    const char* format, ...) {
    const uint3 &b = block.index, &t = block.current->index;
    int used = snprintf(block.error, ERROR_BYTES,
                        "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", block.kernel, b.x,
                        b.y, b.z, t.x, t.y, t.z);
    va_list values;
    va_start(values, format);
    if (used >= 0 && used < int(ERROR_BYTES))
        vsnprintf(block.error + used, ERROR_BYTES - used, format, values);
    va_end(values);
    switch_to(block.current->context, block.host);
    abort();
}

// "thread (1, 0, 0) waits in __syncthreads at kernel.cu:12"
struct Whereabouts {
    char text[300];
    explicit Whereabouts(const Thread& thread) {
        const uint3& t = thread.index;
        int used = snprintf(text, sizeof text, "thread (%u, %u, %u) ", t.x, t.y, t.z);
        char *at = text + used;
        size_t left = sizeof text - used;
        if (thread.operation == EXITED)
            snprintf(at, left, "has exited");
        else if (thread.mask)
            snprintf(at, left, "waits in %s of lanes %#x at %s:%d", thread.operation, thread.mask,
                     thread.place.file, thread.place.line);
        else
            snprintf(at, left, "waits in %s at %s:%d", thread.operation, thread.place.file,
                     thread.place.line);
    }
};

// The next of the set bits, in the order of the launch.
inline unsigned pick(unsigned ready, unsigned after) {
    if (block.launch.order == REVERSE) {
        unsigned top = (after + 31) % 32;  // the bit before `after`
        unsigned turned = ready << (31 - top) | ready >> ((top + 1) % 32);
        if (top == 31) turned = ready;
        return (top + 32 - __builtin_clz(turned)) % 32;
    }
    unsigned start = (after + 1) % 32;
    if (block.launch.order == SHUFFLE) {
        block.random = block.random * 6364136223846793005u + 1442695040888963407u;
        start = block.random >> 59;
    }
    unsigned turned = ready >> start | ready << ((32 - start) % 32);
    return (start + __builtin_ctz(turned)) % 32;
}

inline unsigned before_the_first() { return block.launch.order == REVERSE ? 0 : 31; }

inline Thread& first_of(Warp& warp) { return warp.lanes[pick(warp.ready, before_the_first())]; }

// No lane of the warp can run: all of them must be at the block's barrier, or gone.
__attribute__((noinline)) void check_that_none_waits_for_the_warp(const Warp& warp) {
    for (unsigned lane = 0; lane < LANES; ++lane) {
        const Thread& waiting = warp.lanes[lane];
        if (!(warp.existing >> lane & 1) || waiting.operation == EXITED || !waiting.mask) continue;
        for (unsigned other = 0; other < LANES; ++other) {
            if (!(waiting.mask >> other & 1)) continue;
            if (!(warp.existing >> other & 1))
                fail("divergent warp operation: %s, but the warp has no lane %u",
                     Whereabouts(waiting).text, other);
            const Thread& missing = warp.lanes[other];
            if (missing.operation == EXITED || missing.mask != waiting.mask)
                fail("divergent warp operation: %s, but %s", Whereabouts(waiting).text,
                     Whereabouts(missing).text);
        }
    }
}

// Lets another thread run until this one is ready again.
inline void wait() {
    Thread& self = *block.current;
    Warp& warp = *self.warp;
    Context* next = &block.host;
    if (warp.ready) {
        block.current = &warp.lanes[pick(warp.ready, self.lane)];
        next = &block.current->context;
    } else {
        check_that_none_waits_for_the_warp(warp);
        warp_is_together();
        block.ready_warps &= ~(1u << warp.number);
        if (block.ready_warps) {
            block.current = &first_of(block.warps[pick(block.ready_warps, warp.number)]);
            next = &block.current->context;
        }
    }
    switch_to(self.context, *next);
}

// Gives `value` to the lanes of `mask`, waits for what they give, and returns the round.
template <class T>
inline const Round& exchange(const char* operation, unsigned mask, const T& value, bool vote,
                             Place place) {
    static_assert(sizeof(T) <= sizeof(Slot::bytes));
    Thread& self = *block.current;
    Warp& warp = *self.warp;
    const unsigned bit = 1u << self.lane;
    self.operation = operation;
    self.mask = mask;
    self.place = place;
    if (!(mask & bit))
        fail("%s at %s:%d with mask %#x, which does not name the calling lane %u", operation,
             place.file, place.line, mask, self.lane);

    Group& group = warp.group(mask);
    Round& round = group.rounds[group.turn];
    if (group.arrived == 0) {
        group.first = &self;
        round.votes = 0;
    } else if (group.first->operation != operation && strcmp(group.first->operation, operation)) {
        fail("divergent warp operation: %s, but %s", Whereabouts(*group.first).text,
             Whereabouts(self).text);
    }
    memcpy(round.slots[self.lane].bytes, &value, sizeof(T));
    round.votes |= vote ? bit : 0;
    group.arrived |= bit;
    if (group.arrived == mask) {
        group.arrived = 0;
        group.turn ^= 1;
        warp.ready |= mask;
        if (mask == warp.existing) {
            warp_is_together();
            ++warp.intervals;
        }
    } else {
        warp.ready &= ~bit;
        wait();
    }
    return round;
}

// Waits for all threads of the block; returns how many of them came with a true predicate.
inline unsigned barrier(const char* operation, bool predicate, Place place) {
    Thread& self = *block.current;
    self.operation = operation;
    self.mask = 0;
    self.place = place;
    if (block.exited)
        fail("divergent barrier: %s, but %s", Whereabouts(self).text,
             Whereabouts(*block.exited).text);
    if (block.arrived == 0) block.first_arrived = &self;
    const Thread& first = *block.first_arrived;
    if (!(first.place == place) || strcmp(first.operation, operation))
        fail("divergent barrier: %s, but %s", Whereabouts(first).text, Whereabouts(self).text);

    block.votes += predicate;
    if (++block.arrived == block.threads.size()) {
        warp_is_together();
        ++block.intervals;
        block.result = block.votes;
        block.arrived = block.votes = 0;
        for (Warp& warp : block.warps) {
            warp.ready = warp.existing;
            block.ready_warps |= 1u << warp.number;
        }
    } else {
        self.warp->ready &= ~(1u << self.lane);
        wait();
    }
    return block.result;
}

// The whole life of a thread.
__attribute__((no_sanitize("address"))) void live() {
    arrive_from(block.host);
    block.body(block.arguments);
    Thread& self = *block.current;
    self.operation = EXITED;
    self.mask = 0;
    if (block.arrived)
        fail("divergent barrier: %s, but %s", Whereabouts(*block.first_arrived).text,
             Whereabouts(self).text);
    block.exited = &self;
    self.warp->ready &= ~(1u << self.lane);
    wait();
    abort();
}

// The block's dynamic shared memory. Under AddressSanitizer it is exactly as long as asked for;
// without, a few words behind it tell whether something was written there.
class SharedMemory {
    static constexpr size_t GUARD_WORDS = 64;
    size_t words;
    uint32_t* memory;

public:
    explicit SharedMemory(size_t bytes) : words((bytes + 3) / 4) {
        size_t guarded = words + GUARD_WORDS;
#ifdef __SANITIZE_ADDRESS__
        memory = static_cast<uint32_t*>(malloc(bytes));
        guarded = bytes / 4;
#else
        memory = static_cast<uint32_t*>(malloc(4 * guarded));
#endif
        for (size_t word = 0; word < guarded; ++word) memory[word] = UNWRITTEN;
    }
    ~SharedMemory() { free(memory); }
    SharedMemory(const SharedMemory&) = delete;
    void* address() const { return memory; }
    bool was_overrun() const {
#ifndef __SANITIZE_ADDRESS__
        for (size_t word = words; word < words + GUARD_WORDS; ++word)
            if (memory[word] != UNWRITTEN) return true;
#endif
        return false;
    }
};

// Runs the block `index`; false if it failed.
bool run_block(uint3 index) {
    SharedMemory shared(block.launch.shared_bytes);
    block.shared_memory = shared.address();
    block.index = index;
    ++block.intervals;
    block.arrived = block.votes = 0;
    block.exited = nullptr;
    block.ready_warps = 0;
    for (Warp& warp : block.warps) {
        warp.ready = warp.existing;
        block.ready_warps |= 1u << warp.number;
    }
    for (size_t number = 0; number < block.threads.size(); ++number)
        block.stacks.prepare(number, block.threads[number].context, live);
    block.current = &first_of(block.warps[pick(block.ready_warps, before_the_first())]);
    switch_to(block.host, block.current->context);
    if (!*block.error && shared.was_overrun())
        snprintf(block.error, ERROR_BYTES,
                 "kernel %s, block (%u, %u, %u): wrote behind the %zu bytes of shared memory",
                 block.kernel, index.x, index.y, index.z, block.launch.shared_bytes);
    return !*block.error;
}

// Runs every block of the launch, one after another; what went wrong is left in `error`.
void run(const char* kernel, const Launch& launch, void (*body)(const void*),
         const void* arguments, char* error) {
    block.kernel = kernel;
    block.launch = launch;
    block.body = body;
    block.arguments = arguments;
    block.error = error;
    block.random = launch.seed;
    block.host = Context();
    *error = 0;

    const uint3 size = launch.block;
    const unsigned count = size.x * size.y * size.z;
    block.stacks.reserve(count);
    block.warps.clear();
    block.warps.resize((count + LANES - 1) / LANES);
    block.threads.assign(count, Thread());
    for (unsigned number = 0; number < count; ++number) {
        Thread& thread = block.threads[number];
        Warp& warp = block.warps[number / LANES];
        thread.index = {number % size.x, number / size.x % size.y, number / size.x / size.y};
        thread.lane = number % LANES;
        thread.warp = &warp;
        if (thread.lane == 0) {
            warp.number = number / LANES;
            warp.existing = count - number >= LANES ? FULL_MASK : (1u << (count - number)) - 1;
            warp.lanes = &thread;
            warp.groups.emplace_back(FULL_MASK);
        }
    }

    const uint3 grid = launch.grid;
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    std::vector<uint64_t> turns(blocks);
    for (uint64_t turn = 0; turn < blocks; ++turn) {
        turns[turn] = launch.order == REVERSE ? blocks - 1 - turn : turn;
        if (launch.order == SHUFFLE) {
            block.random = block.random * 6364136223846793005u + 1442695040888963407u;
            std::swap(turns[turn], turns[(block.random >> 33) % (turn + 1)]);
        }
    }
    for (uint64_t number : turns) {
        uint3 index = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y),
                       unsigned(number / grid.x / grid.y)};
        if (!run_block(index)) {
            block.stacks.forget_frames();
            return;
        }
    }
}

}  // namespace
}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::block.current->index)
#define blockIdx (cuda_on_cpu::block.index)
#define blockDim (cuda_on_cpu::block.launch.block)
#define gridDim (cuda_on_cpu::block.launch.grid)
