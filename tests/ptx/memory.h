// Memory: what may be reached, who has been there before, and what it costs.
#pragma once
#include "machine.h"

namespace {

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

}  // namespace
