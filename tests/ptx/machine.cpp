// Runs a decoded PTX kernel (decode.py) block by block, a warp's lanes at once, on one thread.
//
// What a GPU leaves undefined is an error: an access outside of the arrays or not aligned, a use of
// unwritten shared memory, a barrier that not all threads reach, an operation of a warp that not all
// its lanes reach, a race. What is done to memory is counted.
//
// A warp is a list of groups of lanes that stand at the same instruction. The group furthest behind
// runs, so that lanes which parted at a branch meet again; at operations of the whole warp each
// group waits for the others. Orders but the first hold a half of the lanes back until the others
// wait: what depends on the order of lanes shows.
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
#ifdef __SSE__
#include <xmmintrin.h>
#endif

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

using Handler = void (*)(Machine&, const Instruction&);

// Lane by lane: d = f(a, b, ...)

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
template <class D, class A, class F>
inline void map1(Machine& m, const Instruction& i, F f) {
    const A* a = m.reg<A>(i.operands[1]);
    set(m, m.reg<D>(i.operands[0]), [=](int lane) { return D(f(a[lane])); });
}
template <class D, class A, class F>
inline void map2(Machine& m, const Instruction& i, F f) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    set(m, m.reg<D>(i.operands[0]), [=](int lane) { return D(f(a[lane], b[lane])); });
}
template <class D, class A, class F>
inline void map3(Machine& m, const Instruction& i, F f) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    const D* c = m.reg<D>(i.operands[3]);
    set(m, m.reg<D>(i.operands[0]), [=](int lane) { return D(f(a[lane], b[lane], c[lane])); });
}
template <class A, class F>  // the second operand is a number of bits
inline void shift(Machine& m, const Instruction& i, F f) {
    const A* a = m.reg<A>(i.operands[1]);
    const u32* b = m.reg<u32>(i.operands[2]);
    constexpr u32 most = 8 * sizeof(A);
    set(m, m.reg<A>(i.operands[0]), [=](int lane) { return f(a[lane], std::min(b[lane], most)); });
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
template <class A, class F>
inline void compare(Machine& m, const Instruction& i, F f) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    check_written(m, a);
    check_written(m, b);
    u32 found = 0;
    for (int lane = 0; lane < LANES; ++lane) found |= u32(f(a[lane], b[lane])) << lane;
    set_pred(m, i.operands[0], found);
}
template <class A>
inline void select(Machine& m, const Instruction& i) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    const u32 which = m.pred(i.operands[3]);
    set(m, m.reg<A>(i.operands[0]),
        [=](int lane) { return which >> lane & 1 ? a[lane] : b[lane]; });
}

// Numbers

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
// What approximating instructions give: one unit in the last place more, less, or neither.
inline float approximate(float exact, u32 operands) {
    if (!std::isfinite(exact) || exact == 0) return exact;
    return float_of(bits_of(exact) + (operands * 2654435761u >> 16) % 3 - 1);
}
inline float flushed(float value) {
    return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.f, value) : value;
}
inline double flushed(double value) { return value; }
inline float half_to_float(u16 half) {
    const u32 sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) {
        const float magnitude = float(fraction) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return float_of(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}
template <class A>
inline A bit_field_insert(A bits, A into, u32 place, u32 length) {
    constexpr u32 most = 8 * sizeof(A);
    if (place >= most) return into;
    const A mask = (length >= most ? ~A(0) : (A(1) << length) - 1) << place;
    return (into & ~mask) | (bits << place & mask);
}
template <class A>
inline void insert(Machine& m, const Instruction& i) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    const u32 *c = m.reg<u32>(i.operands[3]), *d = m.reg<u32>(i.operands[4]);
    set(m, m.reg<A>(i.operands[0]), [=](int lane) {
        return bit_field_insert(a[lane], b[lane], c[lane] & 255, d[lane] & 255);
    });
}
template <class A>
inline A divide(A a, A b) {
    if (b == 0) return A(-1);
    return std::is_signed_v<A> && b == A(-1) ? A(0 - std::make_unsigned_t<A>(a)) : A(a / b);
}
template <class A>
inline A larger(A a, A b) {
    if (a != a || b != b) return a != a ? b : a;
    return a > b || (a == b && !std::signbit(double(a))) ? a : b;  // 0 is larger than -0
}
template <class A>
inline A smaller(A a, A b) {
    if (a != a || b != b) return a != a ? b : a;
    return a < b || (a == b && std::signbit(double(a))) ? a : b;
}
inline s32 to_s32(float value) {
    if (value != value) return 0;
    if (value >= 0x1p31f) return std::numeric_limits<s32>::max();
    return value < -0x1p31f ? std::numeric_limits<s32>::min() : s32(value);
}
inline u32 reversed(u32 bits) {
    u32 out = 0;
    for (int i = 0; i < 32; ++i) out |= (bits >> i & 1) << (31 - i);
    return out;
}

// Groups

void look_for_others(Machine& m) {
    m.limit = std::numeric_limits<u32>::max();
    for (const Group& group : m.warp->groups)
        if (!group.waits && group.held_back == m.held_back) m.limit = std::min(m.limit, group.at);
}

// All lanes are together. In other orders than the first some of them are held back from here on.
void part(Machine& m) {
    if (m.launch->order == FORWARD) return;
    const u32 first = m.active & (m.launch->order == REVERSE ? 0xffff0000u : m.next_random());
    if (first == 0 || first == m.active) return;
    m.warp->groups.push_back({m.at, m.active & ~first, true, false});
    m.active = first;
    m.held_back = false;
}

