// Memory as the kernels see it.
//
// The names `Global<T>` and `Shared<T>` mark what a pointer points to. Scalars are reached as p[i];
// four neighbours at once by load4 and store4, two by load2, aligned to the size of what they are
// together.
#pragma once

using int64 = long long;

template <class T>
using Global = T*;
template <class T>
using Shared = T*;

__device__ __forceinline__ float4 load4(const float* p) {
    return *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ ushort4 load4(const unsigned short* p) {
    return *reinterpret_cast<const ushort4*>(p);
}
__device__ __forceinline__ void store4(float* p, float4 v) {
    *reinterpret_cast<float4*>(p) = v;
}
__device__ __forceinline__ float2 load2(const float* p) {
    return *reinterpret_cast<const float2*>(p);
}

// threadIdx.x and blockIdx.x, of which the compiler cannot know that it has them already. So it works
// out anew what follows from them, and spends no register on it in between.
__device__ __forceinline__ int read_thread_number() {
    int number;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
    __builtin_assume(number >= 0);
    return number;
}
__device__ __forceinline__ unsigned read_block_number() {
    unsigned number;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
    return number;
}

// The same shared memory as another type.
template <class T>
__device__ __forceinline__ T* shared_as(float* p) {
    return reinterpret_cast<T*>(p);
}

// The block's dynamic shared memory.
#define SHARED_MEMORY(name)                       \
    extern __shared__ float4 shared_memory_[];    \
    Shared<float> name = reinterpret_cast<float*>(shared_memory_)
