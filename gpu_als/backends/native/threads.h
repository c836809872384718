// Work shared among threads, and room for it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

// Room for numbers, aligned to cache lines.
template <class T>
class Room {
  public:
    explicit Room(int64_t size)
        : data(static_cast<T*>(
              ::operator new[](sizeof(T) * std::max<int64_t>(size, 1), std::align_val_t(64)))) {}
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
    ~Room() { ::operator delete[](data, std::align_val_t(64)); }
    operator T*() const { return data; }

  private:
    T* data;
};

// Runs work(thread, next) in up to n_threads threads, where next() gives each of n_tasks numbers
// to one of them, and -1 after the last.
template <class Work>
inline void share(int64_t n_tasks, int64_t n_threads, Work work) {
    std::atomic<int64_t> taken{0};
    const auto next = [&]() -> int64_t {
        const int64_t task = taken.fetch_add(1);
        return task < n_tasks ? task : -1;
    };
    std::vector<std::thread> threads;
    for (int64_t thread = 1; thread < std::min(n_threads, n_tasks); thread++) {
        try {
            threads.emplace_back(work, thread, next);
        } catch (const std::system_error&) {
            break;  // fewer threads do it too
        }
    }
    work(0, next);
    for (auto& thread : threads) thread.join();
}

inline int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