void branch(Machine& m, const Instruction& i) {
    const u32 target = u32(i.immediate);
    if (m.running == m.active) {
        m.at = target;
        return;
    }
    m.warp->groups.push_back({target, m.running, m.held_back, false});
    m.active &= ~m.running;
    m.limit = std::min(m.limit, target);
}

void leave(Machine& m, const Instruction&) {
    m.warp->live &= ~m.running;
    m.active &= ~m.running;
    if (m.active == 0) m.limit = 0;
}

// Whether all lanes of the warp are here; else the group waits for them.
bool is_together(Machine& m) {
    if (m.active != m.warp->live) {
        m.warp->groups.push_back({m.at - 1, m.active, m.held_back, true});
        m.active = 0;
        m.limit = 0;
        return false;
    }
    if (m.running != m.active) {
        --m.at;
        m.fail(__builtin_ctz(m.active & ~m.running), "divergent warp operation: not executed here");
    }
    return true;
}
void check_mask(Machine& m, s32 operand) {
    const u32* masks = m.reg<u32>(operand);
    for (int lane = 0; lane < LANES; ++lane) {
        if (!m.runs(lane) || masks[lane] == m.warp->live) continue;
        --m.at;
        m.fail(lane, "a mask of lanes %#x where there are %#x", masks[lane], m.warp->live);
    }
}

void sync_warp(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    check_mask(m, i.operands[0]);
    m.warp->epoch = ++m.epoch;
    part(m);
}

enum Shuffle { BFLY, DOWN, UP, IDX };

template <Shuffle kind>
void shuffle(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    const bool has_pred = i.count == 2;  // of results
    const s32* in = i.operands + i.count;
    check_mask(m, in[3]);
    const u32 *value = m.reg<u32>(in[0]), *b = m.reg<u32>(in[1]), *c = m.reg<u32>(in[2]);
    u32 out[LANES], valid = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        const int clamp = c[lane] & 31, segment = c[lane] >> 8 & 31;
        const int high = (lane & segment) | (clamp & ~segment), low = lane & segment;
        const int n = b[lane] & 31;
        int from = kind == BFLY ? lane ^ n : kind == DOWN ? lane + n : kind == UP ? lane - n
                                                                   : low | (n & ~segment);
        const bool inside = kind == UP ? from >= high : from <= high;
        if (!inside) from = lane;
        valid |= u32(inside) << lane;
        if (m.runs(lane) && !m.runs(from)) {
            --m.at;
            m.fail(lane, "reads lane %d, which has left", from);
        }
        out[lane] = value[from & 31];
    }
    set(m, m.reg<u32>(i.operands[0]), [&](int lane) { return out[lane]; });
    if (has_pred) set_pred(m, i.operands[1], valid);
    part(m);
}

void vote_ballot(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    check_mask(m, i.operands[2]);
    const u32 votes = m.pred(i.operands[1]) & m.active;
    set(m, m.reg<u32>(i.operands[0]), [=](int) { return votes; });
    part(m);
}
template <bool all>
void vote(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    check_mask(m, i.operands[2]);
    const u32 votes = m.pred(i.operands[1]) & m.active;
    set_pred(m, i.operands[0], (all ? votes == m.active : votes != 0) ? ~0u : 0);
    part(m);
}

// c (16 x 8) += a (16 x 8) b (8 x 8), spread over the lanes as the PTX manual draws it, with group =
// lane / 4 and t = lane % 4:
//     a: (group, t), (group + 8, t), (group, t + 4), (group + 8, t + 4)
//     b: (t, group), (t + 4, group)
//     c: (group, 2 t), (group, 2 t + 1), (group + 8, 2 t), (group + 8, 2 t + 1)
// Of a factor 10 bits of fraction count; sums are rounded toward zero.
void multiply_tiles(Machine& m, const Instruction& i) {
    if (!is_together(m)) return;
    auto tf32 = [&](int operand, int lane) {
        return double(float_of(m.reg<u32>(i.operands[operand])[lane] & ~0x1fffu));
    };
    double a[16][8], b[8][8];
    for (int lane = 0; lane < LANES; ++lane) {
        const int group = lane / 4, t = lane % 4;
        for (int part = 0; part < 4; ++part)
            a[group + 8 * (part % 2)][t + 4 * (part / 2)] = tf32(4 + part, lane);
        for (int part = 0; part < 2; ++part) b[t + 4 * part][group] = tf32(8 + part, lane);
    }
    float out[4][LANES];
    for (int part = 0; part < 4; ++part)
        for (int lane = 0; lane < LANES; ++lane) {
            const int row = lane / 4 + 8 * (part / 2), column = 2 * (lane % 4) + part % 2;
            double sum = m.reg<float>(i.operands[10 + part])[lane];
            for (int k = 0; k < 8; ++k) sum += a[row][k] * b[k][column];
            const float nearest = float(sum);
            out[part][lane] = std::fabs(double(nearest)) > std::fabs(sum)
                                  ? std::nextafterf(nearest, 0.f)
                                  : nearest;
        }
    for (int part = 0; part < 4; ++part)
        set(m, m.reg<float>(i.operands[part]), [&](int lane) { return out[part][lane]; });
    part(m);
}

