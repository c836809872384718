// Pointers that count: global traffic in bytes and 32-byte sectors, shared memory in wavefronts.
// They also look for races (races.h).
//
// A GPU executes an access for the lanes of a warp at once; here they come one after another. They
// are put together again by the place they come from and by how often the lane has been there
// since all lanes of the warp were last together.
#pragma once

#include <algorithm>
#include <string>
#include <unordered_map>

extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));  // of this library

#include "races.h"

namespace cuda_on_cpu {
namespace {

enum class Space { GLOBAL, SHARED };

constexpr unsigned BANKS = 32, WORD_BYTES = 4, WAVEFRONT_BYTES = 128, SECTOR_BYTES = 32;

// One access of a warp: the address of each lane that takes part.
struct WarpAccess {
    unsigned lanes = 0;
    uintptr_t addresses[LANES];
};

// A place in the kernel's machine code, and what its accesses to shared memory have cost.
struct AccessSite {
    Space space;
    bool writes;
    unsigned bytes;
    unsigned seen[LANES] = {};  // accesses of each lane since the warp was together
    std::vector<WarpAccess> pending;
    long long accesses = 0, wavefronts = 0, ideal = 0;
};

struct Traffic {
    long long accesses = 0, bytes = 0, sectors = 0;
};

struct Range {
    std::string name;
    uintptr_t begin, end;
    Traffic read, written;
};

struct Counter {
    std::unordered_map<uintptr_t, AccessSite> sites;
    std::vector<AccessSite*> touched;
    std::vector<Range> ranges;
    Range other = {"other", 0, 0, {}, {}};
    std::string report;
};

Counter counter;

// Sorts and drops duplicates; returns how many are left.
inline unsigned distinct(uintptr_t* values, unsigned count) {
    std::sort(values, values + count);
    return std::unique(values, values + count) - values;
}

// The distinct words that the lanes from `begin` on reach.
inline unsigned words_of(const WarpAccess& access, unsigned bytes, unsigned begin, unsigned end,
                         uintptr_t* words) {
    const uintptr_t base = reinterpret_cast<uintptr_t>(block.shared_memory);
    unsigned count = 0;
    for (unsigned lane = begin; lane < end; ++lane)
        if (access.lanes >> lane & 1)
            for (unsigned byte = 0; byte < bytes; byte += WORD_BYTES)
                words[count++] = (access.addresses[lane] - base + byte) / WORD_BYTES;
    return distinct(words, count);
}

// A wavefront serves one word of each bank, to any number of lanes. Accesses of 8 or 16 bytes that
// do not fit one wavefront are split into half or quarter warps.
unsigned wavefronts(const WarpAccess& access, unsigned bytes, unsigned parts, unsigned begin = 0,
                    unsigned end = LANES) {
    uintptr_t words[LANES * 4];
    const unsigned count = words_of(access, bytes, begin, end, words);
    unsigned of_bank[BANKS] = {}, most = 0;
    for (unsigned i = 0; i < count; ++i) most = std::max(most, ++of_bank[words[i] % BANKS]);
    if (most <= 1 || parts == 1) return most;
    const unsigned middle = (begin + end) / 2;
    return wavefronts(access, bytes, parts / 2, begin, middle) +
           wavefronts(access, bytes, parts / 2, middle, end);
}

void settle_shared(AccessSite& site, const WarpAccess& access) {
    uintptr_t words[LANES * 4];
    const unsigned count = words_of(access, site.bytes, 0, LANES, words);
    site.accesses += 1;
    site.wavefronts += wavefronts(access, site.bytes, std::max(1u, site.bytes / WORD_BYTES));
    site.ideal += (count * WORD_BYTES + WAVEFRONT_BYTES - 1) / WAVEFRONT_BYTES;
}

inline Traffic& traffic_at(uintptr_t address, bool written) {
    for (Range& range : counter.ranges)
        if (range.begin <= address && address < range.end)
            return written ? range.written : range.read;
    return written ? counter.other.written : counter.other.read;
}

void settle_global(const AccessSite& site, const WarpAccess& access) {
    uintptr_t sectors[LANES * 2];
    Traffic* of_lane[LANES * 2];
    unsigned count = 0;
    Traffic* first = nullptr;
    for (unsigned lane = 0; lane < LANES; ++lane) {
        if (!(access.lanes >> lane & 1)) continue;
        const uintptr_t address = access.addresses[lane];
        Traffic& traffic = traffic_at(address, site.writes);
        if (!first) first = &traffic;
        traffic.bytes += site.bytes;
        const uintptr_t last = (address + site.bytes - 1) / SECTOR_BYTES;
        for (uintptr_t sector = address / SECTOR_BYTES; sector <= last; ++sector) {
            const uintptr_t* end = sectors + count;
            if (std::find<const uintptr_t*>(sectors, end, sector) != end) continue;
            sectors[count] = sector;
            of_lane[count++] = &traffic;
        }
    }
    first->accesses += 1;
    for (unsigned i = 0; i < count; ++i) of_lane[i]->sectors += 1;
}

inline void warp_is_together() {
    for (AccessSite* site : counter.touched) {
        for (const WarpAccess& access : site->pending)
            if (site->space == Space::SHARED)
                settle_shared(*site, access);
            else
                settle_global(*site, access);
        site->pending.clear();
        std::fill(std::begin(site->seen), std::end(site->seen), 0u);
    }
    counter.touched.clear();
}

// Notes an access of the current thread; `value` is what will be written, or null. The place it
// comes from is the one it returns to, so it must neither be inlined nor copied.
__attribute__((noipa)) void record(const void* address, unsigned bytes, Space space,
                                   const void* value) {
    const uintptr_t from = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    if (space == Space::SHARED) check_shared(address, bytes, value, from);
    AccessSite& site = counter.sites[from];
    if (site.pending.empty()) {
        site.space = space;
        site.writes = value != nullptr;
        site.bytes = bytes;
        counter.touched.push_back(&site);
    }
    const unsigned lane = block.current->lane, number = site.seen[lane]++;
    if (number == site.pending.size()) site.pending.emplace_back();
    WarpAccess& access = site.pending[number];
    access.lanes |= 1u << lane;
    access.addresses[lane] = reinterpret_cast<uintptr_t>(address);
}

// What p[i] gives: the value where one is read, the place where one is written. It cannot be kept:
// `auto x = p[i]` would read when x is used, so x cannot be used.
template <class T, Space space>
class Reference {
    T* raw;
    using Value = std::remove_const_t<T>;

