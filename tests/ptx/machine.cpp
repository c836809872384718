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
#include "instructions.h"
#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace {

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
    // What comes to lie here next must not look unwritten.
    std::fill(m.shared.begin(), m.shared.end(), 0);
    std::fill(m.registers.begin(), m.registers.end(), 0);
#ifdef __SSE__
    _mm_setcsr(before);
#endif
    return failed;
}
}