// The warp stops; run_block carries out what the barrier does when all have stopped.
void sync_block(Machine& m, const Instruction&) {
    if (!is_together(m)) return;
    m.warp->at = --m.at;
    m.warp->at_barrier = true;
    m.active = 0;
    m.limit = 0;
}

// Memory

const char* space_of(bool is_global) { return is_global ? "global" : "shared"; }

// The range that holds what a lane reaches.
size_t find_range(Machine& m, u64 address, u32 bytes, int lane) {
    for (size_t i = 0; i < m.launch->range_count; ++i)
        if (address >= m.launch->ranges[i].begin && address + bytes <= m.launch->ranges[i].end)
            return i;
    --m.at;
    m.fail(lane, "reaches %u bytes of global memory at %#llx, outside of all arrays", bytes,
           (unsigned long long)address);
}

// Races: two threads touch the same word, one of them changes it, and no barrier between them says
// in which order. Only __syncwarp orders the memory of a warp's lanes; nothing orders blocks.

// What a warp compares touches with: the epochs of the last synchronisations.
struct Clock {
    u32 epoch, block_began, barrier, warp_synced, warp, at;

    explicit Clock(const Machine& m)
        : epoch(m.epoch), block_began(m.block_began), barrier(m.barrier),
          warp_synced(m.warp->epoch), warp(m.warp_number()), at(m.at - 1) {}

    bool is_same_warp(Touch touch) const { return touch.thread() / 32 == warp; }

    bool is_unordered(Touch touch, u32 lane) const {
        if (touch.epoch < block_began) return touch.epoch != 0;
        if (touch.who & Touch::BLOCKS_DID) return true;
        if (touch.epoch < barrier) return false;
        if (touch.who & Touch::WARPS_DID || !is_same_warp(touch)) return true;
        return touch.epoch >= warp_synced &&
               (touch.who & Touch::LANES_DID || touch.thread() != 32 * warp + lane);
    }
    Touch noted(Touch touch, u32 lane) const {
        const u32 thread = 32 * warp + lane, before = touch.who;
        const bool same_warp = is_same_warp(touch);
        const bool lanes = same_warp && touch.epoch >= warp_synced &&
                           (before & Touch::LANES_DID || touch.thread() != thread);
        const bool warps = touch.epoch >= barrier && (before & Touch::WARPS_DID || !same_warp);
        const bool blocks =
            before & Touch::BLOCKS_DID || (touch.epoch != 0 && touch.epoch < block_began);
        return {epoch, thread | at << 10 | u32(lanes) << 29 | u32(warps) << 30 | u32(blocks) << 31};
    }
    // Whether noting a touch of another lane again would change nothing.
    bool knows(Touch touch) const {
        return touch.epoch == epoch &&
               (touch.who & Touch::WARPS_DID || (touch.who & Touch::LANES_DID && is_same_warp(touch)));
    }
};

[[noreturn]] __attribute__((noinline)) void fail_race(Machine& m, Touch touch, int lane,
                                                      const char* now, const char* before,
                                                      const char* space, u64 number) {
    const u32 *b = m.launch->block, thread = touch.thread();
    const bool other = touch.epoch < m.block_began || touch.who & Touch::BLOCKS_DID;
    --m.at;
    m.fail(lane,
           "race: %s word %llu of %s memory, which thread (%u, %u, %u) of %s block %s at #%u, with "
           "no barrier in between",
           now, (unsigned long long)number, space, thread % b[0], thread / b[0] % b[1],
           thread / b[0] / b[1], other ? "another" : "the same", before, touch.at());
}

// A wavefront serves one word of each bank, to any number of lanes. Accesses of 8 or 16 bytes that
// do not fit one wavefront are split into half or quarter warps.
u32 wavefronts(Machine& m, const u32* addresses, u32 words, u32 parts, int begin, int end,
               u32* distinct) {
    uint8_t of_bank[LANES] = {}, most = 0;
    u32 found = 0;
    ++m.counts;
    for (int lane = begin; lane < end; ++lane) {
        if (!m.runs(lane)) continue;
        const u32 first = (addresses[lane] - SHARED_BASE) / 4;
        for (u32 word = first; word < first + words; ++word) {
            if (m.last_counted[word] == m.counts) continue;
            m.last_counted[word] = m.counts;
            ++found;
            most = std::max(most, ++of_bank[word % LANES]);
        }
    }
    if (distinct) *distinct = found;
    if (most <= 1 || parts == 1) return most;
    const int middle = (begin + end) / 2;
    return wavefronts(m, addresses, words, parts / 2, begin, middle, nullptr) +
           wavefronts(m, addresses, words, parts / 2, middle, end, nullptr);
}

void count_shared(Machine& m, const u32* addresses, u32 bytes, bool alike) {
    Site& site = m.launch->sites[m.at - 1];
    u32 distinct = bytes / 4;
    site.accesses += 1;
    site.wavefronts += alike ? 1 : wavefronts(m, addresses, bytes / 4, bytes / 4, 0, LANES, &distinct);
    site.ideal += (4 * distinct + 127) / 128;
}