    __forceinline__ Value read() const {
        record(raw, sizeof(T), space, nullptr);
        return *raw;
    }
    __forceinline__ Value write(Value value) const {
        record(raw, sizeof(T), space, &value);
        return *raw = value;
    }

public:
    explicit Reference(T* raw) : raw(raw) {}
    Reference(const Reference&) = default;
    __forceinline__ operator Value() const&& { return read(); }
    __forceinline__ Value operator=(Value value) const&& { return write(value); }
    __forceinline__ Value operator=(const Reference& other) const&& { return write(other.read()); }
    __forceinline__ Value operator+=(Value value) const&& { return write(read() + value); }
    __forceinline__ Value operator-=(Value value) const&& { return write(read() - value); }
    __forceinline__ Value operator*=(Value value) const&& { return write(read() * value); }
    __forceinline__ Value operator/=(Value value) const&& { return write(read() / value); }
};

// A pointer into global or shared memory.
template <class T, Space space>
class Pointer {
    T* raw = nullptr;

public:
    Pointer() = default;
    Pointer(std::nullptr_t) {}
    template <class U = T, Space here = space, std::enable_if_t<here == Space::GLOBAL, U*> = nullptr>
    Pointer(T* raw) : raw(raw) {}
    template <class U = T, std::enable_if_t<std::is_const_v<U>, U*> = nullptr>
    Pointer(const Pointer<std::remove_const_t<T>, space>& other) : raw(other.address()) {}
    static Pointer at(T* raw) {
        Pointer pointer;
        pointer.raw = raw;
        return pointer;
    }
    T* address() const { return raw; }

    __forceinline__ Reference<T, space> operator[](long long i) const {
        return Reference<T, space>(raw + i);
    }
    __forceinline__ Reference<T, space> operator*() const { return Reference<T, space>(raw); }
    __forceinline__ Pointer operator+(long long n) const { return at(raw + n); }
    __forceinline__ Pointer operator-(long long n) const { return at(raw - n); }
    __forceinline__ Pointer& operator+=(long long n) { return *this = at(raw + n); }
    __forceinline__ Pointer& operator-=(long long n) { return *this = at(raw - n); }
    __forceinline__ Pointer& operator++() { return *this += 1; }
    __forceinline__ Pointer& operator--() { return *this -= 1; }
    __forceinline__ long long operator-(Pointer other) const { return raw - other.raw; }
    __forceinline__ bool operator==(Pointer other) const { return raw == other.raw; }
    __forceinline__ bool operator!=(Pointer other) const { return raw != other.raw; }
    __forceinline__ bool operator<(Pointer other) const { return raw < other.raw; }
    __forceinline__ explicit operator bool() const { return raw != nullptr; }

