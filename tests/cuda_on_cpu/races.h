// Races in shared memory: two threads reach the same word, one of them changes it, and no barrier
// between them says in which order. Found in any order of the threads, unlike wrong results.
//
// A write that changes nothing is no race: lanes that hold the same number may store it together.
// Accesses narrower than a word, and global memory, are not followed. Of warp operations only those
// of all lanes count as barriers.
#pragma once

namespace cuda_on_cpu {
namespace {

// Who last read or wrote a word, and whether others did so since the last barrier.
struct Touch {
    uint64_t block_interval = 0, warp_interval = 0;
    const Thread* thread = nullptr;
    uintptr_t from = 0;
    bool several_warps = false, several_lanes = false;

    bool is_of_this_interval() const { return block_interval == block.intervals; }

    // Whether no barrier lies between this and what `self` does now.
    bool is_unordered_with(const Thread& self) const {
        if (!is_of_this_interval()) return false;
        if (several_warps || thread->warp != self.warp) return true;
        return warp_interval == self.warp->intervals && (several_lanes || thread != &self);
    }
    void note(const Thread& self, uintptr_t place) {
        const bool recent = is_of_this_interval(), same_warp = recent && thread->warp == self.warp;
        several_lanes = same_warp && warp_interval == self.warp->intervals &&
                        (several_lanes || thread != &self);
        several_warps = recent && (several_warps || !same_warp);
        block_interval = block.intervals;
        warp_interval = self.warp->intervals;
        thread = &self;
        from = place;
    }
};

struct Word {
    Touch read, written;
};

std::vector<Word> words_of_block;

// "code 0x..." is turned into a place of the source by build.py.
[[noreturn]] void fail_race(size_t word, const char* now, uintptr_t from, const char* before,
                            const Touch& touch) {
    const uint3& t = touch.thread->index;
    const uintptr_t base = reinterpret_cast<uintptr_t>(__ehdr_start) + 1;
    fail("race: %s float %zu of shared memory at code %#zx, which thread (%u, %u, %u) %s at code "
         "%#zx, with no barrier in between",
         now, word, size_t(from - base), t.x, t.y, t.z, before, size_t(touch.from - base));
}

// Notes an access to shared memory; `value` is what will be written, or null.
void check_shared(const void* address, unsigned bytes, const void* value, uintptr_t from) {
    const Thread& self = *block.current;
    const char* at = static_cast<const char*>(address);
    const ptrdiff_t begin = at - static_cast<const char*>(block.shared_memory);
    if (begin < 0 || begin + bytes > block.launch.shared_bytes) {
        const uintptr_t base = reinterpret_cast<uintptr_t>(__ehdr_start) + 1;
        fail("reaches byte %td of %zu of shared memory at code %#zx", begin,
             block.launch.shared_bytes, size_t(from - base));
    }
    words_of_block.resize(std::max(words_of_block.size(), block.launch.shared_bytes / 4));
    for (unsigned byte = 0; byte + 4 <= bytes; byte += 4) {
        const size_t number = (begin + byte) / 4;
        Word& word = words_of_block[number];
        if (!value) {
            if (word.written.is_unordered_with(self))
                fail_race(number, "reads", from, "writes", word.written);
            word.read.note(self, from);
        } else if (memcmp(at + byte, static_cast<const char*>(value) + byte, 4)) {
            if (word.written.is_unordered_with(self))
                fail_race(number, "writes", from, "writes", word.written);
            if (word.read.is_unordered_with(self))
                fail_race(number, "writes", from, "reads", word.read);
            word.written.note(self, from);
        }
    }
}

}  // namespace
}  // namespace cuda_on_cpu