void count_global(Machine& m, const u64* addresses, u32 bytes, bool writes) {
    std::pair<u64, Traffic*> sectors[LANES * 2];
    u32 count = 0;
    bool first = true;
    for (int lane = 0; lane < LANES; ++lane) {
        if (!m.runs(lane)) continue;
        Range& range = m.launch->ranges[find_range(m, addresses[lane], bytes, lane)];
        Traffic& traffic = writes ? range.written : range.read;
        traffic.accesses += first;
        first = false;
        traffic.bytes += bytes;
        for (u64 at = addresses[lane] / 32; at <= (addresses[lane] + bytes - 1) / 32; ++at)
            sectors[count++] = {at, &traffic};
    }
    std::sort(sectors, sectors + count);
    for (u32 i = 0; i < count; ++i)
        sectors[i].second->sectors += i == 0 || sectors[i].first != sectors[i - 1].first;
}

// Lanes that take no part reach where the first one does.
template <class Register, class Address>
inline void add_offset(const Machine& m, const Instruction& i, s32 operand, Address* out) {
    const Register* from = m.reg<Register>(operand);
    const Register offset = Register(s64(i.immediate)), some = from[m.first_lane()];
    const u32 running = m.running;
    for (int lane = 0; lane < LANES; ++lane)
        out[lane] = Address((running >> lane & 1 ? from[lane] : some) + offset);
}

// Where the lanes reach, all of it checked.
template <bool is_global, class Address>
void addresses_of(Machine& m, const Instruction& i, s32 operand, u32 bytes, Address* out) {
    if (is_global || i.used & WIDE_ADDRESS)
        add_offset<u64>(m, i, operand, out);
    else
        add_offset<u32>(m, i, operand, out);
    Address low = ~Address(0), high = 0, all = 0;
    for (int lane = 0; lane < LANES; ++lane) {
        low = std::min(low, out[lane]);
        high = std::max(high, out[lane]);
        all |= out[lane];
    }
    auto fail_lane = [&](auto bad, const char* what) {
        for (int lane = 0; lane < LANES; ++lane)
            if (m.runs(lane) && bad(out[lane])) {
                --m.at;
                m.fail(lane, "%s access of %u bytes of %s memory at byte %lld", what, bytes,
                       space_of(is_global), (long long)(is_global ? out[lane] : out[lane] - SHARED_BASE));
            }
    };
    if (all & (bytes - 1)) fail_lane([=](Address at) { return at & (bytes - 1); }, "misaligned");
    if constexpr (is_global) {
        size_t& last = m.ranges[m.at - 1];
        if (last < m.launch->range_count) {
            const Range& range = m.launch->ranges[last];
            if (low >= range.begin && high + bytes <= range.end) return;
        }
        for (int lane = 0; lane < LANES; ++lane)
            if (m.runs(lane)) last = find_range(m, out[lane], bytes, lane);
    } else {
        const u64 end = SHARED_BASE + m.launch->shared_bytes;
        auto outside = [=](Address at) { return at < SHARED_BASE || u64(at) + bytes > end; };
        if (outside(low) || outside(high)) fail_lane(outside, "out-of-bounds");
    }
}

template <bool is_global, class Address>
char* host(Machine& m, Address at) {
    if constexpr (is_global) return reinterpret_cast<char*>(at);
    return reinterpret_cast<char*>(m.shared.data()) + (at - SHARED_BASE);
}

// The words behind an address, and the address of the first.
template <bool is_global, class Address>
std::pair<Word*, u64> words_at(Machine& m, Address address, u32 bytes, int lane) {
    if constexpr (is_global) {
        const size_t number = find_range(m, address, bytes, lane);
        const Range& range = m.launch->ranges[number];
        std::vector<Word>& words = m.global_words[number];
        if (words.empty()) words.resize((range.end - range.begin) / 4 + 2);
        return {words.data(), range.begin & ~u64(3)};
    }
    return {m.shared_words.data(), SHARED_BASE};
}

template <bool is_global, class Address>
void watch_read(Machine& m, const Instruction& i, const Address* addresses, u32 bytes, bool alike) {
    if constexpr (is_global)
        count_global(m, addresses, bytes, false);
    else
        count_shared(m, addresses, bytes, alike);
    // Where all lanes read the same, two of them have seen what there is to see.
    u32 lanes = m.running;
    if (alike) lanes = (lanes & -lanes) | 1u << (31 - __builtin_clz(lanes));
    const Clock clock(m);
    const u32 count = (bytes + 3) / 4;
    for (; lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        const auto [words, base] = words_at<is_global>(m, addresses[lane], bytes, lane);
        const u64 first = (addresses[lane] - base) / 4;
        for (u32 n = 0; n < count; ++n) {
            Word& word = words[first + n];
            if (!(i.used >> n & 1)) continue;
            if (clock.is_unordered(word.written, lane))
                fail_race(m, word.written, lane, "reads", "writes", space_of(is_global), first + n);
            if (!clock.knows(word.read)) word.read = clock.noted(word.read, lane);
        }
    }
}

// One lane after another, for each to see what those before it have changed.
template <bool is_global, class T, class Address>
void watched_write(Machine& m, const Instruction& i, const Address* addresses, T* const* values) {
    const u32 bytes = u32(sizeof(T)) * i.count;
    if constexpr (is_global)
        count_global(m, addresses, bytes, true);
    else
        count_shared(m, addresses, bytes, false);
    const Clock clock(m);
    for (int lane = 0; lane < LANES; ++lane) {
        if (!m.runs(lane)) continue;
        const auto [words, base] = words_at<is_global>(m, addresses[lane], bytes, lane);
        for (s32 n = 0; n < i.count; ++n) {
            const u64 offset = addresses[lane] - base + n * sizeof(T);
            char* at = host<is_global>(m, addresses[lane]) + n * sizeof(T);
            // Lanes that hold the same number may write it together.
            if (!memcmp(at, &values[n][lane], sizeof(T))) continue;
            for (u64 number = offset / 4; number <= (offset + sizeof(T) - 1) / 4; ++number) {
                Word& word = words[number];
                if (clock.is_unordered(word.written, lane))
                    fail_race(m, word.written, lane, "writes", "writes", space_of(is_global), number);
                if (clock.is_unordered(word.read, lane))
                    fail_race(m, word.read, lane, "writes", "reads", space_of(is_global), number);
                word.written = clock.noted(word.written, lane);
            }
            memcpy(at, &values[n][lane], sizeof(T));
        }
    }
}

