// A launch, and the state of the machine that runs it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

namespace {

constexpr int LANES = 32;
constexpr u32 SHARED_BASE = 1024;  // as in decode.py
constexpr u32 UNWRITTEN = 0x7ff5a5a5u;  // a NaN, as float and as double
constexpr u64 UNWRITTEN_TWICE = u64(UNWRITTEN) << 32 | UNWRITTEN;
constexpr s32 WIDE_ADDRESS = 16;  // as in decode.py

// The same as in kernel.py and decode.py.

struct Instruction {
    s32 operation, guard, count, immediate, used;
    s32 operands[15];
};
struct Traffic {
    s64 accesses, bytes, sectors;
};
struct Range {
    u64 begin, end;
    Traffic read, written;
};
struct Site {
    s64 accesses, wavefronts, ideal;
};
enum Order { FORWARD, REVERSE, SHUFFLE };
struct Launch {
    const Instruction* code;
    char* constants;
    char* parameters;
    Range* ranges;
    Site* sites;  // one for each instruction
    char* error;
    u64 code_size, error_bytes, register_bytes, parameter_bytes, range_count, shared_bytes, seed;
    u32 grid[3], block[3];
    s32 order;
};

struct Failure {};

// Who last touched a word, with which instruction, and whether others did so since the last barrier.
struct Touch {
    u32 epoch;  // 0: nobody
    u32 who;    // thread, instruction << 10, flags

    static constexpr u32 LANES_DID = 1u << 29, WARPS_DID = 1u << 30, BLOCKS_DID = 1u << 31;
    u32 thread() const { return who & 1023; }
    u32 at() const { return who >> 10 & 0x7ffff; }
};
struct Word {
    Touch read, written;
};

struct Group {
    u32 at, lanes;
    bool held_back, waits;
};

struct Warp {
    char* registers;
    u32 live = 0;
    u32 epoch = 0;  // of its last __syncwarp
    bool at_barrier = false;
    u32 at = 0;
    std::vector<Group> groups;
};

struct Machine {
    const Launch* launch;
    std::vector<char> registers;
    std::vector<Warp> warps;
    std::vector<u32> shared;
    std::vector<Word> shared_words;
    std::vector<u32> last_counted;  // which count a word was last part of
    u32 counts;
    std::vector<std::vector<Word>> global_words;
    std::vector<size_t> ranges;  // that each instruction reached last
    u32 block[3];
    u32 threads;
    u32 epoch, block_began, barrier;  // counts synchronisations; the values at the last of each kind
    u64 random;

    // Of the running group.
    Warp* warp;
    char* base;     // its registers
    u32 at;         // the instruction
    u32 active;     // lanes of the group
    u32 running;    // lanes of those whose guard holds
    u32 limit;      // where it has to look for others
    bool held_back;

    template <class T>
    T* reg(s32 operand) const {
        return reinterpret_cast<T*>(operand >= 0 ? base + operand : launch->constants + ~operand);
    }
    u32& pred(s32 operand) const { return *reg<u32>(operand); }
    u32 warp_number() const { return u32(warp - warps.data()); }
    bool runs(int lane) const { return running >> lane & 1; }
    int first_lane() const { return __builtin_ctz(running); }

    [[noreturn]] __attribute__((format(printf, 3, 4))) void fail(int lane, const char* format, ...) {
        const u32 thread = 32 * warp_number() + lane;
        const u32* b = launch->block;
        int used = snprintf(launch->error, launch->error_bytes,
                            "block (%u, %u, %u), thread (%u, %u, %u), #%u: ", block[0], block[1],
                            block[2], thread % b[0], thread / b[0] % b[1], thread / b[0] / b[1], at);
        va_list values;
        va_start(values, format);
        vsnprintf(launch->error + used, launch->error_bytes - used, format, values);
        va_end(values);
        throw Failure();
    }
    u32 next_random() {
        random = random * 6364136223846793005u + 1442695040888963407u;
        return u32(random >> 32);
    }
};

inline u32 bits_of(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline float float_of(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Sets the running lanes of a register to f(lane).
template <class D, class F>
inline void set(Machine& m, D* to, F f) {
    if (m.running == m.warp->live) {
#pragma GCC ivdep
        for (int lane = 0; lane < LANES; ++lane) to[lane] = f(lane);
    } else {
        const u32 running = m.running;
#pragma GCC ivdep
        for (int lane = 0; lane < LANES; ++lane)
            to[lane] = running >> lane & 1 ? f(lane) : to[lane];
    }
}
inline void set_pred(const Machine& m, s32 operand, u32 value) {
    u32& to = m.pred(operand);
    to = (to & ~m.running) | (value & m.running);
}
// Unwritten shared memory may be read, and even computed with, as long as nothing follows from it:
// NaNs keep their bits through arithmetic.
template <class A>
inline void check_written(Machine& m, const A* values) {
    if constexpr (sizeof(A) < 4) return;
    using Bits = std::conditional_t<sizeof(A) == 8, u64, u32>;
    constexpr Bits sign = Bits(1) << (8 * sizeof(A) - 1);
    const Bits* bits = reinterpret_cast<const Bits*>(values);
    u32 unwritten = 0;
    for (int lane = 0; lane < LANES; ++lane)
        unwritten |= u32((bits[lane] & ~sign) == Bits(UNWRITTEN_TWICE)) << lane;
    if ((unwritten &= m.running) == 0) return;
    --m.at;
    m.fail(__builtin_ctz(unwritten), "uses shared memory that nobody has written");
}

}  // namespace