    // Several neighbours as one access.
    template <class Vector>
    __forceinline__ Vector load(Place place) const {
        record(raw, sizeof(Vector), space, nullptr);
        return *aligned<Vector>(raw, place);
    }
    template <class Vector>
    __forceinline__ void store(Vector value, Place place) const {
        record(raw, sizeof(Vector), space, &value);
        *aligned<Vector>(raw, place) = value;
    }
};

// One line for each range and each place: kind, name or address, three numbers.
const char* describe_counts() {
    auto line = [](const char* kind, const std::string& key, long long a, long long b, long long c) {
        counter.report += std::string(kind) + '\t' + key + '\t' + std::to_string(a) + '\t' +
                          std::to_string(b) + '\t' + std::to_string(c) + '\n';
    };
    counter.report.clear();
    auto describe = [&](const Range& range) {
        const Traffic &read = range.read, &written = range.written;
        line("read", range.name, read.accesses, read.bytes, read.sectors);
        line("write", range.name, written.accesses, written.bytes, written.sectors);
    };
    for (const Range& range : counter.ranges) describe(range);
    describe(counter.other);
    const uintptr_t base = reinterpret_cast<uintptr_t>(__ehdr_start);
    for (const auto& [address, site] : counter.sites)
        if (site.space == Space::SHARED)
            line("shared", std::to_string(address - 1 - base), site.accesses, site.wavefronts,
                 site.ideal);
    return counter.report.c_str();
}

}  // namespace
}  // namespace cuda_on_cpu

template <class T>
using Global = cuda_on_cpu::Pointer<T, cuda_on_cpu::Space::GLOBAL>;
template <class T>
using Shared = cuda_on_cpu::Pointer<T, cuda_on_cpu::Space::SHARED>;

__forceinline__ float4 load4(Global<const float> p, Place place = Place::here()) {
    return p.load<float4>(place);
}
__forceinline__ float4 load4(Shared<const float> p, Place place = Place::here()) {
    return p.load<float4>(place);
}
__forceinline__ ushort4 load4(Global<const unsigned short> p, Place place = Place::here()) {
    return p.load<ushort4>(place);
}
__forceinline__ float2 load2(Global<const float> p, Place place = Place::here()) {
    return p.load<float2>(place);
}
__forceinline__ float2 load2(Shared<const float> p, Place place = Place::here()) {
    return p.load<float2>(place);
}
__forceinline__ void store4(Global<float> p, float4 v, Place place = Place::here()) {
    p.store(v, place);
}
__forceinline__ void store4(Shared<float> p, float4 v, Place place = Place::here()) {
    p.store(v, place);
}
template <class T>
__forceinline__ std::remove_const_t<T> __ldg(Global<T> p) {
    return *p;
}
template <class T>
__forceinline__ Shared<T> shared_as(Shared<float> p) {
    return Shared<T>::at(reinterpret_cast<T*>(p.address()));
}

#define SHARED_MEMORY(name) \
    Shared<float> name = Shared<float>::at(static_cast<float*>(cuda_on_cpu::block.shared_memory))

// What build.py calls.

extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_start_counting() {
    using namespace cuda_on_cpu;
    counter.sites.clear();
    counter.touched.clear();
    for (Range& range : counter.ranges) range.read = range.written = Traffic();
    counter.other.read = counter.other.written = Traffic();
}
extern "C" __attribute__((visibility("default"))) const char* cuda_on_cpu_counts() {
    return cuda_on_cpu::describe_counts();
}
extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_count_range(const char* name,
                                                                               const void* address,
                                                                               size_t bytes) {
    using namespace cuda_on_cpu;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
    for (Range& range : counter.ranges) {
        if (range.name != name) continue;
        range.begin = begin;
        range.end = begin + bytes;
        return;
    }
    counter.ranges.push_back({name, begin, begin + bytes, {}, {}});
}