// What registers get is a D.
template <bool is_global, class T, class D = T>
void load(Machine& m, const Instruction& i) {
    using Address = std::conditional_t<is_global, u64, u32>;
    Address at[LANES];
    addresses_of<is_global>(m, i, i.operands[i.count], sizeof(T) * i.count, at);
    Address differences = 0;
    for (int lane = 1; lane < LANES; ++lane) differences |= at[lane] ^ at[0];
    const bool alike = differences == 0;
    watch_read<is_global>(m, i, at, sizeof(T) * i.count, alike);
    T values[4][LANES];
    if (alike) {
        T one[4];
        memcpy(one, host<is_global>(m, at[0]), sizeof(T) * i.count);
        for (s32 n = 0; n < i.count; ++n)
            for (int lane = 0; lane < LANES; ++lane) values[n][lane] = one[n];
    } else if (i.count == 1) {
        for (int lane = 0; lane < LANES; ++lane)
            memcpy(&values[0][lane], host<is_global>(m, at[lane]), sizeof(T));
    } else if (i.count == 2) {
        for (int lane = 0; lane < LANES; ++lane) {
            T one[2];
            memcpy(one, host<is_global>(m, at[lane]), sizeof one);
            values[0][lane] = one[0], values[1][lane] = one[1];
        }
    } else {
        for (int lane = 0; lane < LANES; ++lane) {
            T one[4];
            memcpy(one, host<is_global>(m, at[lane]), sizeof one);
            for (int n = 0; n < 4; ++n) values[n][lane] = one[n];
        }
    }
    for (s32 n = 0; n < i.count; ++n) {
        const T* from = values[n];
        set(m, m.reg<D>(i.operands[n]), [=](int lane) { return D(from[lane]); });
    }
}

template <bool is_global, class T>
void store(Machine& m, const Instruction& i) {
    using Address = std::conditional_t<is_global, u64, u32>;
    Address at[LANES];
    addresses_of<is_global>(m, i, i.operands[0], sizeof(T) * i.count, at);
    T* values[4];
    for (s32 n = 0; n < i.count; ++n) values[n] = m.reg<T>(i.operands[1 + n]);
    for (s32 n = 0; is_global && n < i.count; ++n) check_written(m, values[n]);
    watched_write<is_global>(m, i, at, values);
}

template <class T, class D = T>
void load_parameter(Machine& m, const Instruction& i) {
    const u64 at = m.reg<u64>(i.operands[i.count])[m.first_lane()] + s64(i.immediate);
    if (at + i.count * sizeof(T) > m.launch->parameter_bytes) {
        --m.at;
        m.fail(m.first_lane(), "reads a parameter that is not there");
    }
    for (s32 n = 0; n < i.count; ++n) {
        T value;
        memcpy(&value, m.launch->parameters + at + n * sizeof(T), sizeof(T));
        set(m, m.reg<D>(i.operands[n]), [=](int) { return D(value); });
    }
}

// The instructions

#define MAP1(name, d, a, expression) \
    {name, [](Machine& m, const Instruction& i) { map1<d, a>(m, i, [](a x) { return expression; }); }}
#define MAP2(name, d, a, expression)              \
    {name, [](Machine& m, const Instruction& i) { \
         map2<d, a>(m, i, [](a x, a y) { return expression; }); }}
#define MAP3(name, d, a, expression)              \
    {name, [](Machine& m, const Instruction& i) { \
         map3<d, a>(m, i, [](a x, a y, d z) { return expression; }); }}
#define EXTREME(name, a, expression)              \
    {name, [](Machine& m, const Instruction& i) { \
         check_written(m, m.reg<a>(i.operands[1])); \
         check_written(m, m.reg<a>(i.operands[2])); \
         map2<a, a>(m, i, [](a x, a y) { return expression; }); }}
#define SHIFT(name, a, expression)                \
    {name, [](Machine& m, const Instruction& i) { \
         shift<a>(m, i, [](a x, u32 n) { return a(expression); }); }}
#define COMPARE(name, a, expression)              \
    {name, [](Machine& m, const Instruction& i) { \
         compare<a>(m, i, [](a x, a y) { return expression; }); }}
#define PRED(name, expression)                    \
    {name, [](Machine& m, const Instruction& i) { \
         [[maybe_unused]] const u32 x = m.pred(i.operands[1]), y = m.pred(i.operands[2]); \
         set_pred(m, i.operands[0], expression); }}
