// CUDA for the CPU, as far as this project's kernels need it: a kernel compiled by g++ behind this
// header runs with one fibre per thread of a block, one block after another.
//
// Beyond running it, the model refuses what a GPU leaves undefined or lets pass: a barrier that
// not all threads come to, a warp operation that not all the lanes it names come to, misaligned
// vector accesses, too much or overrun shared memory. Unwritten shared memory reads as NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <math.h>
#include <tuple>
#include <type_traits>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__
#define __launch_bounds__(...)

// Vector types

struct int2 {
    int x, y;
} __attribute__((aligned(8)));
struct int4 {
    int x, y, z, w;
} __attribute__((aligned(16)));
struct ushort4 {
    unsigned short x, y, z, w;
} __attribute__((aligned(8)));
struct float2 {
    float x, y;
} __attribute__((aligned(8)));
struct float4 {
    float x, y, z, w;
} __attribute__((aligned(16)));

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#include "memory.h"
#include "tensor.h"

// Maths

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }

// The same types on both sides, or the call is ambiguous, here as there.
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }

namespace cuda_on_cpu {
template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}
}  // namespace cuda_on_cpu

inline int __float_as_int(float x) { return cuda_on_cpu::bits_as<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::bits_as<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bits_as<float>(x); }

// Barriers of the block

inline void __syncthreads(Place place = Place::here()) {
    cuda_on_cpu::barrier("__syncthreads", false, place);
}
inline int __syncthreads_count(int predicate, Place place = Place::here()) {
    return cuda_on_cpu::barrier("__syncthreads_count", predicate, place);
}
inline int __syncthreads_or(int predicate, Place place = Place::here()) {
    return cuda_on_cpu::barrier("__syncthreads_or", predicate, place) != 0;
}
inline int __syncthreads_and(int predicate, Place place = Place::here()) {
    return cuda_on_cpu::barrier("__syncthreads_and", !predicate, place) == 0;
}

// Operations of the warp

inline void __syncwarp(unsigned mask = 0xffffffffu, Place place = Place::here()) {
    cuda_on_cpu::exchange("__syncwarp", mask, '\0', false, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, Place place = Place::here()) {
    return cuda_on_cpu::exchange("__ballot_sync", mask, '\0', predicate, place).votes;
}
inline int __any_sync(unsigned mask, int predicate, Place place = Place::here()) {
    return cuda_on_cpu::exchange("__any_sync", mask, '\0', predicate, place).votes != 0;
}
inline int __all_sync(unsigned mask, int predicate, Place place = Place::here()) {
    return cuda_on_cpu::exchange("__all_sync", mask, '\0', !predicate, place).votes == 0;
}

namespace cuda_on_cpu {

inline unsigned lane() { return block.current->lane; }

// The value of lane `source`; a lane outside the caller's segment of `width` gives the own value.
template <class T>
inline T shuffle(const char* operation, unsigned mask, T value, int source, int width,
                 Place place) {
    static_assert(std::is_arithmetic_v<T>, "read the value into a variable before shuffling it");
    const Round& round = exchange(operation, mask, value, false, place);
    const int segment = lane() & -width;
    if (source < segment || source >= segment + width) return value;
    if (!(mask >> source & 1))
        fail("%s at %s:%d with mask %#x reads lane %d, which the mask does not name", operation,
             place.file, place.line, mask, source);
    return round.slots[source].as<T>();
}

}  // namespace cuda_on_cpu

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                     Place place = Place::here()) {
    const int segment = cuda_on_cpu::lane() & -width;
    source = segment + (source & (width - 1));
    return cuda_on_cpu::shuffle("__shfl_sync", mask, value, source, width, place);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                        Place place = Place::here()) {
    const int source = cuda_on_cpu::lane() - delta;
    return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, source, width, place);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          Place place = Place::here()) {
    const int source = cuda_on_cpu::lane() + delta;
    return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, source, width, place);
}
// As on a GPU, a lane may read from a segment before its own, not from one behind it.
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                         Place place = Place::here()) {
    const int self = cuda_on_cpu::lane(), partner = self ^ lanes;
    const int source = partner < (self & -width) + width ? partner : self;
    return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, source, 32, place);
}

// The way in: what build.py calls.

namespace cuda_on_cpu {

// A kernel's parameters, as a type, a copy from untyped arguments, and a call.
template <auto kernel>
struct Entry;
template <class... A, void (*kernel)(A...)>
struct Entry<kernel> {
    static constexpr size_t sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};

    template <class T>
    static T read(const void* argument) {
        static_assert(std::is_trivially_copyable_v<T>);
        T value;
        memcpy(static_cast<void*>(&value), argument, sizeof(T));
        return value;
    }
    static void call(const void* arguments) {
        std::apply(kernel, *static_cast<const std::tuple<A...>*>(arguments));
    }
    static void launch(const char* name, const Launch& launch, void** arguments, char* error) {
        const std::tuple<A...> typed{read<A>(*arguments++)...};
        run(name, launch, call, &typed, error);
    }
};

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_EXPORT extern "C" __attribute__((visibility("default")))
#define CUDA_ON_CPU_KERNEL(name)                                                              \
    CUDA_ON_CPU_EXPORT const size_t* cuda_on_cpu_parameter_sizes() {                          \
        return cuda_on_cpu::Entry<name>::sizes;                                               \
    }                                                                                         \
    CUDA_ON_CPU_EXPORT void cuda_on_cpu_launch(const cuda_on_cpu::Launch* launch, void** args, \
                                               char* error) {                                 \
        cuda_on_cpu::Entry<name>::launch(#name, *launch, args, error);                        \
    }
