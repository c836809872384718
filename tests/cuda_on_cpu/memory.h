// The pointers of the kernels' memory.cuh: plain ones here, counting ones in counting.h.
#pragma once

using cuda_on_cpu::Place;

namespace cuda_on_cpu {

template <class Vector, class T>
__forceinline__ Vector* aligned(const T* p, Place place) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof(Vector))
        fail("misaligned access of %zu bytes at %s:%d", sizeof(Vector), place.file, place.line);
    return reinterpret_cast<Vector*>(const_cast<T*>(p));
}

}  // namespace cuda_on_cpu

inline int read_thread_number() { return threadIdx.x; }
inline unsigned read_block_number() { return blockIdx.x; }

#ifdef GPU_ALS_COUNT
#include "counting.h"
#else

template <class T>
using Global = T*;
template <class T>
using Shared = T*;

__forceinline__ float4 load4(const float* p, Place place = Place::here()) {
    return *cuda_on_cpu::aligned<float4>(p, place);
}
__forceinline__ ushort4 load4(const unsigned short* p, Place place = Place::here()) {
    return *cuda_on_cpu::aligned<ushort4>(p, place);
}
__forceinline__ void store4(float* p, float4 v, Place place = Place::here()) {
    *cuda_on_cpu::aligned<float4>(p, place) = v;
}
__forceinline__ float2 load2(const float* p, Place place = Place::here()) {
    return *cuda_on_cpu::aligned<float2>(p, place);
}
template <class T>
__forceinline__ T __ldg(const T* p) {
    return *p;
}
template <class T>
__forceinline__ Shared<T> shared_as(Shared<float> p) {
    return reinterpret_cast<T*>(p);
}

#define SHARED_MEMORY(name) \
    Shared<float> name = static_cast<float*>(cuda_on_cpu::block.shared_memory)

namespace cuda_on_cpu {
namespace {
inline void warp_is_together() {}
}  // namespace
}  // namespace cuda_on_cpu

#endif