#define INTEGERS(suffix, a)                                                                      \
    EXTREME("min." suffix, a, smaller(x, y)), EXTREME("max." suffix, a, larger(x, y)),           \
    MAP2("div." suffix, a, a, divide(x, y)),                                                     \
    MAP2("rem." suffix, a, a, a(x - divide(x, y) * y)),                                          \
    COMPARE("setp.lt." suffix, a, x < y), COMPARE("setp.le." suffix, a, x <= y),                 \
    COMPARE("setp.gt." suffix, a, x > y), COMPARE("setp.ge." suffix, a, x >= y),                 \
    COMPARE("setp.eq." suffix, a, x == y), COMPARE("setp.ne." suffix, a, x != y)
#define BITS(bits, a, s)                                                                         \
    MAP2("add." bits, a, a, a(x + y)), MAP2("sub." bits, a, a, a(x - y)),                        \
    MAP2("mul.lo." bits, a, a, a(x * y)), MAP3("mad.lo." bits, a, a, a(x * y + z)),              \
    MAP1("mov." bits, a, a, x), MAP2("and.b" bits, a, a, x & y), MAP2("or.b" bits, a, a, x | y), \
    MAP2("xor.b" bits, a, a, x ^ y), MAP1("not.b" bits, a, a, a(~x)),                            \
    MAP1("neg.s" bits, a, a, a(0 - x)), {"selp." bits, select<a>},                               \
    SHIFT("shl." bits, a, n >= 8 * sizeof(a) ? 0 : x << n),                                      \
    SHIFT("shr.u" bits, a, n >= 8 * sizeof(a) ? 0 : x >> n),                                     \
    SHIFT("shr.s" bits, s, x >> std::min(n, u32(8 * sizeof(s) - 1))),                            \
    COMPARE("setp.eq.b" bits, a, x == y), COMPARE("setp.ne.b" bits, a, x != y),                  \
    {"ld.global." bits, load<true, a>}, {"st.global." bits, store<true, a>},                     \
    {"ld.param." bits, load_parameter<a>}
#define FLOATS(suffix, a)                                                                        \
    MAP2("add." suffix, a, a, x + y), MAP2("sub." suffix, a, a, x - y),                          \
    MAP2("mul." suffix, a, a, x * y), MAP3("fma.rn." suffix, a, a, std::fma(x, y, z)),           \
    MAP1("neg." suffix, a, a, -flushed(x)), MAP1("abs." suffix, a, a, std::fabs(flushed(x))),    \
    EXTREME("min." suffix, a, smaller(flushed(x), flushed(y))),                                  \
    EXTREME("max." suffix, a, larger(flushed(x), flushed(y))),                                   \
    MAP2("div.rn." suffix, a, a, x / y), MAP1("sqrt.rn." suffix, a, a, std::sqrt(x)),            \
    COMPARE("setp.lt." suffix, a, x < y), COMPARE("setp.le." suffix, a, x <= y),                 \
    COMPARE("setp.gt." suffix, a, x > y), COMPARE("setp.ge." suffix, a, x >= y),                 \
    COMPARE("setp.eq." suffix, a, x == y), COMPARE("setp.ne." suffix, a, x < y || x > y),        \
    COMPARE("setp.ltu." suffix, a, !(x >= y)), COMPARE("setp.leu." suffix, a, !(x > y)),         \
    COMPARE("setp.gtu." suffix, a, !(x <= y)), COMPARE("setp.geu." suffix, a, !(x < y)),         \
    COMPARE("setp.equ." suffix, a, !(x < y || x > y)), COMPARE("setp.neu." suffix, a, x != y),   \
    COMPARE("setp.num." suffix, a, x == x && y == y),                                            \
    COMPARE("setp.nan." suffix, a, x != x || y != y)

struct Entry {
    const char* name;
    Handler handler;
};

const Entry entries[] = {
    BITS("16", u16, s16), BITS("32", u32, s32), BITS("64", u64, s64),
    INTEGERS("s16", s16), INTEGERS("u16", u16), INTEGERS("s32", s32), INTEGERS("u32", u32),
    INTEGERS("s64", s64), INTEGERS("u64", u64),
    FLOATS("ftz.f32", float), FLOATS("f64", double),
    {"ld.shared.32", load<false, u32>}, {"st.shared.32", store<false, u32>},
    {"ld.shared.32.as.s64", load<false, s32, s64>}, {"ld.global.32.as.s64", load<true, s32, s64>},
    {"ld.shared.32.as.u64", load<false, u32, u64>}, {"ld.global.32.as.u64", load<true, u32, u64>},
    {"ld.param.32.as.s64", load_parameter<s32, s64>},
    {"ld.param.32.as.u64", load_parameter<u32, u64>},
    {"ld.shared.64", load<false, u64>}, {"st.shared.64", store<false, u64>},
    MAP2("mul.hi.s32", s32, s32, s32(s64(x) * y >> 32)),
    MAP2("mul.hi.u32", u32, u32, u32(u64(x) * y >> 32)),
    MAP2("mul.wide.s32", s64, s32, s64(x) * y), MAP2("mul.wide.u32", u64, u32, u64(x) * y),
    MAP2("mul.wide.s16", s32, s16, s32(x) * y), MAP2("mul.wide.u16", u32, u16, u32(x) * y),
    MAP2("div.approx.ftz.f32", float, float, approximate(x / y, bits_of(x) ^ bits_of(y))),
    MAP2("div.full.ftz.f32", float, float, approximate(x / y, bits_of(x) ^ bits_of(y))),
    MAP1("rsqrt.approx.ftz.f32", float, float,
         approximate(float(1 / std::sqrt(double(x))), bits_of(x))),
    MAP1("sqrt.approx.ftz.f32", float, float, approximate(std::sqrt(x), bits_of(x))),
    MAP1("cvt.s64.s32", s64, s32, x), MAP1("cvt.u64.u32", u64, u32, x),
    MAP1("cvt.u32.u64", u32, u64, u32(x)), MAP1("cvt.u32.u16", u32, u16, x),
    MAP1("cvt.s32.s16", s32, s16, x), MAP1("cvt.u16.u32", u16, u32, u16(x)),
    MAP1("cvt.rn.f32.s32", float, s32, float(x)), MAP1("cvt.rn.f32.u32", float, u32, float(x)),
    MAP1("cvt.rn.f64.s32", double, s32, x), MAP1("cvt.rn.f32.s64", float, s64, float(x)),
    MAP1("cvt.rn.f32.u64", float, u64, float(x)),
    MAP1("cvt.rzi.ftz.s32.f32", s32, float, to_s32(x)), MAP1("cvt.f32.f16", float, u16, half_to_float(x)),
    MAP1("cvt.ftz.f64.f32", double, float, x), MAP1("cvt.rn.ftz.f32.f64", float, double, float(x)),
    MAP1("popc.b32", u32, u32, u32(__builtin_popcount(x))), MAP1("brev.b32", u32, u32, reversed(x)),
    MAP1("clz.b32", u32, u32, x ? u32(__builtin_clz(x)) : 32),
    MAP1("bfind.shiftamt.u32", u32, u32, x ? u32(__builtin_clz(x)) : ~0u),
    {"bfi.b32", insert<u32>}, {"bfi.b64", insert<u64>},
    {"pack.64", [](Machine& m, const Instruction& i) {
         map2<u64, u32>(m, i, [](u64 x, u64 y) { return x | y << 32; }); }},
    {"unpack.64", [](Machine& m, const Instruction& i) {
         const u64* a = m.reg<u64>(i.operands[2]);
         set(m, m.reg<u32>(i.operands[0]), [=](int lane) { return u32(a[lane]); });
         set(m, m.reg<u32>(i.operands[1]), [=](int lane) { return u32(a[lane] >> 32); }); }},
    PRED("mov.pred", x), PRED("not.pred", ~x), PRED("and.pred", x & y), PRED("or.pred", x | y),
    PRED("xor.pred", x ^ y),
    {"bra", branch}, {"ret", leave}, {"bar.warp.sync", sync_warp},
    {"shfl.sync.bfly.b32", shuffle<BFLY>}, {"shfl.sync.down.b32", shuffle<DOWN>},
    {"shfl.sync.up.b32", shuffle<UP>}, {"shfl.sync.idx.b32", shuffle<IDX>},
    {"vote.sync.any.pred", vote<false>}, {"vote.sync.all.pred", vote<true>},
    {"vote.sync.ballot.b32", vote_ballot},
    {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", multiply_tiles},
    {"bar.sync", sync_block}, {"bar.red.popc.u32", sync_block}, {"bar.red.or.pred", sync_block},
    {"bar.red.and.pred", sync_block},
};
constexpr size_t ENTRY_COUNT = sizeof entries / sizeof *entries;

// Running

// Makes a group run: the one furthest behind, of those that are not held back. Returns false when
// the warp is at a barrier or has left.
bool next_group(Machine& m) {
    std::vector<Group>& groups = m.warp->groups;
    if (groups.empty() || m.warp->at_barrier) return false;
    const Group* next = nullptr;
    for (const Group& group : groups)
        if (!group.waits && (!next || std::make_pair(group.held_back, group.at) <
                                          std::make_pair(next->held_back, next->at)))
            next = &group;
    const Group chosen = next ? *next : Group{groups[0].at, 0, false, true};
    m.at = chosen.at;
    m.held_back = chosen.held_back;
    m.active = 0;
    auto joins = [&](const Group& group) {
        if (group.at != chosen.at || group.waits != chosen.waits) return false;
        if (!chosen.waits && group.held_back != chosen.held_back) return false;
        m.active |= group.lanes;
        return true;
    };
    groups.erase(std::remove_if(groups.begin(), groups.end(), joins), groups.end());
    if (!next && m.active != m.warp->live) {
        const Group& other = groups[0];
        m.fail(__builtin_ctz(m.active),
               "divergent warp operation: waits here, but lane %d waits at #%u",
               __builtin_ctz(other.lanes), other.at);
    }
    look_for_others(m);
    return true;
}

void run_warp(Machine& m, Warp& warp) {
    m.warp = &warp;
    m.base = warp.registers;
    const Instruction* code = m.launch->code;
    while (next_group(m)) {
        do {
            const Instruction& i = code[m.at++];
            m.running = m.active;
            if (i.guard >= 0) {
                const u32 holds = m.pred(i.guard >> 1);
                m.running &= i.guard & 1 ? ~holds : holds;
                if (m.running == 0) continue;
            }
            entries[i.operation].handler(m, i);
        } while (m.at < m.limit);
        if (m.active) warp.groups.push_back({m.at, m.active, m.held_back, false});
    }
}

// All warps have stopped: are they at the same barrier? If so, carries out what it does.
bool pass_barrier(Machine& m) {
    const Warp* first = nullptr;
    for (const Warp& warp : m.warps)
        if (warp.at_barrier) first = &warp;
    if (!first) return false;
    const Instruction& barrier = m.launch->code[first->at];
    const char* name = entries[barrier.operation].name;
    const bool votes = !strncmp(name, "bar.red", 7);
    u32 count = 0;
    for (Warp& warp : m.warps) {
        const u32 number = u32(&warp - m.warps.data());
        const u32 size = std::min(m.threads - 32 * number, 32u);
        const u32 existing = size == 32 ? ~0u : (1u << size) - 1;
        m.warp = const_cast<Warp*>(first);
        m.at = first->at;
        if (warp.live != existing)
            m.fail(0, "divergent barrier: waits here, but thread %u has left",
                   32 * number + __builtin_ctz(existing & ~warp.live));
        if (warp.at != first->at)
            m.fail(0, "divergent barrier: waits here, but thread %u waits at #%u", 32 * number,
                   warp.at);
        m.base = warp.registers;
        if (votes) count += __builtin_popcount(m.pred(barrier.operands[1]) & warp.live);
    }
    m.barrier = ++m.epoch;
    for (Warp& warp : m.warps) {
        warp.at_barrier = false;
        warp.epoch = m.epoch;
        m.warp = &warp;
        m.base = warp.registers;
        m.running = warp.live;
        if (!strcmp(name, "bar.red.popc.u32"))
            set(m, m.reg<u32>(barrier.operands[0]), [=](int) { return count; });
        else if (votes)
            set_pred(m, barrier.operands[0],
                     (strstr(name, ".or.") ? count > 0 : count == m.threads) ? ~0u : 0);
        m.at = first->at + 1;
        m.active = warp.live;
        warp.groups.clear();
        m.held_back = false;
        part(m);
        warp.groups.push_back({m.at, m.active, false, false});
    }
    return true;
}

void order(Machine& m, std::vector<u32>& numbers) {
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = u32(i);
    if (m.launch->order == REVERSE) std::reverse(numbers.begin(), numbers.end());
    if (m.launch->order == SHUFFLE)
        for (size_t i = numbers.size(); i > 1; --i)
            std::swap(numbers[i - 1], numbers[m.next_random() % i]);
}

void run_block(Machine& m) {
    const Launch& launch = *m.launch;
    std::fill(m.registers.begin(), m.registers.end(), char(0xff));
    std::fill(m.shared.begin(), m.shared.end(), UNWRITTEN);
    std::fill(m.shared_words.begin(), m.shared_words.end(), Word());
    m.block_began = m.barrier = ++m.epoch;
    for (Warp& warp : m.warps) {
        const u32 number = u32(&warp - m.warps.data());
        const u32 size = std::min(m.threads - 32 * number, 32u);
        warp.live = size == 32 ? ~0u : (1u << size) - 1;
        warp.epoch = m.epoch;
        warp.at_barrier = false;
        warp.at = 0;
        warp.registers = m.registers.data() + number * launch.register_bytes;
        u32* special = reinterpret_cast<u32*>(warp.registers);
        for (u32 lane = 0; lane < u32(LANES); ++lane) {
            const u32 thread = 32 * number + lane, *b = launch.block;
            const u32 index[3] = {thread % b[0], thread / b[0] % b[1], thread / b[0] / b[1]};
            for (u32 axis = 0; axis < 3; ++axis) {
                special[32 * axis + lane] = index[axis];
                special[32 * (3 + axis) + lane] = m.block[axis];
                special[32 * (6 + axis) + lane] = launch.block[axis];
                special[32 * (9 + axis) + lane] = launch.grid[axis];
            }
        }
        m.warp = &warp;
        m.at = 0;
        m.active = warp.live;
        warp.groups.clear();
        m.held_back = false;
        part(m);
        warp.groups.push_back({m.at, m.active, false, false});
    }
    std::vector<u32> numbers(m.warps.size());
    do {
        order(m, numbers);
        for (u32 number : numbers) run_warp(m, m.warps[number]);
    } while (pass_barrier(m));
}

}  // namespace

extern "C" {

// Returns the number of an operation, or -1.
int machine_operation(const char* name) {
    for (size_t i = 0; i < ENTRY_COUNT; ++i)
        if (!strcmp(entries[i].name, name)) return int(i);
    return -1;
}

// Runs a launch. Returns whether it failed, having written why.
int machine_run(const Launch* launch) {
    Machine m{};
    m.launch = launch;
    m.threads = launch->block[0] * launch->block[1] * launch->block[2];
    m.warps.resize((m.threads + 31) / 32);
    m.registers.resize(m.warps.size() * launch->register_bytes);
    m.shared.resize((launch->shared_bytes + 3) / 4);
    m.random = launch->seed;
    m.ranges.assign(launch->code_size, 0);
    m.shared_words.resize(m.shared.size());
    m.last_counted.resize(m.shared.size());
    m.global_words.resize(launch->range_count);
    std::vector<u32> numbers(size_t(launch->grid[0]) * launch->grid[1] * launch->grid[2]);
    order(m, numbers);
#ifdef __SSE__
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);  // flush subnormal numbers to zero, as results and as operands
#endif
    int failed = 0;
    try {
        for (u32 number : numbers) {
            m.block[0] = number % launch->grid[0];
            m.block[1] = number / launch->grid[0] % launch->grid[1];
            m.block[2] = number / launch->grid[0] / launch->grid[1];
            run_block(m);
        }
    } catch (const Failure&) {
        failed = 1;
    }
#ifdef __SSE__
    _mm_setcsr(before);
#endif
    return failed;
}
}
